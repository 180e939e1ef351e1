"""Faulty pixels: those far outside the range of an image's others, which would decide its pose by themselves."""

import torch
import torch.nn.functional as F
from torch import Tensor

Limits = tuple[float, float]

# Where more of an image is out there, it is another exposure rather than a fault.
_MOST_FAULTY = 0.05


def reach_of_pixels(limits: Limits) -> Limits:
    """Return how far pixels may be: a whole range away from theirs is no brightness that a model could explain.

    Examples
    --------
    >>> reach_of_pixels((0.0, 1.0))
    (-1.0, 2.0)
    """
    low, high = limits
    return 2 * low - high, 2 * high - low


def is_faulty(images: Tensor, limits: Limits) -> Tensor:
    """Tell which pixels of images, of shape (n, n_channels, height, width), are far outside their limits."""
    lowest, highest = reach_of_pixels(limits)
    return (images < lowest) | (images > highest)


def has_few(faulty: Tensor) -> Tensor:
    """Tell which images, of shape (n,), have faulty pixels, and so few that they are not another exposure."""
    share = faulty.flatten(1).double().mean(dim=1)
    return (share > 0) & (share <= _MOST_FAULTY)


def repaired(images: Tensor, limits: Limits) -> Tensor:
    """Return images whose faulty pixels are the median of their sound neighbours, and none is far outside.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    limits : tuple of float
        Lowest and highest pixel of sound images.

    Examples
    --------
    >>> image = torch.full((1, 1, 5, 5), 0.25)
    >>> image[0, 0, 1, 3] = 99.0
    >>> repaired(image, (0.0, 1.0)).unique()
    tensor([0.2500])
    """
    faulty = is_faulty(images, limits)
    few = has_few(faulty)
    if bool(few.any()):
        some, wrong = images[few], faulty[few]
        sound = neighbours(some.masked_fill(wrong, torch.nan)).nanmedian(dim=2).values.view_as(some)
        images = images.clone()
        images[few] = torch.where(wrong & ~sound.isnan(), sound, some)
    return images.clamp(*reach_of_pixels(limits))


def neighbours(images: Tensor) -> Tensor:
    """Return each pixel's 3 x 3 neighbourhood, of shape (n, n_channels, 9, height * width)."""
    n, n_channels = images.shape[:2]
    padded = F.pad(images, (1, 1, 1, 1), value=torch.nan)
    return F.unfold(padded, 3).view(n, n_channels, 9, -1)


# Nothing is filled from fewer neighbours, nor from farther away than so many pixels.
_FEWEST_NEIGHBOURS = 3
_FILLED_AROUND = 2


def with_gaps_filled(images: Tensor, background: Tensor) -> Tensor:
    """Return images without NaN: the mean of known neighbours fills pixels and the rims of gaps, background the rest.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)

    Examples
    --------
    >>> image = torch.full((1, 1, 5, 5), 0.25)
    >>> image[0, 0, 1, 3] = torch.nan
    >>> with_gaps_filled(image, torch.zeros(1)).unique()
    tensor([0.2500])
    """
    for _ in range(_FILLED_AROUND):
        around = neighbours(images)
        known = (~around.isnan()).sum(dim=2) >= _FEWEST_NEIGHBOURS
        mean = around.nanmean(dim=2).masked_fill(~known, torch.nan)
        images = torch.where(images.isnan(), mean.view_as(images), images)
    return torch.where(images.isnan(), background.to(images).view(1, -1, 1, 1), images)
