"""`HypothesisMixture`: what becomes of several answers, and what is learned of how far to trust them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sk_avae.mixture import HypothesisMixture, Readings, learned_mixture

N, K, CLASSES = 600, 3, 4
PRIOR = np.full(CLASSES, 1 / CLASSES)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.fixture
def made():
    """Labels and readings of a classifier: of each image one hypothesis is right, and it weighs most in 7 of 10."""

    def make(*, sure=1.0, honest=True, telling=0.0, n=N, seed=0):
        random = np.random.default_rng(seed)
        labels = random.integers(CLASSES, size=n)
        right = np.where(random.uniform(size=n) < 0.7, 0, 1)
        seen = np.where(np.arange(K) == right[:, None], labels[:, None], random.integers(CLASSES, size=(n, K)))
        logits = 2.0 * np.eye(CLASSES)[seen] + random.gumbel(size=(n, K, CLASSES))
        weights = np.tile([0.7, 0.3, 0.0], (n, 1)) if honest else np.tile([0.98, 0.02, 0.0], (n, 1))
        evidence = np.zeros((n, K, 2))
        evidence[..., 0] = telling * (np.arange(K) == right[:, None]) + random.normal(size=(n, K))
        with np.errstate(divide="ignore"):
            return labels, Readings(weights, np.log(softmax(sure * logits)), evidence)

    return make


def loss(mixture, readings, labels):
    return -np.log(mixture.probabilities(readings)[np.arange(len(labels)), labels]).mean()


def test_by_itself_it_averages(made):
    _, readings = made()
    average = (readings.weights[..., None] * np.exp(readings.log_probabilities)).sum(axis=1)
    assert_allclose(HypothesisMixture().probabilities(readings), average, rtol=1e-12)


def test_a_hypothesis_without_weight_says_nothing(made):
    _, readings = made()
    changed = readings._replace(log_probabilities=readings.log_probabilities.copy(), evidence=readings.evidence.copy())
    changed.log_probabilities[:, 2], changed.evidence[:, 2] = np.log(PRIOR), 50
    mixture = HypothesisMixture(0.5, 2.0, 0.1, (1.0, 1.0), N, tuple(PRIOR))
    assert_array_equal(mixture.probabilities(changed), mixture.probabilities(readings))


def test_a_classifier_that_is_too_sure_is_made_less_so(made):
    labels, readings = made(sure=4.0)
    mixture = learned_mixture(readings, labels, PRIOR)
    assert mixture.sharpness < 0.6
    assert mixture.n_judged == N
    new_labels, new = made(sure=4.0, seed=1)
    assert loss(mixture, new, new_labels) < loss(HypothesisMixture(), new, new_labels) - 0.1
    assert_allclose(mixture.probabilities(new).sum(axis=1), 1, rtol=1e-12)


def test_weights_that_claim_too_much_are_trusted_less(made):
    labels, readings = made(honest=False)
    mixture = learned_mixture(readings, labels, PRIOR)
    assert mixture.trust < 0.7


def test_alignment_is_never_trusted_more_than_it_says(made):
    labels, readings = made()
    modest = readings._replace(weights=np.tile([0.55, 0.45, 0.0], (N, 1)))
    assert learned_mixture(modest, labels, PRIOR).trust <= 1


def test_averages_stay_where_nothing_is_gained(made):
    assert learned_mixture(*reversed(made()), PRIOR) == HypothesisMixture(n_judged=N)


def test_the_classifier_s_evidence_counts_where_it_tells(made):
    labels, readings = made(telling=4.0)
    mixture = learned_mixture(readings, labels, PRIOR)
    assert mixture.evidence[0] > 0.5
    new_labels, new = made(telling=4.0, seed=1)
    read = mixture.probabilities(new).argmax(axis=1) == new_labels
    averaged = HypothesisMixture().probabilities(new).argmax(axis=1) == new_labels
    assert read.mean() > averaged.mean() + 0.05


def test_impossible_answers_become_improbable(made):
    labels, readings = made()
    votes = readings.log_probabilities.argmax(axis=-1, keepdims=True) == np.arange(CLASSES)
    mixture = learned_mixture(
        readings._replace(log_probabilities=np.where(votes, 0.0, np.log(np.finfo(float).tiny))), labels, PRIOR
    )
    assert mixture.floor > 0.05
