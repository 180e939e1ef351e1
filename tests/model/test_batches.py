"""Batches: how many images at once, which rows, and that none is lost."""

import math
from types import SimpleNamespace

import pytest
import torch

from sk_avae.model.batches import device_batch_factor, image_slices, images_per_batch, in_batches, row_batches

CPU = torch.device("cpu")


class Images:
    """Images of a shape on any device, without a pixel."""

    def __init__(self, shape, device="cpu", n=1):
        self.shape, self.device, self.n = shape, torch.device(device), n

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return torch.empty(self.n, *self.shape, device="meta")[row]


SHAPES = [(1, 1, 1), (1, 28, 28), (3, 31, 7), (1, 512, 512), (4, 2048, 2048), (1, 0, 5)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("widest", [None, 1, 0, 3000, 10**7, "wide"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_is_as_large_as_pixels_and_values_allow_from_16_to_2048_images_and_sixteenfold_on_a_gpu(
    shape, widest, device
):
    factor = {"cpu": 1, "cuda": 16}[device]
    size = images_per_batch(Images(shape, device), None if widest is None else SimpleNamespace(widest=widest))
    limits = [factor * 2048, factor * 2**20 // max(1, math.prod(shape))]
    if isinstance(widest, int):
        limits.append(factor * 2**21 // max(1, widest))
    assert size == max(16, min(limits))


def test_only_what_is_no_cpu_takes_more_at_once():
    assert [device_batch_factor(torch.device(name)) for name in ("cpu", "meta", "cuda", "mps")] == [1, 1, 16, 16]


@pytest.mark.parametrize("size", [16, 20, 100])
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 20, 21, 40, 100])
def test_batches_hold_every_row_once_and_repeat_the_last_one_where_they_are_small(n, size):
    kept = []
    for rows, n_kept in row_batches(n, size, CPU):
        assert len(rows) == max(16, n_kept)
        assert 0 < n_kept <= size
        kept += rows[:n_kept].tolist()
        assert (rows[n_kept:] == rows[n_kept - 1]).all()
    assert kept == [*range(n)]


@pytest.mark.parametrize("n", [1, 16, 37])
def test_a_function_in_batches_is_the_function_of_all_rows_without_a_graph(n):
    one, other = torch.arange(n * 2.0).view(n, 2).requires_grad_(True), torch.arange(n)
    found = in_batches(lambda a, b: a * 3 + b[:, None], 16, one, other)
    assert torch.equal(found, (one * 3 + other[:, None]).detach())
    assert not found.requires_grad
    assert torch.equal(in_batches(lambda a: a.sum(dim=1), 16, one), one.detach().sum(dim=1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 28, 28), (3, 200, 300), (4, 2048, 2048)], ids=str)
@pytest.mark.parametrize("n", [1, 5000, 70_000])
def test_slices_hold_every_image_once_and_no_more_pixels_than_allowed(shape, n, device):
    factor = {"cpu": 1, "cuda": 16}[device]
    size = factor * max(16, min(2048, 2**22 // math.prod(shape)))
    slices = [*image_slices(Images(shape, device, n))]
    assert [i for some in slices for i in range(n)[some]] == [*range(n)]
    assert all(len(range(n)[some]) == size for some in slices[:-1])
    assert len(range(n)[slices[-1]]) <= size


def test_batches_are_made_where_they_are_asked_for():
    with torch.device("meta"):
        assert all(rows.device == CPU for rows, _ in row_batches(40, 16, CPU))
    assert all(rows.device.type == "meta" for rows, _ in row_batches(40, 16, torch.device("meta")))
