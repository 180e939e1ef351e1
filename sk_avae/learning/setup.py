"""What `fit` trains, and on what: images as the model sees them, recipes of a new model or of one that goes on."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..aligner import Aligner
from ..images import ImageFormat, every_few
from ..model.module_state import build, global_generator, to_arrays
from .epochs import History
from .recipes import ModelParameters, Recipe
from .training_run import Checkpoint, Trained


@dataclass(frozen=True)
class TrainingSetup:
    """What is trained, and on what: a new model, or one that goes on.

    Attributes
    ----------
    rows : ndarray of shape (n_samples, n_features)
    images : Tensor of shape (n_samples, n_channels, height, width)
        The rows as the model sees them.
    observed : Tensor of bool of the same shape, or None
        Which of their pixels are known; None knows all.
    image_format : ImageFormat
    vae_recipe, likelihood_recipe : dict
        See `module_state.build`.
    checkpoint : Checkpoint or None
        None is a new model.
    history : list of dict
        Of the epochs before.
    """

    rows: NDArray[Any]
    images: Tensor
    observed: Tensor | None
    image_format: ImageFormat
    vae_recipe: Recipe
    likelihood_recipe: Recipe
    checkpoint: Checkpoint | None = None
    history: tuple[dict[str, float], ...] = ()

    def described(self) -> str:
        """Return in one line what is fitted on, and what was chosen for it."""
        height, width = self.image_format.image_shape[:2]
        frame = self.image_format.frame.shape
        seen = "" if frame == (height, width) else f", seen as {frame[0]} x {frame[1]}"
        module = self.likelihood_recipe["module"]
        name = module.__name__ if isinstance(module, type) else type(module).__name__
        outside = {"background": "its background", "border": "its edge pixels", "reflect": "its mirror image"}
        return (
            f"{len(self.rows):,} images of {height} x {width} pixels{seen}; likelihood {name}; outside an image lies "
            f"{outside[self.image_format.padding]}"
        )


def new_setup(
    rows: NDArray[Any], image_format: ImageFormat, model: ModelParameters, device: torch.device, *, rescale: bool | str
) -> TrainingSetup:
    """Return what to train for a new model; see `training_images`."""
    (images, observed), vae_recipe = _seen_images(image_format, rows, device), model.vae_recipe(image_format)
    with global_generator(0, torch.device("cpu")):
        vae = build(vae_recipe).eval()
    model.check_latent_size(vae, image_format)
    likelihood_recipe = model.likelihood_recipe(images[every_few(len(images))])
    vae_recipe = model.recipe_with_output(vae_recipe, likelihood_recipe, vae)
    images = _within_support(images, build(likelihood_recipe), rows, rescale=rescale)
    return TrainingSetup(rows, images, observed, image_format, vae_recipe, likelihood_recipe)


def continued_setup(
    rows: NDArray[Any], aligner: Aligner, adam: Any, history: History, device: torch.device, *, rescale: bool | str
) -> TrainingSetup:
    """Return what to train for a model that goes on; see `training_images`."""
    vae, likelihood, image_format = aligner.vae, aligner.likelihood, aligner.image_format
    images, observed = training_images(image_format, build(likelihood.recipe), rows, device, rescale=rescale)
    checkpoint = Checkpoint(to_arrays(vae.module), to_arrays(likelihood.module), adam, len(history))
    recipes = vae.recipe, likelihood.recipe
    return TrainingSetup(rows, images, observed, image_format, *recipes, checkpoint, tuple(history))


def training_images(
    image_format: ImageFormat, likelihood: nn.Module, rows: NDArray[Any], device: torch.device, *, rescale: bool | str
) -> tuple[Tensor, Tensor | None]:
    """Return the training images as the model sees them, and which of their pixels are known; None if all are.

    Raises
    ------
    ValueError
        If they are not rescaled and do not fit the likelihood.
    """
    images, observed = _seen_images(image_format, rows, device)
    return _within_support(images, likelihood, rows, rescale=rescale), observed


def _seen_images(image_format: ImageFormat, rows: NDArray[Any], device: torch.device) -> tuple[Tensor, Tensor | None]:
    images = torch.empty(len(rows), *image_format.frame_shape, device=device, dtype=torch.float32)
    observed = None
    # Training images say what is usual: they stay as they are.
    image_format = replace(image_format, exposure=None, noise=None)
    for part in image_format.slices(len(rows)):
        seen = image_format.seen(image_format.to_padded_images(rows[part]), (-math.inf, math.inf), device)
        images[part] = seen.images
        if seen.observed is not None:
            observed = torch.ones_like(images, dtype=torch.bool) if observed is None else observed
            observed[part] = seen.observed
    return images, observed


def _within_support(images: Tensor, likelihood: nn.Module, rows: NDArray[Any], *, rescale: bool | str) -> Tensor:
    """Clamp images, in place, to what the likelihood takes; without rescaling they must lie there."""
    low, high = likelihood.support  # type: ignore[misc]
    if not rescale and not low <= float(np.nanmin(rows)) <= float(np.nanmax(rows)) <= high:
        raise ValueError(
            f"{type(likelihood).__name__} needs pixels between {low:g} and {high:g}, but X has {np.nanmin(rows):g} to "
            f"{np.nanmax(rows):g}. Use rescale='image' or likelihood='gaussian'."
        )
    return images.clamp_(low, high)


def whole_history(setup: TrainingSetup, trained: Trained) -> History:
    """Return the history of earlier epochs and of these, counted on."""
    n = len(setup.history)
    return [*setup.history, *({**epoch, "epoch": epoch["epoch"] + n} for epoch in trained.history)]
