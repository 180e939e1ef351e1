"""What `fit` learns for choosing between hypotheses, and what becomes of it: gate, weights, deviations, pickles."""

import copy
import pickle
from dataclasses import replace
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from sk_avae import AVAEEstimator
from sk_avae.learning import search_models
from sk_avae.learning.critic_training import train_critic
from sk_avae.learning.hypotheses import is_right
from sk_avae.learning.search_models import CanonicalImages, Wanted, learn_search_models
from sk_avae.model.affine import to_matrix, wrap_angle
from sk_avae.model.critic import Critic
from sk_avae.progress import SILENT
from sk_avae.search.settings import SearchSettings

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

QUICK = {"max_epochs": 1, "n_restarts": 4, "hidden_layer_sizes": (32,), "latent_size": 4}


def learn(model, **learned):
    """Give a model other search models than those that it learned."""
    models = replace(model.aligner_.models, **learned)
    model.aligner_ = replace(model.aligner_, models=models)


def right(alpha, true, family="linear"):
    """Which poses agree with the true ones."""
    found, expected = (to_matrix(torch.tensor(a).double(), family) for a in (alpha, true))
    return is_right(found, expected).numpy()


@pytest.fixture(scope="module")
def found(fitted_with_critic, stretched):
    """Poses of the stretched digits, with the gate open."""
    return copy.deepcopy(fitted_with_critic).set_params(min_gain=0.0).align(stretched.X)


# ---------------------------------------------------------------- what fit learns


def test_fit_sets_what_the_documentation_names(fitted_with_critic, fitted):
    model = fitted_with_critic
    assert isinstance(model.critic_, Critic)
    assert not model.critic_.training
    assert not any(parameter.requires_grad for parameter in model.critic_.parameters())
    assert 1 <= model.temperature_ <= 1000
    assert list(model.pose_spread_) == ["angle", "log_scale_x", "log_scale_y", "shear"]
    assert all(type(spread) is float and 0.01 < spread < 0.5 for spread in model.pose_spread_.values())
    assert model.min_gain_ > 0
    assert fitted.critic_ is None
    assert fitted.min_gain_ > 0
    assert fitted.temperature_ > 1
    assert list(fitted.pose_spread_) == ["angle"]


@pytest.mark.parametrize(("n", "learned"), [(1, False), (63, False), (64, True)])
def test_too_few_images_leave_no_critic_and_the_elbo_at_its_word(small_avae, digits, turned, n, learned):
    model = small_avae(critic=True, **QUICK).fit(digits.X[:n])
    assert (model.critic_ is not None) == learned
    assert model.temperature_ == 1 or learned
    assert bool(model.pose_spread_) == learned
    assert (model.min_gain_ is not None) == learned
    assert model.transform(turned.X[:5]).shape == (5, 785)
    result = model.align(turned.X[:5])
    assert (result.hypothesis_weight.sum(axis=1) < 1 + 1e-6).all()
    assert np.isfinite(result.confidence).all()
    model.set_params(min_gain="auto")
    if learned:
        assert model.transform(turned.X[:5]).shape == (5, 785)
    else:
        with pytest.raises(ValueError, match="min_gain='auto' is learned from at least 64 images"):
            model.transform(turned.X[:5])
        with pytest.raises(ValueError, match="min_gain='auto' is learned from at least 64 images"):
            clone(model).fit(digits.X[:n])


def test_constant_images_teach_nothing(small_avae, digits):
    X = np.vstack([digits.X[:60], np.full((200, 784), 17)])
    assert small_avae(critic=True, **QUICK).fit(X).critic_ is None
    blank = small_avae(critic=True, **QUICK).fit(X[60:])
    assert blank.critic_ is None
    result = blank.align(X[60:63])
    assert_array_equal(result.hypothesis_weight, [[1, 0]] * 3)
    assert not result.alpha.any()


def test_where_no_parameter_is_free_there_is_nothing_to_choose(small_avae, digits):
    model = small_avae(critic=True, alpha_prior={"angle": 0}, **QUICK).fit(digits.X[:200])
    assert model.critic_ is None
    assert model.pose_spread_ == {}
    result = model.align(digits.X_test[:4])
    assert_array_equal(result.hypothesis_weight, 1)
    assert_array_equal(result.alpha_std, 0)


