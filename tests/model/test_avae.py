"""The AVAE: its ELBO and its gradient, and what it says without warps and without a critic."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from posed_digits import avae_of, digits, network, turned
from torch import distributions

from sk_avae.model.affine import FAMILIES, invert, to_matrix, warp
from sk_avae.model.avae import AVAE, canonical_images, is_constant
from sk_avae.model.likelihoods import Bernoulli, Gaussian
from sk_avae.model.moments import exact_moments
from sk_avae.model.prior import prior_scale
from sk_avae.model.shape_density import ShapeDensity, canonical_features

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_elbo_against_an_independent_implementation():
    images, alpha = turned(digits(n=10))
    cos, sin, zero = alpha[:, 0].cos(), alpha[:, 0].sin(), torch.zeros(10)
    # On a square image a turn needs no aspect, and its inverse is its transpose.
    to_input = torch.stack([cos, sin, zero, -sin, cos, zero], dim=1).view(-1, 2, 3)
    to_canonical = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)

    def sample(pixels, matrix, outside):
        grid = F.affine_grid(matrix, [10, 1, 28, 28], align_corners=False)
        return F.grid_sample(pixels - outside, grid, align_corners=False) + outside

    with torch.no_grad():
        mean, log_var = network("mlp").encode(sample(images, to_input, 0.0))
        certainly_black = -8.0
        logits = sample(network("mlp").decode(mean), to_canonical, certainly_black)
        log_prob = images * F.logsigmoid(logits) + (1 - images) * F.logsigmoid(-logits)
        posterior = distributions.Normal(mean, (0.5 * log_var).exp())
        kl = distributions.kl_divergence(posterior, distributions.Normal(torch.zeros(16), torch.ones(16)))
        expected = log_prob.sum(dim=(1, 2, 3)) - kl.sum(dim=1)
        torch.testing.assert_close(avae_of().elbo(images, alpha), expected, rtol=1e-4, atol=1e-2)


def test_elbo_is_taken_in_the_input_frame():
    # Taken in the canonical frame, shrinking the digit away would leave nothing to explain.
    images = digits(n=50)
    away = torch.tensor([[0.0, 4.0, 4.0, 0.0, 0.0, 0.0]]).expand(50, 6)
    model = avae_of("affine", None)
    with torch.no_grad():
        assert (model.elbo(images, away) < model.elbo(images)).all()


@pytest.mark.parametrize("vae", ["mlp", "conv"])
@every_family
def test_identity_pose_is_the_plain_vae(vae, family):
    model = avae_of(family, vae=vae)
    images = digits(n=20)
    with torch.no_grad():
        posed = model.elbo(images, torch.zeros(20, len(model.scale)))
        torch.testing.assert_close(posed, model.elbo(images), rtol=1e-4, atol=1e-2)


def test_sampled_elbo_uses_log_var_as_a_log_variance():
    images = digits(n=3)
    noise = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_var = network("mlp").encode(images)
        posterior = distributions.Normal(mean, log_var.exp().sqrt())
        kl = distributions.kl_divergence(posterior, distributions.Normal(torch.zeros(16), torch.ones(16)))
        logits = network("mlp").decode(posterior.loc + noise * posterior.scale)
        expected = Bernoulli().log_prob(images, logits) - kl.sum(dim=1)
        torch.testing.assert_close(avae_of().elbo(images, noise=noise), expected, rtol=1e-4, atol=1e-2)


@every_family
def test_gradient_of_the_elbo_with_respect_to_the_pose(family):
    images, alpha = turned(digits(n=2), family)
    likelihood = Gaussian(scale=0.3).double()
    model = AVAE(
        copy.deepcopy(network("mlp")).double(), likelihood, family, torch.zeros(1).double(), prior_scale("auto", family)
    )
    alpha = alpha.double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda a: model.elbo(images.double(), a) + model.log_prior(a), alpha, atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("padding", ["background", "border", "reflect"])
def test_both_warps_have_the_model_s_padding_and_the_likelihood_s_fill(padding):
    background, outside = torch.tensor([0.25]), -1.5

    class Copies(torch.nn.Module):
        """A VAE whose decoder paints what the encoder saw."""

        def encode(self, x):
            return x.flatten(1), torch.zeros_like(x.flatten(1))

        def decode(self, z):
            return z.view(-1, 1, 6, 10)

    likelihood = SimpleNamespace(fill=lambda background: torch.full_like(background, outside))
    model = AVAE(Copies(), likelihood, "affine", background, (1.0,) * 6, padding)
    images = torch.rand(3, 1, 6, 10, generator=torch.Generator().manual_seed(0))
    alpha = torch.tensor([[0.5, 0.3, -0.2, 0.1, 0.4, -0.3]]).expand(3, 6)
    matrix = to_matrix(alpha, "affine", aspect=10 / 6)
    assert torch.equal(model.matrix(alpha, images), matrix)
    canonical = warp(images, matrix, background=background, padding=padding)
    assert torch.equal(model.canonical(images, matrix), canonical)
    assert torch.equal(model.encode(images, matrix)[0], canonical.flatten(1))
    back = warp(canonical, invert(matrix), background=torch.tensor([outside]), padding=padding)
    assert torch.equal(model.decode(canonical.flatten(1), matrix), back)
    assert torch.equal(model.decode(model.encode(images)[0]), images)


def test_the_prior_of_an_image_s_pose_counts_what_its_density_says():
    images, alpha = turned(digits(n=4), "affine")
    model = avae_of("affine")
    density = ShapeDensity()
    density.set_mixture(torch.ones(1), torch.full((1, 5), 0.2), torch.eye(5)[None])
    dense = replace(model, density=density)
    assert model.moments(images) is None
    moments = dense.moments(images)
    expected = density(canonical_features(exact_moments(images, model.background), model.matrix(alpha, images), 1.0))
    torch.testing.assert_close(dense.log_prior_of(images, alpha, moments) - model.log_prior(alpha), expected.float())
    for some in (model, dense):
        assert torch.equal(some.log_prior_of(images, alpha, None), model.log_prior(alpha))


def test_an_image_is_constant_if_each_of_its_channels_is():
    images = torch.tensor([0.1, 0.9])[None, :, None, None].repeat(4, 1, 3, 5)
    images[1, 1, 2, 4] = images[2, 0, 0, 0] = 0.5
    assert is_constant(images).tolist() == [True, False, False, True]


def test_canonical_images_are_warped_and_those_at_the_identity_keep_their_bits():
    images, alpha = turned(digits(n=40), "affine")
    alpha[::3] = 0.0
    model = avae_of("affine")
    found = canonical_images(model, images, alpha)
    assert torch.equal(found[::3], images[::3])
    expected = warp(images, model.matrix(alpha, images))
    moved = alpha.any(dim=1)
    torch.testing.assert_close(found[moved], expected[moved])
    alpha[1, :5] = 0.0
    assert not torch.equal(canonical_images(model, images, alpha)[1], images[1])
