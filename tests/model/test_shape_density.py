"""The density of canonical images: its features, the mixture, and what it is worth to the search."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.mixture import GaussianMixture

from sk_avae.datasets import make_perturbed
from sk_avae.learning.perturbation import random_poses
from sk_avae.model.affine import FAMILIES, parameters_of, to_matrix, warp, with_reflection
from sk_avae.model.moments import Moments, exact_moments
from sk_avae.model.shape_density import N_COMPONENTS, N_FEATURES, ShapeDensity, canonical_features
from sk_avae.search.objective import Objective

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

BLACK = torch.zeros(1)
every_family = pytest.mark.parametrize("family", [*FAMILIES, with_reflection("affine")])


def generator():
    return torch.Generator().manual_seed(0)


def tensors(X):
    return torch.tensor(np.asarray(X)).view(-1, 1, 28, 28).float() / 255


def in_the_middle(X, width=168):
    """Large digits, whose pixels hardly matter, and which stay within the frame."""
    large = torch.nn.functional.interpolate(tensors(X), scale_factor=3, mode="bilinear")
    margin = (width - 84) // 2
    return torch.nn.functional.pad(large, (margin, margin, 42, 42))


def small_poses(n, family):
    """Poses that keep padded digits within their frame."""
    alpha = random_poses(n, family, (math.inf,) * len(parameters_of(family)), generator())
    return alpha * torch.tensor([1.0 if name in ("angle", "reflected") else 0.5 for name in parameters_of(family)])


# ---------------------------------------------------------------- features


@every_family
def test_features_are_those_of_the_canonical_image(digits, family):
    images = in_the_middle(digits.X[:40])
    matrix = to_matrix(small_poses(40, family), family)
    foretold = canonical_features(exact_moments(images, BLACK), matrix, 1.0)
    canonical = exact_moments(warp(images, matrix), BLACK)
    identity = to_matrix(torch.zeros(40, 1), "rotation")
    assert foretold.dtype == torch.float64
    assert_allclose(foretold, canonical_features(canonical, identity, 1.0), atol=0.05)
    # And not merely because all digits are alike.
    assert (foretold - canonical_features(exact_moments(images, BLACK), identity, 1.0)).abs().max() > 0.5


def test_features_of_images_that_are_not_square(digits):
    images = in_the_middle(digits.X[:20], width=252)
    aspect = images.shape[3] / images.shape[2]
    matrix = to_matrix(small_poses(20, "affine"), "affine", aspect=aspect)
    foretold = canonical_features(exact_moments(images, BLACK), matrix, aspect)
    canonical = exact_moments(warp(images, matrix), BLACK)
    identity = to_matrix(torch.zeros(20, 1), "rotation", aspect=aspect)
    assert_allclose(foretold, canonical_features(canonical, identity, aspect), atol=0.05)


def test_the_covariance_enters_by_its_matrix_logarithm():
    root = torch.randn(30, 2, 2, generator=generator(), dtype=torch.float64)
    covariance = root @ root.mT + 0.1 * torch.eye(2)
    covariance[0] = 0.3 * torch.eye(2)
    found = canonical_features(
        Moments(torch.zeros(30, 2, dtype=torch.float64), covariance), torch.eye(2, 3).expand(30, 2, 3), 1.0
    )
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    expected = vectors @ torch.diag_embed(eigenvalues.log()) @ vectors.mT
    assert_allclose(found[:, :2], torch.zeros(30, 2))
    assert_allclose(found[:, 2:], expected.flatten(1)[:, [0, 3, 1]], atol=2e-3)


@pytest.mark.parametrize("shape", [(1, 28), (28, 1), (1, 1), (28, 28)])
def test_blank_and_thin_images_have_finite_features_and_gradients(shape):
    images = torch.zeros(2, 1, *shape)
    images[1, 0, shape[0] // 2, shape[1] // 2] = 1
    alpha = torch.zeros(2, 6, requires_grad=True)
    aspect = shape[1] / shape[0]
    moments = exact_moments(images, BLACK)
    features = canonical_features(moments, to_matrix(alpha, "affine", aspect=aspect), aspect)
    assert features.isfinite().all()
    (gradient,) = torch.autograd.grad(features.sum(), alpha)
    assert gradient.isfinite().all()


# ---------------------------------------------------------------- the mixture


@pytest.fixture(scope="module")
def mixture():
    X = np.random.default_rng(0).normal(size=(400, N_FEATURES)) @ np.diag([1, 2, 3, 0.5, 0.1])
    return GaussianMixture(3, random_state=0).fit(X), X


def taken_up(mixture):
    density = ShapeDensity()
    found = mixture.weights_, mixture.means_, mixture.precisions_cholesky_
    density.set_mixture(*(torch.from_numpy(part) for part in found))
    return density


def test_the_density_is_the_mixture_s_up_to_weight_and_constant(mixture):
    mixture, X = mixture
    found = taken_up(mixture)(torch.from_numpy(X))
    expected = mixture.score_samples(X)
    slope = np.ptp(found.numpy()) / np.ptp(expected)
    assert slope > 1  # a nat of it counts more than one of the ELBO
    assert_allclose(found - found[0], slope * (expected - expected[0]), atol=1e-3)


def test_a_row_has_the_same_density_alone_and_in_any_batch(mixture):
    mixture, X = mixture
    density, features = taken_up(mixture), torch.from_numpy(X)
    together = density(features).float()
    for n in (1, 2, 7, 33):
        assert torch.equal(density(features[:n]).float(), together[:n])


def test_a_smaller_mixture_follows_a_larger_one(mixture):
    mixture, X = mixture
    density = taken_up(mixture)
    other = GaussianMixture(N_COMPONENTS, random_state=0).fit(X)
    density.set_mixture(*map(torch.from_numpy, (other.weights_, other.means_, other.precisions_cholesky_)))
    found = mixture.weights_, mixture.means_, mixture.precisions_cholesky_
    density.set_mixture(*map(torch.from_numpy, found))
    assert torch.equal(density(torch.from_numpy(X)), taken_up(mixture)(torch.from_numpy(X)))


# ---------------------------------------------------------------- in the search


def test_the_gradient_knows_the_density(fitted_with_critic, stretched):
    avae = fitted_with_critic
    model, images = avae._aligner().model, avae._aligner().to_model(stretched.X[:20])
    rows, alpha = torch.arange(20), 0.1 * torch.randn(20, 4, generator=generator())
    loss, gradient = Objective(model, images).loss_and_gradient(rows, alpha)
    without = replace(model, density=None)
    loss_without, gradient_without = Objective(without, images).loss_and_gradient(rows, alpha)
    moments = model.moments(images)
    pose = alpha.clone().requires_grad_(True)
    log_density = model.log_prior_of(images, pose, moments) - model.log_prior(pose)
    (expected,) = torch.autograd.grad(log_density.sum(), pose)
    assert_allclose(loss_without - loss, log_density.detach(), rtol=1e-3, atol=1e-2)
    assert_allclose(gradient_without - gradient, expected, rtol=1e-3, atol=0.2)
    assert expected.abs().max() > 10
    assert_allclose(Objective(model, images).loss(rows, alpha), loss, rtol=1e-5)


def test_the_elbo_of_a_result_is_the_elbo_alone(fitted_with_critic, stretched):
    avae = fitted_with_critic
    result = avae.align(stretched.X[:50])
    moved = result.alpha.any(axis=1)
    model, images = avae._aligner().model, avae._aligner().to_model(stretched.X[:50])
    with torch.no_grad():
        elbo = model.elbo(images, torch.from_numpy(result.alpha).float())
    assert moved.mean() > 0.2
    assert_allclose(result.elbo[moved], elbo[moved], rtol=1e-4, atol=1e-2)
    assert_allclose(result.elbo_identity, avae.align(stretched.X[:50]).elbo_identity)


def test_more_canonical_images_are_of_a_usual_shape(fitted_with_critic, stretched):
    """Of digits that were stretched, the canonical ones vary less in shape where the density has a say."""
    spread = []
    for density in (fitted_with_critic.density_, None):
        model = copy.copy(fitted_with_critic)
        model.aligner_ = replace(model.aligner_, models=replace(model.aligner_.models, density=density))
        canonical = tensors(model.transform(stretched.X)[:, :784])
        identity = to_matrix(torch.zeros(len(canonical), 1), "rotation")
        features = canonical_features(exact_moments(canonical, BLACK), identity, 1.0)
        spread.append(float(fitted_with_critic.density_(features).mean()))
    assert spread[0] > spread[1]


def test_images_that_fill_the_frame_are_free_to_be_scaled(small_avae):
    """Their moments say nothing of the scale, and the density has learned as much."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.linspace(0, 3, 28)[:, None] * rng.uniform(1, 4, size=(150, 1, 1)) + np.linspace(0, 2, 28))
    X = np.round(127 * (1 + wave + 0.1 * rng.normal(size=(150, 28, 28))).clip(0, 2)).reshape(150, -1)
    avae = small_avae(family="similarity", critic=True, padding="border", max_epochs=2).fit(X)
    images = avae._aligner().to_model(X[:50])
    model = avae._aligner().model
    moments = model.moments(images)
    alpha = torch.zeros(50, 4)
    scores = []
    for log_scale in (-0.3, 0.0, 0.3):
        alpha[:, 1] = log_scale
        scores.append((model.log_prior_of(images, alpha, moments) - model.log_prior(alpha)).mean())
    assert max(scores) - min(scores) < 15


def test_it_is_switched_off_with_the_critic(fitted_with_critic, stretched):
    model = copy.deepcopy(fitted_with_critic).set_params(critic=False)
    assert model._aligner().model.density is model._aligner().model.critic is None


def test_without_a_critic_there_is_none(fitted):
    assert fitted.density_ is None


def test_it_helps_to_find_the_right_pose(fitted_with_critic, digits):
    stretched, alpha = make_perturbed(
        digits.X_test[:300],
        family="linear",
        ranges={"angle": math.pi, "shear": 0.4, "log_scale_x": 0.5, "log_scale_y": 0.5},
        random_state=0,
    )
    near = []
    for density in (fitted_with_critic.density_, None):
        model = copy.copy(fitted_with_critic)
        model.aligner_ = replace(model.aligner_, models=replace(model.aligner_.models, density=density))
        found = torch.from_numpy(model.align(stretched).alpha)
        away = to_matrix(found, "linear") - to_matrix(torch.from_numpy(alpha).to(found), "linear")
        near.append(float((away.flatten(1).norm(dim=1) < 0.6).float().mean()))
    assert near[0] > near[1]
