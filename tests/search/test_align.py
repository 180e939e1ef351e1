"""Alignment: what it finds, and that an image's answer is its own to the bit."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from posed_digits import aligned, avae_of, candidates, digits, network, turned
from torch import nn

from sk_avae.model.affine import FAMILIES, compose, identity_matrix, to_matrix, with_reflection
from sk_avae.model.batches import images_per_batch
from sk_avae.search.align import align, refine_poses
from sk_avae.search.descent import Race
from sk_avae.search.objective import Objective
from sk_avae.search.screening import CandidatePoses, distinct_best, screen
from sk_avae.search.settings import SearchSettings

every_family = pytest.mark.parametrize("family", FAMILIES)

# ---------------------------------------------------------------- align: an image alone and in company


def assert_same_rows(part, whole, rows):
    for name, values in part.arrays().items():
        assert torch.equal(values, whole.arrays()[name][rows]), name


@pytest.mark.parametrize("family", ["rotation", "affine"])
@pytest.mark.parametrize(("vae", "n"), [("mlp", 250), ("conv", 40)])
def test_a_row_alone_is_the_row_in_a_batch_bit_for_bit(vae, n, family):
    model = avae_of(family, vae=vae)
    images, _ = turned(digits(n=n), family)
    settings = {"n_restarts": 8, "max_iter": 5}
    whole = aligned(model, images, **settings)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for rows in [*order[:4, None], order, order[:2], order[:7], order[:17], order[: n // 2 + 1]]:
        assert_same_rows(aligned(model, images[rows], **settings), whole, rows)


def test_the_batch_of_that_test_spans_several_blocks():
    assert images_per_batch(digits(n=1)) < 250 * 7


# ---------------------------------------------------------------- align: what it finds


@pytest.mark.parametrize("family", ["rotation", "rigid"])
def test_the_pose_of_perturbed_digits_is_recovered(family):
    originals = digits(n=200)
    images, true = turned(originals, family)
    model = avae_of(family)
    n_restarts = 16 if family == "rotation" else 48
    # A digit as it was written has a pose of its own; perturbing it comes on top.
    own = to_matrix(aligned(model, originals, n_restarts).alpha, family)
    found = to_matrix(aligned(model, images, n_restarts, n_refine=3).alpha, family)
    error = (found - compose(to_matrix(true, family), own)).flatten(1).norm(dim=1)
    unaligned = (identity_matrix(200, found) - compose(to_matrix(true, family), own)).flatten(1).norm(dim=1)
    assert error.median() < 0.15 < unaligned.median()


def test_aligning_closes_most_of_the_gap_to_upright_digits():
    originals = digits(n=200)
    images, _ = turned(originals)
    model = avae_of()
    result = aligned(model, images)
    upright = aligned(model, originals).elbo_identity.mean()
    closed = (result.elbo - result.elbo_identity).mean() / (upright - result.elbo_identity.mean())
    assert closed > 0.8


@every_family
def test_result_is_consistent(family):
    images, _ = turned(digits(n=30), family)
    model = avae_of(family)
    result = aligned(model, images, n_refine=3, max_iter=8)
    n_params = len(FAMILIES[family])
    assert result.hypotheses.shape == (30, 3, n_params)
    assert torch.equal(result.hypotheses[:, 0], result.alpha)
    assert torch.equal(result.hypothesis_elbo[:, 0], result.elbo)
    with torch.no_grad():
        torch.testing.assert_close(result.elbo_identity, model.elbo(images), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(result.elbo, model.elbo(images, result.alpha), rtol=1e-4, atol=1e-2)
    assert (result.n_iter <= 8).all()
    assert result.converged.dtype == torch.bool
    assert not any(tensor.requires_grad for tensor in result.arrays().values())


def energies(model, images, result):
    """ELBO, log prior and what the critic says of each hypothesis, written out."""
    n, k, n_params = result.hypotheses.shape
    poses, images = result.hypotheses.reshape(-1, n_params), images.repeat_interleave(k, dim=0)
    with torch.no_grad():
        energy = model.elbo(images, poses) + model.log_prior(poses) + model.critic_score(images, poses)
    return energy.view(n, k)


@every_family
def test_hypotheses_come_best_first_and_beat_the_identity(family):
    images, _ = turned(digits(n=30), family)
    model = avae_of(family)
    result = aligned(model, images, n_refine=4, max_iter=8)
    distinct = result.hypothesis_weight > 0
    energy = energies(model, images, result)
    for row in range(30):
        assert (energy[row, distinct[row]].diff() <= 1e-2).all()
    assert (energy[:, 0] >= result.elbo_identity - 1e-2).all()
    assert (energy[:, 0] > result.elbo_identity).sum() > 20
    torch.testing.assert_close(result.gain, energy[:, 0] - result.elbo_identity, rtol=1e-4, atol=1e-2)


def distances(model, images, hypotheses):
    """How far the matrices of an image's hypotheses lie apart, of shape (n, k, k)."""
    n, k, _ = hypotheses.shape
    flat = model.matrix(hypotheses.reshape(n * k, -1), images).view(n, k, 6)
    return (flat[:, :, None] - flat[:, None]).norm(dim=3)