def test_a_refit_forgets_the_critic(choosy, digits):
    choosy.set_params(max_epochs=1, critic=False, family="rotation").fit(digits.X[:60])
    assert choosy.critic_ is None
    assert (choosy.temperature_, choosy.pose_spread_, choosy.min_gain_) == (1.0, {}, None)


@pytest.mark.usefixtures("few_lessons")
def test_two_fits_with_a_critic_have_the_same_bits_and_the_same_hash(small_avae, digits, turned):
    parameters = {**QUICK, "critic": True, "min_gain": "auto", "allow_reflection": True, "padding": "border"}
    first, second = (small_avae(**parameters).fit(digits.X[:200].copy()) for _ in range(2))
    assert first.critic_ is not None
    assert joblib.hash(first) == joblib.hash(second)
    assert_array_equal(first.transform(turned.X[:5]), second.transform(turned.X[:5]))
    assert joblib.hash(clone(first).fit(digits.X[:200])) == joblib.hash(first)
    assert joblib.hash(first.fit(digits.X[:200])) == joblib.hash(second)
    third = small_avae(**parameters).set_params(random_state=1).fit(digits.X[:200])
    assert third.min_gain_ != first.min_gain_


def test_the_vae_is_the_same_with_and_without_a_critic(small_avae, digits):
    with_critic, without = (small_avae(critic=c, **QUICK).fit(digits.X[:200]) for c in (True, False))
    for name, tensor in without.module_.state_dict().items():
        assert torch.equal(with_critic.module_.state_dict()[name], tensor), name


@pytest.mark.usefixtures("few_lessons")
def test_what_is_learned_follows_the_generator_and_the_images(fitted, digits):
    images = torch.tensor(digits.X[:240]).view(-1, 1, 28, 28) / 255

    def learned(images, seed=0, with_critic=False):
        return learn_search_models(
            fitted._aligner().model,
            CanonicalImages(images),
            Wanted(proposer=False, critic=with_critic, max_epochs=1),
            SearchSettings(4, 1, 5, 1e-2),
            generator=torch.Generator().manual_seed(seed),
            progress=SILENT,
        )

    one, other = learned(images), learned(images, seed=1)
    assert one.critic is None
    assert list(one.pose_spread) == ["angle"]
    assert one.min_gain > 0
    again = learned(images)
    assert (one.temperature, one.min_gain) == (again.temperature, again.min_gain)
    assert (one.temperature, one.min_gain) != (other.temperature, other.min_gain)
    critics = [learned(images, with_critic=True).critic for _ in range(2)]
    assert not critics[0].training
    for name, tensor in critics[0].state_dict().items():
        assert torch.equal(tensor, critics[1].state_dict()[name]), name
    # Blank images are left out wherever they stand: here there are too few others.
    assert learned(torch.cat([torch.zeros(500, 1, 28, 28), images[:63]])) is None


# ---------------------------------------------------------------- the critic's say


@pytest.mark.parametrize(("n_images", "n_shown"), [(400, 2560), (6000, 11_000), (20_000, 12_000)])
def test_few_images_are_perturbed_several_times_for_the_critic(fitted, digits, monkeypatch, n_images, n_shown):
    seen = []

    def shown(model, images, *args, **kwargs):
        seen.append(images)
        raise KeyboardInterrupt

    monkeypatch.setattr("sk_avae.learning.search_models.propose_hypotheses", shown)
    monkeypatch.setattr("sk_avae.learning.search_models._are_mirrored_too", lambda *args: False)
    untaught = SimpleNamespace(metric=torch.zeros(1, 1))
    monkeypatch.setattr("sk_avae.learning.search_models._trained_proposer", lambda *args, **kwargs: untaught)
    monkeypatch.setattr("sk_avae.learning.search_models.typical_metric", lambda objective: torch.zeros(1, 1))
    images = torch.zeros(n_images, 1, 1, 2)
    images[:, :, :, 1] = torch.arange(n_images).view(-1, 1, 1) + 1.0
    with pytest.raises(KeyboardInterrupt):
        learn_search_models(
            fitted._aligner().model,
            CanonicalImages(images),
            Wanted(proposer=False, critic=True, max_epochs=1),
            SearchSettings(4, 2, 5, 0.1),
            generator=torch.Generator().manual_seed(0),
            progress=SILENT,
        )
    (images,) = seen
    times = images[:, 0, 0, 1].unique(return_counts=True)[1]
    assert len(images) == n_shown
    assert times.unique().numel() == 1, "each image as often as the others"


