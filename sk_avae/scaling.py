"""Scaling: the range that pixels have, faults left out, and what brings it to [0, 1]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# A pixel lies far outside if it is so many ranges away from what several pixels (more than so many) of most images
# reach; in images of few pixels, or where more than this share of the images has such pixels, they belong to them.
_RANGES_AWAY = 2.0
_FEW_PIXELS = 3
_TYPICAL = 0.9
_FEW_IMAGES = 0.05
_FEWEST_PIXELS = 16

# Channels whose ranges differ by more than this factor are scaled each by itself.
_LIKE_CHANNELS = 4.0
# Relative to their level pixels that differ by less are one value with rounding errors.
_LEAST_CONTRAST = 1e-7


def pixel_range(pixels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the range of pixels, per channel, without the few that lie far outside what images have otherwise.

    A pixel lies far outside if it is two ranges away from that of typical images, and from what other pixels of its
    image reach; and if few images have such pixels.

    Parameters
    ----------
    pixels : ndarray of shape (n, n_pixels, n_channels)

    Returns
    -------
    low, high : ndarray of shape (n_channels,)
    n_outlying : int
        How many pixels were left out.
    """
    low, high = pixels.min(axis=(0, 1)).astype(np.float64), pixels.max(axis=(0, 1)).astype(np.float64)
    n, n_pixels, _ = pixels.shape
    several = 1 + max(_FEW_PIXELS, n_pixels // 200)
    if n_pixels < _FEWEST_PIXELS or not (high > low).any():
        return low, high, 0
    with np.errstate(over="ignore", invalid="ignore"):
        ends = [_ends(pixels[part], several) for part in _parts(n)]
        lowest, low_ones, high_ones, highest = (np.concatenate(end) for end in zip(*ends, strict=True))
        above = _farthest(high_ones, low_ones, highest)
        below = -_farthest(-low_ones, -high_ones, -lowest)
        if (high <= above).all() and (low >= below).all():
            return low, high, 0
        low, high, n_outlying = np.full_like(low, np.inf), np.full_like(high, -np.inf), 0
        for part in _parts(n):
            inside = (pixels[part] >= below) & (pixels[part] <= above)
            low = np.minimum(low, pixels[part].min(axis=(0, 1), where=inside, initial=np.inf))
            high = np.maximum(high, pixels[part].max(axis=(0, 1), where=inside, initial=-np.inf))
            n_outlying += int(inside.size - np.count_nonzero(inside))
    return low, high, n_outlying


def _parts(n: int) -> list[slice]:
    return [slice(start, start + 256) for start in range(0, n, 256)]


def _ends(pixels: NDArray[Any], several: int) -> tuple[NDArray[np.float64], ...]:
    """Return, per image and channel, the lowest pixel, the lowest and highest that several reach, and the highest."""
    ordered = np.partition(pixels, (several - 1, pixels.shape[1] - several), axis=1)
    ends = pixels.min(axis=1), ordered[:, several - 1], ordered[:, -several], pixels.max(axis=1)
    return tuple(end.astype(np.float64) for end in ends)


def _farthest(reached: NDArray[Any], other_end: NDArray[Any], farthest: NDArray[Any]) -> NDArray[np.float64]:
    """Return, per channel, how high pixels may be, from what several and what single ones of each image reach."""
    limits = np.full(reached.shape[1], np.inf)
    for channel, (top, bottom, single) in enumerate(zip(reached.T, other_end.T, farthest.T, strict=True)):
        varied = top > bottom
        if varied.any():
            typical = np.quantile(top[varied], _TYPICAL)
            span = typical - np.quantile(bottom[varied], 1 - _TYPICAL)
            limit = max(typical + _RANGES_AWAY * span, top.max())
            if np.mean(single > limit) <= _FEW_IMAGES:
                limits[channel] = limit
    return limits


def offset_and_scale(
    low: NDArray[np.float64], high: NDArray[np.float64], background: NDArray[np.float64]
) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    """Return what brings pixels to [0, 1], the background nearer to 0: one pair for all channels if these are alike."""
    span = (high - low)[high > low]
    if (len(span) and span.max() <= _LIKE_CHANNELS * span.min()) or not len(span):
        low, high, background = low.min(keepdims=True), high.max(keepdims=True), background.mean(keepdims=True)
    dark = background <= (low + high) / 2
    first, last = np.where(dark, low, high), np.where(dark, high, low)
    scale = last - first
    level = np.maximum(np.abs(first), np.abs(last))
    if (np.abs(scale) <= _LEAST_CONTRAST * level).all() and level.any():
        scale = np.zeros_like(scale)
    scale = np.where(scale == 0, 1.0, scale)
    if len(scale) == 1:
        return float(first[0]), float(scale[0])
    return tuple(first.tolist()), tuple(scale.tolist())
