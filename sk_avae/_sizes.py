"""Images of unequal sizes: told from other lists, and brought to one size."""

import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .images import ImageShape
from .model.frame import resized

# What is longer or wider than the others by more than this factor is no image of the same kind.
_LARGEST_STRETCH = 4.0


def as_shape(image_shape: Any) -> ImageShape:
    """Return an image shape as a tuple of two or three positive ints."""
    try:
        shape = tuple(operator.index(side) for side in image_shape)
    except TypeError:
        shape = ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"image_shape must be (height, width) or (height, width, channels), got {image_shape!r}.")
    return shape  # type: ignore[return-value]


def is_image(x: Any) -> bool:
    """Tell whether an element of a list is an image by itself, (H, W) or (H, W, C)."""
    return (np.ndim(x) if isinstance(x, np.ndarray | list | tuple) else getattr(x, "ndim", 0)) in (2, 3)


def shapes_in(X: Any) -> set[tuple[int, ...]]:
    """Return the shapes of the images of a list."""
    return {tuple(np.shape(x)) for x in X}


def has_other_sizes(X: Any, image_shape: ImageShape | None) -> bool:
    """Tell whether X is a list of images, arrays or tensors, that are to be brought to one size first."""
    if not isinstance(X, list | tuple) or not X or not all(is_image(x) and hasattr(x, "ndim") for x in X):
        return False
    shapes = {(*shape, 1)[:3] for shape in shapes_in(X)}
    return len(shapes) > 1 or (image_shape is not None and shapes != {(*image_shape, 1)[:3]})


def in_one_size(images: list[NDArray[Any]], image_shape: ImageShape | None) -> NDArray[Any]:
    """Return a list of images of unequal sizes as a stack: each scaled to fit, its edge pixels filling what is left.

    Parameters
    ----------
    images : list of ndarray of shape (H, W) or (H, W, C)
        Each of its own height and width.
    image_shape : tuple of int or None
        The size that they get; None takes the median height and width.

    Returns
    -------
    stack : ndarray of shape (n, height, width) or (n, height, width, channels)
        float32, or float64 if an image is.

    Raises
    ------
    ValueError
        If numbers of channels differ, or an image is much longer or wider than the others.
    """
    shapes = np.array([(*image.shape, 1)[:3] for image in images])
    if image_shape is None:
        height, width, _ = np.median(shapes, axis=0).round().astype(int).tolist()
        image_shape = (height, width) if images[0].ndim == 2 else (height, width, images[0].shape[2])
    height, width, channels = (*as_shape(image_shape), 1)[:3]
    if (other := shapes[:, 2] != channels).any():
        k = int(other.argmax())
        raise ValueError(
            f"X[{k}] has {shapes[k, 2]} channels, and {channels} are expected, as the last axis of each image."
        )
    if shapes.min() < 1:
        raise ValueError(f"X[{int(shapes.min(axis=1).argmin())}] is an image without pixels.")
    stretch = np.log(shapes[:, 1] / shapes[:, 0] * height / width)
    if (far := np.abs(stretch) > math.log(_LARGEST_STRETCH)).any():
        k = int(far.argmax())
        raise ValueError(
            f"X[{k}] is an image of {shapes[k, 0]} x {shapes[k, 1]} pixels, of quite another proportion than {height} "
            f"x {width}. Crop it first; rows of pixels go in as one array of shape (n_samples, n_features)."
        )
    floats = np.float64 if any(image.dtype == np.float64 for image in images) else np.float32
    stack = np.empty((len(images), height, width, channels), dtype=floats)
    for k, image in enumerate(images):
        h, w = image.shape[:2]
        fit = min(height / h, width / w)
        sides = max(1, round(h * fit)), max(1, round(w * fit))
        pixels = torch.from_numpy(np.ascontiguousarray(image.reshape(h, w, -1), dtype=floats)).permute(2, 0, 1)
        scaled = resized(pixels[None], sides)[0].permute(1, 2, 0).numpy()
        above, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        around = (above, height - sides[0] - above), (left, width - sides[1] - left), (0, 0)
        stack[k] = np.pad(scaled, around, mode="edge")
    return stack.reshape(len(images), *image_shape)
