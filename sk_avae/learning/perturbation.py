"""Perturbation: canonical images in poses at random, from which the search models learn."""

import torch
from torch import Tensor

from ..model.affine import REFLECTED, invert, parameters_of
from ..model.avae import AVAE
from ..model.batches import image_slices
from ..search.starting_poses import reach_of

# Where the family cannot shift them, this share of images is taken to be off centre, by up to so many half sides to
# either side. MNIST's digits have their mass half a pixel off the frame's centre, all to the same side: taken at its
# word that alone tells up from down, and digits that are half a pixel off come out half a turn wrong.
_SHARE_OFF_CENTRE = 0.25
_OFF_CENTRE = 1 / 16


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


def random_places(model: AVAE, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a pose for each image, of shape (n, n_params), and how far off centre it is, of shape (n, 2, 3)."""
    true = random_poses(len(images), model.family, model.scale, generator).to(images.device)
    return true, random_offsets(images, model.family, model.scale, generator)


def perturb(model: AVAE, images: Tensor, matrix: Tensor) -> Tensor:
    """Give canonical images the poses of given matrices."""
    perturbed = torch.empty_like(images)
    for rows in image_slices(images):
        perturbed[rows] = model.canonical(images[rows], invert(matrix[rows]))
    return perturbed
