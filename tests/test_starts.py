"""Starting poses: the table, the moments of the ink, and the proposals that they make."""

import math

import numpy as np
import pytest
import torch

from sk_avae.affine import FAMILIES, REFLECTED, to_matrix, warp, with_reflection
from sk_avae.alignment import prior_scale
from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.starts import (
    REACH,
    mean_moments,
    moment_proposals,
    moments,
    random_offsets,
    random_poses,
    restart_table,
    starting_poses,
)

every_family = pytest.mark.parametrize("family", FAMILIES)
BLACK = torch.zeros(1)


@pytest.fixture(scope="module")
def digits():
    X, _ = load_mnist_sample("train")
    return X[:300]


def tensors(X, height=28, width=28):
    return torch.tensor(X).view(-1, 1, height, width) / 255


@every_family
def test_restarts_are_nested_deterministic_and_start_at_the_identity(family):
    scale = prior_scale("auto", family)
    table = restart_table(100, family, scale)
    assert torch.equal(table, restart_table(100, family, scale))
    assert not table[0].any()
    for k in (1, 2, 7, 64):
        assert torch.equal(restart_table(k, family, scale), table[:k])
    assert len(table.unique(dim=0)) == 100


@every_family
def test_restarts_of_frozen_parameters_stay_at_zero(family):
    names = FAMILIES[family]
    for i, name in enumerate(names):
        table = restart_table(50, family, prior_scale({name: 0}, family))
        assert not table[:, i].any()
        assert (table.any(dim=0) == torch.tensor([j != i for j in range(len(names))])).all()


@every_family
def test_all_parameters_frozen_leaves_the_identity_alone(family):
    n_params = len(FAMILIES[family])
    assert torch.equal(restart_table(50, family, (0.0,) * n_params), torch.zeros(1, n_params))


@every_family
def test_restarts_spread_evenly_over_the_turn_and_to_both_sides(family):
    table = restart_table(64, family, prior_scale(None, family))
    angles = table[:, 0].sort().values
    torch.testing.assert_close(angles.diff(), torch.full((63,), 2 * math.pi / 64), rtol=0, atol=1e-5)
    for column in table[4:, 1:].T:
        assert column.mean().abs() < 0.1 * column.abs().max()
        assert column.min() < 0 < column.max()


def test_moments_of_a_marker():
    images = torch.zeros(1, 1, 6, 10)
    images[0, 0, 1, 7] = 1.0
    found = moments(images, BLACK)
    # Pixel centres in half heights: x = (7.5 - 5) / 3, y = (1.5 - 3) / 3.
    torch.testing.assert_close(found.centroid, torch.tensor([[2.5 / 3, -0.5]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.covariance, torch.zeros(1, 2, 2), rtol=0, atol=1e-3)


def test_moments_see_ink_not_brightness(digits):
    images = tensors(digits)
    one, other = moments(images, BLACK), moments(1 - images, torch.ones(1))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_blank_image_has_moments_and_proposals(digits):
    blank = torch.zeros(2, 1, 28, 28)
    typical = mean_moments(tensors(digits), BLACK)
    proposals = moment_proposals(blank, BLACK, typical, 6, "affine", prior_scale(None, "affine"))
    assert proposals.isfinite().all()


def test_a_single_line_of_ink_has_bounded_proposals(digits):
    line = torch.zeros(1, 1, 28, 28)
    line[0, 0, 14] = 1.0
    typical = mean_moments(tensors(digits), BLACK)
    proposals = moment_proposals(line, BLACK, typical, 12, "affine", prior_scale(None, "affine"))
    assert proposals.isfinite().all()
    assert proposals.abs().max() <= math.pi


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "rotation"])
def test_proposals_undo_the_moments_of_a_perturbation(digits, family):
    """Warped by a proposal, a perturbed image has the centroid, or the size, of a typical one."""
    typical = mean_moments(tensors(digits), BLACK)
    X, _ = make_perturbed(digits, family=family, random_state=0)
    images = tensors(X)
    proposals = moment_proposals(images, BLACK, typical, 8, family, prior_scale(None, family))
    before = moments(images, BLACK)
    after = moments(warp(images, to_matrix(proposals[:, 0], family)), BLACK)
    if "tx" in FAMILIES[family]:
        error = (after.centroid - typical.centroid).norm(dim=1)
        assert error.median() < 0.5 * (before.centroid - typical.centroid).norm(dim=1).median()
    if any(name.startswith("log_scale") for name in FAMILIES[family]):
        size, wanted = (torch.linalg.det(c).log() for c in (after.covariance, typical.covariance))
        error = (size - wanted).abs()
        assert error.median() < 0.5 * (torch.linalg.det(before.covariance).log() - wanted).abs().median()


