"""Training as a function of plain data: what it depends on goes in, arrays come out, so that it can be cached."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from . import persistence
from ._validation import ImageFormat
from .alignment import AVAE, is_constant
from .joint import TrainingPoses
from .net import train
from .starts import mean_moments
from .vae import check_shapes


class PoseSearch(NamedTuple):
    """What decides the poses of training images: the family, its prior's deviations and the number of starts."""

    family: str
    scale: tuple[float, ...]
    n_restarts: int


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
        See `net.train`.
    moments : tuple of ndarray
        Mean moments of the training images, in the canonical pose; see `starts.mean_moments`.
    generator_state : ndarray
        Of the random numbers, for what is learned afterwards.
    """

    vae: dict[str, NDArray[Any]]
    likelihood: dict[str, NDArray[Any]]
    history: list[dict[str, float]]
    moments: tuple[NDArray[Any], ...]
    generator_state: NDArray[Any]


def run(job: Job, images: Tensor, callbacks: Sequence[Any], verbose: int) -> Trained:
    """Build and train a VAE.

    Parameters
    ----------
    job : Job
    images : Tensor of shape (n, n_channels, height, width)
        The job's rows as the model sees them, on its device.
    callbacks : sequence
        Skorch callbacks, which are copied.
    verbose : int
        Prints a line per epoch if positive.

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
        poses = validation_poses = None
        if job.pose_search is not None:
            typical = mean_moments(kept, background)

            def poses_of(some: Tensor) -> TrainingPoses:
                movable = ~is_constant(job.image_format.crop(some))
                return TrainingPoses(model, some, typical, n_restarts, movable)

            poses = poses_of(kept)
            validation_poses = None if held_out is None else poses_of(held_out)
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
        )
    vae.eval()
    moments = mean_moments(images if poses is None else poses.canonical_images(), background)
    return Trained(
        persistence.to_arrays(vae),
        persistence.to_arrays(likelihood),
        history,
        tuple(moment.cpu().numpy() for moment in moments),
        generator.get_state().numpy(),
    )


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