@pytest.mark.parametrize("family", [*FAMILIES, with_reflection("rigid")])
def test_hypotheses_are_distinct_and_repetitions_come_last_with_weight_zero(family):
    images, _ = turned(digits(n=60), family.removesuffix("+reflection"))
    model = avae_of(family)
    # Hot enough that none is given up, nor weighs less than a float can hold.
    result = aligned(model, images, n_restarts=24, n_refine=6, temperature=1e3)
    weight, apart = result.hypothesis_weight, distances(model, images, result.hypotheses)
    counts = weight > 0
    assert (counts.long().diff(dim=1) <= 0).all()
    assert counts[:, 0].all()
    assert 60 < counts.sum() < 6 * 60
    different = ~torch.eye(6, dtype=torch.bool)
    for row in range(60):
        pairs = apart[row][counts[row]][:, counts[row]]
        assert (pairs[different[: len(pairs), : len(pairs)]] > 0.5).all()
        # What is pushed back is near one that counts.
        assert (apart[row][~counts[row]][:, counts[row]].amin(dim=1) < 0.6).all()


@pytest.mark.parametrize("temperature", [1.0, 12.0])
def test_weights_are_the_softmax_of_the_energy_over_the_temperature(temperature):
    images, _ = turned(digits(n=60), "affine")
    model = avae_of("affine")
    result = aligned(model, images, n_restarts=24, n_refine=5, temperature=temperature)
    weight = result.hypothesis_weight
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(60))
    assert (weight.diff(dim=1) <= 0).all()
    energy = energies(model, images, result).masked_fill(weight == 0, -math.inf)
    torch.testing.assert_close(weight, (energy / temperature).softmax(dim=1), rtol=0.02, atol=1e-3)
    assert ((weight[:, 0] > 0.05) & (weight[:, 0] < 0.95)).sum() > 5


def test_a_boundless_temperature_leaves_all_distinct_hypotheses_alike():
    images, _ = turned(digits(n=30))
    weight = aligned(avae_of(), images, n_refine=4, temperature=1e9).hypothesis_weight
    counts = weight > 0
    torch.testing.assert_close(weight, counts / counts.sum(dim=1, keepdim=True), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("temperature", "margin"), [(0.1, 10.0), (2.5, 10.0), (3.0, 12.0), (100.0, 400.0)])
def test_a_hypothesis_is_given_up_ten_nats_and_four_temperatures_behind(monkeypatch, temperature, margin):
    margins = []

    def spy(owner, bonus, margin):
        margins.append(margin)
        return Race(owner, bonus, margin)

    monkeypatch.setattr("sk_avae.search.align.Race", spy)
    aligned(avae_of(), turned(digits(n=2))[0], temperature=temperature)
    assert margins == [pytest.approx(margin)]


def test_more_restarts_and_longer_refinement_do_not_hurt():
    images, _ = turned(digits(n=100))
    model = avae_of()
    cheap = aligned(model, images, 4, n_refine=4, max_iter=2).elbo
    assert (aligned(model, images, 4, n_refine=4, max_iter=10).elbo >= cheap).all()
    assert aligned(model, images, 16, n_refine=4, max_iter=2).elbo.mean() > cheap.mean()


