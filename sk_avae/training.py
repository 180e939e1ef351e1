"""Training as a function of plain data: what it depends on goes in, arrays come out, so that it can be cached."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from . import persistence
from ._validation import ImageFormat
from .alignment import AVAE, is_constant
from .joint import TrainingPoses
from .net import n_steps, train
from .starts import mean_moments
from .vae import check_shapes

_STEPS_PER_EPOCH = 48
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 256

# Share of joint training over which the agreement with the mean image fades out.
AGREEING = 0.5


class PoseSearch(NamedTuple):
    """What decides the poses of training images: the family, its prior's deviations and the number of starts."""

    family: str
    scale: tuple[float, ...]
    n_restarts: int


class Start(NamedTuple):
    """Where training goes on.

    Attributes
    ----------
    vae, likelihood : dict from str to ndarray
        Parameters and buffers.
    adam : dict or None
        The state of Adam to go on with, with arrays for tensors; None begins anew.
    n_epochs : int
        Done before: those to come draw other random numbers.
    """

    vae: dict[str, NDArray[Any]]
    likelihood: dict[str, NDArray[Any]]
    adam: dict[int, dict[str, NDArray[Any]]] | None
    n_epochs: int


class Job(NamedTuple):
    """All that the trained weights depend on.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, n_features)
        Training images.
    image_format : ImageFormat
        How the model sees them.
    recipe, likelihood_recipe : dict
        Of the VAE and of its likelihood, see `persistence.build`; instances in them are packed.
    latent_size, max_epochs, batch_size, lr, weight_decay, patience
        See `net.train`.
    validation_fraction : float or None
        Share of the images that is held out.
    pose_search : PoseSearch or None
        For images without a common pose; None trains on them as they come.
    start : Start or None
        None builds a new VAE.
    in_part : bool
        Whether more training will follow: the learning rate stays as it is, and the state of Adam is kept.
    seed : int
        Of all random numbers.
    device : str
    versions : tuple of str
        Of the code: this package's and torch's.
    """

    rows: NDArray[Any]
    image_format: ImageFormat
    recipe: dict[str, Any]
    likelihood_recipe: dict[str, Any]
    latent_size: int
    max_epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    patience: int | None
    validation_fraction: float | None
    pose_search: PoseSearch | None
    start: Start | None
    in_part: bool
    seed: int
    device: str
    versions: tuple[str, ...]


class Trained(NamedTuple):
    """What training gives.

    Attributes
    ----------
    vae, likelihood : dict from str to ndarray
        Parameters and buffers.
    history : list of dict
        See `net.train`; of this training alone.
    moments : tuple of ndarray
        Mean moments of the training images, in the canonical pose; see `starts.mean_moments`.
    generator_state : ndarray
        Of the random numbers, for what is learned afterwards.
    adam : dict or None
        The state of Adam, after training in part.
    """

    vae: dict[str, NDArray[Any]]
    likelihood: dict[str, NDArray[Any]]
    history: list[dict[str, float]]
    moments: tuple[NDArray[Any], ...]
    generator_state: NDArray[Any]
    adam: dict[int, dict[str, NDArray[Any]]] | None = None


class Watch(Protocol):
    """Told of every epoch; may ask to stop."""

    def begin_epoch(self) -> None:
        """Note that an epoch begins."""

    def end_epoch(self, trained: Callable[[], Trained]) -> bool:
        """Note that an epoch ended, after which `trained` returns what training gave so far; return whether to stop."""


