r"""Alignment: for each image the pose whose removal makes the ELBO highest.

.. math:: \alpha^*(x) = \arg\max_\alpha \;
          \text{ELBO}(x; A_\alpha^{-1} \circ \text{decoder} \circ \text{encoder} \circ A_\alpha) + \log p(\alpha)

Screening tries many starting poses on every image; the best few distinct ones of each image are refined together, as
one batch, by a descent that keeps its state per image. An image's answer depends on that image alone: not
on its neighbours in the batch, their order or their number, to the bit.

References
----------
Bidart & Wong (2019), "Affine Variational Autoencoders", equation 2 and section 3.2 (random restarts, then
gradient descent on the best).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .affine import REFLECTED, identity_matrix, invert, parameters_of, to_matrix, warp, without_reflection, wrap_angle
from .density import canonical_features
from .descent import BRACKET, Race, Value, ValueAndGradient, refine, refine_line
from .likelihoods import kl_divergence
from .starts import Moments, exact_moments

# Below eight rows matrix products take another path, whose last bits differ: a block is never smaller, so
# that an image alone gets the bits that it gets in a batch.
_SMALLEST_BLOCK = 16
_LARGEST_BLOCK = 2048
# Pixels in a block: 4 MiB of float32 keep a block and what it passes through near the processor. And values of a
# network's widest layer: what is larger is fetched anew from the system at every pass, which takes half as long again.
_PIXELS_PER_BLOCK = 2**20
_VALUES_PER_BLOCK = 2**21
# A GPU waits for orders, not for memory: so many times as much at once.
_TIMES_ON_GPU = 16

# Standard deviations of the default prior: radians, natural logarithms, slopes, half sides. The angle is
# flat: nothing is known about it.
DEFAULT_PRIOR = {
    "angle": math.inf,
    "log_scale": 0.2,
    "log_scale_x": 0.2,
    "log_scale_y": 0.2,
    "shear": 0.2,
    "tx": 0.5,
    "ty": 0.5,
    REFLECTED: math.inf,
}

# A prior narrower than this is as good as frozen, and its precision would not fit float32.
_FROZEN = 1e-6

# Typical distance of a restart from its optimum: the unit in which refinement steps are measured.
_STEP = {
    "angle": 0.15,
    "log_scale": 0.15,
    "log_scale_x": 0.15,
    "log_scale_y": 0.15,
    "shear": 0.15,
    "tx": 0.1,
    "ty": 0.1,
    REFLECTED: 0.0,
}

# The part of such a distance over which curvature is taken, and the deviation of parameters (1 but for these) of which
# neither ELBO nor prior say anything: an angle is then uniform on the circle.
_CURVATURE_STEP = 0.5
_FLATTEST = 1.0  # nats per squared unit: no typical curvature is weaker
_WIDEST = {"angle": math.pi / math.sqrt(3)}

# So many times the restarts that are refined are shown to the critic first.
_SHORTLIST = 4

# Of an image's hypotheses one that will stay so many nats behind the best, and so many temperatures, is not refined to
# its end: it would hardly weigh.
_HOPELESS = 10.0
_HOPELESS_TEMPERATURES = 4.0

# Two restarts nearer than this (Frobenius norm of the difference of their matrices; a turn by 25 degrees is
# 0.61) are taken to lead to one optimum.
_SAME_BASIN = 0.55


def prior_scale(alpha_prior: str | Mapping[str, float] | None, family: str) -> tuple[float, ...]:
    """Return the standard deviation of the prior of each parameter of a family.

    Parameters
    ----------
    alpha_prior : "auto", mapping or None
        "auto" is `DEFAULT_PRIOR`; None is flat everywhere (the paper's); a mapping from names to standard
        deviations replaces single defaults, where 0 freezes a parameter at 0 and infinity makes it flat. That
        of an angle is a von Mises distribution's, ``kappa = 1 / sd ** 2``.
    family : str
        The family whose parameters are meant.

    Returns
    -------
    scale : tuple of float
        One per parameter; ``inf`` is flat, 0 frozen.

    Raises
    ------
    ValueError
        If a name is no parameter of the family or a value is negative or not a number.

    Examples
    --------
    >>> prior_scale({"tx": 0}, "rigid")
    (inf, 0.0, 0.5)
    """
    names = parameters_of(family)
    own = [name for name in names if name != REFLECTED]
    if alpha_prior is None:
        return (math.inf,) * len(names)
    if alpha_prior == "auto":
        alpha_prior = {}
    if not isinstance(alpha_prior, Mapping):
        raise ValueError(f"alpha_prior must be 'auto', None or a dict, got {alpha_prior!r}.")
    unknown = sorted(set(alpha_prior) - set(own))
    if unknown:
        raise ValueError(f"alpha_prior names {unknown}, but the family {without_reflection(family)!r} has {own}.")
    for name, value in alpha_prior.items():
        if not isinstance(value, Real) or not value >= 0:
            raise ValueError(f"alpha_prior[{name!r}] must be a standard deviation >= 0, got {value!r}.")
    scale = [float(alpha_prior.get(name, DEFAULT_PRIOR[name])) for name in names]
    return tuple(0.0 if value < _FROZEN else value for value in scale)


@dataclass(frozen=True)
class AVAE:
    """A VAE between an affine layer and its inverse (figure 2 of the paper), with a prior on the pose.

    Parameters
    ----------
    vae : nn.Module
        Has `encode` and `decode`; in evaluation mode while images are aligned.
    likelihood : nn.Module
        Reads what the decoder puts out.
    family : str
        Which parameters alpha has.
    background : Tensor of shape (n_channels,)
        Pixel value outside the frame.
    scale : tuple of float
        The prior's standard deviations, see `prior_scale`.
    padding : {"background", "border", "reflect"}, default="background"
        What lies outside the frame, see `affine.warp`.
    critic : nn.Module or None, default=None
        Scores canonical images, in nats; see `critic.Critic`. It has a say in which restarts are refined and in which
        of the refined poses is best; ELBO and prior alone decide where these lie.
    density : nn.Module or None, default=None
        Log density of what canonical images look like, a part of the prior; see `density.ShapeDensity`.
    metric : Tensor of shape (n_params, n_params) or None, default=None
        Typical inverse Hessian of the loss in units of `step_units`, which refinement begins with.
    """

    vae: nn.Module
    likelihood: nn.Module
    family: str
    background: Tensor
    scale: tuple[float, ...]
    padding: str = "background"
    critic: nn.Module | None = None
    density: nn.Module | None = None
    metric: Tensor | None = None

    def matrix(self, alpha: Tensor, images: Tensor) -> Tensor:
        """Return the matrices, of shape (n, 2, 3), of poses of images."""
        return to_matrix(alpha, self.family, aspect=images.shape[3] / images.shape[2])

    def canonical(self, images: Tensor, matrix: Tensor) -> Tensor:
        """Apply the first affine layer: images in the canonical pose."""
        return warp(images, matrix, background=self.background, padding=self.padding)

    def encode(self, images: Tensor, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the first affine layer and the encoder: mean and log variance, each (n, latent_size)."""
        return self.vae.encode(images if matrix is None else self.canonical(images, matrix))  # type: ignore[operator]

    def decode(self, z: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Apply the decoder and the last affine layer: the likelihood's parameters in the input's pose."""
        parameters = self.vae.decode(z)  # type: ignore[operator]
        if matrix is None:
            return parameters
        fill = self.likelihood.fill(self.background)  # type: ignore[operator]
        return warp(parameters, invert(matrix), background=fill, padding=self.padding)

    def elbo(self, images: Tensor, alpha: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Return the ELBO of each image, in nats, taken in the input frame.

        Parameters
        ----------
        images : Tensor of shape (n, n_channels, height, width)
        alpha : Tensor of shape (n, n_params) or None
            Poses; None is the plain VAE, without warps.
        noise : Tensor of shape (n, latent_size) or None
            Standard normal noise for a sampled z; None takes the posterior mean: a score must be
            deterministic.

        Returns
        -------
        elbo : Tensor of shape (n,)

        References
        ----------
        Bidart & Wong (2019), equations 1 and 2.
        """
        matrix = None if alpha is None else self.matrix(alpha, images)
        mean, log_var = self.encode(images, matrix)
        z = mean if noise is None else mean + noise * (0.5 * log_var).exp()
        log_prob = self.likelihood.log_prob(images, self.decode(z, matrix))  # type: ignore[operator]
        return log_prob - kl_divergence(mean, log_var)

    def log_prior(self, alpha: Tensor) -> Tensor:
        """Return the log-density of poses up to a constant, of shape (n,); 0 at the identity.

        Gaussian, and von Mises on an angle: there the distance is a chord of the circle.
        """
        precision = [0.0 if s == 0 else s**-2 for s in self.scale]
        names = parameters_of(self.family)
        if any(name == "angle" and p for name, p in zip(names, precision, strict=True)):
            angles = torch.tensor([name == "angle" for name in names], device=alpha.device)
            alpha = torch.where(angles, 2 * (alpha / 2).sin(), alpha)
        return -0.5 * (alpha.square() * alpha.new_tensor(precision)).sum(dim=1)

    def ink(self, images: Tensor) -> Moments | None:
        """Return what the density has to know of images, once for all their poses; None without one."""
        return None if self.density is None else exact_moments(images, self.background)

    def critic_score(self, images: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return what the critic says of the canonical images, in nats, of shape (n,); 0 without one."""
        if self.critic is None:
            return images.new_zeros(len(images))
        if alpha is not None:
            images = self.canonical(images, self.matrix(alpha, images))
        return self.critic(images)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AlignmentResult:
    """What alignment found, image by image.

    Attributes
    ----------
    alpha : ndarray of shape (n_samples, n_params)
        The pose of each image: angles in radians, logarithms of scales, translations in half sides.
    matrix : ndarray of shape (n_samples, 2, 3)
        Maps canonical to input coordinates.
    elbo : ndarray of shape (n_samples,)
        ELBO at `alpha`, without the prior, in nats.
    elbo_identity : ndarray of shape (n_samples,)
        ELBO of the image as it came.
    gain : ndarray of shape (n_samples,)
        What the best hypothesis gains over the image as it came, in nats: ELBO, log prior and what the critic says.
        The image was moved if this exceeds `min_gain`.
    n_iter : ndarray of shape (n_samples,)
        Evaluations that refining took, for the hypothesis that took the most.
    converged : ndarray of shape (n_samples,)
        Whether the refinement of the best hypothesis converged.
    hypotheses : ndarray of shape (n_samples, n_hypotheses, n_params)
        Distinct poses, best first; an image that stays put has the identity before them. Where fewer were found,
        repetitions follow, with weight 0.
    hypothesis_elbo : ndarray of shape (n_samples, n_hypotheses)
        Their ELBO.
    hypothesis_weight : ndarray of shape (n_samples, n_hypotheses)
        Their probabilities: proportional to exp(score / temperature), with the score as in `gain` (an image that stays
        adds `min_gain` to the identity's) and the temperature that `fit` learned. A hypothesis that was given up on the
        way, hopelessly behind, has the score that it had got to.
    alpha_std : ndarray of shape (n_samples, n_params) or None
        Standard deviation of `alpha` if its mode is right: of the curvature at the optimum and of the training images'
        own poses together; 0 where a parameter is frozen.
    parameters : tuple of str
        Names of alpha's columns.
    image_shape : tuple of int
        (height, width) in pixels, the unit of `to_frame`'s shifts.
    """

    alpha: Any
    matrix: Any
    elbo: Any
    elbo_identity: Any
    gain: Any
    n_iter: Any
    converged: Any
    hypotheses: Any
    hypothesis_elbo: Any
    hypothesis_weight: Any
    alpha_std: Any = None
    parameters: tuple[str, ...] = ()
    image_shape: tuple[int, int] = (1, 1)

    def __repr__(self) -> str:
        # A sentence, not a thousand rows of numbers.
        n, found = len(self.alpha), ", ".join(self.parameters)
        if not n:
            return f"AlignmentResult(0 images, alpha: {found})"
        before, after = float(self.elbo_identity.mean()), float(self.elbo.mean())
        share = float(self.converged.sum()) / n
        return (
            f"AlignmentResult({n:,} images, alpha: {found}; "
            f"mean ELBO {before:.1f} as they came, {after:.1f} at alpha; {share:.0%} converged)"
        )

    @property
    def reflected(self) -> Any:
        """Which images are mirrored (left to right in the canonical pose), of shape (n_samples,), bool."""
        mirrored = self.alpha[:, -1] > 0.5
        return mirrored if self.parameters[-1:] == (REFLECTED,) else mirrored & False

    def arrays(self) -> dict[str, Any]:
        """Return the per-image arrays by name."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.type is Any}
        return {name: array for name, array in arrays.items() if array is not None}

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row per image, in degrees, factors and pixels.

        Angles become ``<name>_deg``, scales factors (``scale`` for ``log_scale``), translations pixels
        (``tx_px``), reflection True or False; the probability of the pose, ELBO, `gain`, iterations
        and convergence follow.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("A data frame needs pandas, which is not here: pip install pandas.") from error

        height, width = self.image_shape
        columns: dict[str, Any] = {}
        for name, values in zip(self.parameters, self.alpha.T, strict=True):
            if name == "angle":
                columns["angle_deg"] = values * (180 / math.pi)
            elif name.startswith("log_scale"):
                columns[name.removeprefix("log_")] = pd.Series(values).map(math.exp).to_numpy()
            elif name in ("tx", "ty"):
                columns[f"{name}_px"] = values * (width if name == "tx" else height) / 2
            else:
                columns[name] = self.reflected if name == REFLECTED else values
        columns["probability"] = self.hypothesis_weight[:, 0]
        columns["elbo"] = self.elbo
        columns["gain"] = self.gain
        columns["n_iter"] = self.n_iter
        columns["converged"] = self.converged
        return pd.DataFrame(columns)


def is_constant(images: Tensor) -> Tensor:
    """Tell which images, of shape (n, C, H, W), have one value per channel, and so no pose."""
    channels = images.flatten(2)
    return (channels == channels[:, :, :1]).flatten(1).all(dim=1)


def block_size(images: Tensor, network: nn.Module | None = None) -> int:
    """Return how many images of this size are evaluated at once, by a network that may say how wide it is: `widest`."""
    times = times_at_once(images.device)
    size = times * _PIXELS_PER_BLOCK // max(1, images[0].numel())
    widest = getattr(network, "widest", None)
    if isinstance(widest, int):
        size = min(size, times * _VALUES_PER_BLOCK // max(1, widest))
    return max(_SMALLEST_BLOCK, min(times * _LARGEST_BLOCK, size))


def times_at_once(device: torch.device) -> int:
    """Return how many times as many images as on the CPU are taken at once on a device."""
    return 1 if device.type in ("cpu", "meta") else _TIMES_ON_GPU


def _blocks(n_rows: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """Yield (rows, n_kept): row numbers of each block, the last row repeated where the block is too small."""
    for start in range(0, n_rows, size):
        stop = min(start + size, n_rows)
        n_kept = stop - start
        rows = torch.arange(start, start + max(n_kept, _SMALLEST_BLOCK), device=device)
        yield rows.clamp(max=stop - 1), n_kept


def in_blocks(function: Callable[..., Tensor], size: int, *rows: Tensor) -> Tensor:
    """Apply a function of rows to any number of them, in bounded memory and without a graph.

    Parameters
    ----------
    function : callable
        Takes blocks of `rows` and returns a tensor with a row for each.
    size : int
        Rows in a block, see `block_size`.
    *rows : Tensor
        At least one row each, as many in all of them.
    """
    parts = []
    with torch.no_grad():
        for block, n_kept in _blocks(len(rows[0]), size, rows[0].device):
            parts.append(function(*(tensor[block] for tensor in rows))[:n_kept])
    return torch.cat(parts)


def canonical_images(model: AVAE, images: Tensor, alpha: Tensor) -> Tensor:
    """Return images of shape (n, n_channels, height, width) without their poses, of shape (n, n_params).

    Images at the identity keep their pixels, bit by bit.
    """
    canonical = in_blocks(
        lambda some, pose: model.canonical(some, model.matrix(pose, some)), block_size(images), images, alpha
    )
    return torch.where(alpha.any(dim=1)[:, None, None, None], canonical, images)


def screen(
    model: AVAE, images: Tensor, restarts: Tensor, wanted: Tensor | None = None, ink: Moments | None = None
) -> Tensor:
    """Return ELBO plus log prior of every image at each of its restarts, of shape (n, n_restarts).

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    restarts : Tensor of shape (n, n_restarts, n_params)
    wanted : Tensor of bool of shape (n, n_restarts) or None, default=None
        Which to evaluate, None is all; the others get minus infinity.
    ink : Moments or None, default=None
        See `AVAE.ink`; None finds it anew.
    """
    n, n_restarts, n_params = restarts.shape
    poses = restarts.reshape(-1, n_params)
    wanted = restarts.new_ones(n, n_restarts, dtype=torch.bool) if wanted is None else wanted
    pairs = wanted.flatten().nonzero()[:, 0]
    scores = images.new_full((n * n_restarts,), -math.inf)
    if len(pairs):
        loss_of = loss_alone(model, images, ink)
        scores[pairs] = -loss_of(pairs // n_restarts, poses[pairs])
    return scores.view(n, n_restarts)


class Restarts(NamedTuple):
    """Where the search for a pose starts.

    Attributes
    ----------
    alpha : Tensor of shape (n, n_restarts, n_params)
        Starting poses of each image, the identity first.
    first : Tensor of bool of shape (n, n_restarts) or None
        Which to screen; the others follow for images whose best score so far is below `floor`. None screens all.
    floor : float
        In nats.
    """

    alpha: Tensor
    first: Tensor | None = None
    floor: float = -math.inf

    def with_one_more(self, alpha: Tensor) -> "Restarts":
        """Return the restarts and one more of each image, of shape (n, n_params), which is screened at once."""
        first = self.first if self.first is None else torch.cat([self.first, self.first[:, :1] | True], dim=1)
        return Restarts(torch.cat([self.alpha, alpha[:, None]], dim=1), first, self.floor)

    def without_identity(self) -> "Restarts":
        """Return all but the first restart of each image."""
        return Restarts(self.alpha[:, 1:], None if self.first is None else self.first[:, 1:], self.floor)


def screen_in_turn(model: AVAE, images: Tensor, restarts: Restarts, ink: Moments | None = None) -> Tensor:
    """Return ELBO plus log prior at the restarts that are tried, minus infinity at the others.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    restarts : Restarts
    ink : Moments or None, default=None
        See `AVAE.ink`; None finds it anew.

    Returns
    -------
    scores : Tensor of shape (n, n_restarts)
    """
    first = restarts.first
    if first is None:
        return screen(model, images, restarts.alpha, ink=ink)
    ink = ink or model.ink(images)
    scores = screen(model, images, restarts.alpha, first, ink)
    # Not "<": where the ELBO is no number everything is tried.
    unsure = ~(scores.amax(dim=1) >= restarts.floor)
    return torch.where(first, scores, screen(model, images, restarts.alpha, ~first & unsure[:, None], ink))


def distinct_best(scores: Tensor, matrices: Tensor, k: int) -> Tensor:
    """Pick the `k` best restarts of each image that do not lead to one another's optimum.

    The best one is taken, its neighbours step back behind all others, and so on.

    Parameters
    ----------
    scores : Tensor of shape (n, n_restarts)
    matrices : Tensor of shape (n, n_restarts, 2, 3)
    k : int

    Returns
    -------
    chosen : Tensor of shape (n, min(k, n_restarts))
    """
    n, n_restarts = scores.shape
    image = torch.arange(n, device=scores.device)
    # Ranks are pushed back, not scores: exact whatever the scores are, and nothing of one image reaches another.
    best_first = scores.nan_to_num(nan=-math.inf).argsort(dim=1, descending=True, stable=True)
    rank = best_first.argsort(dim=1)
    chosen = []
    for _ in range(min(k, n_restarts)):
        best = rank.argmin(dim=1)
        chosen.append(best)
        near = same_basin(matrices, matrices[image, best][:, None])
        rank = rank + n_restarts * near
        rank.scatter_(1, best[:, None], n_restarts * (k + 2))
    return torch.stack(chosen, dim=1)


def same_basin(matrices: Tensor, others: Tensor) -> Tensor:
    """Tell which transforms, of shape (..., 2, 3), are so near to one another that they share an optimum."""
    return (matrices - others).flatten(-2).norm(dim=-1) < _SAME_BASIN


def step_units(model: AVAE, like: Tensor) -> Tensor:
    """Return a restart's typical distance from its optimum per parameter, of shape (n_params,); 0 if frozen."""
    names = parameters_of(model.family)
    return like.new_tensor([0.0 if s == 0 else _STEP[name] for name, s in zip(names, model.scale, strict=True)])


def _loss(model: AVAE, images: Tensor, ink: Moments | None = None) -> Value:
    """Return the function that gives what refinement minimises, -(ELBO + log prior), of given rows at given poses."""
    ink = ink or model.ink(images)

    def loss(row: Tensor, alpha: Tensor) -> Tensor:
        some = images[row]
        return -model.elbo(some, alpha) - log_prior_of(model, some, alpha, ink and ink.of(row))

    return loss


def loss_alone(model: AVAE, images: Tensor, ink: Moments | None = None) -> Value:
    """Return the function that gives the losses of given rows at given poses, block by block."""
    size, loss = block_size(images, model.vae), _loss(model, images, ink)
    return lambda index, alpha: in_blocks(loss, size, index, alpha)


def log_prior_of(model: AVAE, images: Tensor, alpha: Tensor, ink: Moments | None) -> Tensor:
    """Return the log prior of the poses of images, of shape (n,): of their parameters, and of what they leave."""
    log_prior = model.log_prior(alpha)
    if model.density is None or ink is None:
        return log_prior
    features = canonical_features(ink, model.matrix(alpha, images), images.shape[3] / images.shape[2])
    return log_prior + model.density(features).to(log_prior)  # type: ignore[no-any-return]


def loss_and_gradient(model: AVAE, images: Tensor, ink: Moments | None = None) -> ValueAndGradient:
    """Return the function that gives the losses of given rows at given poses, and their gradients."""
    loss_of = _loss(model, images, ink)

    def evaluate(index: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for rows, n_kept in _blocks(len(index), block_size(images, model.vae), images.device):
            with torch.enable_grad():
                pose = alpha[rows].detach().requires_grad_(True)
                loss = loss_of(index[rows], pose)
                (gradient,) = torch.autograd.grad(loss.sum(), pose)
            losses.append(loss.detach()[:n_kept])
            gradients.append(gradient[:n_kept])
        return torch.cat(losses), torch.cat(gradients)

    return evaluate


def descend(
    model: AVAE,
    images: Tensor,
    alpha: Tensor,
    loss: Tensor,
    *,
    owner: Tensor,
    max_iter: int,
    tol: float,
    race: Race | None = None,
    bracket: float = BRACKET,
    ink: Moments | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Refine poses by whichever descent is cheaper: without gradients where one parameter alone is free.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    alpha : Tensor of shape (m, n_params)
        Starting poses.
    loss : Tensor of shape (m,)
        -(ELBO + log prior) at these; infinite where it was not evaluated.
    owner : Tensor of shape (m,)
        The image of each.
    max_iter, tol, race, bracket
        See `descent.refine` and `descent.refine_line`.
    ink : Moments or None, default=None
        See `AVAE.ink`; None finds it anew.

    Returns
    -------
    alpha, loss, n_iter, converged : see `descent.refine`
        Where nothing is free all have converged.
    """
    unit = step_units(model, images)
    n_free = int(unit.count_nonzero())
    if n_free > 1:
        evaluate = loss_and_gradient(model, images, ink)
        return refine(
            lambda row, pose: evaluate(owner[row], pose),
            alpha,
            unit,
            max_iter=max_iter,
            tol=tol,
            metric=model.metric,
            race=race,
        )
    value = loss_alone(model, images, ink)
    unknown = (~loss.isfinite()).nonzero()[:, 0]
    if len(unknown):
        loss = loss.index_copy(0, unknown, value(owner[unknown], alpha[unknown]))
    alpha, loss, n_iter, converged = refine_line(
        lambda row, pose: value(owner[row], pose),
        alpha,
        loss,
        unit,
        max_iter=max_iter if n_free else 0,
        tol=tol,
        bracket=bracket,
        race=race,
    )
    return alpha, loss, n_iter, converged | (n_free == 0)


def align(
    model: AVAE,
    images: Tensor,
    restarts: Restarts,
    *,
    n_refine: int = 2,
    max_iter: int = 100,
    tol: float = 5e-2,
    min_gain: float = 0.0,
    temperature: float = 1.0,
    movable: Tensor | None = None,
) -> AlignmentResult:
    """Find the pose of each image.

    Parameters
    ----------
    model : AVAE
        Its VAE in evaluation mode; nothing in it is changed.
    images : Tensor of shape (n, n_channels, height, width)
        Pixels in the likelihood's support.
    restarts : Restarts
        See `starts.starting_poses` and `proposer.Starts`.
    n_refine : int, default=2
        How many distinct restarts are refined per image.
    max_iter : int, default=100
        Evaluations per refined start.
    tol : float, default=5e-2
        Promised gain, in nats, below which a start has converged.
    min_gain : float, default=0.0
        An image is moved only if the score (ELBO, log prior, critic) gains more than this over the identity, in nats.
    temperature : float, default=1.0
        Of the hypotheses' weights, in nats.
    movable : Tensor of bool of shape (n,) or None, default=None
        Which images may move at all; None keeps the constant ones where they are.

    Returns
    -------
    result : AlignmentResult of tensors

    Raises
    ------
    ValueError
        If the VAE or the critic is in training mode: batch norm would make an image's ELBO depend on its neighbours.

    References
    ----------
    Bidart & Wong (2019), equation 2 and section 3.2.
    """
    if model.vae.training or (model.critic is not None and model.critic.training):
        raise ValueError("The VAE and the critic must be in evaluation mode while images are aligned: call eval().")
    elbo_identity = in_blocks(model.elbo, block_size(images, model.vae), images).nan_to_num(nan=-math.inf)
    starts = restarts.alpha
    ink = model.ink(images)
    identity_score = elbo_identity + log_prior_of(model, images, torch.zeros_like(starts[:, 0]), ink)
    others = screen_in_turn(model, images, restarts.without_identity(), ink)
    scores = torch.cat([identity_score[:, None], others], dim=1)
    n, n_restarts, n_params = starts.shape
    matrices = model.matrix(starts.reshape(-1, n_params), images).view(n, n_restarts, 2, 3)
    n_shown = n_refine if model.critic is None else _SHORTLIST * n_refine
    chosen = distinct_best(scores, matrices, n_shown)
    bonus = torch.zeros_like(scores[:, : chosen.shape[1]])
    if model.critic is not None:
        liked = scores.gather(1, chosen)
        bonus = _critic_scores(model, images, starts, chosen, liked > -math.inf)
        liked = liked + bonus
        again = distinct_best(liked, matrices[torch.arange(n, device=images.device)[:, None], chosen], n_refine)
        chosen, bonus = chosen.gather(1, again), bonus.gather(1, again)
    k = chosen.shape[1]
    margin = max(_HOPELESS, _HOPELESS_TEMPERATURES * temperature)
    found, n_iter, converged = _refined(
        model, images, starts, scores, chosen, bonus.nan_to_num(nan=0.0), ink, margin=margin, max_iter=max_iter, tol=tol
    )
    identity_score = identity_score + in_blocks(model.critic_score, block_size(images, model.critic), images)
    gain = (found.score[:, 0] - identity_score).nan_to_num(nan=0.0)
    movable = ~is_constant(images) if movable is None else movable
    stays = ~(gain > min_gain) | ~movable | (found.alpha[:, 0] == 0).all(dim=1)
    found = found.behind_identity(stays, elbo_identity, identity_score + min_gain)
    again = repeats(model.matrix(found.alpha.flatten(0, 1), images).view(n, k + 1, 2, 3))
    # An image that may not move has one hypothesis, the others repeat it.
    again = again | (~movable[:, None] & (torch.arange(k + 1, device=again.device) > 0))
    found, again = (
        found.taken(again.long().argsort(dim=1, stable=True)).best(k),
        again.sort(dim=1, stable=True).values[:, :k],
    )
    matrix = model.matrix(found.alpha[:, 0], images)
    return AlignmentResult(
        alpha=found.alpha[:, 0],
        matrix=torch.where(stays[:, None, None], identity_matrix(n, matrix), matrix),
        elbo=found.elbo[:, 0],
        elbo_identity=elbo_identity,
        gain=gain,
        n_iter=n_iter,
        converged=converged | stays,
        hypotheses=found.alpha,
        hypothesis_elbo=found.elbo,
        hypothesis_weight=_weights(found.score / temperature, again),
    )


def _critic_scores(model: AVAE, images: Tensor, starts: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
    """Return what the critic says of chosen restarts, of shape (n, n_chosen).

    Of those that are not wanted the best that it says of the image's others: they are in the race, and not yet known.
    """
    said = images.new_full(chosen.shape, -math.inf)
    if bool(wanted.any()):
        owner, which = wanted.nonzero(as_tuple=True)
        poses = starts[owner, chosen[owner, which]]
        size = block_size(images, model.critic)
        said[owner, which] = in_blocks(lambda row, pose: model.critic_score(images[row], pose), size, owner, poses)
    return torch.where(wanted, said, said.amax(dim=1, keepdim=True))


@dataclass(frozen=True)
class _Found:
    """The refined hypotheses of each image: alpha of shape (n, k, n_params), ELBO and score of shape (n, k)."""

    alpha: Tensor
    elbo: Tensor
    score: Tensor

    def taken(self, order: Tensor) -> "_Found":
        """Put each image's hypotheses into an order of shape (n, k)."""
        alpha = self.alpha.gather(1, order[:, :, None].expand_as(self.alpha))
        return _Found(alpha, self.elbo.gather(1, order), self.score.gather(1, order))

    def best(self, k: int) -> "_Found":
        """Keep the first `k` hypotheses."""
        return _Found(self.alpha[:, :k], self.elbo[:, :k], self.score[:, :k])

    def behind_identity(self, stays: Tensor, elbo: Tensor, score: Tensor) -> "_Found":
        """Put the identity, with its ELBO and score, before the hypotheses of some images.

        The other images have their last hypothesis twice instead.
        """

        def shifted(first: Tensor, values: Tensor) -> Tensor:
            mask = stays.view(-1, *[1] * (values.ndim - 1))
            return torch.where(mask, torch.cat([first, values], dim=1), torch.cat([values, values[:, -1:]], dim=1))

        return _Found(
            shifted(torch.zeros_like(self.alpha[:, :1]), self.alpha),
            shifted(elbo[:, None], self.elbo),
            shifted(score[:, None], self.score),
        )


def _refined(
    model: AVAE,
    images: Tensor,
    starts: Tensor,
    scores: Tensor,
    chosen: Tensor,
    bonus: Tensor,
    ink: Moments | None,
    *,
    margin: float,
    max_iter: int,
    tol: float,
) -> tuple[_Found, Tensor, Tensor]:
    """Refine the chosen restarts of each image, all as one batch.

    One that stays behind the best of its image by `margin`, with `bonus` (n, k) added to their scores, is given up and
    cannot become the best.

    Returns
    -------
    found : _Found
        The hypothesis of the highest score first.
    n_iter : Tensor of shape (n,)
        Evaluations of the hypothesis that took the most.
    converged : Tensor of bool of shape (n,)
        Whether the first hypothesis did.
    """
    n, k = chosen.shape
    owner = torch.arange(n, device=images.device).repeat_interleave(k)
    alpha, loss, n_iter, converged = descend(
        model,
        images,
        starts[owner, chosen.flatten()],
        -scores.gather(1, chosen).flatten(),
        owner=owner,
        max_iter=max_iter,
        tol=tol,
        race=Race(owner, -bonus.flatten(), margin) if k > 1 else None,
        ink=ink,
    )
    size = block_size(images, model.critic)
    critic_score = in_blocks(lambda row, pose: model.critic_score(images[row], pose), size, owner, alpha)
    score = (critic_score - loss).nan_to_num(nan=-math.inf).view(n, k)
    elbo = (-loss - log_prior_of(model, images, alpha, ink and ink.of(owner))).nan_to_num(nan=-math.inf).view(n, k)
    alpha = wrap_angle(alpha, model.family).view(n, k, -1)
    n_iter, converged = n_iter.view(n, k), converged.view(n, k)
    given_up = ~converged & (n_iter < max_iter)
    best = score.masked_fill(given_up, -math.inf).amax(dim=1, keepdim=True)
    score = torch.where(given_up, score.minimum(best), score)
    order = given_up.long().argsort(dim=1, stable=True)
    order = order.gather(1, (-score).gather(1, order).argsort(dim=1, stable=True))
    found = _Found(alpha, elbo, score).taken(order)
    return found, n_iter.amax(dim=1), converged.gather(1, order[:, :1])[:, 0]


def repeats(matrices: Tensor) -> Tensor:
    """Tell which hypotheses repeat an earlier one that repeats none; matrices of shape (n, k, 2, 3)."""
    near = same_basin(matrices[:, :, None], matrices[:, None])
    again = torch.zeros(matrices.shape[:2], dtype=torch.bool, device=matrices.device)
    for later in range(1, matrices.shape[1]):
        again[:, later] = (near[:, later, :later] & ~again[:, :later]).any(dim=1)
    return again


def _weights(score: Tensor, again: Tensor) -> Tensor:
    """Return probabilities of hypotheses from energies of shape (n, k) in units of the temperature, best first."""
    below = (score - score[:, :1]).nan_to_num(nan=-math.inf).masked_fill(again, -math.inf)
    below[:, 0] = 0.0
    return below.softmax(dim=1)


def curvature(model: AVAE, images: Tensor, alpha: Tensor) -> Tensor:
    """Return the Hessians of -(ELBO + log prior) at poses, of shape (n, n_free, n_free), in units of `step_units`.

    Central differences of the gradient, over steps in which the kinks of the interpolation average out.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    alpha : Tensor of shape (n, n_params)

    Returns
    -------
    hessian : Tensor of shape (n, n_free, n_free), float64
        Over the parameters that are not frozen.
    """
    unit = step_units(model, alpha)
    free = unit.nonzero()[:, 0].tolist()
    evaluate = loss_and_gradient(model, images)
    rows = torch.arange(len(images), device=images.device)
    columns = []
    for i in free:
        step = torch.zeros_like(alpha[:1])
        step[0, i] = unit[i] * _CURVATURE_STEP
        change = evaluate(rows, alpha + step)[1] - evaluate(rows, alpha - step)[1]
        columns.append((change[:, free] * unit[free] / (2 * _CURVATURE_STEP)).nan_to_num())
    hessian = torch.stack(columns, dim=2).double()
    return (hessian + hessian.transpose(1, 2)) / 2


def typical_metric(model: AVAE, images: Tensor) -> Tensor:
    """Return the inverse Hessian that refinement begins with, of shape (n_params, n_params): that of canonical images.

    The geometric mean (of matrices: the mean of logarithms) of the images' own at the identity, in which those of
    strong and of weak curvature have equal say; 0 for frozen parameters.
    """
    alpha = images.new_zeros(len(images), len(parameters_of(model.family)))
    free = step_units(model, alpha).nonzero()[:, 0]
    metric = images.new_zeros(alpha.shape[1], alpha.shape[1])
    if len(free):
        eigenvalues, vectors = torch.linalg.eigh(curvature(model, images, alpha))
        logs = eigenvalues.clamp(min=_FLATTEST).log()
        mean = (vectors @ (logs[:, :, None] * vectors.transpose(1, 2))).mean(dim=0)
        metric[free[:, None], free] = torch.linalg.matrix_exp(-mean).to(metric)
    return metric


def pose_deviation(model: AVAE, images: Tensor, alpha: Tensor) -> Tensor:
    """Return standard deviations of poses, from the curvature of ELBO plus log prior at the optimum.

    The covariance is the inverse Hessian (Laplace's approximation), see `curvature`. Where the ELBO is flat the
    deviation is that of the prior; where the prior is flat too, that of the uniform distribution on the circle for an
    angle, else 1.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    alpha : Tensor of shape (n, n_params)

    Returns
    -------
    deviation : Tensor of shape (n, n_params)
        In units of alpha; 0 for frozen parameters.
    """
    names = parameters_of(model.family)
    unit = step_units(model, alpha).tolist()
    free = [i for i, u in enumerate(unit) if u]
    deviation = torch.zeros_like(alpha)
    if not free:
        return deviation
    steps = alpha.new_tensor(unit)[free]
    # On the CPU: a GPU's solver takes gigabytes for as many small matrices.
    eigenvalues, vectors = torch.linalg.eigh(curvature(model, images, alpha).cpu())
    widest = steps.new_tensor([min(model.scale[i], _WIDEST.get(names[i], 1.0)) for i in free])
    # No direction is wider than the widest parameter, so that a flat one does not swamp the others.
    flattest = float((steps / widest).square().min())
    variance = (vectors.square() / eigenvalues.clamp(min=flattest)[:, None]).sum(dim=2)
    deviation[:, free] = (variance.sqrt().to(alpha) * steps).minimum(widest)
    return deviation