def test_the_critic_finds_more_right_poses_and_is_surer_of_them(choosy, found, stretched):
    without = choosy.set_params(critic=False).align(stretched.X)
    assert right(found.alpha, stretched.alpha).mean() > right(without.alpha, stretched.alpha).mean()
    assert right(found.alpha, stretched.alpha).mean() > 0.7
    assert (found.alpha != without.alpha).any(axis=1).mean() > 0.02


def test_a_critic_that_was_not_trained_cannot_be_switched_on(avae, turned):
    before = avae.transform(turned.X[:10])
    with pytest.warns(UserWarning, match="critic=True has no effect"):
        assert_array_equal(avae.set_params(critic=True).transform(turned.X[:10]), before)


def test_the_gain_is_what_the_score_says(choosy, found, stretched):
    model = choosy._aligner().model
    images = choosy._aligner().to_model(stretched.X[:100])
    alpha = torch.tensor(found.alpha[:100]).float()
    with torch.no_grad():
        moments = model.moments(images)
        best = model.elbo(images, alpha) + model.log_prior_of(images, alpha, moments)
        best = best + model.critic_score(images, alpha)
        said = choosy._aligner().initializer.posterior(model, images)
        weight, rows = choosy.aligner_.models.proposer_weight, torch.arange(len(images))
        best = best + weight * said.at(rows, alpha)
        identity = model.elbo(images) + model.log_prior_of(images, 0 * alpha, moments) + model.critic(images)
        identity = identity + weight * said.at(rows, 0 * alpha)
    moved = found.alpha[:100].any(axis=1)
    assert_allclose(found.gain[:100][moved], (best - identity).numpy()[moved], rtol=1e-3, atol=0.05)
    assert_array_equal(moved, found.gain[:100] > 0)


# ---------------------------------------------------------------- weights


def probability_of_right(result, true):
    """The weight that an alignment gives to right hypotheses, and whether there are any, per image."""
    k = result.hypotheses.shape[1]
    is_one = np.stack([right(result.hypotheses[:, j], true) for j in range(k)], axis=1)
    is_one &= result.hypothesis_weight > 0
    return (result.hypothesis_weight * is_one).sum(axis=1), is_one.any(axis=1)


def test_weights_are_probabilities_best_first_and_leave_something_to_none(found):
    total = found.hypothesis_weight.sum(axis=1)
    assert ((total > 0.5) & (total < 1)).all()
    assert (np.diff(found.hypothesis_weight, axis=1) <= 0).all()
    assert_array_equal(found.hypotheses[:, 0], found.alpha)


def test_probabilities_are_calibrated_on_held_out_digits(choosy, found, stretched):
    """As many are right as their probabilities say."""
    _, answerable = probability_of_right(found, stretched.alpha)
    off = np.abs(np.angle(np.exp(1j * (found.alpha[:, 0] - stretched.alpha[:, 0]))))
    chosen = right(found.alpha, stretched.alpha) & (off < np.radians(20))
    said = found.hypothesis_weight[:, 0]
    assert abs(said.mean() - chosen.mean()) < 0.07
    sure = said > np.median(said)
    assert chosen[sure].mean() > chosen[~sure].mean() + 0.03
    # The ELBO taken at its word is far too sure of itself.
    learn(choosy, temperature=1.0, none_right=-np.inf)
    literal, _ = probability_of_right(choosy.align(stretched.X), stretched.alpha)
    learned, _ = probability_of_right(found, stretched.alpha)

    def surprise(probability):
        return -np.log(np.clip(probability[answerable], 1e-6, None)).mean()

    assert surprise(learned) < 0.8 * surprise(literal)


