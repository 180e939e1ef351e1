"""The objective: minus ELBO and log prior, its gradient, and what the critic says, of any rows at any poses."""

from dataclasses import replace

import pytest
import torch
from posed_digits import avae_of, digits, turned
from torch import nn

from sk_avae.learning.perturbation import random_poses
from sk_avae.model.affine import FAMILIES, with_reflection
from sk_avae.model.batches import images_per_batch
from sk_avae.model.shape_density import ShapeDensity
from sk_avae.search.objective import Objective, step_units

every_family = pytest.mark.parametrize("family", FAMILIES)
both = pytest.mark.parametrize("dense", [False, True])


class Tops(nn.Module):
    """A critic that likes images whose upper half is the brighter one."""

    def forward(self, images):
        upper, lower = images.chunk(2, dim=2)
        return 1e3 * (upper.mean(dim=(1, 2, 3)) - lower.mean(dim=(1, 2, 3)))


def model_of(family, dense=False):
    density = ShapeDensity()
    density.set_mixture(torch.ones(2), torch.tensor([[0.2] * 5, [-1.0] * 5]), torch.eye(5).expand(2, 5, 5))
    return replace(avae_of(family), density=density if dense else None)


def pairs(model, n_images, n):
    """Numbers of images, repeated and in no order, and a pose for each."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(n_images, (n,), generator=generator), random_poses(n, model.family, model.scale, generator)


def expected_loss(model, images, rows, poses):
    images = images[rows]
    return -model.elbo(images, poses) - model.log_prior_of(images, poses, model.moments(images))


@both
@every_family
def test_a_loss_is_minus_elbo_and_log_prior_of_its_own_image_and_pose(family, dense):
    model, images = model_of(family, dense), digits(n=20)
    rows, poses = pairs(model, 20, 40)
    objective = Objective(model, images)
    expected = expected_loss(model, images, rows, poses)
    found = objective.loss(rows, poses)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    assert not found.requires_grad
    log_prior = objective.log_prior(rows, poses)
    torch.testing.assert_close(log_prior, model.log_prior_of(images[rows], poses, model.moments(images[rows])))


@both
@every_family
def test_the_gradient_is_that_of_the_loss(family, dense):
    model, images = model_of(family, dense), digits(n=20)
    rows, poses = pairs(model, 20, 30)
    with torch.no_grad():
        loss, gradient = Objective(model, images).loss_and_gradient(rows, poses)
    poses = poses.requires_grad_(True)
    expected = expected_loss(model, images, rows, poses)
    (slopes,) = torch.autograd.grad(expected.sum(), poses)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(gradient, slopes, rtol=1e-3, atol=0.1)
    assert not loss.requires_grad
    assert not gradient.requires_grad
    assert poses.grad is None


def test_more_pairs_than_a_batch_holds_are_all_evaluated_and_each_has_the_bits_of_one_alone():
    model, images = model_of("rigid", dense=True), digits(n=20)
    n = 2 * images_per_batch(images) + 5
    rows, poses = pairs(model, 20, n)
    objective = Objective(model, images)
    loss, gradient = objective.loss_and_gradient(rows, poses)
    alone = objective.loss(rows, poses)
    assert loss.shape == alone.shape == (n,)
    torch.testing.assert_close(loss, alone, rtol=1e-4, atol=1e-2)
    for i in (0, 700, n - 1):
        one, slope = objective.loss_and_gradient(rows[i : i + 1], poses[i : i + 1])
        assert torch.equal(one[0], loss[i])
        assert torch.equal(slope[0], gradient[i])
        assert torch.equal(objective.loss(rows[i : i + 1], poses[i : i + 1])[0], alone[i])


def test_a_wide_vae_or_critic_is_asked_about_fewer_at_once():
    images, sizes = digits(n=4), {}

    class Wide(Tops):
        widest = 2**21 // 40

        def forward(self, seen):
            sizes["critic"] = len(seen)
            return super().forward(seen)

    model = replace(avae_of(), critic=Wide())
    Objective(model, images).opinion(torch.zeros(90, dtype=torch.long), torch.zeros(90, 1))
    # 40, 40 and 10, which is filled up to 16.
    assert sizes["critic"] == 16


def test_the_identity_is_the_image_as_it_came():
    images, _ = turned(digits(n=30))
    model = replace(avae_of(), critic=Tops())
    objective = Objective(model, images)
    torch.testing.assert_close(objective.elbo_identity(), model.elbo(images).detach(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(objective.opinion_of_identity(), Tops()(images))
    assert not Objective(avae_of(), images).opinion_of_identity().any()


def test_the_critic_sees_the_canonical_image_of_each_pair():
    images = digits(n=10)
    model = replace(avae_of("affine"), critic=Tops())
    rows, poses = pairs(model, 10, 25)
    canonical = model.canonical(images[rows], model.matrix(poses, images))
    torch.testing.assert_close(Objective(model, images).opinion(rows, poses), Tops()(canonical))
    assert not Objective(avae_of("affine"), images).opinion(rows, poses).any()


@every_family
@pytest.mark.parametrize("frozen", [0, -1])
def test_steps_have_a_unit_for_each_free_parameter_and_none_for_a_mirror(family, frozen):
    names, like = FAMILIES[family], torch.zeros(1, dtype=torch.float64)
    expected = [0.1 if name in ("tx", "ty") else 0.15 for name in names]
    expected[frozen] = 0.0
    found = step_units(avae_of(with_reflection(family), {names[frozen]: 0}), like)
    assert found.dtype == torch.float64
    assert found.tolist() == [*expected, 0.0]


def test_losses_are_made_where_the_images_are():
    model, images = model_of("affine", dense=True), digits(n=4)
    rows, poses = pairs(model, 4, 20)
    expected = Objective(model, images).loss(rows, poses)
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        objective = Objective(model, images)
        assert torch.equal(objective.loss(rows, poses), expected)
        objective.loss_and_gradient(rows, poses)
