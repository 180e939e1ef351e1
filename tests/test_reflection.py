"""Mirrored images, all the way through the estimator: `allow_reflection=True`."""

import pickle
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from sk_avae import AffineCanonicalizer
from sk_avae.datasets import make_perturbed
from sk_avae.model.affine import FAMILIES

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

QUICK = {"allow_reflection": True, "max_epochs": 1, "n_restarts": 6, "hidden_layer_sizes": (32,), "latent_size": 4}


@pytest.fixture(scope="module")
def mirroring(small_avae, digits):
    """A model with a critic that knows mirrored digits; nothing may change it."""
    return small_avae(allow_reflection=True, critic=True, n_refine=3).fit(digits.X[:1600])


@pytest.fixture(scope="module")
def mirrored(digits):
    """300 test digits, every second one mirrored, then all turned by any angle."""
    upright = digits.X_test[:300].reshape(-1, 28, 28).copy()
    flipped = np.arange(300) % 2 == 1
    upright[flipped] = upright[flipped, :, ::-1]
    X, alpha = make_perturbed(upright.reshape(300, 784), random_state=0)
    return SimpleNamespace(X=X, upright=upright.reshape(300, 784), alpha=alpha, flipped=flipped, y=digits.y_test[:300])


# ---------------------------------------------------------------- what it finds


def test_mirrored_digits_are_found_out(mirroring, mirrored):
    found = mirroring.align(mirrored.X).reflected == mirrored.flipped
    assert found.mean() > 0.8
    # A zero and an eight look alike in the mirror; a seven and a nine do not.
    assert found[np.isin(mirrored.y, [6, 7, 9])].mean() > 0.9


def test_what_comes_out_is_no_longer_mirrored_nor_turned(mirroring, mirrored, digits):
    T = mirroring.transform(mirrored.X)[:, :784]
    original = digits.X_test[:300].astype(float)
    asymmetric = np.isin(mirrored.y, [2, 3, 4, 6, 7, 9])
    before = np.square(mirrored.X - original).mean(axis=1)[asymmetric]
    after = np.square(T - original).mean(axis=1)[asymmetric]
    assert np.median(after) < 0.5 * np.median(before)


def test_without_reflection_a_mirrored_digit_has_a_lower_elbo(mirroring, avae, mirrored):
    sevens = mirrored.X[mirrored.flipped & np.isin(mirrored.y, [3, 6, 7, 9])]
    assert mirroring.align(sevens).reflected.mean() > 0.8
    result = avae.align(sevens)
    assert not result.reflected.any()
    assert mirroring.score(sevens) > avae.score(sevens) + 5


def test_the_mirrored_hypotheses_compete_with_the_others(mirroring, mirrored):
    result = mirroring.align(mirrored.X[:100])
    assert result.hypotheses.shape == (100, 3, 2)
    assert set(np.unique(result.hypotheses[:, :, 1])) == {0.0, 1.0}
    counts = result.hypothesis_weight > 0
    both = [len(set(row[use])) == 2 for row, use in zip(result.hypotheses[:, :, 1], counts, strict=True)]
    assert np.mean(both) > 0.5
    assert_array_equal(np.linalg.det(result.matrix[:, :, :2]) < 0, result.reflected)
    assert_array_equal(result.alpha_std[:, 1], 0)
    assert mirroring.pose_spread_["reflected"] == 0


# ---------------------------------------------------------------- names, shapes and the way back


@pytest.mark.parametrize("family", FAMILIES)
def test_one_column_more_for_every_family(small_avae, digits, turned, family):
    model = small_avae(family=family, max_iter=100, tol=0.5, **QUICK).fit(digits.X[:120])
    names = [*FAMILIES[family], "reflected"]
    assert list(model.get_feature_names_out()[784:]) == [f"alpha_{name}" for name in names]
    T = model.transform(turned.X[:6])
    assert T.shape == (6, 784 + len(names))
    assert np.isin(T[:, -1], [0, 1]).all()
    result = model.align(turned.X[:6])
    assert result.parameters == tuple(names)
    assert_array_equal(result.reflected, T[:, -1] == 1)
    assert result.reflected.dtype == bool
    assert list(result.to_frame().columns[: len(names)])[-1] == "reflected"
    assert result.to_frame()["reflected"].dtype == bool
    assert model.encode(turned.X[:6]).shape == (6, 4 + len(names))
    assert model.sample(3).shape == (3, 784)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_restarts", [1, 2, 3])
