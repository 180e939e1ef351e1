"""`fit`, step by step: what is trained and on what, the training, and the search models that are learned afterwards."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._callers import users_level
from .._version import __version__
from ..aligner import Aligner, SearchModels
from ..model.avae import AVAE, canonical_images, is_constant, with_gaps_explained
from ..model.module_state import Network, pack, rebuild, to_arrays
from ..model.moments import mean_moments
from ..model.prior import is_free
from ..progress import Progress
from ..search.settings import PoseSettings, SearchSettings
from .epochs import n_steps
from .recipes import Recipe
from .search_models import (
    CALIBRATING,
    CHOOSING,
    PROPOSING,
    CanonicalImages,
    Recall,
    Wanted,
    learn_search_models,
    n_held_out,
    n_looked_at,
)
from .setup import TrainingSetup, training_images
from .training_run import Checkpoint, EpochObserver, PoseSearch, Trained, TrainingConfig, run
from .vae_training import VAESettings

_STEPS_PER_EPOCH = 48
_SMALLEST_BATCH, _LARGEST_BATCH = 32, 256

_EPOCHS = 30
# With fewer steps of the weights than that twice the epochs find right poses more often.
_FEW_STEPS = 1000


# The last epochs, on all images: their share of the others, and of the learning rate.
_SHARE_FINISHING = 0.25
_LR_FINISHING = 0.3

TRAINING, ALIGNING = "training the VAE", "finding the poses of training images"
FINISHING = "training on all images"


def stages_of(pose: PoseSettings, *, align_training: bool, in_part: bool = False) -> dict[str, float]:
    """Return the stages of a fit, in their order, and how long they take beside the VAE's training, about."""
    stages = {TRAINING: 5.0 if align_training else 1.0}
    if in_part:
        return stages
    if pose.learned_starts or pose.critic:
        stages[PROPOSING] = 0.3
    if pose.critic:
        stages[CHOOSING] = 0.3
    stages[CALIBRATING] = 0.15
    if align_training:
        stages[ALIGNING] = 0.5
    else:
        stages[FINISHING] = 0.25
    return stages


@dataclass(frozen=True)
class FitParameters:
    """What `fit` reads of the estimator's parameters, with what is "auto" decided.

    Attributes
    ----------
    settings : VAESettings
    pose : PoseSettings
    search : SearchSettings
    validation_fraction : float or None
        Share of the images that is held out.
    align_training : bool
        Whether training images get poses.
    callbacks : tuple
        Skorch callbacks.
    memory : joblib.Memory
    seed : int
        Of all random numbers.
    progress : Progress
    """

    settings: VAESettings
    pose: PoseSettings
    search: SearchSettings
    validation_fraction: float | None
    align_training: bool
    callbacks: tuple[Any, ...]
    memory: Any
    seed: int
    progress: Progress

    @property
    def wanted(self) -> Wanted:
        """Which search models there are to be."""
        return Wanted(self.pose.learned_starts, self.pose.critic, 2 * self.settings.max_epochs)


