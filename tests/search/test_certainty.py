"""Certainty: deviations from the curvature, the typical metric, and the weights of hypotheses."""

import math

import pytest
import torch
from posed_digits import avae_of, digits, turned

from sk_avae.model.affine import FAMILIES, with_reflection
from sk_avae.search.certainty import (
    Confidence,
    chance_of_right,
    curvature,
    hypothesis_weights,
    log_odds,
    pose_deviation,
    typical_metric,
)
from sk_avae.search.objective import Objective

every_family = pytest.mark.parametrize("family", FAMILIES)
FLAT = math.inf


class Bowl:
    """A model whose energy is a quadratic in alpha, with a Hessian of its own for each image."""

    def __init__(self, family, hessian, scale=None):
        self.family = family
        self.hessian = hessian
        self.scale = scale or (FLAT,) * len(FAMILIES[family])
        self.vae = self.critic = None

    def elbo(self, images, alpha):
        # The first pixel says which image it is.
        hessian = self.hessian[images[:, 0, 0, 0].long()]
        return -0.5 * (alpha[:, None] @ hessian @ alpha[:, :, None])[:, 0, 0]

    def log_prior_of(self, images, alpha, moments):
        return alpha.new_zeros(len(alpha))

    def moments(self, images):
        return None


def objective(*arguments):
    """The objective of a `Bowl` of as many images as there are Hessians."""
    bowl = Bowl(*arguments)
    n = len(bowl.hessian)
    return Objective(bowl, torch.arange(n).float()[:, None, None, None].expand(n, 1, 4, 4))


@every_family
def test_the_deviation_of_a_quadratic_energy_is_that_of_its_inverse_hessian(family):
    n_params = len(FAMILIES[family])
    root = torch.randn(40, n_params, n_params, generator=torch.Generator().manual_seed(0))
    hessian = 60 * (root @ root.mT + torch.eye(n_params))
    found = pose_deviation(objective(family, hessian), 0.1 * root[:, 0])
    expected = hessian.double().inverse().diagonal(dim1=1, dim2=2).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=0)


@every_family
def test_a_frozen_parameter_has_no_deviation_and_takes_no_part(family):
    names = FAMILIES[family]
    n_params = len(names)
    root = torch.randn(10, n_params, n_params, generator=torch.Generator().manual_seed(0))
    hessian = 60 * (root @ root.mT + torch.eye(n_params))
    for frozen in range(n_params):
        scale = tuple(0.0 if i == frozen else FLAT for i in range(n_params))
        found = pose_deviation(objective(family, hessian, scale), torch.zeros(10, n_params))
        assert not found[:, frozen].any()
        kept = [i for i in range(n_params) if i != frozen]
        expected = hessian[:, kept][:, :, kept].double().inverse().diagonal(dim1=1, dim2=2).sqrt()
        torch.testing.assert_close(found[:, kept].double(), expected, rtol=1e-2, atol=0)


@every_family
@pytest.mark.parametrize("bend", [0.0, -50.0])
def test_where_the_energy_is_flat_or_hollow_the_deviation_is_the_prior_s(family, bend):
    names = FAMILIES[family]
    hessian = bend * torch.eye(len(names)).expand(3, -1, -1)
    alpha = torch.zeros(3, len(names))
    flat = pose_deviation(objective(family, hessian), alpha)
    # Without a prior nothing is known.
    assert flat.isnan().all()
    narrow = pose_deviation(objective(family, hessian, (0.3,) * len(names)), alpha)
    torch.testing.assert_close(narrow, torch.full_like(alpha, 0.3))


def test_the_prior_narrows_the_deviation():
    images = digits(n=30)
    alpha = torch.zeros(30, 3)
    free, held = (pose_deviation(Objective(avae_of("rigid", prior), images), alpha) for prior in (None, {"tx": 0.02}))
    assert (held[:, 1] <= 0.02).all()
    assert (held[:, 1] < free[:, 1]).all()
    # Two independent sources of information: precisions add up, as far as the ELBO is round.
    together = (free[:, 1] ** -2 + 0.02**-2) ** -0.5
    assert ((held[:, 1] / together).log().abs().median()) < 0.3


@pytest.mark.parametrize("family", ["affine", with_reflection("rigid")])
def test_the_deviation_of_an_image_is_its_own_to_the_bit(family):
    images, alpha = turned(digits(n=150), family.removesuffix("+reflection"))
    if family != "affine":
        alpha = torch.cat([alpha, (torch.arange(150) % 2).float()[:, None]], dim=1)
    model = avae_of(family)
    whole = pose_deviation(Objective(model, images), alpha).nan_to_num(nan=9.0)
    assert (whole[:, 0] > 0).all()
    for rows in (slice(0, 1), slice(3, 10), slice(41, 58), slice(149, 150)):
        assert torch.equal(pose_deviation(Objective(model, images[rows]), alpha[rows]).nan_to_num(nan=9.0), whole[rows])


@every_family
def test_the_typical_metric_is_positive_definite_where_parameters_are_free_and_nothing_elsewhere(family):
    names, images = FAMILIES[family], digits(n=12)
    assert not typical_metric(Objective(avae_of(family, dict.fromkeys(names, 0)), images)).any()
    metric = typical_metric(Objective(avae_of(family, {names[-1]: 0}), images))
    free = len(names) - 1
    assert not metric[:, free].any()
    assert not metric[free].any()
    assert (torch.linalg.eigvalsh(metric[:free, :free].double()) > 0).all()
    # No typical curvature is weaker than a nat per squared unit.
    assert torch.linalg.matrix_norm(metric, 2) <= 1 + 1e-5


