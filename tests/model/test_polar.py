"""The network that turns with its image: what a turn does to its answer, and what does nothing to it."""

import math

import pytest
import torch
import torch.nn.functional as F

from sk_avae.model.affine import to_matrix, warp
from sk_avae.model.polar import N_ANGLES, PolarNetwork, angles

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

SHAPES = [(1, 28, 28), (1, 23, 28), (3, 32, 32), (1, 8, 8), (2, 1, 9), (1, 64, 70)]


def network(shape, n_outputs=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PolarNetwork(shape, n_outputs).eval().requires_grad_(False)


def images(shape, n=40):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def smooth(n=6, side=32):
    """Blobs in a disc, which a turn by any angle hardly changes."""
    blurred = F.avg_pool2d(images((1, side, side), n), 7, stride=1, padding=3)
    x = torch.linspace(-1, 1, side)
    return 10 * (blurred - 0.5) * torch.exp(-3 * (x[:, None] ** 2 + x**2))


def test_angles_are_the_centres_of_bins():
    centres = angles(torch.zeros(1))
    assert len(centres) == N_ANGLES
    torch.testing.assert_close(centres[0].item(), -math.pi + math.pi / N_ANGLES)
    torch.testing.assert_close(centres.diff(), torch.full((N_ANGLES - 1,), 2 * math.pi / N_ANGLES))
    assert angles(torch.zeros(1), 4).rad2deg().round().tolist() == [-135, -45, 45, 135]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_image_has_the_same_answers_at_other_angles(quarters):
    answer, given = network((1, 28, 28)), images((1, 28, 28))
    turned = torch.rot90(given, quarters, (2, 3))
    expected = answer(given).roll(quarters * N_ANGLES // 4, dims=1)
    torch.testing.assert_close(answer(turned), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bins", [5, -7, 20])
def test_so_has_an_image_turned_by_any_number_of_bins(bins):
    answer, given = network((1, 32, 32)), smooth()
    angle = torch.full((len(given), 1), bins * 2 * math.pi / N_ANGLES)
    # `warp` by the inverse puts an image into a pose.
    turned = warp(given, to_matrix(-angle, "rotation"))
    expected, found = answer(given).roll(bins, dims=1), answer(turned)
    apart = (found - expected).norm() / (answer(given) - expected).norm()
    assert apart < 0.25


def test_features_are_those_of_a_circular_correlation():
    answer, given = network((1, 28, 28)), images((1, 28, 28), 3)
    waves = torch.fft.rfft(answer.rings, dim=2)
    waves[:, :, -1] = 0  # the highest frequency is left out
    weights, readings = torch.fft.irfft(waves, n=N_ANGLES, dim=2), answer._readings(given)
    features = [(readings.roll(-a, dims=2)[:, :, None] * weights).sum(dim=(1, 3)) for a in range(N_ANGLES)]
    expected = answer.head(F.relu(torch.cat(features) + answer.bias)).view(N_ANGLES, 3, -1).transpose(0, 1)
    torch.testing.assert_close(answer(given), expected, rtol=1e-4, atol=1e-5)


def test_brightness_and_contrast_have_no_part():
    answer, given = network((3, 28, 28)), images((3, 28, 28))
    torch.testing.assert_close(answer(0.3 + 0.5 * given), answer(given), rtol=0, atol=0.05)
    assert answer(torch.full((2, 3, 28, 28), 0.7)).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_image_of_any_shape_has_answers_of_its_own_to_the_bit(shape, n_threads):
    answer, given, before = network(shape), images(shape, 130), torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        whole = answer(given)
        assert whole.shape == (130, N_ANGLES, 3)
        assert whole.isfinite().all()
        for rows in (slice(0, 16), slice(5, 37), slice(3, 64), slice(29, 130)):
            assert torch.equal(answer(given[rows]), whole[rows])
    finally:
        torch.set_num_threads(before)


def test_what_the_corners_show_is_not_read():
    answer, given = network((1, 28, 28)), images((1, 28, 28))
    changed = given.clone()
    changed[:, :, :3, :3] = 1 - changed[:, :, :3, :3]
    assert torch.equal(answer(changed), answer(given))
