"""Joint alignment: poses of training images found while the weights are learned."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from sk_avae import AVAEEstimator
from sk_avae.datasets import make_perturbed
from sk_avae.learning import training_poses
from sk_avae.learning.training_poses import TrainingPoses, agreement, dispersion
from sk_avae.model.affine import parameters_of, to_matrix
from sk_avae.model.avae import AVAE
from sk_avae.model.likelihoods import Bernoulli
from sk_avae.model.prior import prior_scale
from sk_avae.search.align import refine_poses
from sk_avae.search.objective import Objective
from sk_avae.search.screening import screen

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

FAMILIES = ("rotation", "rigid", "similarity", "linear", "affine")


def images_of(avae, X):
    return avae._aligner().to_model(X.reshape(len(X), -1))


def poses_of(avae, images):
    return TrainingPoses(avae._aligner().model, images, avae._aligner().initializer.typical, avae.n_restarts)


def score(model, images, alpha):
    return screen(Objective(model, images), alpha[:, None])[:, 0]


@pytest.fixture(scope="module")
def learned(small_avae, turned):
    """A model of digits in any orientation, which found a pose of its own."""
    return small_avae(align_training=True, max_epochs=15).fit(turned.X)


# ---------------------------------------------------------------- agreeing on a pose


class Blind(nn.Module):
    """A network that gives every image the same loss in every pose."""

    def encode(self, x):
        code = x.new_zeros(len(x), 1)
        return code, code

    def decode(self, z):
        return z.new_zeros(len(z), 1, 28, 28)


def test_images_agree_with_a_mean_image_in_its_pose(fitted, digits):
    images, model = images_of(fitted, digits.X[:1]), fitted._aligner().model
    quarters = torch.arange(4)[None, :, None] * (math.pi / 2)
    upright = agreement(model, images, quarters, images[0])
    assert upright.shape == (1, 4)
    assert upright.argmax() == 0
    turned = torch.rot90(images[0], 1, dims=(1, 2))
    assert_allclose(agreement(model, images, quarters, turned)[0].sort().values, upright[0].sort().values, rtol=1e-4)
    assert agreement(model, images, quarters, turned).argmax() in (1, 3)


def test_a_blind_network_leaves_the_pose_to_the_others(fitted, digits):
    images = images_of(fitted, digits.X[digits.y == 2][:24])
    images = torch.cat([images, torch.rot90(images[:4], 2, dims=(2, 3))])
    model = AVAE(Blind(), Bernoulli(), "rotation", torch.zeros(1), scale=prior_scale(None, "rotation"))
    poses = TrainingPoses(model, images, None, 16, n_agreeing=10**6)
    rows = torch.arange(len(images))
    for _ in range(12):
        poses.improve(rows)
    away = poses.alpha[-4:, 0] - poses.alpha[:4, 0]
    assert (away.cos() < -0.9).all()  # half a turn between an image and its turned copy: one canonical pose


def test_the_agreement_fades_out(fitted, turned):
    images, rows = images_of(fitted, turned.X[:40]), torch.arange(40)
    alpha = []
    for n_agreeing in (0, 1, 10**6):  # the first call has no mean image to agree with yet
        poses = TrainingPoses(fitted._aligner().model, images, None, 16, n_agreeing=n_agreeing)
        alpha.append([poses.improve(rows) for _ in range(3)][-1])
    assert torch.equal(alpha[0], alpha[1])
    assert not torch.equal(alpha[0], alpha[2])


def test_refinement_knows_the_elbo_alone(fitted, turned, monkeypatch):
    images, rows, model = images_of(fitted, turned.X[:40]), torch.arange(40), fitted._aligner().model
    seen = []

    def watched(objective, alpha, loss, settings, **options):
        seen.append((loss, -score(objective.model, objective.images, alpha)))
        return refine_poses(objective, alpha, loss, settings, **options)

    monkeypatch.setattr(training_poses, "refine_poses", watched)
    poses = TrainingPoses(model, images, None, 16, n_agreeing=10**6)
    for _ in range(3):
        poses.improve(rows)
    for given, true in seen:
        assert_allclose(given, true, rtol=1e-5)


# ---------------------------------------------------------------- improving poses


def test_a_pose_never_gets_worse_under_frozen_weights(fitted, turned):
    images = images_of(fitted, turned.X[:40])
    poses, rows, model = poses_of(fitted, images), torch.arange(40), fitted._aligner().model
    last = score(model, images, poses.alpha)
    for _ in range(4):
        alpha = poses.improve(rows)
        now = score(model, images, alpha)
        assert (now >= last - 1e-3).all()
        poses.end_epoch()
        last = now
    assert (last > score(model, images, torch.zeros(40, 1)) + 1).float().mean() > 0.5


def test_a_pose_depends_on_its_image_alone(fitted, turned):
    images = images_of(fitted, turned.X[:40])
    together, some = poses_of(fitted, images), poses_of(fitted, images)
    together.improve(torch.arange(40))
    rows = torch.tensor([31, 2, 17])
    some.improve(rows)
    assert torch.equal(some.alpha[rows], together.alpha[rows])
    others = torch.ones(40, dtype=torch.bool)
    others[rows] = False
    assert (some.alpha[others] == 0).all()


def test_images_that_come_again_start_from_where_they_were(fitted, turned):
    images = images_of(fitted, turned.X[:40])
    poses, rows = poses_of(fitted, images), torch.arange(40)
    for _ in range(8):
        poses.improve(rows)
        figures = poses.end_epoch()
    assert figures["moved"] < 0.05
    assert poses.n_fresh < TrainingPoses(fitted._aligner().model, images, None, 16).n_fresh


def test_constant_images_stay(fitted, turned):
    images = images_of(fitted, turned.X[:3])
    images[1] = 0.7
    poses = poses_of(fitted, images)
    poses.improve(torch.arange(3))
    assert poses.alpha[1] == 0
    assert (poses.alpha[[0, 2]] != 0).all()


class Blank(nn.Module):
    """Wants its image blank, and decodes to blanks."""

    def encode(self, x):
        ink = x.flatten(1).sum(dim=1, keepdim=True)
        return 10 * ink, torch.zeros_like(ink)

    def decode(self, z):
        return torch.full((len(z), 1, 12, 12), -4.0) + 0 * z[:, :, None, None]


@pytest.mark.parametrize("family", ["rigid", "affine"])
def test_no_image_is_pushed_out_of_its_frame(family):
    images = torch.zeros(20, 1, 12, 12)
    images[:, :, 4:8, 5:9] = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    names = parameters_of(family)
    model = AVAE(Blank().eval(), Bernoulli(), family, torch.zeros(1), scale=(math.inf,) * len(names))
    away = torch.zeros(1, len(names))
    away[0, names.index("tx")] = 1.8
    blank = score(model, images, away.expand(20, -1))
    assert (blank > score(model, images, torch.zeros(20, len(names)))).all(), "nothing tempts it away"
    poses = TrainingPoses(model, images, None, 64)
    for _ in range(15):
        alpha = poses.improve(torch.arange(20))
        poses.end_epoch()
    canonical = model.canonical(images, model.matrix(alpha, images))
    area = torch.linalg.det(model.matrix(alpha, images)[:, :, :2]).abs()
    kept = canonical.sum(dim=(1, 2, 3)) * area / images.sum(dim=(1, 2, 3))
    assert (kept > 0.5).all()


def test_mirrored_images_find_their_half(fitted, turned):
    images = images_of(fitted, turned.X[:20])
    model = copy.copy(fitted).set_params(allow_reflection=True)._aligner().model
    poses = TrainingPoses(model, images.flip(3), None, 32)
    for _ in range(8):
        alpha = poses.improve(torch.arange(20))
        poses.end_epoch()
    assert set(alpha[:, -1].tolist()) <= {0.0, 1.0}
    assert alpha[:, -1].mean() > 0.5


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize(
    ("angles", "expected"),
    [([0.3, 0.3], 0.0), ([math.pi - 0.1, 0.1 - math.pi], 0.1), ([0.0, math.pi], math.pi), ([0, 2, 4.0], None)],
)
def test_the_dispersion_of_angles_is_circular(angles, expected):
    found = float(dispersion(torch.tensor(angles)[:, None], "rotation"))
    if expected is None:
        length = abs(np.exp(1j * np.array(angles)).mean())
        expected = math.sqrt(-2 * math.log(length))
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_dispersion_of_other_parameters_is_their_standard_deviation():
    alpha = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    assert_allclose(dispersion(alpha, "affine")[1:], alpha.std(dim=0, correction=0)[1:], rtol=1e-5)


def test_history_tells_what_happened_to_the_poses(learned):
    assert [set(epoch) for epoch in learned.history_] == [{"epoch", "train_loss", "moved", "pose_std_angle"}] * 15
    moved = [epoch["moved"] for epoch in learned.history_]
    assert moved[0] > 0.3 > 3 * moved[-1] >= 0


# ---------------------------------------------------------------- the estimator


def test_a_common_pose_emerges(learned, small_avae, turned):
    """Ones show it best: their poses agree, up to half a turn, with one another and with the truth."""
    error = learned.alpha_[:, 0] - turned.alpha[:, 0]
    ones = error[turned.y == 1]
    assert abs(np.exp(2j * ones).mean()) > 0.7
    unaligned = small_avae(max_epochs=15).fit(turned.X)
    assert learned.score(turned.X) > unaligned.score(turned.X) + 5


def test_alpha_holds_the_training_poses(learned, turned):
    assert learned.alpha_.shape == (len(turned.X), 1)
    assert_array_equal(learned.alpha_[:50], learned.align(turned.X[:50]).alpha)


def test_equal_seeds_learn_equal_poses(small_avae, turned):
    one, other = (small_avae(align_training=True, max_epochs=2).fit(turned.X[:300]) for _ in range(2))
    assert_array_equal(one.alpha_, other.alpha_)
    assert one.history_ == other.history_


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(small_avae, digits, family):
    X, _ = make_perturbed(digits.X[:200], family=family, random_state=0)
    search = {"n_restarts": 16, "max_iter": 200, "tol": 0.5}
    model = small_avae(family=family, align_training=True, max_epochs=5, **search).fit(X)
    assert model.alpha_.shape == (200, len(parameters_of(family)))
    assert np.isfinite(model.alpha_).all()
    assert model.history_[-1]["train_loss"] < model.history_[0]["train_loss"]
    plain = small_avae(family=family, max_epochs=5, **search).fit(X)
    assert -plain.negative_elbo(X, align=False).mean() < model.score(X)


def test_shifts_have_the_units_of_the_image(small_avae, digits):
    X, _ = make_perturbed(digits.X[:200], family="rigid", random_state=0)
    model = small_avae(family="rigid", align_training=True, max_epochs=2, pad=4, max_iter=200).fit(X)
    assert_array_equal(model.alpha_[:20], model.align(X[:20]).alpha)
    assert_allclose(model.align(X[:20]).matrix, to_matrix(torch.tensor(model.alpha_[:20]), "rigid"), atol=1e-6)


@pytest.mark.usefixtures("few_lessons")
def test_critic_and_gate_learn_from_the_canonical_images(small_avae, turned):
    model = small_avae(align_training=True, critic=True, min_gain="auto", max_epochs=8).fit(turned.X[:600])
    assert model.critic_ is not None
    assert model.min_gain_ > 0
    canonical = model.set_params(min_gain=0.0).transform(turned.X[:100])[:, :-1]
    stayed = (model.set_params(min_gain="auto").align(canonical).alpha == 0).all(axis=1)
    assert stayed.mean() > 0.8


def test_held_out_images_are_aligned_too(small_avae, turned):
    model = small_avae(align_training=True, validation_fraction=0.2, max_epochs=6).fit(turned.X[:500])
    assert len(model.alpha_) == 500
    last = model.history_[-1]
    assert last["valid_loss"] < last["train_loss"] * 1.5
    stopping = small_avae(align_training=True, early_stopping=True, n_iter_no_change=1, max_epochs=30, lr=0.02)
    assert stopping.fit(turned.X[:300]).n_iter_ < 30


def test_a_later_fit_without_alignment_forgets_the_poses(small_avae, turned):
    model = small_avae(align_training=True, max_epochs=1).fit(turned.X[:150])
    model.set_params(align_training=False).fit(turned.X[:150])
    assert not hasattr(model, "alpha_")


# ---------------------------------------------------------------- images that teach no pose


def spots(n):
    X = np.zeros((n, 100), dtype=np.float32)
    X[:, 34] = 1
    return X


@pytest.mark.parametrize(
    ("X", "parameters", "message"),
    [
        (np.zeros((200, 100)), {}, "all 200 training images are constant"),
        (np.full((200, 100), 3.0), {"family": "affine"}, "all 200 training images are constant"),
        (spots(200), {}, "all 200 training images are alike"),
        (spots(1), {"batch_size": 1}, "all 1 training images are alike"),
        (np.eye(100), {"batch_size": 128}, "100 training images are fewer than batch_size=128"),
        (np.eye(100), {"family": "similarity", "alpha_prior": dict.fromkeys(("angle", "log_scale", "tx", "ty"), 0)},
         "no parameter of the family 'similarity' is free"),
    ],
)  # fmt: skip
def test_images_without_a_pose_to_learn_are_named(X, parameters, message):
    model = AVAEEstimator(2, align_training=True, max_epochs=3, hidden_layer_sizes=(8,), random_state=0, critic=False)
    with pytest.warns(UserWarning, match=message):
        model.set_params(**{"batch_size": 50, **parameters}).fit(X)
    assert np.isfinite([list(epoch.values()) for epoch in model.history_]).all()
    assert np.isfinite(model.alpha_).all()
    assert np.isfinite(model.transform(X)).all()


@pytest.mark.parametrize("family", ["rigid", "affine"])
def test_canonical_images_do_not_go_blank(small_avae, digits, family):
    X, _ = make_perturbed(digits.X[:200], family=family, random_state=0)
    flat = small_avae(family=family, align_training=True, alpha_prior=None, max_epochs=5, tol=1, pad=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        canonical = flat.fit(X).transform(X)[:, :784]
    ink = canonical.sum(axis=1) / X.sum(axis=1)
    assert (ink > 0.2).mean() > 0.99
    assert np.median(ink) > 0.5
