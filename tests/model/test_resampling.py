"""Warps that shrink an image: several samples make a pixel, and nothing else changes."""

import math

import pytest
import torch

from sk_avae.model.affine import to_matrix, warp
from sk_avae.model.resampling import samples_per_pixel, warp_without_aliasing


def matrix_of(*rows):
    return to_matrix(torch.tensor(rows, dtype=torch.double), "affine")


@pytest.mark.parametrize(
    ("log_x", "log_y", "angle", "n"),
    [(0, 0, 0, 1), (0, 0, 1.0, 1), (-2, -2, 0, 1), (0.3, 0.3, 2.0, 1), (0.5, 0, 0.3, 2), (0, 1.1, 0, 3), (9, 9, 0, 8)],
)
@pytest.mark.parametrize("aspect", [1.0, 2.5])
def test_so_many_samples_as_the_longest_step(log_x, log_y, angle, n, aspect):
    matrix = to_matrix(torch.tensor([[angle, log_x, log_y, 0, 0.2, 0]]), "affine", aspect=aspect)
    assert samples_per_pixel(matrix, aspect).tolist() == [n]


@pytest.mark.parametrize("shear", [0.0, 0.7, -2.5, 4.0])
@pytest.mark.parametrize("aspect", [1.0, 0.4])
def test_the_longest_step_is_the_largest_singular_value(shear, aspect):
    matrix = to_matrix(torch.tensor([[0.7, 0.2, -0.3, shear, 0.4, -0.9]]), "affine", aspect=aspect).double()
    pixels = matrix[0, :, :2] * torch.tensor([[1.0, aspect], [1 / aspect, 1.0]])
    largest = torch.linalg.svdvals(pixels).max()
    assert samples_per_pixel(matrix, aspect).item() == max(1, round(float(largest)))


@pytest.mark.parametrize("padding", ["border", "reflect"])
def test_padding_is_the_same_where_an_image_shrinks(padding):
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double() + 1
    assert warp_without_aliasing(images, matrix_of([0, 1.0, 1.0, 0, 0, 0]), padding=padding).min() > 0.9


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_where_nothing_shrinks_it_is_a_warp_bit_by_bit(interpolation):
    images = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    matrix = matrix_of([0.3, 0, 0, 0, 0, 0], [1, -0.5, -0.5, 0, 0.1, 0], [0, 0.2, 0.2, 0.1, 0, 0])
    how = {"background": torch.tensor([0.5, 0.1]).double(), "interpolation": interpolation}
    assert torch.equal(warp_without_aliasing(images, matrix, **how), warp(images, matrix, **how))


def test_fine_lines_become_grey_rather_than_patterns():
    lines = (torch.arange(64) % 2).double().expand(1, 1, 64, 64).contiguous()
    half = matrix_of([0, math.log(2.05), math.log(2.05), 0, 0, 0])
    how = {"padding": "border"}
    inside = (..., slice(20, 44), slice(20, 44))
    assert (warp_without_aliasing(lines, half, **how)[inside] - 0.5).abs().max() < 0.3
    assert (warp(lines, half, **how)[inside] - 0.5).abs().max() > 0.35


def test_each_image_by_its_own_samples_and_background():
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    matrix = matrix_of([0, 1.0, 1.0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0], [0, 1.5, 0, 0, 0, 0])
    background = torch.tensor([[0.0], [0.5], [1.0]]).double()
    together = warp_without_aliasing(images, matrix, background=background)
    for k in range(3):
        one = slice(k, k + 1)
        assert torch.equal(warp_without_aliasing(images[one], matrix[one], background=background[one])[0], together[k])


def test_labels_stay_labels():
    labels = torch.randint(0, 9, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0)).double()
    found = warp_without_aliasing(labels, matrix_of([0.2, 1.0, 1.0, 0, 0, 0]), interpolation="nearest")
    assert set(found.unique().tolist()) <= set(range(9))


def test_what_is_no_number_comes_out_as_none():
    images = torch.ones(2, 1, 4, 4)
    matrix = torch.eye(2, 3).repeat(2, 1, 1)
    matrix[1, 0, 0] = torch.inf
    found = warp_without_aliasing(images, matrix, padding="border")
    assert (found[0] == 1).all()
    assert found[1].isnan().all()
