"""The displays: what they draw, on which axes, and what they refuse."""

import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_avae import (
    AffineCanonicalizer,
    AlignmentDisplay,
    AVAEEstimator,
    CanonicalizedClassifier,
    ELBOProfileDisplay,
    PoseHistogramDisplay,
    RobustnessCurveDisplay,
    TrainingDisplay,
)
from sk_avae.datasets import make_perturbed
from sk_avae.vae import MLPVAE

mpl.use("Agg")
import matplotlib.pyplot as plt

MINUS = "\N{MINUS SIGN}"

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def richest(small_avae, digits):
    """A model of all parameters and mirrored images; how well it does is no matter here."""
    model = small_avae(family="affine", allow_reflection=True, learned_starts=False, max_epochs=3)
    return model.set_params(tol=1.0).fit(digits.X[:300])


@pytest.fixture(scope="module")
def colourful(small_avae, digits):
    """A model of digits in colour that are not square, and such digits."""
    high = digits.X[:150].reshape(-1, 28, 28)[:, :, 4:-4]
    X = np.stack([high, high // 2, 255 - high // 3], axis=-1)
    return small_avae(max_epochs=2, learned_starts=False).fit(X), X


@pytest.fixture(scope="module")
def reader(digits):
    return LogisticRegression(C=0.05, max_iter=200, tol=0.01).fit(digits.X[:600] / 255, digits.y[:600])


def texts(ax):
    return [text.get_text() for text in ax.texts]


def no_overlap(figure, artists):
    figure.canvas.draw()
    boxes = [artist.get_window_extent() for artist in artists]
    return not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


# ---------------------------------------------------------------- alignment


def test_alignment_shows_input_canonical_and_reconstruction(fitted, turned):
    display = AlignmentDisplay.from_estimator(fitted, turned.X, n_images=4)
    assert display.axes_.shape == (3, 4)
    assert [ax.get_ylabel() for ax in display.axes_[:, 0]] == ["input", "canonical", "reconstruction"]
    expected = [turned.X[:4], fitted.transform(turned.X[:4])[:, :784], fitted.reconstruct(turned.X[:4])]
    for axes, images in zip(display.axes_, expected, strict=True):
        for ax, image in zip(axes, images, strict=True):
            drawn = ax.images[0].get_array()
            assert_allclose(drawn, np.clip(image.reshape(28, 28) / 255, 0, 1), atol=1e-5)
    assert display.figure_ is display.axes_[0, 0].figure


def test_alignment_says_what_it_found_and_how_sure_it_is(fitted, turned):
    display = AlignmentDisplay.from_estimator(fitted, turned.X[:3])
    result = fitted.align(turned.X[:3])
    assert texts(display.axes_[2, 0])[:2] == ["angle (°)", "confidence"]
    for k, ax in enumerate(display.axes_[2]):
        angle, confidence = texts(ax)[-2:]
        found, deviation = angle.replace(MINUS, "-").split(" ± ")
        assert float(found) == pytest.approx(np.rad2deg(result.alpha[k, 0]), abs=0.06)
        assert float(deviation) == pytest.approx(np.rad2deg(result.alpha_std[k, 0]), abs=0.06)
        assert float(confidence) == pytest.approx(result.confidence[k], abs=0.006)


@pytest.mark.parametrize("size", [(6, 4), (10, 6)])
def test_the_richest_family_fits_into_one_axes(richest, stretched, size):
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    display = AlignmentDisplay.from_estimator(richest, stretched.X[:4], ax=ax)
    names = texts(display.axes_[2, 0])[:8]
    assert names == [
        *("angle (°)", "scale x", "scale y", "shear", "shift right (px)", "shift down (px)", "mirrored", "confidence")
    ]
    result, frame = richest.align(stretched.X[:4]), richest.align(stretched.X[:4]).to_frame()
    for k, cell in enumerate(display.axes_[2]):
        values = [text.split(" ±")[0].replace(MINUS, "-") for text in texts(cell)[-8:]]
        assert values[6] == ("yes" if result.reflected[k] else "no")
        assert_allclose([float(v) for v in values[:6]], frame.iloc[k, :6].astype(float), atol=0.06)
    assert no_overlap(figure, [text for cell in display.axes_[2] for text in cell.texts])
    assert display.figure_ is figure


def test_colour_and_sides_of_an_image_are_kept(colourful):
    model, X = colourful
    display = AlignmentDisplay.from_estimator(model, X[:2])
    assert_allclose(display.axes_[0, 1].images[0].get_array(), X[1] / 255)
    assert all(ax.images[0].get_array().shape == (28, 20, 3) for ax in display.axes_.flat)
    assert ELBOProfileDisplay.from_estimator(model, X[:1], n_angles=5).elbo.shape == (5,)


def test_alignment_takes_what_holds_an_aligner(fitted, turned):
    canonicalizer = AffineCanonicalizer(FrozenEstimator(fitted)).fit(turned.X[:20])
    images = AlignmentDisplay.from_estimator(canonicalizer, turned.X[:3])
    assert_array_equal(images.canonical, AlignmentDisplay.from_estimator(fitted, turned.X[:3]).canonical)
    assert AlignmentDisplay.from_estimator(FrozenEstimator(fitted), turned.X.reshape(-1, 28, 28)).axes_.shape == (3, 6)


def test_alignment_draws_again_on_given_axes(fitted, turned):
    display = AlignmentDisplay.from_estimator(fitted, turned.X[:2])
    _, axes = plt.subplots(3, 2)
    assert display.plot(axes, cmap="viridis") is display
    assert display.axes_[1, 1] is axes[1, 1]
    with pytest.raises(ValueError, match=r"of shape \(3, 2\), got an array of shape \(2, 3\)"):
        display.plot(plt.subplots(2, 3)[1])
    with pytest.raises(ValueError, match="one Axes of a grid"):
        display.plot(plt.figure().add_axes((0, 0, 1, 1)))


def test_too_few_images_are_refused(fitted, turned):
    with pytest.raises(ValueError, match="n_images=5, but X has 2"):
        AlignmentDisplay.from_estimator(fitted, turned.X[:2], n_images=5)
    with pytest.raises(ValueError, match="0 sample"):
        AlignmentDisplay.from_estimator(fitted, turned.X[:0])
    with pytest.raises(ValueError, match="index=2, but X has 2 images"):
        ELBOProfileDisplay.from_estimator(fitted, turned.X[:2], index=2)


# ---------------------------------------------------------------- robustness


def test_curve_is_the_score_on_turned_images(reader, digits):
    X, y = digits.X_test[:200] / 255, digits.y_test[:200]
    angles = np.deg2rad([-60, 0, 90])
    display = RobustnessCurveDisplay.from_estimator(reader, X, y, parameter="angle", values=angles)
    turned, _ = make_perturbed(X, ranges={"angle": (angles[2], angles[2])})
    assert_allclose(display.scores[1:], [reader.score(X, y), reader.score(turned, y)])
    assert_allclose(display.line_.get_xdata(), [-60, 0, 90])
    assert_array_equal(display.line_.get_ydata(), display.scores)
    assert display.ax_.get_xlabel() == "angle (degrees, counter-clockwise)"
    assert display.ax_.get_ylabel() == "accuracy"


def test_curves_share_an_axis(reader, fitted, digits):
    X, y = digits.X_test[:60], digits.y_test[:60]
    to_unit = FunctionTransformer(lambda rows: rows / 255)
    canonicalizer = AffineCanonicalizer(FrozenEstimator(fitted))
    pipeline = make_pipeline(canonicalizer, to_unit, FrozenEstimator(reader)).fit(digits.X[:10])
    first = RobustnessCurveDisplay.from_estimator(reader, X / 255, y, values=[0, 1])
    second = RobustnessCurveDisplay.from_estimator(pipeline, X, y, values=[0, 1], name="canonical", ax=first.ax_)
    assert second.ax_ is first.ax_
    assert [text.get_text() for text in first.ax_.get_legend().get_texts()] == ["LogisticRegression", "canonical"]
    assert first.line_.get_color() != second.line_.get_color()


@pytest.mark.parametrize(
    ("parameter", "drawn", "label"),
    [
        ("log_scale", 2.0, "scale (factor)"),
        ("log_scale_x", 2.0, "scale along x (factor)"),
        ("shear", np.log(2), "shear (slope)"),
        ("tx", np.log(2), "shift to the right (half widths)"),
    ],
)
def test_any_parameter_is_perturbed_alone(reader, digits, parameter, drawn, label):
    X, y = digits.X_test[:60] / 255, digits.y_test[:60]
    display = RobustnessCurveDisplay.from_estimator(
        reader, X, y, parameter=parameter, values=[0, np.log(2)], scoring="neg_log_loss"
    )
    assert display.line_.get_xdata()[1] == pytest.approx(drawn)
    assert display.scores[0] > display.scores[1]
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == (label, "neg log loss")


def test_an_aligner_is_scored_by_its_elbo_in_its_own_shape(colourful):
    model, X = colourful
    rows = X[:20].reshape(20, -1)
    display = RobustnessCurveDisplay.from_estimator(model, rows, values=[0], scoring=None)
    assert display.scores[0] == pytest.approx(model.score(rows))
    assert display.ax_.get_ylabel() == "mean ELBO (nats per image)"


def test_data_frames_keep_their_names(small_avae, digits):
    X = pd.DataFrame(digits.X[:100] / 255).rename(columns=str)
    model = small_avae(max_epochs=1, learned_starts=False, tol=5.0).fit(X).set_output(transform="pandas")
    curve = RobustnessCurveDisplay.from_estimator(model, X[:10], values=[0])
    assert curve.scores[0] == pytest.approx(model.score(X[:10]), rel=1e-5)
    assert AlignmentDisplay.from_estimator(model, X, n_images=2).axes_.shape == (3, 2)
    assert ELBOProfileDisplay.from_estimator(model, X, index=1, n_angles=9).elbo.shape == (9,)


def test_a_pipeline_is_asked_for_the_shape_of_its_images(colourful, digits):
    model, X = colourful
    rows, y = X[:40].reshape(40, -1), digits.y[:40]
    canonicalizer = AffineCanonicalizer(FrozenEstimator(model))
    pipeline = make_pipeline(canonicalizer, KNeighborsClassifier()).fit(rows, y)
    classifier = CanonicalizedClassifier(KNeighborsClassifier(), FrozenEstimator(model))
    for estimator in (pipeline, classifier.fit(rows, y)):
        seen = []
        RobustnessCurveDisplay.from_estimator(
            estimator, rows, y, values=[1.0], scoring=lambda _, images, __, seen=seen: seen.append(images) or 0.0
        )
        turned, _ = make_perturbed(X[:40], ranges={"angle": (1.0, 1.0)})
        assert_array_equal(seen[0], turned.reshape(40, -1))


def test_values_that_are_not_given_cover_the_usual_range(reader, digits):
    display = RobustnessCurveDisplay.from_estimator(reader, digits.X_test[:5] / 255, digits.y_test[:5])
    assert_allclose(display.line_.get_xdata(), np.linspace(-180, 180, 13))


def test_one_score_at_a_time(reader, digits):
    with pytest.raises(TypeError, match="scoring must be one score"):
        RobustnessCurveDisplay.from_estimator(reader, digits.X_test[:5], digits.y_test[:5], scoring=["accuracy"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": []}, "values must be a list of one or more finite numbers"),
        ({"values": [0, np.nan]}, "values must be a list of one or more finite numbers"),
        ({"values": 1.0}, "values must be a list of one or more finite numbers"),
        ({"values": [0], "parameter": "scale"}, r"parameter must be one of \['angle', .*, got 'scale'"),
        ({"values": [0], "parameter": "log_scal"}, "Did you mean 'log_scale'"),
        ({"values": [0], "parameter": ["angle"]}, "parameter must be one of"),
        ({"values": [0], "image_shape": (28, 20)}, "784 features"),
    ],
)
def test_wrong_curves_are_refused(reader, digits, settings, message):
    with pytest.raises(ValueError, match=message):
        RobustnessCurveDisplay.from_estimator(reader, digits.X_test[:5] / 255, digits.y_test[:5], **settings)


# ---------------------------------------------------------------- ELBO over the angle


def test_profile_holds_the_optimum_and_the_starts(fitted, turned):
    display = ELBOProfileDisplay.from_estimator(fitted, turned.X, index=5)
    result = fitted.align(turned.X[5:6])
    assert_allclose(display.hypothesis_angles, result.hypotheses[0, :, 0])
    assert_allclose(display.hypothesis_elbo, result.hypothesis_elbo[0])
    # Starts and optimum of a rotation lie on the curve, and nothing beats the best of them by much.
    for angles, elbo in (
        (display.start_angles, display.start_elbo),
        (display.hypothesis_angles[:1], display.hypothesis_elbo[:1]),
    ):
        at = (angles + np.pi) % (2 * np.pi) - np.pi
        assert_allclose(np.interp(at, display.angles, display.elbo), elbo, atol=1.0)
    assert display.start_angles[0] == 0
    assert display.start_elbo[0] == pytest.approx(result.elbo_identity[0], abs=1e-2)
    assert display.elbo[0] == pytest.approx(display.elbo[-1], abs=1e-2)
    assert_allclose(display.ax_.lines[0].get_xdata(), np.linspace(-180, 180, 361), atol=1e-4)
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("angle (degrees, counter-clockwise)", "ELBO (nats)")
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    found = f"found: {np.rad2deg(result.alpha[0, 0]):.0f}° (p = {result.hypothesis_weight[0, 0]:.2f})"
    assert labels[-1].replace(MINUS, "-") == found


def test_profile_of_a_family_with_reflections_has_two_curves(richest, stretched):
    display = ELBOProfileDisplay.from_estimator(richest, stretched.X[:1], n_angles=37)
    result = richest.align(stretched.X[:1])
    assert display.elbo_mirrored.shape == display.elbo.shape == (37,)
    other = np.interp(result.alpha[0, 0], display.angles, display.elbo_mirrored)
    assert result.elbo[0] > other
    assert result.elbo[0] == pytest.approx(np.interp(result.alpha[0, 0], display.angles, display.elbo), abs=25)
    assert len(display.start_angles) == richest.n_restarts


# ---------------------------------------------------------------- angles


def test_histogram_counts_the_angles_that_were_found(fitted, turned):
    display = PoseHistogramDisplay.from_estimator(fitted, turned.X[:80], bins=12)
    angles = fitted.align(turned.X[:80]).alpha[:, 0]
    assert_allclose(display.angles, angles)
    bars = display.ax_.patches
    assert len(bars) == 12
    assert sum(bar.get_height() for bar in bars) == 80
    assert bars[0].get_height() == (np.abs(angles) <= np.pi / 12).sum()
    assert "images per 30°" in display.ax_.get_xlabel()
    assert "degrees" in display.ax_.get_xlabel()


def test_histogram_by_class_stacks_and_says_which(fitted, turned):
    display = PoseHistogramDisplay.from_estimator(fitted, turned.X[:80], turned.y[:80], bins=8)
    classes = np.unique(turned.y[:80])
    assert [t.get_text() for t in display.ax_.get_legend().get_texts()] == [str(c) for c in classes]
    heights = np.array([bar.get_height() for bar in display.ax_.patches]).reshape(len(classes), 8)
    assert_array_equal(heights.sum(axis=1), [(turned.y[:80] == c).sum() for c in classes])
    tops = [bar.get_y() + bar.get_height() for bar in display.ax_.patches[-8:]]
    assert_array_equal(tops, heights.sum(axis=0))


def test_histogram_wants_polar_axes_and_a_class_per_image(fitted, turned):
    with pytest.raises(ValueError, match="ax must be polar axes, got rectilinear"):
        PoseHistogramDisplay.from_estimator(fitted, turned.X[:5], ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="ax must be polar"):
        PoseHistogramDisplay(np.zeros(3)).plot(plt.subplots()[1])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        PoseHistogramDisplay.from_estimator(fitted, turned.X[:5], turned.y[:4])
    ax = plt.subplots(subplot_kw={"projection": "polar"})[1]
    assert PoseHistogramDisplay(np.zeros(3)).plot(ax).ax_ is ax


def test_signals_of_one_row_have_no_angle(small_avae):
    rows = np.random.default_rng(0).random((40, 12))
    model = small_avae(family="rigid", image_shape=(1, 12), max_epochs=1).fit(rows)
    for display in (PoseHistogramDisplay, ELBOProfileDisplay):
        with pytest.raises(ValueError, match="have no angle"):
            display.from_estimator(model, rows)
    assert AlignmentDisplay.from_estimator(model, rows[:2]).axes_.shape == (3, 2)


# ---------------------------------------------------------------- training


def test_training_draws_the_history(small_avae, digits):
    model = small_avae(max_epochs=3, validation_fraction=0.2, learned_starts=False).fit(digits.X[:200])
    display = TrainingDisplay.from_estimator(model)
    train, valid, best = display.ax_.lines
    assert_array_equal(train.get_xdata(), [1, 2, 3])
    assert_allclose(train.get_ydata(), [epoch["train_loss"] for epoch in model.history_])
    assert_allclose(valid.get_ydata(), [epoch["valid_loss"] for epoch in model.history_])
    assert best.get_ydata()[0] == min(valid.get_ydata())
    assert display.ax_.get_ylabel() == "loss: negative ELBO (nats per image)"
    assert len(display.axes_) == 1


def test_training_draws_how_poses_moved(small_avae, turned):
    model = small_avae(max_epochs=2, align_training=True, learned_starts=False, n_restarts=4).fit(turned.X[:150])
    display = TrainingDisplay.from_estimator(model)
    assert_allclose(display.axes_[1].lines[0].get_ydata(), [epoch["moved"] for epoch in model.history_])
    assert "poses that moved (right)" in [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_trainings_on_one_axis_are_told_apart():
    first = TrainingDisplay(np.arange(1, 4), np.array([3.0, 2, 1]), valid_loss=np.array([3.0, 2, 2]), name="first")
    second = TrainingDisplay(np.arange(1, 3), np.array([4.0, 2]), name="second").plot(first.plot().ax_)
    assert len({line.get_color() for line in second.ax_.lines}) == 3
    labels = [text.get_text() for text in second.ax_.get_legend().get_texts()]
    assert [labels[0], labels[1], labels[-1]] == [
        *("first, training images", "first, held-out images", "second, training images")
    ]


def test_a_vae_from_elsewhere_has_no_history():
    with torch.random.fork_rng():
        model = AVAEEstimator.from_vae(MLPVAE((1, 28, 28), 4), image_shape=(28, 28))
    with pytest.raises(ValueError, match="history_ is empty"):
        TrainingDisplay.from_estimator(model)


# ---------------------------------------------------------------- all of them

DISPLAYS = {
    AlignmentDisplay: {},
    RobustnessCurveDisplay: {"values": [0]},
    ELBOProfileDisplay: {},
    PoseHistogramDisplay: {},
}


@pytest.mark.parametrize("display", DISPLAYS)
def test_an_unfitted_estimator_is_refused(display, digits):
    with pytest.raises(NotFittedError):
        display.from_estimator(AVAEEstimator(), digits.X_test[:3], **DISPLAYS[display])
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(AVAEEstimator())


@pytest.mark.parametrize("display", [AlignmentDisplay, ELBOProfileDisplay, PoseHistogramDisplay])
def test_an_estimator_that_aligns_nothing_is_refused(display, reader, digits):
    with pytest.raises(TypeError, match="Of a pipeline, pass the step that aligns"):
        display.from_estimator(reader, digits.X_test[:3])


@pytest.mark.parametrize(
    "display",
    [
        RobustnessCurveDisplay(np.zeros(2), np.zeros(2)),
        TrainingDisplay(np.arange(2), np.zeros(2)),
        ELBOProfileDisplay(
            *(np.zeros(2), np.zeros(2)),
            **{f"start_{name}": np.zeros(1) for name in ("angles", "elbo")},
            **{f"hypothesis_{name}": np.ones(1) for name in ("angles", "elbo", "weight")},
        ),
    ],
)
def test_axes_of_the_wrong_kind_are_refused(display):
    with pytest.raises(ValueError, match="ax must be rectilinear axes, got polar ones"):
        display.plot(plt.subplots(subplot_kw={"projection": "polar"})[1])
    with pytest.raises(ValueError, match="got ndarray"):
        display.plot(plt.subplots(1, 2)[1])
    assert display.plot().ax_.name == "rectilinear"


def test_a_picture_is_drawn_where_it_is_wanted(fitted, reader, digits, turned):
    _, (left, middle, right) = plt.subplots(1, 3)
    assert ELBOProfileDisplay.from_estimator(fitted, turned.X[:1], ax=left, n_angles=9).ax_ is left
    assert TrainingDisplay.from_estimator(fitted, ax=middle).ax_ is middle
    X, y = digits.X_test[:20] / 255, digits.y_test[:20]
    display = RobustnessCurveDisplay.from_estimator(reader, X, y, values=[0], ax=right, color="k")
    assert display.ax_ is right
    assert display.line_.get_color() == "k"
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda avae, X: AlignmentDisplay.from_estimator(avae, X),
        lambda avae, X: RobustnessCurveDisplay.from_estimator(avae, X, values=[0]),
        lambda avae, X: RobustnessCurveDisplay(np.zeros(2), np.zeros(2)).plot(),
        lambda avae, X: ELBOProfileDisplay.from_estimator(avae, X),
        lambda avae, X: PoseHistogramDisplay(np.zeros(2)).plot(),
        lambda avae, X: TrainingDisplay(np.arange(2), np.zeros(2)).plot(),
    ],
)
def test_without_matplotlib_it_says_what_to_install(draw, fitted, turned, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'sk_avae\[plot\]'"):
        draw(fitted, turned.X[:1])