def test_a_prior_holds_the_pose_back():
    images, _ = turned(digits(n=50), "rigid")
    free = aligned(avae_of("rigid", None), images, 32)
    held = aligned(avae_of("rigid", {"tx": 0.02, "ty": 0.02}), images, 32)
    assert held.alpha[:, 1:].norm() < 0.5 * free.alpha[:, 1:].norm()


@every_family
def test_frozen_parameters_stay_at_exactly_zero(family):
    name = FAMILIES[family][-1]
    images, _ = turned(digits(n=10), family)
    result = aligned(avae_of(family, {name: 0}), images, max_iter=5)
    assert not result.alpha[:, -1].any()
    assert result.alpha.any() == (len(FAMILIES[family]) > 1)


def test_min_gain_keeps_the_identity_exactly():
    images, _ = turned(digits(n=40))
    model = avae_of()
    free = aligned(model, images)
    gain = free.elbo - free.elbo_identity
    gated = aligned(model, images, min_gain=float(gain.median()))
    stays = gain <= gain.median()
    assert torch.equal(gated.alpha[~stays], free.alpha[~stays])
    assert not gated.alpha[stays].any()
    assert torch.equal(gated.elbo[stays], gated.elbo_identity[stays])
    assert torch.equal(gated.gain, free.gain)
    assert not gated.hypotheses[stays, 0].any()
    assert gated.converged[stays].all()


@pytest.mark.parametrize("family", ["rotation", "linear"])
def test_an_image_that_stays_has_the_identity_first_and_loses_no_other_hypothesis(family):
    images = torch.cat([digits(n=60), turned(digits(n=60), family)[0]])
    model = avae_of(family)
    free = aligned(model, images, 24, n_refine=4, temperature=1e4)
    # As hot as the gate is high, so that nothing but a repetition has the weight 0.
    gated = aligned(model, images, 24, n_refine=4, min_gain=1e4, temperature=1e4)
    assert not gated.hypotheses[:, 0].any()
    assert not gated.alpha.any()
    torch.testing.assert_close(gated.hypothesis_weight.sum(dim=1), torch.ones(120))
    with_identity = torch.cat([torch.zeros_like(free.hypotheses[:, :1]), free.hypotheses], dim=1)
    away = distances(model, images, with_identity)[:, 0, 1:]
    others = ((free.hypothesis_weight > 0) & (away > 0.55)).sum(dim=1)
    assert others.max() >= 3
    # A repetition comes only where nothing else was found.
    assert ((gated.hypothesis_weight > 0).sum(dim=1) >= (1 + others).clamp(max=4)).all()


@pytest.mark.parametrize("min_gain", [0.0, 20.0])
def test_the_weights_of_images_that_stay_count_the_gate_as_the_identity_s(min_gain):
    images = digits(n=100)
    model = avae_of()
    result = aligned(model, images, n_refine=4, min_gain=min_gain, temperature=30.0)
    stays = ~result.alpha.any(dim=1)
    assert stays.any()
    weight = result.hypothesis_weight
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(100))
    assert (weight.diff(dim=1) <= 1e-6).all()
    energy = energies(model, images, result)
    energy[stays, 0] += min_gain
    expected = (energy.masked_fill(weight == 0, -math.inf) / 30.0).softmax(dim=1)
    torch.testing.assert_close(weight, expected, rtol=0.02, atol=1e-3)


def test_images_that_may_not_move_have_one_hypothesis():
    images, _ = turned(digits(n=20))
    model = avae_of()
    movable = torch.arange(20) % 2 == 0
    result = aligned(model, images, n_refine=3, movable=movable)
    free = aligned(model, images, n_refine=3)
    assert not result.alpha[~movable].any()
    expected = torch.tensor([1.0, 0.0, 0.0]).expand(10, 3)
    assert torch.equal(result.hypothesis_weight[~movable], expected)
    assert torch.equal(result.elbo[~movable], result.elbo_identity[~movable])
    for name in ("alpha", "hypotheses", "hypothesis_weight"):
        assert torch.equal(getattr(result, name)[movable], getattr(free, name)[movable]), name


