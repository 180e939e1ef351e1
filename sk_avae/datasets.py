"""Images: from a folder of pictures, a sample of MNIST in the package, all of it from a folder, known perturbations.

MNIST: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", CC BY-SA 3.0.
"""

import gzip
import math
import os
import secrets
import zlib
from collections.abc import Mapping
from importlib import resources
from io import BufferedIOBase
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_random_state

from ._inputs import as_images, check_channels_last, check_square, enormous_numbers_refused, resolve_image_shape
from ._pictures import load_images
from .model.affine import INTERPOLATIONS, check_family, edge_median, invert, parameters_of, to_matrix, warp
from .model.contexts import in_plain_torch

__all__ = ["fetch_mnist", "load_images", "load_mnist_sample", "make_perturbed"]

# How far each parameter reaches to either side of 0 unless `ranges` says otherwise.
DEFAULT_RANGES = {
    "angle": math.pi,
    "log_scale": math.log(1.5),
    "log_scale_x": math.log(1.5),
    "log_scale_y": math.log(1.5),
    "shear": 0.5,
    "tx": 0.3,
    "ty": 0.3,
}

_SUBSETS = {"train": "train", "test": "t10k"}
_N_TRAIN, _N_PIXELS = 60_000, 28 * 28
# Differences of larger floats would not fit float32, in which pixels are interpolated; larger integers not float64.
_LARGEST_PIXEL, _LARGEST_INTEGER = 1e30, 2**53
_IMAGES_PER_CHUNK = 4096


def _check_subset(subset: str) -> None:
    if subset not in _SUBSETS:
        raise ValueError(f"subset must be 'train' or 'test', got {subset!r}.")


