"""Exposure: how bright an image is, and how much it is to be corrected to look as training images do.

Two levels of each image tell: its ground (the background, or its darkest pixels where there is none) and its ink (the
pixels farthest from it). Images whose levels are such as training images have stay as they are, bit by bit; levels
farther out are brought to the nearest such ones. One hot pixel decides nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .affine import edge_pixels

# So many pixels, and this share of them, may be brighter than the ink.
_FEW_PIXELS = 4
_FEW = 0.005
# Training images between these shares tell which levels are usual; contrast that is so many times more or less is left
# as it is.
_USUAL = 0.01, 0.99
_SLACK = 1.25
# Levels that differ by less of the training images' range are alike, and what differs by less from its ground no ink.
_ALIKE = 4e-3
_LEAST_INK = 1e-3
# Edges that are so near to the usual ground are ground; and so many of them are enough.
_GROUND = 0.04
_SOME = 0.2
# Contrast is inverted if it is so many times larger towards the other end.
_CLEARLY = 2.0
# Ink is at least so much of an image's whole range: what lies on the other side of the ground is bright or dark, too.
_MOSTLY_INK = 0.75


class Exposure(NamedTuple):
    """Which levels are usual, in the units of the model.

    Attributes
    ----------
    from_edges : bool
        Whether the ground is the median of an image's edges, rather than its darkest pixels.
    ground, ink : tuple of float
        The lowest and the highest of training images; `ink` as a difference from the ground.
    """

    from_edges: bool
    ground: tuple[float, float]
    ink: tuple[float, float]


class Correction(NamedTuple):
    """What brings images to usual levels: ``corrected = slope * image + shift``; each of shape (n, 1, 1, 1)."""

    slope: Tensor
    shift: Tensor

    def of(self, images: Tensor) -> Tensor:
        """Return corrected images; those with the slope 1 and the shift 0 keep their bits."""
        return torch.where(self.changes, self.slope * images + self.shift, images)

    def undone(self, images: Tensor) -> Tensor:
        """Return corrected images as they were."""
        return torch.where(self.changes, (images - self.shift) / self.slope, images)

    @property
    def changes(self) -> Tensor:
        """Tell which images are changed at all, of shape (n, 1, 1, 1)."""
        return (self.slope != 1) | (self.shift != 0)

    @property
    def inverts(self) -> Tensor:
        """Tell which images are darker where training images are brighter, of shape (n,)."""
        return self.slope.flatten() < 0


def levels(images: Tensor, *, from_edges: bool, ground_is: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Return ground and ink, the latter as a difference, of images of shape (n, C, H, W); NaN is left out.

    With `ground_is` the ground lies between these levels where some of the edges do: the object covers the others.
    """
    pixels = images.flatten(1)
    unknown = pixels.isnan()
    n_known = (~unknown).sum(dim=1, keepdim=True)
    few = (n_known.double() * _FEW).long().clamp(min=_FEW_PIXELS - 1)
    few = few.minimum((n_known - 1).clamp(min=0) // 2)
    n_ends = int(few.max()) + 1
    low = pixels.masked_fill(unknown, torch.inf).topk(n_ends, dim=1, largest=False).values.gather(1, few)[:, 0]
    high = pixels.masked_fill(unknown, -torch.inf).topk(n_ends, dim=1).values.gather(1, few)[:, 0]
    if not from_edges:
        return low, high - low
    edges = edge_pixels(images).flatten(1)
    ground = edges.nanmedian(dim=1).values
    ground = torch.where(ground.isnan(), low, ground)
    if ground_is is not None:
        first, last = ground_is
        usual = (edges >= first - _GROUND) & (edges <= last + _GROUND)
        share = usual.double().sum(dim=1) / (~edges.isnan()).sum(dim=1).clamp(min=1)
        ground = torch.where(share >= _SOME, ground.clamp(first, last), ground)
    # Both ways alike is as in training: it takes a clear case to be inverted.
    ink = torch.where(_CLEARLY * (high - ground) >= ground - low, high - ground, low - ground)
    size = ink.abs().maximum(_MOSTLY_INK * (high - low))
    return ground, torch.where(ink < 0, -size, size)


def usual_exposure(images: Tensor, *, from_edges: bool) -> Exposure | None:
    """Return which levels training images have; None if none of them has any ink.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
        In the units of the model.
    from_edges : bool
        Whether images have a background, which their edges show.
    """
    ground, ink = levels(images, from_edges=from_edges)
    usual = ink.abs() > _LEAST_INK
    if not bool(usual.any()):
        return None
    shares = torch.tensor(_USUAL, dtype=torch.double, device=ground.device)
    (first, last), (low, high) = (some[usual].double().quantile(shares).tolist() for some in (ground, ink))
    return Exposure(from_edges, (first, last), (low, high))


def correction(images: Tensor, usual: Exposure, *, covered: bool = True) -> Correction:
    """Return what brings images, of shape (n, C, H, W), to usual levels.

    With `covered` an object may cover most of the edges: what is seen of the usual ground is then the ground.
    """
    ground, ink = levels(images, from_edges=usual.from_edges, ground_is=usual.ground if covered else None)
    low, high = usual.ink
    # Where training images are brighter than their ground as well as darker no contrast is an inverted one.
    wanted = (
        ink.abs().clamp(low, high) if low > 0 else -ink.abs().clamp(-high, -low) if high < 0 else ink.clamp(low, high)
    )
    near = (ink > min(low * _SLACK, low / _SLACK)) & (ink < max(high * _SLACK, high / _SLACK))
    plain = near | ((wanted - ink).abs() <= _ALIKE)
    slope = torch.where(plain | (ink.abs() <= _LEAST_INK), torch.ones_like(ink), wanted / ink)
    to = ground.clamp(*usual.ground)
    shift = torch.where((slope == 1) & ((to - ground).abs() <= _ALIKE), torch.zeros_like(to), to - slope * ground)
    known = ground.isfinite() & ink.isfinite()
    slope, shift = slope.masked_fill(~known, 1.0), shift.masked_fill(~known, 0.0)
    return Correction(slope.view(-1, 1, 1, 1), shift.view(-1, 1, 1, 1))
