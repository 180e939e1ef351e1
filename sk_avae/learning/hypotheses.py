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
from ..search.align import Alignment, align
from ..search.objective import Objective
from ..search.proposer import PoseInitializer
from ..search.screening import is_duplicate
from ..search.settings import SearchSettings
from .perturbation import perturb

# A hypothesis is right if what it leaves of the true transform is nearer to the identity than this (Frobenius norm of
# matrices; 25 degrees, or a stretch by 1.6 along one axis, leave 0.6).
_RIGHT = 0.6

# A temperature at which no hypothesis is given up: unfinished ones would teach the wrong temperature.
_NONE_GIVEN_UP = 1e9


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
    model: AVAE, images: Tensor, initializer: PoseInitializer, settings: SearchSettings, extra: Tensor | None = None
) -> Iterator[Alignment]:
    """Align images, some at a time.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    initializer : PoseInitializer
    settings : SearchSettings
    extra : Tensor of shape (n, n_params) or None, default=None
        One more candidate of each image.
    """
    for rows in image_slices(images):
        some = images[rows]
        candidates = initializer.candidates(model, some, settings.n_restarts)
        if extra is not None:
            candidates = candidates.with_one_more(extra[rows])
        yield align(Objective(model, some), candidates, settings)


def find_hypotheses(
    model: AVAE,
    images: Tensor,
    initializer: PoseInitializer,
    settings: SearchSettings,
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
    initializer : PoseInitializer
    settings : SearchSettings
        Its temperature has no part: no hypothesis is given up.
    true : Tensor of shape (n, n_params)
        The poses to perturb by.
    offset : Tensor of shape (n, 2, 3) or None, default=None
        How far off centre the images are in them, see `perturbation.random_offsets`; None is not at all.
    show_truth : bool, default=False
        Whether the truth is among the candidates, so that there is nearly always a right hypothesis.

    Returns
    -------
    hypotheses : Hypotheses
    """
    truth = model.matrix(true, images)
    perturbed = perturb(model, images, truth if offset is None else compose(truth, offset))
    settings = replace(settings, temperature=_NONE_GIVEN_UP)
    results = align_in_parts(model, perturbed, initializer, settings, true if show_truth else None)
    found = [(part.hypotheses, part.hypothesis_elbo) for part in results]
    alpha, elbo = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    n, k, n_params = alpha.shape
    poses = alpha.view(-1, n_params)
    matrix = model.matrix(poses, images)
    owner = torch.arange(n, device=images.device).repeat_interleave(k)
    log_joint = elbo + Objective(model, perturbed).log_prior(owner, poses).view(n, k)
    log_joint = log_joint.masked_fill(is_duplicate(matrix.view(n, k, 2, 3)), -math.inf)
    right = is_right(matrix, truth.repeat_interleave(k, dim=0)).view(n, k)
    return Hypotheses(perturbed, alpha, log_joint, right & log_joint.isfinite())
