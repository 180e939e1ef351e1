"""Restarts, screening, refinement and `align`, on digits."""

import copy
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributions, nn

from sk_avae.affine import FAMILIES, compose, identity_matrix, to_matrix, with_reflection
from sk_avae.alignment import (
    AVAE,
    DEFAULT_PRIOR,
    AlignmentResult,
    Restarts,
    align,
    block_size,
    distinct_best,
    pose_deviation,
    prior_scale,
    screen,
    screen_in_turn,
    typical_metric,
)
from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.descent import Race
from sk_avae.likelihoods import Bernoulli, Gaussian
from sk_avae.net import train
from sk_avae.starts import Moments, restart_table, starting_poses
from sk_avae.vae import MLPVAE, ConvVAE

every_family = pytest.mark.parametrize("family", FAMILIES)
FLAT = math.inf


def digits(subset="test", n=None):
    X, _ = load_mnist_sample(subset)
    return torch.tensor(X[:n].reshape(-1, 1, 28, 28) / 255.0).float()


def turned(images, family="rotation"):
    """Perturbed copies of images, and the true poses."""
    rows, alpha = make_perturbed(images[:, 0].numpy(), family=family, random_state=0)
    return torch.tensor(rows)[:, None], torch.tensor(alpha).float()


def trained(vae, images, max_epochs):
    train(
        AVAE(vae, Bernoulli(), "rotation", torch.zeros(1), scale=(math.inf,)),
        images,
        validation_images=None,
        poses=None,
        validation_poses=None,
        latent_size=16,
        max_epochs=max_epochs,
        batch_size=128,
        lr=2e-3,
        weight_decay=0.0,
        patience=None,
        callbacks=[],
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
        verbose=0,
    )
    vae.zero_grad()
    return vae.eval()


@pytest.fixture(scope="module")
def mlp():
    """A small VAE of upright digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trained(MLPVAE((1, 28, 28), 16, (128, 64)), digits("train"), max_epochs=8)


@pytest.fixture(scope="module")
def conv():
    """The paper's network after a few steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trained(ConvVAE((1, 28, 28), 16), digits("train", 512), max_epochs=1)


TYPICAL = Moments(torch.tensor([[0.0, 0.0]]), torch.tensor([[[0.08, -0.01], [-0.01, 0.16]]]))


def avae(vae, family="rotation", alpha_prior="auto"):
    return AVAE(vae, Bernoulli(), family, torch.zeros(1), prior_scale(alpha_prior, family))


def aligned(model, images, n_restarts=16, **settings):
    starts = starting_poses(images, model.background, TYPICAL, n_restarts, model.family, model.scale)
    return align(model, images, Restarts(starts), **settings)


# ---------------------------------------------------------------- prior


@every_family
def test_prior_scale_defaults_flat_and_frozen(family):
    names = FAMILIES[family]
    assert prior_scale("auto", family) == tuple(DEFAULT_PRIOR[name] for name in names)
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
    model = replace(avae(None, family), scale=scale)
    alpha = 2 * torch.randn(50, len(scale), generator=torch.Generator().manual_seed(0))
    normal, on_circle = distributions.Normal(0.0, 0.6), distributions.VonMises(0.0, 1 / 0.6**2)
    expected = torch.zeros(50)
    for name, column in zip(names, alpha.T, strict=True):
        density = on_circle if name == "angle" else normal
        expected += density.log_prob(column) - density.log_prob(torch.zeros(()))
    torch.testing.assert_close(model.log_prior(alpha), expected, rtol=1e-4, atol=1e-4)