def test_few_restarts_are_few(small_avae, digits, turned, family, n_restarts):
    model = small_avae(**{**QUICK, "n_restarts": n_restarts}, family=family, max_iter=0).fit(digits.X[:120])
    result = model.align(turned.X[:5])
    assert result.hypotheses.shape[1] == min(2, n_restarts)
    if n_restarts == 1:
        assert_array_equal(result.alpha, 0)


def test_the_way_back_mirrors_again(mirroring, mirrored):
    X = mirrored.X[:60].astype(float)
    T = mirroring.transform(X)
    assert T[:, -1].any()
    error = np.abs(mirroring.inverse_transform(T) - X).mean(axis=1)
    assert error.max() < 0.5 * np.abs(T[:, :784] - X).mean(axis=1).mean()
    reconstructed = mirroring.reconstruct(X)
    assert_array_equal(mirroring.decode(mirroring.encode(X)), reconstructed)
    flat = np.square(X - X.mean(axis=0)).mean()
    assert np.square(reconstructed - X)[T[:, -1] == 1].mean() < 0.7 * flat


def test_decoding_with_the_mirror_gives_the_mirror_image(mirroring, digits):
    Z = mirroring.encode(digits.X_test[:10])
    plain, flipped = (np.hstack([Z[:, :-2], np.full((10, 2), [0.0, value])]) for value in (0, 1))
    images = mirroring.decode(plain).reshape(10, 28, 28)
    assert_allclose(mirroring.decode(flipped).reshape(10, 28, 28), images[:, :, ::-1], atol=0.05)


def test_mirroring_alone_moves_pixels_without_blurring_them(mirroring, digits):
    X = digits.X_test[:5].astype(float)
    T = np.hstack([X, np.full((5, 2), [0.0, 1.0])])
    expected = X.reshape(5, 28, 28)[:, :, ::-1].reshape(5, 784)
    assert_allclose(mirroring.inverse_transform(T), expected, atol=1e-3)  # single precision, as `fit` saw


def test_an_image_of_one_row_can_be_mirrored(small_avae):
    ramp = np.linspace(0, 1, 40) ** 2
    X = ramp * np.random.default_rng(0).uniform(0.8, 1.0, size=(300, 1))
    X[:, :3] = 0
    model = small_avae(
        family="rigid", allow_reflection=True, image_shape=(1, 40), likelihood="bernoulli", alpha_prior={"tx": 0.05}
    ).fit(X[:250])
    result = model.align(np.vstack([X[250:], X[250:, ::-1]]))
    assert_array_equal(result.reflected, np.repeat([False, True], 50))


# ---------------------------------------------------------------- set afterwards, files, copies


def test_reflection_may_be_allowed_and_forbidden_after_fit(avae, turned):
    before = avae.transform(turned.X[:20])
    allowed = avae.set_params(allow_reflection=True).transform(turned.X[:20])
    assert allowed.shape == (20, 786)
    assert allowed[:, -1].any()
    assert_array_equal(avae.set_params(allow_reflection=False).transform(turned.X[:20]), before)


def test_it_pickles_and_hashes_alike(mirroring, mirrored):
    again = pickle.loads(pickle.dumps(mirroring))
    assert_array_equal(again.transform(mirrored.X[:10]), mirroring.transform(mirrored.X[:10]))
    assert joblib.hash(again) == joblib.hash(mirroring)
    assert clone(mirroring).allow_reflection is True


def test_the_canonicalizer_appends_the_mirror_on_request(small_avae, digits, turned):
    canonicalizer = AffineCanonicalizer(small_avae(**QUICK), append_alpha=True).fit(digits.X[:60])
    T = canonicalizer.transform(turned.X[:5])
    assert T.shape == (5, 786)
    assert canonicalizer.get_feature_names_out()[-1] == "alpha_reflected"
    assert canonicalizer.inverse_transform(T).shape == (5, 784)
    assert canonicalizer.set_params(append_alpha=False).transform(turned.X[:5]).shape == (5, 784)


def test_a_mirror_image_is_found_where_nothing_else_is_free(small_avae, digits):
    model = small_avae(allow_reflection=True, alpha_prior={"angle": 0}).fit(digits.X[:1000])
    mirrored = digits.X_test[:60].reshape(-1, 28, 28)[:, :, ::-1].reshape(60, -1)
    found = model.align(mirrored)
    assert np.isfinite(found.gain).all()
    assert np.abs(found.gain).max() < 1e6
    assert found.reflected.mean() > 0.4
    assert not model.align(digits.X_test[:60]).reflected.mean() > 0.2
