"""Moments of the ink: where it lies and how far it spreads, in half heights."""

import numpy as np
import pytest
import torch

from sk_avae.datasets import load_mnist_sample
from sk_avae.model.moments import Moments, exact_moments, mean_moments, mirrored, moments

BLACK = torch.zeros(1)


def random_images(n, *shape):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1, 6, 10), (3, 9, 4), (1, 1, 7), (2, 5, 1), (1, 28, 28)], ids=str)
def test_moments_are_the_weighted_mean_and_covariance_of_the_pixel_centres(shape):
    images, (_, height, width) = random_images(4, *shape), shape
    background = torch.linspace(0.2, 0.9, shape[0])
    found = exact_moments(images, background)
    assert found.centroid.dtype == found.covariance.dtype == torch.float64
    half = height / 2
    y, x = np.mgrid[:height, :width]
    centres = np.stack([(x + 0.5 - width / 2) / half, (y + 0.5 - half) / half]).reshape(2, -1)
    for i, image in enumerate(images.double().numpy()):
        ink = np.abs(image - background.double().numpy()[:, None, None]).sum(axis=0).ravel()
        np.testing.assert_allclose(found.centroid[i], np.average(centres, axis=1, weights=ink), atol=1e-5)
        np.testing.assert_allclose(found.covariance[i], np.cov(centres, aweights=ink, ddof=0), rtol=1e-5, atol=1e-5)


def test_moments_see_ink_not_brightness():
    X, _ = load_mnist_sample("train")
    images = torch.tensor(X[:300]).view(-1, 1, 28, 28) / 255
    one, other = moments(images, BLACK), moments(1 - images, torch.ones(1))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_constant_image_has_its_ink_spread_evenly():
    evenly, blank = (exact_moments(torch.full((1, 1, 6, 10), value), BLACK) for value in (0.5, 0.0))
    for a, b in zip(evenly, blank, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    torch.testing.assert_close(blank.centroid, torch.zeros(1, 2).double())


@pytest.mark.parametrize("n", [1, 30, 9000])
def test_mean_moments_are_the_means_in_the_images_precision(n):
    images = random_images(n, 1, 3, 5)
    single, exact = moments(images, BLACK), exact_moments(images, BLACK)
    mean = mean_moments(images, BLACK)
    for some, alone, more_exact in zip(mean, single, exact, strict=True):
        assert alone.dtype == some.dtype == torch.float32
        assert torch.equal(alone, more_exact.float())
        torch.testing.assert_close(some, more_exact.mean(dim=0, keepdim=True).float(), rtol=1e-5, atol=1e-6)


def test_moments_of_the_mirrored_image_are_the_mirrored_moments():
    images = random_images(5, 2, 6, 9)
    background = torch.tensor([0.1, 0.7])
    found, expected = mirrored(exact_moments(images, background)), exact_moments(images.flip(3), background)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_moments_of_some_rows_are_theirs():
    found, rows = exact_moments(random_images(7, 1, 4, 4), BLACK), torch.tensor([5, 2, 2])
    some = found.of(rows)
    assert isinstance(some, Moments)
    assert torch.equal(some.centroid, found.centroid[rows])
    assert torch.equal(some.covariance, found.covariance[rows])


def test_moments_are_made_where_the_images_are():
    images = random_images(3, 1, 4, 6)
    expected = exact_moments(images, BLACK)
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        found = exact_moments(images, BLACK)
        mirrored(found)
    assert all(map(torch.equal, found, expected))
