"""scikit-learn's own checks: all of them, none skipped, none expected to fail."""

import json
import os
import subprocess
import sys

import pytest
import sklearn

# SCIPY_ARRAY_API must be set before scipy is imported, hence a process of its own; without it a check is skipped.
SCRIPT = """
import json, warnings
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.utils.estimator_checks import check_estimator
from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier

warnings.simplefilter("error")
# The checks' rows of a few numbers are no images: nothing in them can be turned, which is said.
warnings.filterwarnings("ignore", "Images of shape .* have no pose", UserWarning)
warnings.filterwarnings("ignore", "Only .* of the poses of .* held-out images come back", UserWarning)
warnings.filterwarnings("ignore", "X has .* images, and the .* learns? from 64", UserWarning)
outcomes = {}
for family in ("rotation", "affine"):
    avae = AVAEEstimator(
        latent_size=2, family=family, n_restarts=4, n_refine=1, hidden_layer_sizes=(8,),
        max_epochs=2, batch_size=32,
    )
    for estimator in (avae, AffineCanonicalizer(avae), AffineCanonicalizer(avae, append_alpha=True)):
        checks = check_estimator(estimator, on_skip=None, on_fail=None)
        name = f"{type(estimator).__name__}({family}, append_alpha={getattr(estimator, 'append_alpha', None)})"
        outcomes[name] = [(c["check_name"], c["status"], repr(c["exception"]), c["expected_to_fail"]) for c in checks]
# Weights are the classifier's: of an aligner that moves the checks' rows two equal images are two.
avae.set_params(family="rotation")
for classifier in (LogisticRegression(), RidgeClassifier()):
    checks = check_estimator(CanonicalizedClassifier(classifier, avae), on_skip=None, on_fail=None)
    name = f"CanonicalizedClassifier({type(classifier).__name__})"
    outcomes[name] = [(c["check_name"], c["status"], repr(c["exception"]), c["expected_to_fail"]) for c in checks]
print(json.dumps(outcomes))
"""

N_CHECKS = 47
N_CHECKS_OF_A_CLASSIFIER = 62


@pytest.fixture(scope="module")
def outcomes():
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_check_passes(outcomes):
    missed = {name: [check for check in checks if check[1] != "passed"] for name, checks in outcomes.items()}
    assert missed == {name: [] for name in outcomes}
    assert len(outcomes) == 8


def test_every_check_was_run(outcomes):
    counts = {name: len(checks) for name, checks in outcomes.items()}
    if sklearn.__version__.startswith("1.9."):
        expected = {name: N_CHECKS_OF_A_CLASSIFIER if "Classifier" in name else N_CHECKS for name in outcomes}
        assert counts == expected
    else:
        assert min(counts.values()) >= 40


def test_no_check_is_expected_to_fail(outcomes):
    assert not any(check[3] for checks in outcomes.values() for check in checks)
