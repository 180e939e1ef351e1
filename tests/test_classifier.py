"""`CanonicalizedClassifier`: what it averages, what it is better at, and where it is used."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.svm import SVC

import sk_avae.learning.fit
from sk_avae import AVAEEstimator, CanonicalizedClassifier
from sk_avae.mixture import HypothesisMixture

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


def reader():
    """A classifier of pixels that converges quickly."""
    return make_pipeline(MaxAbsScaler(), LogisticRegression(C=0.1, max_iter=500, tol=1e-2))


@pytest.fixture
def tiny(small_avae):
    """An aligner that is fitted in a moment; it need not be good."""
    return small_avae(max_epochs=1, n_restarts=4)


@pytest.fixture(scope="module")
def doubting(fitted_with_critic, digits):
    """A reader of digits behind the session's aligner with a critic; nothing may change it."""
    aligner = copy.deepcopy(fitted_with_critic).set_params(min_gain=0.0)
    return CanonicalizedClassifier(reader(), FrozenEstimator(aligner)).fit(digits.X[:600], digits.y[:600])


# ---------------------------------------------------------------- the main job


def test_stretched_digits_are_read_far_better_than_without(doubting, digits, stretched):
    plain = reader().fit(digits.X[:600], digits.y[:600])
    as_they_come = plain.score(stretched.X, stretched.y)
    assert doubting.score(stretched.X, stretched.y) > as_they_come + 0.3
    assert as_they_come < 0.45


def test_doubt_is_surprised_less_often_than_a_single_answer(doubting, stretched):
    one = copy.copy(doubting).set_params(n_hypotheses=1)
    truth = np.arange(len(stretched.y)), stretched.y
    averaged, single = (model.predict_proba(stretched.X)[truth] for model in (doubting, one))
    assert -np.log(averaged).mean() < -np.log(single).mean() - 0.01


# ---------------------------------------------------------------- what it averages


@pytest.mark.parametrize("n_hypotheses", [1, 2, None])
def test_probabilities_are_the_average_over_the_hypotheses(doubting, stretched, n_hypotheses):
    X = stretched.X[:40].astype(float)
    images, weights = doubting.estimator_.transform_hypotheses(X)
    expected = np.zeros((40, 10))
    for image, weight, row in zip(images, weights, expected, strict=True):
        some = weight[:n_hypotheses] / weight[:n_hypotheses].sum()
        row += some @ doubting.classifier_.predict_proba(image[:n_hypotheses])
    model = copy.copy(doubting).set_params(n_hypotheses=n_hypotheses)
    model.mixture_ = HypothesisMixture()
    found = model.predict_proba(X)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert_array_equal(model.predict(X), doubting.classes_[expected.argmax(axis=1)])


def test_one_hypothesis_is_the_classifier_behind_the_canonicalizer(doubting, stretched):
    X = stretched.X[:30]
    canonical = doubting.estimator_.transform(X)[:, :784]
    one = copy.copy(doubting).set_params(n_hypotheses=1)
    one.mixture_ = HypothesisMixture()
    assert_allclose(one.predict_proba(X), doubting.classifier_.predict_proba(canonical), rtol=1e-5, atol=1e-9)
    assert not np.allclose(doubting.predict_proba(X), one.predict_proba(X), atol=1e-3)


def test_more_hypotheses_than_there_are_are_all_of_them(doubting, stretched):
    many = copy.copy(doubting).set_params(n_hypotheses=50)
    assert_array_equal(many.predict_proba(stretched.X[:20]), doubting.predict_proba(stretched.X[:20]))


def test_an_image_s_answer_depends_on_that_image_alone(doubting, stretched):
    together = doubting.predict_proba(stretched.X[:20])
    alone = np.vstack([doubting.predict_proba(row[None]) for row in stretched.X[:20]])
    assert_allclose(alone, together, rtol=1e-4, atol=1e-6)


class Votes(ClassifierMixin, BaseEstimator):
    """A classifier that only predicts."""

    def fit(self, X, y):
        self.neighbours_ = KNeighborsClassifier(3).fit(X, y)
        self.classes_ = self.neighbours_.classes_
        return self

    def predict(self, X):
        return self.neighbours_.predict(X)


