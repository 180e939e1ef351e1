"""Moments: where the ink of an image lies and how far it spreads. Ink is whatever differs from the background.

References
----------
Hu (1962), "Visual pattern recognition by moment invariants".
"""

from typing import NamedTuple

import torch
from torch import Tensor

_IMAGES_PER_PART = 4096


class Moments(NamedTuple):
    """Centroid, of shape (n, 2), and covariance, of shape (n, 2, 2), of the ink of images, in half heights."""

    centroid: Tensor
    covariance: Tensor

    def of(self, rows: Tensor) -> "Moments":
        """Return those of some of the images."""
        return Moments(self.centroid[rows], self.covariance[rows])


def exact_moments(images: Tensor, background: Tensor) -> Moments:
    """Return the moments of the ink, of whatever differs from the background, in double precision.

    In single precision functions of them would round the last bit by their place in the block, which must not show.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)

    Returns
    -------
    moments : Moments
        A constant image has its ink spread evenly.
    """
    ink = (images - background.view(1, -1, 1, 1)).abs().sum(dim=1).double() + 1e-6
    n, height, width = ink.shape
    y = (torch.arange(height, device=ink.device) + 0.5).double() * 2 / height - 1
    x = ((torch.arange(width, device=ink.device) + 0.5).double() * 2 / width - 1) * (width / height)
    # sums[:, i, j] is that of y^i x^j.
    sums = torch.stack([y**0, y, y**2]) @ (ink @ torch.stack([x**0, x, x**2], dim=1))
    means = sums / sums[:, :1, :1]
    mean_x, mean_y = means[:, 0, 1], means[:, 1, 0]
    var_x, var_y = means[:, 0, 2] - mean_x.square(), means[:, 2, 0] - mean_y.square()
    cov = means[:, 1, 1] - mean_x * mean_y
    covariance = torch.stack([var_x, cov, cov, var_y], dim=1).view(n, 2, 2)
    return Moments(torch.stack([mean_x, mean_y], dim=1), covariance)


def moments(images: Tensor, background: Tensor) -> Moments:
    """Return `exact_moments` in the precision of the images."""
    found = exact_moments(images, background)
    return Moments(found.centroid.to(images), found.covariance.to(images))


def mean_moments(images: Tensor, background: Tensor) -> Moments:
    """Return the means of the moments of images: those of a typical one, with n = 1."""
    parts = [moments(part, background) for part in images.split(_IMAGES_PER_PART)]  # type: ignore[no-untyped-call]
    found = Moments(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    return Moments(found.centroid.mean(dim=0, keepdim=True), found.covariance.mean(dim=0, keepdim=True))


def mirrored(moments: Moments) -> Moments:
    """Return the moments of the mirrored images."""
    sign = moments.centroid.new_tensor([-1.0, 1.0])
    return Moments(moments.centroid * sign, moments.covariance * sign[:, None] * sign)
