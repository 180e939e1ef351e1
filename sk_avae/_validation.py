"""Checks of what the user gives: images, shapes, parameters, random states and devices.

The only file that touches scikit-learn's private helpers.
"""

import math
import operator
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in, _check_method_params, validate_data
from torch import Tensor

from .images import FARTHEST_PIXEL, ImageFormat, ImageShape, every_few, floats_like

# Pixels that span so many times less or more than the model's range are probably in other units.
_OTHER_UNITS = 10

# Nothing that is counted one by one comes to an end beyond it, and torch counts no further.
_LARGEST_COUNT = 2**31 - 1


def feature_names(estimator: BaseEstimator, input_features: Any) -> NDArray[Any]:
    """Return the names of the input columns, as scikit-learn names them."""
    return _check_feature_names_in(estimator, input_features)


def as_images(X: Any) -> Any:
    """Return tensors and lists as arrays, and anything else as it is: data frames keep their column names."""
    nested = isinstance(X, list | tuple) and len(X) and np.ndim(X[0]) > 1
    if isinstance(X, Tensor):
        return X.detach().cpu().numpy()
    return np.asarray(X) if nested else X


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


def check_rows(
    estimator: BaseEstimator, X: Any, *, image_shape: ImageShape | None, reset: bool = False
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
    X = as_images(X)
    if is_stack(X):
        stack_shape = tuple(int(side) for side in X.shape[1:])
        if image_shape is None:
            _check_channels_last(stack_shape)
            image_shape = stack_shape
        elif (*stack_shape, 1)[:3] != (*_as_shape(image_shape), 1)[:3]:
            raise ValueError(f"X holds images of shape {stack_shape}, but image_shape is {image_shape}.")
        X = np.asarray(X).reshape(len(X), math.prod(stack_shape))
    with enormous_numbers_refused():
        rows = validate_data(estimator, X, dtype=dtypes_of(X, [np.float32, np.float64, np.uint8]), reset=reset)
    return rows, resolve_image_shape(image_shape, rows.shape[1])


def _check_channels_last(stack_shape: tuple[int, ...]) -> None:
    """Raise where the first axis of an image looks like its channels, and the last does not."""
    if len(stack_shape) == 3 and stack_shape[0] in (1, 3, 4) and stack_shape[2] > 4:
        raise ValueError(
            f"X holds images of shape {stack_shape}, which look as if the channels came first; (height, width, "
            f"channels) is expected. Pass X.transpose(0, 2, 3, 1), or say image_shape={stack_shape} if they are right."
        )


def dtypes_of(X: Any, known: list[Any]) -> list[Any]:
    """Return known dtypes with that of X first: scikit-learn does not ask data frames of polars for theirs."""
    if not isinstance(getattr(X, "dtypes", None), list):
        return known
    own = X.to_numpy().dtype
    return sorted(known, key=lambda dtype: own != dtype)


def wants_container(estimator: BaseEstimator) -> bool:
    """Tell whether `set_output` asks for data frames, which hold rows and no stacks."""
    return bool(_get_output_config("transform", estimator)["dense"] != "default")


def _as_shape(image_shape: Any) -> ImageShape:
    """Return an image shape as a tuple of two or three positive ints."""
    try:
        shape = tuple(operator.index(side) for side in image_shape)
    except TypeError:
        shape = ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"image_shape must be (height, width) or (height, width, channels), got {image_shape!r}.")
    return shape  # type: ignore[return-value]


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
    shape = _as_shape(image_shape)
    if math.prod(shape) != n_features:
        raise ValueError(
            f"X has {n_features} features per sample, but image_shape={tuple(image_shape)} needs {math.prod(shape)}."
        )
    return shape


def warn_of_other_units(rows: NDArray[Any], image_format: ImageFormat) -> None:
    """Warn if images span ten times less or more than the model's range: 0 to 1 where that is 0 to 255, say."""
    some = rows[every_few(len(rows))]
    low, high = float(some.min()), float(some.max())
    ratio = (high - low) / abs(image_format.scale)
    if ratio == 0 or 1 / _OTHER_UNITS <= ratio <= _OTHER_UNITS or ratio > FARTHEST_PIXEL:  # which is refused
        return
    first, last = sorted((image_format.offset, image_format.offset + image_format.scale))
    warnings.warn(
        f"The pixels of X lie between {low:g} and {high:g}, those that the model was made for between {first:g} "
        f"and {last:g}. If they are in other units (0 to 1 rather than 0 to 255, say), bring X to the model's.",
        UserWarning,
        stacklevel=4,
    )


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return an integer parameter, or raise TypeError or ValueError naming it."""
    return int(check_scalar(value, name, (int, np.integer), min_val=minimum, max_val=_LARGEST_COUNT))


def check_count_or_auto(name: str, value: Any) -> None:
    """Raise TypeError or ValueError naming a parameter that is neither a count nor "auto"."""
    if not isinstance(value, str):
        check_count(name, value)
    elif value != "auto":
        raise ValueError(f"{name} must be a count or 'auto', got {value!r}.")


def check_number(
    name: str, value: Any, minimum: float = 0.0, maximum: float | None = None, boundaries: str = "left"
) -> float:
    """Return a real parameter, or raise TypeError or ValueError naming it."""
    kinds = (int, float, np.integer, np.floating)
    if isinstance(value, kinds) and math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan.")
    return float(check_scalar(value, name, kinds, min_val=minimum, max_val=maximum, include_boundaries=boundaries))


def check_flag(name: str, value: Any) -> bool:
    """Return a parameter that is True or False, or raise TypeError naming it."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_images_are_numbers(images: NDArray[Any], name: str) -> NDArray[Any]:
    """Return computed images, or raise ValueError naming the argument whose numbers were too large for them."""
    if not np.isfinite(images).all():
        row = int((~np.isfinite(images)).any(axis=1).argmax())
        raise ValueError(
            f"{name} has numbers so large, in row {row} for one, that its image is no longer one of finite pixels. "
            f"Bring pixels, latent variables and poses (logarithms of scales!) to moderate values."
        )
    return images


def check_out(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array to write floats into: the one given, if it fits, or a new one, double only for double input."""
    if out is None:
        return np.empty(shape, dtype=floats_like(dtype))
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype.kind != "f" or not out.flags.writeable:
        what = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a writeable array of floats of shape {shape}, got {what}.")
    return out


def seed_from(random_state: Any) -> int:
    """Draw a seed from a scikit-learn random state; None draws a fresh one, not from numpy's global state."""
    if random_state is None:
        return secrets.randbelow(2**31)
    return int(check_random_state(random_state).randint(2**31 - 1))


def repeated(params: dict[str, Any], n: int, times: int) -> dict[str, Any]:
    """Return `fit`'s parameters for n samples that come again and again; what has no value per sample stays."""
    return dict(_check_method_params(range(n), params, np.tile(np.arange(n), times)))


def resolve_device(device: Any) -> torch.device:
    """Return a torch device.

    Raises
    ------
    ValueError
        If torch cannot use it on this machine.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={device!r} is not available here ({error}). Choose device='cpu'.") from error


@contextmanager
def unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give an estimator its attributes back if the block raises: a failed fit leaves a fitted model as it was."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
