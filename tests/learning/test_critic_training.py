"""The critic: its loss, its calibration, its training on digits, and what the hypotheses are that it chooses from."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sk_avae.learning.calibration import calibrate, pose_spread
from sk_avae.learning.critic_training import choice_loss, critic_scores, critic_scores_in_batches, train_critic
from sk_avae.learning.hypotheses import Hypotheses, find_hypotheses, is_right
from sk_avae.learning.perturbation import random_poses
from sk_avae.model.affine import FAMILIES, compose, to_matrix, with_reflection
from sk_avae.model.avae import AVAE
from sk_avae.model.critic import Critic
from sk_avae.model.prior import prior_scale
from sk_avae.search.proposer import PoseInitializer
from sk_avae.search.settings import SearchSettings

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

SEARCH = SearchSettings(n_restarts=16, n_refine=4, max_iter=6, tol=1e-2)
INFINITE = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(X):
    return torch.tensor(X).view(-1, 1, 28, 28) / 255


@pytest.fixture(scope="module")
def model(fitted_with_critic):
    """The session's model, which chooses by ELBO and prior alone."""
    return replace(fitted_with_critic._aligner().model, critic=None, density=None)


@pytest.fixture(scope="module")
def starts(fitted_with_critic):
    return PoseInitializer(fitted_with_critic._aligner().initializer.typical)


@pytest.fixture(scope="module")
def held_out(model, starts, digits):
    """Hypotheses for 400 test digits, found without knowing the truth."""
    images = tensors(digits.X_test[:400])
    true = random_poses(400, model.family, model.scale, generator(5))
    return find_hypotheses(model, images, starts, SEARCH, true=true, show_truth=False)


# ---------------------------------------------------------------- the loss


def test_the_loss_is_minus_the_log_probability_of_a_right_choice():
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)], [5.0, -2.0]])
    right = torch.tensor([[True, False], [False, True], [True, True]])
    # The probabilities of being right are 1/4, 3/4 and 1.
    assert choice_loss(scores, right).item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 3)


def test_the_loss_depends_on_differences_of_scores_only():
    scores, right = torch.randn(20, 5, generator=generator()), torch.rand(20, 5, generator=generator()) < 0.5
    right[:, 0] = True
    shift = 100 * torch.randn(20, 1, generator=generator())
    torch.testing.assert_close(choice_loss(scores + shift, right), choice_loss(scores, right), rtol=1e-4, atol=1e-4)


def test_a_repetition_takes_no_part_in_the_loss():
    scores = torch.tensor([[0.0, math.log(3.0), -INFINITE]], requires_grad=True)
    loss = choice_loss(scores, torch.tensor([[True, False, False]]))
    assert loss.item() == pytest.approx(math.log(4))
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, torch.tensor([[-0.75, 0.75, 0.0]]))


def test_gradient_of_the_loss():
    scores = torch.randn(6, 4, generator=generator(), dtype=torch.float64).requires_grad_(True)
    right = torch.tensor([[True, False, False, True]]).expand(6, 4)
    assert torch.autograd.gradcheck(lambda s: choice_loss(s, right), scores)


# ---------------------------------------------------------------- calibration


def synthetic(temperature, weight=0.0, n=6000, k=4):
    """Draw scores and energies, and the right hypothesis with the probabilities that these are calibrated to."""
    energy = -100 + 3 * temperature * torch.randn(n, k, generator=generator(1))
    scores = torch.randn(n, k, generator=generator(2))
    probabilities = (scores * weight + energy / temperature).softmax(dim=1)
    drawn = torch.multinomial(probabilities, 1, generator=generator(3))
    return scores, energy, torch.zeros(n, k, dtype=torch.bool).scatter_(1, drawn, True)


@pytest.mark.parametrize("temperature", [3.0, 20.0, 150.0])
def test_calibration_recovers_a_known_temperature(temperature):
    _, energy, right = synthetic(temperature)
    found, _ = calibrate(torch.zeros_like(energy), energy, right)
    assert found == pytest.approx(temperature, rel=0.1)


