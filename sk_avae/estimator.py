"""`AVAEEstimator`: train a VAE, find each image's pose, undo it. A shell around the learned `aligner_`."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_array
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import nn

from ._callers import users_level
from ._effects import warn_of_few_images, warn_of_settings, warn_of_unlearned
from ._inputs import (
    as_images,
    check_images_are_numbers,
    check_rows,
    check_stack,
    dtypes_of,
    enormous_numbers_refused,
    is_large_enough,
    length_of,
    resolve_image_shape,
    warn_of_other_units,
)
from ._learned import LearnedAttributes
from ._links import LinkedToDocs
from ._validation import (
    check_choice,
    check_count,
    check_count_or_auto,
    check_flag,
    check_number,
    check_out,
    check_verbose,
    feature_names,
    resolve_device,
    seed_from,
    unchanged_on_error,
)
from ._version import __version__, warn_on_version
from .aligner import Aligner, SearchModels
from .aligner_state import STATE_NAMES, from_state, to_state
from .callbacks import CallbackSupport, Task, with_callbacks
from .expert import DEPRECATED, MOVED, ExpertSettings, is_deprecated, upgraded
from .images import ImageFormat, warp_stack
from .learning import fit as learning
from .learning.image_formats import completed_format, learned_format
from .learning.perturbation import random_poses
from .learning.recipes import ModelParameters, check_same_model
from .learning.setup import TrainingSetup, continued_setup, new_setup, whole_history
from .learning.training_run import EpochObserver, Trained
from .learning.vae_training import VAESettings
from .model.affine import INTERPOLATIONS, PADDINGS, check_family, invert, parameters_of, with_reflection
from .model.contexts import in_plain_torch
from .model.frame import SMALLEST_FRAME, frame_sides
from .model.module_state import Network, available_device, build, freeze, pack, unpack
from .model.prior import is_free, prior_scale
from .model.vae import CONV_MULTIPLE, check_methods, check_shapes
from .progress import Progress
from .result import AlignmentResult
from .search.settings import PoseSettings, SearchSettings, default_effort


def _prefixed(expert: ExpertSettings) -> dict[str, Any]:
    return {f"expert__{name}": value for name, value in expert.get_params(deep=False).items()}


class AVAEEstimator(LearnedAttributes, LinkedToDocs, CallbackSupport, TransformerMixin, BaseEstimator):
    """Affine variational autoencoder: brings images back to the pose of its training images.

    `fit` trains a VAE on images in their usual pose. Afterwards it finds, for each image, the affine pose `alpha` whose
    removal makes the evidence lower bound (ELBO) highest: many starting poses are tried, the best few refined.
    `transform` returns the images in the usual pose, with alpha appended. `align` says more: how sure each pose is, and
    which others are possible. `alignment_report_` says how many poses of held-out images came back.

    The parameters are grouped as listed here. Most people set the first five only.

    - Most used: `latent_size`, `family`, `image_shape`, `max_epochs`, `random_state`.
    - Model: `module`, `hidden_layer_sizes`, `likelihood`, `decoder_output`.
    - Images: `resolution`, `pad`, `padding`, `rescale`, `missing_values`, `interpolation`.
    - Pose: `alpha_prior`, `allow_reflection`, `align_training`.
    - Search: `n_restarts`, `n_refine`, `tol`, `min_gain`, `learned_starts`, `critic`.
    - Training: `batch_size`, `lr`, `early_stopping`, `warm_start`, `expert`.
    - Running: `device`, `memory`, `verbose`.

    Parameters
    ----------
    latent_size : int, default=16
        Number of latent variables.
    family : {"rotation", "rigid", "similarity", "linear", "affine"}, default="rotation"
        Which pose parameters are free. "rotation": angle. "rigid": angle, tx, ty. "similarity": angle, log_scale, tx,
        ty. "linear": angle, log_scale_x, log_scale_y, shear. "affine": those of "linear", tx, ty. Choose the simplest
        that covers your images.
    image_shape : tuple of int or None, default=None
        (height, width) or (height, width, channels) of images that are given as rows of pixels. None reads a square.
    max_epochs : int or "auto", default="auto"
        Passes over the training images. "auto" is 30, or 60 for 1,000 images or fewer. The proposer takes twice as
        many, or fewer where there are many images. If images are held out, a quarter as many epochs on all of them
        follow.
    random_state : int, RandomState instance or None, default=None
        Draws the initial weights, the split of held-out images, the order of the images, the noise of z in
        training, the perturbed images for the search models, and `sample`. The global random states are
        left as they are. Alignment draws nothing.
    module : {"mlp", "conv"}, nn.Module class or instance, default="mlp"
        The VAE: fully connected, the paper's convolutional one, or your own with ``encode(x) -> (mean, log_var)``
        and ``decode(z) -> parameters``. A class is called with `image_shape` (channels, height, width) and
        `latent_size`; an instance is copied and must have `latent_size` latent variables.
    hidden_layer_sizes : sequence of int, default=(512, 256)
        Widths of the encoder's hidden layers for ``module="mlp"``, mirrored in the decoder.
    likelihood : {"auto", "bernoulli", "gaussian"} or nn.Module instance, default="auto"
        Distribution of a pixel. "auto" takes Bernoulli if the scaled pixels are mostly near 0 or 1, else
        Gaussian with a learned scale.
    decoder_output : {"auto", "logits", "probabilities"}, default="auto"
        What the decoder of your own module returns for Bernoulli pixels. "auto" tries it: values that always lie
        within [0, 1] are taken for probabilities, with a warning. For a Gaussian it returns means.
    resolution : int, "auto" or None, default="auto"
        Longer side, in pixels, of what the model sees. Larger images are reduced for it, without aliasing; canonical
        images are made of the images' own pixels, at full size. "auto" reduces images of more than 40 pixels to 34,
        but none for a module instance. None reduces none.
    pad : int, default=0
        Margin in pixels around the image, as the model sees it; results are cropped. Use it if objects touch the
        image's edge: rotation would cut them off.
    padding : {"auto", "background", "border", "reflect"}, default="auto"
        What lies outside the image: its background, its edge pixels or its mirror image. "auto" takes the background
        where most edge pixels of the training images have its colour, else the mirror image.
    rescale : {"image"} or bool, default="image"
        Whether pixels are scaled to [0, 1] by the range seen in `fit`, the background nearer to 0. With "image", the
        model also sees images that are brighter, darker, of other contrast or inverted at the level of the training
        images; results keep the images' own pixels. With True it sees them as they are.
    missing_values : {"error", "ignore", "keep"}, default="error"
        What NaN means: an error, or a missing pixel. Missing pixels take no part in the likelihood. In canonical
        images they are filled by what the model expects; with "keep" they stay NaN.
    interpolation : {"bilinear", "bicubic"}, default="bilinear"
        How canonical images are interpolated.
    alpha_prior : {"auto"}, dict or None, default="auto"
        Prior on the pose. "auto": all angles alike; Gaussian around 0 on log-scales and shear (standard deviation
        0.2) and on shifts (0.5 half sides). Without it a flexible family makes one digit look like another.
        A dict from parameter names to standard deviations replaces single ones; 0 freezes a parameter; one on the
        angle, in radians, makes it a von Mises distribution. None is flat everywhere, as in the paper.
    allow_reflection : bool, default=False
        Whether mirrored images are recognised too: alpha then has one more column, `reflected`, 0 or 1.
    align_training : bool, default=False
        Whether `fit` finds a pose for each training image while it trains the VAE, for training images that have no
        common pose. The common pose that comes out is arbitrary.
    n_restarts : int or "auto", default="auto"
        Maximum number of starting poses tried per image, "no change" among them. "auto" is 16 with a proposer
        or where only the angle is free, else 64. The first 8 of 16 are the 8 that ``n_restarts=8`` tries.
    n_refine : int or "auto", default="auto"
        Number of distinct starting poses refined per image, at most `n_restarts`. "auto" is 2 with a proposer or where
        only the angle is free, else 4.
    tol : float, default=5e-2
        A refinement stops when the predicted improvement of the next step is below this, in nats.
    min_gain : float or "auto", default=0.0
        The identity gate: an image whose score (ELBO, log prior, opinions of critic and proposer) gains less than this,
        in nats, stays exactly as it is. "auto" is learned in `fit`, such that 1 % of held-out upright images move.
    learned_starts : bool, default=True
        Whether `fit` trains the proposer, on perturbed training images (64 or more): a small network that proposes
        starting poses and helps to choose among hypotheses. False also turns it off after `fit`.
    critic : bool, default=True
        Whether `fit` trains the critic and the density, on perturbed training images (64 or more). The critic is a
        small network that recognises wrong poses. The density, of the centroids and covariances of canonical images,
        joins the prior. False also turns both off after `fit`.
    batch_size : int or "auto", default="auto"
        Images per step of training. "auto" is a power of two, between 32 and 256, that makes about 50 steps of an
        epoch: 256 from 10,000 images on.
    lr : float, default=2e-3
        Adam's learning rate at the start; it falls to zero along half a cosine.
    early_stopping : bool, default=False
        Whether training stops once the loss of held-out images no longer improves; the best weights are kept.
    warm_start : bool, default=False
        Whether `fit` of a fitted model goes on with its weights, scaling and background for `max_epochs` more epochs.
        `lr` starts anew; search models, temperature and gate are learned again. Parameters that the weights
        depend on must not have changed. After Ctrl-C the weights of the last whole epoch stay, without search models;
        without `warm_start` the model is as it was before `fit`.
    expert : ExpertSettings or None, default=None
        Details of training and search that hardly anybody sets; None takes their defaults.
    device : str or torch.device, default="cpu"
        Where to compute.
    memory : str, joblib.Memory or None, default=None
        Where trained weights are kept, so that equal images and settings are not trained again. A grid over
        `n_restarts`, `n_refine`, `tol` or `min_gain` then trains once per fold, one over `family` or `alpha_prior` the
        VAE once. It needs an int `random_state` and is not used with callbacks or in `partial_fit`. Clear it after
        changing the code of your own module class.
    verbose : int, default=0
        If positive, `fit` shows its stages, their loss and the time left, and alignment the images per second: as a bar
        on a terminal, else as lines, on the standard output.
    max_iter, weight_decay, validation_fraction, n_iter_no_change, callbacks : object, default="deprecated"
        .. deprecated:: 0.2
            Set them in `expert`, see `ExpertSettings`. They will be removed in 0.4.

    Attributes
    ----------
    aligner_ : Aligner
        All that was learned, as one frozen value; most attributes below read from it.
    module_ : nn.Module
        The trained VAE, in evaluation mode.
    likelihood_ : nn.Module
        The likelihood, with its learned scale.
    image_shape_ : tuple of int
        Shape of an image.
    image_format_ : ImageFormat
        What `fit` learned of the images: scaling, background, what "auto" `padding` and `resolution` stand for (its
        `padding` and `frame_shape`), usual brightness and noise.
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
        The network that proposes starting poses; None with ``learned_starts=False`` or too few images.
    density_ : nn.Module or None
        Of the moments of canonical images; None with ``critic=False`` or too few images.
    critic_ : nn.Module or None
        The trained critic; None with ``critic=False`` or too few images.
    alignment_report_ : AlignmentReport or None
        How many poses of images that `fit` held out come back, and whether weights mean what they say; None if there
        were too few images.
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

    __metadata_request__transform = {"out": UNUSED}  # noqa: RUF012  # where to write is no metadata

    def __init__(
        self,
        latent_size: int = 16,
        *,
        family: str = "rotation",
        image_shape: tuple[int, ...] | None = None,
        max_epochs: int | str = "auto",
        random_state: Any = None,
        module: str | type[nn.Module] | nn.Module = "mlp",
        hidden_layer_sizes: Sequence[int] = (512, 256),
        likelihood: str | nn.Module = "auto",
        decoder_output: str = "auto",
        resolution: int | str | None = "auto",
        pad: int = 0,
        padding: str = "auto",
        rescale: bool | str = "image",
        missing_values: str = "error",
        interpolation: str = "bilinear",
        alpha_prior: str | Mapping[str, float] | None = "auto",
        allow_reflection: bool = False,
        align_training: bool = False,
        n_restarts: int | str = "auto",
        n_refine: int | str = "auto",
        tol: float = 5e-2,
        min_gain: float | str = 0.0,
        learned_starts: bool = True,
        critic: bool = True,
        batch_size: int | str = "auto",
        lr: float = 2e-3,
        early_stopping: bool = False,
        warm_start: bool = False,
        expert: ExpertSettings | None = None,
        device: str | torch.device = "cpu",
        memory: Any = None,
        verbose: int = 0,
        max_iter: Any = DEPRECATED,
        weight_decay: Any = DEPRECATED,
        validation_fraction: Any = DEPRECATED,
        n_iter_no_change: Any = DEPRECATED,
        callbacks: Any = DEPRECATED,
    ) -> None:
        self.latent_size = latent_size
        self.family = family
        self.image_shape = image_shape
        self.max_epochs = max_epochs
        self.random_state = random_state
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.decoder_output = decoder_output
        self.resolution = resolution
        self.pad = pad
        self.padding = padding
        self.rescale = rescale
        self.missing_values = missing_values
        self.interpolation = interpolation
        self.alpha_prior = alpha_prior
        self.allow_reflection = allow_reflection
        self.align_training = align_training
        self.n_restarts = n_restarts
        self.n_refine = n_refine
        self.tol = tol
        self.min_gain = min_gain
        self.learned_starts = learned_starts
        self.critic = critic
        self.batch_size = batch_size
        self.lr = lr
        self.early_stopping = early_stopping
        self.warm_start = warm_start
        self.expert = expert
        self.device = device
        self.memory = memory
        self.verbose = verbose
        self.max_iter = max_iter
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.callbacks = callbacks

    # ------------------------------------------------------------------ fitting
    @with_callbacks  # type: ignore[untyped-decorator]
    @in_plain_torch
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
            If `align_training` can learn little: images that are constant or alike, or fewer than `batch_size`. If
            fewer than 60 % of the poses of held-out images come back, with what to try.

        Raises
        ------
        ValueError, TypeError
            If X or a parameter is not as documented, if training diverges, or if `warm_start` finds a model with other
            settings. A model that was fitted before is then left as it was.
        """
        self._check_parameters()
        warn_of_settings(self._settings(), type(self)().get_params() | _prefixed(ExpertSettings()))
        n_epochs = self._max_epochs_for(length_of(X))
        task, interrupt = Task.of_fit(self, n_epochs + 1, X, y), None
        with unchanged_on_error(self):
            setup = self._setup(X, goes_on=self.warm_start and hasattr(self, "aligner_"))
            parameters = self._fit_parameters(len(setup.rows))
            parameters.progress.note(setup.described())
            observer = EpochObserver(
                task, lambda trained: self._seen_by_callbacks(setup, trained), remembers=bool(self.warm_start)
            )
            try:
                trained = learning.train(parameters, setup, observer)
                self._set_fitted(setup, trained)
                task_of_search = task.subtask("learn-search").begin()
                self.aligner_, alpha = learning.learn(self.aligner_, parameters, setup, trained)
                if alpha is not None:
                    self.alpha_ = alpha
                self.aligner_ = learning.finish(self.aligner_, parameters, setup, trained)
                warn_of_few_images(self.aligner_, len(setup.rows))
                task_of_search.end()
            except KeyboardInterrupt as error:
                if observer.last is None:
                    raise
                self._set_fitted(setup, observer.last)
                interrupt = error
        if interrupt is not None:
            raise interrupt
        parameters.progress.end()
        if self.alignment_report_ is not None:
            parameters.progress.note(repr(self.alignment_report_))
        task.end()
        return self

    @in_plain_torch
    def partial_fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Train the VAE for one epoch: a pass over X in batches of `batch_size`, at a learning rate that stays `lr`.

        The first call builds the model, unless there is a fitted one, and fixes the images' shape, the scaling, the
        background, the likelihood and the moments that starting poses aim at: let its images be typical. Adam goes on
        where the last call left it. Nothing is held out, also with `early_stopping`.
        The search models, the temperature and the gate belong to other weights and are dropped: the search uses the
        table of starting poses, the ELBO and the prior alone. `fit` with `warm_start` learns them again.

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
            setup = self._setup(X, goes_on=hasattr(self, "aligner_"))
            moments = self.moments_ if setup.checkpoint is not None else None
            parameters = self._fit_parameters(len(setup.rows), in_part=True)
            self._set_fitted(setup, learning.train(parameters, setup))
            parameters.progress.end()
            if moments is not None:
                self.aligner_ = replace(self.aligner_, moments=moments)
        return self

    def _setup(self, X: ArrayLike, *, goes_on: bool) -> TrainingSetup:
        """Return what to train on X: the fitted model if it goes on, else a new one."""
        device, model, rescale = resolve_device(self.device), self._model_parameters(), self.rescale
        if goes_on:
            rows = self._rows(X)
            self._check_goes_on(model)
            adam = getattr(self, "_adam", None)
            return continued_setup(rows, self.aligner_, adam, self.history_, device, rescale=rescale)
        rows, image_shape = check_rows(
            self, X, image_shape=self.image_shape, reset=True, missing_values=self.missing_values
        )
        image_format = learned_format(
            rows,
            image_shape,
            pad=int(self.pad),
            padding=self.padding,
            rescale=rescale,
            sides=self._frame_sides(image_shape, self.module),
        )
        self._check_free(image_format)
        return new_setup(rows, image_format, model, device, rescale=rescale)

    def _frame_sides(self, image_shape: tuple[int, ...], module: Any) -> tuple[int, int] | None:
        """Return the sides of the frame that images are reduced to; None keeps their own."""
        resolution = self.resolution
        if isinstance(module, nn.Module) and isinstance(resolution, str):
            resolution = None  # it has a size of its own
        return frame_sides(
            (image_shape[0], image_shape[1]), int(self.pad), resolution, CONV_MULTIPLE if module == "conv" else 1
        )

    def _check_free(self, image_format: ImageFormat) -> None:
        """Raise where images of one row or column leave the family nothing to find; warn where they are tiny."""
        scale = prior_scale(self.alpha_prior, self._family)
        if not is_free(self._family, scale) or is_free(self._family, image_format.frame_prior(self._family, scale)):
            return
        problem = (
            f"Images of shape {image_format.image_shape[:2]} have no pose that family={self.family!r} could find. Say "
            f"image_shape=(height, width) if they are flattened images; for signals take family='affine', which finds "
            f"their scale and shift."
        )
        if self.image_shape is not None or is_large_enough(image_format.n_features):
            raise ValueError(problem)
        warnings.warn(f"{problem} Every pose will be 0.", UserWarning, stacklevel=users_level())

    def _model_parameters(self) -> ModelParameters:
        names = ("module", "latent_size", "hidden_layer_sizes", "likelihood", "decoder_output")
        return ModelParameters(**{name: getattr(self, name) for name in names})

    def _check_goes_on(self, model: ModelParameters) -> None:
        """Raise if the parameters that are set now describe another model than the one that is to go on."""
        aligner, shape = self.aligner_, self.image_shape_
        if self.image_shape is not None:
            shape = resolve_image_shape(self.image_shape, self.n_features_in_)
        then = aligner.image_format
        sides = then.sides if self.resolution == "auto" else self._frame_sides(shape, self.module)
        padding = then.padding if self.padding == "auto" else self.padding
        now = replace(then, image_shape=shape, pad=int(self.pad), padding=padding, sides=sides)
        check_same_model((aligner.vae.recipe, aligner.likelihood.recipe, aligner.image_format), model, now)

    def _fit_parameters(self, n_images: int, *, in_part: bool = False) -> learning.FitParameters:
        """Return what `fit` reads, with what is "auto" decided."""
        expert, pose = self._expert(), self._pose_settings()
        stages = learning.stages_of(pose, align_training=bool(self.align_training), in_part=in_part)
        settings = VAESettings(
            latent_size=int(self.latent_size),
            max_epochs=self._max_epochs_for(n_images),
            batch_size=learning.batch_size_for(n_images) if isinstance(self.batch_size, str) else int(self.batch_size),
            lr=float(self.lr),
            weight_decay=float(expert.weight_decay),
            patience=int(expert.n_iter_no_change) if self.early_stopping else None,
        )
        told = expert.callbacks or getattr(self, "_skl_callbacks", None)
        memory = check_memory(self.memory)
        return learning.FitParameters(
            settings=settings,
            pose=pose,
            search=self._search_settings(has_proposer=self.learned_starts),
            validation_fraction=expert.validation_fraction or (0.1 if self.early_stopping else None),
            align_training=bool(self.align_training),
            callbacks=tuple(expert.callbacks or ()),
            memory=memory if not told and isinstance(self.random_state, Integral) else check_memory(None),
            seed=seed_from(self.random_state),
            progress=Progress(stages, int(self.verbose)),
        )

    def _max_epochs_for(self, n_images: int) -> int:
        return learning.max_epochs_for(n_images) if isinstance(self.max_epochs, str) else int(self.max_epochs)

    def _expert(self) -> ExpertSettings:
        """Return the expert settings, with what is still set where it was until version 0.2."""
        expert = ExpertSettings() if self.expert is None else self.expert
        moved = {name: value for name in MOVED if not is_deprecated(value := getattr(self, name))}
        return clone(expert).set_params(**moved) if moved else expert

    def _attributes(self, setup: TrainingSetup, trained: Trained) -> dict[str, Any]:
        """Return the attributes of an estimator around what was trained, which chooses by ELBO and prior alone."""
        history = whole_history(setup, trained)
        search = self._search_settings(has_proposer=self.learned_starts)
        aligner = learning.trained_aligner(setup, trained, self._pose_settings(), search)
        return {"aligner_": aligner, "history_": history, "n_iter_": len(history), "_adam": trained.adam}

    def _seen_by_callbacks(self, setup: TrainingSetup, trained: Trained) -> dict[str, Any]:
        """Return the attributes as if `fit` ended now, with a gate that is open: none has been learned yet."""
        attributes = self._attributes(setup, trained)
        return {**attributes, "aligner_": replace(attributes["aligner_"], models=SearchModels(min_gain=0.0))}

    def _set_fitted(self, setup: TrainingSetup, trained: Trained) -> None:
        self.__dict__.update(self._attributes(setup, trained))
        self.__dict__.pop("alpha_", None)  # of an earlier fit

    def _pose_settings(self) -> PoseSettings:
        scale = prior_scale(self.alpha_prior, self._family)
        learned_gate = isinstance(self.min_gain, str)
        return PoseSettings(self._family, scale, bool(self.learned_starts), bool(self.critic), learned_gate)

    def _search_settings(self, *, has_proposer: bool) -> SearchSettings:
        n_restarts, n_refine = default_effort(self._family, has_proposer=has_proposer)
        return SearchSettings(
            n_restarts=n_restarts if isinstance(self.n_restarts, str) else int(self.n_restarts),
            n_refine=n_refine if isinstance(self.n_refine, str) else int(self.n_refine),
            max_iter=int(self._expert().max_iter),
            tol=float(self.tol),
            min_gain=0.0 if isinstance(self.min_gain, str) else float(self.min_gain),
        )

    def _aligner(self) -> Aligner:
        """Return what was learned with the settings of now, which may have been set after `fit`."""
        check_is_fitted(self)
        self._check_search()
        aligner = replace(self.aligner_, pose=self._pose_settings())
        warn_of_unlearned(aligner, self.aligner_.pose)
        if aligner.pose.family != self.aligner_.pose.family:
            self._check_free(aligner.image_format)
        return replace(
            aligner,
            search=self._search_settings(has_proposer=aligner.proposer is not None),
            interpolation=self.interpolation,
            keeps_gaps=self.missing_values == "keep",
        )

    def _settings(self) -> dict[str, Any]:
        """Return the parameters by name, those of `expert` with its name before them."""
        return self.get_params(deep=False) | _prefixed(self._expert())

    def _warn_of_moved(self) -> None:
        """Warn of parameters that are set where they were until version 0.2."""
        moved = [name for name in MOVED if not is_deprecated(getattr(self, name))]
        if moved:
            settings = ", ".join(f"{name}=..." for name in moved)
            warnings.warn(
                f"{' and '.join(moved)} moved to ExpertSettings in version 0.2 and will be removed from AVAEEstimator "
                f"in 0.4. Use expert=ExpertSettings({settings}).",
                FutureWarning,
                stacklevel=users_level(),
            )

    def _check_parameters(self) -> None:
        self._warn_of_moved()
        check_count("latent_size", self.latent_size)
        for name in ("max_epochs", "batch_size"):
            check_count_or_auto(name, getattr(self, name))
        self._check_search()
        check_count("pad", self.pad, minimum=0)
        if not isinstance(self.rescale, bool | np.bool_) and not (
            isinstance(self.rescale, str) and self.rescale == "image"
        ):
            raise TypeError(f"rescale must be 'image', True or False, got {self.rescale!r}.")
        check_flag("early_stopping", self.early_stopping)
        if not isinstance(self.resolution, str | None):
            check_count("resolution", self.resolution, minimum=SMALLEST_FRAME)
        elif self.resolution not in ("auto", None):
            raise ValueError(f"resolution must be a count of pixels, 'auto' or None, got {self.resolution!r}.")
        check_choice("padding", self.padding, ("auto", *PADDINGS))
        check_choice("decoder_output", self.decoder_output, ("auto", "logits", "probabilities"))
        check_number("lr", self.lr, boundaries="neither")
        if not isinstance(self.hidden_layer_sizes, Iterable):
            raise TypeError(f"hidden_layer_sizes must be a sequence of int, got {self.hidden_layer_sizes!r}.")
        for width in self.hidden_layer_sizes:
            check_count("hidden_layer_sizes", width)
        expert = self._expert()
        check_count("n_iter_no_change", expert.n_iter_no_change)
        check_number("weight_decay", expert.weight_decay)
        if expert.validation_fraction is not None:
            check_number("validation_fraction", expert.validation_fraction, maximum=1.0, boundaries="neither")
        if not isinstance(expert.callbacks, Sequence | None):
            raise TypeError(f"callbacks must be a list or None, got {expert.callbacks!r}.")

    def _check_search(self) -> None:
        """Check what alignment reads, which may have been set after `fit`."""
        check_verbose(self.verbose)
        for name in ("allow_reflection", "learned_starts", "critic", "align_training", "warm_start"):
            check_flag(name, getattr(self, name))
        check_choice("missing_values", self.missing_values, ("error", "ignore", "keep"))
        check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))
        check_family(self.family)
        prior_scale(self.alpha_prior, self._family)
        for name in ("n_restarts", "n_refine"):
            check_count_or_auto(name, getattr(self, name))
        if not isinstance(self.expert, ExpertSettings | None):
            raise TypeError(f"expert must be ExpertSettings or None, got {self.expert!r}.")
        check_count("max_iter", self._expert().max_iter, minimum=0)
        check_number("tol", self.tol)
        if not (isinstance(self.min_gain, str) and self.min_gain == "auto"):
            check_number("min_gain", self.min_gain)

    @classmethod
    @in_plain_torch
    def from_vae(
        cls,
        module: nn.Module,
        *,
        image_shape: tuple[int, ...],
        likelihood: str | nn.Module = "bernoulli",
        offset: float = 0.0,
        scale: float = 1.0,
        background: float | Sequence[float] | str = "auto",
        X: ArrayLike | None = None,
        **parameters: Any,
    ) -> Self:
        """Return a fitted estimator around a VAE that was trained elsewhere.

        Parameters
        ----------
        module : nn.Module
            Has ``encode(x) -> (mean, log_var)`` and ``decode(z) -> parameters``, with x and parameters of shape (n,
            channels, height, width) or (n, channels * height * width). It is copied; yours stays as it is, bit by bit.
        image_shape : tuple of int
            (height, width) or (height, width, channels) of the images.
        likelihood : {"bernoulli", "gaussian"} or nn.Module instance, default="bernoulli"
            What the decoder's output means: logits (or probabilities, see `decoder_output`) or means. A fixed scale
            goes in as ``Gaussian(scale)``.
        offset, scale : float, default=0.0 and 1.0
            The module saw ``(pixel - offset) / scale`` in its training.
        background : float, sequence of float or "auto", default="auto"
            Pixel value outside the image, per channel, in the units of the input. "auto" is the median of the edge
            pixels of X, or 0 without X.
        X : array-like or None, default=None
            Images in the canonical pose: for starting poses from their moments, and to learn the search models, the
            temperature and an "auto" `min_gain`. The module only reads them.
        **parameters
            Of `AVAEEstimator`: `family`, `n_restarts`, `pad` and so on.

        Returns
        -------
        estimator : AVAEEstimator

        Raises
        ------
        TypeError, ValueError
            If the module lacks a method or returns the wrong shapes.

        Warns
        -----
        UserWarning
            If what the decoder puts out is taken for probabilities.

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
        learns_background = isinstance(background, str) and background == "auto"
        per_channel = np.broadcast_to(np.asarray(0.0 if learns_background else background, dtype=float), channels)
        for name, value in {"offset": offset, "scale": scale}.items():
            check_number(name, value, -math.inf, math.inf, boundaries="neither")
        if not scale or not np.isfinite(per_channel).all():
            raise ValueError(f"scale must not be 0 and background finite, got {scale!r} and {background!r}.")
        padding = "background" if estimator.padding == "auto" else estimator.padding
        sides = estimator._frame_sides(shape, module)
        image_format = ImageFormat(
            shape, estimator.pad, float(offset), float(scale), tuple(per_channel.tolist()), padding, sides=sides
        )
        estimator._check_free(image_format)
        vae = copy.deepcopy(module).eval().float()
        estimator.latent_size = check_shapes(vae, image_format.frame_shape)
        estimator._check_parameters()
        device, recipes = resolve_device(estimator.device), estimator._model_parameters()
        likelihood_recipe = recipes.likelihood_recipe(torch.zeros(1))
        vae_recipe = recipes.recipe_with_output(recipes.vae_recipe(image_format), likelihood_recipe, vae)
        estimator.aligner_ = Aligner(
            vae=Network(vae_recipe, freeze(vae, device)),
            likelihood=Network(likelihood_recipe, freeze(build(likelihood_recipe), device)),
            image_format=image_format,
            moments=None,
            models=SearchModels(),
            pose=estimator._pose_settings(),
            search=estimator._search_settings(has_proposer=estimator.learned_starts),
        )
        estimator.n_features_in_ = math.prod(shape)
        estimator.history_, estimator.n_iter_ = [], 0
        if X is not None:
            estimator._learn_from_upright(X, learns_background=learns_background)
        estimator.aligner_.gate()
        return estimator

    def _learn_from_upright(self, X: ArrayLike, *, learns_background: bool) -> None:
        """Learn from upright images what a VAE that was trained elsewhere does not say."""
        rows, _ = check_rows(self, X, image_shape=self.image_shape_, missing_values=self.missing_values)
        image_format = completed_format(
            self.image_format_,
            rows,
            learns_background=learns_background,
            any_range=not np.isfinite(self.likelihood_.support).all(),
            rescale=self.rescale,
        )
        warn_of_other_units(rows, image_format)
        ends = np.array([np.nanmin(rows), np.nanmax(rows)], dtype=float)
        self._warn_of_negative_pixels(float(((ends - image_format.offset) / image_format.scale).min()))
        parameters = self._fit_parameters(len(rows))
        self.aligner_ = replace(self.aligner_, image_format=image_format)
        self.aligner_ = learning.learn_from_upright(self.aligner_, parameters, rows, rescale=self.rescale)
        parameters.progress.end()

    def _warn_of_negative_pixels(self, lowest: float) -> None:
        """Warn where a module sees pixels, the lowest of them given, that its likelihood does not have."""
        if lowest < self.likelihood_.support[0] - 0.25:
            warnings.warn(
                f"{type(self.likelihood_).__name__} has no pixels below {self.likelihood_.support[0]:g}, but the "
                f"module sees some of {lowest:.3g}. Say likelihood='gaussian' if it was trained so, else say offset "
                f"and scale.",
                UserWarning,
                stacklevel=users_level(),
            )

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
        rows = self._rows(X)
        return self._aligner().align(rows, certainty=True, verbose=self.verbose)

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
        return self._transformed(self._rows(X), out)

    def _transformed(self, rows: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        aligner = self._aligner()
        out = check_out(
            out, (len(rows), rows.shape[1] + len(aligner.parameters)), self.image_format_.floats(rows.dtype)
        )
        aligner.transform(rows, out, verbose=self.verbose)
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
        return self._hypotheses(self._rows(X))

    def _hypotheses(self, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._aligner().transform_hypotheses(rows, verbose=self.verbose)

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

    def warp(
        self,
        X: ArrayLike,
        alpha: Any,
        *,
        interpolation: str = "bilinear",
        background: float = 0.0,
        inverse: bool = False,
    ) -> NDArray[Any]:
        """Take poses off other images: label masks, further channels, the same scenes at a higher resolution.

        Parameters
        ----------
        X : array-like of shape (n_samples, H, W) or (n_samples, H, W, C)
            Images of any size in the proportion of those that were aligned, and of any number of channels.
        alpha : ndarray of shape (n_samples, n_params) or AlignmentResult
            Poses, as `align` and `transform` return them.
        interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
            "nearest" is for labels: their type and values stay.
        background : float, default=0.0
            What lies outside X, unless `padding` goes on with the edge pixels.
        inverse : bool, default=False
            Whether to put poses on, rather than to take them off.

        Returns
        -------
        X_warped : ndarray of the shape of X

        Raises
        ------
        ValueError
            If X is no stack of images, has another proportion, or there are not as many poses.

        Examples
        --------
        >>> from sk_avae.datasets import load_mnist_sample
        >>> X, _ = load_mnist_sample("train")
        >>> avae = AVAEEstimator(max_epochs=1, random_state=0).fit(X[:300])
        >>> masks = (X[:5].reshape(-1, 28, 28) > 128).astype(np.int64)
        >>> avae.warp(masks, avae.align(X[:5]), interpolation="nearest").dtype
        dtype('int64')
        """
        check_is_fitted(self)
        aligner, image_format = self._aligner(), self.image_format_
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_number("background", background, -math.inf, math.inf, boundaries="neither")
        stack = check_stack(X, image_format.image_shape)
        alpha = np.asarray(alpha.alpha if isinstance(alpha, AlignmentResult) else alpha)
        wanted = len(stack), len(aligner.parameters)
        if alpha.shape != wanted or alpha.dtype.kind not in "fiu" or not np.isfinite(alpha).all():
            raise ValueError(f"alpha must be finite numbers of shape {wanted}, a pose per image, got {alpha.shape}.")
        matrix = torch.from_numpy(image_format.matrix(alpha.astype(np.float64), self._family))
        matrix = invert(matrix) if check_flag("inverse", inverse) else matrix
        return warp_stack(
            stack,
            matrix.numpy(),
            background=float(background),
            interpolation=interpolation,
            padding=image_format.padding,
        )

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
        return self._perturbed(self._rows(X), random_state)

    def _perturbed(self, rows: NDArray[Any], random_state: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        aligner = self._aligner()
        seed = seed_from(self.random_state if random_state is None else random_state)
        generator = torch.Generator().manual_seed(seed)
        pose = random_poses(len(rows), self._family, aligner.frame_prior, generator).numpy()
        alpha = pose * aligner.image_format.frame_to_image_scale(aligner.parameters)
        alpha = alpha.astype(self.image_format_.floats(rows.dtype))
        return self._posed(rows, alpha), alpha

    def _posed(self, rows: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        """Bring canonical rows into a pose; raise where that leaves numbers that are none."""
        with np.errstate(over="ignore"):
            posed = self._aligner().warp(rows, alpha, inverse=True)
        return check_images_are_numbers(posed, "X", gaps=self.missing_values != "error" and bool(np.isnan(rows).any()))

    def _split(self, X: ArrayLike, name: str, n_first: int, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Split rows into their first columns and the pose behind them."""
        self._check_search()
        with enormous_numbers_refused(name):
            X = as_images(X, name)
            finite = "allow-nan" if self.missing_values == "keep" else True
            dtypes = dtypes_of(X, [np.float32, np.float64])
            rows = check_array(X, dtype=dtypes, input_name=name, ensure_all_finite=finite)
        n_params = len(parameters_of(self._family))
        if rows.shape[1] != n_first + n_params:
            raise ValueError(
                f"{name} has {rows.shape[1]} columns, but {what} + n_params = {n_first} + {n_params} are needed."
            )
        return rows[:, :n_first], rows[:, n_first:]

    def _rows(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        rows, _ = check_rows(self, X, image_shape=self.image_shape_, missing_values=self.missing_values)
        # Without `rescale`, pixels of a density may have any range.
        if self.rescale is not False or np.isfinite(self.likelihood_.support).all():
            warn_of_other_units(rows, self.image_format_)
        return rows

    @property
    def _family(self) -> str:
        """The family in full: with its mirrored images, where they are allowed."""
        return with_reflection(self.family) if self.allow_reflection else self.family

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
        rows, aligner = self._rows(X), self._aligner()
        if check_flag("align", align):
            return -aligner.align(rows, verbose=self.verbose).elbo
        return np.negative(aligner.elbo(rows), dtype=self.image_format_.floats(rows.dtype))

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
        return np.hstack(self._aligner().encode(rows, verbose=self.verbose))

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
        aligner = self._aligner()
        latent, alpha = self._split(Z, "Z", aligner.latent_size, "latent_size")
        images = aligner.decode(latent, alpha).astype(latent.dtype, copy=False)
        return check_images_are_numbers(images, "Z")

    def reconstruct(self, X: ArrayLike) -> NDArray[Any]:
        """Return what the model makes of images: encoded in the canonical pose, decoded, warped back.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)

        Returns
        -------
        X_reconstructed : ndarray of shape (n_samples, n_features)
            In the pose and the units of X.
        """
        rows, aligner = self._rows(X), self._aligner()
        latent, alpha = aligner.encode(rows, verbose=self.verbose)
        return check_images_are_numbers(aligner.decode(latent, alpha).astype(latent.dtype, copy=False), "X")

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
        latent = random.standard_normal((n_samples, self.aligner_.latent_size), dtype=np.float32)
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
        tags.input_tags.allow_nan = self.missing_values != "error"
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: arrays, numbers, strings and containers of them, and the user's own objects."""
        state = dict(super().__getstate__())
        state["_sk_avae_version"] = __version__
        if isinstance(self.device, torch.device):
            state["device"] = str(self.device)
        if "aligner_" in state:
            state |= to_state(state.pop("aligner_"))
        for name in ("module", "likelihood"):
            state[name] = pack(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        warn_on_version(state.pop("_sk_avae_version", None), type(self).__name__)
        for name in ("module", "likelihood"):
            state[name] = unpack(state[name])
        learned = {name: state.pop(name) for name in STATE_NAMES if name in state}
        super().__setstate__(upgraded(state))
        if learned:
            search = self._search_settings(has_proposer=self.learned_starts)
            device = available_device(learned["_device"])
            self.aligner_ = from_state(learned, self._pose_settings(), search, device)
