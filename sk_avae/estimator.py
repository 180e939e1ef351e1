"""`AVAEEstimator`: train a VAE, find each image's pose, undo it. A thin shell over the pure functions below it."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, check_memory
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import __version__, persistence, training
from ._validation import (
    IMAGES_PER_CHUNK,
    ImageFormat,
    check_count,
    check_number,
    check_out,
    check_rows,
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
)
from .choice import learn_to_choose, n_looked_at
from .critic import Critic, Search
from .likelihoods import LIKELIHOODS, check_likelihood, likelihood_for
from .proposer import Proposer, Starts
from .starts import Moments, mean_moments
from .vae import MODULES, check_methods, check_shapes, fused


def _is_free(family: str, scale: tuple[float, ...]) -> bool:
    """Tell whether a prior with these deviations lets any parameter move; a reflection alone is none."""
    return any(s for name, s in zip(parameters_of(family), scale, strict=True) if name != REFLECTED)


class AVAEEstimator(TransformerMixin, BaseEstimator):
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
        Whether `fit` trains a small network to tell right poses from wrong ones, on what alignment finds for perturbed
        training images (100 or more); it then has a say in which restarts are refined and which refined pose is best.
        It, the temperature and the gate are learned for the family and the search that `fit` knows; False turns
        it off later, too.
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
    batch_size : int, default=256
        Training images per step.
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
    callbacks : list or None, default=None
        Further skorch callbacks; they are copied. To stop early use `early_stopping`: skorch's own callback
        signals by KeyboardInterrupt, which `fit` lets through.
    device : str or torch.device, default="cpu"
        Where to compute.
    random_state : int, RandomState instance or None, default=None
        Draws the initial weights, the split of `validation_fraction`, the order of the images, the noise of z in
        training, what critic and learned starts are trained on and how, and `sample`. The global random states are
        left as they are. Alignment draws nothing.
    memory : str, joblib.Memory or None, default=None
        Where trained weights are kept, so that equal images and settings are not trained again: a grid over
        `n_restarts` then trains once per fold (with `align_training` the search is a part of training). Critic
        and learned starts are trained anew. Not used with `callbacks` or without an int `random_state`. Clear it
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
        Per epoch: `epoch`, `train_loss` and, with held-out images, `valid_loss` (nats per image); with
        `align_training` also `moved`, the share of images whose pose went to another optimum, and per parameter
        `pose_std_<name>`, the standard deviation of the poses (circular for the angle).
    n_iter_ : int
        Epochs run.
    alpha_ : ndarray of shape (n_samples, n_params)
        With `align_training`, the poses of the training images, in the units of `transform`'s; found once more by the
        whole search when the weights were final.
    proposer_ : nn.Module or None
        The network that proposes starting poses; None without learned starts, or where there were too few images.
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
        batch_size: int = 256,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float | None = None,
        n_iter_no_change: int = 5,
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
        self.callbacks = callbacks
        self.device = device
        self.random_state = random_state
        self.memory = memory
        self.verbose = verbose

    # ------------------------------------------------------------------ fitting
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
            If X or a parameter is not as documented, or if training diverges. A model that was fitted before
            is then left as it was.
        """
        with unchanged_on_error(self):
            rows, image_shape = check_rows(self, X, image_shape=self.image_shape, reset=True)
            self._check_parameters()
            device = resolve_device(self.device)
            image_format = ImageFormat.learn(
                rows, image_shape, pad=int(self.pad), padding=self.padding, rescale=self.rescale
            )
            recipe, likelihood_recipe = (
                self._module_recipe(image_format),
                self._likelihood_recipe_for(image_format, rows),
            )
            images = self._training_images(image_format, persistence.build(likelihood_recipe), rows, device)
            trained = self._trained(rows, images, image_format, recipe, likelihood_recipe)
            self.module_ = persistence.rebuild(recipe, trained.vae, device)
            self._fused = fused(self.module_)
            self.likelihood_ = persistence.rebuild(likelihood_recipe, trained.likelihood, device)
            self.image_format_, self.image_shape_ = image_format, image_shape
            self.history_, self.n_iter_ = trained.history, len(trained.history)
            # Copies: a memory may hand out memory maps of its files.
            self.moments_: tuple[NDArray[Any], ...] | None = tuple(map(np.array, trained.moments))
            self._recipe, self._likelihood_recipe = recipe, likelihood_recipe
            self._choose_as_told()
            generator = torch.Generator()
            generator.set_state(torch.from_numpy(np.array(trained.generator_state)))
            if self.align_training:
                images = self._some_canonical_images(rows, images, generator)
            self._learn_to_choose(images, generator)
            if self.align_training:
                self.alpha_ = self._align(rows, min_gain=0.0).alpha
            elif hasattr(self, "alpha_"):
                del self.alpha_  # of an earlier fit
        return self

    def _trained(
        self,
        rows: NDArray[Any],
        images: Tensor,
        image_format: ImageFormat,
        recipe: dict[str, Any],
        likelihood_recipe: dict[str, Any],
    ) -> training.Trained:
        """Train a VAE, or find what was trained before from equal images by equal settings."""
        pose_search = None
        if self.align_training:
            scale = self._frame_scale(image_format)
            self._warn_if_poses_mean_little(images, scale)
            pose_search = training.PoseSearch(self._family, scale, int(self.n_restarts))
        job = training.Job(
            rows=np.ascontiguousarray(rows),  # strides have no part in what is remembered
            image_format=image_format,
            recipe={**recipe, "module": persistence.pack(recipe["module"])},
            likelihood_recipe={**likelihood_recipe, "module": persistence.pack(likelihood_recipe["module"])},
            latent_size=int(self.latent_size),
            max_epochs=int(self.max_epochs),
            batch_size=int(self.batch_size),
            lr=float(self.lr),
            weight_decay=float(self.weight_decay),
            patience=int(self.n_iter_no_change) if self.early_stopping else None,
            validation_fraction=self.validation_fraction or (0.1 if self.early_stopping else None),
            pose_search=pose_search,
            seed=seed_from(self.random_state),
            device=str(images.device),
            versions=(__version__, torch.__version__),
        )
        run: Callable[..., training.Trained] = training.run
        memory = check_memory(self.memory)
        if not self.callbacks and isinstance(self.random_state, Integral):
            run = memory.cache(run, ignore=["images", "callbacks", "verbose"])
        return run(job, images, self.callbacks or [], self.verbose)

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

    def _check_parameters(self) -> None:
        for name in ("latent_size", "max_epochs", "batch_size", "n_iter_no_change"):
            check_count(name, getattr(self, name))
        self._check_search()
        check_count("pad", self.pad, minimum=0)
        if self.padding not in PADDINGS:
            raise ValueError(f"padding must be one of {list(PADDINGS)}, got {self.padding!r}.")
        check_number("lr", self.lr, boundaries="neither")
        check_number("weight_decay", self.weight_decay)
        if self.validation_fraction is not None:
            check_number("validation_fraction", self.validation_fraction, maximum=1.0, boundaries="neither")
        if not isinstance(self.hidden_layer_sizes, Iterable):
            raise TypeError(f"hidden_layer_sizes must be a sequence of int, got {self.hidden_layer_sizes!r}.")
        for width in self.hidden_layer_sizes:
            check_count("hidden_layer_sizes", width)

    def _check_search(self) -> None:
        """Check what alignment reads, which may have been set after `fit`."""
        for name in ("allow_reflection", "learned_starts", "critic", "align_training"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
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
        elif len(images) < self.batch_size:
            what = (
                f"{len(images)} training images are fewer than batch_size={self.batch_size}: the weights take one step "
                f"per epoch, too few to find a common pose. Give more images or lower batch_size"
            )
        else:
            return
        warnings.warn(f"align_training=True learns little here: {what}.", UserWarning, stacklevel=4)

    def _choose_as_told(self) -> None:
        """Choose by ELBO and prior alone: what holds until something is learned."""
        self.proposer_: Any = None
        self.critic_: nn.Module | None = None
        self.temperature_ = 1.0
        self.pose_spread_: dict[str, float] = {}
        self.min_gain_: float | None = None

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
                "there were fewer. Give more of them (to `from_vae` as X), or say min_gain in nats."
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
        estimator._choose_as_told()
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
        out = check_out(out, (len(rows), rows.shape[1] + len(parameters_of(self._family))), rows.dtype)
        out[:, rows.shape[1] :] = alpha = self._align(rows).alpha
        for chunk in self.image_format_.chunks(len(rows)):
            out[chunk, : rows.shape[1]] = self.image_format_.warp_rows(rows[chunk], alpha[chunk], self._family)
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
        pixels, alpha = self._split(X, "X", self.n_features_in_, "n_features")
        return self._warp(pixels, alpha, inverse=True)

    def _warp(self, rows: NDArray[Any], alpha: NDArray[Any], *, inverse: bool = False) -> NDArray[Any]:
        parts = [
            self.image_format_.warp_rows(rows[chunk], alpha[chunk], self._family, inverse=inverse)
            for chunk in self.image_format_.chunks(len(rows))
        ]
        return np.concatenate(parts)

    def _split(self, X: ArrayLike, name: str, n_first: int, what: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Split rows into their first columns and the pose behind them."""
        rows = check_array(X, dtype=[np.float32, np.float64], input_name=name)
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
        return rows

    def _device(self) -> torch.device:
        """Return where the weights are: a model may have been loaded on another device than it was fitted on."""
        return next((t.device for t in self.module_.state_dict().values()), torch.device("cpu"))

    def _to_model(self, rows: NDArray[Any]) -> Tensor:
        return self.image_format_.to_model(rows, self.likelihood_.support, self._device())

    def _pose_to_model(self, alpha: NDArray[Any]) -> Tensor:
        return self.image_format_.pose_to_model(alpha, self._family, self._device())

    def _in_blocks(self, function: Callable[..., Tensor], *rows: Tensor) -> NDArray[Any]:
        size = block_size(torch.empty(1, *self.image_format_.frame_shape, device="meta"))
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
        model = self._model()
        starts = Starts(self._typical_moments(), self._proposer_for(model.scale))
        chunks = []
        with tqdm(total=len(rows), desc="Aligning", unit="image", disable=self.verbose <= 0) as progress:
            for chunk in self.image_format_.chunks(len(rows)):
                images = self._to_model(rows[chunk])
                result = align(
                    model,
                    images,
                    starts.of(model, images, self.n_restarts),
                    n_refine=self.n_refine,
                    max_iter=self.max_iter,
                    tol=self.tol,
                    min_gain=self._gate() if min_gain is None else min_gain,
                    temperature=self.temperature_,
                    movable=~is_constant(self.image_format_.crop(images)),
                )
                if certainty:
                    deviation = pose_deviation(model, images, result.alpha)
                    result = replace(result, alpha_std=deviation)
                chunks.append({name: tensor.cpu().numpy() for name, tensor in result.arrays().items()})
                progress.update(len(images))
        arrays = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        self._warn_unconverged(arrays["converged"])
        return self._in_input_units(arrays, rows.dtype)

    def _typical_moments(self) -> Moments | None:
        if self.moments_ is None:
            return None
        return Moments(*(to_tensor(moment, self._device()) for moment in self.moments_))

    def _warn_unconverged(self, converged: NDArray[Any]) -> None:
        n_missed = int((~converged).sum())
        if n_missed and self.max_iter:
            warnings.warn(
                f"The poses of {n_missed} of {len(converged)} images stopped at max_iter={self.max_iter} before "
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
        if align:
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
        return np.concatenate(parts).astype(latent.dtype, copy=False)

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
        alphas = [f"alpha_{name}" for name in parameters_of(self._family)]
        return np.concatenate([feature_names(self, input_features), np.array(alphas, dtype=object)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state["_sk_avae_version"] = __version__
        if "module_" in state:
            state["_device"] = str(self._device())
            del state["_fused"]
            for name in ("module_", "likelihood_", "critic_", "proposer_"):
                state[name] = None if state[name] is None else persistence.to_arrays(state[name])
            if self.proposer_ is not None:
                state["proposer_"] = state["proposer_"], self.proposer_.family
            for name in ("_recipe", "_likelihood_recipe"):
                state[name] = {**state[name], "module": persistence.pack(state[name]["module"])}
        for name in ("module", "likelihood"):
            state[name] = persistence.pack(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        persistence.warn_on_version(state.pop("_sk_avae_version", None), __version__, type(self).__name__)
        for name in ("module", "likelihood"):
            state[name] = persistence.unpack(state[name])
        if "module_" in state:
            for name in ("_recipe", "_likelihood_recipe"):
                state[name] = {**state[name], "module": persistence.unpack(state[name]["module"])}
            device = persistence.available_device(state.pop("_device"))
            state["module_"] = persistence.rebuild(state["_recipe"], state["module_"], device)
            state["_fused"] = fused(state["module_"])
            state["likelihood_"] = persistence.rebuild(state["_likelihood_recipe"], state["likelihood_"], device)
            shape = state["image_format_"].frame_shape
            if state.get("critic_") is not None:
                recipe = {"module": Critic, "arguments": {"image_shape": shape}}
                state["critic_"] = persistence.rebuild(recipe, state["critic_"], device)
            arrays, family = state.get("proposer_") or (None, None)
            recipe = {"module": Proposer, "arguments": {"image_shape": shape, "family": family}}
            state["proposer_"] = arrays and persistence.rebuild(recipe, arrays, device)
        super().__setstate__(state)


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