@pytest.mark.parametrize(("temperature", "weight"), [(10.0, 1.5), (40.0, 0.5)])
def test_calibration_recovers_the_weight_of_the_critic_in_nats(temperature, weight):
    scores, energy, right = synthetic(temperature, weight)
    found, nats = calibrate(scores, energy, right)
    assert found == pytest.approx(temperature, rel=0.1)
    assert nats == pytest.approx(weight * temperature, rel=0.15)


def test_a_critic_that_knows_nothing_gets_no_weight():
    _, energy, right = synthetic(10.0)
    noise = torch.randn(energy.shape, generator=generator(9))
    _, nats = calibrate(noise, energy, right)
    assert nats < 2


def test_a_common_shift_of_an_image_s_energies_means_nothing():
    scores, energy, right = synthetic(10.0, 1.0, n=800)
    shifted = energy + 500 * torch.randn(800, 1, generator=generator(4))
    assert calibrate(scores, shifted, right) == pytest.approx(calibrate(scores, energy, right), rel=1e-3)


def test_repetitions_and_images_that_teach_nothing_do_not_count():
    scores, energy, right = synthetic(10.0, 1.0, n=800)
    expected = calibrate(scores, energy, right)
    repeated = [torch.cat([tensor, tensor[:, -1:]], dim=1) for tensor in (scores, energy, right)]
    repeated[1][:, -1], repeated[2][:, -1] = -INFINITE, False
    assert calibrate(*repeated) == pytest.approx(expected, rel=1e-6)
    for answer in (False, True):
        more = [torch.cat([tensor, tensor]) for tensor in (scores, energy, right)]
        more[2][800:] = answer
        assert calibrate(*more) == pytest.approx(expected, rel=1e-6)


def test_nothing_to_learn_from_takes_the_elbo_at_its_word():
    scores, energy, _ = synthetic(10.0, n=5)
    for answer in (False, True):
        assert calibrate(scores, energy, torch.full((5, 4), answer)) == (1.0, 1.0)


