"""Between arrays and tensors: image shapes, scaling, parameters and random states.

The only file that touches scikit-learn's private helpers, and the only one in which arrays become tensors.
"""

import math
import operator
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in, _check_method_params, validate_data
from torch import Tensor

from .affine import edge_median, invert, parameters_of, to_matrix, warp

# Pixels this many fitted ranges away lose their meaning in float32 sums of squares.
_FARTHEST_PIXEL = 1e6

# Pixels that span so many times less or more than the model's range are probably in other units.
_OTHER_UNITS = 10

# Nothing that is counted one by one comes to an end beyond it, and torch counts no further.
_LARGEST_COUNT = 2**31 - 1

# Images, and pixels, whose tensors are held at once; as many images also tell the background as well as all do.
IMAGES_PER_CHUNK = 4096
_PIXELS_PER_CHUNK = 2**22

# What numpy calls the margins that are not of the background, so that they go on as `warp` does.
_MARGINS: dict[str, Literal["edge", "symmetric"]] = {"border": "edge", "reflect": "symmetric"}

ImageShape = tuple[int, ...]


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


@dataclass(frozen=True)
class ImageFormat:
    """How rows of pixels become the model's tensors, and back.

    The model sees ``(pixel - offset) / scale``. `fit` learns it so that the darkest and the brightest pixel
    become 0 and 1, the one nearer to the background 0: black on white and white on black look alike.

    Attributes
    ----------
    image_shape : tuple of int
        (H, W) or (H, W, C).
    pad : int
        Margin in pixels around the image in the model's frame.
    offset, scale : float
        In the units of the input.
    background : tuple of float
        Pixel value outside the image, per channel, in the units of the input.
    padding : {"background", "border", "reflect"}, default="background"
        What lies outside the image.
    """

    image_shape: ImageShape
    pad: int
    offset: float
    scale: float
    background: tuple[float, ...]
    padding: str = "background"

    @classmethod
    def learn(
        cls, rows: NDArray[Any], image_shape: ImageShape, *, pad: int, padding: str = "background", rescale: bool
    ) -> "ImageFormat":
        """Learn scale and background from training images.

        The background is, per channel, the median of the pixels along the images' edges.
        """
        height, width = image_shape[:2]
        some = rows[:: max(1, len(rows) // IMAGES_PER_CHUNK)].reshape(-1, height, width, *image_shape[2:] or (1,))
        background = tuple(map(float, edge_median(torch.tensor(some).permute(0, 3, 1, 2))))
        low, high = (float(rows.min()), float(rows.max())) if rescale else (0.0, 1.0)
        if not math.isfinite(high - low):
            raise ValueError(f"X has pixels from {low:g} to {high:g}: no float holds the difference. Scale X first.")
        if rescale and np.mean(background) > (low + high) / 2:
            low, high = high, low
        return cls(image_shape, pad, low, (high - low) or 1.0, background, padding)

    @property
    def n_features(self) -> int:
        """Number of pixels of an image, over all channels."""
        return math.prod(self.image_shape)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape (n_channels, height, width) of what the model sees."""
        height, width = self.image_shape[:2]
        return len(self.background), height + 2 * self.pad, width + 2 * self.pad

    def chunks(self, n: int, times: int = 1) -> Iterator[slice]:
        """Yield slices that cover `n` images, fewer at once the larger they are, and `times` as many."""
        size = times * max(16, min(IMAGES_PER_CHUNK, _PIXELS_PER_CHUNK // math.prod(self.frame_shape)))
        return (slice(start, start + size) for start in range(0, n, size))

    def frame_units(self, parameters: tuple[str, ...]) -> NDArray[np.float64]:
        """Return, per pose parameter, the frame's unit in units of the image: more than 1 for padded shifts."""
        _, height, width = self.frame_shape
        sides = {"tx": width / self.image_shape[1], "ty": height / self.image_shape[0]}
        return np.array([sides.get(name, 1.0) for name in parameters])

    def to_raw(self, rows: NDArray[Any]) -> Tensor:
        """Return rows as padded images, in the input's units and precision, of shape (n, C, H, W)."""
        dtype = np.float64 if rows.dtype == np.float64 else np.float32
        height, width = self.image_shape[:2]
        stack = np.ascontiguousarray(rows.reshape(len(rows), height, width, -1).transpose(0, 3, 1, 2), dtype=dtype)
        if self.pad and self.padding != "background":
            stack = np.pad(stack, ((0, 0), (0, 0), *[(self.pad, self.pad)] * 2), mode=_MARGINS[self.padding])
        raw = torch.from_numpy(stack if stack.flags.writeable else stack.copy())
        if not self.pad or self.padding != "background":
            return raw
        background = torch.tensor(self.background, dtype=raw.dtype).view(1, -1, 1, 1)
        return F.pad(raw - background, (self.pad,) * 4) + background

    def crop(self, images: Tensor) -> Tensor:
        """Cut the margin off images of shape (n, C, H, W) in the frame."""
        stop = -self.pad or None
        return images[:, :, self.pad : stop, self.pad : stop]

    def to_rows(self, raw: Tensor) -> NDArray[Any]:
        """Crop images of shape (n, C, H, W) and return them as rows: the inverse of `to_raw`."""
        return self.crop(raw).permute(0, 2, 3, 1).reshape(len(raw), self.n_features).cpu().numpy()

    def to_model(self, rows: NDArray[Any], support: Any, device: torch.device) -> Tensor:
        """Return rows as what the model sees: padded, scaled, within the likelihood's support, float32.

        Raises
        ------
        ValueError
            If a pixel is so far outside the fitted range that float32 could not hold its square.
        """
        scaled = (self.to_raw(rows) - self.offset) / self.scale
        largest = float(scaled.abs().max())
        if largest > _FARTHEST_PIXEL:
            raise ValueError(
                f"X has a pixel {largest:.3g} times the fitted range away from it; the range is "
                f"[{min(self.offset, self.offset + self.scale):g}, {max(self.offset, self.offset + self.scale):g}]. "
                f"Bring X to the units that `fit` saw."
            )
        return scaled.clamp(*support).to(device=device, dtype=torch.float32)

    def warn_of_other_units(self, rows: NDArray[Any]) -> None:
        """Warn if images span ten times less or more than the model's range: 0 to 1 where that is 0 to 255, say."""
        some = rows[:: max(1, len(rows) // IMAGES_PER_CHUNK)]
        low, high = float(some.min()), float(some.max())
        ratio = (high - low) / abs(self.scale)
        if ratio == 0 or 1 / _OTHER_UNITS <= ratio <= _OTHER_UNITS or ratio > _FARTHEST_PIXEL:  # which is refused
            return
        first, last = sorted((self.offset, self.offset + self.scale))
        warnings.warn(
            f"The pixels of X lie between {low:g} and {high:g}, those that the model was made for between {first:g} "
            f"and {last:g}. If they are in other units (0 to 1 rather than 0 to 255, say), bring X to the model's.",
            UserWarning,
            stacklevel=4,
        )

    def from_model(self, images: Tensor) -> Tensor:
        """Bring the model's images back to the units of the input."""
        return images * self.scale + self.offset

    def model_background(self, device: torch.device) -> Tensor:
        """Return the background as the model sees it, of shape (n_channels,)."""
        return (torch.tensor(self.background, device=device) - self.offset) / self.scale

    def pose_to_model(self, alpha: NDArray[Any], family: str, device: torch.device) -> Tensor:
        """Return poses in units of the image as the model's, in units of the frame, float32."""
        return to_tensor(alpha / self.frame_units(parameters_of(family)), device)

    def matrix(self, alpha: NDArray[Any], family: str) -> NDArray[Any]:
        """Return the matrices of poses, of shape (n, 2, 3), in coordinates of the image (not of the frame)."""
        height, width = self.image_shape[:2]
        return to_matrix(torch.from_numpy(alpha), family, aspect=width / height).numpy()

    def warp_rows(self, rows: NDArray[Any], alpha: NDArray[Any], family: str, *, inverse: bool = False) -> NDArray[Any]:
        """Warp rows of pixels, in their own units and precision, by poses in units of the image.

        Rows at the identity keep their pixels, bit by bit.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features)
        alpha : ndarray of shape (n, n_params)
        family : str
        inverse : bool, default=False
            Whether from the canonical frame to the input's rather than to the canonical one.
        """
        warped = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
        moved = alpha.any(axis=1)
        if not moved.any():
            return warped
        raw = self.to_raw(rows[moved])
        pose = torch.from_numpy(alpha[moved] / self.frame_units(parameters_of(family))).to(raw.dtype)
        matrix = to_matrix(pose, family, aspect=raw.shape[3] / raw.shape[2])
        background = torch.tensor(self.background, dtype=raw.dtype)
        matrix = invert(matrix) if inverse else matrix
        warped[moved] = self.to_rows(warp(raw, matrix, background=background, padding=self.padding))
        return warped


def to_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a float32 tensor on `device`; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(np.float32)).to(device)


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return an integer parameter, or raise TypeError or ValueError naming it."""
    return int(check_scalar(value, name, (int, np.integer), min_val=minimum, max_val=_LARGEST_COUNT))


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
        return np.empty(shape, dtype=np.float64 if dtype == np.float64 else np.float32)
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
