"""Images between rows of pixels and the model's tensors: shape, frame, scaling, background, and the last warp.

Where arrays become tensors, and tensors arrays again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .model.affine import (
    REFLECTED,
    invert,
    parameters_of,
    to_matrix,
)
from .model.exposure import Correction, Exposure, correction
from .model.faults import is_faulty, repaired, with_gaps_filled
from .model.frame import Frame
from .model.noise import Noise, smoothed
from .model.resampling import warp_without_aliasing

# Pixels this many fitted ranges away lose their meaning in float32 sums of squares.
FARTHEST_PIXEL = 1e6

# Images, and pixels, whose tensors are held at once; as many images also tell the background as well as all do.
_IMAGES_PER_SLICE = 4096
_PIXELS_PER_SLICE = 2**22

# Pixels that are warped at once, near the processor.
_PIXELS_WARPED = 2**20

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
    sides : tuple of int or None, default=None
        (height, width) of the frame that images are reduced to; None sees their own pixels.
    exposure : tuple or None, default=None
        The fields of an `Exposure`: which brightness images are brought to; None leaves them as they are.
    noise : tuple of float or None, default=None
        The fields of a `Noise`: images that are rougher are smoothed for the search; None smooths none.
    """

    image_shape: ImageShape
    pad: int
    offset: float | tuple[float, ...]
    scale: float | tuple[float, ...]
    background: tuple[float, ...]
    padding: str = "background"
    precision: str | None = None
    limits: tuple[float, float] | None = None
    sides: tuple[int, int] | None = None
    exposure: tuple[Any, ...] | None = None
    noise: tuple[float, float] | None = None

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
    def frame(self) -> Frame:
        """Where the model's frame lies on an image."""
        return Frame(sides_of(self.image_shape), self.pad, self.sides)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Shape (n_channels, height, width) of what the model sees."""
        return (len(self.background), *self.frame.shape)

    def slices(self, n: int, factor: int = 1) -> Iterator[slice]:
        """Yield slices that cover `n` images, fewer at once the larger they are, and `factor` times as many."""
        n_pixels = len(self.background) * math.prod(self.frame.padded)
        size = factor * max(16, min(_IMAGES_PER_SLICE, _PIXELS_PER_SLICE // n_pixels))
        return (slice(start, start + size) for start in range(0, n, size))

    def frame_to_image_scale(self, parameters: tuple[str, ...]) -> NDArray[np.float64]:
        """Return, per pose parameter, the frame's unit in units of the image: more than 1 for padded shifts."""
        height, width = self.frame.padded
        sides = {"tx": width / self.image_shape[1], "ty": height / self.image_shape[0]}
        return np.array([sides.get(name, 1.0) for name in parameters])

    def to_padded_images(self, rows: NDArray[Any]) -> Tensor:
        """Return rows as images with their margins, in the input's units and the precision of results: (n, C, H, W)."""
        dtype = self.floats(rows.dtype)
        height, width = self.image_shape[:2]
        stack = rows.reshape(len(rows), height, width, -1).transpose(0, 3, 1, 2)
        with np.errstate(over="ignore"):  # what is infinite is refused when it is scaled
            stack = np.ascontiguousarray(stack, dtype=dtype)
        rows_around, columns_around = self.frame.margins
        if not (rows_around or columns_around):
            return torch.from_numpy(stack if stack.flags.writeable else stack.copy())
        if self.padding != "background":
            around = (0, 0), (0, 0), (rows_around,) * 2, (columns_around,) * 2
            return torch.from_numpy(np.pad(stack, around, mode=_MARGINS[self.padding]))
        raw = torch.from_numpy(stack if stack.flags.writeable else stack.copy())
        background = torch.tensor(self.background, dtype=raw.dtype).view(1, -1, 1, 1)
        return F.pad(raw - background, (columns_around,) * 2 + (rows_around,) * 2) + background

    def log_jacobian(self, seen: "SeenImages") -> NDArray[Any]:
        """Return what turns densities of what the model sees into those of pixels in the input's units, of shape (n,).

        In nats per image, of the pixels of the frame.
        """
        height, width = self.frame.shape
        scales = np.broadcast_to(np.abs(self.scale), len(self.background))
        shared = np.full(len(seen.images), -height * width * float(np.log(scales).sum()))
        if seen.corrected is None:
            return shared
        slope = seen.corrected.slope.flatten().abs().double().log().numpy()
        return shared + seen.images[0].numel() * slope  # type: ignore[no-any-return]

    def crop(self, images: Tensor) -> Tensor:
        """Cut the margin off images of shape (n, C, H, W) in the frame."""
        return self.frame.cropped(images)

    def to_rows(self, raw: Tensor) -> NDArray[Any]:
        """Crop images of shape (n, C, H, W) and return them as rows: the inverse of `to_padded_images`."""
        return self.frame.cropped(raw).permute(0, 2, 3, 1).reshape(len(raw), self.n_features).cpu().numpy()

    def seen(self, padded: Tensor, support: Any, device: torch.device) -> "SeenImages":
        """Return padded images as the model sees them: reduced to its frame, scaled, float32, within the support.

        Raises
        ------
        ValueError
            If a pixel is so far outside the fitted range that float32 could not hold its square.
        """
        images = self.to_units_of_model(self.frame.reduced(padded))
        self._check_not_far(images)
        corrected, observed, faulty = None, None, None
        if self.exposure is not None:
            corrected = correction(self.crop(images), Exposure(*self.exposure))
            images = self.with_own_margins(corrected.of(images), corrected, self._background_in_model(images)[None])
        if bool((unknown := images.isnan()).any()):
            observed = ~unknown
            images = with_gaps_filled(images, self._background_in_model(images))
        own = images
        if self.limits is not None and bool((found := is_faulty(images, self.limits)).any()):
            images, faulty = repaired(images, self.limits), found.to(device)
        images = self._smoothed(images)

        def final(some: Tensor) -> Tensor:
            return some.clamp(*support).to(device=device, dtype=torch.float32)

        seen = final(images)
        return SeenImages(
            seen,
            seen if own is images else final(own),
            faulty,
            observed if observed is None else observed.to(device),
            corrected,
        )

    def _smoothed(self, images: Tensor) -> Tensor:
        """Return images without the noise that training images do not have; others bit by bit."""
        if self.noise is None:
            return images
        smooth = smoothed(images, Noise(*self.noise))
        if smooth is images or self.exposure is None:
            return smooth
        # Noise that was cut off at black had raised the ground.
        darker = correction(self.crop(smooth), Exposure(*self.exposure), covered=False).of(smooth)
        low, high = self.limits or (-math.inf, math.inf)
        changed = (smooth != images).flatten(1).any(dim=1)
        return torch.where(changed.view(-1, 1, 1, 1), darker.clamp(low, high), images)

    def to_units_of_model(self, images: Tensor) -> Tensor:
        """Return images of shape (n, C, H, W) with the offset and the scale that all images share taken away."""
        return (images - self._along_channels(self.offset, images)) / self._along_channels(self.scale, images)

    def _check_not_far(self, images: Tensor) -> None:
        largest = float(images.abs().max())
        if math.isnan(largest):
            largest = float(images.abs().nan_to_num(nan=0.0, posinf=math.inf).max())
        if largest > FARTHEST_PIXEL:
            low, high = self.range
            raise ValueError(
                f"X has a pixel {largest:.3g} times the fitted range away from it; the range is [{low:g}, {high:g}]. "
                f"Bring X to the units that `fit` saw."
            )

    @staticmethod
    def _along_channels(value: float | tuple[float, ...], images: Tensor) -> Any:
        """Return a number of the format as what images of shape (n, n_channels, height, width) compute with."""
        return images.new_tensor(value).view(1, -1, 1, 1) if isinstance(value, tuple) else value

    def from_model(self, images: Tensor) -> Tensor:
        """Bring the model's images back to the units of the input."""
        return images * self._along_channels(self.scale, images) + self._along_channels(self.offset, images)

    def model_background(self, device: torch.device) -> Tensor:
        """Return the background as the model sees it, of shape (n_channels,)."""
        background = self._background_in_model(torch.empty(0, device=device, dtype=torch.float32))
        self._check_not_far(background)
        return background

    def _background_in_model(self, like: Tensor) -> Tensor:
        return self.to_units_of_model(like.new_tensor(self.background).view(1, -1, 1, 1)).flatten()

    def own_background(self, corrected: Correction | None, like: Tensor) -> Tensor:
        """Return what lies outside each of some images, in their own units: (n, n_channels) or (n_channels,)."""
        background = like.new_tensor(self.background)
        if corrected is None:
            return background
        in_model = self._background_in_model(like).view(1, -1, 1, 1)
        own = self.from_model(corrected.undone(in_model))[:, :, 0, 0]
        return torch.where(corrected.changes.view(-1, 1), own, background)

    def with_own_margins(self, images: Tensor, corrected: Correction, background: Tensor) -> Tensor:
        """Return images, of the frame or padded, those that are corrected with margins of their own background."""
        if self.padding != "background" or not bool(corrected.changes.any()):
            return images
        return torch.where(corrected.changes, self.frame.with_margins(images, background), images)

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
        background: Tensor | None = None,
        interpolation: str = "bilinear",
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
        background : Tensor of shape (n, n_channels) or None, default=None
            What lies outside; None is the training images'.
        interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
        """
        moved = alpha.any(axis=1)
        warped = np.empty(rows.shape, dtype=self.floats(rows.dtype))
        with np.errstate(over="ignore"):
            warped[~moved] = rows[~moved]
        height, width = self.frame.padded
        size = max(1, _PIXELS_WARPED // (height * width * len(self.background)))
        for start in range(0, np.count_nonzero(moved), size):
            some = np.flatnonzero(moved)[start : start + size]
            raw = self.to_padded_images(rows[some]) if padded is None else padded[torch.from_numpy(some)]
            pose = torch.from_numpy(alpha[some] / self.frame_to_image_scale(parameters_of(family))).to(raw.dtype)
            matrix = to_matrix(pose, family, aspect=width / height)
            outside = raw.new_tensor(self.background) if background is None else background
            warped[some] = self.to_rows(
                warp_without_aliasing(
                    raw,
                    invert(matrix) if inverse else matrix,
                    background=outside if outside.ndim == 1 else outside[torch.from_numpy(some)],
                    interpolation=interpolation,
                    padding=self.padding,
                )
            )
        return warped


class SeenImages(NamedTuple):
    """What the model sees of images; each of shape (n, n_channels, height, width) in its frame.

    Attributes
    ----------
    images : Tensor
        What the search looks at: faults are repaired, gaps filled.
    own : Tensor
        The images with their faults, of which the ELBO is.
    faulty, observed : Tensor of bool or None
        Which pixels are repaired, and which were known; None where none are, or all.
    corrected : Correction or None
        What brought them to the brightness of training images.
    """

    images: Tensor
    own: Tensor
    faulty: Tensor | None
    observed: Tensor | None
    corrected: Correction | None


def sides_of(image_shape: ImageShape) -> tuple[int, int]:
    """Return (height, width)."""
    return image_shape[0], image_shape[1]


def warp_stack(
    stack: NDArray[Any], matrix: NDArray[Any], *, background: float, interpolation: str, padding: str
) -> NDArray[Any]:
    """Warp images of any size and number of channels, some at a time.

    Parameters
    ----------
    stack : ndarray of shape (n, H, W) or (n, H, W, C)
    matrix : ndarray of shape (n, 2, 3)
        Maps output to input coordinates.
    background, interpolation, padding : object
        See `affine.warp`.

    Returns
    -------
    warped : ndarray of the same shape
        Of the same type with "nearest", else floats.
    """
    keeps = interpolation == "nearest"
    floats: type[np.floating[Any]] = floats_like(stack.dtype)
    if keeps and stack.dtype.kind in "iu" and stack.dtype.itemsize > 2:
        floats = np.float64  # labels, which single precision would merge
    warped = np.empty(stack.shape, dtype=stack.dtype if keeps else floats)
    size = max(1, _PIXELS_PER_SLICE // max(1, math.prod(stack.shape[1:])))
    for start in range(0, len(stack), size):
        part = slice(start, start + size)
        images = stack[part].reshape(*stack[part].shape[:3], -1).transpose(0, 3, 1, 2)
        raw = torch.from_numpy(np.ascontiguousarray(images, dtype=floats))
        theta = torch.from_numpy(matrix[part]).to(raw.dtype)
        how = {"background": background, "interpolation": interpolation, "padding": padding}
        found = warp_without_aliasing(raw, theta, **how).permute(0, 2, 3, 1).numpy()
        warped[part] = found.reshape(stack[part].shape)
    return warped
