"""Training: the skorch net with the negative ELBO as its loss.

The only file that imports skorch. `AVAENet` gets the VAE as its module and the likelihood as its criterion, so that
a learned pixel scale is trained along with the weights.

References
----------
Kingma & Welling (2013), "Auto-Encoding Variational Bayes", algorithm 1 (one sample of z per image and step).
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochTimer, LRScheduler, PassthroughScoring, PrintLog
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from .affine import compose
from .alignment import AVAE
from .critic import Critic, Hypotheses, choice_loss, critic_scores, perturb, random_places
from .joint import TrainingPoses
from .proposer import Proposer, moment_pose, proposal_loss, rest_of, without_moments
from .starts import Moments

_CRITIC_EPOCHS = 8, 24  # few images take more, but no more than
_CRITIC_IMAGES = 12_000  # in all epochs together, at least
_CRITIC_BATCH = 128
_CRITIC_PIXELS = 2**24  # in a batch, over all hypotheses
_CRITIC_LR = 8e-3
# A nat of the log joint density says so little to what the critic learns: it is to know better, not the same again.
_CRITIC_TEMPERATURE = 50.0
_PROPOSER_BATCH = 256
_PROPOSER_PIXELS = 2**22  # in a batch
_PROPOSER_IMAGES = 450_000  # in all epochs together
_PROPOSER_LR = 3e-3


def n_steps(n_images: int, max_epochs: int, batch_size: int) -> int:
    """Return how many steps of the weights so many epochs take; the last batch of each may be smaller."""
    return max_epochs * math.ceil(n_images / batch_size)


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
        for rows in order.to(self.tensors[0].device).split(self.batch_size):  # type: ignore[no-untyped-call]
            yield tuple(tensor[rows] for tensor in self.tensors), None


class AVAENet(NeuralNet):
    """A skorch net whose loss is the mean negative ELBO of a batch.

    Parameters
    ----------
    model : AVAE
        Around the net's module and criterion.
    latent_size : int
        Number of latent variables.
    noise : torch.Generator
        Draws the standard normal noise of the sampled z.
    poses, validation_poses : TrainingPoses or None
        Improved before each step, which is then taken at them; None trains on the images as they come.
    *args, **kwargs
        Of `skorch.NeuralNet`.
    """

    def __init__(
        self,
        *args: Any,
        model: AVAE,
        latent_size: int,
        noise: torch.Generator,
        poses: TrainingPoses | None,
        validation_poses: TrainingPoses | None,
        **kwargs: Any,
    ) -> None:
        self.model = model
        self.latent_size = latent_size
        self.noise = noise
        self.poses = poses
        self.validation_poses = validation_poses
        super().__init__(*args, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
            ("valid_loss", PassthroughScoring("valid_loss")),
            ("finite", _StopOnDivergence()),
            ("poses", _RecordPoses()),
        ]

    def train_step_single(self, batch: tuple[tuple[Tensor, Tensor], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a batch with a sampled z, and its gradient."""
        (images, rows), _ = batch
        alpha = self._improved(self.poses, rows)
        self._set_training(True)
        noise = torch.randn(len(images), self.latent_size, generator=self.noise).to(images)
        loss = -self.model.elbo(images, alpha, noise=noise).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "y_pred": None}

    def validation_step(self, batch: tuple[tuple[Tensor, Tensor], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a held-out batch at the posterior mean."""
        (images, rows), _ = batch
        alpha = self._improved(self.validation_poses, rows)
        self._set_training(False)
        with torch.no_grad():
            return {"loss": -self.model.elbo(images, alpha).mean(), "y_pred": None}

    def _improved(self, poses: TrainingPoses | None, rows: Tensor) -> Tensor | None:
        """Return the poses of a batch, improved under frozen weights and running statistics."""
        if poses is None:
            return None
        self._set_training(False)
        return poses.improve(rows)


class _RecordPoses(Callback):
    """Write down per epoch what happened to the poses."""

    def on_epoch_end(self, net: AVAENet, **kwargs: Any) -> None:
        for poses in (net.validation_poses, net.poses):
            figures = {} if poses is None else poses.end_epoch()
        for name, value in figures.items():
            net.history.record(name, value)


def _divergence(net: NeuralNet, what: str) -> ValueError:
    advice = getattr(net, "advice", f"Lower lr (now {net.lr:g})")
    return ValueError(
        f"Training diverged: {what} is no longer a finite number in epoch {len(net.history)}. "
        f"{advice} or check the range of the pixels."
    )


class _StopOnDivergence(Callback):
    """Raise when the loss is no longer a number: every later weight would be one neither."""

    def on_batch_end(self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        if not math.isfinite(kwargs["loss"]):
            raise _divergence(net, "the loss")


class _StopTrainingError(Exception):
    """Ends training early; skorch's own signal is KeyboardInterrupt, which is the user's here."""


class _BestWeights(EarlyStopping):
    """Stop when the held-out loss no longer falls, and bring the best weights back, the likelihood's too."""

    def __init__(self, patience: int) -> None:
        super().__init__(patience=patience, threshold=0, threshold_mode="abs", load_best=True, sink=lambda _: None)

    def on_epoch_end(self, net: AVAENet, **kwargs: Any) -> None:
        try:
            super().on_epoch_end(net, **kwargs)
        except KeyboardInterrupt:
            raise _StopTrainingError from None
        if self.misses_ == 0:
            self.best_likelihood_ = copy.deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net: AVAENet, **kwargs: Any) -> None:
        super().on_train_end(net, **kwargs)
        net.criterion_.load_state_dict(self.best_likelihood_)


class Watch(Protocol):
    """Told of every epoch; may ask to stop."""

    def begin_epoch(self) -> None:
        """Note that an epoch begins."""

    def end_epoch(self, history: list[dict[str, float]]) -> bool:
        """Note that an epoch ended, and return whether it shall be the last one."""


def train(
    model: AVAE,
    images: Tensor,
    *,
    validation_images: Tensor | None,
    poses: TrainingPoses | None,
    validation_poses: TrainingPoses | None,
    latent_size: int,
    max_epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    patience: int | None,
    callbacks: Sequence[Any],
    generator: torch.Generator,
    device: torch.device,
    verbose: int,
    adam: dict[int, Any] | None = None,
    watch: Watch | None = None,
) -> list[dict[str, float]]:
    """Train a VAE and the learned part of its likelihood in place.

    Adam with a learning rate that falls to zero along half a cosine. Ctrl-C is raised, not swallowed.

    Parameters
    ----------
    model : AVAE
        Its VAE and likelihood are trained in place.
    images : Tensor of shape (n, n_channels, height, width)
        On `device`.
    validation_images : Tensor or None
        Held-out images, or None.
    poses, validation_poses : TrainingPoses or None
        Of both; None trains on the images as they come.
    latent_size : int
    max_epochs, batch_size : int
    lr, weight_decay : float
        Of Adam.
    patience : int or None
        Epochs without a better held-out loss before training stops and the best weights come back; None
        never stops early.
    callbacks : sequence
        Skorch callbacks; they are copied, the caller's stay as they are.
    generator : torch.Generator
        On the CPU: draws the order of the images and the noise.
    device : torch.device
    verbose : int
        Prints a line per epoch if positive.
    adam : dict or None, default=None
        Adam's state, which goes on from there, in place; an empty one begins anew. The learning rate then stays as it
        is: this is a part of a training whose end is not known.
    watch : Watch or None, default=None
        Told of every epoch, with the history up to it.

    Returns
    -------
    history : list of dict
        Per epoch: `epoch`, `train_loss` and, with held-out images, `valid_loss`, in nats per image; with `poses` also
        what `TrainingPoses.end_epoch` returns.

    Raises
    ------
    ValueError
        If the loss or a weight becomes infinite or not a number.
    TypeError
        If a callback is none.
    """
    _check_callbacks(callbacks)
    own: list[Any] = []
    if adam is None:
        steps = n_steps(len(images), max_epochs, batch_size)
        own.append(LRScheduler("CosineAnnealingLR", T_max=steps, step_every="batch", event_name=None))
    if patience is not None:
        own.append(_BestWeights(patience=patience))
    if verbose:
        own += [EpochTimer(), PrintLog()]
    net = AVAENet(
        model.vae,
        model.likelihood,
        model=model,
        latent_size=latent_size,
        noise=generator,
        poses=poses,
        validation_poses=validation_poses,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=weight_decay,
        optimizer__fused=True,
        lr=lr,
        max_epochs=max_epochs,
        batch_size=batch_size,
        iterator_train=TensorBatches,
        iterator_train__generator=generator,
        iterator_valid=TensorBatches,
        train_split=None if validation_images is None else predefined_split(_numbered(validation_images)),
        callbacks=own + copy.deepcopy(list(callbacks)),
        device=device,
        verbose=verbose,
    )
    weights = (*model.vae.parameters(), *model.likelihood.parameters())
    _run(net, _numbered(images), weights, adam=adam, watch=watch)
    return _history(net)


def _history(net: NeuralNet) -> list[dict[str, float]]:
    kept = ("epoch", "train_loss", "valid_loss", "moved")
    return [
        {name: float(epoch[name]) for name in epoch if name in kept or name.startswith("pose_std_")}
        for epoch in net.history
    ]


def _check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise TypeError unless these are skorch callbacks (instances or classes), or pairs of a name and one."""
    for callback in callbacks:
        last = callback[-1] if isinstance(callback, tuple) and callback else callback
        if not (isinstance(last, Callback) or (isinstance(last, type) and issubclass(last, Callback))):
            raise TypeError(f"callbacks must be skorch callbacks, or pairs of a name and one, got {callback!r}.")


def _numbered(images: Tensor) -> TensorDataset:
    return TensorDataset(images, torch.arange(len(images), device=images.device))


def _run(
    net: NeuralNet,
    dataset: TensorDataset,
    weights: Iterable[Tensor],
    *,
    adam: dict[int, Any] | None = None,
    watch: Watch | None = None,
) -> None:
    """Do what `NeuralNet.fit` does, less its catching of KeyboardInterrupt; raise if a weight is no number then."""
    net.initialize()
    if adam:
        net.optimizer_.load_state_dict({**net.optimizer_.state_dict(), "state": adam})
    net.notify("on_train_begin", X=dataset)
    for _ in range(net.max_epochs):
        if _is_last_epoch(net, dataset, watch):
            break
    net.notify("on_train_end", X=dataset)
    if adam is not None:
        adam.update(net.optimizer_.state_dict()["state"])
    if not all(weight.isfinite().all() for weight in weights):
        raise _divergence(net, "a weight")


def _is_last_epoch(net: NeuralNet, dataset: TensorDataset, watch: Watch | None) -> bool:
    """Train for an epoch, and return whether training shall stop after it."""
    if watch is not None:
        watch.begin_epoch()
    stopped = False
    try:
        net.fit_loop(dataset, epochs=1)
    except _StopTrainingError:
        stopped = True
    return (watch is not None and watch.end_epoch(_history(net))) or stopped


class _CriticNet(NeuralNet):
    """A skorch net that learns to choose a right hypothesis.

    Parameters
    ----------
    model : AVAE
        Warps images by their hypotheses.
    *args, **kwargs
        Of `skorch.NeuralNet`.
    """

    advice = "Say critic=False"

    def __init__(self, *args: Any, model: AVAE, **kwargs: Any) -> None:
        self.model = model
        super().__init__(*args, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("train_loss", PassthroughScoring("train_loss", on_train=True)), ("finite", _StopOnDivergence())]

    def train_step_single(self, batch: tuple[tuple[Tensor, ...], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a batch of hypotheses, and its gradient."""
        self._set_training(True)
        found = Hypotheses(*batch[0])
        scores = critic_scores(self.model, self.module_, found) + found.log_joint / _CRITIC_TEMPERATURE
        loss = choice_loss(scores, found.right)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "y_pred": None}