def test_the_prior_of_an_angle_is_periodic_and_near_zero_a_gaussian():
    model = replace(avae(None, "rigid"), scale=(0.5, FLAT, 0.3))
    alpha = torch.tensor([[2.0, 7.0, 0.1], [-3.0, 7.0, 0.2], [0.3, 7.0, 0.0]], dtype=torch.float64)
    turn = torch.tensor([2 * math.pi, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model.log_prior(alpha + turn), model.log_prior(alpha))
    torch.testing.assert_close(model.log_prior(alpha - 3 * turn), model.log_prior(alpha))
    small = torch.tensor([[0.02, 0.0, 0.0], [-0.05, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(model.log_prior(small), -0.5 * (small[:, 0] / 0.5).square(), rtol=1e-3, atol=0)
    # Half a turn is the farthest, and lower than all others.
    angles = torch.linspace(-math.pi, math.pi, 9, dtype=torch.float64)[:, None]
    around = model.log_prior(torch.cat([angles, torch.zeros(9, 2)], dim=1))
    assert around.argmin() in (0, 8)
    assert around.min().item() == pytest.approx(-2 / 0.5**2)


def test_gradient_of_the_prior_of_an_angle():
    model = replace(avae(None, "similarity"), scale=(0.7, 0.2, FLAT, 0.0))
    alpha = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(model.log_prior, alpha)


def test_a_mirrored_image_is_as_probable_as_another():
    larger = with_reflection("rigid")
    model = AVAE(None, Bernoulli(), larger, torch.zeros(1), prior_scale({"angle": 0.5}, larger))
    alpha = torch.tensor([[0.4, 0.1, -0.2, 0.0], [0.4, 0.1, -0.2, 1.0]])
    both = model.log_prior(alpha)
    assert both[0] == both[1] < 0
    with pytest.raises(ValueError, match="alpha_prior names"):
        prior_scale({"reflected": 0.5}, larger)


@every_family
def test_flat_and_frozen_parameters_have_no_prior(family):
    n_params = len(FAMILIES[family])
    for scale in [(FLAT,) * n_params, (0.0,) * n_params]:
        model = replace(avae(None, family), scale=scale)
        assert torch.equal(model.log_prior(torch.ones(3, n_params)), torch.zeros(3))


# ---------------------------------------------------------------- ELBO


def test_elbo_against_an_independent_implementation(mlp):
    images, alpha = turned(digits(n=10))
    cos, sin, zero = alpha[:, 0].cos(), alpha[:, 0].sin(), torch.zeros(10)
    # On a square image a turn needs no aspect, and its inverse is its transpose.
    to_input = torch.stack([cos, sin, zero, -sin, cos, zero], dim=1).view(-1, 2, 3)
    to_canonical = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)

    def sample(pixels, matrix, outside):
        grid = F.affine_grid(matrix, [10, 1, 28, 28], align_corners=False)
        return F.grid_sample(pixels - outside, grid, align_corners=False) + outside

    with torch.no_grad():
        mean, log_var = mlp.encode(sample(images, to_input, 0.0))
        certainly_black = -8.0
        logits = sample(mlp.decode(mean), to_canonical, certainly_black)
        log_prob = images * F.logsigmoid(logits) + (1 - images) * F.logsigmoid(-logits)
        posterior = distributions.Normal(mean, (0.5 * log_var).exp())
        kl = distributions.kl_divergence(posterior, distributions.Normal(torch.zeros(16), torch.ones(16)))
        expected = log_prob.sum(dim=(1, 2, 3)) - kl.sum(dim=1)
        torch.testing.assert_close(avae(mlp).elbo(images, alpha), expected, rtol=1e-4, atol=1e-2)


def test_elbo_is_taken_in_the_input_frame(mlp):
    # Taken in the canonical frame, shrinking the digit away would leave nothing to explain.
    images = digits(n=50)
    away = torch.tensor([[0.0, 4.0, 4.0, 0.0, 0.0, 0.0]]).expand(50, 6)
    model = avae(mlp, "affine", None)
    with torch.no_grad():
        assert (model.elbo(images, away) < model.elbo(images)).all()


@pytest.mark.parametrize("network", ["mlp", "conv"])
@every_family
def test_identity_pose_is_the_plain_vae(network, family, request):
    model = avae(request.getfixturevalue(network), family)
    images = digits(n=20)
    with torch.no_grad():
        posed = model.elbo(images, torch.zeros(20, len(model.scale)))
        torch.testing.assert_close(posed, model.elbo(images), rtol=1e-4, atol=1e-2)


def test_sampled_elbo_uses_log_var_as_a_log_variance(mlp):
    images = digits(n=3)
    noise = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_var = mlp.encode(images)
        posterior = distributions.Normal(mean, log_var.exp().sqrt())
        kl = distributions.kl_divergence(posterior, distributions.Normal(torch.zeros(16), torch.ones(16)))
        logits = mlp.decode(posterior.loc + noise * posterior.scale)
        expected = Bernoulli().log_prob(images, logits) - kl.sum(dim=1)
        torch.testing.assert_close(avae(mlp).elbo(images, noise=noise), expected, rtol=1e-4, atol=1e-2)


@every_family
def test_gradient_of_the_elbo_with_respect_to_the_pose(mlp, family):
    images, alpha = turned(digits(n=2), family)
    likelihood = Gaussian(scale=0.3).double()
    model = AVAE(copy.deepcopy(mlp).double(), likelihood, family, torch.zeros(1).double(), prior_scale("auto", family))
    alpha = alpha.double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda a: model.elbo(images.double(), a) + model.log_prior(a), alpha, atol=1e-3, rtol=1e-4
    )


# ---------------------------------------------------------------- screening


@every_family
def test_screen_against_brute_force(mlp, family):
    model = avae(mlp, family)
    images = digits(n=7)
    restarts = starting_poses(images, model.background, TYPICAL, 9, family, model.scale)
    with torch.no_grad():
        expected = [
            [float(model.elbo(image[None], pose[None]) + model.log_prior(pose[None])) for pose in poses]
            for image, poses in zip(images, restarts, strict=True)
        ]
    torch.testing.assert_close(screen(model, images, restarts), torch.tensor(expected), rtol=1e-4, atol=1e-2)


def test_screening_no_restarts_has_no_columns(mlp):
    assert screen(avae(mlp), digits(n=3), torch.zeros(3, 0, 1)).shape == (3, 0)


def test_restarts_are_screened_in_turn_where_the_first_are_not_good_enough(mlp):
    model, images = avae(mlp), digits(n=6)
    alpha = starting_poses(images, model.background, TYPICAL, 5, model.family, model.scale)
    first = torch.tensor([True, True, False, False, True]).expand(6, 5)
    everything = screen(model, images, alpha)
    floor = everything[:, [0, 1, 4]].amax(dim=1).median().item()
    sure = everything[:, [0, 1, 4]].amax(dim=1) >= floor
    assert 0 < sure.sum() < 6
    scores = screen_in_turn(model, images, Restarts(alpha, first, floor))
    assert torch.equal(scores, torch.where(first | ~sure[:, None], everything, -math.inf))


@every_family
def test_the_typical_metric_is_positive_definite_where_parameters_are_free_and_nothing_elsewhere(mlp, family):
    names, images = FAMILIES[family], digits(n=12)
    assert not typical_metric(avae(mlp, family, dict.fromkeys(names, 0)), images).any()
    metric = typical_metric(avae(mlp, family, {names[-1]: 0}), images)
    free = len(names) - 1
    assert not metric[:, free].any()
    assert not metric[free].any()
    assert (torch.linalg.eigvalsh(metric[:free, :free].double()) > 0).all()
    # No typical curvature is weaker than a nat per squared unit.
    assert torch.linalg.matrix_norm(metric, 2) <= 1 + 1e-5


def turns(*degrees):
    return to_matrix(torch.tensor(degrees, dtype=torch.float32).deg2rad()[:, None], "rotation")


def distinct(scores, matrices, k):
    """Pick from restarts that all images share."""
    return distinct_best(scores, matrices.expand(len(scores), *matrices.shape), k)


def test_distinct_best_has_neighbours_of_its_own_for_each_image():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    matrices = torch.stack([turns(0, 5, 90), turns(0, 90, 95)])
    assert distinct_best(scores, matrices, 2).tolist() == [[0, 2], [0, 1]]


def test_distinct_best_passes_over_neighbours():
    matrices = turns(0, 5, 90, 180)
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0], [1.0, 2.0, 8.0, 9.0]])
    assert distinct(scores, matrices, 3).tolist() == [[0, 3, 2], [3, 2, 1]]