@every_family
@pytest.mark.parametrize("vae", ["mlp", "conv"])
def test_constant_images_stay_at_exactly_the_identity(vae, family):
    constant = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 28, 28)
    model = avae_of(family, vae=vae)
    result = aligned(model, torch.cat([constant, digits(n=2)]), max_iter=5)
    assert not result.alpha[:3].any()
    assert torch.equal(result.elbo[:3], result.elbo_identity[:3])
    assert torch.equal(result.hypothesis_weight[:3], torch.tensor([1.0, 0.0]).expand(3, 2))


# ---------------------------------------------------------------- align: with a critic


class Tops(nn.Module):
    """A critic that likes images whose upper half is the brighter one."""

    def forward(self, images):
        upper, lower = images.chunk(2, dim=2)
        return 1e3 * (upper.mean(dim=(1, 2, 3)) - lower.mean(dim=(1, 2, 3)))


def test_without_a_critic_nothing_is_said():
    assert torch.equal(avae_of().critic_score(digits(n=3), torch.ones(3, 1)), torch.zeros(3))


def test_the_critic_sees_canonical_images():
    images, alpha = turned(digits(n=5), "affine")
    model = replace(avae_of("affine"), critic=Tops().eval())
    torch.testing.assert_close(
        model.critic_score(images, alpha), Tops()(model.canonical(images, model.matrix(alpha, images)))
    )
    assert torch.equal(model.critic_score(images), Tops()(images))


def test_the_critic_decides_which_hypothesis_is_best():
    images, _ = turned(digits(n=80))
    plain, critical = avae_of(), replace(avae_of(), critic=Tops().eval())
    # So hot that no hypothesis is given up for its ELBO.
    alone, with_critic = (aligned(model, images, n_refine=4, temperature=1e3) for model in (plain, critical))
    assert (alone.hypothesis_elbo[:, 0] > with_critic.hypothesis_elbo[:, 0] + 1).sum() > 20
    energy = energies(critical, images, with_critic)
    distinct = with_critic.hypothesis_weight > 0
    assert torch.equal(energy.masked_fill(~distinct, -math.inf).argmax(dim=1), torch.zeros(80, dtype=torch.long))
    gain = energy[:, 0] - with_critic.elbo_identity - critical.critic_score(images)
    moved = with_critic.alpha.any(dim=1)
    assert torch.equal(moved, with_critic.gain > 0)
    torch.testing.assert_close(with_critic.gain[moved], gain[moved], rtol=1e-4, atol=2e-2)
    # The ELBO in the result stays the ELBO.
    with torch.no_grad():
        torch.testing.assert_close(with_critic.elbo, plain.elbo(images, with_critic.alpha), rtol=1e-4, atol=1e-2)


def test_the_critic_has_a_say_in_which_restarts_are_refined():
    images, _ = turned(digits(n=60), "affine")
    critical = replace(avae_of("affine"), critic=Tops().eval())
    starts = candidates(critical, images, 24).alpha
    scores = screen(Objective(critical, images), starts)
    matrices = critical.matrix(starts.reshape(-1, 6), images).view(60, 24, 2, 3)
    shown = distinct_best(scores, matrices, 4)
    owner = torch.arange(60).repeat_interleave(4)
    said = critical.critic_score(images[owner], starts[owner, shown.flatten()]).view(60, 4)
    liked = shown.gather(1, (scores.gather(1, shown) + said).argmax(dim=1, keepdim=True))[:, 0]
    assert (liked != scores.argmax(dim=1)).sum() > 20
    found = align(Objective(critical, images), CandidatePoses(starts), SearchSettings(n_refine=1, max_iter=0))
    moved = found.alpha.any(dim=1)
    assert moved.sum() > 30
    expected = critical.matrix(starts[torch.arange(60), liked], images)
    torch.testing.assert_close(critical.matrix(found.alpha, images)[moved], expected[moved])


def test_restarts_that_the_critic_picks_are_distinct():
    images, _ = turned(digits(n=60))
    critical = replace(avae_of(), critic=Tops().eval())
    # As hot as can be: a weight of 0 is a repetition.
    result = aligned(critical, images, 24, n_refine=4, max_iter=0, temperature=1e9)
    moved = result.alpha.any(dim=1)
    assert moved.sum() > 40
    assert (result.hypothesis_weight[moved] > 0).all()


# ---------------------------------------------------------------- align: on wells whose bottoms are known

