r"""The critic: a small network that tells canonical images from images in a wrong pose.

The ELBO alone is often *higher* at a wrong pose: a stretched 4 makes a fine 9. The critic is trained on just these
mistakes. Training images are perturbed and aligned; of the hypotheses :math:`h` that alignment finds for an image it
has to pick one that is right,

.. math:: p(h) \propto \exp( w \cdot \text{critic}(A_h x) + \log p(x, h) / T ),

where the log joint density is ELBO plus log prior, and T is high, so that it learns what that density does not know.
T and the weight w are fitted afterwards on hypotheses for images that the critic was not trained on, so that the
weights of hypotheses are calibrated.

References
----------
Gutmann & Hyvarinen (2010), "Noise-contrastive estimation" (learning a density by telling data from what is not); Guo et
al. (2017), "On calibration of modern neural networks" (one temperature).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .affine import compose, identity_matrix, invert, wrap_angle
from .alignment import (
    AVAE,
    AlignmentResult,
    align,
    block_size,
    in_blocks,
    log_prior_of,
    pose_deviation,
    repeats,
    times_at_once,
)
from .proposer import Starts
from .starts import random_offsets, random_poses
from .vae import EvenLinear

# A hypothesis is right if what it leaves of the true transform is nearer to the identity than this (Frobenius norm of
# matrices; 25 degrees, or a stretch by 1.6 along one axis, leave 0.6).
_RIGHT = 0.6

_IMAGES_PER_PART = 2048
_PIXELS_PER_PART = 2**22
_CHANNELS = (16, 32, 32)
_HIDDEN = 64
_DROPOUT = 0.2
_FEWEST_RIGHT = 10
# A temperature at which no hypothesis is given up: unfinished ones would teach the wrong temperature.
_NONE_GIVEN_UP = 1e9
_NINE_TENTHS = 1.645  # standard deviations to either side
_LOG_TEMPERATURES = 0.0, math.log(1000.0)
_LOG_WEIGHTS = -math.log(1000.0), math.log(1000.0)


class Critic(nn.Module):
    """Three convolutions, with batch norms, and two linear layers that score an image: higher is more canonical.

    In nats, once it is scaled.

    Parameters
    ----------
    image_shape : tuple of int
        (n_channels, height, width).

    Examples
    --------
    >>> Critic((1, 28, 28)).eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2])
    """

    scale: Tensor

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        first, second, third = _CHANNELS
        self.widest = first * -(-height // 2) * -(-width // 2)
        self.layers = nn.Sequential(
            *_halving(channels, first, 5),
            *_halving(first, second, 3),
            *_halving(second, third, 3),
            nn.Flatten(),
            nn.Dropout(_DROPOUT),
            EvenLinear(third * -(-height // 8) * -(-width // 8), _HIDDEN),
            nn.ReLU(),
            EvenLinear(_HIDDEN, 1),
        )
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Return the score of each image, of shape (n,)."""
        return self.layers(images)[:, 0] * self.scale