@pytest.mark.parametrize(
    "classifier", [SVC(random_state=0), SVC(decision_function_shape="ovo", random_state=0), Votes()]
)
def test_a_classifier_without_probabilities_gets_some(fitted_with_critic, digits, stretched, classifier):
    aligner = FrozenEstimator(copy.deepcopy(fitted_with_critic).set_params(min_gain=0.0))
    model = CanonicalizedClassifier(classifier, aligner, random_state=0).fit(digits.X[:600], digits.y[:600])
    probabilities = model.predict_proba(stretched.X)
    right = model.predict(stretched.X) == stretched.y
    assert model.mixture_.n_judged == 600
    assert right.mean() > 0.6
    assert abs(probabilities.max(axis=1).mean() - right.mean()) < 0.1
    assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_two_classes_from_one_decision_value(fitted, digits):
    X, y = digits.X[:200], digits.y[:200] > 4
    model = CanonicalizedClassifier(SVC(random_state=0), FrozenEstimator(fitted), random_state=0).fit(X, y)
    assert model.predict_proba(X[:7]).shape == (7, 2)
    assert model.score(X, y) > 0.9


# ---------------------------------------------------------------- what goes in


def test_it_fits_a_clone_of_both_on_canonical_images(tiny, digits):
    X, y = digits.X[:150], digits.y[:150]
    neighbours = KNeighborsClassifier(3)
    model = CanonicalizedClassifier(neighbours, tiny).fit(X, y)
    assert not hasattr(tiny, "module_")
    assert not hasattr(neighbours, "classes_")
    assert model.classifier is neighbours
    aligner = clone(tiny).fit(X)
    assert joblib.hash(aligner) == joblib.hash(model.estimator_)
    copies = aligner.transform(
        aligner.perturb(X, np.random.RandomState(np.random.RandomState(0).randint(2**31 - 1)))[0]
    )
    expected = clone(neighbours).fit(np.vstack([aligner.transform(X), copies])[:, :784], np.tile(y, 2))
    assert_array_equal(expected._fit_X, model.classifier_._fit_X)
    assert_array_equal(expected._y, model.classifier_._y)
    assert model.n_features_in_ == 784
    assert_array_equal(model.classes_, np.arange(10))


@pytest.mark.usefixtures("few_lessons")
def test_without_anything_it_is_a_logistic_regression_behind_the_default_aligner(digits):
    model = CanonicalizedClassifier(random_state=0).fit(digits.X[:64] / 255, digits.y[:64])
    assert isinstance(model.classifier_, LogisticRegression)
    assert model.estimator_.get_params() == AVAEEstimator(random_state=0).get_params()
    assert model.classifier is None
    assert model.estimator is None


def test_random_state_is_passed_on(tiny, digits):
    X, y = digits.X[:60], digits.y[:60]
    seeded = CanonicalizedClassifier(KNeighborsClassifier(), tiny, random_state=3).fit(X, y)
    assert seeded.estimator_.random_state == 3
    assert tiny.random_state == 0
    assert CanonicalizedClassifier(KNeighborsClassifier(), tiny).fit(X, y).estimator_.random_state == 0


def test_copies_are_aligned_in_poses_of_their_own(fitted, digits):
    X, y = digits.X[:80], digits.y[:80]
    model = CanonicalizedClassifier(KNeighborsClassifier(3), FrozenEstimator(fitted), n_copies=2, random_state=7)
    model.fit(X, y)
    random = np.random.RandomState(np.random.RandomState(7).randint(2**31 - 1))
    turned = [fitted.perturb(X, random)[0] for _ in range(2)]
    assert_array_equal(model.classifier_._fit_X, np.vstack([fitted.transform(rows)[:, :784] for rows in (X, *turned)]))
    assert_array_equal(model.classes_[model.classifier_._y], np.tile(y, 3))
    assert joblib.hash(clone(model).fit(X, y)) == joblib.hash(model)
    without = CanonicalizedClassifier(KNeighborsClassifier(3), FrozenEstimator(fitted), n_copies=0).fit(X, y)
    assert_array_equal(without.classifier_._fit_X, fitted.transform(X)[:, :784])


def test_copies_weigh_what_their_image_weighs(fitted, digits):
    class Recorder(KNeighborsClassifier):
        def fit(self, X, y, sample_weight, budget):
            self.seen = sample_weight, budget
            return super().fit(X, y)

    weight = np.linspace(0, 1, 60)
    model = CanonicalizedClassifier(Recorder(), FrozenEstimator(fitted), n_copies=1)
    seen, budget = model.fit(digits.X[:60], digits.y[:60], sample_weight=weight, budget=3).classifier_.seen
    assert_array_equal(seen, np.tile(weight, 2))
    assert budget == 3


def test_copies_teach_neighbours_what_alignment_leaves(fitted_with_critic, digits, stretched):
    aligner = FrozenEstimator(copy.deepcopy(fitted_with_critic).set_params(min_gain=0.0))
    scores = [
        CanonicalizedClassifier(KNeighborsClassifier(3), aligner, n_copies=n_copies, random_state=0)
        .fit(digits.X[:2000], digits.y[:2000])
        .score(stretched.X, stretched.y)
        for n_copies in (0, 1)
    ]
    assert scores[1] > scores[0]