BOTTOMS = torch.tensor([[0.5, 0.2, 0.0], [-1.5, 0.0, 0.3], [2.5, -0.2, 0.0]])
BEND = 300.0


class Wells:
    """A model whose loss has a quadratic well at each of `BOTTOMS`, of a depth and with a critic's word per image."""

    family, scale, density = "rigid", (math.inf,) * 3, None

    def __init__(self, losses, words=None):
        self.losses, self.words = torch.tensor(losses), words and torch.tensor(words)
        self.vae = SimpleNamespace(training=False)
        self.critic = words and SimpleNamespace(training=False)

    def _away(self, alpha):
        return (alpha[:, None] - BOTTOMS).square().sum(dim=2)

    def elbo(self, images, alpha=None):
        alpha = images.new_zeros(len(images), 3) if alpha is None else alpha
        return -(self.losses[images[:, 0, 0, 0].long()] + BEND / 2 * self._away(alpha)).amin(dim=1)

    def critic_score(self, images, alpha=None):
        if self.critic is None or alpha is None:
            return images.new_zeros(len(images))
        return self.words[images[:, 0, 0, 0].long()].gather(1, self._away(alpha).argmin(dim=1)[:, None])[:, 0]

    def log_prior_of(self, images, alpha, moments):
        return alpha.new_zeros(len(alpha))

    def moments(self, images):
        return None

    def matrix(self, alpha, images):
        return to_matrix(alpha, "rigid")


def in_wells(model, movable=None, first=None, default_device="cpu", **settings):
    """Align as many images as the model has wells for, from starts near each bottom."""
    n = len(model.losses)
    images = torch.arange(2.0 * n).view(n, 1, 2, 1).expand(n, 1, 2, 2) / 2
    images = torch.cat([torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 1, 2), images[:, :, 1:]], dim=2)
    starts = torch.cat([torch.zeros(1, 3), BOTTOMS + torch.tensor([0.05, -0.04, 0.03])]).expand(n, 4, 3)
    settings = SearchSettings(**{"n_refine": 3, "tol": 1e-4, **settings})
    with torch.device(default_device):
        return align(Objective(model, images), CandidatePoses(starts, first), settings, movable)


LOSSES = [[10.0, 12.0, 13.0], [14.0, 13.0, 9.0]]
AT_IDENTITY = [BEND / 2 * 0.29 + 10.0, BEND / 2 * 0.29 + 14.0]


def test_the_bottoms_of_the_wells_are_found_deepest_first():
    found = in_wells(Wells(LOSSES))
    for i, order in enumerate([[0, 1, 2], [2, 1, 0]]):
        torch.testing.assert_close(found.hypotheses[i], BOTTOMS[order], rtol=0, atol=2e-3)
        depths = torch.tensor(LOSSES[i])[order]
        torch.testing.assert_close(found.hypothesis_elbo[i], -depths, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.hypothesis_weight[i], (-depths).softmax(dim=0), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.elbo_identity, -torch.tensor(AT_IDENTITY))
    torch.testing.assert_close(found.gain, torch.tensor(AT_IDENTITY) - torch.tensor([10.0, 9.0]), rtol=0, atol=1e-3)
    assert found.converged.all()
    assert (found.n_iter > 1).all()


def test_the_number_of_evaluations_is_that_of_the_hypothesis_that_took_the_most():
    every = in_wells(Wells(LOSSES[:1])).n_iter.item()
    alone = [in_wells(Wells([[10.0 + 90 * (i != j) for j in range(3)]]), n_refine=1).n_iter.item() for i in range(3)]
    assert every == max(alone)


def test_a_hypothesis_far_behind_is_given_up_before_its_end_and_hardly_weighs():
    losses = [[10.0, 40.0, 50.0]]
    found, unraced = in_wells(Wells(losses)), in_wells(Wells(losses), temperature=100.0)
    torch.testing.assert_close(unraced.hypothesis_elbo, -torch.tensor(losses), rtol=0, atol=1e-3)
    assert (found.hypothesis_elbo[0, 1:] < -torch.tensor(losses)[0, 1:] - 1e-3).all()
    assert found.converged.all()
    assert found.hypothesis_weight[0, 0] > 0.999
    # No time for any: nothing is given up, and nothing has converged.
    short = in_wells(Wells([[10.0, 12.0, 13.0]]), max_iter=1, tol=1e-9)
    assert not short.converged.any()
    assert short.n_iter.tolist() == [1]


