"""The result of an alignment: its table, its line, and its arrays."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from sk_avae.model.affine import FAMILIES
from sk_avae.result import AlignmentResult

every_family = pytest.mark.parametrize("family", FAMILIES)


def result_with(parameters, alpha):
    n = len(alpha)
    arrays = {
        "matrix": np.tile(np.eye(2, 3), (n, 1, 1)),
        "elbo": np.full(n, -80.0),
        "elbo_identity": np.full(n, -100.0),
        "gain": np.full(n, 25.0),
        "n_iter": np.arange(n),
        "converged": np.ones(n, dtype=bool),
        "hypotheses": np.array(alpha)[:, None],
        "hypothesis_elbo": np.full((n, 1), -80.0),
        "hypothesis_weight": np.full((n, 1), 0.75),
    }
    return AlignmentResult(alpha=np.array(alpha), **arrays, parameters=parameters, image_shape=(20, 40))


def test_to_frame_is_in_degrees_factors_and_pixels():
    frame = result_with(FAMILIES["affine"], [[math.pi / 2, math.log(2), math.log(0.5), 0.3, 0.5, -0.1]]).to_frame()
    expected = {"angle_deg": 90, "scale_x": 2, "scale_y": 0.5, "shear": 0.3, "tx_px": 10, "ty_px": -1}
    assert frame.iloc[0].to_dict() == pytest.approx(
        expected | {"probability": 0.75, "elbo": -80, "gain": 25, "n_iter": 0, "converged": True}
    )


@every_family
def test_to_frame_names_every_parameter_once(family):
    names = FAMILIES[family]
    frame = result_with(names, np.zeros((3, len(names)))).to_frame()
    assert frame.shape == (3, len(names) + 5)
    assert frame.columns.is_unique


def test_a_result_says_in_a_line_what_was_found():
    line = repr(result_with(FAMILIES["rigid"], np.zeros((1200, 3))))
    assert line.startswith("AlignmentResult(1,200 images, alpha: angle, tx, ty; mean ELBO ")
    assert "\n" not in line
    assert len(line) < 200
    assert repr(result_with(FAMILIES["rotation"], np.zeros((0, 1)))) == "AlignmentResult(0 images, alpha: angle)"


def test_to_frame_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result_with(FAMILIES["rotation"], [[0.0]]).to_frame()


def test_to_frame_of_a_single_scale():
    frame = result_with(FAMILIES["similarity"], [[0.0, math.log(3), 0.0, 0.0]]).to_frame()
    assert frame["scale"].tolist() == pytest.approx([3.0])


def test_reflected_is_the_last_parameter_as_a_claim():
    names = (*FAMILIES["rigid"], "reflected")
    result = result_with(names, [[0.1, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 0.0]])
    assert result.reflected.tolist() == [True, False]
    assert result.to_frame()["reflected"].tolist() == [True, False]
    # Another parameter above one half is no mirror.
    assert result_with(FAMILIES["rigid"], [[0.1, 0.2, 0.9]]).reflected.tolist() == [False]


def test_arrays_are_the_per_image_fields():
    result = result_with(("angle",), [[0.1], [0.2]])
    arrays = result.arrays()
    assert {"alpha", "matrix", "elbo", "gain", "hypothesis_weight", "converged"} < set(arrays)
    assert "alpha_std" not in arrays
    assert "alpha_std" in replace(result, alpha_std=np.zeros((2, 1))).arrays()
    assert all(len(values) == 2 for values in arrays.values())


def test_result_is_frozen():
    with pytest.raises(AttributeError):
        result_with(("angle",), [[0.1]]).alpha = None


def test_images_below_a_threshold_are_rejected():
    result = replace(result_with(("angle",), [[0.1], [0.2], [0.3]]), confidence=np.array([0.2, 0.5, 0.9]))
    assert result.reject().tolist() == [True, True, False]
    assert result.reject(0.5).tolist() == [True, False, False]
    assert result.reject(0.0).tolist() == [False] * 3
    assert result.reject(1).tolist() == [True] * 3
    assert result.to_frame()["confidence"].tolist() == [0.2, 0.5, 0.9]
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
            result.reject(threshold)
    with pytest.raises(ValueError, match="no confidence"):
        result_with(("angle",), [[0.1]]).reject()


def test_a_result_is_indexed_like_an_array():
    result = result_with(FAMILIES["rigid"], np.arange(15.0).reshape(5, 3))
    assert len(result) == 5
    mask = result.n_iter > 2
    for index in (mask, slice(3, None), [3, 4], np.array([-2, -1])):
        some = result[index]
        assert len(some) == 2
        assert some.parameters == result.parameters
        assert some.image_shape == result.image_shape
        for name, array in result.arrays().items():
            np.testing.assert_array_equal(getattr(some, name), array[3:])
    assert result[1].alpha.tolist() == [[3, 4, 5]]
    assert [len(one) for one in result] == [1] * 5
    with pytest.raises(IndexError):
        result[5]


def test_notebooks_show_the_first_images():
    html = result_with(FAMILIES["rotation"], [[math.pi / 2]] * 7)._repr_html_()
    assert html.count("<tr>") == 1 + 5
    assert "<th>angle_deg</th>" in html
    assert "<td>90</td>" in html
    assert "and 2 more" in html
    assert "more" not in result_with(FAMILIES["rotation"], np.zeros((2, 1)))._repr_html_()
    assert "0 images" in result_with(FAMILIES["rotation"], np.zeros((0, 1)))._repr_html_()
