"""The way of an image: checked once, converted once, searched once, and the matrix of its pose built once."""

import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import KNeighborsClassifier

import sk_avae
import sk_avae._inputs
import sk_avae.aligner
import sk_avae.images
import sk_avae.search.find
from sk_avae import AffineCanonicalizer, CanonicalizedClassifier
from sk_avae.images import ImageFormat


@pytest.fixture
def stays(monkeypatch):
    """Count how often images are checked, how many of them are converted and aligned, and matrices of poses built."""
    counts = Counter()

    def counted(name, function, n_of):
        def wrapper(*args, **kwargs):
            counts[name] += n_of(*args)
            return function(*args, **kwargs)

        return wrapper

    for module, function, name, n_of in (
        (sk_avae._inputs, "validate_data", "checked", lambda *_: 1),
        (ImageFormat, "to_padded_images", "converted", lambda _, rows: len(rows)),
        (sk_avae.search.find, "align", "aligned", lambda objective, *_: len(objective.images)),
        (sk_avae.images, "to_matrix", "matrices", lambda alpha, *_: len(alpha)),
    ):
        monkeypatch.setattr(module, function, counted(name, getattr(module, function), n_of))
    return counts


N = 30
POSE_METHODS = {
    # Method: how many matrices of poses take images to their canonical frame, or are the answer.
    "transform": N,
    "align": N,
    "score_samples": N,
    "encode": N,
    "reconstruct": N,
    "transform_hypotheses": 2 * N,  # two hypotheses each
}


@pytest.mark.parametrize("method", POSE_METHODS)
def test_one_check_one_conversion_one_alignment(fitted, turned, stays, method):
    getattr(fitted, method)(turned.X[:N])
    assert stays["checked"] == 1
    assert stays["converted"] == stays["aligned"] == N
    assert stays["matrices"] <= POSE_METHODS[method]


@pytest.mark.parametrize("append_alpha", [False, True])
def test_a_canonicalizer_adds_nothing(fitted, turned, stays, append_alpha):
    canonicalizer = AffineCanonicalizer(FrozenEstimator(fitted), append_alpha=append_alpha)
    canonicalizer.fit(turned.X[:N])
    assert stays == {"checked": 1}
    canonicalizer.transform(turned.X[:N])
    assert stays == {"checked": 2, "converted": N, "aligned": N, "matrices": stays["matrices"]}
    assert stays["matrices"] <= N


def test_the_plain_vae_aligns_nothing(fitted, turned, stays):
    fitted.negative_elbo(turned.X[:N], align=False)
    assert stays == {"checked": 1, "converted": N}


@pytest.mark.parametrize("likelihood", ["auto", "bernoulli"])
def test_fit_checks_and_converts_once(small_avae, digits, stays, likelihood):
    small_avae(max_epochs=1, critic=True, likelihood=likelihood).fit(digits.X[:120])
    assert stays == {"checked": 1, "converted": 120}


def test_training_images_without_a_pose_are_aligned_before_and_after_the_search_models(small_avae, digits, stays):
    small_avae(max_epochs=1, critic=True, align_training=True, batch_size=64).fit(digits.X[:120])
    # Some of them, all of so few, for the search models to learn from; all of them for `alpha_`.
    assert stays["checked"] == 1
    assert stays["aligned"] == 2 * 120
    assert stays["converted"] == 3 * 120


@pytest.mark.parametrize("n_copies", [0, 1, 2])
def test_a_classifier_aligns_each_image_once_and_each_copy(small_avae, digits, stays, n_copies):
    aligner = small_avae(max_epochs=1, learned_starts=False)
    model = CanonicalizedClassifier(KNeighborsClassifier(), aligner, n_copies=n_copies)
    model.fit(digits.X[:N], digits.y[:N])
    # By the classifier, whose columns have names, and by the aligner, which is an estimator of its own.
    assert stays["checked"] == 2
    assert stays["aligned"] == (1 + n_copies) * N
    # Once to train, once to align; a copy is perturbed, which takes a warp, and aligned.
    assert stays["converted"] == (2 + 2 * n_copies) * N


def test_images_that_judge_are_aligned_with_their_copy(small_avae, digits, stays):
    aligner = small_avae(max_epochs=1, learned_starts=False)
    CanonicalizedClassifier(KNeighborsClassifier(), aligner).fit(digits.X[:60], digits.y[:60])
    assert stays["aligned"] == 2 * 60


def test_a_classifier_in_front_of_a_fitted_aligner_checks_once_for_each(fitted, digits, stays):
    model = CanonicalizedClassifier(KNeighborsClassifier(), FrozenEstimator(fitted), n_copies=0)
    model.fit(digits.X[:N], digits.y[:N])
    assert stays["checked"] == 2
    assert stays["aligned"] == stays["converted"] == N
    stays.clear()
    model.predict_proba(digits.X[:N])
    assert stays["checked"] == 1
    assert stays["aligned"] == stays["converted"] == N


# ---------------------------------------------------------------- the walk through the wings
WINGS = ("_inputs", "images", "search", "model", "result")


def walk(function):
    """Return the wings that the shell, estimator and aligner, calls one after the other, each once per stay."""
    house = str(Path(sk_avae.__file__).parent)
    shell, stays = ("estimator", "aligner", "_searched"), []

    def room_of(frame):
        path = frame.f_code.co_filename
        return Path(path).relative_to(house).parts[0].removesuffix(".py") if path.startswith(house) else None

    def watched(frame, event, _):
        if event == "call" and room_of(frame) in WINGS and room_of(frame.f_back) in shell:
            stays.append((room_of(frame), frame.f_code.co_name))

    sys.setprofile(watched)
    try:
        function()
    finally:
        sys.setprofile(None)
    return stays


# What the shell asks on the way without an image in its hand: how many, which names, units, the prior.
ASIDES = {
    *("slices", "frame_to_image_scale", "frame_prior", "frame_shape", "model_background", "image_shape", "to_tensor"),
    *("floats_like", "parameters_of", "prior_scale", "with_reflection", "check_family", "default_effort", "knows"),
    # Which contexts of torch are left, and what the user is warned of.
    *("in_plain_torch", "within", "plain_torch", "floats", "check_out", "warn_of_other_units", "counting"),
    *("check_count", "check_count_or_auto", "check_flag", "check_number", "device_batch_factor", "<genexpr>"),
    *("log_jacobian", "own_background", "with_own_margins", "frame", "inverts"),
}


def test_an_image_enters_each_wing_once_and_is_warped_at_the_end(fitted, turned):
    stays = [(room, name) for room, name in walk(lambda: fitted.transform(turned.X[:3])) if name not in ASIDES]
    rooms = [room for room, _ in groupby(room for room, _ in stays)]
    # The one return is the last warp: checked, converted, searched, warped.
    assert rooms == ["_inputs", "images", "model", "search", "images"], rooms
    assert [name for room, name in stays if room == "images"] == ["to_padded_images", "seen", "crop", "warp_rows"]
