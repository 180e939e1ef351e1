"""The critic's training: its loss, what it sees, and that it learns to choose."""

import copy
import math

import pytest
import torch
from torch import nn

from sk_avae.learning.calibration import calibrate
from sk_avae.learning.critic_training import choice_loss, critic_scores, critic_scores_in_batches, train_critic
from sk_avae.learning.hypotheses import Hypotheses, find_hypotheses
from sk_avae.learning.perturbation import Places, random_poses
from sk_avae.model.critic import Critic
from sk_avae.progress import SILENT, Progress
from sk_avae.search.settings import SearchSettings

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

SEARCH = SearchSettings(n_restarts=16, n_refine=4, max_iter=6, tol=1e-2)
INFINITE = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(X):
    return torch.tensor(X).view(-1, 1, 28, 28) / 255


@pytest.fixture(scope="module")
def held_out(model, starts, digits):
    """Hypotheses for 400 test digits, found without knowing the truth."""
    images = tensors(digits.X_test[:400])
    true = random_poses(400, model.family, model.scale, generator(5))
    return find_hypotheses(model, images, starts, SEARCH, Places(true))


def new_critic(shape=(1, 28, 28), seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(shape).eval()


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


# ---------------------------------------------------------------- what it sees


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
    return find_hypotheses(model, images, starts, SEARCH, Places(true))


def trained(model, hypotheses, seed=0, progress=SILENT):
    critic = new_critic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train_critic(critic, model, hypotheses, generator=generator(seed), progress=progress)
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
    temperature, (weight,) = calibrate(scores[:, :, None], held_out.log_joint, held_out.right)
    assert temperature > 1
    assert accuracy(weight * scores + held_out.log_joint) > accuracy(held_out.log_joint)


def test_the_log_joint_density_only_tells_which_hypotheses_repeat_others(model, lessons):
    few = Hypotheses(*(tensor[:100] for tensor in lessons))
    none = few._replace(log_joint=torch.zeros_like(few.log_joint).masked_fill(few.log_joint == -INFINITE, -INFINITE))
    one, other = trained(model, few).state_dict(), trained(model, none).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


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


def test_progress_is_told_of_every_epoch(model, lessons, capsys):
    few = Hypotheses(*(tensor[:100] for tensor in lessons))
    trained(model, few)
    assert capsys.readouterr().out == ""
    progress = Progress({"choosing": 1.0})
    progress.stage("choosing")
    trained(model, few, progress=progress)
    assert "[1/1] choosing: epoch 8/8, loss" in capsys.readouterr().out
    assert progress.share == 1.0