def test_one_class_is_certain(fitted, digits):
    classifier = make_pipeline(MaxAbsScaler(), RidgeClassifier(100.0))
    model = CanonicalizedClassifier(classifier, FrozenEstimator(fitted)).fit(digits.X[:60], np.zeros(60))
    assert_array_equal(model.predict_proba(digits.X[:4]), np.ones((4, 1)))


def test_labels_may_be_words(tiny, digits):
    words = np.array([f"digit {y}" for y in digits.y[:150]])
    model, numbers = (
        CanonicalizedClassifier(KNeighborsClassifier(3), tiny).fit(digits.X[:150], y) for y in (words, digits.y[:150])
    )
    X = digits.X_test[:30]
    assert_array_equal(model.classes_, np.unique(words))
    assert_array_equal(model.predict(X), [f"digit {y}" for y in numbers.predict(X)])
    assert_array_equal(model.predict_proba(X), numbers.predict_proba(X))


def test_stacks_and_colours_are_read_as_their_rows(tiny, digits, turned):
    y = digits.y[:100]
    rows = CanonicalizedClassifier(KNeighborsClassifier(3), tiny).fit(digits.X[:100], y)
    stack = CanonicalizedClassifier(KNeighborsClassifier(3), tiny).fit(digits.X[:100].reshape(-1, 28, 28), y)
    assert_array_equal(stack.predict_proba(turned.X[:10].reshape(-1, 28, 28)), rows.predict_proba(turned.X[:10]))
    colours = np.stack([digits.X[:100].reshape(-1, 28, 28)] * 3, axis=-1)
    model = CanonicalizedClassifier(KNeighborsClassifier(3), tiny).fit(colours, y)
    assert model.n_features_in_ == 28 * 28 * 3
    assert model.estimator_.image_shape_ == (28, 28, 3)
    assert model.predict_proba(colours[:5]).shape == (5, 10)
    oblong = tiny.set_params(image_shape=(14, 56))
    assert CanonicalizedClassifier(KNeighborsClassifier(), oblong).fit(digits.X[:60], digits.y[:60]).predict(
        digits.X[:3].reshape(3, 14, 56)
    ).shape == (3,)


def test_data_frames_keep_their_names(tiny, digits):
    X = pd.DataFrame(digits.X[:60], columns=[f"p{i}" for i in range(784)])
    tiny.set_output(transform="pandas")
    model = CanonicalizedClassifier(KNeighborsClassifier(3), tiny, n_copies=1).fit(X, pd.Series(digits.y[:60]))
    assert list(model.feature_names_in_) == list(X.columns)
    assert model.predict_proba(X).shape == (60, 10)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(X.rename(columns={"p3": "p784"}))


# ---------------------------------------------------------------- around a fitted aligner, in searches


def test_a_frozen_aligner_is_used_as_it_is(fitted, digits, turned, monkeypatch):
    def train(*args, **kwargs):
        raise AssertionError("a frozen aligner was fitted again")

    monkeypatch.setattr(sk_avae.learning.fit, "train", train)
    before = joblib.hash(fitted)
    model = CanonicalizedClassifier(KNeighborsClassifier(3), FrozenEstimator(fitted), n_copies=0, random_state=7)
    model = clone(model).fit(digits.X[:80], digits.y[:80])
    expected = KNeighborsClassifier(3).fit(fitted.transform(digits.X[:80])[:, :784], digits.y[:80])
    assert_array_equal(model.classifier_._fit_X, expected._fit_X)
    assert model.predict(turned.X[:10].reshape(-1, 28, 28)).shape == (10,)
    assert joblib.hash(fitted) == before


def test_nested_parameters_can_be_searched(tiny, digits):
    model = CanonicalizedClassifier(KNeighborsClassifier(), tiny)
    grid = {"classifier__n_neighbors": [1, 60], "estimator__n_restarts": [1, 4], "n_hypotheses": [1]}
    search = GridSearchCV(model, grid, cv=2).fit(digits.X[:120], digits.y[:120])
    assert search.best_params_["classifier__n_neighbors"] == 1
    assert search.best_score_ > 0.4
    assert search.best_estimator_.estimator_.n_restarts == search.best_params_["estimator__n_restarts"]
    assert model.get_params()["estimator__family"] == "rotation"


def test_it_is_cross_validated_like_any_classifier(fitted, digits):
    model = CanonicalizedClassifier(KNeighborsClassifier(3), FrozenEstimator(fitted))
    scores = cross_val_score(model, digits.X[:200], digits.y[:200], cv=2, scoring="neg_log_loss")
    assert (scores > np.log(0.1) * 2).all()


