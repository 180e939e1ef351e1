"""Calibration: the temperature, the weight of the critic, and how far poses spread."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sk_avae.learning.calibration import calibrate, calibrate_confidence, pose_spread
from sk_avae.learning.critic_training import choice_loss
from sk_avae.model.affine import FAMILIES

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

INFINITE = math.inf


def calibrated(scores, energy, right):
    """Temperature and weight of one opinion."""
    found = calibrate(scores[:, :, None], energy, right)
    return found.temperature, found.weights[0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def synthetic(temperature, weight=0.0, n=6000, k=4):
    """Draw scores and energies, and the right hypothesis with the probabilities that these are calibrated to."""
    energy = -100 + 3 * temperature * torch.randn(n, k, generator=generator(1))
    scores = torch.randn(n, k, generator=generator(2))
    probabilities = (scores * weight + energy / temperature).softmax(dim=1)
    drawn = torch.multinomial(probabilities, 1, generator=generator(3))
    return scores, energy, torch.zeros(n, k, dtype=torch.bool).scatter_(1, drawn, True)


@pytest.mark.parametrize("temperature", [3.0, 20.0, 150.0])
def test_calibration_recovers_a_known_temperature(temperature):
    _, energy, right = synthetic(temperature)
    found, _ = calibrated(torch.zeros_like(energy), energy, right)
    assert found == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize(("temperature", "weight"), [(10.0, 1.5), (40.0, 0.5)])
def test_calibration_recovers_the_weight_of_the_critic_in_nats(temperature, weight):
    scores, energy, right = synthetic(temperature, weight)
    found, nats = calibrated(scores, energy, right)
    assert found == pytest.approx(temperature, rel=0.1)
    assert nats == pytest.approx(weight * temperature, rel=0.15)


def test_a_critic_that_knows_nothing_gets_no_weight():
    _, energy, right = synthetic(10.0)
    noise = torch.randn(energy.shape, generator=generator(9))
    _, nats = calibrated(noise, energy, right)
    assert nats < 2


def test_a_common_shift_of_an_image_s_energies_means_nothing():
    scores, energy, right = synthetic(10.0, 1.0, n=800)
    shifted = energy + 500 * torch.randn(800, 1, generator=generator(4))
    assert calibrated(scores, shifted, right) == pytest.approx(calibrated(scores, energy, right), rel=1e-3)


def test_repetitions_and_images_that_teach_nothing_do_not_count():
    scores, energy, right = synthetic(10.0, 1.0, n=800)
    expected = calibrated(scores, energy, right)
    repeated = [torch.cat([tensor, tensor[:, -1:]], dim=1) for tensor in (scores, energy, right)]
    repeated[1][:, -1], repeated[2][:, -1] = -INFINITE, False
    assert calibrated(*repeated) == pytest.approx(expected, rel=1e-6)
    for answer in (False, True):
        more = [torch.cat([tensor, tensor]) for tensor in (scores, energy, right)]
        more[2][800:] = answer
        assert calibrated(*more) == pytest.approx(expected, rel=1e-6)


def test_nothing_to_learn_from_takes_the_elbo_at_its_word():
    scores, energy, _ = synthetic(10.0, n=5)
    for answer in (False, True):
        assert calibrated(scores, energy, torch.full((5, 4), answer)) == (1.0, 1.0)


@pytest.mark.parametrize("perfect", [True, False])
def test_the_temperature_stays_within_bounds(perfect):
    energy = torch.randn(300, 4, generator=generator()) * (1e3 if perfect else 1e-3)
    best = energy.argmax(dim=1, keepdim=True)
    right = torch.zeros(300, 4, dtype=torch.bool).scatter_(1, best if perfect else (best + 1) % 4, True)
    temperature, nats = calibrated(torch.zeros_like(energy), energy, right)
    assert 1 <= temperature <= 1000
    assert math.isfinite(nats)


@pytest.mark.parametrize("seed", range(20))
def test_calibration_finds_the_best_temperature_and_weight(seed):
    draw = generator(seed)
    right = torch.zeros(60, 2, dtype=torch.bool)
    right[:, 0] = torch.rand(60, generator=draw) < 0.9
    right[:, 1] = ~right[:, 0]
    scores = torch.randn(60, 2, generator=draw) + 4 * right * torch.rand(1, generator=draw)
    log_joint = 20 * torch.randn(60, 2, generator=draw) + 30 * right * torch.rand(1, generator=draw)

    def loss(temperature, weight):
        return float(choice_loss(scores * weight + log_joint / temperature, right))

    temperature, weight = calibrated(scores, log_joint, right)
    grid = [(math.exp(t), math.exp(w)) for t in range(7) for w in range(-5, 6)]
    assert loss(temperature, weight / temperature) < min(loss(*point) for point in grid) + 1e-2


def test_a_long_step_of_the_line_search_does_no_harm():
    """What a critic said of hypotheses for 100 digits: from here the line search stepped to a weight of e^800."""
    with np.load(Path(__file__).parents[1] / "data" / "choices.npz") as choices:
        scores, log_joint, right = (torch.from_numpy(choices[name]) for name in ("scores", "log_joint", "right"))
    temperature, weight = calibrated(scores, log_joint, right)
    assert temperature == pytest.approx(2.27, abs=0.05)  # the optimum of a grid
    assert weight / temperature == pytest.approx(1.64, abs=0.05)


# ---------------------------------------------------------------- the spread of poses


def spread_of(family, error):
    true = torch.randn(error.shape, generator=generator(7))
    return pose_spread(true + error, true, torch.full_like(true, 0.03), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spread_is_what_the_curvature_does_not_explain(family):
    n_params = len(FAMILIES[family])
    own = torch.linspace(0.05, 0.2, n_params)
    noise = torch.randn(8000, n_params, generator=generator())
    error = (0.03**2 + own**2).sqrt() * noise
    torch.testing.assert_close(spread_of(family, error), own, rtol=0.06, atol=0)
    # An error by a whole turn is none.
    error[:, 0] += 2 * math.pi
    torch.testing.assert_close(spread_of(family, error), own, rtol=0.06, atol=0)


def test_errors_that_the_curvature_explains_leave_no_spread():
    error = 0.02 * torch.randn(2000, 3, generator=generator())
    assert torch.equal(spread_of("rigid", error), torch.zeros(3))


def test_too_few_poses_tell_no_spread():
    error = 0.1 * torch.randn(400, 3, generator=generator())
    assert torch.equal(spread_of("rigid", error[:9]), torch.zeros(3))
    assert (spread_of("rigid", error[:10]) > 0).any()


# ---------------------------------------------------------------- confidence


@pytest.mark.parametrize("opinion", [0.0, 1.5])
def test_confidence_is_calibrated_on_what_both_opinions_are_worth(opinion):
    n = 20_000
    by_search, by_proposer = (2 * torch.randn(n, generator=generator(seed)).double() for seed in (1, 2))
    truth = torch.sigmoid(0.6 * by_search + opinion * by_proposer + 0.4)
    right = torch.rand(n, generator=generator(3)).double() < truth
    found = calibrate_confidence(torch.sigmoid(by_search), torch.sigmoid(by_proposer), right)
    assert found == pytest.approx((0.6, opinion, 0.4), abs=0.06)
    said = found.of(torch.sigmoid(by_search), torch.sigmoid(by_proposer))
    assert (said - truth).abs().mean() < 0.01


@pytest.mark.parametrize("right", [True, False])
def test_confidence_without_a_counterexample_stays_within_bounds(right):
    chance = torch.linspace(0.5, 0.999, 60).double()
    found = calibrate_confidence(chance, torch.full_like(chance, 0.5), torch.full((60,), right))
    said = found.of(chance, torch.full_like(chance, 0.5))
    assert found.chance >= 0
    assert found.agreement >= 0
    assert ((said > 0) & (said < 1)).all()
    assert (said.mean() > 0.9) if right else (said.mean() < 0.2)
