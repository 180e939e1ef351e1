"""How many images are evaluated at once: batches of rows, in bounded memory, that no image's answer depends on."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# Below eight rows matrix products take another path, whose last bits differ: a batch is never smaller, so
# that an image alone gets the bits that it gets among others.
_SMALLEST_BATCH = 16
_LARGEST_BATCH = 2048
# Pixels in a batch: 4 MiB of float32 keep a batch and what it passes through near the processor. And values of a
# network's widest layer: what is larger is fetched anew from the system at every pass, which takes half as long again.
_PIXELS_PER_BATCH = 2**20
_VALUES_PER_BATCH = 2**21
# A GPU waits for orders, not for memory: so many times as much at once.
_TIMES_ON_GPU = 16
# Images, and pixels, that are searched at once.
_IMAGES_PER_SLICE = 2048
_PIXELS_PER_SLICE = 2**22


def device_batch_factor(device: torch.device) -> int:
    """Return how many times as many images as on the CPU are taken at once on a device."""
    return 1 if device.type in ("cpu", "meta") else _TIMES_ON_GPU


def images_per_batch(images: Tensor, network: nn.Module | None = None) -> int:
    """Return how many images of this size are evaluated at once.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    network : nn.Module or None, default=None
        What evaluates them; it may say in `widest` how many values its widest layer has for an image.
    """
    factor = device_batch_factor(images.device)
    size = factor * _PIXELS_PER_BATCH // max(1, images[0].numel())
    widest = getattr(network, "widest", None)
    if isinstance(widest, int):
        size = min(size, factor * _VALUES_PER_BATCH // max(1, widest))
    return max(_SMALLEST_BATCH, min(factor * _LARGEST_BATCH, size))


def row_batches(n_rows: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """Yield (rows, n_kept): row numbers of each batch, the last row repeated where the batch is too small."""
    for start in range(0, n_rows, size):
        stop = min(start + size, n_rows)
        n_kept = stop - start
        rows = torch.arange(start, start + max(n_kept, _SMALLEST_BATCH), device=device)
        yield rows.clamp(max=stop - 1), n_kept


def in_batches(function: Callable[..., Tensor], size: int, *rows: Tensor) -> Tensor:
    """Apply a function of rows to any number of them, in bounded memory and without a graph.

    Parameters
    ----------
    function : callable
        Takes batches of `rows` and returns a tensor with a row for each.
    size : int
        Rows in a batch, see `images_per_batch`.
    *rows : Tensor
        At least one row each, as many in all of them.
    """
    parts = []
    with torch.no_grad():
        for batch, n_kept in row_batches(len(rows[0]), size, rows[0].device):
            parts.append(function(*(tensor[batch] for tensor in rows))[:n_kept])
    return torch.cat(parts)


def image_slices(images: Tensor) -> Iterator[slice]:
    """Yield slices of images that are searched at once, fewer the larger they are."""
    most = max(16, min(_IMAGES_PER_SLICE, _PIXELS_PER_SLICE // images[0].numel()))
    size = device_batch_factor(images.device) * most
    return (slice(start, start + size) for start in range(0, len(images), size))