def test_the_critic_s_word_counts_in_the_order_in_the_weights_and_in_the_gain():
    words = [[0.0, 5.0, 1.0]]
    found = in_wells(Wells(LOSSES[:1], words))
    torch.testing.assert_close(found.hypotheses[0], BOTTOMS[[1, 0, 2]], rtol=0, atol=2e-3)
    scores = torch.tensor([-12.0 + 5, -10.0, -13.0 + 1])
    torch.testing.assert_close(found.hypothesis_weight[0], scores.softmax(dim=0), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.hypothesis_elbo[0], torch.tensor([-12.0, -10.0, -13.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.gain, torch.tensor([AT_IDENTITY[0] - 7.0]), rtol=0, atol=1e-3)


def test_the_critic_saves_what_the_elbo_alone_would_give_up():
    losses, words = [[10.0, 60.0, 300.0]], [[0.0, 49.0, 0.0]]
    found = in_wells(Wells(losses, words))
    torch.testing.assert_close(found.hypothesis_elbo[0, :2], torch.tensor([-10.0, -60.0]), rtol=0, atol=1e-3)
    # And decides that it is the one to refine.
    found = in_wells(Wells(losses, [[0.0, 51.0, 0.0]]), n_refine=1)
    torch.testing.assert_close(found.alpha[0], BOTTOMS[1], rtol=0, atol=2e-3)


def test_a_start_that_is_not_tried_is_refined_where_others_run_out_and_the_critic_does_not_hold_that_against_it():
    first = torch.tensor([[True, True, True, False]])
    for words in (None, [[0.0, -3.0, 0.0]]):
        found = in_wells(Wells([[10.0, 12.0, 5.0]], words), first=first, n_refine=4)
        torch.testing.assert_close(found.alpha[0], BOTTOMS[2], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("min_gain", "stays"), [(45.0, True), (42.0, False)])
def test_the_gate_puts_the_identity_before_the_others_with_the_gate_as_its_due(min_gain, stays):
    # The gain is 43.5.
    found = in_wells(Wells(LOSSES[:1]), min_gain=min_gain, temperature=10.0)
    assert (not found.alpha.any()) == stays
    if stays:
        torch.testing.assert_close(found.hypotheses[0, 1:], BOTTOMS[:2], rtol=0, atol=2e-3)
        scores = torch.tensor([-AT_IDENTITY[0] + min_gain, -10.0, -12.0])
        torch.testing.assert_close(found.hypothesis_weight[0], (scores / 10).softmax(dim=0), rtol=1e-3, atol=0)
        assert torch.equal(found.elbo, found.elbo_identity)
    assert found.converged.all()
    torch.testing.assert_close(found.gain, torch.tensor([43.5]), rtol=0, atol=1e-3)


def test_only_what_is_movable_moves_and_has_hypotheses():
    found = in_wells(Wells([*LOSSES, LOSSES[0]]), movable=torch.tensor([True, False, True]))
    assert found.alpha.any(dim=1).tolist() == [True, False, True]
    assert found.hypothesis_weight[1].tolist() == [1.0, 0.0, 0.0]
    assert not found.hypotheses[1, 0].any()
    torch.testing.assert_close(found.gain[1], torch.tensor(AT_IDENTITY[1] - 9.0), rtol=0, atol=1e-3)


def test_the_critic_s_word_on_one_image_is_none_on_another_s_start_that_is_not_tried():
    losses, words = [[10.0, 12.0, 5.0], [10.0, 12.0, 5.0]], [[0.0, -3.0, 0.0], [1e3, 1e3, 1e3]]
    first = torch.tensor([[True, True, True, False]])
    alone = in_wells(Wells(losses[:1], words[:1]), first=first, n_refine=4).arrays()
    both = in_wells(Wells(losses, words), first=first.expand(2, 4), n_refine=4).arrays()
    assert all(torch.equal(both[name][:1], alone[name]) for name in alone)


class Fickle(Wells):
    """Its critic likes the second well above all, but not the start there."""

    def critic_score(self, images, alpha=None):
        if alpha is None:
            return images.new_zeros(len(images))
        start = BOTTOMS[1] + torch.tensor([0.05, -0.04, 0.03])
        second = self._away(alpha).argmin(dim=1) == 1
        return 1e3 * (second & ((alpha - start).norm(dim=1) > 1e-3)).float()


def test_what_was_given_up_is_not_the_best_whatever_the_critic_says_afterwards():
    found = in_wells(Fickle([[10.0, 40.0, 50.0]], [[0.0] * 3]))
    torch.testing.assert_close(found.alpha[0], BOTTOMS[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(found.gain, torch.tensor([43.5]), rtol=0, atol=1e-3)


def test_an_image_without_any_elbo_stays_and_has_none():
    found = in_wells(Wells([LOSSES[0], [math.nan] * 3]))
    assert torch.equal(found.alpha[0], in_wells(Wells(LOSSES[:1])).alpha[0])
    assert not found.alpha[1].any()
    assert found.hypothesis_elbo[1].tolist() == [-math.inf] * 3
    assert found.elbo_identity[1] == -math.inf
    assert found.gain[1] == 0
    assert found.hypothesis_weight[1].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("words", [None, [[0.0, 5.0, 1.0]] * 2])
def test_alignment_is_made_where_the_images_are(words):
    expected = in_wells(Wells(LOSSES, words)).arrays()
    # A tensor that is made without saying where would be of no use.
    found = in_wells(Wells(LOSSES, words), default_device="meta").arrays()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- refine_poses


def refined(alpha_prior, loss=None):
    """Refine three poses of two digits in the family of rigid motions; return them, and the objective."""
    images = turned(digits(n=2), "rigid")[0]
    objective, owner = Objective(avae_of("rigid", alpha_prior), images), torch.tensor([0, 1, 1])
    start = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    known = objective.loss(owner, start)
    loss = known if loss is None else torch.where(loss, known, math.inf)
    return refine_poses(objective, start, loss, SearchSettings(), owner=owner), objective, owner, start


def test_nothing_that_is_free_leaves_poses_where_they_are_and_converged():
    found, objective, owner, start = refined({"angle": 0, "tx": 0, "ty": 0})
    assert torch.equal(found.alpha, start)
    assert torch.equal(found.loss, objective.loss(owner, start))
    assert found.converged.all()
    assert not found.n_iter.any()


@pytest.mark.parametrize("alpha_prior", [{"tx": 0, "ty": 0}, {"tx": 0}], ids=["a line", "a plane"])
def test_poses_are_refined_on_their_own_images_and_unknown_losses_are_evaluated(alpha_prior):
    found, objective, owner, start = refined(alpha_prior)
    again = refined(alpha_prior, torch.tensor([True, False, False]))[0]
    assert (found.loss < objective.loss(owner, start)).all()
    torch.testing.assert_close(objective.loss(owner, found.alpha), found.loss, rtol=1e-4, atol=1e-2)
    assert not found.alpha[:, 1].any()
    assert found.converged.all()
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------- align: manners


def test_a_vae_or_a_critic_in_training_mode_is_refused():
    training = copy.deepcopy(network("conv")).train()
    with pytest.raises(ValueError, match=r"must be in evaluation mode.*call eval\(\)"):
        aligned(replace(avae_of(), vae=training), digits(n=2))
    with pytest.raises(ValueError, match=r"must be in evaluation mode.*call eval\(\)"):
        aligned(replace(avae_of(), critic=Tops().train()), digits(n=2))


@pytest.mark.parametrize("vae", ["mlp", "conv"])
def test_nothing_in_the_model_or_the_images_changes(vae):
    model = avae_of(vae=vae)
    vae = model.vae
    before = copy.deepcopy(vae.state_dict())
    images, _ = turned(digits(n=5))
    pixels = images.clone()
    random_state = torch.get_rng_state()
    aligned(model, images, max_iter=5)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    assert not vae.training
    assert torch.equal(images, pixels)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_aligning_works_within_no_grad():
    images, _ = turned(digits(n=5))
    with torch.no_grad():
        inside = aligned(avae_of(), images)
    assert torch.equal(inside.alpha, aligned(avae_of(), images).alpha)
