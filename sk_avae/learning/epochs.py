"""The loop over epochs in which all networks train: skorch's, with batches of tensors and Ctrl-C left to the user."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler, PassthroughScoring
from torch import Tensor
from torch.utils.data import TensorDataset

from ..model.module_state import RandomStream
from ..progress import Progress

History = list[dict[str, float]]


class EpochEvents(NamedTuple):
    """What to call around every epoch.

    Attributes
    ----------
    begin : callable
        Takes nothing.
    end : callable
        Takes the history up to this epoch, and returns whether it shall be the last one.
    """

    begin: Callable[[], None]
    end: Callable[[History], bool]


def n_steps(n_images: int, max_epochs: int, batch_size: int) -> int:
    """Return how many steps of the weights so many epochs take.

    The last batch of each may be smaller, but is never a single image: batch norm could not train on it.

    Examples
    --------
    >>> n_steps(64, 1, 32), n_steps(65, 1, 32), n_steps(66, 1, 32), n_steps(1, 1, 32)
    (2, 2, 3, 1)
    """
    return max_epochs * len(_batch_sizes(n_images, batch_size))


def _batch_sizes(n_images: int, batch_size: int) -> list[int]:
    whole, rest = divmod(n_images, batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0)
    if batch_size > 1 and len(sizes) > 1 and rest == 1:
        sizes[-2:] = [batch_size + 1]
    return sizes


class TensorBatches:
    """Batches of a dataset of tensors, taken by index: what a DataLoader does sample by sample.

    Parameters
    ----------
    dataset : TensorDataset
        Holds the images, and what goes with them.
    batch_size : int
    generator : torch.Generator or None, default=None
        Shuffles each epoch anew; None keeps the order.
    """

    def __init__(self, dataset: TensorDataset, batch_size: int, generator: torch.Generator | None = None) -> None:
        self.tensors = dataset.tensors
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return n_steps(len(self.tensors[0]), 1, self.batch_size)

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], None]]:
        n = len(self.tensors[0])
        order = torch.arange(n) if self.generator is None else torch.randperm(n, generator=self.generator)
        sizes = _batch_sizes(n, self.batch_size)
        for rows in order.to(self.tensors[0].device).split(sizes):  # type: ignore[no-untyped-call]
            yield tuple(tensor[rows] for tensor in self.tensors), None


class EpochNet(NeuralNet):
    """A skorch net that raises when its loss is no longer a number; the networks' steps are those of its subclasses.

    Parameters
    ----------
    stream : RandomStream or None, default=None
        What dropout draws from, a step at a time; None is torch's global generator as it is.
    *args, **kwargs
        Of `skorch.NeuralNet`.

    Attributes
    ----------
    advice : str or None
        What to do about it; None is to lower `lr`.
    """

    advice: str | None = None

    def __init__(self, *args: Any, stream: RandomStream | None = None, **kwargs: Any) -> None:
        self.stream = stream
        super().__init__(*args, **kwargs)

    def train_step(self, batch: Any, **fit_params: Any) -> Any:
        """Take a step."""
        with nullcontext() if self.stream is None else self.stream.lent():
            return super().train_step(batch, **fit_params)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("train_loss", PassthroughScoring("train_loss", on_train=True)), ("finite", StopOnDivergence())]


def _divergence(net: EpochNet, what: str) -> ValueError:
    advice = net.advice or f"Lower lr (now {net.lr:g})"
    return ValueError(
        f"Training diverged: {what} is no longer a finite number in epoch {len(net.history)}. "
        f"{advice} or check the range of the pixels."
    )


class StopOnDivergence(Callback):
    """Raise when the loss is no longer a number: every later weight would be one neither."""

    def on_batch_end(self, net: EpochNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Look at the loss of a batch."""
        if not math.isfinite(kwargs["loss"]):
            raise _divergence(net, "the loss")


class _StopTrainingError(Exception):
    """Ends training early; skorch's own signal is KeyboardInterrupt, which is the user's here."""


class BestWeights(EarlyStopping):
    """Stop when the held-out loss no longer falls, and bring the best weights back, the likelihood's too."""

    def __init__(self, patience: int) -> None:
        super().__init__(patience=patience, threshold=0, threshold_mode="abs", load_best=True, sink=lambda _: None)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Keep the likelihood's weights too if this epoch was the best."""
        try:
            super().on_epoch_end(net, **kwargs)
        except KeyboardInterrupt:
            raise _StopTrainingError from None
        if self.misses_ == 0:
            self.best_likelihood_ = copy.deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Bring the best weights back."""
        super().on_train_end(net, **kwargs)
        net.criterion_.load_state_dict(self.best_likelihood_)


class Reporting(Callback):
    """Tell of every epoch, and of the loss that it reached."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __deepcopy__(self, memo: Any) -> "Reporting":
        return self  # whoever is told is one

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Tell of an epoch."""
        loss = net.history[-1].get("valid_loss", net.history[-1]["train_loss"])
        self.progress.step(len(net.history), net.max_epochs, float(loss))


def one_cycle(*, n_images: int, batch_size: int, max_epochs: int, lr: float, progress: Progress) -> dict[str, Any]:
    """Return the settings of a skorch net that trains by AdamW with one cycle of the learning rate."""
    schedule = LRScheduler(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=lr,
        total_steps=n_steps(n_images, max_epochs, batch_size) + 1,
        step_every="batch",
        event_name=None,
    )
    return {
        "optimizer": torch.optim.AdamW,
        "optimizer__weight_decay": 1e-2,
        "optimizer__fused": True,
        "lr": lr,
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "iterator_train": TensorBatches,
        "train_split": None,
        "callbacks": [schedule, Reporting(progress)],
        "verbose": 0,
    }


def run_epochs(
    net: EpochNet,
    dataset: TensorDataset,
    weights: Iterable[Tensor],
    *,
    adam: dict[int, Any] | None = None,
    events: EpochEvents | None = None,
) -> History:
    """Do what `NeuralNet.fit` does, less its catching of KeyboardInterrupt, and return the history.

    Parameters
    ----------
    net : EpochNet
    dataset : TensorDataset
    weights : iterable of Tensor
        What is trained.
    adam : dict or None, default=None
        Adam's state, which goes on from there, in place.
    events : EpochEvents or None, default=None

    Raises
    ------
    ValueError
        If the loss or a weight is no number.
    """
    net.initialize()
    if adam:
        net.optimizer_.load_state_dict({**net.optimizer_.state_dict(), "state": adam})
    net.notify("on_train_begin", X=dataset, y=None)
    for _ in range(net.max_epochs):
        if events is not None:
            events.begin()
        stopped = _stops_after_an_epoch(net, dataset)
        if (events is not None and events.end(_history(net))) or stopped:
            break
    net.notify("on_train_end", X=dataset, y=None)
    if adam is not None:
        adam.update(net.optimizer_.state_dict()["state"])
    if not all(weight.isfinite().all() for weight in weights):
        raise _divergence(net, "a weight")
    return _history(net)


def _stops_after_an_epoch(net: NeuralNet, dataset: TensorDataset) -> bool:
    """Train for an epoch, and return whether a callback asks to stop after it."""
    try:
        net.fit_loop(dataset, epochs=1)
    except _StopTrainingError:
        return True
    return False


def _history(net: NeuralNet) -> History:
    kept = ("epoch", "train_loss", "valid_loss", "moved")
    return [
        {name: float(epoch[name]) for name in epoch if name in kept or name.startswith("pose_std_")}
        for epoch in net.history
    ]
