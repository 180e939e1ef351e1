"""Learned starts: what the proposer predicts, what the search makes of it, and that nothing depends on it."""

import copy
import math
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from sk_avae.affine import FAMILIES, compose, parameters_of, with_reflection
from sk_avae.alignment import prior_scale, same_basin, screen_in_turn
from sk_avae.proposer import Proposer, Starts, moment_pose, propose, rest_of
from sk_avae.starts import moments, random_poses, starting_poses

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

every_family = pytest.mark.parametrize("family", [*FAMILIES, with_reflection("rotation"), with_reflection("affine")])


def model_of(avae, family):
    return replace(avae._model(), family=family, scale=prior_scale("auto", family), metric=None)


def untrained(family, side=28):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Proposer((1, side, side), family).eval().requires_grad_(False)


def images_of(rows):
    return torch.tensor(rows).float().view(-1, 1, 28, 28) / 255


def matrices(model, alpha):
    return model.matrix(alpha.flatten(0, -2), torch.zeros(1, 1, 28, 28)).view(*alpha.shape[:-1], 2, 3)


# ---------------------------------------------------------------- proposals


def test_proposals_are_near_the_true_poses(fitted, turned):
    model, images = fitted._model(), images_of(turned.X)
    alpha, share = propose(fitted.proposer_, model, images, fitted._typical_moments())
    near = same_basin(matrices(model, alpha), matrices(model, torch.tensor(turned.alpha).float()[:, None]))
    # Four angles drawn at random are that near to the true one for four in ten images.
    assert near[:, 0].float().mean() > 0.6
    assert near.any(dim=1).float().mean() > 0.75
    assert (share[:, :-1] >= share[:, 1:]).all()
    assert (share > 0).any(dim=1).all()
    assert share.max() < 1 + 1e-6


def test_proposals_for_stretched_digits_beat_those_of_moments(fitted_with_critic, stretched):
    avae = fitted_with_critic
    model, images, typical = avae._model(), images_of(stretched.X), avae._typical_moments()
    true = matrices(model, torch.tensor(stretched.alpha).float())[:, None]
    learned = propose(avae.proposer_, model, images, typical)[0]
    moments = starting_poses(images, model.background, typical, 12, model.family, model.scale)[:, 4:8]
    distances = [(matrices(model, alpha) - true).flatten(2).norm(dim=2).amin(dim=1) for alpha in (learned, moments)]
    assert distances[0].median() < 0.7 * distances[1].median()


@every_family
def test_proposals_of_an_image_do_not_depend_on_the_others(fitted, turned, family):
    model, images, proposer = model_of(fitted, family), images_of(turned.X[:60]), untrained(family)
    typical = fitted._typical_moments()
    whole = propose(proposer, model, images, typical)
    assert whole[0].shape == (60, 4, len(parameters_of(family)))
    assert all(part.isfinite().all() for part in whole)
    for rows in ([7], [3, 1], list(range(20, 45))):
        for some, all_of_them in zip(propose(proposer, model, images[rows], typical), whole, strict=True):
            assert torch.equal(some, all_of_them[rows])


@every_family
def test_what_is_left_to_find_makes_up_the_pose(fitted, turned, family):
    model, images = model_of(fitted, family), images_of(turned.X[:50])
    alpha = random_poses(50, family, model.scale, torch.Generator().manual_seed(0))
    base = moment_pose(model, images, fitted._typical_moments())
    assert (base is None) == family.startswith("rotation")
    rest = rest_of(model, images, base, alpha)
    base = torch.zeros_like(alpha) if base is None else base
    both = compose(matrices(model, base), matrices(model, rest))
    # A similarity or a rigid motion has no shear that could be left.
    torch.testing.assert_close(both, matrices(model, alpha), rtol=0, atol=1e-4)


def test_a_family_that_reflects_proposes_mirrored_poses(fitted, turned):
    family = with_reflection("rotation")
    proposer = untrained(family)
    alpha, _ = propose(proposer, model_of(fitted, family), images_of(turned.X[:50]), None)
    assert set(alpha[:, :, -1].unique().tolist()) <= {0.0, 1.0}
    assert proposer(torch.zeros(1, 1, 28, 28))[0].shape == (1, 72)


def test_frozen_parameters_are_proposed_at_zero(fitted, turned):
    scale = list(prior_scale("auto", "affine"))
    scale[0] = scale[3] = 0.0
    model = replace(model_of(fitted, "affine"), scale=tuple(scale))
    alpha, _ = propose(untrained("affine"), model, images_of(turned.X[:20]), fitted._typical_moments())
    assert (alpha[:, :, [0, 3]] == 0).all()
    assert alpha[:, :, [1, 2, 4, 5]].abs().min(dim=0).values.max() > 0


# ---------------------------------------------------------------- the search


