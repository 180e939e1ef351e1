"""Hypotheses: what alignment finds for images whose pose is known, and which of it is right."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.affine import compose, identity_matrix, invert
from ..model.avae import AVAE
from ..model.batches import image_slices
from ..model.moments import Moments
from ..search.align import Alignment, align
from ..search.objective import Objective, step_units
from ..search.proposer import PoseInitializer, Proposer, propose
from ..search.screening import is_duplicate
from ..search.settings import SearchSettings
from .perturbation import Places, perturb

# A hypothesis is right if what it leaves of the true transform is nearer to the identity than this (Frobenius norm of
# matrices; 25 degrees, or a stretch by 1.6 along one axis, leave 0.6).
_RIGHT = 0.6

# A temperature at which no hypothesis is given up: unfinished ones would teach the wrong temperature.
_NONE_GIVEN_UP = 1e9


# Modes of the proposer that the critic learns from, and how far off the truth, in steps, the right one may be.
_N_PROPOSED = 3
_NEAR_TRUTH = 1.0


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
    gain : Tensor of shape (n,)
        What the best of them gains over the image as it came, in nats.
    """

    images: Tensor
    alpha: Tensor
    log_joint: Tensor
    right: Tensor
    gain: Tensor


def is_right(found: Tensor, true: Tensor) -> Tensor:
    """Tell which transforms, of shape (n, 2, 3), agree with the true ones up to what the eye would forgive."""
    left = compose(invert(true), found)
    return (left - identity_matrix(len(left), left)).flatten(1).norm(dim=1) < _RIGHT


def align_in_parts(
    model: AVAE, images: Tensor, initializer: PoseInitializer, settings: SearchSettings
) -> Iterator[Alignment]:
    """Align images, some at a time.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    initializer : PoseInitializer
    settings : SearchSettings
    """
    for rows in image_slices(images):
        some = images[rows]
        candidates = initializer.candidates(model, some, settings.n_restarts)
        yield align(Objective(model, some, posterior=candidates.posterior), candidates, settings)


def find_hypotheses(
    model: AVAE,
    images: Tensor,
    initializer: PoseInitializer,
    settings: SearchSettings,
    places: Places,
) -> Hypotheses:
    """Perturb canonical images by known poses and align them.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    initializer : PoseInitializer
    settings : SearchSettings
        Its temperature has no part: no hypothesis is given up.
    places : Places
        Where the images are put.

    Returns
    -------
    hypotheses : Hypotheses
    """
    perturbed, truth = perturb(model, images, places)
    settings = replace(settings, temperature=_NONE_GIVEN_UP)
    results = align_in_parts(model, perturbed, initializer, settings)
    found = [(part.hypotheses, part.hypothesis_elbo, part.gain) for part in results]
    alpha, elbo, gain = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    n, k, n_params = alpha.shape
    owner = torch.arange(n, device=images.device).repeat_interleave(k)
    log_prior = Objective(model, perturbed).log_prior(owner, alpha.view(-1, n_params)).view(n, k)
    return _judged(model, perturbed, alpha, elbo + log_prior, truth)._replace(gain=gain)


def propose_hypotheses(
    model: AVAE,
    images: Tensor,
    proposer: Proposer,
    typical: Moments | None,
    *,
    places: Places,
    generator: torch.Generator,
) -> Hypotheses:
    """Perturb canonical images by known poses; return what a proposer takes these for, and poses near the truth.

    No search, so that many images cost little; a critic learns from them as much as from what a search finds.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    proposer : Proposer
        In evaluation mode.
    typical : Moments or None
        See `proposer.moment_pose`.
    places : Places
        Where the images are put.
    generator : torch.Generator
        On the CPU: draws how far off the truth the last hypothesis of each image lies.

    Returns
    -------
    hypotheses : Hypotheses
        Their log joint density is 0: it has no say.
    """
    (perturbed, truth), true = perturb(model, images, places), places.alpha
    modes = [propose(proposer, model, perturbed[rows], typical)[0][:, :_N_PROPOSED] for rows in image_slices(images)]
    noise = torch.randn(true.shape, generator=generator, dtype=torch.float32).to(true)
    near_truth = true + _NEAR_TRUTH * step_units(model, images) * noise
    alpha = torch.cat([torch.cat(modes), near_truth[:, None]], dim=1)
    return _judged(model, perturbed, alpha, alpha.new_zeros(alpha.shape[:2]), truth)


def _judged(model: AVAE, images: Tensor, alpha: Tensor, log_joint: Tensor, truth: Tensor) -> Hypotheses:
    """Return hypotheses of images in known poses, less those that repeat others."""
    n, k, n_params = alpha.shape
    matrix = model.matrix(alpha.view(-1, n_params), images)
    log_joint = log_joint.masked_fill(is_duplicate(matrix.view(n, k, 2, 3)), -math.inf)
    right = is_right(matrix, truth.repeat_interleave(k, dim=0)).view(n, k)
    return Hypotheses(images, alpha, log_joint, right & log_joint.isfinite(), alpha.new_zeros(n))