def batch_size_for(n_images: int) -> int:
    """Return the size of batches that trains well on so many images: an epoch of few images needs small ones.

    Examples
    --------
    >>> [batch_size_for(n) for n in (100, 1000, 3000, 5000, 60_000)]
    [32, 32, 64, 128, 256]
    """
    wanted = max(1, n_images // _STEPS_PER_EPOCH)
    return min(_LARGEST_BATCH, max(_SMALLEST_BATCH, 2 ** round(math.log2(wanted))))


def run(job: Job, images: Tensor, callbacks: Sequence[Any], verbose: int, watch: Watch | None = None) -> Trained:
    """Build a VAE, or take up one, and train it.

    Parameters
    ----------
    job : Job
    images : Tensor of shape (n, n_channels, height, width)
        The job's rows as the model sees them, on its device.
    callbacks : sequence
        Skorch callbacks, which are copied.
    verbose : int
        Prints a line per epoch if positive.
    watch : Watch or None, default=None
        Told of every epoch.

    Returns
    -------
    trained : Trained

    Raises
    ------
    ValueError
        If the VAE does not have the shapes of the contract, or training diverges.
    """
    generator = torch.Generator().manual_seed(job.seed)
    # Initial weights and a user's dropout draw from torch's global generator: fits in threads take turns.
    with persistence.global_generator(int(torch.randint(2**31, (), generator=generator)), images.device):
        vae = _built(job.recipe).to(images.device)
        _check_latent_size(vae, job)
        likelihood = _built(job.likelihood_recipe).to(images.device)
        background = job.image_format.model_background(images.device)
        family, scale, n_restarts = job.pose_search or PoseSearch("rotation", (), 0)
        model = AVAE(vae, likelihood, family, background, scale, job.image_format.padding)
        kept, held_out = _split(images, job.validation_fraction, generator)
        adam: dict[int, Any] | None = None
        if job.start is not None:
            # The same images are held out as before; what is drawn from here on is new.
            seed = int(np.random.SeedSequence([job.seed, job.start.n_epochs]).generate_state(1)[0])
            generator.manual_seed(seed)
            torch.manual_seed(seed)  # type: ignore[no-untyped-call]
            _load(vae, job.start.vae)
            _load(likelihood, job.start.likelihood)
        if job.in_part:
            adam = {} if job.start is None or job.start.adam is None else _tensors(job.start.adam)
        poses = validation_poses = None
        if job.pose_search is not None:
            typical = mean_moments(kept, background)

            def poses_of(some: Tensor, n_agreeing: int = 0) -> TrainingPoses:
                movable = ~is_constant(job.image_format.crop(some))
                return TrainingPoses(model, some, typical, n_restarts, movable, n_agreeing)

            steps = n_steps(len(kept), job.max_epochs, job.batch_size)
            poses = poses_of(kept, round(AGREEING * steps) if job.start is None else 0)
            validation_poses = None if held_out is None else poses_of(held_out)

        still = mean_moments(images, background)

        def trained(history: list[dict[str, float]]) -> Trained:
            moments = still if poses is None else mean_moments(poses.canonical_images(), background)
            return Trained(
                persistence.to_arrays(vae),
                persistence.to_arrays(likelihood),
                history,
                tuple(moment.cpu().numpy() for moment in moments),
                generator.get_state().numpy(),
                None if adam is None else _arrays(adam),
            )

        history = train(
            model,
            kept,
            validation_images=held_out,
            poses=poses,
            validation_poses=validation_poses,
            latent_size=job.latent_size,
            max_epochs=job.max_epochs,
            batch_size=job.batch_size,
            lr=job.lr,
            weight_decay=job.weight_decay,
            patience=job.patience,
            callbacks=callbacks,
            generator=generator,
            device=images.device,
            verbose=verbose,
            adam=adam,
            watch=None if watch is None else _Epochs(watch, trained),
        )
    vae.eval()
    return trained(history)


class _Epochs:
    """Tells a watch of epochs, with what training gave so far."""

    def __init__(self, watch: Watch, trained: Callable[[list[dict[str, float]]], Trained]) -> None:
        self.begin_epoch = watch.begin_epoch
        self._watch = watch
        self._trained = trained

    def end_epoch(self, history: list[dict[str, float]]) -> bool:
        return self._watch.end_epoch(lambda: self._trained(history))


def _load(module: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def _tensors(adam: Mapping[int, Mapping[str, NDArray[Any]]]) -> dict[int, dict[str, Tensor]]:
    return {
        index: {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
        for index, state in adam.items()
    }


def _arrays(adam: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, NDArray[Any]]]:
    return {
        index: {name: np.array(tensor.cpu().numpy()) for name, tensor in state.items()} for index, state in adam.items()
    }


def _built(recipe: dict[str, Any]) -> nn.Module:
    return persistence.build({**recipe, "module": persistence.unpack(recipe["module"])})


def _check_latent_size(vae: nn.Module, job: Job) -> None:
    latent_size = check_shapes(vae.eval(), job.image_format.frame_shape)
    if latent_size != job.latent_size:
        raise ValueError(f"latent_size={job.latent_size}, but {type(vae).__name__} has {latent_size} latent variables.")


def _split(images: Tensor, fraction: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Split off a share of the images."""
    if fraction is None:
        return images, None
    seed = int(torch.randint(2**31, (), generator=generator))
    kept, out = train_test_split(np.arange(len(images)), test_size=fraction, random_state=seed)
    return images[torch.from_numpy(kept)], images[torch.from_numpy(out)]
