"""Resampling: warps that shrink an image without aliasing."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .affine import warp

_MOST_SAMPLES = 8


def samples_per_pixel(matrix: Tensor, aspect: float) -> Tensor:
    """Return how many samples along each side make a pixel without aliasing, of shape (n,): 1 but where images shrink.

    Parameters
    ----------
    matrix : Tensor of shape (n, 2, 3)
        Maps output to input coordinates.
    aspect : float
        Width over height.

    Examples
    --------
    >>> from sk_avae.affine import to_matrix
    >>> samples_per_pixel(to_matrix(torch.tensor([[0.0, 0.1, 0, 0], [0, 0.7, 0, 0]]), "similarity"), 1.0)
    tensor([1, 2])
    """
    a, b = matrix[:, 0, 0].double(), matrix[:, 0, 1].double() * aspect
    c, d = matrix[:, 1, 0].double() / aspect, matrix[:, 1, 1].double()
    half, determinant = (a * a + b * b + c * c + d * d) / 2, a * d - b * c
    largest = (half + (half.square() - determinant.square()).clamp(min=0).sqrt()).sqrt()
    # A bilinear sample covers two pixels: half as many again are no harm.
    return largest.nan_to_num(nan=1.0).round().clamp(1, _MOST_SAMPLES).long()


def warp_without_aliasing(images: Tensor, matrix: Tensor, **how: Any) -> Tensor:
    """Return what `warp` does; where it shrinks an image, several samples make a pixel.

    Parameters
    ----------
    images, matrix : Tensor
        See `affine.warp`, as for the further arguments.
    **how

    Returns
    -------
    warped : Tensor of shape (n, n_channels, height, width)
        NaN where a matrix has numbers that are none.
    """
    lost = ~matrix.isfinite().flatten(1).all(dim=1)
    warped = _warped(images, matrix, **how)
    return torch.where(lost[:, None, None, None], torch.nan, warped) if bool(lost.any()) else warped


def _warped(images: Tensor, matrix: Tensor, **how: Any) -> Tensor:
    samples = samples_per_pixel(matrix, images.shape[3] / images.shape[2])
    if how.get("interpolation") == "nearest" or bool((samples == 1).all()):
        return warp(images, matrix, **how)
    height, width = images.shape[2:]
    background, warped = how.pop("background", 0.0), torch.empty_like(images)
    for k in torch.unique(samples).tolist():
        some = samples == k
        own = background[some] if isinstance(background, Tensor) and background.ndim == 2 else background
        fine = warp(images[some], matrix[some], background=own, sides=(k * height, k * width), **how)
        warped[some] = F.avg_pool2d(fine, k) if k > 1 else fine
    return warped