@every_family
def test_starts_are_nested_deterministic_and_begin_at_the_identity(digits, family):
    images, scale = tensors(digits[:20]), prior_scale("auto", family)
    typical = mean_moments(images, BLACK)
    longer = starting_poses(images, BLACK, typical, 40, family, scale)
    assert longer.shape == (20, 40, len(FAMILIES[family]))
    assert not longer[:, 0].any()
    for k in (1, 5, 6, 23):
        assert torch.equal(starting_poses(images, BLACK, typical, k, family, scale), longer[:, :k])


@every_family
def test_starts_of_an_image_are_its_own_to_the_bit(digits, family):
    images, scale = tensors(digits), prior_scale("auto", family)
    typical = mean_moments(images, BLACK)
    together = starting_poses(images, BLACK, typical, 30, family, scale)
    for rows in (slice(0, 1), slice(7, 10), slice(100, 217)):
        assert torch.equal(starting_poses(images[rows], BLACK, typical, 30, family, scale), together[rows])


def test_rotation_and_single_rows_take_the_table_alone(digits):
    images = tensors(digits[:5])
    typical = mean_moments(images, BLACK)
    table = restart_table(16, "rotation", (math.inf,))
    assert torch.equal(starting_poses(images, BLACK, typical, 16, "rotation", (math.inf,))[3], table)
    signals = images.view(5, 1, 1, 784)
    scale = (0.0, math.inf, 0.0)
    starts = starting_poses(signals, BLACK, mean_moments(signals, BLACK), 16, "rigid", scale)
    assert torch.equal(starts[0], restart_table(16, "rigid", scale))


# ---------------------------------------------------------------- mirrored images


def mirrored_starts(images, n_restarts, family, scale=None, typical=None):
    """Starting poses of the family with mirrored images."""
    larger = with_reflection(family)
    return starting_poses(images, BLACK, typical, n_restarts, larger, scale or prior_scale("auto", larger))


@every_family
@pytest.mark.parametrize("with_moments", [False, True])
def test_every_second_start_is_mirrored_and_a_shorter_list_is_the_beginning(digits, family, with_moments):
    images = tensors(digits[:20])
    typical = mean_moments(images, BLACK) if with_moments else None
    longer = mirrored_starts(images, 31, family, typical=typical)
    assert longer.shape == (20, 31, len(FAMILIES[family]) + 1)
    assert torch.equal(longer[:, :, -1], (torch.arange(31) % 2).float().expand(20, 31))
    assert not longer[:, 0].any()
    plain = starting_poses(images, BLACK, typical, 16, family, prior_scale("auto", family))
    assert torch.equal(longer[:, 0::2, :-1], plain)
    for k in (1, 2, 3, 8, 30):
        assert torch.equal(mirrored_starts(images, k, family, typical=typical), longer[:, :k])


@every_family
def test_mirrored_starts_of_an_image_are_its_own_to_the_bit(digits, family):
    images = tensors(digits)
    typical = mean_moments(images, BLACK)
    together = mirrored_starts(images, 24, family, typical=typical)
    for rows in (slice(0, 1), slice(7, 10), slice(100, 217)):
        assert torch.equal(mirrored_starts(images[rows], 24, family, typical=typical), together[rows])


@every_family
def test_mirrored_starts_keep_frozen_parameters_at_zero(digits, family):
    images, larger = tensors(digits[:5]), with_reflection(family)
    typical = mean_moments(images, BLACK)
    for i, name in enumerate(FAMILIES[family]):
        starts = mirrored_starts(images, 40, family, prior_scale({name: 0}, larger), typical)
        assert not starts[:, :, i].any()
        assert starts[:, :, -1].any()
    frozen = mirrored_starts(images, 40, family, (*(0.0 for _ in FAMILIES[family]), math.inf), typical)
    expected = torch.zeros(2, len(FAMILIES[family]) + 1)
    expected[1, -1] = 1
    assert torch.equal(frozen, expected.expand_as(frozen))


def test_mirrored_proposals_undo_the_moments_of_a_mirrored_perturbation(digits):
    """Warped by a mirrored whitening, an image has the typical moments themselves, not their mirror image."""
    images = tensors(digits)
    typical = mean_moments(images, BLACK)
    slant = typical.covariance[0, 0, 1]
    X, _ = make_perturbed(digits, family="affine", random_state=0)
    images = tensors(X)
    starts = mirrored_starts(images, 60, "affine", (math.inf,) * 7, typical)
    slants = []
    for j in range(1, 60, 2):
        after = moments(warp(images, to_matrix(starts[:, j], with_reflection("affine"))), BLACK)
        error = (after.covariance - typical.covariance).flatten(1).norm(dim=1).median()
        if error < 0.02:
            slants.append(after.covariance[:, 0, 1].median())
            assert (after.centroid - typical.centroid).norm(dim=1).median() < 0.1
    assert len(slants) >= 5
    torch.testing.assert_close(torch.stack(slants), slant.expand(len(slants)), rtol=0, atol=0.3 * abs(slant))


# ---------------------------------------------------------------- random poses


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
