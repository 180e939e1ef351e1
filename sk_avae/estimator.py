"""`AVAEEstimator`: train a VAE, find each image's pose, undo it. A thin shell over the pure functions below it."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from numbers import Integral
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import __version__, persistence, training
from ._validation import (
    IMAGES_PER_CHUNK,
    ImageFormat,
    check_count,
    check_flag,
    check_images_are_numbers,
    check_number,
    check_out,
    check_rows,
    dtypes_of,
    enormous_numbers_refused,
    feature_names,
    resolve_device,
    resolve_image_shape,
    seed_from,
    to_tensor,
    unchanged_on_error,
)
from .affine import PADDINGS, REFLECTED, check_family, parameters_of, to_matrix, with_reflection
from .alignment import (
    AVAE,
    AlignmentResult,
    align,
    block_size,
    canonical_images,
    in_blocks,
    is_constant,
    pose_deviation,
    prior_scale,
    screen_in_turn,
    times_at_once,
)
from .callbacks import CallbackSupport, Task, with_callbacks
from .choice import learn_to_choose, n_looked_at
from .critic import Critic, Search
from .density import ShapeDensity
from .likelihoods import LIKELIHOODS, check_likelihood, likelihood_for
from .proposer import Proposer, Starts
from .starts import Moments, mean_moments, random_poses
from .vae import MODULES, check_methods, check_shapes, fused

# The networks of a fitted model, and the recipes in it with the names of the classes that this package builds.
NETWORKS = ("module_", "likelihood_", "density_", "critic_", "proposer_")
RECIPES: dict[str, Mapping[str, type[nn.Module]]] = {"_recipe": MODULES, "_likelihood_recipe": LIKELIHOODS}


def _is_free(family: str, scale: tuple[float, ...]) -> bool:
    """Tell whether a prior with these deviations lets any parameter move; a reflection alone is none."""
    return any(s for name, s in zip(parameters_of(family), scale, strict=True) if name != REFLECTED)


class _Plan(NamedTuple):
    """What is trained, and on what: of a new model, or of one that goes on."""

    rows: NDArray[Any]
    images: Tensor
    image_format: ImageFormat
    recipe: dict[str, Any]
    likelihood_recipe: dict[str, Any]
    start: training.Start | None


class _Epochs:
    """Tells callbacks of epochs, and remembers what the last whole one gave.

    Parameters
    ----------
    task : Task
        Of the fit.
    attributes : callable
        Makes the attributes of an estimator from what training gave.
    remembers : bool
    """

    def __init__(
        self, task: Task, attributes: Callable[[training.Trained], dict[str, Any]], *, remembers: bool
    ) -> None:
        self.last: training.Trained | None = None
        self._task = self._epoch = task
        self._attributes = attributes
        self._remembers = remembers

    def begin_epoch(self) -> None:
        self._epoch = self._task.subtask("epoch").begin()

    def end_epoch(self, trained: Callable[[], training.Trained]) -> bool:
        if self._remembers:
            self.last = trained()
        return self._epoch.end(lambda: self._attributes(trained()))


def _kind(module: Any) -> tuple[Any, ...]:
    """Return what a module has to have in common with one that takes its weights."""
    if not isinstance(module, nn.Module):
        return (module,)
    return type(module), tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())


def _name(module: Any) -> str:
    if not isinstance(module, nn.Module):
        return str(getattr(module, "__name__", module))
    return f"{type(module).__name__} of {sum(tensor.numel() for tensor in module.parameters())} weights"


def _unlearned() -> dict[str, Any]:
    """Return the attributes of a model that chooses by ELBO and prior alone."""
    nothing = dict.fromkeys(("proposer_", "density_", "critic_", "min_gain_"))
    return {**nothing, "temperature_": 1.0, "pose_spread_": {}}


class AVAEEstimator(CallbackSupport, TransformerMixin, BaseEstimator):
    """Affine variational autoencoder: brings images back to the pose of its training images.

    `fit` trains a VAE. Afterwards, for each image, the affine pose `alpha` is found whose removal makes the
    evidence lower bound (ELBO) highest: many restarts are screened, the best few refined. `transform` returns
    the images in the training pose, with alpha appended.

    Parameters
    ----------
    latent_size : int, default=16
        Number of latent variables.
    family : {"rotation", "rigid", "similarity", "linear", "affine"}, default="rotation"
        Which pose parameters are free: angle; angle, tx, ty; angle, log_scale, tx, ty; angle, log_scale_x,
        log_scale_y, shear; the last with tx, ty.
    n_restarts : int, default=16
        Starting poses screened per image at most, the identity among them. With learned starts most images need only
        those. Without, 16 angles are plenty for rotation and the other families gain from 64 and more. The first
        k of a longer table are the table of k.
    n_refine : int, default=2
        Distinct restarts refined per image.
    max_iter : int, default=100
        Evaluations per refined restart.
    tol : float, default=5e-2
        Promised gain, in nats, below which a refinement has converged.
    alpha_prior : {"auto"}, dict or None, default="auto"
        Prior on the pose. "auto" is flat on the angle and Gaussian around 0 on log-scales and shear (standard
        deviation 0.2) and shifts (0.5 half sides): without it a flexible family turns one digit into another.
        A dict from parameter names to standard deviations replaces single defaults, 0 freezes a parameter.
        A finite one on the angle is that of a von Mises distribution. None is flat everywhere, as in the paper.
    allow_reflection : bool, default=False
        Whether the family holds the mirrored images too: alpha then has one more column, `reflected`, 0 or 1.
    learned_starts : bool, default=True
        Whether `fit` trains a small network, on perturbed training images (100 or more), that proposes starting poses.
        The ELBO decides between them as between others. Images for which the proposals are uncertain or poor are
        screened at all `n_restarts`. False turns it off later, too.
    critic : bool, default=True
        Whether `fit` learns to tell right poses from wrong ones, on perturbed training images (100 or more): a density
        of the centroids and covariances of canonical images, which joins the prior, and a small network, which has a
        say in which restarts are refined and which refined pose is best. They, the temperature and the gate are learned
        for the family and the search that `fit` knows; False turns both off later, too.
    min_gain : float or "auto", default=0.0
        The identity gate: an image is moved only if the score (ELBO, log prior and what the critic says) gains more
        than this, in nats; otherwise it stays as it is, exactly. "auto" is learned in `fit`, such that 1 % of upright
        training images would be moved.
    align_training : bool, default=False
        Whether `fit` finds a pose for each training image while it trains the VAE, for training images that have no
        pose in common. Which common pose comes out is chance: `transform` brings images to that one.
    module : {"mlp", "conv"}, nn.Module class or instance, default="mlp"
        The VAE: fully connected, the paper's convolutional one, or your own with ``encode(x) -> (mean,
        log_var)`` and ``decode(z) -> parameters``. A class is called with `image_shape` (channels, height,
        width) and `latent_size`; an instance is copied and must have `latent_size` latent variables.
    hidden_layer_sizes : sequence of int, default=(512, 256)
        Widths of the encoder's hidden layers for ``module="mlp"``, mirrored in the decoder.
    likelihood : {"auto", "bernoulli", "gaussian"} or nn.Module instance, default="auto"
        Distribution of a pixel. "auto" takes Bernoulli if the scaled pixels are mostly near 0 or 1, else
        Gaussian with a learned scale.
    image_shape : tuple of int or None, default=None
        (height, width) or (height, width, channels). None reads a square, or one row if the number of
        features is no square, in which case only x-scale and x-shift are free.
    pad : int, default=0
        Margin in pixels around the image in the model's frame; results are cropped.
    padding : {"background", "border", "reflect"}, default="background"
        What lies outside the image: its background, or, for photographs, its edge pixels or its mirror image.
    rescale : bool, default=True
        Whether pixels are scaled to [0, 1] by the range seen in `fit`, the background nearer to 0.
    max_epochs : int, default=30
        Passes over the training images; learned starts take twice as many, or fewer where there are many images.
    batch_size : int or "auto", default="auto"
        Training images per step. "auto" is a power of two, between 32 and 256, that makes about 50 steps of an epoch:
        256 from 10,000 images on.
    lr : float, default=2e-3
        Adam's learning rate at the start; it falls to zero along half a cosine.
    weight_decay : float, default=0.0
        Adam's weight decay.
    early_stopping : bool, default=False
        Whether training stops once the held-out loss has not improved for `n_iter_no_change` epochs; the
        best weights are kept.
    validation_fraction : float or None, default=None
        Share of the training images held out to report, and with `early_stopping` to decide. None holds out
        nothing, or a tenth with `early_stopping`.
    n_iter_no_change : int, default=5
        See `early_stopping`.
    warm_start : bool, default=False
        Whether `fit` of a fitted model goes on with its weights, scaling and background for `max_epochs` more epochs.
        `lr` starts anew; moments, learned starts, density, critic, temperature and gate are learned again. Parameters
        that the weights depend on must not have changed. After Ctrl-C the weights of the last whole epoch stay, without
        what is learned from them for the search; without `warm_start` the model is as it was before `fit`.
    callbacks : list or None, default=None
        Further skorch callbacks; they are copied. To stop early use `early_stopping`: skorch's own callback
        signals by KeyboardInterrupt, which `fit` lets through. scikit-learn's callbacks (1.9 and later) go in by
        `set_callbacks`: `fit` tells them of each task "epoch" and of "learn-search"; one that returns True at the end
        of an epoch ends the training of the VAE there.
    device : str or torch.device, default="cpu"
        Where to compute.
    random_state : int, RandomState instance or None, default=None
        Draws the initial weights, the split of `validation_fraction`, the order of the images, the noise of z in
        training, what critic and learned starts are trained on and how, and `sample`. The global random states are
        left as they are. Alignment draws nothing.
    memory : str, joblib.Memory or None, default=None
        Where trained weights are kept, so that equal images and settings are not trained again: a grid over
        `n_restarts` then trains once per fold (with `align_training` the search is a part of training). Critic
        and learned starts are trained anew. Not used with callbacks of either kind, without an int `random_state`, or
        in `partial_fit`. Clear it
        after changing the code of a module class of your own.
    verbose : int, default=0
        If positive, `fit` prints a line per epoch and alignment shows a progress bar with images per second.

    Attributes
    ----------
    module_ : nn.Module
        The trained VAE, in evaluation mode.
    likelihood_ : nn.Module
        The likelihood, with its learned scale.
    image_shape_ : tuple of int
        Shape of an image.
    image_format_ : ImageFormat
        Learned scaling and background.
    moments_ : tuple of ndarray or None
        Mean centroid and covariance of the training images' ink, which starting poses aim at; None after
        `from_vae` without images.
    history_ : list of dict
        Per epoch, those of earlier fits with `warm_start` and of `partial_fit` included: `epoch` (from 1),
        `train_loss` and, with held-out images, `valid_loss` (nats per image); with `align_training` also `moved`, the
        share of images whose pose went to another optimum, and per parameter `pose_std_<name>`, the standard deviation
        of the poses (circular for the angle).
    n_iter_ : int
        Epochs run, the length of `history_`: less than `max_epochs` if training stopped early.
    alpha_ : ndarray of shape (n_samples, n_params)
        With `align_training`, the poses of the training images, in the units of `transform`'s; found once more by the
        whole search when the weights were final.
    proposer_ : nn.Module or None
        The network that proposes starting poses; None without learned starts, or where there were too few images.
    density_ : nn.Module or None
        Of the moments of canonical images; None without a critic, or where there were too few images.
    critic_ : nn.Module or None
        The trained critic; None without one, or where there were too few images to train it.
    temperature_ : float
        Of the hypotheses' weights, in nats.
    pose_spread_ : dict from str to float
        Per parameter, the standard deviation of the training images' own poses around the canonical one, as far as
        alignment tells; a part of `alpha_std`.
    min_gain_ : float or None
        What ``min_gain="auto"`` stands for; None if there were too few images to learn it.
    n_features_in_ : int
        Pixels per image.
    feature_names_in_ : ndarray of str
        Names of the input columns, if it has any.

    References
    ----------
    Bidart & Wong (2019), "Affine Variational Autoencoders", equations 1 and 2, sections 3.1 to 3.3.

    Examples
    --------
    >>> from sk_avae import AVAEEstimator
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, _ = load_mnist_sample("train")
    >>> avae = AVAEEstimator(max_epochs=1, random_state=0).fit(X[:500])
    >>> avae.transform(X[:5]).shape
    (5, 785)
    """

    module_: Any
    likelihood_: Any
    proposer_: Any
    density_: nn.Module | None
    critic_: nn.Module | None
    moments_: tuple[NDArray[Any], ...] | None
    min_gain_: float | None

    __metadata_request__transform = {"out": UNUSED}  # noqa: RUF012  # where to write is no metadata

    def __init__(
        self,
        latent_size: int = 16,
        *,
        family: str = "rotation",
        n_restarts: int = 16,
        n_refine: int = 2,
        max_iter: int = 100,
        tol: float = 5e-2,
        alpha_prior: str | Mapping[str, float] | None = "auto",
        allow_reflection: bool = False,
        learned_starts: bool = True,
        critic: bool = True,
        min_gain: float | str = 0.0,
        align_training: bool = False,
        module: str | type[nn.Module] | nn.Module = "mlp",
        hidden_layer_sizes: Sequence[int] = (512, 256),
        likelihood: str | nn.Module = "auto",
        image_shape: tuple[int, ...] | None = None,
        pad: int = 0,
        padding: str = "background",
        rescale: bool = True,
        max_epochs: int = 30,
        batch_size: int | str = "auto",
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float | None = None,
        n_iter_no_change: int = 5,
        warm_start: bool = False,
        callbacks: list[Any] | None = None,
        device: str | torch.device = "cpu",
        random_state: Any = None,
        memory: Any = None,
        verbose: int = 0,
    ) -> None:
        self.latent_size = latent_size
        self.family = family
        self.n_restarts = n_restarts
        self.n_refine = n_refine
        self.max_iter = max_iter
        self.tol = tol
        self.alpha_prior = alpha_prior
        self.allow_reflection = allow_reflection
        self.learned_starts = learned_starts
        self.critic = critic
        self.min_gain = min_gain
        self.align_training = align_training
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.image_shape = image_shape
        self.pad = pad
        self.padding = padding
        self.rescale = rescale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.device = device
        self.random_state = random_state
        self.memory = memory
        self.verbose = verbose

    # ------------------------------------------------------------------ fitting
    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train the VAE on images in their canonical pose, or with `align_training` on images in any pose.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images; uint8 or floats of any range.
        y : None
            Ignored.

        Returns
        -------
        self : AVAEEstimator

        Warns
        -----
        UserWarning
            If `align_training` can learn little: images that are constant or alike, or fewer than `batch_size`.

        Raises
        ------
        ValueError, TypeError
            If X or a parameter is not as documented, if training diverges, or if `warm_start` finds a model with other
            settings. A model that was fitted before is then left as it was.
        """
        self._check_parameters()
        task, interrupt = Task.of_fit(self, int(self.max_epochs) + 1, X, y), None
        with unchanged_on_error(self):
            plan = self._plan(X, goes_on=self.warm_start and hasattr(self, "module_"))
            # What callbacks see of an epoch has no gate yet.
            epochs = _Epochs(
                task,
                lambda trained: {**self._attributes(plan, trained), "min_gain_": 0.0},
                remembers=bool(self.warm_start),
            )
            try:
                trained = self._trained(plan, epochs)
                self._become(plan, trained)
                learning = task.subtask("learn-search").begin()
                self._learn_search(plan, trained)
                learning.end()
            except KeyboardInterrupt as error:
                if epochs.last is None:
                    raise
                self._become(plan, epochs.last)
                interrupt = error
        if interrupt is not None:
            raise interrupt
        task.end()
        return self

    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train the VAE for one epoch: a pass over X in batches of `batch_size`, at a learning rate that stays `lr`.

        The first call builds the model, unless there is a fitted one, and fixes the images' shape, the scaling, the
        background, the likelihood and the moments that starting poses aim at: let its images be typical. Adam goes on
        where the last call left it. Nothing is held out: `early_stopping` and `validation_fraction` have no part in it.
        What `fit` learns for the search (learned starts, density, critic, temperature, gate) would be that of other
        weights and is dropped; the search goes by the table of starts, ELBO and prior alone. `fit` with `warm_start`
        learns it again.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in their canonical pose, or with `align_training` in any pose, which is then found anew in each call.
        y : None
            Ignored.

        Returns
        -------
        self : AVAEEstimator

        Raises
        ------
        ValueError, TypeError
            As by `fit`, or if `min_gain` is "auto", which is learned in `fit` only. The model is then left as it was.

        Examples
        --------
        >>> from sk_avae.datasets import load_mnist_sample
        >>> X, _ = load_mnist_sample("train")
        >>> avae = AVAEEstimator(random_state=0)
        >>> for start in range(0, 600, 200):
        ...     avae = avae.partial_fit(X[start : start + 200])
        >>> avae.n_iter_
        3
        """
        self._check_parameters()
        if self.min_gain == "auto":
            raise ValueError(
                "min_gain='auto' is learned in `fit` only, not in `partial_fit`. Say min_gain in nats, or use `fit` "
                "with warm_start=True."
            )
        with unchanged_on_error(self):
            plan = self._plan(X, goes_on=hasattr(self, "module_"))
            moments = getattr(self, "moments_", None)
            self._become(plan, self._trained(plan))
            self.moments_ = self.moments_ if moments is None else moments
        return self

    def _plan(self, X: ArrayLike, *, goes_on: bool) -> _Plan:
        """Return what to train on X: the fitted model if it goes on, else a new one."""
        device = resolve_device(self.device)
        if goes_on:
            rows, _ = check_rows(self, X, image_shape=self.image_shape_)
            self._check_goes_on()
            image_format, recipe, likelihood_recipe = self.image_format_, self._recipe, self._likelihood_recipe
            weights = persistence.to_arrays(self.module_), persistence.to_arrays(self.likelihood_)
            start = training.Start(*weights, getattr(self, "_adam", None), self.n_iter_)
        else:
            rows, image_shape = check_rows(self, X, image_shape=self.image_shape, reset=True)
            image_format = ImageFormat.learn(
                rows, image_shape, pad=int(self.pad), padding=self.padding, rescale=self.rescale
            )
            recipe, likelihood_recipe = (
                self._module_recipe(image_format),
                self._likelihood_recipe_for(image_format, rows),
            )
            start = None
        images = self._training_images(image_format, persistence.build(likelihood_recipe), rows, device)
        return _Plan(rows, images, image_format, recipe, likelihood_recipe, start)

    def _check_goes_on(self) -> None:
        """Raise if the parameters that are set now describe another model than the one that is to go on."""
        image_format, then = self.image_format_, self._recipe
        shape = self.image_shape_
        if self.image_shape is not None:
            shape = resolve_image_shape(self.image_shape, self.n_features_in_)
        now = self._module_recipe(replace(image_format, image_shape=shape, pad=int(self.pad)))
        settings = {
            "image_shape": (self.image_shape_[:2], shape[:2]),
            "pad": (image_format.pad, int(self.pad)),
            "padding": (image_format.padding, self.padding),
        }
        if _kind(then["module"]) != _kind(now["module"]):
            settings["module"] = _name(then["module"]), _name(now["module"])
        for name in ("latent_size", "hidden_layer_sizes"):
            if name in then["arguments"] and name in now["arguments"]:
                settings[name] = then["arguments"][name], now["arguments"][name]
        if self.likelihood != "auto":
            likelihoods = [
                recipe["module"]
                for recipe in (self._likelihood_recipe, self._likelihood_recipe_for(image_format, np.empty(0)))
            ]
            if _kind(likelihoods[0]) != _kind(likelihoods[1]):
                settings["likelihood"] = _name(likelihoods[0]), _name(likelihoods[1])
        changed = [f"{name}={new} (was {old})" for name, (old, new) in settings.items() if old != new]
        if changed:
            raise ValueError(
                f"The model cannot go on with its weights, which belong to other settings than {', '.join(changed)}. "
                f"Set them back, or fit a new model by `fit` with warm_start=False."
            )

    def _attributes(self, plan: _Plan, trained: training.Trained) -> dict[str, Any]:
        """Return the attributes of an estimator around what was trained, which chooses by ELBO and prior alone."""
        device = plan.images.device
        module = persistence.rebuild(plan.recipe, trained.vae, device)
        earlier = [] if plan.start is None else self.history_[: plan.start.n_epochs]
        history = [*earlier, *({**epoch, "epoch": epoch["epoch"] + len(earlier)} for epoch in trained.history)]
        return {
            "module_": module,
            "_fused": fused(module),
            "likelihood_": persistence.rebuild(plan.likelihood_recipe, trained.likelihood, device),
            "image_format_": plan.image_format,
            "image_shape_": plan.image_format.image_shape,
            "history_": history,
            "n_iter_": len(history),
            # Copies: a memory may hand out memory maps of its files.
            "moments_": tuple(map(np.array, trained.moments)),
            "_recipe": plan.recipe,
            "_likelihood_recipe": plan.likelihood_recipe,
            "_adam": trained.adam,
            **_unlearned(),
        }

    def _become(self, plan: _Plan, trained: training.Trained) -> None:
        self.__dict__.update(self._attributes(plan, trained))
        self.__dict__.pop("alpha_", None)  # of an earlier fit

    def _learn_search(self, plan: _Plan, trained: training.Trained) -> None:
        """Learn what helps the search from the training images, now that the weights are final."""
        images, generator = plan.images, torch.Generator()
        generator.set_state(torch.from_numpy(np.array(trained.generator_state)))
        if self.align_training:
            images = self._some_canonical_images(plan.rows, images, generator)
        self._learn_to_choose(images, generator)
        if self.align_training:
            self.alpha_ = self._align(plan.rows, min_gain=0.0).alpha

    def _trained(self, plan: _Plan, epochs: _Epochs | None = None) -> training.Trained:
        """Train a VAE, or find what was trained before from equal images by equal settings.

        Without `epochs` to be told of this is a part of a training whose end is not known.
        """
        in_part = epochs is None
        pose_search = None
        if self.align_training:
            scale = self._frame_scale(plan.image_format)
            self._warn_if_poses_mean_little(plan.images, scale)
            pose_search = training.PoseSearch(self._family, scale, int(self.n_restarts))
        job = training.Job(
            rows=np.ascontiguousarray(plan.rows),  # strides have no part in what is remembered
            image_format=plan.image_format,
            recipe={**plan.recipe, "module": persistence.pack(plan.recipe["module"])},
            likelihood_recipe={
                **plan.likelihood_recipe,
                "module": persistence.pack(plan.likelihood_recipe["module"]),
            },
            latent_size=int(self.latent_size),
            max_epochs=1 if in_part else int(self.max_epochs),
            batch_size=self._batch_size_for(len(plan.rows)),
            lr=float(self.lr),
            weight_decay=float(self.weight_decay),
            patience=int(self.n_iter_no_change) if self.early_stopping and not in_part else None,
            validation_fraction=None if in_part else self.validation_fraction or (0.1 if self.early_stopping else None),
            pose_search=pose_search,
            start=plan.start,
            in_part=in_part,
            seed=seed_from(self.random_state),
            device=str(plan.images.device),
            versions=(__version__, torch.__version__),
        )
        run: Callable[..., training.Trained] = training.run
        memory = check_memory(self.memory)
        told = self.callbacks or getattr(self, "_skl_callbacks", None)
        if not in_part and not told and isinstance(self.random_state, Integral):
            run = memory.cache(run, ignore=["images", "callbacks", "verbose", "watch"])
        return run(job, plan.images, self.callbacks or [], self.verbose, epochs)

    def _training_images(
        self, image_format: ImageFormat, likelihood: nn.Module, rows: NDArray[Any], device: torch.device
    ) -> Tensor:
        """Return the training images as the model sees them; without rescaling they must fit the likelihood."""
        low, high = likelihood.support  # type: ignore[misc]
        if not self.rescale and not low <= float(rows.min()) <= float(rows.max()) <= high:
            raise ValueError(
                f"{type(likelihood).__name__} needs pixels between {low:g} and {high:g}, but X has {rows.min():g} to "
                f"{rows.max():g}. Use rescale=True or likelihood='gaussian'."
            )
        images = torch.empty(len(rows), *image_format.frame_shape, device=device)
        for chunk in image_format.chunks(len(rows)):
            images[chunk] = image_format.to_model(rows[chunk], (low, high), device)
        return images

    def _batch_size_for(self, n_images: int) -> int:
        return training.batch_size_for(n_images) if isinstance(self.batch_size, str) else int(self.batch_size)

    def _check_parameters(self) -> None:
        for name in ("latent_size", "max_epochs", "n_iter_no_change"):
            check_count(name, getattr(self, name))
        if not isinstance(self.batch_size, str):
            check_count("batch_size", self.batch_size)
        elif self.batch_size != "auto":
            raise ValueError(f"batch_size must be a count or 'auto', got {self.batch_size!r}.")
        self._check_search()
        check_count("pad", self.pad, minimum=0)
        for name in ("rescale", "early_stopping"):
            check_flag(name, getattr(self, name))
        if self.padding not in PADDINGS:
            raise ValueError(f"padding must be one of {list(PADDINGS)}, got {self.padding!r}.")
        check_number("lr", self.lr, boundaries="neither")
        check_number("weight_decay", self.weight_decay)
        if self.validation_fraction is not None:
            check_number("validation_fraction", self.validation_fraction, maximum=1.0, boundaries="neither")
        if not isinstance(self.callbacks, Sequence | None):
            raise TypeError(f"callbacks must be a list or None, got {self.callbacks!r}.")
        if not isinstance(self.hidden_layer_sizes, Iterable):
            raise TypeError(f"hidden_layer_sizes must be a sequence of int, got {self.hidden_layer_sizes!r}.")
        for width in self.hidden_layer_sizes:
            check_count("hidden_layer_sizes", width)

    def _check_search(self) -> None:
        """Check what alignment reads, which may have been set after `fit`."""
        for name in ("allow_reflection", "learned_starts", "critic", "align_training", "warm_start"):
            check_flag(name, getattr(self, name))
        check_family(self.family)
        prior_scale(self.alpha_prior, self._family)
        for name in ("n_restarts", "n_refine"):
            check_count(name, getattr(self, name))
        check_count("max_iter", self.max_iter, minimum=0)
        check_number("tol", self.tol)
        if self.min_gain != "auto":
            check_number("min_gain", self.min_gain)

    def _likelihood_recipe_for(self, image_format: ImageFormat, rows: NDArray[Any]) -> dict[str, Any]:
        likelihood: Any = self.likelihood
        if isinstance(likelihood, nn.Module):
            check_likelihood(likelihood)
            return {"module": copy.deepcopy(likelihood), "arguments": {}}
        if likelihood == "auto":
            every = max(1, len(rows) // IMAGES_PER_CHUNK)
            some = image_format.to_model(rows[::every], (-np.inf, np.inf), torch.device("cpu"))
            likelihood = likelihood_for(some)
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                f"likelihood must be 'auto', one of {sorted(LIKELIHOODS)} or a module, got {likelihood!r}."
            )
        return {"module": LIKELIHOODS[likelihood], "arguments": {}}

    def _module_recipe(self, image_format: ImageFormat) -> dict[str, Any]:
        module: Any = self.module
        arguments = {"image_shape": image_format.frame_shape, "latent_size": int(self.latent_size)}
        if isinstance(module, str):
            if module not in MODULES:
                raise ValueError(f"module must be one of {sorted(MODULES)} or a torch.nn.Module, got {module!r}.")
            if module == "mlp":
                arguments["hidden_layer_sizes"] = tuple(self.hidden_layer_sizes)
            module = MODULES[module]
        check_methods(module)
        if isinstance(module, nn.Module):
            module = copy.deepcopy(module)  # later changes of the caller's instance are not this model's
        return {"module": module, "arguments": arguments}

    def _warn_if_poses_mean_little(self, images: Tensor, scale: tuple[float, ...]) -> None:
        """Warn of training images from which no common pose can be learned."""
        if not _is_free(self._family, scale):
            what = f"no parameter of the family {self.family!r} is free, so that every pose stays 0"
        elif bool(is_constant(images).all()):
            what = f"all {len(images)} training images are constant and have no pose: every pose stays 0"
        elif bool((images == images[:1]).all()):
            what = f"all {len(images)} training images are alike: any pose is as good as another"
        elif len(images) < (batch_size := self._batch_size_for(len(images))):
            what = (
                f"{len(images)} training images are fewer than batch_size={batch_size}: the weights take one step "
                f"per epoch, too few to find a common pose. Give more images or lower batch_size"
            )
        else:
            return
        warnings.warn(f"align_training=True learns little here: {what}.", UserWarning, stacklevel=4)

    def _some_canonical_images(self, rows: NDArray[Any], images: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many training images in the common pose as something can be learned from."""
        some = torch.randperm(len(rows), generator=generator)[: n_looked_at(images[0].numel())].sort().values
        alpha = self._align(rows[some.numpy()], min_gain=0.0).alpha
        chunks = self.image_format_.chunks(len(alpha))
        pose = torch.cat([self._pose_to_model(alpha[chunk]) for chunk in chunks])
        return canonical_images(self._model(), images[some.to(images.device)], pose)

    def _learn_to_choose(self, images: Tensor, generator: torch.Generator) -> None:
        """Learn what helps to choose between hypotheses, and the gate, from training images."""
        model, parameters = self._model(), parameters_of(self._family)
        if not _is_free(self._family, model.scale):
            self.min_gain_ = 0.0  # nothing is free to move
        else:
            choice = learn_to_choose(
                model,
                images,
                self._typical_moments(),
                with_proposer=self.learned_starts,
                with_critic=self.critic,
                search=Search(self.n_restarts, self.n_refine, self.max_iter, self.tol),
                max_epochs=2 * self.max_epochs,
                generator=generator,
                verbose=self.verbose,
            )
            if choice is not None:
                self.proposer_ = choice.proposer and persistence.freeze(choice.proposer, images.device)
                self.density_ = choice.density and persistence.freeze(choice.density, images.device)
                self.critic_ = choice.critic and persistence.freeze(choice.critic, images.device)
                self.temperature_, self.min_gain_ = choice.temperature, choice.gate
                spread = choice.spread.cpu().numpy() * self.image_format_.frame_units(parameters)
                self.pose_spread_ = dict(zip(parameters, spread.tolist(), strict=True))
        self._gate()

    def _gate(self) -> float:
        """Return the gain that an image has to exceed: what was learned, or what is set now."""
        if self.min_gain != "auto":
            return float(self.min_gain)
        if self.min_gain_ is None:
            raise ValueError(
                "min_gain='auto' is learned from at least 100 images in the canonical pose that are not constant, but "
                "there were fewer, or the weights have changed since. Give more of them (to `from_vae` as X), `fit` "
                "with warm_start=True, or say min_gain in nats."
            )
        return self.min_gain_

    @classmethod
    def from_vae(
        cls,
        module: nn.Module,
        *,
        image_shape: tuple[int, ...],
        likelihood: str | nn.Module = "bernoulli",
        offset: float = 0.0,
        scale: float = 1.0,
        background: float | Sequence[float] = 0.0,
        X: ArrayLike | None = None,
        **parameters: Any,
    ) -> Self:
        """Return a fitted estimator around a VAE that was trained elsewhere.

        Parameters
        ----------
        module : nn.Module
            Has ``encode(x) -> (mean, log_var)`` and ``decode(z) -> parameters``, with x of shape (n, channels,
            height, width). It is copied; yours stays as it is, bit by bit.
        image_shape : tuple of int
            (height, width) or (height, width, channels) of the images.
        likelihood : {"bernoulli", "gaussian"} or nn.Module instance, default="bernoulli"
            What the decoder's output means: logits or means. A fixed scale goes in as ``Gaussian(scale)``. Around a
            decoder that ends in a sigmoid put an adapter whose `decode` returns ``torch.logit(p, eps=1e-6)``.
        offset, scale : float, default=0.0 and 1.0
            The module saw ``(pixel - offset) / scale`` in its training.
        background : float or sequence of float, default=0.0
            Pixel value outside the image, per channel, in the units of the input.
        X : array-like or None, default=None
            Images in the canonical pose: for starting poses from their moments, for learned starts, to train the
            critic, and to learn the temperature and an "auto" `min_gain`; the module only reads them.
        **parameters
            Of `AVAEEstimator`: `family`, `n_restarts`, `pad` and so on.

        Returns
        -------
        estimator : AVAEEstimator

        Raises
        ------
        TypeError, ValueError
            If the module lacks a method or returns the wrong shapes.

        References
        ----------
        Bidart & Wong (2019), section 3.2: the affine layers around a pre-trained VAE.

        Examples
        --------
        >>> from sk_avae.vae import MLPVAE
        >>> avae = AVAEEstimator.from_vae(MLPVAE((1, 28, 28), 8), image_shape=(28, 28))
        >>> avae.transform(np.zeros((2, 784))).shape
        (2, 785)
        """
        check_methods(module)
        estimator = cls(module=module, image_shape=image_shape, likelihood=likelihood, **parameters)
        shape = resolve_image_shape(image_shape, math.prod(image_shape))
        channels = shape[2] if len(shape) == 3 else 1
        per_channel = np.broadcast_to(np.asarray(background, dtype=float), channels)
        for name, value in {"offset": offset, "scale": scale}.items():
            check_number(name, value, -math.inf, math.inf, boundaries="neither")
        if not scale or not np.isfinite(per_channel).all():
            raise ValueError(f"scale must not be 0 and background finite, got {scale!r} and {background!r}.")
        image_format = ImageFormat(
            shape, estimator.pad, float(offset), float(scale), tuple(per_channel.tolist()), estimator.padding
        )
        vae = copy.deepcopy(module).eval().float()
        estimator.latent_size = check_shapes(vae, image_format.frame_shape)
        estimator._check_parameters()
        device = resolve_device(estimator.device)
        estimator._recipe = estimator._module_recipe(image_format)
        estimator._likelihood_recipe = estimator._likelihood_recipe_for(image_format, np.zeros((1, math.prod(shape))))
        estimator.module_ = persistence.freeze(vae, device)
        estimator._fused = fused(estimator.module_)
        estimator.likelihood_ = persistence.freeze(persistence.build(estimator._likelihood_recipe), device)
        estimator.image_format_, estimator.image_shape_ = image_format, shape
        estimator.n_features_in_ = math.prod(shape)
        estimator.history_, estimator.n_iter_, estimator.moments_ = [], 0, None
        estimator.__dict__.update(_unlearned())
        if X is not None:
            rows = estimator._rows(X)
            images = estimator._training_images(image_format, estimator.likelihood_, rows, device)
            typical = mean_moments(images, image_format.model_background(device))
            estimator.moments_ = tuple(moment.cpu().numpy() for moment in typical)
            estimator._learn_to_choose(images, torch.Generator().manual_seed(seed_from(estimator.random_state)))
        estimator._gate()
        return estimator

    # ------------------------------------------------------------------ alignment
    def align(self, X: ArrayLike) -> AlignmentResult:
        """Find the pose of each image.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        result : AlignmentResult
            Poses, ELBO before and after, runners-up, convergence; see its own page. A constant image keeps
            alpha 0.

        Warns
        -----
        ConvergenceWarning
            Once per call, if refinements stopped at `max_iter`.

        References
        ----------
        Bidart & Wong (2019), equation 2.
        """
        return self._align(self._rows(X), certainty=True)

    def transform(self, X: ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the canonical images, with alpha appended.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose; a memory map is read a chunk at a time.
        out : ndarray of shape (n_samples, n_features + n_params) or None, default=None
            Where the result is written, a memory map for one; None makes a new array.

        Returns
        -------
        T : ndarray of shape (n_samples, n_features + n_params)
            Canonical pixels in the input's units, then the pose: angles in radians, logarithms of scales,
            shear, translations in half sides. An image that stays put has its own pixels, exactly.

        Raises
        ------
        ValueError
            If `out` has another shape, or holds no floating-point numbers.
        """
        rows = self._rows(X)
        return self._transformed(rows, out)

    def _transformed(self, rows: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        out = check_out(out, (len(rows), rows.shape[1] + len(parameters_of(self._family))), rows.dtype)
        n_features, n_missed = rows.shape[1], 0
        # A chunk at a time to its end: nothing is kept of an image but its row.
        for chunk, found in self._aligned_chunks(rows):
            out[chunk, n_features:] = found.alpha
            out[chunk, :n_features] = self.image_format_.warp_rows(rows[chunk], found.alpha, self._family)
            n_missed += int((~found.converged).sum())
        self._warn_unconverged(n_missed, len(rows))
        return out

    def transform_hypotheses(self, X: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the canonical images of all hypotheses, with their weights.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        images : ndarray of shape (n_samples, n_hypotheses, n_features)
            Canonical pixels in the input's units, the best hypothesis first: that is the one of `transform`.
        weights : ndarray of shape (n_samples, n_hypotheses)
            Probabilities of the hypotheses; 0 where one repeats another.
        """
        rows = self._rows(X)
        found = self._align(rows)
        images = np.empty((*found.hypotheses.shape[:2], rows.shape[1]), dtype=found.hypotheses.dtype)
        for j in range(images.shape[1]):
            images[:, j] = self._warp(rows, np.ascontiguousarray(found.hypotheses[:, j]))
        return images, found.hypothesis_weight

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Turn canonical images back into the pose that they came in.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features + n_params)
            Canonical pixels and alpha, as `transform` returns them.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
            Input pixels, up to interpolation and what left the frame.
        """
        check_is_fitted(self)
        return self._posed(*self._split(X, "X", self.n_features_in_, "n_features"))

    def perturb(self, X: ArrayLike, random_state: Any = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Give images poses at random, out of those that alignment is there to undo.

        Poses are drawn uniformly within three standard deviations of `alpha_prior`: at most any angle, log-scales
        and shears of 0.5, shifts of 0.3 half sides (of the frame, where the model has one padded). Half of them are
        mirrored, where the family reflects.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in the canonical pose.
        random_state : int, RandomState instance or None, default=None
            Draws the poses; None takes the estimator's own `random_state`.

        Returns
        -------
        X_perturbed : ndarray of shape (n_samples, n_features)
            Input pixels: what `inverse_transform` makes of X at alpha.
        alpha : ndarray of shape (n_samples, n_params)
            The poses, in the units of `transform`.
        """
        rows = self._rows(X)
        generator = torch.Generator().manual_seed(
            seed_from(self.random_state if random_state is None else random_state)
        )
        parameters = parameters_of(self._family)
        pose = random_poses(len(rows), self._family, self._frame_scale(self.image_format_), generator).numpy()
        alpha = pose * self.image_format_.frame_units(parameters)
        alpha = alpha.astype(np.float64 if rows.dtype == np.float64 else np.float32)
        return self._posed(rows, alpha), alpha

    def _posed(self, rows: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        """Bring canonical rows into a pose; raise where that leaves numbers that are none."""
        with np.errstate(over="ignore"):
            return check_images_are_numbers(self._warp(rows, alpha, inverse=True), "X")

    def _warp(self, rows: NDArray[Any], alpha: NDArray[Any], *, inverse: bool = False) -> NDArray[Any]:
        parts = [
            self.image_format_.warp_rows(rows[chunk], alpha[chunk], self._family, inverse=inverse)
            for chunk in self.image_format_.chunks(len(rows))
        ]
        return np.concatenate(parts)

    def _split(self, X: ArrayLike, name: str, n_first: int, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Split rows into their first columns and the pose behind them."""
        self._check_search()
        with enormous_numbers_refused(name):
            rows = check_array(X, dtype=dtypes_of(X, [np.float32, np.float64]), input_name=name)
        n_params = len(parameters_of(self._family))
        if rows.shape[1] != n_first + n_params:
            raise ValueError(
                f"{name} has {rows.shape[1]} columns, but {what} + n_params = {n_first} + {n_params} are needed."
            )
        return rows[:, :n_first], rows[:, n_first:]

    def _rows(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        self._check_search()
        rows, _ = check_rows(self, X, image_shape=self.image_shape_)
        # Without `rescale`, pixels of a density may have any range.
        if self.rescale is not False or np.isfinite(self.likelihood_.support).all():
            self.image_format_.warn_of_other_units(rows)
        return rows

    def _device(self) -> torch.device:
        """Return where the weights are: a model may have been loaded on another device than it was fitted on."""
        return next((t.device for t in self.module_.state_dict().values()), torch.device("cpu"))

    def _to_model(self, rows: NDArray[Any]) -> Tensor:
        return self.image_format_.to_model(rows, self.likelihood_.support, self._device())

    def _pose_to_model(self, alpha: NDArray[Any]) -> Tensor:
        return self.image_format_.pose_to_model(alpha, self._family, self._device())

    def _in_blocks(self, function: Callable[..., Tensor], *rows: Tensor) -> NDArray[Any]:
        size = block_size(torch.empty(1, *self.image_format_.frame_shape, device=self._device()), self.module_)
        return in_blocks(function, size, *rows).cpu().numpy()

    def _model(self) -> AVAE:
        scale = self._frame_scale(self.image_format_)
        proposer = self._proposer_for(scale)
        return AVAE(
            self._fused,
            self.likelihood_,
            self._family,
            self.image_format_.model_background(self._device()),
            scale=scale,
            padding=self.image_format_.padding,
            critic=self.critic_ if self.critic else None,
            density=self.density_ if self.critic else None,
            metric=None if proposer is None else proposer.metric,
        )

    def _proposer_for(self, scale: tuple[float, ...]) -> Any:
        """Return the proposer, if it is wanted and knows the family and the prior that are set now."""
        wanted = self.learned_starts and self.proposer_ is not None and self.proposer_.knows(self._family, scale)
        return self.proposer_ if wanted else None

    def _frame_scale(self, image_format: ImageFormat) -> tuple[float, ...]:
        """Return the prior's standard deviations in units of the frame."""
        parameters = parameters_of(self._family)
        scale = np.array(prior_scale(self.alpha_prior, self._family))
        height, width = image_format.image_shape[:2]
        if height == 1 or width == 1:
            # An image of one row has no angle, shear or vertical side to speak of.
            free = {"log_scale", "log_scale_x", "tx"} if height == 1 else {"log_scale", "log_scale_y", "ty"}
            scale[[name not in {*free, REFLECTED} for name in parameters]] = 0.0
        return tuple((scale / image_format.frame_units(parameters)).tolist())

    @property
    def _family(self) -> str:
        """The family in full: with its mirrored images, where they are allowed."""
        return with_reflection(self.family) if self.allow_reflection else self.family

    def _align(self, rows: NDArray[Any], *, certainty: bool = False, min_gain: float | None = None) -> AlignmentResult:
        found = [part for _, part in self._aligned_chunks(rows, certainty=certainty, min_gain=min_gain)]
        parts = [part.arrays() for part in found]
        arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        result = replace(found[0], **arrays)
        self._warn_unconverged(int((~result.converged).sum()), len(rows))
        return result

    def _aligned_chunks(
        self, rows: NDArray[Any], *, certainty: bool = False, min_gain: float | None = None
    ) -> Iterator[tuple[slice, AlignmentResult]]:
        """Align rows a chunk at a time; yield where each chunk is, and its result in the input's units."""
        model = self._model()
        starts = Starts(self._typical_moments(), self._proposer_for(model.scale))
        # Not `disable`: even a bar that is not shown starts a thread.
        bar = tqdm(total=len(rows), desc="Aligning", unit="image") if self.verbose > 0 else nullcontext()
        with bar as progress:
            for chunk in self.image_format_.chunks(len(rows), times_at_once(self._device())):
                images = self._to_model(rows[chunk])
                result = align(
                    model,
                    images,
                    starts.of(model, images, self.n_restarts),
                    n_refine=self.n_refine,
                    max_iter=self.max_iter,
                    tol=float(self.tol),
                    min_gain=self._gate() if min_gain is None else min_gain,
                    temperature=self.temperature_,
                    movable=~is_constant(self.image_format_.crop(images)),
                )
                if certainty:
                    deviation = pose_deviation(model, images, result.alpha)
                    result = replace(result, alpha_std=deviation)
                arrays = {name: tensor.cpu().numpy() for name, tensor in result.arrays().items()}
                yield chunk, self._in_input_units(arrays, rows.dtype)
                if progress is not None:
                    progress.update(len(images))

    def _typical_moments(self) -> Moments | None:
        if self.moments_ is None:
            return None
        return Moments(*(to_tensor(moment, self._device()) for moment in self.moments_))

    def _warn_unconverged(self, n_missed: int, n_images: int) -> None:
        if n_missed and self.max_iter:
            warnings.warn(
                f"The poses of {n_missed} of {n_images} images stopped at max_iter={self.max_iter} before "
                f"they converged to tol={self.tol:g} nats. Raise max_iter or tol if that is too coarse.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _in_input_units(self, arrays: dict[str, NDArray[Any]], dtype: np.dtype[Any]) -> AlignmentResult:
        """Give poses the units of the image (not of the padded frame), ELBOs and floats those of the input."""
        parameters = parameters_of(self._family)
        for name in ("alpha", "hypotheses", "alpha_std"):
            if name in arrays:
                arrays[name] = arrays[name] * self.image_format_.frame_units(parameters)
        if "alpha_std" in arrays:
            spread = np.array([self.pose_spread_.get(name, 0.0) for name in parameters])
            free = arrays["alpha_std"] > 0
            arrays["alpha_std"] = np.where(free, np.hypot(arrays["alpha_std"], spread), 0.0)
        for name in ("elbo", "elbo_identity", "hypothesis_elbo"):
            arrays[name] = arrays[name] + self._log_jacobian()
        arrays["matrix"] = self.image_format_.matrix(arrays["alpha"], self._family)
        precision = np.float64 if dtype == np.float64 else np.float32
        arrays = {name: a.astype(precision) if a.dtype.kind == "f" else a for name, a in arrays.items()}
        return AlignmentResult(
            **arrays, parameters=parameters, image_shape=(self.image_shape_[0], self.image_shape_[1])
        )

    def _log_jacobian(self) -> float:
        """Return what turns a density of scaled pixels into one of the input's, in nats per image."""
        if not self.likelihood_.is_density:
            return 0.0
        return -math.prod(self.image_format_.frame_shape) * math.log(abs(self.image_format_.scale))

    def _screened(self, row: NDArray[Any]) -> NDArray[Any]:
        """Return the starting poses at which one image, of shape (1, n_features), is tried: (n_tried, n_params)."""
        model, image = self._model(), self._to_model(row)
        starts = Starts(self._typical_moments(), self._proposer_for(model.scale)).of(model, image, self.n_restarts)
        tried = screen_in_turn(model, image, starts)[0] > -math.inf
        return starts.alpha[0, tried].cpu().numpy() * self.image_format_.frame_units(parameters_of(self._family))

    def _elbo_at(self, row: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        """Return the ELBO of one image, of shape (1, n_features), at poses of shape (n, n_params), in nats."""
        model, image = self._model(), self._to_model(row)
        elbo = self._in_blocks(
            lambda pose: model.elbo(image.expand(len(pose), -1, -1, -1), pose), self._pose_to_model(alpha)
        )
        return elbo + self._log_jacobian()

    # ------------------------------------------------------------------ scores
    def score_samples(self, X: ArrayLike) -> NDArray[Any]:
        """Return the ELBO of each image at its best pose.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            In nats, higher is better; without the pose's prior, KL weight 1. With a Gaussian likelihood it
            is a density in the input's units.
        """
        return -self.negative_elbo(X)

    def negative_elbo(self, X: ArrayLike, align: bool = True) -> NDArray[Any]:
        """Return the negative ELBO of each image: the loss that papers print; lower is better.

        `score` is minus its mean.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
        align : bool, default=True
            Whether at the best pose (AVAE) or as the image comes (the plain VAE).

        Returns
        -------
        loss : ndarray of shape (n_samples,)
            In nats per image.
        """
        rows = self._rows(X)
        if check_flag("align", align):
            return -self._align(rows).elbo
        model = self._model()
        parts = [
            self._in_blocks(model.elbo, self._to_model(rows[chunk])) for chunk in self.image_format_.chunks(len(rows))
        ]
        precision = np.float64 if rows.dtype == np.float64 else np.float32
        elbo = np.concatenate(parts) + self._log_jacobian()
        return np.negative(elbo, dtype=precision)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean ELBO at each image's best pose: minus the negative-ELBO loss.

        scikit-learn maximises scores, so GridSearchCV picks the model of the lowest loss.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
        y : None
            Ignored.

        Returns
        -------
        score : float
            In nats per image, higher is better.
        """
        return float(self.score_samples(X).mean(dtype=np.float64))

    # ------------------------------------------------------------------ latent space
    def encode(self, X: ArrayLike) -> NDArray[Any]:
        """Return the posterior means of the canonical images, with alpha appended.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        Z : ndarray of shape (n_samples, latent_size + n_params)
            What `decode` takes.
        """
        rows = self._rows(X)
        alpha = self._align(rows).alpha
        model = self._model()

        def posterior_mean(images: Tensor, pose: Tensor) -> Tensor:
            return model.encode(images, model.matrix(pose, images))[0]

        means = [
            self._in_blocks(posterior_mean, self._to_model(rows[chunk]), self._pose_to_model(alpha[chunk]))
            for chunk in self.image_format_.chunks(len(rows))
        ]
        return np.hstack([np.concatenate(means).astype(alpha.dtype), alpha])

    def decode(self, Z: ArrayLike) -> NDArray[Any]:
        """Return the expected images of latent variables and poses.

        Parameters
        ----------
        Z : array-like of shape (n_samples, latent_size + n_params)
            Latent variables and alpha, as `encode` returns them.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Pixels in the pose alpha, in the input's units.
        """
        check_is_fitted(self)
        latent, alpha = self._split(Z, "Z", self._recipe["arguments"]["latent_size"], "latent_size")
        model, image_format = self._model(), self.image_format_

        def expected_image(z: Tensor, pose: Tensor) -> Tensor:
            _, height, width = image_format.frame_shape
            matrix = to_matrix(pose, self._family, aspect=width / height)
            return self.likelihood_.mean(model.decode(z, matrix))  # type: ignore[operator]

        parts = []
        for chunk in self.image_format_.chunks(len(latent)):
            z = to_tensor(latent[chunk], self._device())
            images = self._in_blocks(expected_image, z, self._pose_to_model(alpha[chunk]))
            parts.append(image_format.to_rows(image_format.from_model(torch.from_numpy(images))))
        return check_images_are_numbers(np.concatenate(parts).astype(latent.dtype, copy=False), "Z")

    def reconstruct(self, X: ArrayLike) -> NDArray[Any]:
        """Return what the model makes of images: encoded in the canonical pose, decoded, brought back.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)

        Returns
        -------
        X_reconstructed : ndarray of shape (n_samples, n_features)
            In the pose and the units of X.
        """
        return self.decode(self.encode(X))

    def sample(self, n_samples: int = 1) -> NDArray[Any]:
        """Draw new images in the canonical pose.

        Parameters
        ----------
        n_samples : int, default=1

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected pixels of latent variables drawn from N(0, I), float32, in the input's units. An int
            `random_state` draws the same ones at each call.
        """
        check_is_fitted(self)
        self._check_search()
        check_count("n_samples", n_samples)
        random = np.random.default_rng(seed_from(self.random_state))
        latent = random.standard_normal((n_samples, self._recipe["arguments"]["latent_size"]), dtype=np.float32)
        alpha = np.zeros((n_samples, len(parameters_of(self._family))), dtype=np.float32)
        return self.decode(np.hstack([latent, alpha]))

    # ------------------------------------------------------------------ scikit-learn
    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of `transform`'s columns: those of the pixels, then ``alpha_<parameter>``.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the pixels; None takes those seen in `fit`, else ``x0``, ``x1``, ...

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        self._check_search()
        alphas = [f"alpha_{name}" for name in parameters_of(self._family)]
        return np.concatenate([feature_names(self, input_features), np.array(alphas, dtype=object)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: arrays, numbers, strings and containers of them, and the user's own objects."""
        state = dict(super().__getstate__())
        state["_sk_avae_version"] = __version__
        if isinstance(self.device, torch.device):
            state["device"] = str(self.device)
        if "module_" in state:
            state["_device"] = str(self._device())
            del state["_fused"]
            for name in NETWORKS:
                state[name] = None if state[name] is None else persistence.to_arrays(state[name])
            if self.proposer_ is not None:
                state["proposer_"] = state["proposer_"], self.proposer_.family
            state["image_format_"] = asdict(self.image_format_)
            for name, registered in RECIPES.items():
                state[name] = {**state[name], "module": persistence.pack(state[name]["module"], registered)}
        for name in ("module", "likelihood"):
            state[name] = persistence.pack(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        persistence.warn_on_version(state.pop("_sk_avae_version", None), __version__, type(self).__name__)
        for name in ("module", "likelihood"):
            state[name] = persistence.unpack(state[name])
        if "module_" in state:
            device = persistence.available_device(state.pop("_device"))
            if isinstance(state["image_format_"], dict):
                state["image_format_"] = ImageFormat(**state["image_format_"])
            for name, registered in RECIPES.items():
                state[name] = {**state[name], "module": persistence.unpack(state[name]["module"], registered)}
            recipes = recipes_of(state, state["image_format_"].frame_shape)
            if state.get("proposer_") is not None:
                state["proposer_"], _ = state["proposer_"]
            for name in NETWORKS:
                arrays = state.get(name)
                state[name] = None if arrays is None else persistence.rebuild(recipes[name], arrays, device)
            state["_fused"] = fused(state["module_"])
        super().__setstate__(state)


def recipes_of(state: Mapping[str, Any], frame_shape: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    """Return how to build each of the `NETWORKS` of a fitted model, see `persistence.build`.

    Parameters
    ----------
    state : mapping from str to object
        What `AVAEEstimator.__getstate__` returns, its recipes unpacked.
    frame_shape : tuple of int
        (n_channels, height, width) of what the networks see.
    """
    _, family = state.get("proposer_") or (None, None)
    return {
        "module_": state["_recipe"],
        "likelihood_": state["_likelihood_recipe"],
        "density_": {"module": ShapeDensity, "arguments": {}},
        "critic_": {"module": Critic, "arguments": {"image_shape": frame_shape}},
        "proposer_": {"module": Proposer, "arguments": {"image_shape": frame_shape, "family": family}},
    }


def aligned_copies(aligner: Any, X: ArrayLike, n_copies: int, random_state: Any) -> Iterator[NDArray[Any]]:
    """Yield the canonical images of X in other poses, drawn anew each time.

    Parameters
    ----------
    aligner : AVAEEstimator or FrozenEstimator
        Fitted.
    X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
        Images in the canonical pose.
    n_copies : int
    random_state : int, RandomState instance or None
        Draws the poses, see `AVAEEstimator.perturb`; None takes the aligner's own.
    """
    random = check_random_state(seed_from(aligner.random_state if random_state is None else random_state))
    for _ in range(n_copies):
        rows, _ = aligner.perturb(X, random)
        # Not `transform`: rows have lost the names of their columns, of which it would warn.
        yield aligner._transformed(rows)[:, : aligner.n_features_in_]


def new_aligner(estimator: Any, random_state: Any) -> Any:
    """Return the aligner that a meta-estimator fits: a clone of `estimator`, or of the default one for None.

    Parameters
    ----------
    estimator : AVAEEstimator, FrozenEstimator or None
    random_state : int, RandomState instance or None
        Given to the clone; None leaves the clone's own.

    Raises
    ------
    TypeError
        If `estimator` cannot align images.
    """
    aligner = AVAEEstimator() if estimator is None else clone(estimator)
    if not hasattr(aligner, "transform_hypotheses"):
        raise TypeError(
            f"estimator must be an AVAEEstimator, or one that is fitted in a FrozenEstimator, "
            f"got {type(aligner).__name__}."
        )
    if random_state is not None and "random_state" in aligner.get_params(deep=False):
        aligner.set_params(random_state=random_state)
    return aligner
