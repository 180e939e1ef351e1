"""The report: how many poses of held-out images come back, where it is shown, and what is advised where few do."""

import copy
import math
import pickle
import re

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as pyplot
import numpy as np
import pytest

import sk_avae
from sk_avae import AlignmentReport, AlignmentReportDisplay, AVAEEstimator
from sk_avae.report import calibration_error


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    pyplot.close("all")


QUICK = {"learned_starts": False, "critic": False, "random_state": 0}

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


def report_of(share_right, n=100, half_turns=0.0, n_images=40):
    right = np.arange(n) < round(share_right * n)
    error = np.where(right, 0.1, np.where(np.arange(n) >= n - round(half_turns * n), 3.1, 1.0))
    return AlignmentReport.of(n_images, angle_error=error, right=right, weight=np.full(n, 0.5), gain=np.ones(n))


def test_figures_are_those_of_what_was_found():
    report = report_of(0.7, half_turns=0.2)
    assert (report.n_images, report.n_poses, report.share_right) == (40, 100, 0.7)
    assert report.median_angle_error == pytest.approx(0.1)
    assert report.share_half_turns == pytest.approx(0.2)
    assert report.calibration_error == pytest.approx(0.2)
    assert report.mean_gain == 1.0
    assert repr(report) == (
        "AlignmentReport(70% of 100 poses right, of 40 held-out images; median angle error 5.7 degrees; "
        "20% half turns; calibration error 0.20)"
    )
    assert "70% of 100" in report._repr_html_()


@pytest.mark.parametrize("sign", [-1, 1])
def test_errors_of_either_sign_count(sign):
    report = AlignmentReport.of(
        1, angle_error=sign * np.array([3.0]), right=np.array([False]), weight=np.ones(1), gain=np.ones(1)
    )
    assert report.share_half_turns == 1
    assert report.median_angle_error == 3.0


def test_calibration_errors_of_bins_do_not_cancel():
    weight = np.repeat([0.25, 0.75], 100)
    right = np.repeat([True, False], 100)
    assert calibration_error(weight, right) == pytest.approx(0.75)
    assert calibration_error(np.ones(4), np.ones(4, dtype=bool)) == 0


def test_a_frame_has_a_row_of_figures():
    pandas = pytest.importorskip("pandas")
    frame = pandas.concat([report_of(0.7).to_frame(), report_of(0.2).to_frame()])
    assert frame["share_right"].tolist() == [0.7, 0.2]
    assert "weight" not in frame


@pytest.mark.parametrize(
    ("share", "half_turns", "said", "not_said"),
    [
        (0.6, 0.0, None, None),
        (0.5, 0.0, "Only 50% of the poses of 40 held-out images come back. Try more images", "upside down"),
        (0.5, 0.4, "and 40% come back upside down", "no common pose"),
        (0.2, 0.0, "have no common pose.*min_gain='auto'", "padding"),
    ],
)
def test_advice_says_what_was_seen_and_what_to_try(share, half_turns, said, not_said):
    advice = report_of(share, half_turns=half_turns).advice(family="affine", align_training=False)
    if said is None:
        assert advice is None
        return
    assert re.search(said, advice)
    assert not_said not in advice
    assert "align_training=True" in advice
    assert "family='rotation'" in advice
    others = report_of(share).advice(family="rotation", align_training=True)
    assert "align_training" not in others
    assert "family" not in others


# ---------------------------------------------------------------- from `fit`


def test_fit_foretells_how_many_poses_come_back(fitted, turned):
    found = fitted.align(turned.X)
    miss = np.abs(np.angle(np.exp(1j * (found.alpha[:, 0] - turned.alpha[:, 0]))))
    report = fitted.alignment_report_
    assert abs((miss < math.radians(20)).mean() - report.share_right) < 0.1
    assert report.n_images == report.n_poses == 400
    assert report.calibration_error < 0.1
    assert report.mean_gain > 10


def test_a_report_survives_files_and_copies(fitted, tmp_path):
    sk_avae.save(fitted, tmp_path / "model.avae")
    for other in (sk_avae.load(tmp_path / "model.avae"), pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert other.alignment_report_.to_dict() == fitted.alignment_report_.to_dict()
        np.testing.assert_array_equal(other.alignment_report_.right, fitted.alignment_report_.right)


def test_too_few_images_have_no_report(small_avae, digits):
    model = small_avae(max_epochs=1).fit(digits.X[:40])
    assert model.alignment_report_ is None
    with pytest.raises(ValueError, match="There is no alignment_report_"):
        AlignmentReportDisplay.from_estimator(model)
    assert "Poses of held-out images" not in model._repr_html_()


def test_a_fit_that_finds_few_poses_again_warns_and_says_so_where_it_is_verbose(small_avae, digits, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (120, 28, 28), dtype=np.uint8)
    with pytest.warns(UserWarning, match="of the poses of 24 held-out images come back"):
        model = small_avae(max_epochs=2, verbose=1).fit(noise)
    assert repr(model.alignment_report_) in capsys.readouterr().out
    assert model.alignment_report_.share_right < 0.6


def test_notebooks_show_the_report_below_the_parameters(fitted):
    html = fitted._repr_html_()
    assert html.startswith("<style>")
    assert html.endswith(fitted.alignment_report_._repr_html_())
    assert "Poses of held-out images" not in AVAEEstimator()._repr_html_()


def test_from_vae_reports_too(fitted, digits):
    model = AVAEEstimator.from_vae(fitted.module_, image_shape=(28, 28), scale=255.0, X=digits.X[:200], **QUICK)
    assert model.alignment_report_.n_images == 40
    assert AVAEEstimator.from_vae(fitted.module_, image_shape=(28, 28), scale=255.0).alignment_report_ is None


# ---------------------------------------------------------------- the display


def test_the_reliability_curve_is_that_of_the_bins():
    display = AlignmentReportDisplay(np.array([0.05, 0.95, 0.95, 0.95]), np.array([False, True, True, False])).plot()
    (_, curve) = display.ax_.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0.05, 0.0], [0.95, 2 / 3]])
    assert display.ax_.get_xlabel() == "weight of the first hypothesis"


def test_a_fitted_model_is_drawn(fitted):
    assert len(AlignmentReportDisplay.from_estimator(fitted, n_bins=5).right) == fitted.alignment_report_.n_poses
