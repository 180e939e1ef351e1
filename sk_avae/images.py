"""Images between rows of pixels and the model's tensors: shape, scaling, background, padding, and the last warp.

Where arrays become tensors, and tensors arrays again.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .model.affine import REFLECTED, edge_median, invert, parameters_of, to_matrix, warp
from .model.faults import is_faulty, repaired

# Pixels this many fitted ranges away lose their meaning in float32 sums of squares.
FARTHEST_PIXEL = 1e6

# Images, and pixels, whose tensors are held at once; as many images also tell the background as well as all do.
_IMAGES_PER_SLICE = 4096
_PIXELS_PER_SLICE = 2**22

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

# What numpy calls the margins that are not of the background, so that they go on as `warp` does.
_MARGINS: dict[str, Literal["edge", "symmetric"]] = {"border": "edge", "reflect": "symmetric"}

ImageShape = tuple[int, ...]


def to_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a float32 tensor on `device`; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(array.astype(np.float32)).to(device)


def floats_like(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Return the precision of results for rows of a type: double for double, else single."""
    return np.float64 if dtype == np.float64 else np.float32


def every_few(n: int, few: int = _IMAGES_PER_SLICE) -> slice:
    """Return what takes a few thousand of n images: they tell ranges and backgrounds as well as all do."""
    return slice(None, None, max(1, n // few))


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


def _offset_and_scale(
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
    offset, scale : float or tuple of float
        In the units of the input; of each channel where their ranges differ much.
    background : tuple of float
        Pixel value outside the image, per channel, in the units of the input.
    padding : {"background", "border", "reflect"}, default="background"
        What lies outside the image.
    precision : {"float32", "float64"} or None, default=None
        Of results: that of the training images, so that what is fitted behind sees one type. None takes that of the
        rows.
    limits : tuple of float or None, default=None
        The lowest and the highest pixel of the training images as the model sees them; None if these are not known.
    """

    image_shape: ImageShape
    pad: int
    offset: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    background: tuple[float, ...]
    padding: str = "background"
    precision: str | None = None
    limits: tuple[float, float] | None = None

    @classmethod
    def learn(
        cls, rows: NDArray[Any], image_shape: ImageShape, *, pad: int, padding: str = "background", rescale: bool
    ) -> "ImageFormat":
        """Learn scale and background from training images.

        The background is, per channel, the median of the pixels along the images' edges. A pixel far out of what the
        images have otherwise does not count, and is warned of.
        """
        height, width = image_shape[:2]
        pixels = rows.reshape(len(rows), height * width, *image_shape[2:] or (1,))
        some = pixels[every_few(len(rows))].reshape(-1, height, width, pixels.shape[2])
        background = tuple(map(float, edge_median(torch.tensor(some).permute(0, 3, 1, 2))))
        precision = floats_like(rows.dtype).__name__
        low, high, n_outlying = pixel_range(pixels)
        with np.errstate(over="ignore"):
            holds = np.isfinite(high.max() - low.min())
        if not holds:
            what = f"X has pixels from {low.min():g} to {high.max():g}"
            raise ValueError(f"{what}: no float holds the difference. Scale X first.")
        if n_outlying:
            warnings.warn(
                f"{n_outlying} of the {rows.size} pixels of X lie far outside the others, which are between "
                f"{low.min():g} and {high.max():g}. They are taken for faults: the model sees their neighbours.",
                UserWarning,
                stacklevel=5,
            )
        if not rescale:
            limits = float(low.min()), float(high.max())
            return cls(image_shape, pad, 0.0, 1.0, background, padding, precision, limits)
        offset, scale = _offset_and_scale(low, high, np.array(background))
        return cls(image_shape, pad, offset, scale, background, padding, precision, (0.0, 1.0))

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest pixel that the model was made for, over all channels, in the input's units."""
        ends = [np.add(self.offset, np.multiply(self.scale, limit)) for limit in self.limits or (0.0, 1.0)]
        return float(np.min(ends)), float(np.max(ends))

    def floats(self, dtype: np.dtype[Any]) -> type[np.floating[Any]]:
        """Return the precision of results for rows of a type: that of `fit`, where there was one."""
        return floats_like(dtype if self.precision is None else np.dtype(self.precision))

    @property
    def n_features(self) -> int:
        """Number of pixels of an image, over all channels."""
        return math.prod(self.image_shape)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape (n_channels, height, width) of what the model sees."""
        height, width = self.image_shape[:2]
        return len(self.background), height + 2 * self.pad, width + 2 * self.pad

    def slices(self, n: int, factor: int = 1) -> Iterator[slice]:
        """Yield slices that cover `n` images, fewer at once the larger they are, and `factor` times as many."""
        size = factor * max(16, min(_IMAGES_PER_SLICE, _PIXELS_PER_SLICE // math.prod(self.frame_shape)))
        return (slice(start, start + size) for start in range(0, n, size))

    def frame_to_image_scale(self, parameters: tuple[str, ...]) -> NDArray[np.float64]:
        """Return, per pose parameter, the frame's unit in units of the image: more than 1 for padded shifts."""
        _, height, width = self.frame_shape
        sides = {"tx": width / self.image_shape[1], "ty": height / self.image_shape[0]}
        return np.array([sides.get(name, 1.0) for name in parameters])

    def to_padded_images(self, rows: NDArray[Any]) -> Tensor:
        """Return rows as padded images, in the input's units and the precision of results, of shape (n, C, H, W)."""
        dtype = self.floats(rows.dtype)
        height, width = self.image_shape[:2]
        stack = rows.reshape(len(rows), height, width, -1).transpose(0, 3, 1, 2)
        with np.errstate(over="ignore"):  # what is infinite is refused when it is scaled
            stack = np.ascontiguousarray(stack, dtype=dtype)
        if self.pad and self.padding != "background":
            stack = np.pad(stack, ((0, 0), (0, 0), *[(self.pad, self.pad)] * 2), mode=_MARGINS[self.padding])
        raw = torch.from_numpy(stack if stack.flags.writeable else stack.copy())
        if not self.pad or self.padding != "background":
            return raw
        background = torch.tensor(self.background, dtype=raw.dtype).view(1, -1, 1, 1)
        return F.pad(raw - background, (self.pad,) * 4) + background

    @property
    def log_volume(self) -> float:
        """What the logarithm of a density loses when pixels are scaled back, in nats per image."""
        _, height, width = self.frame_shape
        scales = np.broadcast_to(np.abs(self.scale), len(self.background))
        return height * width * float(np.log(scales).sum())

    def crop(self, images: Tensor) -> Tensor:
        """Cut the margin off images of shape (n, C, H, W) in the frame."""
        stop = -self.pad or None
        return images[:, :, self.pad : stop, self.pad : stop]

    def to_rows(self, raw: Tensor) -> NDArray[Any]:
        """Crop images of shape (n, C, H, W) and return them as rows: the inverse of `to_padded_images`."""
        return self.crop(raw).permute(0, 2, 3, 1).reshape(len(raw), self.n_features).cpu().numpy()

    def to_model(self, rows: NDArray[Any], support: Any, device: torch.device) -> Tensor:
        """Return rows as what the model sees; see `scaled`."""
        return self.scaled(self.to_padded_images(rows), support, device)

    def scaled(self, padded: Tensor, support: Any, device: torch.device) -> Tensor:
        """Return padded images as what the model sees: scaled, within the likelihood's support, float32.

        Raises
        ------
        ValueError
            If a pixel is so far outside the fitted range that float32 could not hold its square.
        """
        return self._scaled(padded).clamp(*support).to(device=device, dtype=torch.float32)

    def searched(self, padded: Tensor, support: Any, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return what `scaled` returns, its faulty pixels repaired, and which these are; None where there are none."""
        scaled, faulty = self._scaled(padded), None
        if self.limits is not None and bool((found := is_faulty(scaled, self.limits)).any()):
            scaled, faulty = repaired(scaled, self.limits), found.to(device)
        return scaled.clamp(*support).to(device=device, dtype=torch.float32), faulty

    def _scaled(self, padded: Tensor) -> Tensor:
        scaled = (padded - self._along_channels(self.offset, padded)) / self._along_channels(self.scale, padded)
        largest = float(scaled.abs().max())
        if largest > FARTHEST_PIXEL:
            low, high = self.range
            raise ValueError(
                f"X has a pixel {largest:.3g} times the fitted range away from it; the range is [{low:g}, {high:g}]. "
                f"Bring X to the units that `fit` saw."
            )
        return scaled

    @staticmethod
    def _along_channels(value: float | tuple[float, ...], images: Tensor) -> Any:
        """Return a number of the format as what images of shape (n, n_channels, height, width) compute with."""
        return images.new_tensor(value).view(1, -1, 1, 1) if isinstance(value, tuple) else value

    def from_model(self, images: Tensor) -> Tensor:
        """Bring the model's images back to the units of the input."""
        return images * self._along_channels(self.scale, images) + self._along_channels(self.offset, images)

    def model_background(self, device: torch.device) -> Tensor:
        """Return the background as the model sees it, of shape (n_channels,)."""
        background = torch.tensor(self.background, device=device, dtype=torch.float32).view(1, -1, 1, 1)
        return self.scaled(background, (-math.inf, math.inf), device).flatten()

    def pose_to_model(self, alpha: NDArray[Any], family: str, device: torch.device) -> Tensor:
        """Return poses in units of the image as the model's, in units of the frame, float32."""
        return to_tensor(alpha / self.frame_to_image_scale(parameters_of(family)), device)

    def matrix(self, alpha: NDArray[Any], family: str) -> NDArray[Any]:
        """Return the matrices of poses, of shape (n, 2, 3), in coordinates of the image (not of the frame)."""
        height, width = self.image_shape[:2]
        return to_matrix(torch.from_numpy(alpha), family, aspect=width / height).numpy()

    def frame_prior(self, family: str, scale: tuple[float, ...]) -> tuple[float, ...]:
        """Return the prior's standard deviations, given in units of the image, in units of the frame.

        An image of one row has no angle, shear or vertical side to speak of: these are frozen.
        """
        parameters, deviations = parameters_of(family), np.array(scale)
        height, width = self.image_shape[:2]
        if height == 1 or width == 1:
            free = {"log_scale", "log_scale_x", "tx"} if height == 1 else {"log_scale", "log_scale_y", "ty"}
            deviations[[name not in {*free, REFLECTED} for name in parameters]] = 0.0
        return tuple((deviations / self.frame_to_image_scale(parameters)).tolist())

    def warp_rows(
        self,
        rows: NDArray[Any],
        alpha: NDArray[Any],
        family: str,
        *,
        inverse: bool = False,
        padded: Tensor | None = None,
    ) -> NDArray[Any]:
        """Warp rows of pixels, in their own units and precision, by poses in units of the image.

        Rows at the identity keep their pixels, bit by bit.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features)
        alpha : ndarray of shape (n, n_params)
        family : str
        inverse : bool, default=False
            Whether from the canonical frame to the input's rather than to the canonical one.
        padded : Tensor or None, default=None
            What `to_padded_images` makes of the rows, if the caller has it.
        """
        with np.errstate(over="ignore"):
            warped = rows.astype(self.floats(rows.dtype))
        moved = alpha.any(axis=1)
        if not moved.any():
            return warped
        raw = self.to_padded_images(rows[moved]) if padded is None else padded[torch.from_numpy(moved)]
        pose = torch.from_numpy(alpha[moved] / self.frame_to_image_scale(parameters_of(family))).to(raw.dtype)
        matrix = to_matrix(pose, family, aspect=raw.shape[3] / raw.shape[2])
        background = torch.tensor(self.background, dtype=raw.dtype)
        matrix = invert(matrix) if inverse else matrix
        warped[moved] = self.to_rows(warp(raw, matrix, background=background, padding=self.padding))
        return warped