def test_all_hypotheses_are_returned_as_images_the_best_one_as_by_transform(choosy, found, stretched):
    X = stretched.X[:40].astype(float)
    images, weights = choosy.transform_hypotheses(X)
    assert images.shape == (40, 3, 784)
    assert_array_equal(images[:, 0], choosy.transform(X)[:, :784])
    expected = found.hypothesis_weight[:40] / found.hypothesis_weight[:40].sum(axis=1, keepdims=True)
    assert_allclose(weights, expected, rtol=1e-5)
    result = choosy.align(X)
    for j in range(3):
        back = choosy.inverse_transform(np.hstack([images[:, j], result.hypotheses[:, j]]))
        canonical = np.hstack([X, result.hypotheses[:, j]])
        assert np.abs(back - X).mean() < 0.5 * np.abs(choosy.inverse_transform(canonical) - X).mean()
    alone = [choosy.transform_hypotheses(row[None])[0][0] for row in X[:4]]
    assert_array_equal(images[:4], alone)


# ---------------------------------------------------------------- certainty


def test_nine_tenths_of_the_true_poses_lie_within_the_deviation(found, stretched):
    mode = right(found.alpha, stretched.alpha)
    error = wrap_angle(torch.tensor(found.alpha - stretched.alpha), "linear").numpy()[mode]
    within = np.abs(error) < 1.645 * found.alpha_std[mode]
    # Learned from some 500 poses and tried on 300.
    assert_allclose(within.mean(axis=0), 0.9, atol=0.08)
    # Not because they are all as wide as can be: what `fit` perturbs by has a deviation of 0.29 and more.
    assert (np.median(found.alpha_std, axis=0) < 0.29).all()


def test_the_deviation_is_that_of_the_curvature_and_of_the_training_images(choosy, stretched):
    X = stretched.X[:30]
    spread = np.array(list(choosy.pose_spread_.values()))
    both = choosy.align(X).alpha_std
    assert both.dtype == np.float32
    learn(choosy, pose_spread={})
    curvature = choosy.align(X).alpha_std
    assert_allclose(both, np.hypot(curvature, spread), rtol=1e-5)
    assert (both >= spread.astype(np.float32)).all()


def test_a_frozen_parameter_is_certain(choosy, stretched):
    result = choosy.set_params(alpha_prior={"shear": 0}).align(stretched.X[:10])
    assert_array_equal(result.alpha_std[:, 3], 0)
    assert (result.alpha_std[:, :3] > 0).all()


def test_deviations_of_shifts_are_in_units_of_the_image_not_of_the_frame(small_avae, digits, monkeypatch):
    model = small_avae(family="rigid", pad=14, max_iter=0, **QUICK).fit(digits.X[:120])
    monkeypatch.setattr("sk_avae.search.find.pose_deviation", lambda objective, alpha: torch.full_like(alpha, 0.1))
    angle, tx, ty = (model.pose_spread_[name] for name in ("angle", "tx", "ty"))
    # The frame is twice as large as the image.
    expected = [np.hypot(0.1, angle), np.hypot(0.2, tx), np.hypot(0.2, ty)]
    assert_allclose(model.align(digits.X_test[:3]).alpha_std, [expected] * 3, rtol=1e-5)


