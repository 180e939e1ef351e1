"""The model's frame: a smaller image, and how one is made of the pixels of another size.

A pose needs few pixels. Large images are reduced to a frame in which the model works; poses are in units of its sides,
so that they hold for the image as it came.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Images up to so many pixels a side are seen as they are, larger ones reduced to so many.
_LARGEST_AS_IT_IS = 40
_SIDE = 34
# No side becomes shorter than this by being reduced.
SMALLEST_FRAME = 8
# A pixel of the frame is observed if so much of what it covers is.
_MOSTLY = 0.5

Sides = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """What the model sees of an image: all of it, with a margin, in so many pixels.

    Parameters
    ----------
    image : tuple of int
        (height, width) of the image.
    pad : int
        Margin in pixels of the image.
    sides : tuple of int or None
        (height, width) of the frame; None is that of the image and its margin.
    """

    image: Sides
    pad: int = 0
    sides: Sides | None = None

    @property
    def shape(self) -> Sides:
        """(height, width) in pixels of the frame."""
        return self.sides or self.padded

    @property
    def margins(self) -> Sides:
        """Rows above and below, columns left and right of the image, in its pixels.

        The frame's pixels are square: where its sides are not in the proportion of the image's the margin fills them.
        """
        if self.sides is None:
            return self.pad, self.pad
        height, width = (side + 2 * self.pad for side in self.image)
        step = max(height / self.sides[0], width / self.sides[1])
        extra = [round((step * seen - side) / 2) for seen, side in zip(self.sides, (height, width), strict=True)]
        return self.pad + max(0, extra[0]), self.pad + max(0, extra[1])

    @property
    def padded(self) -> Sides:
        """(height, width) of the image and its margins, in its pixels."""
        rows, columns = self.margins
        return self.image[0] + 2 * rows, self.image[1] + 2 * columns

    def reduced(self, images: Tensor) -> Tensor:
        """Return padded images, of shape (n, C, *padded), in the pixels of the frame; NaN where most is unknown."""
        if self.sides is None or tuple(images.shape[2:]) == self.sides:
            return images
        found = resized(images, self.sides)
        if not bool(found.isnan().any()):
            return found
        unknown = images.isnan()
        known = resized((~unknown).to(images.dtype), self.sides)
        found = resized(images.masked_fill(unknown, 0.0), self.sides) / known.clamp(min=1e-6)
        return found.masked_fill(known < _MOSTLY, torch.nan)

    def enlarged(self, images: Tensor) -> Tensor:
        """Return images of the frame in the pixels of padded images: what `reduced` took away is interpolated."""
        return images if self.sides is None else resized(images, self.padded)

    def cropped(self, images: Tensor) -> Tensor:
        """Cut the margins off images of the frame, or off padded images."""
        return _cut(images, *self._margins_of(images))

    def with_margins(self, images: Tensor, background: Tensor) -> Tensor:
        """Return images, of the frame or padded, whose margins are of a background of shape (n or 1, n_channels)."""
        rows, columns = self._margins_of(images)
        if not (rows or columns):
            return images
        inside = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
        _cut(inside[None, None], rows, columns).fill_(True)
        return torch.where(inside, images, background[:, :, None, None].to(images))

    def _margins_of(self, images: Tensor) -> Sides:
        if tuple(images.shape[2:]) == self.padded:
            return self.margins
        rows, columns = (-(-m * s // p) for m, s, p in zip(self.margins, self.shape, self.padded, strict=True))
        return rows, columns


def _cut(images: Tensor, rows: int, columns: int) -> Tensor:
    return images[:, :, rows : -rows or None, columns : -columns or None]


def resized(images: Tensor, sides: Sides) -> Tensor:
    """Return images of shape (n, C, H, W) in other sides: bilinear, and without aliasing where they shrink.

    Examples
    --------
    >>> resized(torch.eye(4)[None, None], (2, 2)).shape
    torch.Size([1, 1, 2, 2])
    """
    if tuple(images.shape[2:]) == tuple(sides):
        return images
    return F.interpolate(images, size=sides, mode="bilinear", align_corners=False, antialias=True)


def frame_sides(image: Sides, pad: int, resolution: int | str | None, multiple: int = 1) -> Sides | None:
    """Return the sides of the frame that images of a size are seen in; None is their own.

    Parameters
    ----------
    image : tuple of int
        (height, width).
    pad : int
        Margin in pixels of the image.
    resolution : int, "auto" or None
        Pixels of the image's longer side in the frame, at most. "auto" leaves images up to 40 pixels as they are and
        reduces larger ones to 34. None leaves all.
    multiple : int, default=1
        Of which both sides are multiples, where images are reduced at all.

    Examples
    --------
    >>> frame_sides((480, 640), 0, "auto"), frame_sides((28, 28), 0, "auto"), frame_sides((64, 64), 4, 48)
    ((26, 34), None, (54, 54))
    """
    longer, shorter = max(image), min(image)
    if resolution == "auto":
        # Signals of one row are as long as they are.
        resolution = None if longer <= _LARGEST_AS_IT_IS or shorter == 1 else _SIDE
    if resolution is None or longer <= int(resolution):
        return None
    step = longer / int(resolution)
    if shorter > 1:
        step = max(1.0, min(step, shorter / max(multiple, SMALLEST_FRAME)))
    if step == 1.0:
        return None
    height, width = (
        1 if side == 1 else multiple * -(-round((side + 2 * pad) / step * 1000) // (1000 * multiple)) for side in image
    )
    return height, width
