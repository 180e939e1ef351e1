"""Starting poses: the table, the moments of the ink, and the proposals that they make."""

import math

import pytest
import torch

from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.model.affine import FAMILIES, to_matrix, warp, with_reflection, wrap_angle
from sk_avae.model.moments import exact_moments, mean_moments, moments
from sk_avae.model.prior import prior_scale
from sk_avae.search.starting_poses import moment_proposals, reach_of, restart_table, starting_poses, uses_moments

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


def test_a_blank_image_has_moments_and_proposals(digits):
    blank = torch.zeros(2, 1, 28, 28)
    typical = mean_moments(tensors(digits), BLACK)
    proposals = moment_proposals(blank, BLACK, typical, 6, "affine", prior_scale(None, "affine"))
    assert proposals.isfinite().all()


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


def in_half_heights(alpha, family, aspect):
    """The transforms of poses as linear parts and shifts in half heights, where moments are measured."""
    matrix = to_matrix(alpha.double(), family, aspect=aspect)
    half = matrix.new_tensor([aspect, 1.0])
    return matrix[:, :, :2] * half[:, None] / half, matrix[:, :, 2] * half


def oblong(n=30, height=20, width=32):
    """Images that are not square, of blobs somewhat off the middle, on a background."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1.6, 1.6, width), indexing="ij")
    middle, width, turn = (torch.rand(n, k, 1, 1, generator=generator) for k in (2, 2, 1))
    x, y = x - 0.3 * (middle[:, 0] - 0.5), y - 0.3 * (middle[:, 1] - 0.5)
    u, v = turn.cos()[:, 0] * x + turn.sin()[:, 0] * y, turn.cos()[:, 0] * y - turn.sin()[:, 0] * x
    blob = torch.exp(-((u / (0.3 + 0.2 * width[:, 0])) ** 2) - (v / (0.3 + 0.2 * width[:, 1])) ** 2)
    return 0.2 + 0.8 * blob[:, None]


@pytest.mark.parametrize("family", ["similarity", "affine"])
def test_proposals_give_the_typical_centroid_and_covariance_exactly_on_images_that_are_not_square(family):
    images, background, aspect = oblong(), torch.tensor([0.2]), 1.6
    typical = mean_moments(oblong(7), background)
    found, wanted = exact_moments(images, background), typical.covariance.double() + 1e-4 * torch.eye(2)
    proposals = moment_proposals(images, background, typical, 9, family, prior_scale(None, family))
    assert proposals.dtype == images.dtype
    for i in range(9):
        linear, shift = in_half_heights(proposals[:, i], family, aspect)
        centroid = (linear @ typical.centroid.double()[0]) + shift
        covariance = found.covariance + 1e-4 * torch.eye(2)
        if family == "affine" and i % 2:
            # Whitening: L C_typical L^T is the covariance of the image.
            torch.testing.assert_close(linear @ wanted @ linear.mT, covariance, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(centroid, found.centroid, rtol=0, atol=1e-5)
        else:
            # One common scale: the area of the ink's ellipse, and with even numbers the centroid.
            sizes = torch.linalg.det(linear).square() * torch.linalg.det(wanted)
            torch.testing.assert_close(sizes, torch.linalg.det(covariance), rtol=1e-4, atol=1e-7)
        if i % 2 == 0:
            torch.testing.assert_close(centroid, found.centroid, rtol=0, atol=1e-5)
            scale = torch.linalg.det(linear).sqrt()[:, None, None]
            torch.testing.assert_close(linear @ linear.mT, scale.square() * torch.eye(2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["rigid", "similarity", "affine"])
def test_proposals_turn_by_the_angles_of_the_table(family):
    images = oblong(3)
    typical = mean_moments(images, torch.tensor([0.2]))
    proposals = moment_proposals(images, torch.tensor([0.2]), typical, 16, family, prior_scale(None, family))
    angles = restart_table(8, "rotation", (math.inf,))[:, 0]
    turned = wrap_angle(proposals[:, ::2, :1].flatten(0, 1) - angles.repeat(3)[:, None], "rotation")
    torch.testing.assert_close(turned, torch.zeros_like(turned), rtol=0, atol=1e-5)
    narrow = moment_proposals(images, torch.tensor([0.2]), typical, 16, family, prior_scale({"angle": 0.1}, family))
    assert torch.equal(narrow, proposals)
    frozen = moment_proposals(images, torch.tensor([0.2]), typical, 16, family, prior_scale({"angle": 0}, family))
    assert not frozen[:, :, 0].any()
    assert torch.equal(frozen[:, ::2], frozen[:, :1].expand(-1, 8, -1))


def test_no_proposal_asks_for_more_than_its_bounds():
    line = torch.zeros(2, 1, 9, 90)
    line[0, 0, 0] = line[1, 0, :, 0] = 1.0
    typical = mean_moments(oblong(5), torch.tensor([0.2]))
    proposals = moment_proposals(line, BLACK, typical, 12, "affine", prior_scale(None, "affine"))
    assert proposals[:, :, 0].abs().max() <= math.pi + 1e-6
    assert proposals[:, :, 0].abs().max() > 1.6
    assert proposals[:, :, 1:].abs().amax().item() == 1.5


def test_the_table_has_its_places_and_the_proposals_theirs(digits):
    images, scale = tensors(digits[:4]), prior_scale("auto", "affine")
    typical = mean_moments(tensors(digits), BLACK)
    starts = starting_poses(images, BLACK, typical, 17, "affine", scale)
    from_table = [0, 1, 2, 3, 6, 9, 12, 15]
    others = [i for i in range(17) if i not in from_table]
    assert torch.equal(starts[:, from_table], restart_table(8, "affine", scale).expand(4, -1, -1))
    assert torch.equal(starts[:, others], moment_proposals(images, BLACK, typical, 9, "affine", scale))
    without = starting_poses(images, BLACK, None, 17, "affine", scale)
    assert torch.equal(without, restart_table(17, "affine", scale).expand(4, -1, -1))


@every_family
def test_the_table_fills_its_reach(family):
    table = restart_table(2000, family, prior_scale(None, family))
    for column, name in zip(table.T, FAMILIES[family], strict=True):
        reach = {"angle": math.pi, "tx": 0.3, "ty": 0.3}.get(name, 0.5)
        assert 0.99 * reach < column.abs().max() <= reach + 1e-6
        assert column.std().item() == pytest.approx(reach / math.sqrt(3), rel=0.01)
    # After the identity and the quarter turns nothing is alone in its dimension.
    assert not table[:4, 1:].any()
    assert table[4:, 1:].any(dim=1).all() or family == "rotation"
    if family == "rotation":
        return
    still = restart_table(20, family, prior_scale({"angle": 0}, family))
    assert not still[:, 0].any()
    assert still[1:, 1:].any(dim=1).all()


@every_family
def test_the_table_is_halton_s_sequence_in_as_many_primes_shifted_to_begin_at_the_middle(family):
    table = restart_table(60, family, prior_scale(None, family))
    for column, name, prime in zip(table.T, FAMILIES[family], (2, 3, 5, 7, 11, 13), strict=False):
        reach = {"angle": math.pi, "tx": 0.3, "ty": 0.3}.get(name, 0.5)
        for i in range(0 if name == "angle" else 4, 60):
            digits, rest = [], i
            while rest:
                digits.append(rest % prime)
                rest //= prime
            inverse = sum(digit / prime ** (k + 1) for k, digit in enumerate(digits))
            expected = reach * (2 * inverse if inverse < 0.5 else 2 * inverse - 2)
            assert column[i].item() == pytest.approx(expected, abs=1e-6)


@every_family
def test_random_poses_reach_as_far_as_the_table_but_no_farther_than_three_deviations(family):
    names = (*FAMILIES[family], "reflected")
    widest = [{"angle": math.pi, "tx": 0.3, "ty": 0.3, "reflected": 1.0}.get(name, 0.5) for name in names]
    larger = with_reflection(family)
    assert reach_of(larger, (math.inf,) * len(names)) == widest
    assert reach_of(larger, (0.05,) * len(names)) == pytest.approx([0.15] * len(names))
    assert reach_of(larger, (0.0,) * len(names)) == [0.0] * len(names)
    assert reach_of(family, (math.inf,) * (len(names) - 1)) == widest[:-1]


@every_family
def test_moments_are_used_where_anything_but_the_angle_is_free_in_two_dimensions(family):
    names = FAMILIES[family]
    square, row, column = torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 5, 1)
    for some in (family, with_reflection(family)):
        mirror = (math.inf,) * (some != family)
        for i, name in enumerate(names):
            scale = tuple(0.1 * (i == j) for j in range(len(names))) + mirror
            assert uses_moments(square, some, scale) == (name != "angle")
            assert not uses_moments(row, some, scale)
            assert not uses_moments(column, some, scale)
            # The larger family's deviations do for the smaller one.
            assert uses_moments(square, family, (*scale, math.inf)) == (name != "angle")
        assert not uses_moments(square, some, (0.0,) * len(names) + mirror)


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


def test_proposals_are_made_where_the_images_are():
    images, background = oblong(3), torch.tensor([0.2])
    typical, scale = mean_moments(images, background), prior_scale(None, "affine")
    expected = moment_proposals(images, background, typical, 6, "affine", scale)
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        assert torch.equal(moment_proposals(images, background, typical, 6, "affine", scale), expected)