def load_mnist_sample(subset: str = "train") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load the sample of MNIST that comes with the package.

    5,000 training and 1,000 test digits, 500 and 100 of each class, drawn from MNIST's own training and test
    images with seed 0.

    Parameters
    ----------
    subset : {"train", "test"}, default="train"

    Returns
    -------
    X : ndarray of shape (n_samples, 784)
        uint8, white on black, 28 x 28.
    y : ndarray of shape (n_samples,)
        The digits.

    Raises
    ------
    ValueError
        If `subset` is unknown.

    Examples
    --------
    >>> X, y = load_mnist_sample("test")
    >>> X.shape, y.shape
    ((1000, 784), (1000,))
    """
    _check_subset(subset)
    with resources.files("sk_avae").joinpath("data/mnist_sample.npz").open("rb") as file, np.load(file) as data:
        return data[f"X_{subset}"], data[f"y_{subset}"].astype(np.int64)


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzipped, and never more than it announces."""
    plain, zipped = folder / name, folder / f"{name}.gz"
    if not plain.exists() and not zipped.exists():
        raise FileNotFoundError(f"{folder} has neither {plain.name} nor {zipped.name}.")
    path = plain if plain.exists() else zipped
    if not path.is_file():  # reading a pipe might never end
        raise ValueError(f"{path} is no file.")
    try:
        with path.open("rb") if path is plain else gzip.open(path) as file:
            return _idx_values(file, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no gzip file ({error}).") from error


def _idx_values(file: BufferedIOBase, path: Path) -> NDArray[np.uint8]:
    """Return what an open IDX file holds; `path` is its name in messages."""
    magic = file.read(4)
    n_dims = magic[3] if len(magic) == 4 else 0
    if magic[:3] != b"\x00\x00\x08" or n_dims not in (1, 3):
        raise ValueError(f"{path} is no IDX file of images or labels (unsigned bytes in 1 or 3 dimensions).")
    sides = file.read(4 * n_dims)
    if len(sides) < 4 * n_dims:
        raise ValueError(f"{path} is no IDX file: its header is truncated.")
    shape = tuple(int(side) for side in np.frombuffer(sides, dtype=">u4"))
    n_bytes = math.prod(shape)
    if shape[0] > _N_TRAIN or n_bytes > _N_TRAIN * _N_PIXELS:
        raise ValueError(
            f"{path} announces {shape} values, more than MNIST's {_N_TRAIN} images of {_N_PIXELS} pixels: it is "
            f"damaged, or of another data set, which numpy.fromfile can read."
        )
    # A byte more than announced says whether there are more, and makes gzip look at its checksum where there are not.
    content = file.read(n_bytes + 1)
    if len(content) != n_bytes:
        held = "more" if len(content) > n_bytes else f"{len(content)} bytes of them"
        raise ValueError(f"{path} announces {shape} values, but holds {held}.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()


def fetch_mnist(
    data_home: str | os.PathLike[str] | None = None, *, subset: str = "train"
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read all of MNIST.

    Parameters
    ----------
    data_home : path or None, default=None
        Folder with MNIST's IDX files, plain or gzipped. None takes the environment variable ``SK_AVAE_DATA``;
        where that is not set either, scikit-learn's `fetch_openml` fetches and caches the digits.
    subset : {"train", "test"}, default="train"
        60,000 training or 10,000 test digits.

    Returns
    -------
    X : ndarray of shape (n_samples, 784)
        uint8, white on black, 28 x 28.
    y : ndarray of shape (n_samples,)
        The digits.

    Raises
    ------
    FileNotFoundError
        If the folder lacks a file; another OSError if it cannot be read.
    ValueError
        If a file is no IDX file, is truncated or damaged or announces more than MNIST has, or `subset` is unknown.
    """
    _check_subset(subset)
    if data_home is None or data_home == "":
        data_home = os.environ.get("SK_AVAE_DATA")
        if not data_home:
            return _fetch_openml(subset)
    folder, prefix = Path(data_home), _SUBSETS[subset]
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"{folder} has images of shape {images.shape}, but labels of shape {labels.shape}.")
    if not images.size:
        raise ValueError(f"{folder} has no pixels: its images have shape {images.shape}.")
    if labels.max() > 9:
        raise ValueError(
            f"{folder} has {labels.max()} for a label, but MNIST's are 0 to 9: the file is damaged, or of another data "
            f"set."
        )
    return images.reshape(len(images), -1), labels.astype(np.int64)


def _fetch_openml(subset: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import fetch_openml

    X, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="auto")
    part = slice(_N_TRAIN) if subset == "train" else slice(_N_TRAIN, None)
    return X[part].astype(np.uint8), y[part].astype(np.int64)


def _bounds(name: str, ranges: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lower and upper bound of a parameter; a single number reaches to both sides."""
    reach = ranges.get(name, DEFAULT_RANGES[name])
    try:
        bounds = np.asarray(reach, dtype=float)
    except (TypeError, ValueError):
        bounds = np.empty(0)
    low, high = (-bounds, bounds) if bounds.ndim == 0 else bounds if bounds.shape == (2,) else (math.nan, math.nan)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"ranges[{name!r}] must be a positive number or (low, high), got {reach!r}.")
    return float(low), float(high)


def check_ranges(family: str, ranges: Mapping[str, Any] | None) -> list[tuple[float, float]]:
    """Return the bounds of each parameter of a family, or raise naming what is wrong with `ranges`."""
    check_family(family)
    parameters = parameters_of(family)
    ranges = {} if ranges is None else ranges
    if not isinstance(ranges, Mapping):
        raise TypeError(f"ranges must be a dict or None, got {ranges!r}.")
    unknown = sorted(set(ranges) - set(parameters))
    if unknown:
        raise ValueError(f"ranges names {unknown}, but the family {family!r} has {list(parameters)}.")
    return [_bounds(name, ranges) for name in parameters]


@in_plain_torch
def make_perturbed(
    X: ArrayLike,
    *,
    family: str = "rotation",
    ranges: Mapping[str, Any] | None = None,
    image_shape: tuple[int, ...] | None = None,
    background: float | str = "auto",
    interpolation: str = "bicubic",
    random_state: Any = None,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Perturb images by random poses, and say which.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
        Images in their canonical pose.
    family : str, default="rotation"
        Which pose parameters are drawn; see `AVAEEstimator`.
    ranges : dict or None, default=None
        From parameter names to the reach on both sides of 0, or to (low, high); drawn uniformly, scales
        uniformly in the logarithm. Missing ones are +-pi for the angle, log 1.5 for log-scales, 0.5 for
        shear, 0.3 for shifts.
    image_shape : tuple of int or None, default=None
        (height, width) or (height, width, channels) of rows; None reads a square.
    background : float or "auto", default="auto"
        Value outside the frame, within the range of X; "auto" is the median of the images' edge pixels.
    interpolation : {"bicubic", "bilinear", "nearest"}, default="bicubic"
        How pixels are interpolated; the paper's is "nearest". Results are clipped to the range of X.
    random_state : int, RandomState instance or None, default=None
        Draws the poses.

    Returns
    -------
    X_perturbed : ndarray
        Of the shape and dtype of X.
    alpha : ndarray of shape (n_samples, n_params)
        The poses, in the units in which `align` finds them.

    Raises
    ------
    ValueError
        If a name is unknown or the shape does not fit.

    Examples
    --------
    >>> X, _ = load_mnist_sample("test")
    >>> X_rotated, alpha = make_perturbed(X, random_state=0)
    >>> X_rotated.shape, alpha.shape
    ((1000, 784), (1000, 1))
    """
    bounds = check_ranges(family, ranges)
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {list(INTERPOLATIONS)}, got {interpolation!r}.")
    if isinstance(background, str) and background == "auto":
        outside = None
    elif isinstance(background, Real) and math.isfinite(background):
        outside = float(background)
    else:
        raise ValueError(f"background must be a finite number or 'auto', got {background!r}.")
    with enormous_numbers_refused():
        images = check_array(as_images(X), dtype="numeric", allow_nd=True, input_name="X")
    _check_pixels(images)
    height, width, channels = _stack_shape(images, image_shape)
    # None must not draw from numpy's global state.
    random = check_random_state(secrets.randbelow(2**31) if random_state is None else random_state)
    alpha = np.stack([random.uniform(low, high, len(images)) for low, high in bounds], axis=1)
    stack = images.reshape(len(images), height, width, channels)
    perturbed = np.empty_like(stack)
    some = torch.tensor(stack[:_IMAGES_PER_CHUNK].transpose(0, 3, 1, 2).astype(np.float32))
    fill = edge_median(some) if outside is None else torch.full((channels,), outside, dtype=torch.float32)
    for start in range(0, len(stack), _IMAGES_PER_CHUNK):
        chunk = slice(start, start + _IMAGES_PER_CHUNK)
        matrix = to_matrix(torch.from_numpy(alpha[chunk]), family, aspect=width / height).float()
        pixels = torch.from_numpy(stack[chunk].transpose(0, 3, 1, 2).astype(np.float32))
        warped = warp(pixels, invert(matrix), background=fill.float(), interpolation=interpolation)
        if stack.dtype.kind in "biu":
            warped = warped.double().round()  # float32 would round the largest integer up, out of its type
        warped = warped.clamp(float(stack.min()), float(stack.max()))
        perturbed[chunk] = warped.permute(0, 2, 3, 1).numpy().astype(stack.dtype)
    return perturbed.reshape(images.shape), alpha


def _check_pixels(images: NDArray[Any]) -> None:
    """Raise ValueError where pixels are too large to be interpolated."""
    largest = max(abs(float(images.min())), abs(float(images.max())))
    bound = _LARGEST_PIXEL if images.dtype.kind == "f" else _LARGEST_INTEGER
    if largest > bound:
        raise ValueError(f"X has a pixel of size {largest:.3g}, more than {bound:.3g}. Scale X first.")


def _stack_shape(images: NDArray[Any], image_shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Return (height, width, channels) of images given as rows or as a stack."""
    rows = images.reshape(len(images), -1)
    if images.ndim > 2:
        stack_shape = tuple(images.shape[1:])
        if image_shape is None:
            check_channels_last(stack_shape)
        elif tuple(image_shape) != stack_shape:
            raise ValueError(f"X holds images of shape {stack_shape}, but image_shape is {image_shape}.")
        image_shape = stack_shape
    elif image_shape is None:
        check_square(rows)
    return (*resolve_image_shape(image_shape, rows.shape[1]), 1)[:3]  # type: ignore[return-value]