def test_distinct_best_returns_to_neighbours_when_nothing_else_is_left():
    matrices = turns(0, 5, 90)
    assert distinct(torch.tensor([[3.0, 2.0, 1.0]]), matrices, 3).tolist() == [[0, 2, 1]]
    assert distinct(torch.tensor([[3.0, 2.0, 1.0]]), matrices, 10).tolist() == [[0, 2, 1]]


def test_distinct_best_of_one_is_the_best():
    scores = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    matrices = to_matrix(restart_table(16, "rotation", (FLAT,)), "rotation")
    assert torch.equal(distinct(scores, matrices, 1)[:, 0], scores.argmax(dim=1))


def test_distinct_best_leaves_its_scores_alone():
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    distinct(scores, turns(0, 5, 90), 3)
    assert torch.equal(scores, torch.tensor([[3.0, 2.0, 1.0]]))


@pytest.mark.parametrize("outlier", [-math.inf, math.nan, -1e30, 1e30])
def test_an_outlying_score_of_one_image_does_not_touch_another(outlier):
    matrices = turns(0, 5, 10, 120, 240)
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0], [0.0, outlier, 2.0, 3.0, 1.0]])
    for k in (2, 5):
        assert distinct(scores, matrices, k)[:1].tolist() == distinct(scores[:1], matrices, k).tolist()


@pytest.mark.parametrize("impossible", [-math.inf, math.nan])
def test_an_impossible_restart_comes_last(impossible):
    assert distinct(torch.tensor([[impossible, 1.0, 2.0]]), turns(0, 120, 240), 3).tolist() == [[2, 1, 0]]


# ---------------------------------------------------------------- align: an image alone and in company


def assert_same_rows(part, whole, rows):
    for name, values in part.arrays().items():
        assert torch.equal(values, whole.arrays()[name][rows]), name


@pytest.mark.parametrize("family", ["rotation", "affine"])
@pytest.mark.parametrize(("network", "n"), [("mlp", 250), ("conv", 40)])
def test_a_row_alone_is_the_row_in_a_batch_bit_for_bit(network, n, family, request):
    model = avae(request.getfixturevalue(network), family)
    images, _ = turned(digits(n=n), family)
    settings = {"n_restarts": 8, "max_iter": 5}
    whole = aligned(model, images, **settings)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    for rows in [*order[:4, None], order, order[:2], order[:7], order[:17], order[: n // 2 + 1]]:
        assert_same_rows(aligned(model, images[rows], **settings), whole, rows)


def test_the_batch_of_that_test_spans_several_blocks():
    assert block_size(digits(n=1)) < 250 * 7


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 28, 28), (3, 31, 7), (1, 512, 512), (4, 2048, 2048), (1, 0, 5)])
def test_blocks_are_as_large_as_a_mebipixel_allows_from_16_to_2048_images(shape):
    size, n_pixels = block_size(torch.empty(1, *shape, device="meta")), math.prod(shape)
    assert 16 <= size <= 2048
    assert size == 16 or size * n_pixels <= 2**20
    assert size == 2048 or (size + 1) * n_pixels > 2**20


