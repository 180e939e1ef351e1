"""Noise: how rough an image is beside training images, and the same image smoothed where it is rougher.

References
----------
Immerkaer (1996), "Fast noise variance estimation" (the stencil); Lee (1980), "Digital image enhancement and noise
filtering by use of local statistics" (the local Wiener filter).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .faults import neighbours

# What the stencil makes of white noise: six times its standard deviation, and the median of a normal's absolute value.
_GAIN = 6.0
_MEDIAN_OF_NORMAL = 0.6745
# A speck differs from the median of its neighbours by so much of the image's range, and from all but one of them.
_SPECK = 0.25
# Of training images so many are as rough, and as noisy, as is usual. Smaller copies are rougher without noise; faint
# noise makes an image hardly rougher, but shows in its ground.
_USUAL = 0.99
_ROUGHER = 1.25
_NOISIER = 1.5
_MORE_NOISE = 0.025


class Noise(NamedTuple):
    """How rough training images are, in the units of the model: mean size of the stencil, and deviation of noise."""

    roughness: float
    deviation: float


def _stencil(images: Tensor) -> Tensor:
    """Return second differences along both sides at once, which are 0 wherever an image is smooth."""
    rows = images[:, :, :-2] - 2 * images[:, :, 1:-1] + images[:, :, 2:]
    return rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]


def roughness(images: Tensor) -> Tensor:
    """Return the mean size of second differences of images of shape (n, C, H, W), of shape (n,)."""
    return _stencil(images).abs().flatten(1).double().mean(dim=1)


def noise_deviation(images: Tensor) -> Tensor:
    """Return the standard deviation of white noise in images, of shape (n,); what has a shape hardly counts."""
    return _stencil(images).abs().flatten(1).median(dim=1).values.double() / (_GAIN * _MEDIAN_OF_NORMAL)


def usual_noise(images: Tensor) -> Noise | None:
    """Return how rough training images are; None if they are too small to tell."""
    if min(images.shape[2:]) < 3:
        return None
    rough = roughness(images).quantile(_USUAL)
    return Noise(float(rough), float(noise_deviation(images).quantile(_USUAL)))


def smoothed(images: Tensor, usual: Noise) -> Tensor:
    """Return images without specks and noise, as far as they have more of them than is usual; others bit by bit.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
        In the units of the model.
    usual : Noise
    """
    rough = roughness(images) > _ROUGHER * usual.roughness
    if bool(rough.any()):
        images = images.index_copy(0, rough.nonzero()[:, 0], _without_specks(images[rough]))
    deviation = noise_deviation(images)
    noisy = deviation > _NOISIER * usual.deviation + _MORE_NOISE
    if not bool(noisy.any()):
        return images
    excess = (deviation[noisy].square() - usual.deviation**2).to(images).view(-1, 1, 1, 1)
    return images.index_copy(0, noisy.nonzero()[:, 0], _wiener(images[noisy], excess))


def _without_specks(images: Tensor) -> Tensor:
    around = neighbours(images)
    n, n_channels, _, n_pixels = around.shape
    others = torch.cat([around[:, :, :4], around[:, :, 5:]], dim=2)
    ordered = others.nan_to_num(nan=torch.inf).sort(dim=2).values
    n_known = (~others.isnan()).sum(dim=2, keepdim=True)
    low = ordered.gather(2, torch.ones_like(n_known))[:, :, 0]
    high = ordered.gather(2, n_known - 2)[:, :, 0]
    median = others.nanmedian(dim=2).values
    pixel = images.view(n, n_channels, n_pixels)
    outside = (pixel < low) | (pixel > high)
    speck = outside & ((pixel - median).abs() > _SPECK)
    return torch.where(speck, median, pixel).view_as(images)


def _wiener(images: Tensor, variance: Tensor) -> Tensor:
    """Return images drawn towards their local means, the more the less they vary beyond noise of a variance."""
    mean = _local_mean(images)
    spread = (_local_mean(images.square()) - mean.square()).clamp(min=0)
    kept = (spread - variance).clamp(min=0) / spread.maximum(variance).clamp(min=1e-12)
    return mean + kept * (images - mean)


def _local_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
