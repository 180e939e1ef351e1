"""The critic: a small network that tells canonical images from images in a wrong pose.

The ELBO alone is often *higher* at a wrong pose: a stretched 4 makes a fine 9. What the critic learns from is described
in `learning.critic_training`.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vae import EvenLinear

_CHANNELS = (16, 32, 32)
_HIDDEN = 64
_DROPOUT = 0.2
_SIDE = 14


class Critic(nn.Module):
    """Three convolutions, with batch norms, and two linear layers that score an image: higher is more canonical.

    In nats, once it is scaled.

    Parameters
    ----------
    image_shape : tuple of int
        (n_channels, height, width).
    pooled : bool, default=True
        Whether large images are pooled to about 14 pixels a side first.

    Examples
    --------
    >>> Critic((1, 28, 28)).eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2])
    """

    scale: Tensor

    def __init__(self, image_shape: tuple[int, int, int], *, pooled: bool = True) -> None:
        super().__init__()
        channels, height, width = image_shape
        first, second, third = _CHANNELS
        self.pooling = max(1, min(height, width) // _SIDE) if pooled else 1
        height, width = height // self.pooling, width // self.pooling
        self.widest = first * -(-height // 2) * -(-width // 2)
        self.layers = nn.Sequential(
            *_halving(channels, first, 5),
            *_halving(first, second, 3),
            *_halving(second, third, 3),
            nn.Flatten(),
            nn.Dropout(_DROPOUT),
            EvenLinear(third * -(-height // 8) * -(-width // 8), _HIDDEN),
            nn.ReLU(),
            EvenLinear(_HIDDEN, 1),
        )
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the score of each image, of shape (n,)."""
        if self.pooling > 1:
            images = F.avg_pool2d(images, self.pooling)
        return self.layers(images)[:, 0] * self.scale


def is_pooled(arrays: Mapping[str, Any], image_shape: tuple[int, int, int]) -> bool:
    """Tell whether weights are those of a critic that pools images of such a shape, by the shape of one."""
    name = "layers.11.weight"
    with torch.device("meta"):
        return name in arrays and arrays[name].shape == tuple(Critic(image_shape).state_dict()[name].shape)


def _halving(inputs: int, outputs: int, width: int) -> list[nn.Module]:
    """Return the layers that halve an image's sides."""
    convolution = nn.Conv2d(inputs, outputs, width, stride=2, padding=width // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.Hardswish()]