# ---------------------------------------------------------------- align: what it finds


@pytest.mark.parametrize("family", ["rotation", "rigid"])
def test_the_pose_of_perturbed_digits_is_recovered(mlp, family):
    originals = digits(n=200)
    images, true = turned(originals, family)
    model = avae(mlp, family)
    n_restarts = 16 if family == "rotation" else 48
    # A digit as it was written has a pose of its own; perturbing it comes on top.
    own = aligned(model, originals, n_restarts).matrix
    found = aligned(model, images, n_restarts, n_refine=3).matrix
    error = (found - compose(to_matrix(true, family), own)).flatten(1).norm(dim=1)
    unaligned = (identity_matrix(200, found) - compose(to_matrix(true, family), own)).flatten(1).norm(dim=1)
    assert error.median() < 0.15 < unaligned.median()


def test_aligning_closes_most_of_the_gap_to_upright_digits(mlp):
    originals = digits(n=200)
    images, _ = turned(originals)
    model = avae(mlp)
    result = aligned(model, images)
    upright = aligned(model, originals).elbo_identity.mean()
    closed = (result.elbo - result.elbo_identity).mean() / (upright - result.elbo_identity.mean())
    assert closed > 0.8


@every_family
def test_result_is_consistent(mlp, family):
    images, _ = turned(digits(n=30), family)
    model = avae(mlp, family)
    result = aligned(model, images, n_refine=3, max_iter=8)
    n_params = len(FAMILIES[family])
    assert result.hypotheses.shape == (30, 3, n_params)
    assert torch.equal(result.hypotheses[:, 0], result.alpha)
    assert torch.equal(result.hypothesis_elbo[:, 0], result.elbo)
    torch.testing.assert_close(result.matrix, model.matrix(result.alpha, images))
    with torch.no_grad():
        torch.testing.assert_close(result.elbo_identity, model.elbo(images), rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(result.elbo, model.elbo(images, result.alpha), rtol=1e-4, atol=1e-2)
    assert (result.n_iter <= 8).all()
    assert result.converged.dtype == torch.bool
    assert not result.matrix.requires_grad


def energies(model, images, result):
    """ELBO, log prior and what the critic says of each hypothesis, written out."""
    n, k, n_params = result.hypotheses.shape
    poses, images = result.hypotheses.reshape(-1, n_params), images.repeat_interleave(k, dim=0)
    with torch.no_grad():
        energy = model.elbo(images, poses) + model.log_prior(poses) + model.critic_score(images, poses)
    return energy.view(n, k)


@every_family
def test_hypotheses_come_best_first_and_beat_the_identity(mlp, family):
    images, _ = turned(digits(n=30), family)
    model = avae(mlp, family)
    result = aligned(model, images, n_refine=4, max_iter=8)
    distinct = result.hypothesis_weight > 0
    energy = energies(model, images, result)
    for row in range(30):
        assert (energy[row, distinct[row]].diff() <= 1e-2).all()
    assert (energy[:, 0] >= result.elbo_identity - 1e-2).all()
    assert (energy[:, 0] > result.elbo_identity).sum() > 20
    torch.testing.assert_close(result.gain, energy[:, 0] - result.elbo_identity, rtol=1e-4, atol=1e-2)


def distances(model, images, hypotheses):
    """How far the matrices of an image's hypotheses lie apart, of shape (n, k, k)."""
    n, k, _ = hypotheses.shape
    flat = model.matrix(hypotheses.reshape(n * k, -1), images).view(n, k, 6)
    return (flat[:, :, None] - flat[:, None]).norm(dim=3)


@pytest.mark.parametrize("family", [*FAMILIES, with_reflection("rigid")])
def test_hypotheses_are_distinct_and_repetitions_come_last_with_weight_zero(mlp, family):
    images, _ = turned(digits(n=60), family.removesuffix("+reflection"))
    model = avae(mlp, family)
    # Hot enough that none is given up, nor weighs less than a float can hold.
    result = aligned(model, images, n_restarts=24, n_refine=6, temperature=1e3)
    weight, apart = result.hypothesis_weight, distances(model, images, result.hypotheses)
    counts = weight > 0
    assert (counts.long().diff(dim=1) <= 0).all()
    assert counts[:, 0].all()
    assert 60 < counts.sum() < 6 * 60
    different = ~torch.eye(6, dtype=torch.bool)
    for row in range(60):
        pairs = apart[row][counts[row]][:, counts[row]]
        assert (pairs[different[: len(pairs), : len(pairs)]] > 0.5).all()
        # What is pushed back is near one that counts.
        assert (apart[row][~counts[row]][:, counts[row]].amin(dim=1) < 0.6).all()


@pytest.mark.parametrize("temperature", [1.0, 12.0])
def test_weights_are_the_softmax_of_the_energy_over_the_temperature(mlp, temperature):
    images, _ = turned(digits(n=60), "affine")
    model = avae(mlp, "affine")
    result = aligned(model, images, n_restarts=24, n_refine=5, temperature=temperature)
    weight = result.hypothesis_weight
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(60))
    assert (weight.diff(dim=1) <= 0).all()
    energy = energies(model, images, result).masked_fill(weight == 0, -math.inf)
    torch.testing.assert_close(weight, (energy / temperature).softmax(dim=1), rtol=0.02, atol=1e-3)
    assert ((weight[:, 0] > 0.05) & (weight[:, 0] < 0.95)).sum() > 5