def batch_size_for(n_images: int) -> int:
    """Return the size of batches that trains well on so many images: an epoch of few images needs small ones.

    Examples
    --------
    >>> [batch_size_for(n) for n in (100, 1000, 3000, 5000, 60_000)]
    [32, 32, 64, 128, 256]
    """
    wanted = max(1, n_images // _STEPS_PER_EPOCH)
    return min(_LARGEST_BATCH, max(_SMALLEST_BATCH, 2 ** round(math.log2(wanted))))


def max_epochs_for(n_images: int) -> int:
    """Return how many passes over so many images train well: twice as many where a pass is few steps.

    Examples
    --------
    >>> max_epochs_for(500), max_epochs_for(1500), max_epochs_for(60_000)
    (60, 30, 30)
    """
    few = n_steps(n_images, _EPOCHS, batch_size_for(n_images)) < _FEW_STEPS
    return 2 * _EPOCHS if few else _EPOCHS


def warn_if_poses_mean_little(images: Tensor, family: str, scale: tuple[float, ...], batch_size: int) -> None:
    """Warn of training images from which no common pose can be learned."""
    if not is_free(family, scale):
        what = f"no parameter of the family {family!r} is free, so that every pose stays 0"
    elif bool(is_constant(images).all()):
        what = f"all {len(images)} training images are constant and have no pose: every pose stays 0"
    elif bool((images == images[:1]).all()):
        what = f"all {len(images)} training images are alike: any pose is as good as another"
    elif len(images) < batch_size:
        what = (
            f"{len(images)} training images are fewer than batch_size={batch_size}: the weights take one step "
            f"per epoch, too few to find a common pose. Give more images or lower batch_size"
        )
    else:
        return
    warnings.warn(f"align_training=True learns little here: {what}.", UserWarning, stacklevel=users_level())


def train(parameters: FitParameters, setup: TrainingSetup, observer: EpochObserver | None = None) -> Trained:
    """Train a VAE, or find what was trained before from equal images by equal settings.

    Without an observer this is a part of a training whose end is not known: one epoch, of which nothing is held out.
    """
    in_part = observer is None
    if in_part:
        settings = replace(parameters.settings, max_epochs=1, patience=None)
        parameters = replace(parameters, settings=settings, validation_fraction=None)
    parameters.progress.stage(TRAINING)
    return _train(parameters, setup, observer, in_part=in_part, n_out=0 if in_part else _n_held_out(parameters, setup))


def finish(aligner: Aligner, parameters: FitParameters, setup: TrainingSetup, trained: Trained) -> Aligner:
    """Train for a few more epochs on all images, those that were held out among them; the search stays as it is.

    Not where the caller held images out, and not where training images have poses of their own.
    """
    settings = parameters.settings
    if trained.held_out is None or parameters.validation_fraction or parameters.align_training:
        return aligner
    n_epochs = len(trained.history)  # fewer than wanted where a callback stopped it
    more = replace(settings, max_epochs=max(1, round(_SHARE_FINISHING * n_epochs)), lr=_LR_FINISHING * settings.lr)
    checkpoint = Checkpoint(trained.vae, trained.likelihood, None, len(setup.history) + n_epochs)
    setup = replace(setup, checkpoint=checkpoint)
    parameters = replace(parameters, settings=more, callbacks=())
    parameters.progress.stage(FINISHING)
    finished = trained_aligner(setup, _train(parameters, setup), parameters.pose, parameters.search)
    return replace(finished, models=aligner.models)


def _train(
    parameters: FitParameters,
    setup: TrainingSetup,
    observer: EpochObserver | None = None,
    *,
    in_part: bool = False,
    n_out: int = 0,
) -> Trained:
    settings, pose_search = parameters.settings, None
    if parameters.align_training:
        family = parameters.pose.family
        scale = setup.image_format.frame_prior(family, parameters.pose.scale)
        warn_if_poses_mean_little(setup.images, family, scale, settings.batch_size)
        pose_search = PoseSearch(family, scale, int(parameters.search.n_restarts))
    config = TrainingConfig(
        rows=np.ascontiguousarray(setup.rows),  # strides have no part in what is remembered
        image_format=setup.image_format,
        vae_recipe=_packed(setup.vae_recipe),
        likelihood_recipe=_packed(setup.likelihood_recipe),
        settings=settings,
        validation_fraction=parameters.validation_fraction,
        n_held_out=n_out,
        pose_search=pose_search,
        checkpoint=setup.checkpoint,
        in_part=in_part,
        seed=parameters.seed,
        device=str(setup.images.device),
        versions=(__version__, torch.__version__),
    )
    run_or_recall: Callable[..., Trained] = run
    if not in_part:
        ignored = ["images", "observed", "callbacks", "progress", "observer"]
        run_or_recall = parameters.memory.cache(run, ignore=ignored)
    return run_or_recall(
        config, setup.images, parameters.callbacks, parameters.progress, observer, observed=setup.observed
    )


def _n_held_out(parameters: FitParameters, setup: TrainingSetup) -> int:
    """Return how many images the VAE is not to see: none where there is no pose to find."""
    pose = parameters.pose
    has_pose = is_free(pose.family, setup.image_format.frame_prior(pose.family, pose.scale))
    return n_held_out(len(setup.images)) if has_pose else 0


def _packed(recipe: Recipe) -> Recipe:
    """Return a recipe whose instance has arrays for tensors, by which it can be hashed."""
    return {**recipe, "module": pack(recipe["module"])}


def trained_aligner(setup: TrainingSetup, trained: Trained, pose: PoseSettings, search: SearchSettings) -> Aligner:
    """Return the aligner around what was trained, which chooses by ELBO and prior alone."""
    device = setup.images.device
    return Aligner(
        vae=Network(setup.vae_recipe, rebuild(setup.vae_recipe, trained.vae, device)),
        likelihood=Network(setup.likelihood_recipe, rebuild(setup.likelihood_recipe, trained.likelihood, device)),
        image_format=setup.image_format,
        # Copies: a memory may hand out memory maps of its files.
        moments=tuple(map(np.array, trained.moments)),
        models=SearchModels(),
        pose=pose,
        search=search,
    )


def learn(
    aligner: Aligner, parameters: FitParameters, setup: TrainingSetup, trained: Trained
) -> tuple[Aligner, NDArray[Any] | None]:
    """Learn what helps the search from the training images, now that the weights are final.

    Returns
    -------
    aligner : Aligner
    alpha : ndarray of shape (n_samples, n_params) or None
        With `align_training` the poses of the training images.

    Raises
    ------
    ValueError
        If a gate was to be learned from too few images.
    """
    images, generator = setup.images, torch.Generator()
    generator.set_state(torch.from_numpy(np.array(trained.generator_state)))
    if setup.observed is not None:
        setup = replace(setup, images=_without_gaps(aligner.model, images, setup.observed))
        images = setup.images
    held_out = trained.held_out
    if parameters.align_training:
        images, held_out = _some_canonical_images(aligner, setup, held_out, generator)
    aligner = _with_search_models(aligner, parameters, images, generator, held_out)
    _warn_of_few_right(aligner, parameters)
    aligner.gate()
    if not parameters.align_training:
        return aligner, None
    parameters.progress.stage(ALIGNING)
    return aligner, _without_gate(aligner).align(setup.rows).alpha


def _without_gaps(model: AVAE, images: Tensor, observed: Tensor) -> Tensor:
    """Return training images of which the unknown pixels are what the model expects of them as they come."""
    still = images.new_zeros(len(images), len(model.scale))
    return with_gaps_explained(model, images, observed, still)


def learn_from_upright(
    aligner: Aligner, parameters: FitParameters, rows: NDArray[Any], *, rescale: bool | str
) -> Aligner:
    """Learn moments and search models from upright images, around a VAE that was trained elsewhere."""
    image_format, device = aligner.image_format, aligner.device
    images, observed = training_images(image_format, aligner.likelihood.module, rows, device, rescale=rescale)
    if observed is not None:
        images = _without_gaps(aligner.model, images, observed)
    typical = mean_moments(images, image_format.model_background(device))
    aligner = replace(aligner, moments=tuple(moment.cpu().numpy() for moment in typical))
    generator = torch.Generator().manual_seed(parameters.seed)
    aligner = _with_search_models(aligner, parameters, images, generator)
    _warn_of_few_right(aligner, parameters)
    return aligner


def _warn_of_few_right(aligner: Aligner, parameters: FitParameters) -> None:
    """Warn with advice where few poses of held-out images came back."""
    report = aligner.models.report
    if report is None:
        return
    advice = report.advice(family=parameters.pose.family, align_training=parameters.align_training)
    if advice is not None:
        warnings.warn(advice, UserWarning, stacklevel=users_level())


def _with_search_models(
    aligner: Aligner,
    parameters: FitParameters,
    images: Tensor,
    generator: torch.Generator,
    held_out: NDArray[Any] | None = None,
) -> Aligner:
    """Return an aligner that has learned what helps to find poses, from training images in the canonical pose.

    Those `held_out` are numbers of images that the VAE has not seen.
    """
    model = aligner.model
    if not is_free(model.family, model.scale):
        # Nothing is free to move.
        return replace(aligner, models=replace(aligner.models, min_gain=0.0))
    search = replace(aligner.search, min_gain=0.0)
    unseen = None if held_out is None else torch.from_numpy(np.array(held_out))
    models = learn_search_models(
        model,
        CanonicalImages(images, aligner.initializer.typical, unseen),
        parameters.wanted,
        search,
        generator=generator,
        progress=parameters.progress,
        recall=_recall(aligner, parameters.memory),
    )
    if models is None:
        return aligner
    scale = aligner.image_format.frame_to_image_scale(aligner.parameters)
    spread = {name: float(s * models.pose_spread[name]) for name, s in zip(aligner.parameters, scale, strict=True)}
    return replace(aligner, models=replace(models, pose_spread=spread))


def _recall(aligner: Aligner, memory: Any) -> Recall | None:
    """Return where networks of the search are kept; None, which saves a copy of all images, if nothing is."""
    if getattr(memory, "location", memory) is None:
        return None
    networks = [(_packed(part.recipe), to_arrays(part.module)) for part in (aligner.vae, aligner.likelihood)]
    return Recall(memory, (networks, __version__, torch.__version__))


def _some_canonical_images(
    aligner: Aligner, setup: TrainingSetup, held_out: NDArray[Any] | None, generator: torch.Generator
) -> tuple[Tensor, NDArray[Any] | None]:
    """Return as many training images in the common pose as something can be learned from, and which are held out."""
    rows, images = setup.rows, setup.images
    unseen = torch.zeros(len(rows), dtype=torch.bool)
    if held_out is not None:
        unseen[torch.from_numpy(np.array(held_out))] = True
    order = torch.randperm(len(rows), generator=generator)
    # Those that the VAE has not seen come first: none of them is left out.
    order = order[(~unseen[order]).long().argsort(stable=True)]
    some = order[: n_looked_at(images[0].numel())].sort().values
    alpha = _without_gate(aligner).align(rows[some.numpy()]).alpha
    pose = torch.cat([aligner.pose_to_model(alpha[part]) for part in aligner.image_format.slices(len(alpha))])
    canonical = canonical_images(aligner.model, images[some.to(images.device)], pose)
    return canonical, None if held_out is None else unseen[some].nonzero()[:, 0].numpy()


def _without_gate(aligner: Aligner) -> Aligner:
    """Return an aligner that moves every image that gains by it."""
    pose, search = replace(aligner.pose, learned_gate=False), replace(aligner.search, min_gain=0.0)
    return replace(aligner, pose=pose, search=search)