def train_critic(
    critic: Critic,
    model: AVAE,
    hypotheses: Hypotheses,
    *,
    generator: torch.Generator,
    device: torch.device,
    verbose: int,
) -> bool:
    """Train a critic in place to choose the right ones among hypotheses.

    AdamW with one cycle of the learning rate. Images without a right hypothesis, or with nothing else, teach nothing
    and are left out.

    Parameters
    ----------
    critic : Critic
        Trained in place, and left in training mode.
    model : AVAE
    hypotheses : Hypotheses
    generator : torch.Generator
        On the CPU: draws the order of the images.
    device : torch.device
    verbose : int
        Prints a line per epoch if positive.

    Returns
    -------
    learned : bool
        Whether there was anything to learn from.

    Raises
    ------
    ValueError
        If the loss or a weight becomes infinite or not a number.
    """
    wrong = ~hypotheses.right & hypotheses.log_joint.isfinite()
    teaches = hypotheses.right.any(dim=1) & wrong.any(dim=1)
    if not bool(teaches.any()):
        return False
    dataset = TensorDataset(*(tensor[teaches] for tensor in hypotheses))
    pixels_per_image = hypotheses.images[0].numel() * hypotheses.alpha.shape[1]
    fewest, most = _CRITIC_EPOCHS
    net = _CriticNet(
        critic,
        nn.Identity,  # the loss is computed in the step
        model=model,
        **_one_cycle(
            n_images=len(dataset),
            batch_size=max(8, min(_CRITIC_BATCH, _CRITIC_PIXELS // pixels_per_image)),
            max_epochs=min(most, max(fewest, _CRITIC_IMAGES // len(dataset))),
            lr=_CRITIC_LR,
            generator=generator,
            device=device,
            verbose=verbose,
        ),
    )
    # Channels last takes a third less time; back, for a critic that was loaded rounds as one in the usual format.
    critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _run(net, dataset, critic.parameters())
    critic.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return True


def _one_cycle(
    *,
    n_images: int,
    batch_size: int,
    max_epochs: int,
    lr: float,
    generator: torch.Generator,
    device: torch.device,
    verbose: int,
) -> dict[str, Any]:
    """Return the settings of a skorch net that trains by AdamW with one cycle of the learning rate."""
    schedule = LRScheduler(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=lr,
        total_steps=max_epochs * -(-n_images // batch_size) + 1,
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
        "iterator_train__generator": generator,
        "train_split": None,
        "callbacks": [schedule, *([EpochTimer(), PrintLog()] if verbose else [])],
        "device": device,
        "verbose": verbose,
    }


class _ProposerNet(NeuralNet):
    """A skorch net that learns to propose poses of images that it perturbs itself.

    Parameters
    ----------
    model : AVAE
        Warps images.
    typical : Moments or None
        See `proposer.moment_pose`.
    draws : torch.Generator
        On the CPU: draws the poses.
    *args, **kwargs
        Of `skorch.NeuralNet`.
    """

    advice = "Say learned_starts=False"

    def __init__(self, *args: Any, model: AVAE, typical: Moments | None, draws: torch.Generator, **kwargs: Any) -> None:
        self.model = model
        self.typical = typical
        self.draws = draws
        super().__init__(*args, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("train_loss", PassthroughScoring("train_loss", on_train=True)), ("finite", _StopOnDivergence())]

    def train_step_single(self, batch: tuple[tuple[Tensor], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a batch in new poses, and its gradient."""
        self._set_training(True)
        ((images,), _), model = batch, self.model
        with torch.no_grad():
            alpha, offset = random_places(model, images, self.draws)
            perturbed = perturb(model, images, compose(model.matrix(alpha, images), offset))
            base = moment_pose(model, perturbed, self.typical)
            rest = rest_of(model, perturbed, base, alpha)
            seen = without_moments(model, perturbed, base)
        loss = proposal_loss(self.module_, model, seen, rest)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "y_pred": None}


def train_proposer(
    proposer: Proposer,
    model: AVAE,
    images: Tensor,
    typical: Moments | None,
    *,
    max_epochs: int,
    generator: torch.Generator,
    device: torch.device,
    verbose: int,
) -> None:
    """Train a proposer in place on images in their canonical pose, each perturbed anew in every epoch.

    AdamW with one cycle of the learning rate.

    Parameters
    ----------
    proposer : Proposer
        Trained in place, and left in training mode.
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    typical : Moments or None
        See `proposer.moment_pose`.
    max_epochs : int
        Passes over the images at most; many images take fewer.
    generator : torch.Generator
        On the CPU: draws order and poses.
    device : torch.device
    verbose : int
        Prints a line per epoch if positive.

    Raises
    ------
    ValueError
        If the loss or a weight becomes infinite or not a number.
    """
    net = _ProposerNet(
        proposer,
        nn.Identity,
        model=model,
        typical=typical,
        draws=generator,
        **_one_cycle(
            n_images=len(images),
            batch_size=max(8, min(_PROPOSER_BATCH, _PROPOSER_PIXELS // images[0].numel())),
            max_epochs=max(1, min(max_epochs, _PROPOSER_IMAGES // len(images))),
            lr=_PROPOSER_LR,
            generator=generator,
            device=device,
            verbose=verbose,
        ),
    )
    _run(net, TensorDataset(images), proposer.parameters())