def test_a_boundless_temperature_leaves_all_distinct_hypotheses_alike(mlp):
    images, _ = turned(digits(n=30))
    weight = aligned(avae(mlp), images, n_refine=4, temperature=1e9).hypothesis_weight
    counts = weight > 0
    torch.testing.assert_close(weight, counts / counts.sum(dim=1, keepdim=True), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("temperature", "margin"), [(0.1, 10.0), (2.5, 10.0), (3.0, 12.0), (100.0, 400.0)])
def test_a_hypothesis_is_given_up_ten_nats_and_four_temperatures_behind(mlp, monkeypatch, temperature, margin):
    margins = []

    def spy(owner, bonus, margin):
        margins.append(margin)
        return Race(owner, bonus, margin)

    monkeypatch.setattr("sk_avae.alignment.Race", spy)
    aligned(avae(mlp), turned(digits(n=2))[0], temperature=temperature)
    assert margins == [pytest.approx(margin)]


def test_more_restarts_and_longer_refinement_do_not_hurt(mlp):
    images, _ = turned(digits(n=100))
    model = avae(mlp)
    cheap = aligned(model, images, 4, n_refine=4, max_iter=2).elbo
    assert (aligned(model, images, 4, n_refine=4, max_iter=10).elbo >= cheap).all()
    assert aligned(model, images, 16, n_refine=4, max_iter=2).elbo.mean() > cheap.mean()


def test_a_prior_holds_the_pose_back(mlp):
    images, _ = turned(digits(n=50), "rigid")
    free = aligned(avae(mlp, "rigid", None), images, 32)
    held = aligned(avae(mlp, "rigid", {"tx": 0.02, "ty": 0.02}), images, 32)
    assert held.alpha[:, 1:].norm() < 0.5 * free.alpha[:, 1:].norm()


@every_family
def test_frozen_parameters_stay_at_exactly_zero(mlp, family):
    name = FAMILIES[family][-1]
    images, _ = turned(digits(n=10), family)
    result = aligned(avae(mlp, family, {name: 0}), images, max_iter=5)
    assert not result.alpha[:, -1].any()
    assert result.alpha.any() == (len(FAMILIES[family]) > 1)


def test_min_gain_keeps_the_identity_exactly(mlp):
    images, _ = turned(digits(n=40))
    model = avae(mlp)
    free = aligned(model, images)
    gain = free.elbo - free.elbo_identity
    gated = aligned(model, images, min_gain=float(gain.median()))
    stays = gain <= gain.median()
    assert torch.equal(gated.alpha[~stays], free.alpha[~stays])
    assert not gated.alpha[stays].any()
    assert torch.equal(gated.matrix[stays], identity_matrix(int(stays.sum()), gated.matrix))
    assert torch.equal(gated.elbo[stays], gated.elbo_identity[stays])
    assert torch.equal(gated.gain, free.gain)
    assert not gated.hypotheses[stays, 0].any()
    assert gated.converged[stays].all()


@pytest.mark.parametrize("family", ["rotation", "linear"])
def test_an_image_that_stays_has_the_identity_first_and_loses_no_other_hypothesis(mlp, family):
    images = torch.cat([digits(n=60), turned(digits(n=60), family)[0]])
    model = avae(mlp, family)
    free = aligned(model, images, 24, n_refine=4, temperature=1e4)
    # As hot as the gate is high, so that nothing but a repetition has the weight 0.
    gated = aligned(model, images, 24, n_refine=4, min_gain=1e4, temperature=1e4)
    assert not gated.hypotheses[:, 0].any()
    assert not gated.alpha.any()
    torch.testing.assert_close(gated.hypothesis_weight.sum(dim=1), torch.ones(120))
    with_identity = torch.cat([torch.zeros_like(free.hypotheses[:, :1]), free.hypotheses], dim=1)
    away = distances(model, images, with_identity)[:, 0, 1:]
    others = ((free.hypothesis_weight > 0) & (away > 0.55)).sum(dim=1)
    assert others.max() >= 3
    # A repetition comes only where nothing else was found.
    assert ((gated.hypothesis_weight > 0).sum(dim=1) >= (1 + others).clamp(max=4)).all()


