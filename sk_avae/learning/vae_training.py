"""The VAE's training: a skorch net with the negative ELBO as its loss.

`VAENet` gets the VAE as its module and the likelihood as its criterion, so that a learned pixel scale is trained along
with the weights.

References
----------
Kingma & Welling (2013), "Auto-Encoding Variational Bayes", algorithm 1 (one sample of z per image and step).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from skorch.callbacks import Callback, LRScheduler, PassthroughScoring
from skorch.helper import predefined_split
from torch import Tensor
from torch.utils.data import TensorDataset

from ..model.avae import AVAE
from ..model.module_state import RandomStream
from .epochs import BestWeights, EpochEvents, EpochNet, History, TensorBatches, n_steps, run_epochs
from .training_poses import TrainingPoses


@dataclass(frozen=True)
class VAESettings:
    """How a VAE is trained.

    Attributes
    ----------
    latent_size : int
        Number of latent variables.
    max_epochs, batch_size : int
    lr, weight_decay : float
        Of Adam.
    patience : int or None
        Epochs without a better held-out loss before training stops and the best weights come back; None
        never stops early.
    """

    latent_size: int
    max_epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    patience: int | None = None


@dataclass(frozen=True)
class TrainingImages:
    """What a VAE is trained on.

    Attributes
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    poses : TrainingPoses or None
        Improved before each step, which is then taken at them; None trains on the images as they come.
    held_out : Tensor or None
        Images of the same shape that report the loss, and with `patience` decide when to stop.
    held_out_poses : TrainingPoses or None
    observed, held_out_observed : Tensor of bool or None
        Which pixels of either are known; None knows all.
    """

    images: Tensor
    poses: TrainingPoses | None = None
    held_out: Tensor | None = None
    held_out_poses: TrainingPoses | None = None
    observed: Tensor | None = None
    held_out_observed: Tensor | None = None


class VAENet(EpochNet):
    """A skorch net whose loss is the mean negative ELBO of a batch.

    Parameters
    ----------
    model : AVAE
        Around the net's module and criterion.
    latent_size : int
        Number of latent variables.
    noise : torch.Generator
        Draws the standard normal noise of the sampled z.
    data : TrainingImages
    *args, **kwargs
        Of `skorch.NeuralNet`.
    """

    def __init__(
        self, *args: Any, model: AVAE, latent_size: int, noise: torch.Generator, data: TrainingImages, **kwargs: Any
    ) -> None:
        self.model = model
        self.latent_size = latent_size
        self.noise = noise
        self.data = data
        super().__init__(*args, **kwargs)

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        train_loss, finite = super()._default_callbacks
        return [train_loss, ("valid_loss", PassthroughScoring("valid_loss")), finite, ("poses", _RecordPoses())]

    def train_step_single(self, batch: tuple[tuple[Tensor, Tensor], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a batch with a sampled z, and its gradient."""
        (images, rows), _ = batch
        alpha = self._improved(self.data.poses, rows)
        self._set_training(True)
        noise = torch.randn(len(images), self.latent_size, generator=self.noise, dtype=torch.float32).to(images)
        loss = -self.model.elbo(images, alpha, noise=noise, observed=_of(self.data.observed, rows)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "y_pred": None}

    def validation_step(self, batch: tuple[tuple[Tensor, Tensor], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a held-out batch at the posterior mean."""
        (images, rows), _ = batch
        alpha = self._improved(self.data.held_out_poses, rows)
        self._set_training(False)
        with torch.no_grad():
            elbo = self.model.elbo(images, alpha, observed=_of(self.data.held_out_observed, rows))
            return {"loss": -elbo.mean(), "y_pred": None}

    def _improved(self, poses: TrainingPoses | None, rows: Tensor) -> Tensor | None:
        """Return the poses of a batch, improved under frozen weights and running statistics."""
        if poses is None:
            return None
        self._set_training(False)
        return poses.improve(rows)


def _of(observed: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if observed is None else observed[rows]


class _RecordPoses(Callback):
    """Write down per epoch what happened to the poses."""

    def on_epoch_end(self, net: VAENet, **kwargs: Any) -> None:
        for poses in (net.data.held_out_poses, net.data.poses):
            figures = {} if poses is None else poses.end_epoch()
        for name, value in figures.items():
            net.history.record(name, value)


def train_vae(
    model: AVAE,
    data: TrainingImages,
    settings: VAESettings,
    *,
    generator: torch.Generator,
    stream: RandomStream | None = None,
    callbacks: Sequence[Any] = (),
    adam: dict[int, Any] | None = None,
    events: EpochEvents | None = None,
) -> History:
    """Train a VAE and the learned part of its likelihood in place, where the images are.

    Adam with a learning rate that falls to zero along half a cosine. Ctrl-C is raised, not swallowed.

    Parameters
    ----------
    model : AVAE
        Its VAE and likelihood are trained in place.
    data : TrainingImages
    settings : VAESettings
    generator : torch.Generator
        On the CPU: draws the order of the images and the noise.
    stream : RandomStream or None, default=None
        What a VAE's dropout draws from; None is torch's global generator.
    callbacks : sequence, default=()
        Skorch callbacks; they are copied, the caller's stay as they are.
    adam : dict or None, default=None
        Adam's state, which goes on from there, in place; an empty one begins anew. The learning rate then stays as it
        is: this is a part of a training whose end is not known.
    events : EpochEvents or None, default=None
        Called around every epoch, with the history up to it.

    Returns
    -------
    history : list of dict
        Per epoch: `epoch`, `train_loss` and, with held-out images, `valid_loss`, in nats per image; with poses also
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
        steps = n_steps(len(data.images), settings.max_epochs, settings.batch_size)
        own.append(LRScheduler("CosineAnnealingLR", T_max=steps, step_every="batch", event_name=None))
    if settings.patience is not None:
        own.append(BestWeights(patience=settings.patience))
    net = VAENet(
        model.vae,
        model.likelihood,
        model=model,
        latent_size=settings.latent_size,
        noise=generator,
        data=data,
        stream=stream,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=settings.weight_decay,
        optimizer__fused=True,
        lr=settings.lr,
        max_epochs=settings.max_epochs,
        batch_size=settings.batch_size,
        iterator_train=TensorBatches,
        iterator_train__generator=generator,
        iterator_valid=TensorBatches,
        train_split=None if data.held_out is None else predefined_split(_numbered(data.held_out)),
        callbacks=[*own, *copy.deepcopy(list(callbacks))],
        device=data.images.device,
        verbose=1,  # for what the user's own callbacks print
    )
    weights = (*model.vae.parameters(), *model.likelihood.parameters())
    return run_epochs(net, _numbered(data.images), weights, adam=adam, events=events)


def _check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise TypeError unless these are skorch callbacks (instances or classes), or pairs of a name and one."""
    for callback in callbacks:
        last = callback[-1] if isinstance(callback, tuple) and callback else callback
        if not (isinstance(last, Callback) or (isinstance(last, type) and issubclass(last, Callback))):
            raise TypeError(f"callbacks must be skorch callbacks, or pairs of a name and one, got {callback!r}.")


def _numbered(images: Tensor) -> TensorDataset:
    return TensorDataset(images, torch.arange(len(images), device=images.device))