def test_only_align_takes_the_time_for_the_deviation(choosy, stretched, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the curvature was taken")

    monkeypatch.setattr("sk_avae.search.find.pose_deviation", refuse)
    for method in ("transform", "encode", "score_samples", "transform_hypotheses"):
        getattr(choosy, method)(stretched.X[:3])
    with pytest.raises(AssertionError, match="curvature"):
        choosy.align(stretched.X[:3])


# ---------------------------------------------------------------- the gate


def test_the_learned_gate_leaves_upright_digits_alone_and_lets_turned_ones_move(fitted_with_critic, digits, stretched):
    upright = digits.X_test[700:].astype(float)
    T = fitted_with_critic.transform(upright)
    moved = T[:, 784:].any(axis=1)
    assert moved.mean() < 0.1
    assert_array_equal(T[~moved, :784], upright[~moved])
    result = fitted_with_critic.align(upright[:50])
    assert_array_equal(moved[:50], result.gain > fitted_with_critic.min_gain_)
    assert_array_equal(result.matrix[~moved[:50]], np.broadcast_to(np.eye(2, 3), ((~moved[:50]).sum(), 2, 3)))
    # The gate has work to do.
    assert (result.gain > 0).mean() > 0.5
    far = np.abs(stretched.alpha[:150, 0]) > np.pi / 3
    assert fitted_with_critic.transform(stretched.X[:150][far])[:, 784:].any(axis=1).mean() > 0.6


def test_the_gate_may_be_opened_and_closed_again_after_fit(choosy, fitted_with_critic, digits):
    X = digits.X_test[:60]
    learned = fitted_with_critic.transform(X)
    assert not np.array_equal(choosy.transform(X), learned)
    assert_array_equal(choosy.set_params(min_gain="auto").transform(X), learned)
    assert_array_equal(choosy.set_params(min_gain=choosy.min_gain_).transform(X), learned)
    assert_array_equal(choosy.set_params(min_gain=np.inf).transform(X)[:, 784:], 0)


def test_the_learned_gate_lets_few_training_images_through(fitted_with_critic, digits):
    # The quantile is taken over a quarter of these, which ones the random state says.
    gain = fitted_with_critic.align(digits.X[:200]).gain
    assert (gain > fitted_with_critic.min_gain_).mean() < 0.07
    assert (gain > 0.5 * fitted_with_critic.min_gain_).any()


# ---------------------------------------------------------------- files and copies


def same_answers(one, other, X):
    expected = one.align(X).arrays()
    for name, values in other.align(X).arrays().items():
        assert_array_equal(values, expected[name], err_msg=name)
    assert joblib.hash(one) == joblib.hash(other)


def test_a_model_with_a_critic_survives_pickling_and_copying(fitted_with_critic, stretched):
    X = stretched.X[:6]
    for other in (pickle.loads(pickle.dumps(fitted_with_critic)), copy.deepcopy(fitted_with_critic)):
        assert isinstance(other.critic_, Critic)
        assert not other.critic_.training
        assert not any(parameter.requires_grad for parameter in other.critic_.parameters())
        same_answers(fitted_with_critic, other, X)
    assert b"torch._utils" not in pickle.dumps(fitted_with_critic)
    assert type(fitted_with_critic.__getstate__()["critic_"]["scale"]) is np.ndarray


def test_a_copy_does_not_share_the_critic(fitted_with_critic, stretched):
    before = fitted_with_critic.align(stretched.X[:4]).gain
    other = copy.deepcopy(fitted_with_critic)
    other.critic_.scale.fill_(0.0)
    assert_array_equal(fitted_with_critic.align(stretched.X[:4]).gain, before)
    assert not np.array_equal(other.align(stretched.X[:4]).gain, before)


def test_a_clone_has_the_parameters_and_nothing_learned(fitted_with_critic):
    fresh = clone(fitted_with_critic)
    parameters, expected = (model.get_params() for model in (fresh, fitted_with_critic))
    assert parameters.pop("expert") is not expected.pop("expert")
    assert parameters == expected
    assert not hasattr(fresh, "critic_")
    assert not hasattr(fresh, "min_gain_")


def test_nothing_is_learned_after_fit(fitted_with_critic, stretched):
    before = joblib.hash(fitted_with_critic)
    for method in ("align", "transform", "transform_hypotheses", "score", "reconstruct"):
        getattr(fitted_with_critic, method)(stretched.X[:5])
    assert joblib.hash(fitted_with_critic) == before


def test_the_images_of_the_calibration_are_not_kept(fitted_with_critic):
    modules = (fitted_with_critic.module_, fitted_with_critic.critic_, fitted_with_critic.proposer_)
    n_bytes = sum(t.numel() * t.element_size() for module in modules for t in module.state_dict().values())
    assert len(pickle.dumps(fitted_with_critic)) < n_bytes + 20_000


# ---------------------------------------------------------------- an image's answer depends on that image alone


def crop(X, height, width):
    return X.reshape(-1, 28, 28)[:, :height, :width].reshape(len(X), -1)


@pytest.mark.usefixtures("few_lessons")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("height", "width", "pad", "padding", "family", "allow_reflection"),
    [
        (28, 28, 0, "background", "affine", False),
        (27, 25, 3, "reflect", "rigid", True),
        (23, 28, 0, "border", "linear", True),
    ],
)
def test_every_field_of_a_row_is_the_same_alone_and_in_any_batch(
    small_avae, digits, turned, height, width, pad, padding, family, allow_reflection
):
    model = small_avae(
        family=family,
        allow_reflection=allow_reflection,
        pad=pad,
        padding=padding,
        image_shape=(height, width),
        critic=True,
        min_gain="auto",
        max_epochs=3,
        n_restarts=12,
        n_refine=3,
        max_iter=8,
        latent_size=7,
        hidden_layer_sizes=(75, 33),
    )
    model.fit(crop(digits.X[:300], height, width))
    assert model.critic_ is not None
    model.set_params(min_gain=0.0)
    X = crop(turned.X[:61], height, width)
    whole = model.align(X).arrays()
    assert {"gain", "hypothesis_weight", "alpha_std"} < set(whole)
    order = np.random.default_rng(0).permutation(61)
    for rows in (*([row] for row in range(5)), order, order[:2], order[:17], np.arange(30, 61)):
        part = model.align(X[rows]).arrays()
        for name, values in whole.items():
            assert_array_equal(part[name], values[rows], err_msg=name)
    images, weights = model.transform_hypotheses(X)
    assert_array_equal(model.transform_hypotheses(X[order])[0], images[order])
    weight = whole["hypothesis_weight"]
    assert_array_equal(weights, weight / weight.sum(axis=1, keepdims=True))


