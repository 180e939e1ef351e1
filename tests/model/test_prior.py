"""The prior of the pose parameters: its scale from names, and its density."""

import math

import pytest
import torch
from torch import distributions

from sk_avae.model.affine import FAMILIES, with_reflection
from sk_avae.model.prior import is_free, log_prior, prior_scale

every_family = pytest.mark.parametrize("family", FAMILIES)
FLAT = math.inf


@every_family
def test_prior_scale_defaults_flat_and_frozen(family):
    names = FAMILIES[family]
    default = {"angle": FLAT, "tx": 0.5, "ty": 0.5}
    assert prior_scale("auto", family) == tuple(default.get(name, 0.2) for name in names)
    assert prior_scale(None, family) == (FLAT,) * len(names)
    changed = prior_scale({names[-1]: 0}, family)
    assert changed == (*prior_scale("auto", family)[:-1], 0.0)


@pytest.mark.parametrize(
    ("alpha_prior", "message"),
    [
        ({"tx": 1.0}, r"names \['tx'\], but the family 'rotation' has \['angle'\]"),
        ({"angle": -1.0}, r"alpha_prior\['angle'\] must be a standard deviation >= 0, got -1\.0"),
        ({"angle": math.nan}, "must be a standard deviation >= 0, got nan"),
        ("flat", "must be 'auto', None or a dict, got 'flat'"),
        (0.2, "must be 'auto', None or a dict, got 0.2"),
    ],
)
def test_prior_scale_messages(alpha_prior, message):
    with pytest.raises(ValueError, match=message):
        prior_scale(alpha_prior, "rotation")


@every_family
def test_log_prior_is_centred_and_zero_at_the_identity(family):
    names = FAMILIES[family]
    scale = prior_scale(dict.fromkeys(names, 0.6), family)
    alpha = 2 * torch.randn(50, len(scale), generator=torch.Generator().manual_seed(0))
    normal, on_circle = distributions.Normal(0.0, 0.6), distributions.VonMises(0.0, 1 / 0.6**2)
    expected = torch.zeros(50)
    for name, column in zip(names, alpha.T, strict=True):
        density = on_circle if name == "angle" else normal
        expected += density.log_prob(column) - density.log_prob(torch.zeros(()))
    torch.testing.assert_close(log_prior(alpha, family, scale), expected, rtol=1e-4, atol=1e-4)


def test_the_prior_of_an_angle_is_periodic_and_near_zero_a_gaussian():
    def density(alpha):
        return log_prior(alpha, "rigid", (0.5, FLAT, 0.3))

    alpha = torch.tensor([[2.0, 7.0, 0.1], [-3.0, 7.0, 0.2], [0.3, 7.0, 0.0]], dtype=torch.float64)
    turn = torch.tensor([2 * math.pi, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(density(alpha + turn), density(alpha))
    torch.testing.assert_close(density(alpha - 3 * turn), density(alpha))
    small = torch.tensor([[0.02, 0.0, 0.0], [-0.05, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(density(small), -0.5 * (small[:, 0] / 0.5).square(), rtol=1e-3, atol=0)
    # Half a turn is the farthest, and lower than all others.
    angles = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)[:, None]
    around = density(torch.cat([angles, torch.zeros(9, 2)], dim=1))
    assert around.argmin() in (0, 8)
    assert around.min().item() == pytest.approx(-2 / 0.5**2)


def test_gradient_of_the_prior_of_an_angle():
    scale = (0.7, 0.2, FLAT, 0.0)
    alpha = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a: log_prior(a, "similarity", scale), alpha)


def test_a_mirrored_image_is_as_probable_as_another():
    larger = with_reflection("rigid")
    alpha = torch.tensor([[0.4, 0.1, -0.2, 0.0], [0.4, 0.1, -0.2, 1.0]])
    both = log_prior(alpha, larger, prior_scale({"angle": 0.5}, larger))
    assert both[0] == both[1] < 0
    with pytest.raises(ValueError, match="alpha_prior names"):
        prior_scale({"reflected": 0.5}, larger)


@every_family
def test_flat_and_frozen_parameters_have_no_prior(family):
    n_params = len(FAMILIES[family])
    for scale in [(FLAT,) * n_params, (0.0,) * n_params]:
        assert torch.equal(log_prior(torch.ones(3, n_params), family, scale), torch.zeros(3))


def test_a_prior_narrower_than_a_millionth_is_frozen_and_no_other_is():
    assert prior_scale({"tx": 0.9e-6, "ty": 1e-6}, "rigid") == (FLAT, 0.0, 1e-6)


@every_family
def test_a_family_is_free_where_any_parameter_but_the_reflection_is(family):
    n_params = len(FAMILIES[family])
    for some in (family, with_reflection(family)):
        mirror = (FLAT,) * (some != family)
        assert not is_free(some, (0.0,) * n_params + mirror)
        for i in range(n_params):
            assert is_free(some, tuple(0.3 * (i == j) for j in range(n_params)) + mirror)


def test_a_reflected_family_has_the_priors_of_the_smaller_one_and_a_flat_mirror():
    for given in ("auto", None, {"tx": 0.1}):
        assert prior_scale(given, with_reflection("rigid")) == (*prior_scale(given, "rigid"), FLAT)


def test_the_prior_is_made_where_the_poses_are():
    alpha = torch.ones(3, 3)
    expected = log_prior(alpha, "rigid", (0.5, 0.2, FLAT))
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        assert torch.equal(log_prior(alpha, "rigid", (0.5, 0.2, FLAT)), expected)
