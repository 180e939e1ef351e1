r"""A network that turns with its image: it reads an image on rings, and says the same of each angle.

Along a ring a turn of the image is a shift. A layer that correlates the rings with its weights at every shift therefore
has one answer for an image and for the same image turned, only moved to other angles: what it learns of one angle it
knows of all. That takes a tenth of the examples, and of the time, that a convolutional network takes.

The correlation is a product of Fourier coefficients, one small matrix per frequency.

References
----------
Cohen & Welling (2016), "Group equivariant convolutional networks" (layers that commute with turns); Esteves et al.
(2018), "Polar transformer networks" (rotation as a shift in polar coordinates).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vae import EvenLinear

# Readings along a ring, and rings. Sides of all products are multiples of 16, see `vae.EvenLinear`.
N_ANGLES = 48
_N_RINGS = 16
_CHANNELS = 64
_HIDDEN = 64
# Larger images are pooled to about so many pixels a side.
_SIDE = 32
# Readings are brought to this contrast, but noise is not: a standard deviation that counts as none.
_FLAT = 0.02


class PolarNetwork(nn.Module):
    """Numbers for each of 48 angles: one layer that looks at whole rings, and two that look at each angle's features.

    Brightness and contrast of an image have no part in them.

    Parameters
    ----------
    image_shape : tuple of int
        (n_channels, height, width).
    n_outputs : int
        Numbers per angle.
    dropout : float, default=0.0
        Share of each angle's features that training leaves out: few images would be learned by heart.

    Examples
    --------
    >>> PolarNetwork((1, 28, 28), n_outputs=2).eval()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 48, 2])
    """

    def __init__(self, image_shape: tuple[int, int, int], n_outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.aspect = width / height
        self.pooling = max(1, min(height, width) // _SIDE)
        self.widest = 2 * N_ANGLES * max(_CHANNELS, channels * _N_RINGS)
        n_readings = channels * _N_RINGS
        self.rings = nn.Parameter(torch.randn(n_readings, _CHANNELS, N_ANGLES) / math.sqrt(n_readings * N_ANGLES))
        self.bias = nn.Parameter(torch.zeros(_CHANNELS))
        self.dropout = dropout
        self.head = nn.Sequential(EvenLinear(_CHANNELS, _HIDDEN), nn.ReLU(), EvenLinear(_HIDDEN, n_outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs at each angle, of shape (n, 48, n_outputs)."""
        analysis, synthesis = _fourier_matrices(images)
        found = _correlated(_coefficients(self._readings(images), analysis), _coefficients(self.rings, analysis))
        hidden = (synthesis @ found.view(N_ANGLES, -1)).view(N_ANGLES * len(images), _CHANNELS)
        out = self.head(F.dropout(F.relu(hidden + self.bias), self.dropout, self.training and self.dropout > 0))
        return out.view(N_ANGLES, len(images), -1).transpose(0, 1)  # type: ignore[no-any-return]

    def _readings(self, images: Tensor) -> Tensor:
        """Return what lies on the rings, of mean 0 and one contrast, of shape (n, n_readings, 48)."""
        if self.pooling > 1:
            images = F.avg_pool2d(images, self.pooling)
        angle = angles(images)
        radius = (torch.arange(_N_RINGS, device=images.device).to(images) + 0.5) / _N_RINGS
        # A turn acts on pixels: rings are as wide as high.
        x = radius[:, None] * angle.cos() / math.sqrt(self.aspect)
        y = -radius[:, None] * angle.sin() * math.sqrt(self.aspect)
        grid = torch.stack([x, y], dim=2).expand(len(images), -1, -1, -1)
        read = F.grid_sample(images, grid, padding_mode="border", align_corners=False).flatten(1)
        read = read - read.mean(dim=1, keepdim=True)
        contrast = read.square().mean(dim=1, keepdim=True).sqrt() + _FLAT
        return (read / contrast).view(len(images), -1, N_ANGLES)


def angles(like: Tensor, n: int = N_ANGLES) -> Tensor:
    """Return angles in radians counter-clockwise from -pi to pi: the centres of `n` bins."""
    return (torch.arange(n, device=like.device).to(like) + 0.5) * (2 * math.pi / n) - math.pi


def _fourier_matrices(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real Fourier transform and its inverse, both of shape (48, 48), less the highest frequency."""
    n_frequencies = N_ANGLES // 2
    step = torch.arange(N_ANGLES, device=like.device).to(like) * (2 * math.pi / N_ANGLES)
    phase = torch.arange(n_frequencies, device=like.device).to(like)[:, None] * step
    waves = torch.cat([phase.cos(), -phase.sin()], dim=0)
    twice = waves.new_full((n_frequencies,), 2.0 / N_ANGLES)
    twice[0] = 1.0 / N_ANGLES
    # Real and imaginary part of a frequency are neighbours where the inverse is taken.
    return waves.t(), (waves * twice.repeat(2)[:, None]).view(2, n_frequencies, -1).transpose(0, 1).flatten(0, 1).t()


def _coefficients(signals: Tensor, analysis: Tensor) -> Tensor:
    """Return real and imaginary Fourier coefficients along the last axis, of shape (m, k, 2, n_frequencies)."""
    m, k, n = signals.shape
    return (signals.reshape(m * k, n) @ analysis).view(m, k, 2, -1)


def _correlated(readings: Tensor, weights: Tensor) -> Tensor:
    """Return the coefficients of the circular correlation: a complex product, summed over the readings.

    Parameters
    ----------
    readings : Tensor of shape (n, n_readings, 2, n_frequencies)
    weights : Tensor of shape (n_readings, n_channels, 2, n_frequencies)

    Returns
    -------
    found : Tensor of shape (n_frequencies, 2, n, n_channels)
    """
    n, n_readings, _, n_frequencies = readings.shape
    rows = readings.permute(3, 0, 2, 1).reshape(n_frequencies, n, 2 * n_readings)
    real, imaginary = weights.permute(2, 3, 0, 1)
    to_real = torch.cat([real, imaginary], dim=1)
    to_imaginary = torch.cat([-imaginary, real], dim=1)
    return torch.stack([torch.bmm(rows, to_real), torch.bmm(rows, to_imaginary)], dim=1)
