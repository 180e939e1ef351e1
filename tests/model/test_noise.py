"""Noise: how much there is, and what smoothing leaves."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from sk_avae.model.noise import noise_deviation, roughness, smoothed, usual_noise


def shapes(n=20, side=28, channels=1):
    """Return smooth shapes on black."""
    generator = torch.Generator().manual_seed(0)
    blocks = (torch.rand(n, channels, side + 4, side + 4, generator=generator) > 0.97).float()
    return avg_pool2d(avg_pool2d(torch.nn.functional.max_pool2d(blocks, 7, 1, 3), 3, 1, 1), 5, 1).clamp(0, 1)


def noisy(images, deviation, seed=1):
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def error(found, true):
    return float((found - true).square().mean().sqrt())


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3])
def test_the_deviation_of_white_noise_is_found(deviation):
    flat = torch.full((5, 1, 28, 28), 0.5)
    found = noise_deviation(noisy(flat, deviation))
    assert found.mean() == pytest.approx(deviation, rel=0.15)


def test_images_as_rough_as_training_images_keep_their_bits():
    images = noisy(shapes(), 0.05)
    usual = usual_noise(images)
    calm = roughness(images) <= usual.roughness
    assert calm.float().mean() > 0.9
    assert torch.equal(smoothed(images, usual)[calm], images[calm])
    assert smoothed(shapes(), usual) is not None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("deviation", [0.1, 0.2, 0.3])
def test_noise_is_halved(deviation, channels):
    images = shapes(channels=channels)
    found = smoothed(noisy(images, deviation), usual_noise(images))
    assert error(found, images) < 0.6 * deviation


def test_specks_are_gone():
    images = shapes()
    specked = images.clone()
    where = torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) < 0.05
    specked[where] = 1.0
    found = smoothed(specked, usual_noise(images))
    assert error(found, images) < 0.4 * error(specked, images)


@pytest.mark.parametrize("value", [1.0, -0.5])
def test_a_speck_becomes_the_median_of_its_neighbours(value):
    ramp = torch.linspace(0, 0.5, 100).view(1, 1, 10, 10).clone()
    usual = usual_noise(ramp)._replace(deviation=1.0)  # no noise to smooth besides
    specked = ramp.clone()
    specked[0, 0, 4, 5] = value
    around = [ramp[0, 0, i, j] for i in (3, 4, 5) for j in (4, 5, 6) if (i, j) != (4, 5)]
    found = smoothed(specked, usual)
    assert found[0, 0, 4, 5] == torch.stack(around).median()
    same = torch.ones_like(ramp, dtype=torch.bool)
    same[0, 0, 4, 5] = False
    assert torch.equal(found[same], ramp[same])
    # Two neighbours that are alike are a shape.
    specked[0, 0, 4, 6] = specked[0, 0, 5, 5] = value
    assert (smoothed(specked, usual) == value).sum() == 3


def test_images_too_small_for_a_stencil_are_left_alone():
    assert usual_noise(torch.rand(4, 1, 1, 50)) is None
    assert usual_noise(torch.rand(4, 1, 2, 2)) is None


def test_an_image_is_smoothed_alone_as_among_others():
    images = torch.cat([shapes(4), noisy(shapes(4), 0.2), noisy(shapes(4), 0.4)])
    usual = usual_noise(shapes())
    together = smoothed(images, usual)
    assert torch.equal(together[:4], images[:4])
    for k in range(len(images)):
        assert torch.equal(smoothed(images[k : k + 1], usual)[0], together[k])
