"""One training as a function of plain data: what weights depend on goes in, arrays come out; so it can be cached."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from ..callbacks import Task
from ..images import ImageFormat
from ..model.avae import AVAE, is_constant
from ..model.module_state import RandomStream, build, to_arrays, unpack
from ..model.moments import mean_moments
from ..model.vae import as_contracted, inner_of
from ..progress import Progress
from .epochs import EpochEvents, History, Reporting, n_steps
from .first_poses import first_poses
from .recipes import Recipe
from .training_poses import TrainingPoses
from .vae_training import TrainingImages, VAESettings, train_vae

# Share of joint training over which the agreement with the mean image fades out.
AGREEING = 0.5


class PoseSearch(NamedTuple):
    """What decides the poses of training images: the family, its prior's deviations and the number of starts."""

    family: str
    scale: tuple[float, ...]
    n_restarts: int


class Checkpoint(NamedTuple):
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


class TrainingConfig(NamedTuple):
    """All that the trained weights depend on.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, n_features)
        Training images.
    image_format : ImageFormat
        How the model sees them.
    vae_recipe, likelihood_recipe : dict
        Of the VAE and of its likelihood, see `module_state.build`; instances in them are packed.
    settings : VAESettings
    validation_fraction : float or None
        Share of the images that is held out, and tells each epoch's `valid_loss`.
    n_held_out : int
        Images that are held out without one, for what is learned afterwards.
    pose_search : PoseSearch or None
        For images without a common pose; None trains on them as they come.
    checkpoint : Checkpoint or None
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
    vae_recipe: Recipe
    likelihood_recipe: Recipe
    settings: VAESettings
    validation_fraction: float | None
    n_held_out: int
    pose_search: PoseSearch | None
    checkpoint: Checkpoint | None
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
        See `train_vae`; of this training alone.
    moments : tuple of ndarray
        Mean moments of the training images, in the canonical pose; see `moments.mean_moments`.
    generator_state : ndarray
        Of the random numbers, for what is learned afterwards.
    adam : dict or None
        The state of Adam, after training in part.
    held_out : ndarray of int or None
        Which images the VAE has not learned from; None if it has from all.
    """

    vae: dict[str, NDArray[Any]]
    likelihood: dict[str, NDArray[Any]]
    history: History
    moments: tuple[NDArray[Any], ...]
    generator_state: NDArray[Any]
    adam: dict[int, dict[str, NDArray[Any]]] | None = None
    held_out: NDArray[Any] | None = None


class EpochObserver:
    """Tells callbacks of epochs, and remembers what the last whole one gave.

    Parameters
    ----------
    task : Task
        Of the fit.
    attributes : callable
        Makes the attributes of an estimator from what training gave.
    remembers : bool
    """

    def __init__(self, task: Task, attributes: Callable[[Trained], dict[str, Any]], *, remembers: bool) -> None:
        self.last: Trained | None = None
        self._task = self._epoch = task
        self._attributes = attributes
        self._remembers = remembers

    def begin(self) -> None:
        """Note that an epoch begins."""
        self._epoch = self._task.subtask("epoch").begin()

    def end(self, trained: Callable[[], Trained]) -> bool:
        """Note that an epoch ended, and return whether a callback asks to stop here."""
        if self._remembers:
            self.last = trained()
        return self._epoch.end(lambda: self._attributes(trained()))


