"""The scorer that gives held-out images other poses first."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from sk_avae import AffineCanonicalizer
from sk_avae.datasets import make_perturbed
from sk_avae.scoring import elbo, perturbed

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


class Looks:
    """An estimator that keeps what it is scored on."""

    def score(self, X, y=None, sample_weight=None):
        self.X, self.y, self.weight = X, y, sample_weight
        return 0.25


def test_images_are_perturbed_as_make_perturbed_does(digits):
    looks, X, y = Looks(), digits.X_test[:20], digits.y_test[:20]
    ranges = {"angle": (0.5, 1.0), "tx": 0.1}
    assert perturbed(None, family="rigid", ranges=ranges, random_state=3)(looks, X, y, sample_weight=y) == 0.25
    assert_array_equal(looks.X, make_perturbed(X, family="rigid", ranges=ranges, random_state=3)[0])
    assert_array_equal(looks.y, y)
    assert_array_equal(looks.weight, y)
    looks.image_shape_ = (14, 56)  # an aligner knows the shape of its rows
    perturbed()(looks, X)
    assert_array_equal(looks.X, make_perturbed(X, image_shape=(14, 56), random_state=0)[0])
    del looks.image_shape_
    perturbed()(looks, X.reshape(-1, 28, 28))
    assert_array_equal(looks.X, make_perturbed(X, random_state=0)[0].reshape(-1, 28, 28))


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_data_frames_keep_their_names(digits, container):
    library = pytest.importorskip(container)
    X = library.DataFrame(digits.X_test[:5])
    X.columns = [f"p{i}" for i in range(784)]
    looks = Looks()
    perturbed()(looks, X)
    assert type(looks.X) is type(X)
    assert list(looks.X.columns) == list(X.columns)
    assert_array_equal(looks.X.to_numpy(), make_perturbed(digits.X_test[:5], random_state=0)[0])


def test_any_scorer_is_taken(fitted, digits):
    turned, _ = make_perturbed(digits.X_test[:40], random_state=0)
    assert perturbed(elbo)(fitted, digits.X_test[:40]) == fitted.score(turned)
    classifier = LogisticRegression(max_iter=50, tol=0.1).fit(digits.X[:200], digits.y[:200])
    for name in ("accuracy", "neg_log_loss"):
        expected = get_scorer(name)(classifier, turned, digits.y_test[:40])
        scorer = pickle.loads(pickle.dumps(perturbed(name)))
        assert scorer(classifier, digits.X_test[:40], digits.y_test[:40]) == expected
    assert "accuracy" in repr(perturbed("accuracy"))


@pytest.mark.usefixtures("few_lessons")
def test_searches_and_validations_take_it(fitted, digits):
    pipeline = Pipeline([("canon", AffineCanonicalizer(FrozenEstimator(fitted))), ("clf", KNeighborsClassifier())])
    X, y = digits.X[:60], digits.y[:60]
    scoring = {"upright": "accuracy", "turned": perturbed("accuracy")}
    scores = cross_validate(pipeline, X, y, scoring=scoring, cv=2)
    assert np.isfinite(scores["test_turned"]).all()
    search = GridSearchCV(pipeline, {"clf__n_neighbors": [1, 30]}, scoring=perturbed("accuracy"), cv=2, n_jobs=2)
    assert search.fit(X, y).best_params_ == {"clf__n_neighbors": 1}


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"scorer": 3}, TypeError, "scorer must be a name"),
        ({"scorer": "acuracy"}, ValueError, "acuracy"),
        ({"family": "rotate"}, ValueError, "rotate"),
        ({"ranges": {"tx": 0.1}}, ValueError, r"ranges names \['tx'\]"),
        ({"ranges": 0.5}, TypeError, "ranges must be a dict"),
    ],
)
def test_what_is_wrong_is_named_before_the_search(arguments, error, match):
    with pytest.raises(error, match=match):
        perturbed(**arguments)