@every_family
def test_the_curvature_of_a_quadratic_is_its_hessian_in_units_anywhere(family):
    n_params = len(FAMILIES[family])
    root = torch.randn(10, n_params, n_params, generator=torch.Generator().manual_seed(0))
    hessian = 60 * (root @ root.mT + torch.eye(n_params))
    units = torch.tensor([0.1 if name in ("tx", "ty") else 0.15 for name in FAMILIES[family]])
    found = curvature(objective(family, hessian), root[:, 0])
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), units[:, None] * hessian * units, rtol=1e-2, atol=1e-2)
    assert torch.equal(found, found.mT)


def test_the_typical_metric_of_a_quadratic_is_its_inverse_hessian_and_of_several_their_geometric_mean():
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    units = torch.tensor([0.15, 0.1, 0.1])
    # In units no curvature is weaker than a nat.
    in_units = 5 * (root @ root.T + torch.eye(3))
    one = in_units / units[:, None] / units
    found = typical_metric(objective("rigid", one.expand(4, 3, 3)))
    torch.testing.assert_close(found, in_units.inverse(), rtol=1e-3, atol=1e-4)
    # Over the same axes: the geometric mean of each curvature; what is flat or hollow counts as a nat.
    diagonals = torch.tensor([[4.0, 100.0, 0.0], [9.0, 1.0, -8.0]])
    several = torch.diag_embed(diagonals / units.square())
    expected = torch.tensor([1 / 6, 1 / 10, 1.0]).diag()
    torch.testing.assert_close(typical_metric(objective("rigid", several)), expected, rtol=1e-3, atol=1e-4)


def test_no_direction_is_wider_than_the_widest_parameter_so_a_flat_one_leaves_the_others_alone():
    # Nothing is known along (1, 1) of shift, in units; across it the curvature is that of a nat.
    unit = 0.1
    hessian = torch.zeros(1, 3, 3)
    hessian[0, 0, 0] = 1e4
    hessian[0, 1:, 1:] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / unit**2
    found = pose_deviation(objective("rigid", hessian, (FLAT, 0.4, 0.4)), torch.zeros(1, 3))
    # The variance along it is that of the widest shift, half of which lies along each axis, as of the other direction.
    # The widest of all is the angle: pi / sqrt(3) of its unit 0.15.
    widest = (math.pi / math.sqrt(3) / 0.15) ** 2
    expected = min(unit * math.sqrt(widest / 2 + 0.5 / 2), 0.4)
    torch.testing.assert_close(found, torch.tensor([[1e-2, expected, expected]]), rtol=1e-2, atol=0)


def test_weights_are_a_softmax_without_repetitions_and_the_first_always_counts():
    score = torch.tensor([[3.0, 2.0, 2.5, 1.0], [0.0, -math.inf, math.nan, -1.0], [-math.inf, -math.inf, 0.0, 0.0]])
    duplicate = torch.tensor([[False, False, True, False], [False] * 4, [False, False, True, True]])
    found = hypothesis_weights(score, duplicate)
    first = torch.tensor([3.0, 2.0, 1.0]).softmax(dim=0)
    second = torch.tensor([0.0, -1.0]).softmax(dim=0)
    expected = [[first[0], first[1], 0.0, first[2]], [second[0], 0.0, 0.0, second[1]], [1.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_certainty_is_made_where_the_images_are():
    some, alpha = objective("rigid", 100 * torch.eye(3).expand(4, 3, 3)), torch.zeros(4, 3)

    def found():
        yield from (curvature(some, alpha), typical_metric(some), pose_deviation(some, alpha))

    expected = [*found()]
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        assert all(map(torch.equal, found(), expected))


# ---------------------------------------------------------------- the chance that a pose is right


def test_the_chance_is_that_of_the_mode_times_the_mass_around_it():
    hypotheses = torch.tensor([[[0.0], [math.pi]], [[0.0], [math.radians(10)]], [[3.1], [-3.1]]])
    weight, deviation = torch.tensor([[0.8, 0.2]] * 3), torch.tensor([[math.radians(10)]] * 3)
    within_two_deviations = math.erf(2 / math.sqrt(2))
    # A second hypothesis that is as near as that counts, also across the end of the circle.
    expected = torch.tensor([0.8, 1.0, 1.0], dtype=torch.double) * within_two_deviations
    torch.testing.assert_close(chance_of_right(hypotheses, weight, deviation, "rotation"), expected)


def test_an_angle_of_which_nothing_is_known_is_right_by_chance():
    found = chance_of_right(torch.zeros(1, 1, 3), torch.ones(1, 1), torch.tensor([[math.nan, 0.0, 0.0]]), "rigid")
    torch.testing.assert_close(found, torch.tensor([40 / 360], dtype=torch.double))


@every_family
def test_frozen_and_certain_parameters_are_right_for_sure(family):
    n = len(FAMILIES[family])
    found = chance_of_right(torch.zeros(2, 1, n), torch.ones(2, 1), torch.zeros(2, n), family)
    torch.testing.assert_close(found, torch.ones(2, dtype=torch.double))


def test_a_mirrored_hypothesis_is_another_one():
    hypotheses = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    found = chance_of_right(hypotheses, torch.tensor([[0.6, 0.4]]), torch.zeros(1, 2), "rotation+reflection")
    assert found.item() == pytest.approx(0.6)


def test_confidence_takes_the_chance_at_its_word_unless_it_learned_better():
    chance = torch.tensor([0.01, 0.5, 0.99], dtype=torch.double)
    torch.testing.assert_close(Confidence().of(chance, torch.full_like(chance, 0.3)), chance)
    more = Confidence(1.0, 0.5, 0.0).of(chance, torch.full_like(chance, 0.9))
    assert (more > chance).all()
    assert log_odds(torch.tensor([0.0, 1.0])).isfinite().all()