# ---------------------------------------------------------------- files and copies


@pytest.mark.usefixtures("few_lessons")
def test_it_survives_pickling_and_hashes_alike(tiny, digits, turned):
    model = CanonicalizedClassifier(reader(), tiny.set_params(critic=True))
    one, other = (clone(model).fit(digits.X[:150], digits.y[:150]) for _ in range(2))
    assert one.estimator_.critic_ is not None
    assert joblib.hash(one) == joblib.hash(other)
    again = pickle.loads(pickle.dumps(one))
    assert_array_equal(again.predict_proba(turned.X[:10]), one.predict_proba(turned.X[:10]))
    # What is this package's; the coefficients of older linear models come back in another order of memory.
    assert joblib.hash(again.estimator_) == joblib.hash(one.estimator_)


def test_pickles_of_before_average(doubting, stretched):
    old = {name: value for name, value in doubting.__getstate__().items() if name not in {"calibrate", "mixture_"}}
    model = CanonicalizedClassifier()
    vars(model).clear()
    model.__setstate__(old)
    averaging = copy.copy(doubting)
    averaging.mixture_ = HypothesisMixture()
    assert_array_equal(model.predict_proba(stretched.X[:9]), averaging.predict_proba(stretched.X[:9]))
    assert model.get_params()["calibrate"] is False


def test_predicting_learns_nothing(doubting, stretched):
    before = joblib.hash(doubting)
    doubting.predict(stretched.X[:5])
    doubting.predict_proba(stretched.X[:5])
    doubting.score(stretched.X[:5], stretched.y[:5])
    assert joblib.hash(doubting) == before


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_unfitted_it_says_so(digits, method):
    with pytest.raises(NotFittedError, match="This CanonicalizedClassifier instance is not fitted yet"):
        getattr(CanonicalizedClassifier(), method)(digits.X[:2])


@pytest.mark.parametrize("estimator", [LogisticRegression(), MaxAbsScaler(), FrozenEstimator(MaxAbsScaler())])
def test_another_kind_of_aligner_is_refused(estimator, digits):
    with pytest.raises(TypeError, match=r"estimator must be an AVAEEstimator.* got (Logistic|MaxAbs|Frozen)"):
        CanonicalizedClassifier(estimator=estimator).fit(digits.X[:20], digits.y[:20])


def test_a_regression_is_refused_before_anything_is_trained(tiny, digits, monkeypatch):
    monkeypatch.setattr(sk_avae.learning.fit, "train", None)
    with pytest.raises(TypeError, match="classifier must be a classifier, got LinearRegression"):
        CanonicalizedClassifier(LinearRegression(), tiny).fit(digits.X[:20], digits.y[:20])


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (None, "y to be passed, but the target y is None"),
        (np.arange(19), "inconsistent numbers of samples"),
        (np.linspace(0, 1, 20), "Unknown label type"),
        (np.zeros((20, 2)), r"should be a 1d array"),
        (np.full(20, np.nan), "Input y contains NaN"),
        (np.array([0.0, np.inf] * 10), "Input y contains infinity"),
    ],
)
def test_labels_that_are_none(tiny, digits, y, match):
    with pytest.raises(ValueError, match=match):
        CanonicalizedClassifier(KNeighborsClassifier(), tiny).fit(digits.X[:20], y)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("all", TypeError)])
def test_a_number_of_hypotheses_that_is_none(doubting, digits, value, error):
    model = copy.copy(doubting).set_params(n_hypotheses=value)
    for call in (lambda: model.fit(digits.X[:20], digits.y[:20]), lambda: model.predict(digits.X[:2])):
        with pytest.raises(error, match="n_hypotheses"):
            call()


def test_a_failed_refit_leaves_it_as_it_was(tiny, digits, turned):
    X, y = digits.X[:100] / 255, digits.y[:100]
    model = CanonicalizedClassifier(LogisticRegression(tol=0.1), tiny).fit(X, y)
    before, expected = joblib.hash(model), model.predict_proba(turned.X[:5] / 255)
    bad = X.copy()
    bad[3, 3] = np.nan
    for images, labels in ((X[:, :400], np.zeros(100)), (bad, y), (X[:, :400], y[:50]), (X[:0], y[:0])):
        with pytest.raises(ValueError, match=r"class|NaN|inconsistent|0 sample"):
            model.fit(images, labels)
        assert joblib.hash(model) == before
    assert_array_equal(model.predict_proba(turned.X[:5] / 255), expected)


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_images_of_another_size_than_in_fit(doubting, digits, method):
    with pytest.raises(ValueError, match=r"X has 783 features, but .* is expecting 784 features"):
        getattr(doubting, method)(digits.X[:3, :783])
