"""Images as people give them: arrays, tensors, data frames, rows or stacks. Checked, and turned into rows of pixels."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from ._callers import users_level
from ._sizes import as_shape, has_other_sizes, in_one_size, is_image, shapes_in
from .images import FARTHEST_PIXEL, ImageFormat, ImageShape, every_few
from .model.avae import LEAST_CONTRAST

# Pixels that span so many times less or more than the model's range are probably in other units.
_OTHER_UNITS = 10
# Where more than this share of the pixels lies outside the range (widened by so much on both sides), so are they.
_SHARE_OUTSIDE = 0.5
_SLACK = 0.25
_PIXELS_LOOKED_AT = 2**22

# What is smaller is taken for a signal rather than an image of which the shape was forgotten.
_SMALLEST_SIDE = 8
_LONGEST_ASPECT = 2.0
# Rows of interleaved channels repeat themselves at the distance of a pixel: so much more than at shorter ones.
_REPEATS = 0.5

# Images whose width over height differs by less, as a logarithm, show the same scene but for rounded sides.
_SAME_PROPORTION = 0.05

# Integers of more bytes, and long doubles, do not fit single precision.
_BYTES_IN_SINGLE = 2


def as_images(X: Any, name: str = "X") -> Any:
    """Return tensors, lists and masked arrays as arrays, and anything else as it is: data frames keep their names.

    Raises
    ------
    ValueError
        If a masked array masks anything, or a tensor has no values.
    """
    if isinstance(X, Tensor):
        return _from_tensor(X, name)
    if np.ma.isMaskedArray(X):
        if np.ma.is_masked(X):
            raise ValueError(
                f"{name} is a masked array with {int(np.ma.getmaskarray(X).sum())} masked values. If these "
                f"pixels are missing, say missing_values='ignore'. Else fill them ({name}.filled(value))."
            )
        return np.ma.getdata(X)
    if isinstance(X, list | tuple) and any(isinstance(row, Tensor) or np.ma.isMaskedArray(row) for row in X):
        X = [as_images(row, name) for row in X]
    if not isinstance(X, list | tuple) or not len(X) or not is_image(X[0]):
        return X
    return X if len(shapes_in(X)) > 1 else np.asarray(X)


def with_nan_for_masked(X: Any) -> Any:
    """Return a masked array with NaN where it is masked, and anything else as it is."""
    if not np.ma.isMaskedArray(X) or not np.ma.is_masked(X):
        return X
    floats = X.dtype if X.dtype.kind == "f" else np.dtype(np.float32)
    return np.ma.filled(X.astype(floats), np.nan)


def _from_tensor(X: Tensor, name: str) -> NDArray[Any]:
    if X.is_meta:
        raise ValueError(f"{name} is a tensor on the device 'meta', which has no values. Pass one that has.")
    if X.layout != torch.strided:
        raise ValueError(f"{name} is a sparse tensor, and images are dense. Pass {name}.to_dense().")
    X = X.detach().cpu().resolve_conj().resolve_neg()
    return (X.float() if X.dtype == torch.bfloat16 else X).numpy()


def dtypes_of(X: Any, known: list[Any]) -> list[Any]:
    """Return known dtypes, the first of which is what others become: double for what single precision cannot hold."""
    own = _dtype_of(X)
    if own is None:
        return known
    own = own.newbyteorder("=")
    wide = (own.kind in "iu" and own.itemsize > _BYTES_IN_SINGLE) or (own.kind == "f" and own.itemsize > 4)
    first = own if own in known else np.dtype(np.float64 if wide else np.float32)
    return sorted(known, key=lambda dtype: first != dtype)


def _dtype_of(X: Any) -> np.dtype[Any] | None:
    """Return the common dtype of an array or data frame; None if it has none."""
    dtypes = getattr(X, "dtypes", None)
    try:
        if isinstance(dtypes, list):  # of polars, for which scikit-learn does not ask
            return np.dtype(X.to_numpy().dtype)
        return np.result_type(*dtypes) if dtypes is not None else np.dtype(getattr(X, "dtype", None) or "V")
    except (TypeError, ValueError):
        return None


@contextmanager
def enormous_numbers_refused(name: str = "X") -> Iterator[None]:
    """Let a check of arrays answer to numbers beyond all floats as it does to other bad ones: by one ValueError."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except OverflowError as error:
        raise ValueError(f"{name} holds a number that is too large for any float ({error}).") from error