def test_the_identity_comes_first_and_the_table_last(fitted, turned):
    model, images, typical = fitted._model(), images_of(turned.X[:40]), fitted._typical_moments()
    restarts = Starts(typical, fitted.proposer_).of(model, images, 12)
    table = Starts(typical).of(model, images, 8)
    assert restarts.alpha.shape == (40, 12, 1)
    assert table.first is None
    assert_array_equal(restarts.alpha[:, [0, *range(5, 12)]], table.alpha)
    assert restarts.first[:, :2].all()
    sure = ~restarts.first[:, -1]
    assert 0 < sure.sum() < 40
    assert (restarts.first[sure].sum(dim=1) <= 5).all()
    assert restarts.first[~sure].all()


@pytest.mark.parametrize("n_restarts", [1, 2, 4, 5, 6])
def test_restarts_are_never_more_than_asked_for(fitted, turned, n_restarts):
    restarts = Starts(None, fitted.proposer_).of(fitted._model(), images_of(turned.X[:20]), n_restarts)
    assert restarts.alpha.shape == (20, n_restarts, 1)
    assert (restarts.alpha[:, 0] == 0).all()


def test_images_below_the_floor_get_the_whole_table(fitted, turned):
    model, images = fitted._model(), images_of(turned.X[:40])
    restarts = Starts(None, fitted.proposer_).of(model, images, 12)
    scores = screen_in_turn(model, images, restarts._replace(floor=-math.inf))
    assert torch.equal(scores == -math.inf, ~restarts.first)
    best = scores.amax(dim=1)
    floor = best.median().item()
    again = screen_in_turn(model, images, restarts._replace(floor=floor))
    assert (again[best < floor] > -math.inf).all()
    assert torch.equal(again[best >= floor], scores[best >= floor])


def test_learned_starts_lose_nothing_to_the_table(fitted, turned):
    losses = {
        learned: copy.deepcopy(fitted).set_params(learned_starts=learned).negative_elbo(turned.X).mean()
        for learned in (True, False)
    }
    assert losses[True] < losses[False] + 0.5


def test_images_unlike_any_training_image_are_aligned_as_without(fitted):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 784)).astype(np.uint8)
    losses = [
        copy.deepcopy(fitted).set_params(learned_starts=learned, n_refine=4).negative_elbo(noise)
        for learned in (True, False)
    ]
    assert losses[0].mean() < losses[1].mean() + 5


# ---------------------------------------------------------------- the estimator


def test_turned_off_later_it_is_as_if_it_never_was(small_avae, digits, turned):
    settings = {"max_epochs": 2, "n_restarts": 8}
    with_starts = small_avae(**settings).fit(digits.X[:300])
    without = small_avae(learned_starts=False, **settings).fit(digits.X[:300])
    assert without.proposer_ is None
    for name, tensor in without.module_.state_dict().items():
        assert torch.equal(with_starts.module_.state_dict()[name], tensor), name
    found = with_starts.set_params(learned_starts=False).align(turned.X[:30])
    expected = without.align(turned.X[:30])
    assert_array_equal(found.alpha, expected.alpha)


def test_too_few_images_leave_no_proposer(small_avae, digits):
    assert small_avae(max_epochs=1).fit(digits.X[:99]).proposer_ is None


@pytest.mark.parametrize("changed", [{"family": "rigid"}, {"allow_reflection": True}, {"alpha_prior": {"angle": 0.1}}])
def test_a_search_that_fit_did_not_know_does_without(avae, turned, changed):
    found = avae.set_params(**changed).align(turned.X[:10])
    assert np.isfinite(found.elbo).all()


def test_a_parameter_that_was_frozen_in_fit_moves_when_it_is_freed(small_avae, digits, turned):
    avae = small_avae(family="rigid", alpha_prior={"angle": 0}, max_epochs=2).fit(digits.X[:200])
    assert not avae.transform(turned.X[:20])[:, 784].any()
    assert avae.set_params(alpha_prior="auto").transform(turned.X[:20])[:, 784].any()


def test_starts_survive_a_file(fitted, turned, tmp_path):
    joblib.dump(fitted, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    assert loaded.proposer_.family == fitted.proposer_.family
    assert loaded.proposer_.floor == fitted.proposer_.floor
    assert_array_equal(loaded.transform(turned.X[:20]), fitted.transform(turned.X[:20]))


def test_a_prior_wider_than_in_fit_does_without(small_avae, digits):
    narrow = small_avae(alpha_prior={"angle": 0.1}, max_epochs=2).fit(digits.X[:200])
    upside_down = digits.X_test[:50, ::-1].copy()
    widened = narrow.set_params(alpha_prior="auto").align(upside_down).alpha
    assert_array_equal(widened, narrow.set_params(learned_starts=False).align(upside_down).alpha)


def test_whitening_needs_a_shear(fitted, turned):
    images, typical = images_of(turned.X[:100]), fitted._typical_moments()
    for family in ("rigid", "similarity"):
        assert moment_pose(model_of(fitted, family), images, typical)[:, 0].abs().max() < 1e-5
    model = model_of(fitted, "affine")
    white = model.canonical(images, matrices(model, moment_pose(model, images, typical)))
    covariance = moments(white, model.background).covariance
    assert (covariance - typical.covariance).abs().amax(dim=(1, 2)).median() < 0.02