# ---------------------------------------------------------------- around a VAE of the user's own


@pytest.mark.usefixtures("few_lessons")
def test_from_vae_learns_to_choose_from_images(fitted_with_critic, digits, stretched):
    vae = copy.deepcopy(fitted_with_critic.module_)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    parameters = {"family": "linear", "n_restarts": 8, "n_refine": 2, "tol": 0.5, "random_state": 0}

    def around(**more):
        return AVAEEstimator.from_vae(vae, image_shape=(28, 28), scale=255.0, **parameters, **more)

    model = around(X=digits.X[:160], min_gain="auto")
    assert isinstance(model.critic_, Critic)
    assert model.min_gain_ > 0
    assert joblib.hash(around(X=digits.X[:160], min_gain="auto")) == joblib.hash(model)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    same_answers(model, pickle.loads(pickle.dumps(model)), stretched.X[:4])
    bare = around()
    assert bare.critic_ is None
    assert (bare.temperature_, bare.min_gain_) == (1.0, None)
    assert bare.transform(stretched.X[:2]).shape == (2, 788)
    with pytest.raises(ValueError, match="min_gain='auto' is learned from at least 64 images"):
        around(min_gain="auto")
    with pytest.raises(ValueError, match="min_gain='auto' is learned from at least 64 images"):
        around(X=digits.X[:63], min_gain="auto")
    assert around(padding="reflect", pad=0).transform(stretched.X[:2]).shape == (2, 788)


# ---------------------------------------------------------------- a memory


@pytest.mark.usefixtures("few_lessons")
def test_a_memory_keeps_proposer_and_critic_for_any_search(small_avae, digits, turned, tmp_path, monkeypatch):
    taught = []

    def counted(*args, **kwargs):
        taught.append(1)
        return train_critic(*args, **kwargs)

    monkeypatch.setattr(search_models, "train_critic", counted)
    kept = QUICK | {"critic": True, "memory": str(tmp_path)}
    first = small_avae(**kept).fit(digits.X[:200])
    expected = first.transform(turned.X[:10])
    for search in ({}, {"n_restarts": 6, "n_refine": 1}, {"tol": 0.5, "min_gain": 3.0}):
        again = small_avae(**kept | search).fit(digits.X[:200])
        assert len(taught) == 1, search
    alone = small_avae(**kept | search | {"memory": None}).fit(digits.X[:200])
    assert len(taught) == 2
    assert_array_equal(again.transform(turned.X[:10]), alone.transform(turned.X[:10]))
    assert again.temperature_ == alone.temperature_
    assert_array_equal(small_avae(**kept).fit(digits.X[:200]).transform(turned.X[:10]), expected)
    for i, other in enumerate([{"family": "rigid"}, {"alpha_prior": {"angle": 0.3}}], start=3):
        small_avae(**kept | other).fit(digits.X[:200])
        assert len(taught) == i, other