def run(
    config: TrainingConfig,
    images: Tensor,
    callbacks: Sequence[Any],
    progress: Progress,
    observer: EpochObserver | None = None,
    observed: Tensor | None = None,
) -> Trained:
    """Build a VAE, or take up one, and train it.

    Parameters
    ----------
    config : TrainingConfig
    images : Tensor of shape (n, n_channels, height, width)
        The config's rows as the model sees them, on its device.
    callbacks : sequence
        Skorch callbacks, which are copied.
    progress : Progress
        Told of every epoch.
    observer : EpochObserver or None, default=None
        Told of every epoch.
    observed : Tensor of bool of the shape of the images, or None, default=None
        Which pixels are known; None knows all.

    Returns
    -------
    trained : Trained

    Raises
    ------
    ValueError
        If the VAE does not have the shapes of the contract, or training diverges.
    """
    generator = torch.Generator().manual_seed(config.seed)
    # Initial weights and a user's dropout draw from torch's global generator.
    stream = RandomStream(int(torch.randint(2**31, (), generator=generator)), images.device)
    with stream.lent():
        model = _built(config, images.device)
        kept, out = _split(len(images), config.validation_fraction or config.n_held_out, generator)
        adam = _resumed(config, model, generator)
    validated = out if config.validation_fraction else None
    held_out = None if validated is None else images[validated]
    data = _with_poses(config, model, images if kept is None else images[kept], held_out)
    if observed is not None:
        parts = observed if kept is None else observed[kept], None if validated is None else observed[validated]
        data = replace(data, observed=parts[0], held_out_observed=parts[1])
    still = mean_moments(images, model.background)

    def trained(history: History) -> Trained:
        moments = mean_moments(data.poses.canonical_images(), model.background) if data.poses else still
        return Trained(
            to_arrays(inner_of(model.vae)),
            to_arrays(model.likelihood),
            history,
            tuple(moment.cpu().numpy() for moment in moments),
            generator.get_state().numpy(),
            None if adam is None else _arrays(adam),
            None if out is None else out.numpy(),
        )

    events = None
    if observer is not None:
        events = EpochEvents(observer.begin, lambda history: observer.end(lambda: trained(history)))
    history = train_vae(
        model,
        data,
        config.settings,
        generator=generator,
        stream=stream,
        callbacks=[Reporting(progress), *callbacks],
        adam=adam,
        events=events,
    )
    return trained(history)


def _built(config: TrainingConfig, device: torch.device) -> AVAE:
    """Build the VAE and its likelihood."""
    image_format = config.image_format
    vae = build({**config.vae_recipe, "module": unpack(config.vae_recipe["module"])}).to(device).eval()
    likelihood = build({**config.likelihood_recipe, "module": unpack(config.likelihood_recipe["module"])}).to(device)
    family, scale, _ = config.pose_search or PoseSearch("rotation", (), 0)
    vae = as_contracted(vae, image_format.frame_shape, config.vae_recipe.get("decoder_output"))
    return AVAE(vae, likelihood, family, image_format.model_background(device), scale, image_format.padding)


def _resumed(config: TrainingConfig, model: AVAE, generator: torch.Generator) -> dict[int, Any] | None:
    """Load a checkpoint, if there is one, and return the state of Adam where training is done in parts."""
    checkpoint = config.checkpoint
    if checkpoint is not None:
        # The same images are held out as before; what is drawn from here on is new.
        seed = int(np.random.SeedSequence([config.seed, checkpoint.n_epochs]).generate_state(1)[0])
        generator.manual_seed(seed)
        torch.manual_seed(seed)  # type: ignore[no-untyped-call]
        _load(inner_of(model.vae), checkpoint.vae)
        _load(model.likelihood, checkpoint.likelihood)
    if not config.in_part:
        return None
    return {} if checkpoint is None or checkpoint.adam is None else _tensors(checkpoint.adam)


def _with_poses(config: TrainingConfig, model: AVAE, kept: Tensor, held_out: Tensor | None) -> TrainingImages:
    """Return what is trained on, with poses where these are to be found."""
    if config.pose_search is None:
        return TrainingImages(kept, held_out=held_out)
    typical, n_restarts = mean_moments(kept, model.background), config.pose_search.n_restarts

    def poses_of(some: Tensor, n_agreeing: int = 0) -> TrainingPoses:
        movable = ~is_constant(config.image_format.crop(some))
        first = first_poses(model, some, typical) if config.checkpoint is None else None
        return TrainingPoses(model, some, typical, n_restarts, movable, n_agreeing, first)

    steps = n_steps(len(kept), config.settings.max_epochs, config.settings.batch_size)
    poses = poses_of(kept, round(AGREEING * steps) if config.checkpoint is None else 0)
    return TrainingImages(kept, poses, held_out, None if held_out is None else poses_of(held_out))


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


def _split(n: int, size: float, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Return which of n images are trained on, and which held out, a share or a number; None of all and of none."""
    if not size:
        return None, None
    seed = int(torch.randint(2**31, (), generator=generator))
    kept, out = train_test_split(np.arange(n), test_size=size, random_state=seed)
    return torch.from_numpy(kept), torch.from_numpy(out)