@pytest.mark.parametrize("min_gain", [0.0, 20.0])
def test_the_weights_of_images_that_stay_count_the_gate_as_the_identity_s(mlp, min_gain):
    images = digits(n=100)
    model = avae(mlp)
    result = aligned(model, images, n_refine=4, min_gain=min_gain, temperature=30.0)
    stays = ~result.alpha.any(dim=1)
    assert stays.any()
    weight = result.hypothesis_weight
    torch.testing.assert_close(weight.sum(dim=1), torch.ones(100))
    assert (weight.diff(dim=1) <= 1e-6).all()
    energy = energies(model, images, result)
    energy[stays, 0] += min_gain
    expected = (energy.masked_fill(weight == 0, -math.inf) / 30.0).softmax(dim=1)
    torch.testing.assert_close(weight, expected, rtol=0.02, atol=1e-3)


def test_images_that_may_not_move_have_one_hypothesis(mlp):
    images, _ = turned(digits(n=20))
    model = avae(mlp)
    movable = torch.arange(20) % 2 == 0
    result = aligned(model, images, n_refine=3, movable=movable)
    free = aligned(model, images, n_refine=3)
    assert not result.alpha[~movable].any()
    expected = torch.tensor([1.0, 0.0, 0.0]).expand(10, 3)
    assert torch.equal(result.hypothesis_weight[~movable], expected)
    assert torch.equal(result.elbo[~movable], result.elbo_identity[~movable])
    for name in ("alpha", "hypotheses", "hypothesis_weight"):
        assert torch.equal(getattr(result, name)[movable], getattr(free, name)[movable]), name


@every_family
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_constant_images_stay_at_exactly_the_identity(network, family, request):
    constant = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand(3, 1, 28, 28)
    model = avae(request.getfixturevalue(network), family)
    result = aligned(model, torch.cat([constant, digits(n=2)]), max_iter=5)
    assert not result.alpha[:3].any()
    assert torch.equal(result.matrix[:3], identity_matrix(3, result.matrix))
    assert torch.equal(result.elbo[:3], result.elbo_identity[:3])
    assert torch.equal(result.hypothesis_weight[:3], torch.tensor([1.0, 0.0]).expand(3, 2))


# ---------------------------------------------------------------- align: with a critic


class Tops(nn.Module):
    """A critic that likes images whose upper half is the brighter one."""

    def forward(self, images):
        upper, lower = images.chunk(2, dim=2)
        return 1e3 * (upper.mean(dim=(1, 2, 3)) - lower.mean(dim=(1, 2, 3)))


def test_without_a_critic_nothing_is_said(mlp):
    assert torch.equal(avae(mlp).critic_score(digits(n=3), torch.ones(3, 1)), torch.zeros(3))


def test_the_critic_sees_canonical_images(mlp):
    images, alpha = turned(digits(n=5), "affine")
    model = replace(avae(mlp, "affine"), critic=Tops().eval())
    torch.testing.assert_close(
        model.critic_score(images, alpha), Tops()(model.canonical(images, model.matrix(alpha, images)))
    )
    assert torch.equal(model.critic_score(images), Tops()(images))


def test_the_critic_decides_which_hypothesis_is_best(mlp):
    images, _ = turned(digits(n=80))
    plain, critical = avae(mlp), replace(avae(mlp), critic=Tops().eval())
    # So hot that no hypothesis is given up for its ELBO.
    alone, with_critic = (aligned(model, images, n_refine=4, temperature=1e3) for model in (plain, critical))
    assert (alone.hypothesis_elbo[:, 0] > with_critic.hypothesis_elbo[:, 0] + 1).sum() > 20
    energy = energies(critical, images, with_critic)
    distinct = with_critic.hypothesis_weight > 0
    assert torch.equal(energy.masked_fill(~distinct, -math.inf).argmax(dim=1), torch.zeros(80, dtype=torch.long))
    gain = energy[:, 0] - with_critic.elbo_identity - critical.critic_score(images)
    moved = with_critic.alpha.any(dim=1)
    assert torch.equal(moved, with_critic.gain > 0)
    torch.testing.assert_close(with_critic.gain[moved], gain[moved], rtol=1e-4, atol=2e-2)
    # The ELBO in the result stays the ELBO.
    with torch.no_grad():
        torch.testing.assert_close(with_critic.elbo, plain.elbo(images, with_critic.alpha), rtol=1e-4, atol=1e-2)