def length_of(X: Any) -> int:
    """Return how many images X holds, before it is checked; 1 if it does not say."""
    shape = getattr(X, "shape", None)
    if shape:
        return int(shape[0])
    return len(X) if isinstance(X, list | tuple) else 1


def is_stack(X: Any) -> bool:
    """Tell whether X is a stack of images, (n, H, W) or (n, H, W, C), rather than rows."""
    return getattr(X, "ndim", None) in (3, 4)


def stacked_shape(X: Any, image_shape: ImageShape) -> tuple[int, ...] | None:
    """Return the shape that images come back in if they came as a stack or a list of images; None for rows."""
    if is_stack(X):
        return tuple(X.shape)
    if isinstance(X, list | tuple) and len(X) and is_image(X[0]):
        return (len(X), *image_shape)
    return None


def check_rows(
    estimator: BaseEstimator,
    X: Any,
    *,
    image_shape: ImageShape | None,
    reset: bool = False,
    missing_values: str = "error",
) -> tuple[NDArray[Any], ImageShape]:
    """Validate images and return them as rows.

    Parameters
    ----------
    estimator : BaseEstimator
        Its `n_features_in_` is set (`reset`) or compared.
    X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
    image_shape : tuple of int or None
        (H, W) or (H, W, C); None reads it off a stack or a square.
    reset : bool, default=False
        Whether this is `fit`.
    missing_values : {"error", "ignore", "keep"}, default="error"
        Whether NaN, and what a masked array masks, is refused.

    Returns
    -------
    rows : ndarray of shape (n_samples, n_features)
        float32, float64 or uint8.
    image_shape : tuple of int

    Raises
    ------
    ValueError
        If X is empty, sparse, complex, has NaN or infinite pixels or the wrong number of them.
    """
    gaps = missing_values != "error"
    X = with_nan_for_masked(X) if gaps else X
    if has_other_sizes(X, image_shape):
        X = in_one_size([np.asarray(as_images(x)) for x in X], image_shape)
    X = as_images(X)
    if is_stack(X):
        stack_shape = tuple(int(side) for side in X.shape[1:])
        if image_shape is None:
            check_channels_last(stack_shape)
            image_shape = stack_shape
        elif (*stack_shape, 1)[:3] != (*as_shape(image_shape), 1)[:3]:
            advice = _how_to_turn(stack_shape, (len(X), *stack_shape), as_shape(image_shape))
            raise ValueError(f"X holds images of shape {stack_shape}, but image_shape is {image_shape}.{advice}")
        X = np.asarray(X).reshape(len(X), math.prod(stack_shape))
    elif image_shape is not None and getattr(X, "shape", ()) == (shape := as_shape(image_shape))[:2] and shape[0] > 1:
        raise ValueError(
            f"X has {shape[1]} features per row: of shape {shape[:2]} it is one image, and a batch of images is "
            f"expected. Pass X[None]."
        )
    with enormous_numbers_refused(), _gaps_explained():
        dtypes = dtypes_of(X, [np.float32, np.float64, np.uint8])
        finite = "allow-nan" if gaps else True
        rows = validate_data(estimator, X, dtype=dtypes, reset=reset, ensure_all_finite=finite)
    if gaps and rows.dtype.kind == "f" and (empty := np.isnan(rows).all(axis=1)).any():
        raise ValueError(
            f"Row {int(empty.argmax())} of X has no pixel that is known, and {int(empty.sum())} rows in all. Leave "
            f"them out: X[~numpy.isnan(X).all(axis=1)] of rows."
        )
    if reset and image_shape is None:
        check_square(rows)
    return rows, resolve_image_shape(image_shape, rows.shape[1])


def check_stack(X: Any, image_shape: ImageShape) -> NDArray[Any]:
    """Return other images than those that were aligned, of shape (n, H, W) or (n, H, W, C), in the same proportion.

    Raises
    ------
    ValueError
        If X is no stack of numbers, or of another proportion.
    """
    stack = np.asarray(as_images(X))
    if stack.ndim not in (3, 4) or not len(stack) or 0 in stack.shape:
        raise ValueError(
            f"X must be images of shape (n, height, width) or (n, height, width, channels), got {stack.shape}."
        )
    if stack.dtype.kind not in "biuf":
        raise ValueError(f"X must hold numbers, got {stack.dtype}.")
    aspect = image_shape[1] / image_shape[0]
    if not abs(math.log(stack.shape[2] / stack.shape[1] / aspect)) <= _SAME_PROPORTION:
        raise ValueError(
            f"X holds images of {stack.shape[1]} x {stack.shape[2]} pixels, which are not in the proportion of those "
            f"that were aligned, {image_shape[0]} x {image_shape[1]}. Crop or pad them to it."
        )
    return stack


