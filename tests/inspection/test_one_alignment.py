"""Each display checks, converts and aligns its images once, and draws what the estimator's own methods give."""

from collections import Counter

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

import sk_avae._inputs
import sk_avae.images
import sk_avae.search.find
from sk_avae import (
    AffineCanonicalizer,
    AlignmentDisplay,
    ELBOProfileDisplay,
    PoseHistogramDisplay,
    RobustnessCurveDisplay,
    TrainingDisplay,
)
from sk_avae.images import ImageFormat

mpl.use("Agg")
N = 4


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def stays(monkeypatch):
    """Count how often images are checked, how many are converted and aligned, and matrices built for answers."""
    counts = Counter()

    def count(owner, function, name, n_of):
        original = getattr(owner, function)

        def wrapper(*args, **kwargs):
            counts[name] += n_of(*args)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, function, wrapper)

    count(sk_avae._inputs, "validate_data", "checked", lambda *_: 1)
    count(ImageFormat, "to_padded_images", "converted", lambda _, rows: len(rows))
    count(sk_avae.search.find, "align", "aligned", lambda objective, *_: len(objective.images))
    count(ImageFormat, "matrix", "matrices", lambda _, alpha, *__: len(alpha))
    return counts


def test_alignment_display(fitted, turned, stays):
    display = AlignmentDisplay.from_estimator(fitted, turned.X[:N])
    assert stays == {"checked": 1, "converted": N, "aligned": N, "matrices": N}
    X = turned.X[:N]
    np.testing.assert_array_equal(display.canonical.reshape(N, -1), fitted.transform(X)[:, :784])
    np.testing.assert_array_equal(display.reconstructed.reshape(N, -1), fitted.reconstruct(X))
    expected = fitted.align(X)
    for name, array in display.result.arrays().items():
        np.testing.assert_array_equal(array, getattr(expected, name))


def test_alignment_display_aligns_only_what_it_draws(fitted, turned, stays):
    AlignmentDisplay.from_estimator(
        AffineCanonicalizer(FrozenEstimator(fitted)).fit(turned.X[:3]), turned.X, n_images=2
    )
    assert stays["aligned"] == stays["converted"] == 2


def test_alignment_display_refuses_what_reconstruct_refuses(small_avae, digits):
    X = digits.X[:150] / 255 * 1e39  # float64 holds these, the float32 of reconstructions does not
    model = small_avae(max_epochs=1, learned_starts=False).fit(X)
    for refused in (model.reconstruct, lambda images: AlignmentDisplay.from_estimator(model, images)):
        with pytest.raises(ValueError, match="X has numbers so large"):
            refused(X[:2])


def test_pose_histogram(fitted, turned, stays):
    PoseHistogramDisplay.from_estimator(fitted, turned.X[:N])
    assert stays == {"checked": 1, "converted": N, "aligned": N, "matrices": N}


def test_elbo_profile(fitted, turned, stays):
    ELBOProfileDisplay.from_estimator(fitted, turned.X[:N], index=2, n_angles=9)
    assert stays["checked"] == stays["aligned"] == stays["matrices"] == 1
    # One image: to align it, to find where the search starts, and for the ELBO at the angles and at the starts.
    assert stays["converted"] == 4


def test_training_curve(fitted, stays):
    TrainingDisplay.from_estimator(fitted)
    assert not stays


def test_robustness_curve_aligns_once_per_value(fitted, digits, stays):
    RobustnessCurveDisplay.from_estimator(fitted, digits.X_test[:N], values=[-1.0, 0.0, 0.5])
    assert stays == {"checked": 3, "converted": 3 * N, "aligned": 3 * N, "matrices": 3 * N}
