"""The loop over epochs: batches, the schedule, who is told of what, and how it ends."""

import math

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import TensorDataset

from sk_avae.learning.epochs import EpochEvents, EpochNet, TensorBatches, n_steps, one_cycle, run_epochs
from sk_avae.progress import SILENT

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


def numbered(n, batch_size, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return TensorBatches(TensorDataset(torch.arange(n)[:, None]), batch_size, generator)


def epoch(batches):
    return torch.cat([images[:, 0] for (images,), _ in batches]).tolist()


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 10, [3]), (1, 1, [1])])
def test_an_epoch_covers_each_row_once(n, batch_size, sizes):
    batches = numbered(n, batch_size, seed=0)
    assert [len(images) for (images,), _ in batches] == sizes
    assert len(batches) == len(sizes)
    assert sorted(epoch(batches)) == list(range(n))


def test_epochs_are_shuffled_anew_and_repeat_with_the_generator():
    batches, again = numbered(50, 7, seed=0), numbered(50, 7, seed=0)
    first, second = epoch(batches), epoch(batches)
    assert first != second
    assert [epoch(again), epoch(again)] == [first, second]
    assert epoch(numbered(50, 7, seed=1)) != first


def test_without_a_generator_the_order_stays():
    batches = numbered(50, 7)
    assert epoch(batches) == epoch(batches) == list(range(50))


def test_what_goes_with_an_image_stays_with_it():
    rows = torch.arange(20)
    batches = TensorBatches(TensorDataset(rows, 3 * rows, rows % 2 == 0), 6, torch.Generator().manual_seed(0))
    seen = [row for tensors, _ in batches for row in zip(*(tensor.tolist() for tensor in tensors), strict=True)]
    assert sorted(seen) == [(row, 3 * row, row % 2 == 0) for row in range(20)]


# ---------------------------------------------------------------- epochs


class Line(nn.Module):
    """One weight, which is to become 3."""

    def __init__(self, weight=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return self.weight * x


class LineNet(EpochNet):
    def train_step_single(self, batch, **fit_params):
        ((x,), _) = batch
        loss = (self.module_(x) - 3 * x).square().mean()
        loss.backward()
        return {"loss": loss.detach(), "y_pred": None}


class Rates(Callback):
    """Keeps the learning rate of each step, in a list of the caller's, which skorch does not copy."""

    def __init__(self, seen):
        self.seen = seen

    def on_batch_end(self, net, training=False, **kwargs):
        self.seen.append(net.optimizer_.param_groups[0]["lr"])


def line_net(line, n_images=20, more=(), batch_size=6, max_epochs=5, lr=0.1):
    settings = one_cycle(n_images=n_images, batch_size=batch_size, max_epochs=max_epochs, lr=lr, progress=SILENT)
    settings["callbacks"] += more
    draws = torch.Generator().manual_seed(0)
    return LineNet(line, nn.Identity, **settings, iterator_train__generator=draws, device="cpu")


def ran(line, n_images=20, **settings):
    """Train for some epochs, and return the history."""
    events = settings.pop("events", None)
    images = torch.linspace(0.5, 1.5, n_images)
    net = line_net(line, n_images, **settings)
    return run_epochs(net, TensorDataset(images), line.parameters(), events=events)


@pytest.mark.parametrize(("n_images", "batch_size", "steps"), [(20, 6, 4), (18, 6, 3), (1, 6, 1)])
def test_the_learning_rate_makes_one_cycle_over_all_steps(n_images, batch_size, steps):
    seen = []
    ran(Line(), n_images, batch_size=batch_size, max_epochs=5, more=[Rates(seen)])
    assert len(seen) == n_steps(n_images, 5, batch_size) == 5 * steps
    peak = int(np.argmax(seen))
    assert max(seen) == pytest.approx(0.1, rel=0.35)
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)
    assert seen[-1] < 0.05 * max(seen) < seen[0] * 2


def test_weights_are_trained_and_the_history_has_the_mean_loss_of_each_epoch():
    line = Line()
    history = ran(line, max_epochs=40, lr=0.5)
    assert float(line.weight.detach()) == pytest.approx(3, abs=0.3)
    assert [row["epoch"] for row in history] == list(range(1, 41))
    assert history[-1]["train_loss"] < 0.02 * history[0]["train_loss"]
    assert all(type(value) is float for row in history for value in row.values())


def test_events_are_told_around_each_epoch_and_end_it_all():
    told = []

    def end(history):
        told.append([int(row["epoch"]) for row in history])
        return len(history) == 3

    history = ran(Line(), max_epochs=9, events=EpochEvents(lambda: told.append("begin"), end))
    assert told == ["begin", [1], "begin", [1, 2], "begin", [1, 2, 3]]
    assert len(history) == 3


@pytest.mark.parametrize(("weight", "what"), [(math.nan, "the loss"), (3e38, "the loss")])
def test_a_loss_that_is_no_number_ends_with_advice(weight, what):
    match = rf"Training diverged: {what} is no longer a finite number in epoch 1\. Lower lr \(now 0\.1\)"
    with pytest.raises(ValueError, match=match):
        ran(Line(weight))


def test_a_weight_that_is_no_number_ends_with_the_advice_of_its_net(monkeypatch):
    monkeypatch.setattr(LineNet, "advice", "Say nothing")
    weights = [torch.ones(3), torch.tensor([1.0, math.inf])]
    with pytest.raises(ValueError, match=r"a weight is no longer a finite number in epoch 2\. Say nothing or check"):
        run_epochs(line_net(Line(), max_epochs=2), TensorDataset(torch.ones(20)), weights)
