"""Screening: the ELBO at every candidate pose, and the best few that do not lead to the same optimum."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .objective import Objective, SecondOpinion

# Two restarts nearer than this (Frobenius norm of the difference of their matrices; a turn by 25 degrees is
# 0.61) are taken to lead to one optimum.
_SAME_BASIN = 0.55


class CandidatePoses(NamedTuple):
    """Where the search for a pose starts.

    Attributes
    ----------
    alpha : Tensor of shape (n, n_restarts, n_params)
        Starting poses of each image, the identity first.
    first : Tensor of bool of shape (n, n_restarts) or None
        Which to screen; the others follow for images whose best score so far is below `min_score`. None screens all.
    min_score : float
        In nats.
    metric : Tensor of shape (n_params, n_params) or None
        Typical inverse Hessian of the loss in units of `step_units`, which refinement begins with.
    posterior : SecondOpinion or None
        What the proposer says of poses.
    """

    alpha: Tensor
    first: Tensor | None = None
    min_score: float = -math.inf
    metric: Tensor | None = None
    posterior: SecondOpinion | None = None

    def without_identity(self) -> "CandidatePoses":
        """Return all but the first candidate of each image."""
        return self._replace(alpha=self.alpha[:, 1:], first=None if self.first is None else self.first[:, 1:])


def screen(objective: Objective, poses: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Return ELBO plus log prior of every image at each of its poses, of shape (n, n_restarts).

    Parameters
    ----------
    objective : Objective
    poses : Tensor of shape (n, n_restarts, n_params)
    wanted : Tensor of bool of shape (n, n_restarts) or None, default=None
        Which to evaluate, None is all; the others get minus infinity.
    """
    n, n_restarts, n_params = poses.shape
    wanted = poses.new_ones(n, n_restarts, dtype=torch.bool) if wanted is None else wanted
    pairs = wanted.flatten().nonzero()[:, 0]
    scores = objective.images.new_full((n * n_restarts,), -math.inf)
    if len(pairs):
        scores[pairs] = -objective.loss(pairs // n_restarts, poses.reshape(-1, n_params)[pairs])
    return scores.view(n, n_restarts)


def screen_staged(objective: Objective, candidates: CandidatePoses) -> Tensor:
    """Return ELBO plus log prior at the candidates that are tried, minus infinity at the others.

    Parameters
    ----------
    objective : Objective
    candidates : CandidatePoses

    Returns
    -------
    scores : Tensor of shape (n, n_restarts)
    """
    first = candidates.first
    if first is None:
        return screen(objective, candidates.alpha)
    scores = screen(objective, candidates.alpha, first)
    # Not "<": where the ELBO is no number everything is tried.
    unsure = ~(scores.amax(dim=1) >= candidates.min_score)
    return torch.where(first, scores, screen(objective, candidates.alpha, ~first & unsure[:, None]))


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


def is_duplicate(matrices: Tensor) -> Tensor:
    """Tell which hypotheses repeat an earlier one that repeats none; matrices of shape (n, k, 2, 3)."""
    near = same_basin(matrices[:, :, None], matrices[:, None])
    duplicate = torch.zeros(matrices.shape[:2], dtype=torch.bool, device=matrices.device)
    for later in range(1, matrices.shape[1]):
        duplicate[:, later] = (near[:, later, :later] & ~duplicate[:, :later]).any(dim=1)
    return duplicate