def check_names(estimator: BaseEstimator, X: Any, *, reset: bool = False) -> None:
    """Compare the column names of a data frame with those that `fit` saw, or with `reset` remember them.

    An aligner that was fitted on arrays, and frozen, knows of no names itself.

    Raises
    ------
    ValueError
        If they differ, in their order too.
    """
    if hasattr(X, "columns"):
        validate_data(estimator, X, reset=reset, skip_check_array=True)


@contextmanager
def _gaps_explained() -> Iterator[None]:
    """Say what an image needs where scikit-learn would send its owner to gradient boosting."""
    try:
        yield
    except ValueError as error:
        first, *advice = str(error).splitlines()
        if not (advice and first.startswith("Input X contains NaN")):
            raise
        raise ValueError(
            f"{first} If these pixels are missing, say missing_values='ignore': alignment then uses the others. Else "
            f"fill them, or leave those images out (X[numpy.isfinite(X).all(axis=1)])."
        ) from error


def check_channels_last(shape: tuple[int, ...]) -> None:
    """Raise where the first axis of an image looks like its channels, and the last does not.

    Examples
    --------
    >>> check_channels_last((28, 28, 5))
    >>> check_channels_last((5, 28, 28))
    Traceback (most recent call last):
    ValueError: X holds images of shape (5, 28, 28), which look as if the channels came first; ...
    """
    if len(shape) == 3 and _channels_seem_first(shape):
        one = "X[:, 0], or " if shape[0] == 1 else ""
        raise ValueError(
            f"X holds images of shape {shape}, which look as if the channels came first; (height, width, "
            f"channels) is expected. Pass {one}X.transpose(0, 2, 3, 1), or say image_shape={shape} if they are right."
        )


def _channels_seem_first(shape: tuple[int, ...]) -> bool:
    """Tell whether the first axis is much the shortest of three, or the one that differs."""
    first, second, third = shape
    if third <= 4:
        return False
    return first in (1, 3, 4) or first < second == third or 2 * first < min(second, third)


