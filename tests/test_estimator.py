"""`AVAEEstimator` on real digits: invariances, formats of images, scores, the way back, modules, training."""

import copy
import dataclasses
import json
import math
import pickle
import re
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from typing import ClassVar

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from sk_avae import AlignmentResult
from sk_avae.affine import FAMILIES, to_matrix
from sk_avae.datasets import make_perturbed
from sk_avae.images import ImageFormat
from sk_avae.likelihoods import Bernoulli, Gaussian
from sk_avae.vae import MLPVAE

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

POSE_METHODS = ("transform", "score_samples", "negative_elbo", "encode", "reconstruct")


def wrapped(angle):
    """Angles in degrees, between -180 and 180."""
    return np.rad2deg(np.angle(np.exp(1j * angle)))


def angle_errors(model, X, X_turned, angle):
    """Errors in degrees of the angles found, less the pose that the model gives the upright images."""
    found = model.align(X_turned).alpha[:, 0] - model.align(X).alpha[:, 0]
    return np.abs(wrapped(found - angle))


# ---------------------------------------------------------------- an image's answer depends on that image alone
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_equals_the_row_in_a_batch(avae, turned, family):
    avae.set_params(family=family)
    X = turned.X[:4]
    for method in POSE_METHODS:
        together = getattr(avae, method)(X)
        alone = [getattr(avae, method)(row[None])[0] for row in X]
        assert_array_equal(together, np.stack(alone), err_msg=method)


@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize("module", ["mlp", "conv"])
@pytest.mark.usefixtures("few_lessons")
def test_a_row_alone_equals_the_row_in_a_batch_for_both_networks(small_avae, digits, turned, module, pad):
    model = small_avae(module=module, pad=pad, max_epochs=1, n_restarts=4, n_refine=1).fit(digits.X[:128])
    together = model.transform(turned.X[:6])
    alone = np.concatenate([model.transform(row[None]) for row in turned.X[:6]])
    assert_array_equal(together, alone)


def test_rows_keep_their_bits_in_any_order_and_subset_of_a_large_batch(fitted, turned):
    X = turned.X[:300]
    order = np.random.default_rng(0).permutation(len(X))
    T = fitted.transform(X)
    assert_array_equal(fitted.transform(X[order]), T[order])
    assert_array_equal(fitted.transform(X[137:223]), T[137:223])
    for row in (0, 83, 299):
        assert_array_equal(fitted.transform(X[row : row + 1])[0], T[row])


def test_a_row_is_the_same_among_five_thousand(fitted, digits):
    rows = [0, 1336, 1337, 4095, 4096, 4999]
    alpha = np.linspace(-3, 3, len(digits.X))[:, None]
    T = np.hstack([digits.X, alpha])
    Z = np.hstack([np.random.default_rng(0).standard_normal((len(T), 12)), alpha])
    for function, X in (
        (lambda X: fitted.negative_elbo(X, align=False), digits.X),
        (fitted.inverse_transform, T),
        (fitted.decode, Z),
    ):
        alone = np.concatenate([function(X[row : row + 1]) for row in rows])
        assert_array_equal(function(X)[rows], alone)


@pytest.mark.parametrize(
    ("side", "latent_size", "hidden_layer_sizes"),
    [(28, 5, (128,)), (28, 10, (128,)), (27, 12, (128,)), (27, 7, (75, 33)), (28, 2, (64, 729))],
)
@pytest.mark.usefixtures("few_lessons")
def test_no_size_lets_a_row_see_its_place_in_the_batch(
    small_avae, digits, turned, side, latent_size, hidden_layer_sizes
):
    # The last numbers of an array, and some rows of products with narrow matrices, are rounded on paths of their own.
    def cropped(X):
        return X.reshape(-1, 28, 28)[:, :side, :side].reshape(-1, side**2)

    model = small_avae(latent_size=latent_size, hidden_layer_sizes=hidden_layer_sizes, max_epochs=3, n_restarts=4)
    model.fit(cropped(digits.X[:500]))
    X = cropped(turned.X[:41])
    for method in ("transform", "reconstruct"):
        alone = np.concatenate([getattr(model, method)(row[None]) for row in X])
        assert_array_equal(getattr(model, method)(X), alone, err_msg=method)


def test_any_number_of_threads_gives_the_same_bits(fitted, turned):
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fitted.transform(turned.X[:40])
        torch.set_num_threads(2)
        assert_array_equal(fitted.transform(turned.X[:40]), one)
    finally:
        torch.set_num_threads(n_threads)


# ---------------------------------------------------------------- same seed, same bits
@pytest.mark.parametrize("module", ["mlp", "conv"])
@pytest.mark.usefixtures("few_lessons")
def test_two_fits_have_the_same_bits_and_the_same_hash(small_avae, digits, turned, module):
    parameters = {"module": module, "max_epochs": 1, "n_restarts": 6, "validation_fraction": 0.2}
    first = small_avae(**parameters).fit(digits.X[:200])
    second = small_avae(**parameters).fit(digits.X[:200].copy())
    assert joblib.hash(first) == joblib.hash(second)
    assert_array_equal(first.transform(turned.X[:5]), second.transform(turned.X[:5]))
    hash_before = joblib.hash(first)
    assert joblib.hash(first.fit(digits.X[:200])) == hash_before
    assert joblib.hash(clone(first).fit(digits.X[:200])) == hash_before


def test_another_seed_gives_another_model(small_avae, digits):
    X = digits.X[:200]
    models = [small_avae(max_epochs=1, random_state=seed).fit(X) for seed in (0, 1, None, None)]
    assert len({joblib.hash(model.module_.state_dict()["encoder.0.weight"].numpy()) for model in models}) == 4


def test_a_random_state_instance_is_drawn_from(small_avae, digits):
    X = digits.X[:200]
    one, other = (small_avae(max_epochs=1, random_state=np.random.RandomState(5)).fit(X) for _ in range(2))
    assert_array_equal(one.encode(X[:5]), other.encode(X[:5]))


