"""Affine transforms: the laws hold for every member of `FAMILIES`; a new member costs no line here."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from sk_avae.datasets import load_mnist_sample
from sk_avae.model.affine import (
    FAMILIES,
    INTERPOLATIONS,
    REFLECTED,
    compose,
    edge_median,
    from_matrix,
    identity_matrix,
    invert,
    parameters_of,
    to_matrix,
    warp,
    with_reflection,
    without_reflection,
    wrap_angle,
)

HEIGHT, WIDTH = 6, 10
ASPECT = WIDTH / HEIGHT

every_family = pytest.mark.parametrize("family", FAMILIES)
every_aspect = pytest.mark.parametrize("aspect", [1.0, ASPECT])


def poses(family, n=30, seed=0):
    """Random float64 poses: angles up to +-2.8, everything else up to +-0.7."""
    generator = torch.Generator().manual_seed(seed)
    alpha = 1.4 * torch.rand(n, len(FAMILIES[family]), generator=generator, dtype=torch.float64) - 0.7
    reach = torch.tensor([4.0 if name == "angle" else 1.0 for name in FAMILIES[family]], dtype=torch.float64)
    return alpha * reach


def mirrored_poses(family, n=30, seed=0):
    """Random poses of the larger family, every second one of a mirrored image."""
    mirrored = (torch.arange(n) % 2).to(torch.float64)[:, None]
    return torch.cat([poses(family, n, seed), mirrored], dim=1)


def marker(row, column):
    image = torch.zeros(1, 1, HEIGHT, WIDTH)
    image[0, 0, row, column] = 1.0
    return image


def pose(**values):
    return torch.tensor([[values.get(name, 0.0) for name in FAMILIES["affine"]]])


def digits(n, rows=slice(None)):
    X, _ = load_mnist_sample("test")
    return torch.tensor(X[:n].reshape(n, 1, 28, 28) / 255.0)[:, :, rows]


# ---------------------------------------------------------------- laws of every family


@every_family
@every_aspect
def test_inverse_is_two_sided(family, aspect):
    matrix = to_matrix(poses(family), family, aspect=aspect)
    identity = identity_matrix(len(matrix), matrix)
    torch.testing.assert_close(compose(matrix, invert(matrix)), identity)
    torch.testing.assert_close(compose(invert(matrix), matrix), identity)


@every_family
@every_aspect
def test_compose_is_the_product_of_homogeneous_matrices(family, aspect):
    outer, inner = (to_matrix(poses(family, seed=seed), family, aspect=aspect) for seed in (0, 1))

    def homogeneous(matrix):
        last = torch.tensor([0.0, 0.0, 1.0], dtype=matrix.dtype).expand(len(matrix), 1, 3)
        return torch.cat([matrix, last], dim=1)

    torch.testing.assert_close(homogeneous(compose(outer, inner)), homogeneous(outer) @ homogeneous(inner))


@every_family
@every_aspect
def test_families_are_closed_under_composition(family, aspect):
    outer, inner = (to_matrix(poses(family, seed=seed), family, aspect=aspect) for seed in (0, 1))
    both = compose(outer, inner)
    alpha = from_matrix(both, family, aspect=aspect)
    torch.testing.assert_close(to_matrix(alpha, family, aspect=aspect), both)


@every_family
@every_aspect
def test_families_are_closed_under_inversion(family, aspect):
    inverse = invert(to_matrix(poses(family), family, aspect=aspect))
    alpha = from_matrix(inverse, family, aspect=aspect)
    torch.testing.assert_close(to_matrix(alpha, family, aspect=aspect), inverse)


@every_family
@every_aspect
def test_alpha_comes_back_from_its_matrix(family, aspect):
    alpha = poses(family)
    torch.testing.assert_close(from_matrix(to_matrix(alpha, family, aspect=aspect), family, aspect=aspect), alpha)


@every_family
@every_aspect
def test_alpha_zero_is_exactly_the_identity(family, aspect):
    zero = torch.zeros(3, len(FAMILIES[family]))
    matrix = to_matrix(zero, family, aspect=aspect)
    assert torch.equal(matrix, identity_matrix(3, zero))
    assert torch.equal(from_matrix(matrix, family, aspect=aspect), zero)


@every_family
def test_every_family_is_a_part_of_affine(family):
    alpha = poses(family)
    matrix = to_matrix(alpha, family, aspect=ASPECT)
    torch.testing.assert_close(to_matrix(from_matrix(matrix, aspect=ASPECT), aspect=ASPECT), matrix)


@every_family
def test_dtype_follows_alpha(family):
    for dtype in (torch.float32, torch.float64):
        alpha = torch.zeros(2, len(FAMILIES[family]), dtype=dtype)
        assert to_matrix(alpha, family).dtype == dtype
        assert from_matrix(to_matrix(alpha, family), family).dtype == dtype


@every_family
@every_aspect
def test_gradient_of_to_matrix(family, aspect):
    alpha = poses(family, n=5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a: to_matrix(a, family, aspect=aspect), alpha)


@every_family
def test_gradient_of_warp(family):
    y = torch.linspace(-1, 1, HEIGHT, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    smooth = torch.exp(-((x - 0.2) ** 2) - (y + 0.1) ** 2).expand(3, 1, HEIGHT, WIDTH)
    alpha = (0.5 * poses(family, n=3)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a: warp(smooth, to_matrix(a, family, aspect=ASPECT), background=0.3), alpha)


# ---------------------------------------------------------------- mirrored images


@every_family
def test_the_larger_family_has_one_parameter_more_and_its_name_leads_back(family):
    larger = with_reflection(family)
    assert parameters_of(larger) == (*FAMILIES[family], REFLECTED)
    assert with_reflection(larger) == larger
    assert without_reflection(larger) == without_reflection(family) == family


@every_family
@every_aspect
def test_mirrored_alpha_comes_back_from_its_matrix(family, aspect):
    alpha, larger = mirrored_poses(family), with_reflection(family)
    matrix = to_matrix(alpha, larger, aspect=aspect)
    found = from_matrix(matrix, larger, aspect=aspect)
    torch.testing.assert_close(found, alpha)
    assert torch.equal(found[:, -1], alpha[:, -1])
    assert torch.equal(torch.linalg.det(matrix[:, :, :2]) < 0, alpha[:, -1] == 1)


@every_family
@every_aspect
def test_an_image_that_is_not_mirrored_has_the_matrix_of_the_smaller_family(family, aspect):
    alpha = poses(family)
    larger = to_matrix(torch.cat([alpha, torch.zeros(30, 1)], dim=1), with_reflection(family), aspect=aspect)
    assert torch.equal(larger, to_matrix(alpha, family, aspect=aspect))
    assert not from_matrix(larger, with_reflection(family), aspect=aspect)[:, -1].any()


@every_family
@every_aspect
def test_mirrored_is_mirrored_first_and_posed_afterwards(family, aspect):
    alpha = poses(family)
    mirror = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64).expand(30, 2, 3)
    posed = to_matrix(torch.cat([alpha, torch.ones(30, 1)], dim=1), with_reflection(family), aspect=aspect)
    torch.testing.assert_close(posed, compose(to_matrix(alpha, family, aspect=aspect), mirror))


@every_family
@every_aspect
def test_mirrored_families_are_closed_and_two_mirrors_are_none(family, aspect):
    larger = with_reflection(family)
    first, second = mirrored_poses(family), mirrored_poses(family, seed=1).roll(1, 0)
    second[::3, -1] = 1
    outer, inner = (to_matrix(alpha, larger, aspect=aspect) for alpha in (first, second))
    for matrix, mirrored in [
        (compose(outer, inner), (first[:, -1] + second[:, -1]) % 2),
        (invert(outer), first[:, -1]),
    ]:
        alpha = from_matrix(matrix, larger, aspect=aspect)
        assert torch.equal(alpha[:, -1], mirrored)
        torch.testing.assert_close(to_matrix(alpha, larger, aspect=aspect), matrix)
    identity = identity_matrix(30, outer)
    torch.testing.assert_close(compose(outer, invert(outer)), identity)
    torch.testing.assert_close(compose(invert(outer), outer), identity)


# (pose, pixel of the canonical image, pixel of the input), as below.
MIRRORED_MARKERS = {
    "mirrored left to right": (pose(), (2, 6), (2, 3)),
    "mirrored, then a quarter turn counter-clockwise": (pose(angle=math.pi / 2), (2, 6), (4, 4)),
    "mirrored, then two pixels to the right": (pose(tx=2 * 2 / WIDTH), (2, 6), (2, 5)),
    "mirrored, then lower rows sheared to the right": (pose(shear=2.0), (4, 4), (4, 8)),
}


@pytest.mark.parametrize(("alpha", "canonical", "mirrored"), MIRRORED_MARKERS.values(), ids=MIRRORED_MARKERS)
def test_marker_pixel_of_a_mirrored_image(alpha, canonical, mirrored):
    matrix = to_matrix(torch.cat([alpha, torch.ones(1, 1)], dim=1), with_reflection("affine"), aspect=ASPECT)
    torch.testing.assert_close(warp(marker(*mirrored), matrix), marker(*canonical), atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(marker(*canonical), invert(matrix)), marker(*mirrored), atol=1e-5, rtol=0)


def test_mirroring_alone_flips_the_columns():
    images = digits(5, rows=slice(4, 24))
    alpha = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(5, 2)
    mirrored = warp(images, to_matrix(alpha, with_reflection("rotation"), aspect=28 / 20))
    torch.testing.assert_close(mirrored, images.flip(3))


@every_family
def test_gradient_of_a_mirrored_pose_passes_the_mirror_by(family):
    alpha = mirrored_poses(family, n=4).requires_grad_(True)
    larger = with_reflection(family)
    assert torch.autograd.gradcheck(lambda a: to_matrix(a, larger, aspect=ASPECT), alpha)
    (gradient,) = torch.autograd.grad(to_matrix(alpha, larger, aspect=ASPECT).square().sum(), alpha)
    assert not gradient[:, -1].any()


@every_family
def test_wrapping_angles_leaves_the_mirror_alone(family):
    alpha = mirrored_poses(family)
    alpha[:, 0] *= 10
    wrapped = wrap_angle(alpha, with_reflection(family))
    assert torch.equal(wrapped[:, :-1], wrap_angle(alpha[:, :-1], family))
    assert torch.equal(wrapped[:, -1], alpha[:, -1])


# ---------------------------------------------------------------- signs and units

# (pose, pixel of the canonical image, pixel of the input). The centre lies between rows 2 and 3, columns 4 and 5.
MARKERS = {
    "quarter turn counter-clockwise": (pose(angle=math.pi / 2), (2, 6), (1, 4)),
    "quarter turn clockwise": (pose(angle=-math.pi / 2), (2, 6), (4, 5)),
    "half turn": (pose(angle=math.pi), (1, 2), (4, 7)),
    "two pixels to the right": (pose(tx=2 * 2 / WIDTH), (2, 6), (2, 8)),
    "one pixel down": (pose(ty=2 * 1 / HEIGHT), (2, 6), (3, 6)),
    "lower rows sheared to the right": (pose(shear=2.0), (4, 5), (4, 8)),
    "upper rows sheared to the left": (pose(shear=2.0), (1, 5), (1, 2)),
    "turned, then shifted": (pose(angle=math.pi / 2, tx=2 * 2 / WIDTH, ty=2 * 1 / HEIGHT), (2, 6), (2, 6)),
}


@pytest.mark.parametrize(("alpha", "canonical", "turned"), MARKERS.values(), ids=MARKERS)
def test_marker_pixel(alpha, canonical, turned):
    matrix = to_matrix(alpha, aspect=ASPECT)
    torch.testing.assert_close(warp(marker(*turned), matrix), marker(*canonical), atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(marker(*canonical), invert(matrix)), marker(*turned), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("log_scale_x", [(3, 5), (3, 6), (3, 7)]), ("log_scale_y", [(3, 5), (4, 5), (5, 5)])],
)
def test_positive_log_scale_is_an_enlarged_input(name, expected):
    matrix = to_matrix(pose(**{name: math.log(3)}), aspect=ASPECT)
    enlarged = warp(marker(3, 5), invert(matrix), interpolation="nearest")
    assert [tuple(pixel) for pixel in enlarged[0, 0].nonzero().tolist()] == expected


def test_single_scale_drives_both_axes():
    both = to_matrix(pose(log_scale_x=0.4, log_scale_y=0.4))
    assert torch.equal(to_matrix(torch.tensor([[0.0, 0.4, 0.0, 0.0]]), "similarity"), both)


def test_single_scale_is_read_as_the_geometric_mean():
    matrix = to_matrix(pose(log_scale_x=0.6, log_scale_y=0.2))
    assert from_matrix(matrix, "similarity")[0, 1].item() == pytest.approx(0.4)


def test_factors_apply_scale_first_then_shear_rotation_shift():
    values = {"angle": 0.7, "log_scale_x": 0.3, "log_scale_y": -0.2, "shear": 0.4, "tx": 0.1, "ty": -0.3}

    def part(*names):
        return to_matrix(pose(**{name: values[name] for name in names}), aspect=ASPECT)

    product = part("log_scale_x", "log_scale_y")
    for names in [("shear",), ("angle",), ("tx", "ty")]:
        product = compose(part(*names), product)
    torch.testing.assert_close(to_matrix(pose(**values), aspect=ASPECT), product)


def test_rotation_is_rigid_in_pixels_of_an_oblong_image():
    matrix = to_matrix(poses("rotation"), "rotation", aspect=ASPECT)[:, :, :2]
    to_pixels = torch.tensor([WIDTH, HEIGHT], dtype=torch.float64).diag()
    in_pixels = to_pixels @ matrix @ to_pixels.inverse()
    torch.testing.assert_close(in_pixels @ in_pixels.mT, torch.eye(2, dtype=torch.float64).expand_as(in_pixels))


# ---------------------------------------------------------------- warp


def test_warp_agrees_with_scipy():
    images, alpha = digits(12, rows=slice(4, 24)), poses("affine", n=12)
    height, width = images.shape[2:]
    warped = warp(images, to_matrix(alpha, aspect=width / height), background=0.25)
    for image, (angle, log_x, log_y, shear, tx, ty), got in zip(images, alpha.tolist(), warped, strict=True):
        cos, sin = math.cos(angle), math.sin(angle)
        # Rows come first in scipy, y and the row number both run down; the factors act about the centre.
        turn = np.array([[cos, -sin], [sin, cos]])
        linear = turn @ np.array([[1, 0], [shear, 1]]) @ np.diag([math.exp(log_y), math.exp(log_x)])
        centre = np.array([height - 1, width - 1]) / 2
        offset = centre + np.array([ty * height, tx * width]) / 2 - linear @ centre
        expected = ndimage.affine_transform(
            image[0].numpy(), linear, offset, order=1, mode="grid-constant", cval=0.25, prefilter=False
        )
        np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-9)


def test_warping_twice_is_warping_by_the_composition():
    image = digits(1).float()
    shift = to_matrix(pose(tx=2 * 3 / 28, ty=-2 * 5 / 28))
    turn = to_matrix(pose(angle=math.pi / 2))
    for outer, inner in [(shift, turn), (turn, shift)]:
        twice = warp(warp(image, outer), inner)
        torch.testing.assert_close(warp(image, compose(outer, inner)), twice, atol=1e-4, rtol=0)
    assert not torch.allclose(warp(image, compose(shift, turn)), warp(image, compose(turn, shift)), atol=0.1)


def test_each_image_has_its_own_matrix():
    images, alpha = digits(5), poses("affine", n=5)
    together = warp(images, to_matrix(alpha))
    alone = torch.cat([warp(images[i : i + 1], to_matrix(alpha[i : i + 1])) for i in range(5)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("padding", ["background", "border", "reflect"])
def test_identity_keeps_the_pixels(interpolation, padding):
    images = digits(3).float()
    identity = identity_matrix(3, images)
    warped = warp(images, identity, background=0.5, interpolation=interpolation, padding=padding)
    torch.testing.assert_close(warped, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_background_alone_stays_background(interpolation):
    blank = torch.full((4, 2, HEIGHT, WIDTH), 3.0)
    blank[:, 1] = -1.0
    matrix = to_matrix(poses("affine", n=4).float(), aspect=ASPECT)
    warped = warp(blank, matrix, background=torch.tensor([3.0, -1.0]), interpolation=interpolation)
    torch.testing.assert_close(warped, blank)


def test_what_comes_from_outside_is_background():
    images = torch.rand(1, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    matrix = to_matrix(pose(tx=2 * 3 / WIDTH), aspect=ASPECT)
    for background, expected in [(0.25, [0.25, 0.25]), (torch.tensor([0.5, 2.0]), [0.5, 2.0])]:
        warped = warp(images, matrix, background=background)
        torch.testing.assert_close(warped[..., :-3], images[..., 3:], atol=1e-5, rtol=0)
        outside = torch.tensor(expected)[:, None, None].expand(2, HEIGHT, 3)
        torch.testing.assert_close(warped[0, :, :, -3:], outside, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("background", [7.0, 8.0, 9.0, -1.0, -1.0]),
        ("border", [7.0, 8.0, 9.0, 9.0, 9.0]),
        ("reflect", [7.0, 8.0, 9.0, 9.0, 8.0]),
    ],
)
def test_padding_modes(padding, expected):
    ramp = torch.arange(10.0).expand(1, 1, HEIGHT, WIDTH)
    warped = warp(ramp, to_matrix(pose(tx=2 * 2 / WIDTH), aspect=ASPECT), background=-1.0, padding=padding)
    torch.testing.assert_close(warped[0, 0, 0, -5:], torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("interpolation", "weights"),
    [("bilinear", [0.0, 0.5, 0.5, 0.0]), ("bicubic", [-0.09375, 0.59375, 0.59375, -0.09375])],
)
def test_interpolation_half_a_pixel_away(interpolation, weights):
    half = to_matrix(pose(tx=1 / WIDTH), aspect=ASPECT)
    warped = warp(marker(2, 5), half, interpolation=interpolation)
    torch.testing.assert_close(warped[0, 0, 2, 3:7], torch.tensor(weights), atol=1e-5, rtol=0)


def test_nearest_invents_no_value():
    levels = torch.tensor([0.0, 0.3, 1.0])
    image = levels[torch.randint(3, (4, 1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))]
    warped = warp(image, to_matrix(poses("affine", n=4).float(), aspect=ASPECT), interpolation="nearest")
    assert torch.isin(warped, levels).all()
    assert not torch.equal(warped, image)


# ---------------------------------------------------------------- the rest


@every_family
def test_wrap_angle_changes_angles_only_and_by_whole_turns(family):
    alpha = 10 * poses(family)
    wrapped = wrap_angle(alpha, family)
    for column, name in enumerate(FAMILIES[family]):
        if name == "angle":
            assert ((wrapped[:, column] >= -math.pi) & (wrapped[:, column] < math.pi)).all()
            turns = (wrapped[:, column] - alpha[:, column]) / (2 * math.pi)
            torch.testing.assert_close(turns, turns.round())
            assert turns.abs().max() > 1
        else:
            assert torch.equal(wrapped[:, column], alpha[:, column])


def test_wrap_angle_keeps_the_bits_of_angles_in_range():
    alpha = torch.linspace(-3.14159, 3.14159, 1001)[:, None]
    assert torch.equal(wrap_angle(alpha, "rotation"), alpha)


def test_wrap_angle_is_half_open():
    pi = torch.tensor(math.pi)
    far = torch.tensor(9.0)
    near = [pi, -pi, torch.nextafter(pi, far), torch.nextafter(-pi, -far), 3 * pi, -3 * pi]
    wrapped = wrap_angle(torch.stack(near)[:, None], "rotation")
    assert ((wrapped >= -pi) & (wrapped < pi)).all()


def test_edge_median_is_the_background_of_mnist():
    X, _ = load_mnist_sample("train")
    images = torch.tensor(X[:200].reshape(-1, 1, 28, 28))
    assert edge_median(images).tolist() == [0]
    assert edge_median(255 - images).tolist() == [255]


@pytest.mark.parametrize("shape", [(6, 10), (1, 10), (2, 2)])
def test_edge_median_reads_edges_only_and_channel_by_channel(shape):
    images = torch.full((3, 2, *shape), 99.0)
    for channel, value in enumerate([0.25, -3.0]):
        images[:, channel, :, [0, -1]] = value
        if shape[0] > 1:
            images[:, channel, [0, -1], :] = value
    images[0, :, 0, 0] = 99.0
    assert edge_median(images).tolist() == [0.25, -3.0]


def test_identity_matrix_follows_its_model():
    matrix = identity_matrix(4, torch.zeros(1, dtype=torch.float64))
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, torch.eye(2, 3, dtype=torch.float64).repeat(4, 1, 1))


def test_unknown_family_names_the_near_one():
    with pytest.raises(ValueError, match=r"got 'rotatoin'\. Did you mean 'rotation'\?"):
        parameters_of("rotatoin")
    with pytest.raises(ValueError, match=r"family must be one of .*'similarity'.*got 3\.$"):
        parameters_of(3)


@every_family
def test_wrong_number_of_columns_is_refused(family):
    n_params = len(FAMILIES[family])
    for alpha in (torch.zeros(4, n_params + 1), torch.zeros(n_params)):
        with pytest.raises(ValueError, match=rf"{family!r} needs shape \(n, {n_params}\)"):
            to_matrix(alpha, family)


@pytest.mark.parametrize("linear", [[[1.0, 0.0], [0.0, -1.0]], [[1.0, 2.0], [0.5, 1.0]], [[math.nan, 0.0], [0.0, 1.0]]])
def test_reflections_and_singular_matrices_have_no_alpha(linear):
    good = torch.eye(2, 3)
    bad = torch.cat([torch.tensor(linear), torch.zeros(2, 1)], dim=1)
    with pytest.raises(ValueError, match="positive determinant"):
        from_matrix(torch.stack([good, bad]))


@pytest.mark.parametrize(("determinant", "readable"), [(1.4e-30, True), (0.7e-30, False)])
def test_matrices_are_singular_below_a_determinant_of_1e_30(determinant, readable):
    matrix = identity_matrix(1, torch.zeros(1, dtype=torch.float64)).clone()
    matrix[0, 0, 0] = determinant
    if readable:
        torch.testing.assert_close(to_matrix(from_matrix(matrix)), matrix)
    else:
        with pytest.raises(ValueError, match="positive determinant"):
            from_matrix(matrix)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (3, 3), (4, 4), (2, 9), (9, 2), (1, 10), (10, 1), (1, 1)])
def test_edge_median_is_the_lower_median_of_all_pixels_on_the_edge_and_of_no_others(shape):
    height, width = shape
    images = torch.rand(3, 2, *shape, generator=torch.Generator().manual_seed(0))
    # Of a single row or column the edge is its two ends.
    on_edge = [
        (row, column)
        for row in range(height)
        for column in range(width)
        if (height > 1 and row in (0, height - 1)) or (width > 1 and column in (0, width - 1)) or height == width == 1
    ]
    # Every pixel has its turn as the one that decides: the others are half below and half above it.
    for row, column in np.ndindex(shape):
        changed = images.clone()
        changed[:, :, row, column] = -5.0
        pixels = torch.stack([changed[:, :, r, c] for r, c in on_edge]).transpose(0, 1).transpose(1, 2)
        for channel in range(2):
            ordered = pixels[:, channel].flatten().sort().values
            assert edge_median(changed)[channel] == ordered[(len(ordered) - 1) // 2]


def test_everything_follows_the_device_of_its_input():
    """The device that holds no numbers stands for all others."""
    images = torch.empty(3, 2, HEIGHT, WIDTH, device="meta")
    for family in FAMILIES:
        matrix = to_matrix(torch.empty(3, len(FAMILIES[family]), device="meta"), family, aspect=ASPECT)
        background = torch.empty(2, device="meta")
        wrapped = wrap_angle(torch.empty(3, len(FAMILIES[family]), device="meta"), family)
        for result in (matrix, invert(matrix), compose(matrix, matrix), wrapped, identity_matrix(2, matrix)):
            assert result.device.type == "meta"
        assert warp(images, matrix, background=background).device.type == "meta"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"interpolation": "cubic"}, r"interpolation must be one of \['nearest', 'bilinear', 'bicubic'\], got 'cubic'"),
        ({"padding": "zeros"}, r"padding must be one of \['background', 'border', 'reflect'\], got 'zeros'"),
    ],
)
def test_unknown_ways_to_sample_are_named(settings, match):
    image = marker(2, 5)
    with pytest.raises(ValueError, match=match):
        warp(image, identity_matrix(1, image), **settings)
