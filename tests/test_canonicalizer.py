"""`AffineCanonicalizer` where it is used: in pipelines, searches and data frames."""

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

import sk_avae.learning.fit
from sk_avae import AffineCanonicalizer, AlignmentResult, AVAEEstimator

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


def reader():
    """A classifier of pixels that converges quickly."""
    return make_pipeline(MaxAbsScaler(), LogisticRegression(C=0.1, max_iter=500, tol=1e-2))


@pytest.fixture
def canonicalizer(fitted, digits):
    return AffineCanonicalizer(FrozenEstimator(fitted)).fit(digits.X[:5])


@pytest.fixture
def tiny(small_avae):
    """An aligner that is fitted in a moment; it need not be good."""
    return small_avae(max_epochs=1, n_restarts=4, n_refine=1)


# ---------------------------------------------------------------- the main job
def test_turned_digits_are_read_almost_as_well_as_upright_ones(canonicalizer, digits, turned):
    plain = reader().fit(digits.X[:2000], digits.y[:2000])
    pipeline = make_pipeline(canonicalizer, reader()).fit(digits.X[:2000], digits.y[:2000])
    upright, as_they_come = plain.score(digits.X_test, digits.y_test), plain.score(turned.X, turned.y)
    canonicalised = pipeline.score(turned.X, turned.y)
    assert upright > 0.8
    assert as_they_come < 0.4
    assert canonicalised > as_they_come + 0.35
    assert canonicalised > upright - 0.1
    upright_pixels = Pipeline([("canonicalizer", canonicalizer), ("reader", plain)])
    assert upright_pixels.score(turned.X, turned.y) > as_they_come + 0.3


