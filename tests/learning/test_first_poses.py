"""First poses of joint training: what moments say, and half turns that like images have not in common."""

import math

import pytest
import torch
from posed_digits import TYPICAL, avae_of, digits, turned

from sk_avae.learning.first_poses import first_poses, lie_alike, moment_poses, orientation
from sk_avae.learning.half_turns import without_half_turns
from sk_avae.model.avae import canonical_images

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


def wedge(n=1):
    """A bar that leans by 30 degrees from upright, with a heavy upper end."""
    y, x = torch.meshgrid(torch.linspace(1, -1, 33), torch.linspace(-1, 1, 33), indexing="ij")
    angle = math.radians(120)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    bar = (along.abs() < 0.7) & (across.abs() < 0.12)
    head = (along - 0.4).square() + across.square() < 0.09
    return (bar | head).float().expand(n, 1, 33, 33)


def test_the_principal_axis_is_upright_and_third_moments_tell_the_two_ways_round():
    image = wedge()
    still = torch.eye(2, dtype=torch.double)[None]
    up = orientation(image, torch.zeros(1), still)
    down = orientation(image.flip((2, 3)), torch.zeros(1), still)
    # The longer tail, away from the head, is what the third moment points to.
    assert up.item() == pytest.approx(math.radians(30 - 180), abs=0.05)
    assert (down - up).item() == pytest.approx(math.pi, abs=1e-6)


@pytest.mark.parametrize("family", ["rotation", "rigid", "similarity", "linear", "affine", "rotation+reflection"])
def test_turned_images_come_into_the_same_pose_as_before(family):
    images = digits("test", 60)
    perturbed, true = turned(images)
    model = avae_of(family)
    angle = moment_poses(model, images, TYPICAL)[:, 0], moment_poses(model, perturbed, TYPICAL)[:, 0]
    left = torch.remainder(angle[1] - angle[0] - true[:, 0] + math.pi, 2 * math.pi) - math.pi
    assert left.abs().median() < 0.15


def test_images_in_any_orientation_start_from_their_moments_and_upright_ones_where_they_are():
    model, images = avae_of("rotation"), digits("train", 300)
    assert not first_poses(model, images, TYPICAL).any()
    assert lie_alike(images)
    perturbed, _ = turned(images)
    assert not lie_alike(perturbed)
    alpha = first_poses(model, perturbed, TYPICAL)
    assert torch.equal(alpha, moment_poses(model, perturbed, TYPICAL))
    spread = [some.var(dim=0).mean() for some in (canonical_images(model, perturbed, alpha), perturbed)]
    assert spread[0] < 0.95 * spread[1]
    assert lie_alike(images[:, :, :20])


def test_a_prior_on_the_angle_leaves_images_where_they_are():
    model, (perturbed, _) = avae_of("rotation", {"angle": 0.3}), turned(digits("test", 30))
    assert not first_poses(model, perturbed, TYPICAL).any()
    assert torch.equal(without_half_turns(model, perturbed, torch.zeros(30, 1), torch.Generator()), torch.zeros(30, 1))


def test_blank_images_and_none_at_all_have_a_pose():
    model = avae_of("affine")
    assert torch.isfinite(first_poses(model, torch.zeros(4, 1, 28, 28), TYPICAL)).all()
    assert first_poses(model, torch.zeros(0, 1, 28, 28), TYPICAL).shape == (0, 6)


# ---------------------------------------------------------------- half turns


@pytest.mark.parametrize("n_compared", [3000, 150])
def test_images_that_lie_upside_down_among_their_like_turn(monkeypatch, n_compared):
    monkeypatch.setattr("sk_avae.learning.half_turns._N_COMPARED", n_compared)
    model, generator = avae_of("rotation"), torch.Generator().manual_seed(0)
    images = wedge(300) + 0.05 * torch.rand(300, 1, 33, 33, generator=generator)
    upside_down = torch.rand(300, generator=generator) < 0.3
    images = torch.where(upside_down[:, None, None, None], images.flip((2, 3)), images)
    found = without_half_turns(model, images, torch.zeros(300, 1), generator)
    turns = found[:, 0].abs() > 3
    assert torch.equal(turns, upside_down) or torch.equal(turns, ~upside_down)
    again = without_half_turns(model, images, found, generator)
    assert torch.equal(again, found)


def test_images_that_look_the_same_both_ways_stay():
    model, generator = avae_of("rotation"), torch.Generator().manual_seed(0)
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, 4:24, 12:16] = 1.0
    assert not without_half_turns(model, images, torch.zeros(50, 1), generator).any()
    assert not without_half_turns(model, torch.zeros(50, 1, 28, 28), torch.zeros(50, 1), generator).any()
    assert not without_half_turns(model, images[:1], torch.zeros(1, 1), generator).any()
