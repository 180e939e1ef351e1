"""Random poses and offsets: their reach, their shares, and what stays frozen."""

import math

import numpy as np
import pytest
import torch

from sk_avae.learning.perturbation import random_offsets, random_poses
from sk_avae.model.affine import FAMILIES, REFLECTED, with_reflection
from sk_avae.model.prior import prior_scale
from sk_avae.search.starting_poses import REACH

every_family = pytest.mark.parametrize("family", FAMILIES)


def drawn(n, family, alpha_prior="auto", seed=0):
    return random_poses(n, family, prior_scale(alpha_prior, family), torch.Generator().manual_seed(seed))


@every_family
@pytest.mark.parametrize("mirrored", [False, True])
def test_random_poses_fill_the_reach_of_the_table(family, mirrored):
    names = (*FAMILIES[family], *([REFLECTED] if mirrored else []))
    alpha = drawn(2000, with_reflection(family) if mirrored else family)
    assert alpha.shape == (2000, len(names))
    for column, name in zip(alpha.T, names, strict=True):
        if name == REFLECTED:
            assert set(column.tolist()) == {0.0, 1.0}
            assert 0.45 < column.mean() < 0.55
        else:
            reach = REACH[name]
            assert column.abs().max() <= reach
            assert column.min() < -0.95 * reach
            assert column.max() > 0.95 * reach
            # Uniform: the standard deviation is the reach over the root of three.
            assert column.std().item() == pytest.approx(reach / math.sqrt(3), rel=0.05)


@every_family
def test_random_poses_keep_frozen_parameters_at_zero(family):
    names = FAMILIES[family]
    for i, name in enumerate(names):
        alpha = drawn(50, family, {name: 0})
        assert not alpha[:, i].any()
        assert alpha.any(dim=0).sum() == len(names) - 1


def offsets(family, alpha_prior="auto", shape=(4000, 1, 28, 20)):
    scale = prior_scale(alpha_prior, family)
    matrix = random_offsets(torch.zeros(shape), family, scale, torch.Generator().manual_seed(0))
    assert torch.equal(matrix[:, :, :2], torch.eye(2).expand(len(matrix), 2, 2))
    return matrix[:, :, 2]


@pytest.mark.parametrize(
    ("family", "alpha_prior"), [("rotation", "auto"), ("linear", None), ("rigid", {"tx": 0, "ty": 0})]
)
def test_one_image_in_four_is_off_centre_where_the_family_cannot_shift_it(family, alpha_prior):
    offset = offsets(family, alpha_prior)
    off = offset.any(dim=1)
    assert 0.22 < off.float().mean() < 0.28
    for along in offset[off].T:
        assert along.abs().max() <= 1 / 16
        assert along.min() < -0.95 / 16
        assert along.max() > 0.95 / 16
        assert along.std().item() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("family", [family for family in FAMILIES if "tx" in FAMILIES[family]])
def test_no_image_is_off_centre_along_an_axis_that_the_family_can_shift(family):
    assert not offsets(family).any()
    frozen = offsets(family, {"ty": 0})
    assert not frozen[:, 0].any()
    assert frozen[:, 1].any()


def test_an_image_of_one_row_is_not_taken_out_of_its_frame():
    offset = offsets("rotation", shape=(200, 1, 1, 40))
    assert offset[:, 0].any()
    assert not offset[:, 1].any()


@every_family
def test_random_poses_are_single_precision_and_within_a_narrow_prior(family):
    names = with_reflection(family), (*FAMILIES[family], REFLECTED)
    # Numbers of numpy, as the estimator hands them down.
    scale = tuple(np.array([0.02] * len(FAMILIES[family]) + [math.inf]))
    alpha = random_poses(500, names[0], scale, torch.Generator().manual_seed(0))
    assert alpha.dtype == torch.float32
    assert alpha[:, :-1].abs().max() <= 0.06
    assert (alpha[:, :-1].abs().amax(dim=0) > 0.055).all()
    assert 0.4 < alpha[:, -1].mean() < 0.6
    frozen = random_poses(5, family, tuple(np.zeros(len(FAMILIES[family]))), torch.Generator().manual_seed(0))
    assert torch.equal(frozen, torch.zeros(5, len(FAMILIES[family])))


def test_random_poses_follow_their_generator():
    larger = with_reflection("affine")
    random_state = torch.get_rng_state()
    assert torch.equal(drawn(30, larger), drawn(30, larger))
    assert not torch.equal(drawn(30, larger), drawn(30, larger, seed=1))
    assert torch.equal(torch.get_rng_state(), random_state)