# ---------------------------------------------------------------- around a fitted aligner
@pytest.fixture
def no_training(monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("a frozen aligner was fitted again")

    monkeypatch.setattr(sk_avae.learning.fit, "train", train)


@pytest.mark.usefixtures("no_training")
def test_a_frozen_aligner_survives_clone_and_grid_search(fitted, digits, turned):
    before = joblib.hash(fitted)
    pipeline = make_pipeline(AffineCanonicalizer(FrozenEstimator(fitted)), reader())
    grid = {"pipeline__logisticregression__C": [0.01, 0.1], "affinecanonicalizer__append_alpha": [False, True]}
    search = GridSearchCV(clone(pipeline), grid, cv=2).fit(digits.X[:120], digits.y[:120])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    used = search.best_estimator_.named_steps["affinecanonicalizer"]
    assert_array_equal(used.transform(turned.X[:5])[:, :784], fitted.transform(turned.X[:5])[:, :784])
    assert joblib.hash(fitted) == before


@pytest.mark.usefixtures("no_training")
def test_a_frozen_aligner_keeps_its_own_random_state(fitted, digits):
    used = AffineCanonicalizer(FrozenEstimator(fitted), random_state=7).fit(digits.X[:5])
    assert used.estimator_.random_state == 0


def test_the_estimator_is_cloned(tiny, digits, turned):
    canonicalizer = AffineCanonicalizer(tiny).fit(digits.X[:100])
    assert canonicalizer.estimator is tiny
    assert not hasattr(tiny, "module_")
    assert canonicalizer.estimator_ is not tiny
    expected = tiny.fit(digits.X[:100]).transform(turned.X[:5])[:, :784]
    assert_array_equal(canonicalizer.transform(turned.X[:5]), expected)


def test_without_an_estimator_it_is_the_default_one(digits):
    canonicalizer = AffineCanonicalizer(random_state=0).fit(digits.X[:64])
    expected = AVAEEstimator(random_state=0).get_params()
    assert canonicalizer.estimator_.get_params() == expected
    assert canonicalizer.estimator is None


def test_random_state_is_passed_on(tiny, digits, turned):
    tiny.set_params(random_state=None)
    canonicalizer = AffineCanonicalizer(tiny, random_state=3).fit(digits.X[:100])
    assert canonicalizer.estimator_.random_state == 3
    assert tiny.random_state is None
    expected = clone(tiny).set_params(random_state=3).fit(digits.X[:100]).transform(turned.X[:5])[:, :784]
    assert_array_equal(canonicalizer.transform(turned.X[:5]), expected)


def test_without_random_state_the_estimator_keeps_its_own(tiny, digits):
    canonicalizer = AffineCanonicalizer(tiny.set_params(random_state=5)).fit(digits.X[:50])
    assert canonicalizer.estimator_.random_state == 5


@pytest.mark.parametrize("estimator", [LogisticRegression(), MaxAbsScaler(), FrozenEstimator(MaxAbsScaler())])
def test_another_kind_of_estimator_is_refused(estimator, digits):
    with pytest.raises(TypeError, match=r"estimator must be an AVAEEstimator.* got (Logistic|MaxAbs|Frozen)"):
        AffineCanonicalizer(estimator).fit(digits.X[:20])


def test_an_unfitted_aligner_in_a_frozen_estimator_is_refused(tiny, digits):
    with pytest.raises(NotFittedError):
        AffineCanonicalizer(FrozenEstimator(tiny)).fit(digits.X[:20])


# ---------------------------------------------------------------- what comes out
def test_canonical_pixels_have_the_columns_of_x(canonicalizer, fitted, turned):
    T = fitted.transform(turned.X[:20])
    assert_array_equal(canonicalizer.transform(turned.X[:20]), T[:, :784])
    assert canonicalizer.n_features_in_ == 784


@pytest.mark.parametrize(("given", "returned"), [(np.uint8, np.float32), (np.float32,) * 2, (np.float64, np.float32)])
def test_precision_is_that_of_fit(canonicalizer, turned, given, returned):
    assert canonicalizer.transform(turned.X[:3].astype(given)).dtype == returned


def test_the_pose_is_appended_on_request(canonicalizer, fitted, turned):
    canonicalizer.set_params(append_alpha=True)
    T = canonicalizer.transform(turned.X[:20])
    assert_array_equal(T, fitted.transform(turned.X[:20]))
    back = canonicalizer.inverse_transform(T)
    assert_array_equal(back, fitted.inverse_transform(T))
    assert back.shape == (20, 784)


def test_the_way_back_needs_the_pose(canonicalizer):
    assert not hasattr(canonicalizer, "inverse_transform")
    with pytest.raises(AttributeError):
        canonicalizer.inverse_transform(np.zeros((1, 784)))
    assert hasattr(canonicalizer.set_params(append_alpha=True), "inverse_transform")


def test_align_is_the_aligners(canonicalizer, fitted, turned):
    result = canonicalizer.align(turned.X[:20])
    assert isinstance(result, AlignmentResult)
    assert_array_equal(result.alpha, fitted.align(turned.X[:20]).alpha)


def test_stacks_stay_stacks(canonicalizer, turned):
    rows = canonicalizer.transform(turned.X[:5])
    stack = canonicalizer.transform(turned.X[:5].reshape(-1, 28, 28))
    assert stack.shape == (5, 28, 28)
    assert_array_equal(stack.reshape(5, -1), rows)
    assert canonicalizer.transform(turned.X[:1].reshape(1, 28, 28)).shape == (1, 28, 28)


def test_nested_lists_of_images_stay_stacks(canonicalizer, turned):
    stack = canonicalizer.transform(turned.X[:3].reshape(-1, 28, 28).tolist())
    assert_array_equal(stack, canonicalizer.transform(turned.X[:3].reshape(-1, 28, 28)))


def test_colour_stacks_stay_stacks(tiny, digits):
    colour = np.stack([digits.X[:60].reshape(-1, 28, 28)] * 3, axis=-1)
    canonicalizer = AffineCanonicalizer(tiny).fit(colour)
    assert canonicalizer.transform(colour[:5]).shape == (5, 28, 28, 3)
    rows = canonicalizer.transform(colour[:5].reshape(5, -1))
    assert_array_equal(rows.reshape(5, 28, 28, 3), canonicalizer.transform(colour[:5]))
    canonicalizer.set_params(append_alpha=True)
    assert canonicalizer.transform(colour[:5]).shape == (5, 28 * 28 * 3 + 1)


def test_fitting_on_a_stack_and_reading_rows(tiny, digits, turned):
    canonicalizer = AffineCanonicalizer(tiny).fit(digits.X[:60].reshape(-1, 28, 28))
    from_rows = AffineCanonicalizer(tiny).fit(digits.X[:60])
    assert_array_equal(canonicalizer.transform(turned.X[:5]), from_rows.transform(turned.X[:5]))


# ---------------------------------------------------------------- names
def test_feature_names(canonicalizer):
    names = [f"x{i}" for i in range(784)]
    assert list(canonicalizer.get_feature_names_out()) == names
    canonicalizer.set_params(append_alpha=True)
    assert list(canonicalizer.get_feature_names_out()) == [*names, "alpha_angle"]
    renamed = [f"p{i}" for i in range(784)]
    assert list(canonicalizer.get_feature_names_out(renamed)) == [*renamed, "alpha_angle"]


@pytest.mark.parametrize("append_alpha", [False, True])
def test_pandas_output_names_pixels_and_pose(tiny, digits, append_alpha):
    X = pd.DataFrame(digits.X[:40], columns=[f"pixel{i}" for i in range(784)], index=np.arange(40) + 7)
    canonicalizer = AffineCanonicalizer(tiny, append_alpha=append_alpha).set_output(transform="pandas").fit(X)
    T = canonicalizer.transform(X)
    assert list(T.columns) == list(X.columns) + ["alpha_angle"] * append_alpha
    assert_array_equal(T.index, X.index)
    assert list(canonicalizer.feature_names_in_) == list(X.columns)


# ---------------------------------------------------------------- searches
GRID = {"latent_size": [2, 8], "n_restarts": [1, 8]}


@pytest.fixture
def searched(small_avae):
    return small_avae(max_epochs=5, n_refine=1)


def in_pipeline(grid):
    return {f"affinecanonicalizer__estimator__{name}": values for name, values in grid.items()}


def test_grid_search_over_latent_size_and_restarts(searched, digits, turned):
    # Screening alone: the best of more starts is never worse. What it is refined to may be, if rarely.
    searched.set_params(expert__max_iter=0, learned_starts=False)
    search = GridSearchCV(searched, GRID, cv=2).fit(digits.X[:300])
    scores = search.cv_results_["mean_test_score"].reshape(2, 2)
    assert np.isfinite(scores).all()
    assert (scores[:, 1] >= scores[:, 0]).all()
    assert search.best_score_ == scores.max()
    assert search.score(turned.X[:50]) == pytest.approx(search.best_estimator_.score(turned.X[:50]))


def test_two_jobs_score_like_one(searched, digits):
    grid = {"n_restarts": [1, 8]}
    searches = [GridSearchCV(searched, grid, cv=2, n_jobs=n, refit=False).fit(digits.X[:120]) for n in (1, 2)]
    one, two = (search.cv_results_["mean_test_score"] for search in searches)
    assert_array_equal(one, two)


def test_two_jobs_score_like_one_through_a_pipeline(searched, digits):
    pipeline = make_pipeline(AffineCanonicalizer(searched), reader())
    grid = in_pipeline({"n_restarts": [1, 8]})
    one, two = (
        GridSearchCV(pipeline, grid, cv=2, n_jobs=n, scoring="accuracy").fit(digits.X[:200], digits.y[:200])
        for n in (1, 2)
    )
    assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    assert one.best_params_ == two.best_params_
    assert one.best_score_ > 0.5


def test_halving_search_over_epochs(searched, digits):
    search = HalvingGridSearchCV(
        searched, {"latent_size": [2, 8]}, resource="max_epochs", min_resources=2, max_resources=4, factor=2, cv=2
    )
    search.fit(digits.X[:200])
    assert search.n_resources_ == [2, 4]
    assert search.best_estimator_.n_iter_ == 4
    assert_allclose(search.best_estimator_.score(digits.X[:50]), search.score(digits.X[:50]))


def test_a_refit_forgets_the_column_names(small_avae, digits):
    pixels = digits.X[:200, :784]
    frame = pd.DataFrame(pixels, columns=[f"p{i}" for i in range(784)])
    model = AffineCanonicalizer(small_avae(max_epochs=1)).fit(frame)
    assert model.get_feature_names_out()[0] == "p0"
    assert model.fit(pixels).get_feature_names_out()[0] == "x0"


def test_a_stack_becomes_rows_where_data_frames_are_asked_for(fitted, digits):
    model = AffineCanonicalizer(FrozenEstimator(fitted)).fit(digits.X[:10]).set_output(transform="pandas")
    assert model.transform(digits.X_test[:3].reshape(3, 28, 28)).shape == (3, 784)


# ---------------------------------------------------------------- regression and clustering behind it


def test_clusters_of_turned_images_are_those_of_their_classes(fitted_with_critic, digits, turned):
    canonicalizer = AffineCanonicalizer(FrozenEstimator(fitted_with_critic))

    def agreement(clustering):
        return adjusted_rand_score(turned.y[:200], clustering.fit(digits.X[:600]).predict(turned.X[:200]))

    clusters = KMeans(10, n_init=3, random_state=0)
    assert agreement(make_pipeline(canonicalizer, clusters)) > agreement(clusters) + 0.1


@pytest.mark.parametrize("later", [np.float64, np.float32, np.uint8])
def test_what_is_fitted_behind_meets_one_type(fitted_with_critic, digits, later):
    pipeline = make_pipeline(
        AffineCanonicalizer(FrozenEstimator(fitted_with_critic)), KMeans(3, n_init=1, random_state=0)
    ).fit(digits.X[:60])
    assert pipeline.predict(digits.X_test[:9].astype(later)).shape == (9,)


def test_a_regression_reads_turned_images(fitted_with_critic, digits, turned):
    def width(rows):
        inked = rows.reshape(-1, 28, 28).max(axis=1) > 0
        return inked.sum(axis=1)

    X, target, truth = digits.X[:600], width(digits.X[:600]), width(digits.X_test[:200])
    alone = Ridge(alpha=1e6)
    behind = make_pipeline(AffineCanonicalizer(FrozenEstimator(fitted_with_critic)), clone(alone)).fit(X, target)
    assert behind.score(turned.X[:200], truth) > alone.fit(X, target).score(turned.X[:200], truth) + 0.2