def test_nothing_is_learned_after_fit(fitted, turned):
    before, names = joblib.hash(fitted), set(vars(fitted))
    training = [module.training for module in fitted.module_.modules()]
    for method in (*POSE_METHODS, "align", "score"):
        getattr(fitted, method)(turned.X[:5])
    fitted.inverse_transform(fitted.transform(turned.X[:5]))
    fitted.decode(fitted.encode(turned.X[:5]))
    fitted.sample(3)
    fitted.get_feature_names_out()
    assert joblib.hash(fitted) == before
    assert set(vars(fitted)) == names
    assert [module.training for module in fitted.module_.modules()] == training == [False] * len(training)


def test_fit_sets_what_the_documentation_names(fitted):
    assert isinstance(fitted.module_, nn.Module)
    assert not any(parameter.requires_grad for parameter in fitted.module_.parameters())
    assert isinstance(fitted.likelihood_, Bernoulli)
    assert fitted.image_shape_ == (28, 28)
    assert fitted.n_features_in_ == 784
    assert fitted.n_iter_ == len(fitted.history_) == 20
    assert [epoch["epoch"] for epoch in fitted.history_] == list(range(1, 21))
    assert fitted.history_[-1]["train_loss"] < fitted.history_[0]["train_loss"]
    assert "valid_loss" not in fitted.history_[0]
    assert json.loads(json.dumps(fitted.history_)) == fitted.history_


# ---------------------------------------------------------------- formats of images
@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.uint8, np.float32),
    ],
)
def test_precision_of_the_results_is_that_of_fit(small_avae, digits, turned, given, returned):
    avae = small_avae(max_epochs=1, learned_starts=False).fit(digits.X[:60].astype(given))
    X = turned.X[:6].astype(np.float64 if given == np.float32 else np.float32)
    for method in POSE_METHODS:
        assert getattr(avae, method)(X).dtype == returned, method
    assert avae.negative_elbo(X, align=False).dtype == returned
    result = avae.align(X)
    for name, values in result.arrays().items():
        assert values.dtype == (returned if values.dtype.kind == "f" else values.dtype), name
    assert result.alpha.dtype == result.alpha_std.dtype == result.hypothesis_weight.dtype == returned
    assert avae.inverse_transform(avae.transform(X)).dtype == returned
    assert isinstance(avae.score(X), float)


@pytest.mark.parametrize("given", [np.int64, np.int16, np.float16, ">f8"])
def test_other_numbers_are_read_as_the_same_pixels(fitted, turned, given):
    assert_allclose(fitted.transform(turned.X[:4].astype(given)), fitted.transform(turned.X[:4]), rtol=1e-6)


