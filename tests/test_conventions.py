"""scikit-learn's conventions around the estimators: containers, metadata routing, the HTML repr."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.metadata_routing import get_routing_for_object

from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

PIXELS = [f"pixel{i}" for i in range(784)]
FRAMES = {"pandas": pd.DataFrame, "polars": pl.DataFrame}


@pytest.fixture
def tiny(small_avae):
    return small_avae(latent_size=4, max_epochs=1, n_restarts=4, n_refine=1, learned_starts=False)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


# ---------------------------------------------------------------- set_output
def names_seen(model):
    """Names of the input columns."""
    if not sklearn.__version__.startswith("1.9.") and not hasattr(model, "feature_names_in_"):
        pytest.skip("an older scikit-learn does not read the names of a newer polars")
    assert list(model.feature_names_in_) == PIXELS
    return PIXELS


def frame(container, X):
    return pl.DataFrame(X, schema=PIXELS) if container == "polars" else pd.DataFrame(X, columns=PIXELS)


@pytest.mark.parametrize("container", FRAMES)
@pytest.mark.parametrize(
    "make", [lambda a: a, AffineCanonicalizer, lambda a: AffineCanonicalizer(a, append_alpha=True)]
)
def test_data_frames_come_out_with_their_names(tiny, digits, container, make):
    model = make(tiny).fit(frame(container, digits.X[:60]))
    expected = model.transform(frame(container, digits.X_test[:5]))
    assert isinstance(expected, np.ndarray)
    model.set_output(transform=container)
    alpha = ["alpha_angle"] * (expected.shape[1] - 784)
    T = model.transform(frame(container, digits.X_test[:5]))
    assert type(T) is FRAMES[container]
    assert list(T.columns) == [*names_seen(model), *alpha] == list(model.get_feature_names_out())
    assert_array_equal(T.to_numpy(), expected)


@pytest.mark.parametrize("container", FRAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_data_frames_keep_their_precision(tiny, digits, container, dtype):
    X = digits.X_test[:5] if dtype == np.uint8 else digits.X_test[:5].astype(dtype) / dtype(3)
    seen = digits.X[:60].astype(dtype)
    model = clone(tiny).fit(frame(container, seen))
    T = model.transform(frame(container, X))
    assert T.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert_array_equal(T, clone(tiny).fit(seen).transform(X))
    framed = model.set_output(transform=container).transform(frame(container, X))
    assert_array_equal(model.inverse_transform(framed), model.inverse_transform(T))
    assert model.inverse_transform(framed).dtype == T.dtype


@pytest.mark.parametrize("container", FRAMES)
def test_data_frames_go_through_a_pipeline(tiny, digits, container):
    X, X_test = frame(container, digits.X[:60] / 255), frame(container, digits.X_test[:5] / 255)
    pipeline = make_pipeline(AffineCanonicalizer(tiny, append_alpha=True), StandardScaler())
    expected = clone(pipeline).fit(X).transform(X_test)
    T = pipeline.set_output(transform=container).fit(X).transform(X_test)
    assert type(T) is FRAMES[container]
    assert list(T.columns) == [*names_seen(pipeline), "alpha_angle"] == list(pipeline.get_feature_names_out())
    assert_allclose(T.to_numpy(), expected, rtol=1e-9)  # the scaler sums columns in another order


@pytest.mark.parametrize("container", FRAMES)
def test_arrays_in_and_data_frames_out(tiny, digits, container):
    model = tiny.fit(digits.X[:60])
    expected = model.transform(digits.X_test[:5])
    T = model.set_output(transform=container).fit_transform(digits.X[:60])
    assert list(T.columns) == [*(f"x{i}" for i in range(784)), "alpha_angle"]
    T = model.transform(digits.X_test[:5].reshape(5, 28, 28))
    assert_array_equal(T.to_numpy(), expected)
    assert_array_equal(model.inverse_transform(T), model.inverse_transform(expected))


# ---------------------------------------------------------------- metadata
class Weighted(KNeighborsClassifier):
    """Remembers the weights that came."""

    def fit(self, X, y, sample_weight=None, groups=None):
        self.sample_weight_, self.groups_ = sample_weight, groups
        return super().fit(X, y)


WEIGHTS = np.linspace(1, 2, 60)


def test_weights_go_to_the_classifier(tiny, digits):
    model = CanonicalizedClassifier(Weighted(), tiny).fit(digits.X[:60], digits.y[:60], sample_weight=WEIGHTS)
    assert_array_equal(model.classifier_.sample_weight_, np.tile(WEIGHTS, 2))
    assert model.fit(digits.X[:60], digits.y[:60]).classifier_.sample_weight_ is None


def test_a_classifier_that_takes_no_weights_says_so(tiny, digits):
    with pytest.raises(TypeError, match="sample_weight"):
        CanonicalizedClassifier(KNeighborsClassifier(), tiny).fit(digits.X[:60], digits.y[:60], sample_weight=WEIGHTS)


@pytest.mark.usefixtures("routing")
def test_metadata_is_routed_as_requested(tiny, digits):
    X, y = digits.X[:60], digits.y[:60]
    model = CanonicalizedClassifier(Weighted().set_fit_request(sample_weight=True, groups="camera"), tiny)
    model.fit(X, y, sample_weight=WEIGHTS, camera=y)
    assert_array_equal(model.classifier_.sample_weight_, np.tile(WEIGHTS, 2))
    assert_array_equal(model.classifier_.groups_, np.tile(y, 2))
    ignoring = CanonicalizedClassifier(Weighted().set_fit_request(sample_weight=False), tiny)
    assert ignoring.fit(X, y).classifier_.sample_weight_ is None


@pytest.mark.usefixtures("routing")
def test_metadata_that_nobody_requests_are_refused(tiny, digits):
    X, y = digits.X[:60], digits.y[:60]
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="sample_weight"):
        CanonicalizedClassifier(Weighted(), tiny).fit(X, y, sample_weight=WEIGHTS)
    with pytest.raises(TypeError, match=r"unexpected argument.*weather"):
        CanonicalizedClassifier(Weighted(), tiny).fit(X, y, weather=WEIGHTS)


@pytest.mark.usefixtures("routing")
def test_weights_are_split_by_a_search(fitted, digits):
    classifier = LogisticRegression(tol=0.1, max_iter=1000).set_fit_request(sample_weight=True)
    model = CanonicalizedClassifier(classifier, FrozenEstimator(fitted)).set_score_request(sample_weight=True)
    search = GridSearchCV(model, {"classifier__C": [0.01, 1]}, cv=2)
    y = digits.y[:60] % 2
    search.fit(digits.X[:60], y, sample_weight=WEIGHTS * (y == 0) + 1e-9)
    assert (search.predict(digits.X_test[:60]) == 0).mean() > 0.9


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("model", [AVAEEstimator(), AffineCanonicalizer(), AffineCanonicalizer(AVAEEstimator())])
def test_aligners_take_no_metadata(model):
    requests = get_routing_for_object(model)
    assert not any(requests.consumes(method, {"sample_weight", "out", "y"}) for method in ("fit", "transform", "score"))
    assert not hasattr(model, "set_transform_request")


@pytest.mark.usefixtures("routing")
def test_in_a_pipeline_metadata_go_past_the_aligner(tiny, digits):
    pipeline = make_pipeline(AffineCanonicalizer(tiny), Weighted().set_fit_request(sample_weight=True))
    pipeline = clone(pipeline).fit(digits.X[:60], digits.y[:60], sample_weight=WEIGHTS)
    assert_array_equal(pipeline[-1].sample_weight_, WEIGHTS)
    assert pipeline.predict(digits.X_test[:3]).shape == (3,)
    assert clone(make_pipeline(tiny)).fit(digits.X[:60]).transform(digits.X_test[:3]).shape == (3, 785)


# ---------------------------------------------------------------- HTML
@pytest.mark.parametrize("is_fitted", [False, True])
def test_the_html_repr(fitted, digits, is_fitted):
    aligner = FrozenEstimator(fitted) if is_fitted else AVAEEstimator()
    canonicalizer = AffineCanonicalizer(aligner)
    classifier = CanonicalizedClassifier(KNeighborsClassifier(), aligner)
    pipeline = make_pipeline(canonicalizer, LogisticRegression(tol=0.5))
    models = [canonicalizer, classifier, pipeline]
    if is_fitted:
        models = [model.fit(digits.X[:60], digits.y[:60]) for model in models]
    for model in [fitted if is_fitted else AVAEEstimator(), *models]:
        html = model._repr_html_()
        assert type(model).__name__ in html
        assert "AVAEEstimator" in html
        assert ("<span>Fitted</span>" in html) == is_fitted
        assert ("<span>Not fitted</span>" in html) != is_fitted
        # Each estimator of ours links to its own page; scikit-learn's estimators to theirs.
        links = [part.split('"')[0] for part in html.split('href="')[1:]]
        ours = {link.split("#")[0].rpartition("/")[2] for link in links if "sk_avae." in link}
        assert "sk_avae.AVAEEstimator.html" in ours
        assert type(model).__module__.startswith("sklearn") or f"sk_avae.{type(model).__name__}.html" in ours
        assert not any("sk_avae" in link for link in links if "scikit-learn.org" in link)
