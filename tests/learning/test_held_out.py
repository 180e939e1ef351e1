"""What held-out images tell: weights that mean what they say, the gate, edges that are cut, mirrored images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from posed_digits import avae_of, digits

from sk_avae.learning import held_out, search_models
from sk_avae.learning.calibration import calibrate, calibrate_weights
from sk_avae.learning.perturbation import Places, perturb, random_places
from sk_avae.learning.search_models import n_held_out
from sk_avae.search.certainty import hypothesis_weights

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("temperature", "none"), [(5.0, -1.0), (40.0, 0.5), (10.0, -5.0)])
def test_weights_and_what_they_leave_to_none_are_recovered(temperature, none):
    n, k = 8000, 3
    score = (4 * temperature * torch.randn(n, k, generator=generator(1))).sort(dim=1, descending=True).values
    share = hypothesis_weights(score / temperature, torch.zeros(n, k, dtype=torch.bool), none)
    drawn = torch.multinomial(torch.cat([share, 1 - share.sum(dim=1, keepdim=True)], dim=1), 1, generator=generator(2))
    right = torch.zeros(n, k + 1, dtype=torch.bool).scatter_(1, drawn, True)[:, :k]
    found = calibrate_weights(score, right)
    assert found[0] == pytest.approx(temperature, rel=0.1)
    assert found[1] == pytest.approx(none, abs=0.35)


def test_hypotheses_that_repeat_others_have_no_part():
    score = torch.tensor([[3.0, 1.0, -math.inf]] * 20 + [[3.0, 2.0, -math.inf]] * 20)
    right = torch.zeros(40, 3, dtype=torch.bool)
    right[:25, 0] = right[25:30, 1] = True
    assert calibrate_weights(score, right) == pytest.approx(calibrate_weights(score[:, :2], right[:, :2]), rel=1e-6)


def test_weights_leave_nothing_to_none_where_that_was_not_learned():
    score = torch.randn(20, 4, generator=generator()).sort(dim=1, descending=True).values
    plain = hypothesis_weights(score, score == -math.inf)
    torch.testing.assert_close(plain.sum(dim=1), torch.ones(20))
    some = hypothesis_weights(score, score == -math.inf, none_right=0.0)
    assert (some.sum(dim=1) < 0.9).all()
    torch.testing.assert_close(some / some.sum(dim=1, keepdim=True), plain)


def test_two_opinions_get_the_weights_that_they_are_worth():
    n, k = 6000, 4
    energy, *opinions = (torch.randn(n, k, generator=generator(seed)) for seed in range(3))
    total = (100 * energy) / 10 + 2 * opinions[0] + 0.5 * opinions[1]
    right = torch.zeros(n, k, dtype=torch.bool).scatter_(
        1, torch.multinomial(total.softmax(dim=1), 1, generator=generator(5)), True
    )
    found = calibrate(torch.stack(opinions, dim=2), 100 * energy, right)
    assert found.temperature == pytest.approx(10, rel=0.15)
    assert found.weights == pytest.approx((20, 5), rel=0.25)


# ---------------------------------------------------------------- the gate


def test_the_gate_lets_a_hundredth_through(monkeypatch):
    gains = (
        torch.distributions.Exponential(0.1).sample((4000,))
        if False
        else -10 * torch.rand(4000, generator=generator()).log()
    )

    class Part:
        gain = gains

    monkeypatch.setattr(held_out, "align_in_parts", lambda *args: [Part])
    gate = held_out._gate(None, None, None, None)
    assert (gains > gate).float().mean() == pytest.approx(0.01, abs=0.003)
    Part.gain = gains[:40]
    few = held_out._gate(None, None, None, None)
    assert 0.001 < math.exp(-few / 10) < 0.04
    Part.gain = torch.zeros(10)
    assert held_out._gate(None, None, None, None) == 0


def test_upright_images_that_fit_has_not_seen_stay_where_they_are(fitted, digits):
    found = fitted.align(digits.X_test)
    moved = (found.gain > fitted.min_gain_).mean()
    assert moved < 0.05


# ---------------------------------------------------------------- what the networks are shown


def test_some_images_are_cut_off_at_the_centres_of_their_outermost_pixels():
    model, images = avae_of("rotation"), torch.ones(2, 1, 8, 8)
    alpha = torch.full((2, 1), math.pi / 4)
    faded, cut = perturb(model, images, Places(alpha, is_cut=torch.tensor([False, True])))[0]
    assert ((faded > 0.01) & (faded < 0.99)).any()
    inside = (cut > 0.99).sum()
    assert not ((cut > 0.01) & (cut < 0.99)).any()
    assert 0 < inside < (faded > 0.01).sum()
    reflecting = replace(model, padding="reflect")
    both = perturb(reflecting, images, Places(alpha, is_cut=torch.tensor([False, True])))[0]
    assert torch.equal(both[0], both[1])


def test_half_of_the_places_are_cut():
    places = random_places(avae_of("affine"), digits("test", 400), generator())
    assert 0.4 < places.is_cut.float().mean() < 0.6
    assert places.of(slice(3, 7)).alpha.shape == (4, 6)


def test_mirrored_images_teach_where_they_are_as_probable():
    model = avae_of("rotation")
    images = digits("test", 80)
    assert not search_models._are_mirrored_too(model, images)
    both_ways = torch.cat([images[:40], images[:40].flip(3)])
    assert search_models._are_mirrored_too(model, both_ways)
    assert not search_models._are_mirrored_too(avae_of("rotation+reflection"), both_ways)


# ---------------------------------------------------------------- the last epochs


def test_the_vae_learns_from_all_images_in_the_end(small_avae, digits):
    model = small_avae(max_epochs=8, learned_starts=False, critic=False)
    kept = model.fit(digits.X[:400])
    plain = small_avae(max_epochs=8, learned_starts=False, critic=False, validation_fraction=0.2).fit(digits.X[:400])
    assert kept.score_samples(digits.X[:400]).mean() > plain.score_samples(digits.X[:400]).mean()
    assert len(kept.history_) == len(plain.history_) == 8


@pytest.mark.parametrize("n", [63, 64, 300, 10_000])
def test_so_many_images_are_held_out(n):
    assert n_held_out(n) == {63: 0, 64: 16, 300: 60, 10_000: 500}[n]


def test_the_proposer_says_something_of_every_pose(fitted, turned):
    aligner = fitted._aligner()
    images = aligner.to_model(turned.X[:50])
    posterior = aligner.initializer.posterior(aligner.model, images)
    rows, at = torch.arange(50), torch.linspace(-math.pi, math.pi, 97)
    said = torch.stack([posterior.at(rows, a.expand(50, 1)) for a in at], dim=1)
    assert torch.isfinite(said).all()
    torch.testing.assert_close(said[:, 0], said[:, -1], atol=1e-4, rtol=1e-4)
    best = at[said.argmax(dim=1)].numpy()
    miss = np.abs(np.angle(np.exp(1j * (best - turned.alpha[:50, 0]))))
    assert np.median(miss) < 0.3
    assert aligner.models.proposer_weight > 0