def test_the_critic_has_a_say_in_which_restarts_are_refined(mlp):
    images, _ = turned(digits(n=60), "affine")
    critical = replace(avae(mlp, "affine"), critic=Tops().eval())
    starts = starting_poses(images, critical.background, TYPICAL, 24, "affine", critical.scale)
    scores = screen(critical, images, starts)
    matrices = critical.matrix(starts.reshape(-1, 6), images).view(60, 24, 2, 3)
    shown = distinct_best(scores, matrices, 4)
    owner = torch.arange(60).repeat_interleave(4)
    said = critical.critic_score(images[owner], starts[owner, shown.flatten()]).view(60, 4)
    liked = shown.gather(1, (scores.gather(1, shown) + said).argmax(dim=1, keepdim=True))[:, 0]
    assert (liked != scores.argmax(dim=1)).sum() > 20
    found = align(critical, images, Restarts(starts), n_refine=1, max_iter=0)
    moved = found.alpha.any(dim=1)
    assert moved.sum() > 30
    expected = critical.matrix(starts[torch.arange(60), liked], images)
    torch.testing.assert_close(found.matrix[moved], expected[moved])


def test_restarts_that_the_critic_picks_are_distinct(mlp):
    images, _ = turned(digits(n=60))
    critical = replace(avae(mlp), critic=Tops().eval())
    # As hot as can be: a weight of 0 is a repetition.
    result = aligned(critical, images, 24, n_refine=4, max_iter=0, temperature=1e9)
    moved = result.alpha.any(dim=1)
    assert moved.sum() > 40
    assert (result.hypothesis_weight[moved] > 0).all()


# ---------------------------------------------------------------- certainty


class Bowl:
    """A model whose energy is a quadratic in alpha, with a Hessian of its own for each image."""

    def __init__(self, family, hessian, scale=None):
        self.family = family
        self.hessian = hessian
        self.scale = scale or (FLAT,) * len(FAMILIES[family])
        self.vae = self.density = None

    def elbo(self, images, alpha):
        # The first pixel says which image it is.
        hessian = self.hessian[images[:, 0, 0, 0].long()]
        return -0.5 * (alpha[:, None] @ hessian @ alpha[:, :, None])[:, 0, 0]

    def log_prior(self, alpha):
        return torch.zeros(len(alpha))

    def ink(self, images):
        return None


def numbered(n):
    return torch.arange(n).float()[:, None, None, None].expand(n, 1, 4, 4)


@every_family
def test_the_deviation_of_a_quadratic_energy_is_that_of_its_inverse_hessian(family):
    n_params = len(FAMILIES[family])
    root = torch.randn(40, n_params, n_params, generator=torch.Generator().manual_seed(0))
    hessian = 60 * (root @ root.mT + torch.eye(n_params))
    found = pose_deviation(Bowl(family, hessian), numbered(40), 0.1 * root[:, 0])
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
        found = pose_deviation(Bowl(family, hessian, scale), numbered(10), torch.zeros(10, n_params))
        assert not found[:, frozen].any()
        kept = [i for i in range(n_params) if i != frozen]
        expected = hessian[:, kept][:, :, kept].double().inverse().diagonal(dim1=1, dim2=2).sqrt()
        torch.testing.assert_close(found[:, kept].double(), expected, rtol=1e-2, atol=0)


@every_family
@pytest.mark.parametrize("curvature", [0.0, -50.0])
def test_where_the_energy_is_flat_or_hollow_the_deviation_is_the_prior_s(family, curvature):
    names = FAMILIES[family]
    hessian = curvature * torch.eye(len(names)).expand(3, -1, -1)
    alpha = torch.zeros(3, len(names))
    flat = pose_deviation(Bowl(family, hessian), numbered(3), alpha)
    # Uniform on the circle, or one unit.
    widest = [math.pi / math.sqrt(3) if name == "angle" else 1.0 for name in names]
    torch.testing.assert_close(flat, torch.tensor(widest).expand(3, -1))
    narrow = pose_deviation(Bowl(family, hessian, (0.3,) * len(names)), numbered(3), alpha)
    torch.testing.assert_close(narrow, torch.full_like(alpha, 0.3))


def test_the_prior_narrows_the_deviation(mlp):
    images = digits(n=30)
    alpha = torch.zeros(30, 3)
    free, held = (pose_deviation(avae(mlp, "rigid", prior), images, alpha) for prior in (None, {"tx": 0.02}))
    assert (held[:, 1] <= 0.02).all()
    assert (held[:, 1] < free[:, 1]).all()
    # Two independent sources of information: precisions add up, as far as the ELBO is round.
    together = (free[:, 1] ** -2 + 0.02**-2) ** -0.5
    assert ((held[:, 1] / together).log().abs().median()) < 0.3


