"""Perturbation: canonical images in poses at random, from which the search models learn."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..model.affine import REFLECTED, beyond_centres, compose, invert, parameters_of
from ..model.avae import AVAE
from ..model.batches import image_slices
from ..search.starting_poses import reach_of

# Where the family cannot shift them, this share of images is taken to be off centre, by up to so many half sides to
# either side. MNIST's digits have their mass half a pixel off the frame's centre, all to the same side: taken at its
# word that alone tells up from down, and digits that are half a pixel off come out half a turn wrong.
_SHARE_OFF_CENTRE = 0.25
_OFF_CENTRE = 1 / 16

# This share of images is cut off at the centres of its outermost pixels, as other libraries do: of 8 x 8 pixels that is
# an eighth, and networks that have never seen it take it for something else.
_SHARE_CUT = 0.5


def random_poses(n: int, family: str, scale: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Draw poses uniformly within the reach of the table, and of three deviations of the prior.

    Half of them are reflected where the family reflects.

    Parameters
    ----------
    n : int
    family : str
    scale : tuple of float
        The prior's standard deviations.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    alpha : Tensor of shape (n, n_params)
    """
    names = parameters_of(family)
    uniform = 2 * torch.rand(n, len(names), generator=generator, dtype=torch.float32) - 1
    alpha = uniform * uniform.new_tensor(reach_of(family, scale))
    if names[-1] == REFLECTED:
        alpha[:, -1] = (alpha[:, -1] > 0).to(alpha)
    return alpha


def random_offsets(images: Tensor, family: str, scale: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Draw how far off centre images are: one in four, by up to a 32nd of a side where the family cannot shift it.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    family : str
    scale : tuple of float
        The prior's standard deviations.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    matrix : Tensor of shape (n, 2, 3)
        To be applied to an image before its pose.
    """
    matrix = torch.eye(2, 3, dtype=torch.float32).repeat(len(images), 1, 1)
    offset = _OFF_CENTRE * (2 * torch.rand(len(images), 2, generator=generator, dtype=torch.float32) - 1)
    offset = offset * (torch.rand(len(images), 1, generator=generator, dtype=torch.float32) < _SHARE_OFF_CENTRE)
    shifted = {name for name, s in zip(parameters_of(family), scale, strict=True) if s > 0}
    for axis, (name, side) in enumerate((("tx", images.shape[3]), ("ty", images.shape[2]))):
        if name not in shifted and side > 1:
            matrix[:, axis, 2] = offset[:, axis]
    return matrix.to(images)


class Places(NamedTuple):
    """Where canonical images are put.

    Attributes
    ----------
    alpha : Tensor of shape (n, n_params)
        Their poses.
    offset : Tensor of shape (n, 2, 3) or None, default=None
        How far off centre they are, see `random_offsets`; None is not at all.
    is_cut : Tensor of bool of shape (n,) or None, default=None
        Which are cut off at the centres of their outermost pixels, rather than faded out; None is none.
    """

    alpha: Tensor
    offset: Tensor | None = None
    is_cut: Tensor | None = None

    def of(self, rows: slice) -> "Places":
        """Return those of some of the images."""
        return Places(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


def random_places(model: AVAE, images: Tensor, generator: torch.Generator) -> Places:
    """Draw a place for each image."""
    alpha = random_poses(len(images), model.family, model.scale, generator).to(images.device)
    offset = random_offsets(images, model.family, model.scale, generator)
    is_cut = torch.rand(len(images), generator=generator, dtype=torch.float32) < _SHARE_CUT
    return Places(alpha, offset, is_cut.to(images.device))


def perturb(model: AVAE, images: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """Put canonical images where they are to be.

    Returns
    -------
    perturbed : Tensor of shape (n, n_channels, height, width)
    truth : Tensor of shape (n, 2, 3)
        The matrices of their poses.
    """
    truth = model.matrix(places.alpha, images)
    inverse = invert(truth if places.offset is None else compose(truth, places.offset))
    perturbed = torch.empty_like(images)
    for rows in image_slices(images):
        perturbed[rows] = model.canonical(images[rows], inverse[rows])
        if places.is_cut is not None and model.padding == "background":
            cut = beyond_centres(inverse[rows], (images.shape[2], images.shape[3])) & places.is_cut[rows, None, None]
            perturbed[rows] = torch.where(cut[:, None], model.background.view(1, -1, 1, 1), perturbed[rows])
    return perturbed, truth
