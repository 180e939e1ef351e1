"""skops files: only this package's own two classes have to be trusted."""

import numpy as np
import pytest
import skops.io
import torch
from numpy.testing import assert_array_equal
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator

pytestmark = [
    pytest.mark.usefixtures("global_random_state_unchanged"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

OURS = ["sk_avae.canonicalizer.AffineCanonicalizer", "sk_avae.estimator.AVAEEstimator"]
SMALL = {"hidden_layer_sizes": (16,), "max_epochs": 1, "n_restarts": 4, "tol": 1e3, "random_state": 0}


@pytest.fixture(scope="module")
def aligner(digits):
    """A small model with all networks."""
    return AVAEEstimator(4, family="affine", min_gain="auto", **SMALL).fit(digits.X[:120])


@pytest.mark.parametrize("kind", ["canonicalizer", "frozen"])
def test_a_pipeline_loads_trusting_our_own_classes_only(digits, turned, aligner, kind):
    estimator = FrozenEstimator(aligner) if kind == "frozen" else AVAEEstimator(4, critic=False, **SMALL)
    steps = [("canon", AffineCanonicalizer(estimator)), ("clf", LogisticRegression(tol=0.1))]
    pipeline = Pipeline(steps).fit(digits.X[:120], digits.y[:120])
    data = skops.io.dumps(pipeline)
    assert skops.io.get_untrusted_types(data=data) == OURS
    loaded = skops.io.loads(data, trusted=OURS)
    X = turned.X[:6]
    assert_array_equal(loaded.predict_proba(X), pipeline.predict_proba(X))
    assert_array_equal(loaded[0].transform(X), pipeline[0].transform(X))


@pytest.mark.parametrize(
    "parameters",
    [
        {"module": "conv"},
        {"likelihood": "gaussian", "alpha_prior": {"angle": np.inf}},
        {"align_training": True, "device": torch.device("cpu"), "allow_reflection": True},
    ],
    ids=["conv", "gaussian", "aligned"],
)
def test_a_fitted_estimator_needs_one_class(digits, turned, parameters):
    model = AVAEEstimator(4, **{**SMALL, "critic": False, "learned_starts": False, "batch_size": 20, **parameters})
    model.fit(digits.X[:60])
    data = skops.io.dumps(model)
    assert skops.io.get_untrusted_types(data=data) == OURS[1:]
    loaded = skops.io.loads(data, trusted=OURS[1:])
    X = turned.X[:3]
    assert_array_equal(loaded.transform(X), model.transform(X))
    assert_array_equal(loaded.sample(2), model.sample(2))
    assert loaded.history_ == model.history_
    if model.align_training:
        assert_array_equal(loaded.alpha_, model.alpha_)


def test_an_unfitted_estimator_too():
    data = skops.io.dumps(AVAEEstimator(family="affine", alpha_prior={"shear": 0.1}))
    assert skops.io.get_untrusted_types(data=data) == OURS[1:]
    assert skops.io.loads(data, trusted=OURS[1:]).get_params()["alpha_prior"] == {"shear": 0.1}