@pytest.mark.parametrize("family", ["affine", with_reflection("rigid")])
def test_the_deviation_of_an_image_is_its_own_to_the_bit(mlp, family):
    images, alpha = turned(digits(n=150), family.removesuffix("+reflection"))
    if family != "affine":
        alpha = torch.cat([alpha, (torch.arange(150) % 2).float()[:, None]], dim=1)
    model = avae(mlp, family)
    whole = pose_deviation(model, images, alpha)
    assert (whole[:, 0] > 0).all()
    for rows in (slice(0, 1), slice(3, 10), slice(41, 58), slice(149, 150)):
        assert torch.equal(pose_deviation(model, images[rows], alpha[rows]), whole[rows])


# ---------------------------------------------------------------- align: manners


def test_a_vae_or_a_critic_in_training_mode_is_refused(conv, mlp):
    training = copy.deepcopy(conv).train()
    with pytest.raises(ValueError, match=r"must be in evaluation mode.*call eval\(\)"):
        aligned(avae(training), digits(n=2))
    with pytest.raises(ValueError, match=r"must be in evaluation mode.*call eval\(\)"):
        aligned(replace(avae(mlp), critic=Tops().train()), digits(n=2))


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_nothing_in_the_model_or_the_images_changes(network, request):
    vae = request.getfixturevalue(network)
    before = copy.deepcopy(vae.state_dict())
    images, _ = turned(digits(n=5))
    pixels = images.clone()
    random_state = torch.get_rng_state()
    aligned(avae(vae), images, max_iter=5)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    assert not vae.training
    assert torch.equal(images, pixels)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_aligning_works_within_no_grad(mlp):
    images, _ = turned(digits(n=5))
    with torch.no_grad():
        inside = aligned(avae(mlp), images)
    assert torch.equal(inside.alpha, aligned(avae(mlp), images).alpha)


# ---------------------------------------------------------------- the result


def result_with(parameters, alpha):
    n = len(alpha)
    arrays = {
        "matrix": np.tile(np.eye(2, 3), (n, 1, 1)),
        "elbo": np.full(n, -80.0),
        "elbo_identity": np.full(n, -100.0),
        "gain": np.full(n, 25.0),
        "n_iter": np.arange(n),
        "converged": np.ones(n, dtype=bool),
        "hypotheses": np.array(alpha)[:, None],
        "hypothesis_elbo": np.full((n, 1), -80.0),
        "hypothesis_weight": np.full((n, 1), 0.75),
    }
    return AlignmentResult(alpha=np.array(alpha), **arrays, parameters=parameters, image_shape=(20, 40))


def test_to_frame_is_in_degrees_factors_and_pixels():
    frame = result_with(FAMILIES["affine"], [[math.pi / 2, math.log(2), math.log(0.5), 0.3, 0.5, -0.1]]).to_frame()
    expected = {"angle_deg": 90, "scale_x": 2, "scale_y": 0.5, "shear": 0.3, "tx_px": 10, "ty_px": -1}
    assert frame.iloc[0].to_dict() == pytest.approx(
        expected | {"probability": 0.75, "elbo": -80, "gain": 25, "n_iter": 0, "converged": True}
    )


@every_family
def test_to_frame_names_every_parameter_once(family):
    names = FAMILIES[family]
    frame = result_with(names, np.zeros((3, len(names)))).to_frame()
    assert frame.shape == (3, len(names) + 5)
    assert frame.columns.is_unique


def test_a_result_says_in_a_line_what_was_found():
    line = repr(result_with(FAMILIES["rigid"], np.zeros((1200, 3))))
    assert line.startswith("AlignmentResult(1,200 images, alpha: angle, tx, ty; mean ELBO ")
    assert "\n" not in line
    assert len(line) < 200
    assert repr(result_with(FAMILIES["rotation"], np.zeros((0, 1)))) == "AlignmentResult(0 images, alpha: angle)"


def test_to_frame_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result_with(FAMILIES["rotation"], [[0.0]]).to_frame()


def test_to_frame_of_a_single_scale():
    frame = result_with(FAMILIES["similarity"], [[0.0, math.log(3), 0.0, 0.0]]).to_frame()
    assert frame["scale"].tolist() == pytest.approx([3.0])


def test_reflected_is_the_last_parameter_as_a_claim():
    names = (*FAMILIES["rigid"], "reflected")
    result = result_with(names, [[0.1, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 0.0]])
    assert result.reflected.tolist() == [True, False]
    assert result.to_frame()["reflected"].tolist() == [True, False]
    # Another parameter above one half is no mirror.
    assert result_with(FAMILIES["rigid"], [[0.1, 0.2, 0.9]]).reflected.tolist() == [False]


def test_arrays_are_the_per_image_fields():
    result = result_with(("angle",), [[0.1], [0.2]])
    arrays = result.arrays()
    assert {"alpha", "matrix", "elbo", "gain", "hypothesis_weight", "converged"} < set(arrays)
    assert "alpha_std" not in arrays
    assert "alpha_std" in replace(result, alpha_std=np.zeros((2, 1))).arrays()
    assert all(len(values) == 2 for values in arrays.values())


def test_result_is_frozen():
    with pytest.raises(AttributeError):
        result_with(("angle",), [[0.1]]).alpha = None
