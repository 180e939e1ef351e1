"""What images look like: their scale, background, exposure and noise, learned from training images."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._callers import users_level
from ..images import ImageFormat, ImageShape, every_few, floats_like, sides_of
from ..model.affine import edge_median, edge_pixels
from ..model.exposure import usual_exposure
from ..model.frame import Frame
from ..model.noise import usual_noise
from ..scaling import offset_and_scale, pixel_range

# Images have a background if so many of their edge pixels differ from it by at most this part of the range.
_OF_BACKGROUND = 0.1
_MOSTLY_BACKGROUND = 0.6

# As many images tell which exposure is usual as well as all do.
_FEW_IMAGES = 2048

# Pixels that are reduced at once.
_PIXELS_PER_PART = 2**22


def learned_format(
    rows: NDArray[Any],
    image_shape: ImageShape,
    *,
    pad: int,
    padding: str,
    rescale: bool | str,
    sides: tuple[int, int] | None,
) -> ImageFormat:
    """Learn scale, background and exposure from training images.

    The background is, per channel, the median of the pixels along the images' edges. A pixel far out of what the
    images have otherwise does not count, and is warned of.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        NaN is a missing pixel.
    image_shape, pad, sides : object
        See `ImageFormat`.
    padding : {"auto", "background", "border", "reflect"}
        "auto" looks at the images' edges.
    rescale : bool or "image"
        See `AVAEEstimator`.
    """
    stack = _looked_at(rows, image_shape, Frame(sides_of(image_shape), pad, sides))
    some = torch.tensor(np.ascontiguousarray(stack[every_few(len(rows))])).permute(0, 3, 1, 2)
    background = tuple(map(float, edge_median(some)))
    low, high = _checked_range(stack.reshape(len(rows), -1, stack.shape[3]))
    has_one = has_background(some, background, float(low.min()), float(high.max()))
    if padding == "auto":
        padding = "background" if has_one else "reflect"
    offset, scale = offset_and_scale(low, high, np.array(background)) if rescale else (0.0, 1.0)
    limits = (0.0, 1.0) if rescale else (float(low.min()), float(high.max()))
    precision = floats_like(rows.dtype).__name__
    found = ImageFormat(image_shape, pad, offset, scale, background, padding, precision, limits, sides)
    return _with_usual(found, some, from_edges=has_one) if rescale == "image" else found


def completed_format(
    image_format: ImageFormat, rows: NDArray[Any], *, learns_background: bool, any_range: bool, rescale: bool | str
) -> ImageFormat:
    """Return a format whose scale is known with what upright images tell of the rest.

    Parameters
    ----------
    image_format : ImageFormat
    rows : ndarray of shape (n, n_features)
        Images in the canonical pose.
    learns_background : bool
        Whether the background is theirs.
    any_range : bool
        Whether the model takes pixels of any range: theirs is the usual one then.
    rescale : bool or "image"
        With "image" their exposure and noise are the usual ones.
    """
    stack = _looked_at(rows, image_format.image_shape, image_format.frame)
    some = torch.tensor(np.ascontiguousarray(stack[every_few(len(rows))])).permute(0, 3, 1, 2)
    if learns_background:
        image_format = replace(image_format, background=tuple(map(float, edge_median(some))))
    if any_range:
        in_model = image_format.to_units_of_model(some.double())
        image_format = replace(image_format, limits=(float(in_model.min()), float(in_model.max())))
    if rescale != "image":
        return image_format
    has_one = has_background(some, image_format.background, float(some.min()), float(some.max()))
    return _with_usual(image_format, some, from_edges=has_one)


def _with_usual(image_format: ImageFormat, images: Tensor, *, from_edges: bool) -> ImageFormat:
    in_model = image_format.to_units_of_model(images[every_few(len(images), _FEW_IMAGES)].double())
    usual, noise = usual_exposure(in_model, from_edges=from_edges), usual_noise(in_model)
    return replace(image_format, exposure=usual and tuple(usual), noise=noise and (noise.roughness, noise.deviation))


def _checked_range(pixels: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the range of pixels, of shape (n, n_pixels, n_channels), per channel; warn of those far outside."""
    low, high, n_outlying = pixel_range(pixels)
    with np.errstate(over="ignore"):
        holds = np.isfinite(high.max() - low.min())
    if not holds:
        what = f"X has pixels from {low.min():g} to {high.max():g}"
        raise ValueError(f"{what}: no float holds the difference. Scale X first.")
    if n_outlying:
        warnings.warn(
            f"{n_outlying} of the {pixels.size} pixels of X lie far outside the others, which are between "
            f"{low.min():g} and {high.max():g}. They are taken for faults: the model sees their neighbours.",
            UserWarning,
            stacklevel=users_level(),
        )
    return low, high


def _looked_at(rows: NDArray[Any], image_shape: ImageShape, frame: Frame) -> NDArray[Any]:
    """Return images of shape (n, H, W, C), as large as the model sees them and without gaps, from which to learn."""
    stack = rows.reshape(len(rows), *sides_of(image_shape), -1)
    if frame.sides is not None:
        step = max(frame.padded[0] / frame.sides[0], frame.padded[1] / frame.sides[1])
        sides = max(1, round(stack.shape[1] / step)), max(1, round(stack.shape[2] / step))
        small = replace(frame, image=stack.shape[1:3], pad=0, sides=sides)
        size = max(1, _PIXELS_PER_PART // rows.shape[1])
        floats = floats_like(rows.dtype)
        parts = (torch.tensor(stack[k : k + size].astype(floats)) for k in range(0, len(rows), size))
        stack = torch.cat([small.reduced(part.permute(0, 3, 1, 2)) for part in parts]).permute(0, 2, 3, 1).numpy()
    if stack.dtype.kind != "f" or not np.isnan(stack).any():
        return stack
    background = edge_median(torch.from_numpy(stack).permute(0, 3, 1, 2)).numpy()
    return np.where(np.isnan(stack), background, stack)


def has_background(images: Tensor, background: tuple[float, ...], low: float, high: float) -> bool:
    """Tell whether most pixels along the edges of images, of shape (n, C, H, W), are of one background."""
    edges = edge_pixels(images).double()
    distance = (edges - edges.new_tensor(background).view(1, -1, 1)).abs()
    return bool((distance <= _OF_BACKGROUND * (high - low)).double().mean() >= _MOSTLY_BACKGROUND)