def _how_to_turn(found: tuple[int, ...], whole: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return how a stack becomes one of the wanted images, if that is plain to see."""
    wanted = (*wanted, 1)[:3]
    if len(found) == 3 and (*found[1:], found[0]) == wanted:
        return " Its channels come first: pass X.transpose(0, 2, 3, 1)."
    if (*whole, 1)[:3] == wanted:
        return " It is one image, and a batch of images is expected: pass X[None]."
    if (*found, 1)[:3][2] == wanted[2]:
        return f" Bring images to that size: load_images(folder, size={wanted[:2]}), or pass them as a list of arrays."
    return ""


def likely_image_shapes(n_features: int) -> list[ImageShape]:
    """Return the shapes that images of so many pixels may well have: squares first, then grey ones, then in colour.

    Examples
    --------
    >>> likely_image_shapes(28 * 36), likely_image_shapes(32 * 32 * 3)[0], likely_image_shapes(101)
    ([(28, 36), (24, 42), (16, 21, 3), (14, 24, 3), (14, 18, 4), (12, 21, 4)], (32, 32, 3), [])
    """
    found = []
    for channels in (1, 3, 4):
        n_pixels = n_features // channels
        for height in range(_SMALLEST_SIDE, math.isqrt(n_pixels) + 1):
            width = n_pixels // height
            if height * width * channels == n_features and width <= _LONGEST_ASPECT * height:
                found.append((height != width, channels, width / height, height, width))
    return [(h, w) if channels == 1 else (h, w, channels) for _, channels, _, h, w in sorted(found)]


def is_large_enough(n_features: int) -> bool:
    """Tell whether rows of so many pixels may be images, rather than a few numbers."""
    return n_features >= _SMALLEST_SIDE**2


def check_square(rows: NDArray[Any]) -> None:
    """Raise where rows without a shape are unlikely to be what they would be read as.

    Raises
    ------
    ValueError
        If they could be images but are not square, or are square and look like interleaved channels.
    """
    n_features = rows.shape[1]
    side = math.isqrt(n_features)
    likely = likely_image_shapes(n_features)
    if side * side == n_features:
        in_colour = [shape for shape in likely if len(shape) == 3]
        n_channels = _n_interleaved(rows) if in_colour else None
        likely = [shape for shape in in_colour if shape[2] == n_channels]
        if likely:
            raise ValueError(
                f"X has rows of {n_features} pixels, which repeat themselves every {n_channels}: they look like images "
                f"of {n_channels} channels rather than grey ones of {side} x {side}. Say image_shape="
                f"(height, width, channels), {likely[0]} perhaps, or image_shape=({side}, {side}) if they are grey."
            )
    elif likely:
        several = " or ".join(str(shape) for shape in likely[:3])
        raise ValueError(
            f"X has rows of {n_features} pixels, which is no square: the shape of the images is needed. Say "
            f"image_shape=(height, width) or (height, width, channels), perhaps {several}; for signals of one row "
            f"image_shape=(1, {n_features})."
        )


def _n_interleaved(rows: NDArray[Any]) -> int | None:
    """Return how many channels rows of pixels seem to hold; None where they look like grey images."""
    few = min(256, max(1, _PIXELS_LOOKED_AT // rows.shape[1]))
    some = np.nan_to_num(rows[every_few(len(rows), few)].astype(np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        change = {lag: float(np.square(some[:, lag:] - some[:, :-lag]).mean()) for lag in (1, 2, 3, 4)}
    for n_channels in (3, 4):
        if change[n_channels] < _REPEATS * min(change[lag] for lag in range(1, n_channels)):
            return n_channels
    return None


def resolve_image_shape(image_shape: ImageShape | None, n_features: int) -> ImageShape:
    """Return the shape of images of `n_features` pixels: as given, else a square, else one row.

    Examples
    --------
    >>> resolve_image_shape(None, 784), resolve_image_shape(None, 5)
    ((28, 28), (1, 5))
    """
    if image_shape is None:
        side = math.isqrt(n_features)
        return (side, side) if side * side == n_features else (1, n_features)
    shape = as_shape(image_shape)
    if math.prod(shape) != n_features:
        raise ValueError(
            f"X has {n_features} features per sample, but image_shape={tuple(image_shape)} needs {math.prod(shape)}."
        )
    return shape


def warn_of_other_units(rows: NDArray[Any], image_format: ImageFormat) -> None:
    """Warn of pixels that are probably in other units than the model's: of another span, or mostly out of its range."""
    some = rows[every_few(len(rows))]
    some = some[:, every_few(some.shape[1], max(1, _PIXELS_LOOKED_AT // len(some)))]
    low, high = float(np.nanmin(some)), float(np.nanmax(some))
    first, last = image_format.range
    ratio = (high - low) / (last - first) if last > first else math.inf
    if ratio > FARTHEST_PIXEL:  # which is refused
        return
    slack = _SLACK * (last - first)
    outside = float(np.mean((some < first - slack) | (some > last + slack)))
    # Images that hardly vary are blank, unless they hardly differ from 0 either: then bytes were scaled down.
    is_blank = ratio < LEAST_CONTRAST and high - low < 0.5 * max(abs(low), abs(high))
    other_span = ratio > 0 and not is_blank and not 1 / _OTHER_UNITS <= ratio <= _OTHER_UNITS
    if other_span or outside > _SHARE_OUTSIDE:
        warnings.warn(
            f"The pixels of X lie between {low:g} and {high:g}, those that the model was made for between {first:g} "
            f"and {last:g}. If they are in other units (0 to 1 rather than 0 to 255, say), bring X to the model's.",
            UserWarning,
            stacklevel=users_level(),
        )


def check_images_are_numbers(images: NDArray[Any], name: str, *, gaps: bool = False) -> NDArray[Any]:
    """Return computed images, or raise ValueError naming the argument whose numbers were too large for them.

    With `gaps` NaN is a missing pixel.
    """
    if np.isinf(images).any() or not (gaps or np.isfinite(images).all()):
        row = int((~np.isfinite(images)).any(axis=1).argmax())
        raise ValueError(
            f"{name} has numbers so large, in row {row} for one, that its image is no longer one of finite pixels. "
            f"Bring pixels, latent variables and poses (logarithms of scales!) to moderate values."
        )
    return images
