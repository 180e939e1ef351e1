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
_FEW = 0.02
# Training images between these shares tell which levels are usual.
_USUAL = 0.01, 0.99
# Ink that differs by less of the training images' range is none; and by how much of it the ground may vary.
_LEAST_INK = 4e-3


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


def levels(images: Tensor, *, from_edges: bool) -> tuple[Tensor, Tensor]:
    """Return ground and ink, the latter as a difference, of images of shape (n, C, H, W); NaN is left out."""
    pixels = images.flatten(1)
    ordered = pixels.sort(dim=1).values  # NaN comes last
    n_known = (~pixels.isnan()).sum(dim=1, keepdim=True)
    few = (n_known.double() * _FEW).long().clamp(min=_FEW_PIXELS - 1)
    few = few.minimum((n_known - 1).clamp(min=0) // 2)
    low = ordered.gather(1, few)[:, 0]
    high = ordered.gather(1, (n_known - 1 - few).clamp(min=0))[:, 0]
    if not from_edges:
        return low, high - low
    edges = edge_pixels(images).flatten(1).nanmedian(dim=1).values
    ground = torch.where(edges.isnan(), low, edges)
    return ground, torch.where(high - ground >= ground - low, high - ground, low - ground)


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
    shares = ground.new_tensor(_USUAL)
    ends = (some[usual].double().quantile(shares.double()).tolist() for some in (ground, ink))
    return Exposure(from_edges, *(tuple(end) for end in ends))  # type: ignore[arg-type]


def correction(images: Tensor, usual: Exposure) -> Correction:
    """Return what brings images, of shape (n, C, H, W), to usual levels."""
    ground, ink = levels(images, from_edges=usual.from_edges)
    low, high = usual.ink
    # Where training images are brighter than their ground as well as darker no contrast is an inverted one.
    wanted = (
        ink.abs().clamp(low, high) if low > 0 else -ink.abs().clamp(-high, -low) if high < 0 else ink.clamp(low, high)
    )
    plain = (wanted - ink).abs() <= _LEAST_INK
    slope = torch.where(plain | (ink.abs() <= _LEAST_INK), torch.ones_like(ink), wanted / ink)
    to = ground.clamp(*usual.ground)
    shift = torch.where((slope == 1) & ((to - ground).abs() <= _LEAST_INK), torch.zeros_like(to), to - slope * ground)
    known = ground.isfinite() & ink.isfinite()
    slope, shift = torch.where(known, slope, 1.0), torch.where(known, shift, 0.0)
    return Correction(slope.view(-1, 1, 1, 1), shift.view(-1, 1, 1, 1))