@pytest.mark.parametrize("perfect", [True, False])
def test_the_temperature_stays_within_bounds(perfect):
    energy = torch.randn(300, 4, generator=generator()) * (1e3 if perfect else 1e-3)
    best = energy.argmax(dim=1, keepdim=True)
    right = torch.zeros(300, 4, dtype=torch.bool).scatter_(1, best if perfect else (best + 1) % 4, True)
    temperature, nats = calibrate(torch.zeros_like(energy), energy, right)
    assert 1 <= temperature <= 1000
    assert math.isfinite(nats)


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize(("degrees", "expected"), [(0, True), (20, True), (-24, True), (26, False), (180, False)])
def test_a_turn_is_right_up_to_about_25_degrees(degrees, expected):
    true = to_matrix(torch.tensor([[0.4, 0.2, -0.3, 0.3, 0.1, -0.2]]))
    error = to_matrix(torch.tensor([[math.radians(degrees), 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert is_right(compose(true, error), true).tolist() == [expected]


def test_a_stretch_and_a_shift_are_right_up_to_a_point():
    true = to_matrix(torch.tensor([[2.0, 0.2, -0.3, 0.3, 0.1, -0.2]])).expand(4, 2, 3)
    errors = torch.zeros(4, 6)
    errors[0, 1], errors[1, 1], errors[2, 4], errors[3, 4] = math.log(1.5), math.log(1.7), 0.55, 0.65
    assert is_right(compose(true, to_matrix(errors)), true).tolist() == [True, False, True, False]


def test_the_mirror_image_is_wrong():
    larger = with_reflection("rotation")
    plain, mirrored = to_matrix(torch.tensor([[0.3, 0.0], [0.3, 1.0]]), larger).split(1)
    assert is_right(mirrored, mirrored).all()
    assert not is_right(mirrored, plain).any()


# ---------------------------------------------------------------- hypotheses


def test_hypotheses_are_those_of_images_perturbed_by_the_truth(model, starts, digits):
    images = tensors(digits.X[:40])
    true = random_poses(40, model.family, model.scale, generator())
    found = find_hypotheses(model, images, starts, SEARCH, true=true, show_truth=True)
    assert found.alpha.shape == (40, 4, 4)
    truth = model.matrix(true, images)
    # Warped by the truth, the perturbed digit is the digit again.
    again = model.canonical(found.images, truth)
    assert (again - images).abs().mean() < 0.3 * (found.images - images).abs().mean()
    with torch.no_grad():
        poses = found.alpha.view(-1, 4)
        energy = model.elbo(found.images.repeat_interleave(4, dim=0), poses) + model.log_prior(poses)
    counts = found.log_joint > -INFINITE
    assert 40 < counts.sum() < 160
    torch.testing.assert_close(found.log_joint[counts], energy.view(40, 4)[counts], rtol=1e-4, atol=1e-2)
    right = is_right(model.matrix(poses, images), truth.repeat_interleave(4, dim=0)).view(40, 4)
    assert torch.equal(found.right, right & counts)


def test_the_truth_among_the_starts_leads_to_a_right_hypothesis(model, starts, digits):
    images = tensors(digits.X[:150])
    true = random_poses(150, model.family, model.scale, generator())
    few = replace(SEARCH, n_restarts=2)
    blind, shown = (
        find_hypotheses(model, images, starts, few, true=true, show_truth=show).right.any(dim=1).float().mean()
        for show in (False, True)
    )
    assert shown > 0.9
    assert shown > blind + 0.3


def test_images_are_as_far_off_centre_as_was_said(model, starts, digits):
    images = tensors(digits.X[:20])
    true = torch.zeros(20, len(model.scale))
    offset = torch.eye(2, 3).repeat(20, 1, 1)
    offset[:, :, 2] = torch.tensor([2.0, -3.0]) * 2 / 28
    found = find_hypotheses(model, images, starts, SEARCH, true=true, offset=offset)
    moved = images.roll((-3, 2), dims=(2, 3))
    assert torch.allclose(found.images, moved, atol=1e-5)


def test_hypotheses_of_an_image_do_not_depend_on_the_others(model, starts, digits):
    images = tensors(digits.X[:40])
    true = random_poses(40, model.family, model.scale, generator())
    whole = find_hypotheses(model, images, starts, SEARCH, true=true, show_truth=True)
    rows = slice(11, 18)
    part = find_hypotheses(model, images[rows], starts, SEARCH, true=true[rows], show_truth=True)
    for name, tensor in part._asdict().items():
        assert torch.equal(tensor, getattr(whole, name)[rows]), name


# ---------------------------------------------------------------- the network


def new_critic(shape=(1, 28, 28), seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(shape).eval()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 23), (1, 1, 9), (2, 8, 1), (1, 1, 1)])
def test_a_critic_takes_images_of_any_shape_and_scores_each_by_itself_to_the_bit(shape):
    critic = new_critic(shape)
    images = torch.rand(37, *shape, generator=generator())
    with torch.no_grad():
        scores = critic(images)
        assert scores.shape == (37,)
        assert len(scores.unique()) == 37
        for rows in (slice(0, 16), slice(5, 37), slice(20, 36)):
            assert torch.equal(critic(images[rows]), scores[rows])


def test_the_scale_turns_scores_into_nats_and_travels_with_the_weights():
    critic, images = new_critic(), torch.rand(5, 1, 28, 28, generator=generator())
    with torch.no_grad():
        before = critic(images)
        critic.scale.fill_(7.0)
        torch.testing.assert_close(critic(images), 7 * before)
        other = new_critic(seed=1)
        other.load_state_dict(critic.state_dict())
        assert torch.equal(other(images), critic(images))
    assert "scale" not in dict(critic.named_parameters())


class Brightness(nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))


def test_judging_warps_each_image_by_each_of_its_hypotheses(model, held_out):
    few = Hypotheses(*(tensor[:30] for tensor in held_out))
    scores = critic_scores(model, Brightness(), few)
    assert scores.shape == (30, 4)
    for j in range(4):
        canonical = model.canonical(few.images, model.matrix(few.alpha[:, j], few.images))
        torch.testing.assert_close(scores[:, j], canonical.mean(dim=(1, 2, 3)))


def test_judging_in_blocks_gives_the_same_scores_without_a_graph(model, held_out):
    critic = new_critic()
    scores = critic_scores_in_batches(model, critic, held_out)
    torch.testing.assert_close(scores, critic_scores(model, critic, held_out).detach(), rtol=1e-5, atol=1e-6)
    assert not scores.requires_grad


# ---------------------------------------------------------------- training


def shown(model, starts, digits, n=1200):
    images = tensors(digits.X[:n])
    true = random_poses(n, model.family, model.scale, generator())
    return find_hypotheses(model, images, starts, SEARCH, true=true, show_truth=True)


def trained(model, hypotheses, seed=0, verbose=0):
    critic = new_critic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train_critic(critic, model, hypotheses, generator=generator(seed), verbose=verbose)
    return critic


@pytest.fixture(scope="module")
def lessons(model, starts, digits):
    return shown(model, starts, digits)


def test_a_trained_critic_chooses_better_than_chance_and_helps_the_elbo(model, lessons, held_out):
    before = copy.deepcopy(model.vae.state_dict())
    critic = trained(model, lessons)
    for name, tensor in model.vae.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert critic.training
    scores = critic_scores_in_batches(model, critic.eval(), held_out)
    counts = held_out.log_joint.isfinite()
    open_questions = held_out.right.any(dim=1) & (counts & ~held_out.right).any(dim=1)
    assert open_questions.sum() > 150

    def accuracy(total):
        chosen = total.masked_fill(~counts, -INFINITE).argmax(dim=1, keepdim=True)
        return held_out.right.gather(1, chosen)[open_questions].float().mean().item()

    chance = (held_out.right.sum(dim=1) / counts.sum(dim=1))[open_questions].mean().item()
    untrained = critic_scores_in_batches(model, new_critic(), held_out)
    assert accuracy(untrained) < chance + 0.15
    assert accuracy(scores) > chance + 0.25
    temperature, weight = calibrate(scores, held_out.log_joint, held_out.right)
    assert temperature > 1
    assert accuracy(weight * scores + held_out.log_joint) > accuracy(held_out.log_joint)


def test_a_critic_learns_what_the_density_does_not_know(model, lessons):
    # Where ELBO and prior tell right from wrong by far, nothing is left to learn; where they are wrong, all the more.
    few = Hypotheses(*(tensor[:200] for tensor in lessons))
    judged = {}
    for sure in (-1e5, 0.0, 1e5):
        told = torch.where(few.right, sure, 0.0).masked_fill(few.log_joint == -INFINITE, -INFINITE)
        critic = trained(model, few._replace(log_joint=told)).eval()
        scores = critic_scores_in_batches(model, critic, few)
        wrong = ~few.right & few.log_joint.isfinite()
        judged[sure] = (scores[few.right].mean() - scores[wrong].mean()).item()
    assert abs(judged[1e5]) < 0.1 * judged[0.0]
    assert judged[-1e5] > 2 * judged[0.0]


def test_training_repeats_with_its_generators(model, lessons):
    few = Hypotheses(*(tensor[:200] for tensor in lessons))
    one, same, other = (trained(model, few, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_images_without_a_choice_teach_nothing(model, lessons):
    few = Hypotheses(*(tensor[:100] for tensor in lessons))
    blank = new_critic().state_dict()
    repetitions = few.log_joint.masked_fill(torch.arange(4) > 0, -INFINITE)
    for hypotheses in (
        few._replace(right=torch.zeros_like(few.right)),
        few._replace(right=few.log_joint.isfinite()),
        few._replace(log_joint=repetitions, right=repetitions.isfinite()),
    ):
        after = trained(model, hypotheses).state_dict()
        assert all(torch.equal(after[name], blank[name]) for name in blank)


def test_verbose_prints_a_line_per_epoch(model, lessons, capsys):
    few = Hypotheses(*(tensor[:100] for tensor in lessons))
    trained(model, few)
    assert capsys.readouterr().out == ""
    trained(model, few, verbose=1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in lines[-3:]] == [str(len(lines) - 4), str(len(lines) - 3), str(len(lines) - 2)]


# ---------------------------------------------------------------- the spread of poses


class Bowl(AVAE):
    """A model whose ELBO is a quadratic in alpha: `pose_deviation` is 0.03 for each parameter."""

    def elbo(self, images, alpha=None, noise=None):
        return -0.5 * (alpha / 0.03).square().sum(dim=1)


def spread_of(family, error, right=True):
    n, n_params = error.shape
    model = Bowl(None, None, family, torch.zeros(1), prior_scale(None, family))
    true = torch.randn(n, n_params, generator=generator(7))
    hypotheses = Hypotheses(
        torch.zeros(n, 1, 4, 4),
        torch.stack([torch.full_like(true, 9.0), true + error], dim=1),
        torch.zeros(n, 2),
        torch.tensor([False, True]).expand(n, 2) & torch.as_tensor(right).expand(n)[:, None],
    )
    return pose_spread(model, hypotheses, torch.ones(n, dtype=torch.long), true)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spread_is_what_the_curvature_does_not_explain(family):
    n_params = len(FAMILIES[family])
    own = torch.linspace(0.05, 0.2, n_params)
    noise = torch.randn(8000, n_params, generator=generator())
    error = (0.03**2 + own**2).sqrt() * noise
    torch.testing.assert_close(spread_of(family, error), own, rtol=0.06, atol=0)
    # An error by a whole turn is none.
    error[:, 0] += 2 * math.pi
    torch.testing.assert_close(spread_of(family, error), own, rtol=0.06, atol=0)


def test_errors_that_the_curvature_explains_leave_no_spread():
    error = 0.02 * torch.randn(2000, 3, generator=generator())
    assert torch.equal(spread_of("rigid", error), torch.zeros(3))


def test_wrong_choices_do_not_widen_the_spread_and_too_few_right_ones_leave_none():
    error = 0.1 * torch.randn(400, 3, generator=generator())
    right = torch.arange(400) % 2 == 0
    expected = spread_of("rigid", error[right])
    error[~right] = 3.0
    torch.testing.assert_close(spread_of("rigid", error, right), expected, rtol=0.1, atol=0)
    assert torch.equal(spread_of("rigid", error, torch.arange(400) < 9), torch.zeros(3))


@pytest.mark.parametrize("seed", range(20))
def test_calibration_finds_the_best_temperature_and_weight(seed):
    draw = generator(seed)
    right = torch.zeros(60, 2, dtype=torch.bool)
    right[:, 0] = torch.rand(60, generator=draw) < 0.9
    right[:, 1] = ~right[:, 0]
    scores = torch.randn(60, 2, generator=draw) + 4 * right * torch.rand(1, generator=draw)
    log_joint = 20 * torch.randn(60, 2, generator=draw) + 30 * right * torch.rand(1, generator=draw)

    def loss(temperature, weight):
        return float(choice_loss(scores * weight + log_joint / temperature, right))

    temperature, weight = calibrate(scores, log_joint, right)
    grid = [(math.exp(t), math.exp(w)) for t in range(7) for w in range(-5, 6)]
    assert loss(temperature, weight / temperature) < min(loss(*point) for point in grid) + 1e-2


def test_a_long_step_of_the_line_search_does_no_harm():
    """What a critic said of hypotheses for 100 digits: from here the line search stepped to a weight of e^800."""
    with np.load(Path(__file__).parents[1] / "data" / "choices.npz") as choices:
        scores, log_joint, right = (torch.from_numpy(choices[name]) for name in ("scores", "log_joint", "right"))
    temperature, weight = calibrate(scores, log_joint, right)
    assert temperature == pytest.approx(2.27, abs=0.05)  # the optimum of a grid
    assert weight / temperature == pytest.approx(1.64, abs=0.05)