FORMATS = {
    "unit interval": lambda X: X / 255.0,
    "standardised": lambda X: (X - 33.3) / 78.6,
    "black on white": lambda X: 255 - X,
    "black on white, standardised": lambda X: (33.3 - X) / 78.6,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_scale_of_pixels_aligns_equally_well(fitted, small_avae, digits, turned, name):
    in_format = FORMATS[name]
    model = small_avae().fit(in_format(digits.X[:2000]))
    X = turned.X[:60]
    expected, result = fitted.align(X), model.align(in_format(X))
    assert isinstance(model.likelihood_, Bernoulli)
    assert np.quantile(np.abs(wrapped(result.alpha - expected.alpha)), 0.9) < 2
    assert_allclose(result.elbo.mean(), expected.elbo.mean(), rtol=0.01)
    T = model.transform(in_format(X))[:, :784]
    in_the_inputs_units = in_format(fitted.transform(X)[:, :784])
    assert np.abs(T - in_the_inputs_units).mean() < 0.02 * np.ptp(in_the_inputs_units)


def memory_mapped(X, folder):
    path = folder / "X.npy"
    np.save(path, X)
    return np.load(path, mmap_mode="r")


LAYOUTS = {
    "read-only": lambda X, folder: X,
    "memory-mapped": memory_mapped,
    "Fortran": lambda X, folder: np.asfortranarray(X),
    "strided": lambda X, folder: np.repeat(X, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_memory_gives_the_same_model_and_poses(small_avae, digits, turned, tmp_path, layout, dtype):
    def given(X):
        X = X.astype(dtype)
        X.flags.writeable = False
        return LAYOUTS[layout](X, tmp_path)

    plain = small_avae(max_epochs=1, n_restarts=4).fit(digits.X[:100].astype(dtype))
    model = small_avae(max_epochs=1, n_restarts=4).fit(given(digits.X[:100]))
    assert joblib.hash(model) == joblib.hash(plain)
    assert_array_equal(model.transform(given(turned.X[:5])), plain.transform(turned.X[:5].astype(dtype)))


def test_lists_of_rows_are_read_as_arrays(small_avae, digits, turned):
    plain = small_avae(max_epochs=1, n_restarts=4).fit(digits.X[:100])
    model = small_avae(max_epochs=1, n_restarts=4).fit(digits.X[:100].tolist())
    assert joblib.hash(model) == joblib.hash(plain)
    assert_array_equal(model.transform(turned.X[:5].tolist()), plain.transform(turned.X[:5]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_the_input_is_not_modified(small_avae, digits, dtype):
    X = digits.X[:50].astype(dtype)
    before = X.copy()
    model = small_avae(max_epochs=1, n_restarts=4, pad=2).fit(X)
    for method in (*POSE_METHODS, "align", "score"):
        getattr(model, method)(X)
        assert_array_equal(X, before, err_msg=method)
    T = model.transform(X)
    T_before = T.copy()
    model.inverse_transform(T)
    assert_array_equal(T, T_before)
    Z = model.encode(X)
    Z_before = Z.copy()
    model.decode(Z)
    assert_array_equal(Z, Z_before)


@pytest.mark.parametrize(
    "as_stack",
    [
        lambda X: X.reshape(-1, 28, 28),
        lambda X: X.reshape(-1, 28, 28).tolist(),
        lambda X: list(X.reshape(-1, 28, 28)),
        lambda X: torch.from_numpy(X.reshape(-1, 28, 28).copy()),
    ],
    ids=["array", "nested lists", "list of images", "tensor"],
)
def test_stacks_are_read_as_their_rows(fitted, small_avae, digits, turned, as_stack):
    model = small_avae(max_epochs=1).fit(as_stack(digits.X[:200]))
    assert model.image_shape_ == (28, 28)
    assert model.n_features_in_ == 784
    rows, stack = turned.X[:3], as_stack(turned.X[:3])
    for method in (*POSE_METHODS, "score"):
        assert_array_equal(getattr(fitted, method)(stack), getattr(fitted, method)(rows), err_msg=method)


def test_a_stack_with_a_channel_axis_has_its_shape(small_avae, digits, turned):
    rows = small_avae(max_epochs=2).fit(digits.X[:200])
    model = small_avae(max_epochs=2).fit(digits.X[:200].reshape(-1, 28, 28, 1))
    assert model.image_shape_ == (28, 28, 1)
    assert_array_equal(model.transform(turned.X[:5].reshape(-1, 28, 28, 1)), rows.transform(turned.X[:5]))
    assert_array_equal(model.transform(turned.X[:5]), rows.transform(turned.X[:5]))


def test_colour_images_align(small_avae, digits):
    background = np.array([20, 90, 180])
    ink = np.random.default_rng(0).integers(180, 256, size=(1260, 1, 1, 3))
    grey = np.concatenate([digits.X[:1200], digits.X_test[:60]]).reshape(-1, 28, 28, 1) / 255
    images = (background + (ink - background) * grey).astype(np.uint8)
    X_turned, alpha = make_perturbed(images[1200:], random_state=0)
    model = small_avae(max_epochs=15).fit(images[:1200])
    assert model.image_shape_ == (28, 28, 3)
    assert model.n_features_in_ == 28 * 28 * 3
    assert np.median(angle_errors(model, images[1200:], X_turned, alpha[:, 0])) < 5
    canonical = model.transform(X_turned)[:, :-1].reshape(-1, 28, 28, 3)
    assert_allclose(np.median(canonical[:, 0, 0], axis=0), background, atol=3)


def test_an_image_that_is_not_square_turns_rigidly(small_avae, digits):
    wide = np.pad(np.concatenate([digits.X[:1200], digits.X_test[:60]]).reshape(-1, 28, 28), ((0, 0), (0, 0), (6, 6)))
    X = wide.reshape(-1, 28 * 40)
    X_turned, alpha = make_perturbed(X[1200:], image_shape=(28, 40), random_state=0)
    model = small_avae(image_shape=(28, 40)).fit(X[:1200])
    assert model.image_shape_ == (28, 40)
    assert np.median(angle_errors(model, X[1200:], X_turned, alpha[:, 0])) < 8
    matrix = model.align(X_turned).matrix
    # A turn changes lengths in normalised units, but not the area.
    assert_allclose(np.linalg.det(matrix[:, :, :2]), 1, rtol=1e-5)


def signals(n, width=60):
    """One bump each, of a random height, and a smaller one at its right."""
    random = np.random.default_rng(0)
    x = np.linspace(-1, 1, width)
    heights = random.uniform(0.7, 1.0, size=(n, 1))
    return heights * (np.exp(-((x / 0.1) ** 2)) + 0.5 * np.exp(-(((x - 0.35) / 0.1) ** 2)))


@pytest.mark.parametrize("family", ["rigid", "affine"])
def test_signals_shift_and_do_not_turn(small_avae, family):
    X = signals(600)
    still = {name: 0.0 for name in FAMILIES[family] if name != "tx"}
    X_shifted, alpha = make_perturbed(X[500:], family=family, ranges={**still, "tx": 0.3}, random_state=0)
    model = small_avae(family=family, n_restarts=64, n_refine=4, max_iter=100, tol=1e-2, likelihood="bernoulli")
    model.fit(X[:500])
    assert model.image_shape_ == (1, 60)
    result = model.align(X_shifted)
    names = FAMILIES[family]
    for name in set(names) - {"tx", "log_scale_x"}:
        assert_array_equal(result.alpha[:, names.index(name)], 0, err_msg=name)
    error = (result.alpha - model.align(X[500:]).alpha - alpha)[:, names.index("tx")]
    assert np.median(np.abs(error)) < 0.02
    assert np.quantile(np.abs(error), 0.9) < 0.1


@pytest.mark.parametrize("family", ["rotation", "linear"])
def test_a_signal_whose_family_has_no_shift_converges(small_avae, family):
    X = signals(200)
    model = small_avae(family=family, max_epochs=3)
    with pytest.warns(UserWarning, match="no pose") if family == "rotation" else nullcontext():
        model.fit(X)
    result = model.align(X)
    assert result.converged.all()
    angle = FAMILIES[family].index("angle")
    assert_array_equal(result.alpha[:, angle], 0)


@pytest.mark.parametrize("image_shape", [(1, 64), (64, 1)])
def test_image_shape_tells_a_signal_from_a_square(small_avae, image_shape):
    model = small_avae(image_shape=image_shape, family="rigid", max_epochs=2, tol=1e-1).fit(signals(100, width=64))
    alpha = model.align(signals(20, width=64)).alpha
    assert model.image_shape_ == image_shape
    frozen = [0, 2] if image_shape[0] == 1 else [0, 1]
    assert_array_equal(alpha[:, frozen], 0)


# ---------------------------------------------------------------- the frame
def test_shifts_are_in_units_of_the_image_not_of_the_padded_frame(small_avae, digits):
    X_moved, alpha = make_perturbed(
        digits.X_test[:60], family="rigid", ranges={"angle": 0, "tx": 0.3, "ty": 0.3}, random_state=1
    )
    shifts = {}
    for pad in (0, 6):
        model = small_avae(family="rigid", alpha_prior={"angle": 0}, pad=pad, n_restarts=32).fit(digits.X[:1200])
        result = model.align(X_moved)
        shifts[pad] = result.alpha[:, 1:]
        assert np.median(np.abs(shifts[pad] - alpha[:, 1:])) < 0.05
        assert_allclose(result.matrix[:, :, 2], shifts[pad], atol=1e-6)
        assert_allclose(result.to_frame()[["tx_px", "ty_px"]], 14 * shifts[pad], rtol=1e-6)
        assert model.transform(X_moved).shape == (60, 784 + 3)
        slope = np.polyfit(alpha[:, 1:].ravel(), shifts[pad].ravel(), 1)[0]
        assert 0.9 < slope < 1.1
    assert np.median(np.abs(shifts[0] - shifts[6])) < 0.05


def test_what_left_the_frame_comes_back_as_background(avae, digits):
    X = np.full((1, 784), 7.0)
    X[0, 784 // 2 - 40 : 784 // 2 + 40] = 255
    avae.fit(np.repeat(X, 20, axis=0))
    T = np.hstack([X, [[0.8]]])
    there = avae.inverse_transform(T).reshape(28, 28)
    assert_allclose([there[0, 0], there[0, -1], there[-1, 0], there[-1, -1]], 7, atol=1e-4)


# ---------------------------------------------------------------- poses and results
def test_turned_digits_are_turned_back(fitted, digits, turned):
    errors = angle_errors(fitted, digits.X_test[:200], turned.X[:200], turned.alpha[:200, 0])
    assert np.median(errors) < 5
    assert np.mean(errors < 15) > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_has_its_shapes_and_types(avae, turned, family):
    avae.set_params(family=family, n_restarts=8, n_refine=3, tol=0.1, expert__max_iter=100)
    result = avae.align(turned.X[:7])
    names = FAMILIES[family]
    shapes = {
        "alpha": (7, len(names)),
        "matrix": (7, 2, 3),
        "elbo": (7,),
        "elbo_identity": (7,),
        "n_iter": (7,),
        "converged": (7,),
        "hypotheses": (7, 3, len(names)),
        "hypothesis_elbo": (7, 3),
        "hypothesis_weight": (7, 3),
        "gain": (7,),
        "alpha_std": (7, len(names)),
    }
    assert isinstance(result, AlignmentResult)
    assert {name: getattr(result, name).shape for name in shapes} == shapes
    assert all(isinstance(getattr(result, name), np.ndarray) for name in shapes)
    assert result.n_iter.dtype.kind == "i"
    assert result.converged.dtype == bool
    assert_array_equal(result.hypotheses[:, 0], result.alpha)
    assert_array_equal(result.hypothesis_elbo[:, 0], result.elbo)
    assert_allclose(result.matrix, to_matrix(torch.from_numpy(result.alpha), family).numpy(), atol=1e-6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.alpha = None


def test_runners_up_are_ordered_by_elbo_under_a_flat_prior(avae, turned):
    result = avae.set_params(learned_starts=False).align(turned.X[:100])  # the proposer has no say
    distinct = (result.hypothesis_weight > 0).all(axis=1)
    assert distinct.sum() > 10
    assert (np.diff(result.hypothesis_elbo[distinct], axis=1) <= 0).all()


def test_more_hypotheses_than_restarts_are_not_invented(avae, turned):
    result = avae.set_params(n_restarts=1, n_refine=4).align(turned.X[:5])
    assert result.hypotheses.shape == (5, 1, 1)


def test_to_frame_speaks_of_degrees_factors_and_pixels(avae, turned):
    avae.set_params(family="affine", n_restarts=8, tol=0.1, expert__max_iter=200)
    result = avae.align(turned.X[:7])
    frame = result.to_frame()
    assert list(frame.columns) == [
        *("angle_deg", "scale_x", "scale_y", "shear", "tx_px", "ty_px"),
        *("probability", "confidence", "elbo", "gain", "n_iter", "converged"),
    ]
    assert_allclose(frame["angle_deg"], np.rad2deg(result.alpha[:, 0]), rtol=1e-5)
    assert_allclose(frame["scale_y"], np.exp(result.alpha[:, 2]), rtol=1e-5)
    assert_allclose(frame["ty_px"], result.alpha[:, 5] * 14, rtol=1e-5)
    assert_array_equal(frame["gain"], result.gain)
    assert_array_equal(frame["probability"], result.hypothesis_weight[:, 0])


def test_transform_is_the_canonical_image_and_the_pose(fitted, turned):
    T = fitted.transform(turned.X[:50])
    assert T.shape == (50, 785)
    assert_array_equal(T[:, 784:], fitted.align(turned.X[:50]).alpha)
    plain = fitted.negative_elbo(turned.X[:50], align=False).mean()
    assert fitted.negative_elbo(T[:, :784], align=False).mean() < plain - 20


def test_fit_transform_is_fit_then_transform(small_avae, digits):
    X = digits.X[:100]
    model = small_avae(max_epochs=1, n_restarts=4)
    assert_array_equal(clone(model).fit_transform(X), model.fit(X).transform(X))


def test_pose_parameters_may_be_set_after_fit(avae, turned):
    one = avae.set_params(n_restarts=1, expert__max_iter=0).align(turned.X[:20])
    assert_array_equal(one.alpha, 0)
    assert avae.set_params(n_restarts=16).align(turned.X[:20]).elbo.mean() > one.elbo.mean()


def test_more_restarts_never_screen_worse(avae, turned):
    avae.set_params(expert__max_iter=0, learned_starts=False)
    elbos = [avae.set_params(n_restarts=k).align(turned.X[:50]).elbo for k in (1, 4, 16, 40)]
    assert all((later >= earlier).all() for earlier, later in pairwise(elbos))


# ---------------------------------------------------------------- prior and gate
def test_a_standard_deviation_of_zero_freezes_a_parameter(avae, turned):
    avae.set_params(family="similarity", alpha_prior={"log_scale": 0, "ty": 0}, tol=0.1)
    alpha = avae.align(turned.X[:20]).alpha
    assert_array_equal(alpha[:, [1, 3]], 0)
    assert (alpha[:, [0, 2]] != 0).any(axis=0).all()


def test_no_free_parameter_is_the_plain_vae_and_converges(avae, turned):
    result = avae.set_params(alpha_prior={"angle": 0}).align(turned.X[:20])
    assert_array_equal(result.alpha, 0)
    assert_array_equal(result.elbo, -avae.negative_elbo(turned.X[:20], align=False))
    assert result.converged.all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_prior_pulls_to_the_identity_at_the_price_of_elbo(avae, turned):
    avae.set_params(family="linear", n_restarts=32)
    X = turned.X[:60]
    flat = avae.set_params(alpha_prior=None).align(X)
    auto = avae.set_params(alpha_prior="auto").align(X)
    tight = avae.set_params(alpha_prior={"log_scale_x": 0.02, "log_scale_y": 0.02, "shear": 0.02}).align(X)
    reach = [np.abs(result.alpha[:, 1:]).mean() for result in (flat, auto, tight)]
    assert reach[0] > reach[1] > reach[2]
    # Of the typical image, not of the mean: for a few, a search under a wider prior ends in another, lower optimum.
    assert np.median(flat.elbo - auto.elbo) > 0
    assert np.median(auto.elbo - tight.elbo) > 1


def test_an_empty_dict_is_the_automatic_prior(avae, turned):
    avae.set_params(family="similarity", tol=0.1)
    auto = avae.set_params(alpha_prior="auto").align(turned.X[:10])
    assert_array_equal(avae.set_params(alpha_prior={}).align(turned.X[:10]).alpha, auto.alpha)


def test_the_gate_is_exact(avae, turned):
    X = turned.X[:99]
    free = avae.set_params(learned_starts=False).align(X)
    gain = free.gain
    assert_allclose(gain, free.elbo - free.elbo_identity, atol=1e-3)
    threshold = float(np.median(gain))
    stays = gain <= threshold
    gated = avae.set_params(min_gain=threshold).align(X)
    assert_array_equal(gated.gain, gain)
    assert stays.sum() >= 50
    assert_array_equal(gated.alpha[stays], 0)
    assert_array_equal(gated.elbo[stays], free.elbo_identity[stays])
    assert_array_equal(gated.matrix[stays], np.broadcast_to(np.eye(2, 3), (stays.sum(), 2, 3)))
    assert_array_equal(gated.alpha[~stays], free.alpha[~stays])
    assert_array_equal(gated.elbo[~stays], free.elbo[~stays])
    assert_array_equal(avae.transform(X)[stays, :784], X[stays])


# ---------------------------------------------------------------- scores
def test_scores_agree(fitted, turned):
    X = turned.X[:100]
    samples = fitted.score_samples(X)
    assert samples.shape == (100,)
    assert_array_equal(samples, -fitted.negative_elbo(X))
    assert_array_equal(samples, fitted.align(X).elbo)
    assert fitted.score(X) == pytest.approx(samples.mean(dtype=np.float64))
    assert fitted.score(X, turned.y[:100]) == fitted.score(X)


def test_without_alignment_it_is_the_plain_vae(fitted, turned):
    X = turned.X[:30]
    x = torch.from_numpy(X / 255).float().view(-1, 1, 28, 28)
    with torch.no_grad():
        mean, log_var = fitted.module_.encode(x)
        posterior = torch.distributions.Normal(mean, (0.5 * log_var).exp())
        kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
        entropy = nn.functional.binary_cross_entropy_with_logits(fitted.module_.decode(mean), x, reduction="none")
    expected = kl + entropy.flatten(1).sum(1)
    plain = fitted.negative_elbo(X, align=False)
    assert_allclose(plain, expected.numpy(), rtol=1e-5)
    assert_array_equal(plain, -fitted.align(X).elbo_identity)
    assert (fitted.negative_elbo(X) <= plain).all()


def test_upright_digits_score_better_than_what_is_no_digit(fitted, digits):
    noise = np.random.default_rng(0).permuted(digits.X_test[:50], axis=1)
    assert fitted.score_samples(digits.X_test[:50]).min() > fitted.score_samples(noise).max()


@pytest.mark.parametrize("pad", [0, 2])
def test_a_gaussian_score_is_a_density_in_the_units_of_the_input(small_avae, digits, turned, pad):
    scores = []
    for factor, offset in ((1, 0), (10, 0), (10, 70), (-1, 0)):
        model = small_avae(likelihood="gaussian", max_epochs=3, pad=pad)
        model.fit(factor * digits.X[:300].astype(float) + offset)
        scores.append(model.score(factor * turned.X[:30].astype(float) + offset))
    n_pixels = (28 + 2 * pad) ** 2
    assert scores[1] - scores[0] == pytest.approx(-n_pixels * math.log(10), rel=0.01)
    assert scores[2] == pytest.approx(scores[1], rel=0.01)
    assert scores[3] == pytest.approx(scores[0], rel=0.01)


def test_the_papers_loss_is_a_sum_of_squares(small_avae, digits):
    likelihood = Gaussian(scale=0.5**0.5, mean="sigmoid")
    X = digits.X[:200] / 255.0
    model = small_avae(likelihood=likelihood, max_epochs=3).fit(X)
    x = torch.from_numpy(X[:20]).float().view(-1, 1, 28, 28)
    with torch.no_grad():
        mean, log_var = model.module_.encode(x)
        squares = (x - model.module_.decode(mean).sigmoid()).square().flatten(1).sum(1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
    expected = (squares + kl).numpy() + 784 * 0.5 * math.log(math.pi)
    assert_allclose(model.negative_elbo(X[:20], align=False), expected, rtol=1e-5)
    assert model.likelihood_ is not likelihood
    assert model.likelihood_.log_scale == likelihood.log_scale


def test_the_scale_of_a_gaussian_is_learned_and_the_instance_left_alone(small_avae, digits):
    likelihood = Gaussian()
    before = likelihood.log_scale.item()
    model = small_avae(likelihood=likelihood, max_epochs=3).fit(digits.X[:300])
    assert likelihood.log_scale.item() == before
    assert likelihood.log_scale.requires_grad
    assert model.likelihood_.log_scale.item() != before


def test_grey_images_are_read_as_gaussian(small_avae):
    grey = np.random.default_rng(0).uniform(size=(100, 64))
    assert isinstance(small_avae(max_epochs=1).fit(grey).likelihood_, Gaussian)


def test_grid_search_picks_the_model_of_the_lower_loss(small_avae, digits):
    search = GridSearchCV(small_avae(), {"max_epochs": [1, 12]}, cv=2).fit(digits.X[:400])
    assert search.best_params_ == {"max_epochs": 12}
    short, long = -search.cv_results_["mean_test_score"]
    assert long < short - 20
    assert search.best_estimator_.negative_elbo(digits.X[:400]).mean() < short


# ---------------------------------------------------------------- the way back
def test_inverse_transform_brings_the_input_back(fitted, turned):
    X = turned.X[:100].astype(float)
    T = fitted.transform(X)
    error = np.abs(fitted.inverse_transform(T) - X).mean()
    assert error < 10
    assert error < 0.25 * np.abs(T[:, :784] - X).mean()


def test_inverse_transform_of_the_identity_keeps_the_bits(fitted, digits):
    X = digits.X_test[:10].astype(float)
    assert_array_equal(fitted.inverse_transform(np.hstack([X, np.zeros((10, 1))])), X)


def test_decode_is_the_way_back_of_encode(fitted, turned):
    X = turned.X[:50]
    Z = fitted.encode(X)
    assert Z.shape == (50, 12 + 1)
    assert_array_equal(Z[:, 12:], fitted.align(X).alpha)
    assert_array_equal(fitted.decode(Z), fitted.reconstruct(X))
    upright = fitted.decode(np.hstack([Z[:, :12], np.zeros((50, 1))]))
    canonical = fitted.transform(X)[:, :784]
    assert np.square(upright - canonical).mean() < 0.7 * np.square(upright - X).mean()


def test_reconstructions_lie_in_the_pose_and_units_of_the_input(fitted, turned):
    X = turned.X[:100].astype(float)
    reconstructed = fitted.reconstruct(X)
    assert reconstructed.shape == X.shape
    assert reconstructed.min() >= 0
    assert reconstructed.max() <= 255.01
    assert np.square(reconstructed - X).mean() < 0.6 * np.square(X - X.mean(axis=0)).mean()


def test_a_code_is_the_posterior_mean_of_the_canonical_image(avae, digits):
    X = digits.X_test[:20]
    codes = avae.set_params(min_gain=np.inf).encode(X)
    with torch.no_grad():
        mean, _ = avae.module_.encode(torch.from_numpy(X / 255).float().view(-1, 1, 28, 28))
    assert_allclose(codes[:, :12], mean.numpy(), rtol=1e-3, atol=1e-4)


def test_perturbed_images_are_what_the_inverse_makes_of_their_poses(fitted, digits):
    X = digits.X_test[:200]
    perturbed, alpha = fitted.perturb(X, random_state=3)
    assert perturbed.dtype == alpha.dtype == np.float32
    assert_array_equal(perturbed, fitted.inverse_transform(np.hstack([X, alpha])))
    assert np.abs(alpha).max() <= np.pi
    assert np.histogram(alpha, 4, (-np.pi, np.pi))[0].min() > 30
    errors = angle_errors(fitted, X, perturbed, alpha[:, 0])
    assert np.median(errors) < 5


def test_poses_to_perturb_by_follow_a_random_state(fitted, digits):
    X = digits.X_test[:5].astype(float)
    own, again, other = (fitted.perturb(X, random_state)[1] for random_state in (None, 0, 1))
    assert fitted.random_state == 0
    assert own.dtype == np.float32  # as in `fit`
    assert_array_equal(own, again)
    assert not np.allclose(own, other)
    random = np.random.RandomState(0)
    assert not np.allclose(fitted.perturb(X, random)[1], fitted.perturb(X, random)[1])


def test_images_are_perturbed_as_far_as_the_prior_reaches(small_avae, digits):
    prior = {"angle": 0.1, "log_scale_x": 0.05, "shear": 0}
    model = small_avae(family="affine", alpha_prior=prior, allow_reflection=True, pad=7, max_epochs=1)
    _, alpha = model.fit(digits.X[:60]).perturb(digits.X[:1000])
    # Shifts are those of a frame of 42 pixels, in half sides of the image.
    reach = {"angle": 0.3, "log_scale_x": 0.15, "log_scale_y": 0.5, "shear": 0, "tx": 0.45, "ty": 0.45, "reflected": 1}
    assert_allclose(np.abs(alpha).max(axis=0), list(reach.values()), rtol=0.02)
    assert 0.4 < alpha[:, -1].mean() < 0.6


def test_samples_are_digits_of_the_input_s_units(fitted, digits):
    samples = fitted.sample(40)
    assert samples.shape == (40, 784)
    assert samples.dtype == np.float32
    assert samples.min() >= 0
    assert samples.max() <= 255.01
    assert len(np.unique(samples, axis=0)) == 40
    assert samples.mean() == pytest.approx(digits.X.mean(), rel=0.5)
    noise = np.random.default_rng(0).permuted(samples, axis=1)
    assert fitted.score(samples) > fitted.score(noise) + 20


def test_samples_follow_the_random_state(avae):
    first = avae.sample(3)
    assert_array_equal(avae.sample(3), first)
    assert_array_equal(avae.set_params(random_state=0).sample(3), first)
    assert not np.array_equal(avae.set_params(random_state=1).sample(3), first)
    avae.set_params(random_state=None)
    assert not np.array_equal(avae.sample(3), avae.sample(3))
    assert avae.sample().shape == (1, 784)


# ---------------------------------------------------------------- a VAE of the user's own
class TinyVAE(nn.Module):
    """A user's module: one linear layer each way, and dropout, which is silent after fit."""

    def __init__(self, image_shape=(1, 28, 28), latent_size=12):
        super().__init__()
        self.image_shape, self.latent_size = image_shape, latent_size
        self.dropout = nn.Dropout(0.1)
        self.inward = nn.Linear(math.prod(image_shape), 2 * latent_size)
        self.outward = nn.Linear(latent_size, math.prod(image_shape))

    def encode(self, x):
        code = self.inward(self.dropout(x.flatten(1)))
        return code[:, : self.latent_size], code[:, self.latent_size :]

    def decode(self, z):
        return self.outward(z).view(-1, *self.image_shape)


@pytest.mark.usefixtures("few_lessons")
def test_a_module_class_is_built_for_the_images(small_avae, digits, turned):
    model = small_avae(module=TinyVAE, latent_size=5, pad=1).fit(digits.X[:500])
    assert isinstance(model.module_, TinyVAE)
    assert (model.module_.image_shape, model.module_.latent_size) == ((1, 30, 30), 5)
    assert_array_equal(model.transform(turned.X[:5]), model.transform(turned.X[:5]))
    assert model.encode(turned.X[:5]).shape == (5, 6)
    again = small_avae(module=TinyVAE, latent_size=5, pad=1).fit(digits.X[:500])
    assert joblib.hash(again) == joblib.hash(model)


def test_a_module_instance_is_left_as_it_was(small_avae, digits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mine = TinyVAE()
    before, names = copy.deepcopy(mine.state_dict()), set(vars(mine))
    estimator = small_avae(module=mine, max_epochs=3)
    model = estimator.fit(digits.X[:300])
    assert model.module is mine
    assert model.module_ is not mine
    assert mine.training
    assert set(vars(mine)) == names
    assert all(parameter.requires_grad and parameter.grad is None for parameter in mine.parameters())
    for name, tensor in mine.state_dict().items():
        assert torch.equal(tensor, before[name]), name
        assert not torch.equal(tensor, model.module_.state_dict()[name]), name


def test_training_goes_on_from_a_module_instance_each_time_anew(small_avae, digits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mine = TinyVAE()
    model = small_avae(module=mine, max_epochs=2).fit(digits.X[:300])
    first = joblib.hash(model)
    assert joblib.hash(model.fit(digits.X[:300])) == first
    assert_array_equal(clone(model).fit(digits.X[:300]).encode(digits.X[:5]), model.encode(digits.X[:5]))


def test_a_fitted_model_does_not_follow_the_user_s_instance(small_avae, digits, turned):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mine = TinyVAE()
    model = small_avae(module=mine, max_epochs=2).fit(digits.X[:300])
    expected = model.transform(turned.X[:5])
    with torch.no_grad():
        mine.inward.weight.zero_()
    assert_array_equal(model.transform(turned.X[:5]), expected)
    assert_array_equal(copy.deepcopy(model).transform(turned.X[:5]), expected)


def test_the_papers_network_learns_and_aligns(small_avae, digits):
    X = digits.X[:256]
    model = small_avae(module="conv", max_epochs=3, pad=2, batch_size=32, lr=3e-3, n_restarts=4).fit(X)
    assert model.module_.code_shape == (16, 8, 8)
    assert model.history_[-1]["train_loss"] < 0.8 * model.history_[0]["train_loss"]
    assert model.transform(X[:5]).shape == (5, 785)


# ---------------------------------------------------------------- training
class Recorder(Callback):
    """Writes down weights after each epoch, in the class (of which the net has the same) and in itself."""

    weights: ClassVar[list] = []

    def __init__(self):
        self.n_calls = 0

    def on_epoch_end(self, net, **kwargs):
        self.n_calls += 1
        Recorder.weights.append({name: t.clone() for name, t in net.module_.state_dict().items()})


@pytest.fixture
def recorder():
    Recorder.weights = []
    return Recorder()


def test_callbacks_are_run_and_copied(small_avae, digits, recorder):
    callbacks = [recorder]
    model = small_avae(callbacks=callbacks, max_epochs=3).fit(digits.X[:200])
    assert len(Recorder.weights) == 3
    assert recorder.n_calls == 0
    assert model.expert.callbacks is callbacks
    assert callbacks == [recorder]
    assert set(vars(recorder)) == {"n_calls"}


def test_early_stopping_brings_the_best_weights_back(small_avae, digits, recorder):
    model = small_avae(early_stopping=True, n_iter_no_change=2, max_epochs=200, lr=0.01, callbacks=[recorder])
    try:
        model.fit(digits.X[:300])
    except KeyboardInterrupt:
        pytest.fail("skorch stops training by a KeyboardInterrupt of its own, which must not get out of fit")
    losses = [epoch["valid_loss"] for epoch in model.history_]
    best = int(np.argmin(losses))
    assert model.n_iter_ == len(losses) == best + 3 < 200
    for name, tensor in model.module_.state_dict().items():
        assert torch.equal(tensor, Recorder.weights[best][name]), name


def test_a_held_out_fraction_is_reported_only_on_request(small_avae, digits):
    model = small_avae(validation_fraction=0.25, max_epochs=3).fit(digits.X[:200])
    assert [sorted(epoch) for epoch in model.history_] == [["epoch", "train_loss", "valid_loss"]] * 3
    assert all(math.isfinite(epoch["valid_loss"]) for epoch in model.history_)


def test_ctrl_c_is_raised(small_avae, digits):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_avae(callbacks=[Interrupt()]).fit(digits.X[:100])


def test_verbose_shows_one_labelled_progress(small_avae, digits, capsys):
    small_avae(max_epochs=3).fit(digits.X[:100])
    assert capsys.readouterr().out == ""
    small_avae(max_epochs=3, critic=True, verbose=1).fit(digits.X[:100])
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(
        r"\[1/5\] training the VAE: epoch 3/3, loss [\d.]+, 0:\d\d elapsed(, about 0:\d\d left)?", lines[2]
    )
    stages = [
        "training the VAE",
        "learning where to start",
        "learning to choose",
        "calibrating",
        "training on all images",
    ]
    first_of = [next(line for line in lines if stage in line) for stage in stages]
    assert [line[:5] for line in first_of] == ["[1/5]", "[2/5]", "[3/5]", "[4/5]", "[5/5]"]
    assert lines[-2].startswith("Done in 0:")
    assert lines[-1].startswith("AlignmentReport(")
    assert not {"\r", "\x1b"} & set("".join(lines))


@pytest.mark.parametrize("verbose", [None, "1", 1.5])
def test_verbose_is_a_number(avae, digits, verbose):
    with pytest.raises(TypeError, match="verbose"):
        avae.set_params(verbose=verbose).fit(digits.X[:100])


def test_weights_do_not_depend_on_verbosity(small_avae, digits, capsys):
    quiet, loud = (small_avae(max_epochs=2, verbose=v).fit(digits.X[:100]) for v in (0, 1))
    assert_array_equal(quiet.encode(digits.X[:5]), loud.encode(digits.X[:5]))
    capsys.readouterr()


def test_memory_maps_go_in_and_come_out(avae, turned, tmp_path):
    np.save(tmp_path / "images.npy", turned.X[:40])
    X = np.load(tmp_path / "images.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "canonical.npy", mode="w+", dtype=np.float32, shape=(40, 785))
    assert avae.transform(X, out=out) is out
    out.flush()
    assert_array_equal(np.load(tmp_path / "canonical.npy"), avae.transform(turned.X[:40]))


def test_transform_keeps_nothing_of_a_slice_but_its_rows(avae, turned, monkeypatch):
    tensors, n_alive = [], []
    to_padded_images = ImageFormat.to_padded_images

    def watched(self, rows):
        tensor = to_padded_images(self, rows)
        tensors.append(weakref.ref(tensor))
        n_alive.append(sum(ref() is not None for ref in tensors))
        return tensor

    monkeypatch.setattr("sk_avae.images._IMAGES_PER_SLICE", 16)
    monkeypatch.setattr(ImageFormat, "to_padded_images", watched)
    avae.transform(turned.X[:80])
    assert len(n_alive) == 5
    assert max(n_alive) <= 2


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((5, 784)), r"shape \(5, 785\), got float64 of shape \(5, 784\)"),
        (np.empty((5, 785), dtype=int), "got int64"),
        ([0.0], "got list"),
    ],
)
def test_what_cannot_be_written_to_is_named(avae, digits, out, message):
    with pytest.raises(ValueError, match=f"out must be a writeable array of floats of .*{message}"):
        avae.transform(digits.X_test[:5], out=out)


def test_verbose_shows_the_progress_of_alignment(avae, digits, capsys):
    avae.transform(digits.X_test[:20])
    assert capsys.readouterr().out == ""
    avae.set_params(verbose=True).transform(digits.X_test[:20])
    assert re.fullmatch(r"Aligned 20 images in 0:\d\d, [\d,]+ images/s\n", capsys.readouterr().out)


# ---------------------------------------------------------------- convergence
def test_one_convergence_warning_per_call_with_counts(avae, turned):
    avae.set_params(expert__max_iter=1, tol=1e-6)
    for method in (*POSE_METHODS, "score", "align"):
        with pytest.warns(ConvergenceWarning) as caught:
            getattr(avae, method)(turned.X[:50])
        assert len(caught) == 1, method
    with warnings.catch_warnings(action="ignore"):
        n_missed = (~avae.align(turned.X[:50]).converged).sum()
    assert n_missed > 0
    assert f" {n_missed} of 50 images stopped at max_iter=1 " in str(caught[0].message)
    assert "Raise max_iter" in str(caught[0].message)


def test_screening_alone_is_a_choice_and_warns_of_nothing(avae, turned):
    result = avae.set_params(expert__max_iter=0).align(turned.X[:20])
    assert_array_equal(result.n_iter, 0)


# ---------------------------------------------------------------- names
def test_feature_names(fitted, avae):
    names = [f"x{i}" for i in range(784)]
    assert list(fitted.get_feature_names_out()) == [*names, "alpha_angle"]
    renamed = [f"p{i}" for i in range(784)]
    assert list(fitted.get_feature_names_out(renamed)) == [*renamed, "alpha_angle"]
    affine = avae.set_params(family="affine").get_feature_names_out()[784:]
    assert list(affine) == [f"alpha_{name}" for name in FAMILIES["affine"]]


def test_pandas_output_names_pixels_and_pose(small_avae, digits):
    X = pd.DataFrame(digits.X[:60], columns=[f"row{i // 28}col{i % 28}" for i in range(784)]).set_index(digits.y[:60])
    model = small_avae(max_epochs=1, n_restarts=4).set_output(transform="pandas").fit(X)
    T = model.transform(X)
    assert isinstance(T, pd.DataFrame)
    assert list(T.columns) == [*X.columns, "alpha_angle"]
    assert_array_equal(T.index, X.index)
    assert list(model.feature_names_in_) == list(X.columns)
    assert_array_equal(model.inverse_transform(T).shape, X.shape)
    model.set_output(transform="default")
    assert_array_equal(model.transform(X), T.to_numpy())


# ---------------------------------------------------------------- what a review found


@pytest.mark.usefixtures("few_lessons")
def test_fits_in_threads_give_the_bits_of_one_alone(small_avae, digits):
    def weights(_):
        return joblib.hash(small_avae(max_epochs=1).fit(digits.X[:256]).__getstate__()["module_"])

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(weights, range(8))) == {weights(0)}


@pytest.mark.parametrize("family", ["rotation", "affine"])
@pytest.mark.usefixtures("few_lessons")
def test_constant_images_stay_put_under_a_margin(small_avae, digits, family):
    model = small_avae(max_epochs=1, pad=4, family=family).fit(digits.X[:500])
    blank = np.stack([np.full(784, value, dtype=np.uint8) for value in (0, 100, 255)])
    assert not model.align(blank).alpha.any()


def test_instances_pickle_without_tensors_and_hash_alike(small_avae, digits):
    with torch.random.fork_rng(devices=[]):
        module = MLPVAE((1, 28, 28), 12, (32,))
    model = small_avae(max_epochs=1, module=module, likelihood=Gaussian(0.5**0.5, "sigmoid"))
    one, other = (clone(model).fit(digits.X[:256]) for _ in range(2))
    assert joblib.hash(one) == joblib.hash(other)
    assert b"torch._utils" not in pickle.dumps(one)
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.transform(digits.X[:5]), one.transform(digits.X[:5]))
    for a, b in zip(again.module.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_raw_pixels_choose_a_likelihood_that_holds_them(small_avae, digits):
    X = (digits.X[:500] / np.float32(255) - 0.1307) / 0.3081
    model = small_avae(max_epochs=5, rescale=False).fit(X)
    assert isinstance(model.likelihood_, Gaussian)
    assert model.reconstruct(X).max() > 1.5
    with pytest.raises(ValueError, match="Bernoulli needs pixels between 0 and 1"):
        small_avae(rescale=False, likelihood="bernoulli").fit(X)


def test_channels_first_are_named_and_a_single_channel_may_be_left_out(small_avae, digits, fitted):
    with pytest.raises(ValueError, match=r"channels came first.*transpose\(0, 2, 3, 1\)"):
        small_avae().fit(np.zeros((20, 3, 16, 16)))
    stack = digits.X_test[:4].reshape(4, 28, 28, 1)
    np.testing.assert_array_equal(fitted.transform(stack), fitted.transform(digits.X_test[:4]))