def _halving(inputs: int, outputs: int, width: int) -> list[nn.Module]:
    """Return the layers that halve an image's sides."""
    convolution = nn.Conv2d(inputs, outputs, width, stride=2, padding=width // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.Hardswish()]


class Search(NamedTuple):
    """How hard alignment searches, see `alignment.align`."""

    n_restarts: int
    n_refine: int
    max_iter: int
    tol: float


class Hypotheses(NamedTuple):
    """What the critic chooses from, for images whose pose is known.

    Attributes
    ----------
    images : Tensor of shape (n, n_channels, height, width)
        Perturbed images.
    alpha : Tensor of shape (n, k, n_params)
        Poses that alignment found.
    log_joint : Tensor of shape (n, k)
        Their ELBO plus log prior, in nats; minus infinity where a hypothesis repeats another.
    right : Tensor of bool of shape (n, k)
        Which of them are right.
    """

    images: Tensor
    alpha: Tensor
    log_joint: Tensor
    right: Tensor


def is_right(found: Tensor, true: Tensor) -> Tensor:
    """Tell which transforms, of shape (n, 2, 3), agree with the true ones up to what the eye would forgive."""
    left = compose(invert(true), found)
    return (left - identity_matrix(len(left), left)).flatten(1).norm(dim=1) < _RIGHT


def align_in_parts(
    model: AVAE, images: Tensor, starts: Starts, search: Search, extra: Tensor | None = None, temperature: float = 1.0
) -> Iterator[AlignmentResult]:
    """Align images, some at a time.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    starts : Starts
    search : Search
    extra : Tensor of shape (n, n_params) or None, default=None
        One more restart of each image.
    temperature : float, default=1.0
        See `alignment.align`.
    """
    for rows in _parts(images):
        some = images[rows]
        restarts = starts.of(model, some, search.n_restarts)
        if extra is not None:
            restarts = restarts.with_one_more(extra[rows])
        yield align(
            model,
            some,
            restarts,
            n_refine=search.n_refine,
            max_iter=search.max_iter,
            tol=search.tol,
            temperature=temperature,
        )


def _parts(images: Tensor) -> Iterator[slice]:
    """Yield slices of images, fewer at once the larger they are."""
    size = times_at_once(images.device) * max(16, min(_IMAGES_PER_PART, _PIXELS_PER_PART // images[0].numel()))
    return (slice(start, start + size) for start in range(0, len(images), size))


def random_places(model: AVAE, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a pose for each image, of shape (n, n_params), and how far off centre it is, of shape (n, 2, 3)."""
    true = random_poses(len(images), model.family, model.scale, generator).to(images.device)
    return true, random_offsets(images, model.family, model.scale, generator)


def perturb(model: AVAE, images: Tensor, matrix: Tensor) -> Tensor:
    """Give canonical images the poses of given matrices."""
    perturbed = torch.empty_like(images)
    for rows in _parts(images):
        perturbed[rows] = model.canonical(images[rows], invert(matrix[rows]))
    return perturbed


def find_hypotheses(
    model: AVAE,
    images: Tensor,
    starts: Starts,
    search: Search,
    *,
    true: Tensor,
    offset: Tensor | None = None,
    show_truth: bool = False,
) -> Hypotheses:
    """Perturb canonical images by known poses and align them.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    starts : Starts
    search : Search
    true : Tensor of shape (n, n_params)
        The poses to perturb by.
    offset : Tensor of shape (n, 2, 3) or None, default=None
        How far off centre the images are in them, see `starts.random_offsets`; None is not at all.
    show_truth : bool, default=False
        Whether the truth is among the restarts, so that there is nearly always a right hypothesis.

    Returns
    -------
    hypotheses : Hypotheses
    """
    truth = model.matrix(true, images)
    perturbed = perturb(model, images, truth if offset is None else compose(truth, offset))
    extra = true if show_truth else None
    results = align_in_parts(model, perturbed, starts, search, extra, temperature=_NONE_GIVEN_UP)
    found = [(part.hypotheses, part.hypothesis_elbo) for part in results]
    alpha, elbo = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    n, k, n_params = alpha.shape
    matrix = model.matrix(alpha.view(-1, n_params), images)
    ink = model.ink(perturbed)
    owner = torch.arange(n, device=images.device).repeat_interleave(k)
    log_joint = elbo + log_prior_of(model, perturbed, alpha.view(-1, n_params), ink and ink.of(owner)).view(n, k)
    log_joint = log_joint.masked_fill(repeats(matrix.view(n, k, 2, 3)), -math.inf)
    right = is_right(matrix, truth.repeat_interleave(k, dim=0)).view(n, k)
    return Hypotheses(perturbed, alpha, log_joint, right & log_joint.isfinite())


def critic_scores(model: AVAE, critic: nn.Module, hypotheses: Hypotheses) -> Tensor:
    """Return what a critic says of each hypothesis, of shape (n, k)."""
    n, k, n_params = hypotheses.alpha.shape
    images = hypotheses.images.repeat_interleave(k, dim=0)
    matrix = model.matrix(hypotheses.alpha.reshape(-1, n_params), images)
    return critic(model.canonical(images, matrix)).view(n, k)  # type: ignore[no-any-return]


def critic_scores_in_blocks(model: AVAE, critic: nn.Module, hypotheses: Hypotheses) -> Tensor:
    """Return what a critic in evaluation mode says, of shape (n, k), in bounded memory and without a graph."""
    rows = torch.arange(len(hypotheses.images), device=hypotheses.images.device)

    def some(row: Tensor) -> Tensor:
        return critic_scores(model, critic, Hypotheses(*(tensor[row] for tensor in hypotheses)))

    return in_blocks(some, block_size(hypotheses.images, critic), rows)


def choice_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Return the mean negative log-probability of choosing a right hypothesis.

    Parameters
    ----------
    scores : Tensor of shape (n, k)
    right : Tensor of bool of shape (n, k)
        At least one per row.
    """
    log_share = scores.log_softmax(dim=1).masked_fill(~right, -math.inf)
    return -log_share.logsumexp(dim=1).mean()


def calibrate(scores: Tensor, log_joint: Tensor, right: Tensor) -> tuple[float, float]:
    """Fit the temperature of the log joint densities, and the weight of the critic, to right choices.

    Parameters
    ----------
    scores : Tensor of shape (n, k)
        What the critic says; zeros fit the temperature alone.
    log_joint : Tensor of shape (n, k)
        In nats; minus infinity where a hypothesis repeats another.
    right : Tensor of bool of shape (n, k)

    Returns
    -------
    temperature : float
        In nats, between 1 (the ELBO taken at its word) and 1,000.
    weight : float
        Nats that one unit of the critic's score is worth, at most 1,000 temperatures.
    """
    some = right.any(dim=1) & ~right.all(dim=1)
    scores, log_joint, right = scores[some].double(), log_joint[some].double(), right[some]
    if not len(right):
        return 1.0, 1.0
    log_joint, repeats = log_joint - log_joint.amax(dim=1, keepdim=True), log_joint == -math.inf
    log_joint = log_joint.masked_fill(repeats, 0.0)
    logs = torch.tensor([math.log(10.0), 0.0], dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

    def fitted() -> tuple[Tensor, Tensor]:
        # Within bounds: a long step of the line search would overflow, and be nothing but NaN from then on.
        return logs[0].clamp(*_LOG_TEMPERATURES).exp(), logs[1].clamp(*_LOG_WEIGHTS).exp()

    def closure() -> Tensor:
        optimizer.zero_grad()
        temperature, weight = fitted()
        # The faint pull keeps a choice without mistakes, or without a critic, from running off to infinity.
        total = (scores * weight + log_joint / temperature).masked_fill(repeats, -math.inf)
        loss = choice_loss(total, right) + 1e-4 * logs.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    temperature, weight = (value.item() for value in fitted())
    return temperature, weight * temperature


def pose_spread(model: AVAE, hypotheses: Hypotheses, best: Tensor, true: Tensor) -> Tensor:
    """Return how far the training images' own poses spread around the canonical one.

    The error of a pose is that of the curvature and that of the image, which may have been drawn a little askew. The
    spread is the standard deviation of the second for which nine tenths of the true poses lie within 1.645 standard
    deviations of both.

    Parameters
    ----------
    model : AVAE
    hypotheses : Hypotheses
    best : Tensor of shape (n,)
        Which hypothesis was chosen. Images for which it is wrong do not count.
    true : Tensor of shape (n, n_params)

    Returns
    -------
    spread : Tensor of shape (n_params,)
        In units of the frame; 0 if fewer than ten poses are right.
    """
    row = torch.arange(len(best), device=best.device)
    row = row[hypotheses.right[row, best]]
    if len(row) < _FEWEST_RIGHT:
        return true.new_zeros(true.shape[1])
    alpha = hypotheses.alpha[row, best[row]]
    deviation = pose_deviation(model, hypotheses.images[row], alpha)
    error = wrap_angle(alpha - true[row], model.family)
    missing = (error / _NINE_TENTHS).square() - deviation.square()
    return missing.quantile(0.9, dim=0).clamp(min=0).sqrt()
