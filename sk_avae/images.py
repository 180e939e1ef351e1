"""Images between rows of pixels and the model's tensors: shape, scaling, background, padding, and the last warp.

Where arrays become tensors, and tensors arrays again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .model.affine import REFLECTED, edge_median, invert, parameters_of, to_matrix, warp

# Pixels this many fitted ranges away lose their meaning in float32 sums of squares.
FARTHEST_PIXEL = 1e6

# Images, and pixels, whose tensors are held at once; as many images also tell the background as well as all do.
_IMAGES_PER_SLICE = 4096
_PIXELS_PER_SLICE = 2**22

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


def every_few(n: int) -> slice:
    """Return what takes a few thousand of n images: they tell ranges and backgrounds as well as all do."""
    return slice(None, None, max(1, n // _IMAGES_PER_SLICE))


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
        some = rows[every_few(len(rows))].reshape(-1, height, width, *image_shape[2:] or (1,))
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
        """Return rows as padded images, in the input's units and precision, of shape (n, C, H, W)."""
        dtype = floats_like(rows.dtype)
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
        scaled = (padded - self.offset) / self.scale
        largest = float(scaled.abs().max())
        if largest > FARTHEST_PIXEL:
            raise ValueError(
                f"X has a pixel {largest:.3g} times the fitted range away from it; the range is "
                f"[{min(self.offset, self.offset + self.scale):g}, {max(self.offset, self.offset + self.scale):g}]. "
                f"Bring X to the units that `fit` saw."
            )
        return scaled.clamp(*support).to(device=device, dtype=torch.float32)

    def from_model(self, images: Tensor) -> Tensor:
        """Bring the model's images back to the units of the input."""
        return images * self.scale + self.offset

    def model_background(self, device: torch.device) -> Tensor:
        """Return the background as the model sees it, of shape (n_channels,)."""
        return (torch.tensor(self.background, device=device) - self.offset) / self.scale

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
        warped = rows.astype(floats_like(rows.dtype))
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
