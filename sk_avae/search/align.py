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
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..model.affine import wrap_angle
from ..model.avae import AVAE, is_constant
from .certainty import hypothesis_weights
from .descent import BRACKET, Race, Refined, refine, refine_line
from .objective import Objective, step_units
from .screening import CandidatePoses, distinct_best, is_duplicate, screen_staged
from .settings import SearchSettings

# So many times the restarts that are refined are shown to critic and proposer first.
_SHORTLIST = 4

# Of an image's hypotheses one that will stay so many nats behind the best, and so many temperatures, is not refined to
# its end: it would hardly weigh.
_DOMINATED = 10.0
_DOMINATED_TEMPERATURES = 4.0


@dataclass(frozen=True)
class Alignment:
    """What alignment found, image by image, as tensors in units of the frame; see `result.AlignmentResult`."""

    alpha: Tensor
    elbo: Tensor
    elbo_identity: Tensor
    gain: Tensor
    n_iter: Tensor
    converged: Tensor
    hypotheses: Tensor
    hypothesis_elbo: Tensor
    hypothesis_weight: Tensor

    def arrays(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def beside(self, others: "Alignment", order: Tensor) -> "Alignment":
        """Return these images and others together, in an order of shape (n,)."""
        more = others.arrays()
        return Alignment(**{name: torch.cat([own, more[name]])[order] for name, own in self.arrays().items()})

    def of_best(self, k: int) -> "Alignment":
        """Keep the first `k` hypotheses, which share the weights of the others."""
        weight = self.hypothesis_weight[:, :k]
        total = self.hypothesis_weight.sum(dim=1, keepdim=True)
        return replace(
            self,
            hypotheses=self.hypotheses[:, :k],
            hypothesis_elbo=self.hypothesis_elbo[:, :k],
            hypothesis_weight=weight * (total / weight.sum(dim=1, keepdim=True)),
        )


@dataclass(frozen=True)
class RefinedHypotheses:
    """The refined hypotheses of each image: alpha of shape (n, k, n_params), ELBO and score of shape (n, k)."""

    alpha: Tensor
    elbo: Tensor
    score: Tensor

    def taken(self, order: Tensor) -> "RefinedHypotheses":
        """Put each image's hypotheses into an order of shape (n, k)."""
        alpha = self.alpha.gather(1, order[:, :, None].expand_as(self.alpha))
        return RefinedHypotheses(alpha, self.elbo.gather(1, order), self.score.gather(1, order))

    def best(self, k: int) -> "RefinedHypotheses":
        """Keep the first `k` hypotheses."""
        return RefinedHypotheses(self.alpha[:, :k], self.elbo[:, :k], self.score[:, :k])

    def behind_identity(self, stays: Tensor, elbo: Tensor, score: Tensor) -> "RefinedHypotheses":
        """Put the identity, with its ELBO and score, before the hypotheses of some images.

        The other images have their last hypothesis twice instead.
        """

        def shifted(first: Tensor, values: Tensor) -> Tensor:
            mask = stays.view(-1, *[1] * (values.ndim - 1))
            return torch.where(mask, torch.cat([first, values], dim=1), torch.cat([values, values[:, -1:]], dim=1))

        return RefinedHypotheses(
            shifted(torch.zeros_like(self.alpha[:, :1]), self.alpha),
            shifted(elbo[:, None], self.elbo),
            shifted(score[:, None], self.score),
        )


def align(
    objective: Objective,
    candidates: CandidatePoses,
    settings: SearchSettings | None = None,
    movable: Tensor | None = None,
    doubt: Tensor | None = None,
) -> Alignment:
    """Find the pose of each image.

    Parameters
    ----------
    objective : Objective
        Around the model and the images, their pixels in the likelihood's support.
    candidates : CandidatePoses
        See `starting_poses` and `proposer.PoseInitializer`.
    settings : SearchSettings or None, default=None
        None is ``SearchSettings()``.
    movable : Tensor of bool of shape (n,) or None, default=None
        Which images may move at all; None keeps the constant ones where they are.
    doubt : Tensor of shape (n,) or None, default=None
        How much less each image's score is worth than that of a clean one: its temperature is so much higher, plus one.

    Returns
    -------
    found : Alignment

    Raises
    ------
    ValueError
        If the VAE or the critic is in training mode: batch norm would make an image's ELBO depend on its neighbours.

    References
    ----------
    Bidart & Wong (2019), equation 2 and section 3.2.
    """
    model, images = objective.model, objective.images
    settings = settings or SearchSettings()
    _check_evaluation_mode(model)
    movable = ~is_constant(images) if movable is None else movable
    elbo_identity = objective.elbo_identity().nan_to_num(nan=-math.inf)
    rows = torch.arange(len(images), device=images.device)
    identity_score = elbo_identity + objective.log_prior(rows, torch.zeros_like(candidates.alpha[:, 0]))
    others = screen_staged(objective, candidates.without_identity())
    scores = torch.cat([identity_score[:, None], others], dim=1)
    chosen, bonus = _shortlisted(objective, candidates.alpha, scores, settings.n_refine)
    found, n_iter, converged = _refined(objective, candidates, scores, chosen, bonus, settings)

    identity_score = identity_score + objective.opinion_of_identity()
    gain = (found.score[:, 0] - identity_score).nan_to_num(nan=0.0)
    stays = ~(gain > settings.min_gain) | ~movable | (found.alpha[:, 0] == 0).all(dim=1)
    found = found.behind_identity(stays, elbo_identity, identity_score + settings.min_gain)
    found, duplicate = _distinct(model, images, found, movable, chosen.shape[1])
    temperature = settings.temperature if doubt is None else settings.temperature * (1 + doubt)[:, None]
    return Alignment(
        alpha=found.alpha[:, 0],
        elbo=found.elbo[:, 0],
        elbo_identity=elbo_identity,
        gain=gain,
        n_iter=n_iter,
        converged=converged | stays,
        hypotheses=found.alpha,
        hypothesis_elbo=found.elbo,
        hypothesis_weight=hypothesis_weights(found.score / temperature, duplicate, settings.none_right),
    )


def with_own_elbo(
    found: Alignment, model: AVAE, images: Tensor, rows: Tensor, observed: Tensor | None = None
) -> Alignment:
    """Return what was found by way of repaired images, with the ELBOs that some of them have as they came.

    Parameters
    ----------
    found : Alignment
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
        As they came.
    rows : Tensor of shape (m,)
        Those that were repaired.
    observed : Tensor of bool of shape (n, n_channels, height, width) or None, default=None
        See `Objective`.
    """
    known = None if observed is None else observed[rows]
    objective, poses = Objective(model, images[rows], known), found.hypotheses[rows]
    owner = torch.arange(len(rows), device=rows.device).repeat_interleave(poses.shape[1])
    flat = poses.flatten(0, 1)
    lowest = torch.finfo(images.dtype).min  # what overflows is as unlikely as can be said
    identity = objective.elbo_identity().nan_to_num(nan=lowest, neginf=lowest)
    elbo = (-objective.loss(owner, flat) - objective.log_prior(owner, flat)).view(poses.shape[:2])
    elbo = torch.where((poses == 0).all(dim=2), identity[:, None], elbo.nan_to_num(nan=lowest, neginf=lowest))
    return replace(
        found,
        elbo=found.elbo.index_copy(0, rows, elbo[:, 0]),
        elbo_identity=found.elbo_identity.index_copy(0, rows, identity),
        hypothesis_elbo=found.hypothesis_elbo.index_copy(0, rows, elbo),
    )


def _check_evaluation_mode(model: AVAE) -> None:
    if model.vae.training or (model.critic is not None and model.critic.training):
        raise ValueError("The VAE and the critic must be in evaluation mode while images are aligned: call eval().")


def _shortlisted(objective: Objective, starts: Tensor, scores: Tensor, n_refine: int) -> tuple[Tensor, Tensor]:
    """Choose which restarts to refine, critic and proposer having a say.

    Returns
    -------
    chosen : Tensor of shape (n, k)
    bonus : Tensor of shape (n, k)
        What they say of each, in nats; 0 without one.
    """
    model, images = objective.model, objective.images
    n, n_restarts, n_params = starts.shape
    matrices = model.matrix(starts.reshape(-1, n_params), images).view(n, n_restarts, 2, 3)
    if model.critic is None and objective.posterior is None:
        chosen = distinct_best(scores, matrices, n_refine)
        return chosen, torch.zeros_like(scores[:, : chosen.shape[1]])
    chosen = distinct_best(scores, matrices, _SHORTLIST * n_refine)
    liked = scores.gather(1, chosen)
    bonus = _opinions(objective, starts, chosen, liked > -math.inf)
    rows = torch.arange(n, device=images.device)[:, None]
    again = distinct_best(liked + bonus, matrices[rows, chosen], n_refine)
    return chosen.gather(1, again), bonus.gather(1, again).nan_to_num(nan=0.0)


def _opinions(objective: Objective, starts: Tensor, chosen: Tensor, wanted: Tensor) -> Tensor:
    """Return what critic and proposer say of chosen restarts, of shape (n, n_chosen).

    Of those that are not wanted the best that they say of the image's others: they are in the race, and not yet known.
    """
    said = objective.images.new_full(chosen.shape, -math.inf)
    if bool(wanted.any()):
        owner, which = wanted.nonzero(as_tuple=True)
        said[owner, which] = objective.opinion(owner, starts[owner, chosen[owner, which]])
    return torch.where(wanted, said, said.amax(dim=1, keepdim=True))


def _refined(
    objective: Objective,
    candidates: CandidatePoses,
    scores: Tensor,
    chosen: Tensor,
    bonus: Tensor,
    settings: SearchSettings,
) -> tuple[RefinedHypotheses, Tensor, Tensor]:
    """Refine the chosen restarts of each image, all as one batch.

    One that stays behind the best of its image by a margin, with `bonus` (n, k) added to their scores, is given up and
    cannot become the best.

    Returns
    -------
    found : RefinedHypotheses
        The hypothesis of the highest score first.
    n_iter : Tensor of shape (n,)
        Evaluations of the hypothesis that took the most.
    converged : Tensor of bool of shape (n,)
        Whether the first hypothesis did.
    """
    n, k = chosen.shape
    owner = torch.arange(n, device=chosen.device).repeat_interleave(k)
    margin = max(_DOMINATED, _DOMINATED_TEMPERATURES * settings.temperature)
    alpha, loss, n_iter, converged = refine_poses(
        objective,
        candidates.alpha[owner, chosen.flatten()],
        -scores.gather(1, chosen).flatten(),
        settings,
        owner=owner,
        race=Race(owner, -bonus.flatten(), margin) if k > 1 else None,
        metric=candidates.metric,
    )
    score = (objective.opinion(owner, alpha) - loss).nan_to_num(nan=-math.inf).view(n, k)
    elbo = (-loss - objective.log_prior(owner, alpha)).nan_to_num(nan=-math.inf).view(n, k)
    alpha = wrap_angle(alpha, objective.model.family).view(n, k, -1)
    n_iter, converged = n_iter.view(n, k), converged.view(n, k)
    given_up = ~converged & (n_iter < settings.max_iter)
    best = score.masked_fill(given_up, -math.inf).amax(dim=1, keepdim=True)
    score = torch.where(given_up, score.minimum(best), score)
    order = given_up.long().argsort(dim=1, stable=True)
    order = order.gather(1, (-score).gather(1, order).argsort(dim=1, stable=True))
    found = RefinedHypotheses(alpha, elbo, score).taken(order)
    return found, n_iter.amax(dim=1), converged.gather(1, order[:, :1])[:, 0]


def refine_poses(
    objective: Objective,
    alpha: Tensor,
    loss: Tensor,
    settings: SearchSettings,
    *,
    owner: Tensor,
    race: Race | None = None,
    metric: Tensor | None = None,
    bracket: float = BRACKET,
) -> Refined:
    """Refine poses by whichever descent is cheaper: without gradients where one parameter alone is free.

    Parameters
    ----------
    objective : Objective
    alpha : Tensor of shape (m, n_params)
        Starting poses.
    loss : Tensor of shape (m,)
        -(ELBO + log prior) at these; infinite where it was not evaluated.
    settings : SearchSettings
        Of which `max_iter` and `tol` are read.
    owner : Tensor of shape (m,)
        The image of each.
    race, metric, bracket
        See `descent.refine` and `descent.refine_line`.

    Returns
    -------
    found : Refined
        Where nothing is free all have converged.
    """
    unit = step_units(objective.model, objective.images)
    n_free = int(unit.count_nonzero())
    max_iter, tol = settings.max_iter, settings.tol
    if n_free > 1:

        def loss_and_gradient(row: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
            return objective.loss_and_gradient(owner[row], pose)

        return refine(loss_and_gradient, alpha, unit, max_iter=max_iter, tol=tol, metric=metric, race=race)

    def loss_of(row: Tensor, pose: Tensor) -> Tensor:
        return objective.loss(owner[row], pose)

    unknown = (~loss.isfinite()).nonzero()[:, 0]
    if len(unknown):
        loss = loss.index_copy(0, unknown, loss_of(unknown, alpha[unknown]))
    max_iter = max_iter if n_free else 0
    found = refine_line(loss_of, alpha, loss, unit, max_iter=max_iter, tol=tol, bracket=bracket, race=race)
    return found._replace(converged=found.converged | (n_free == 0))


def _distinct(
    model: AVAE, images: Tensor, found: RefinedHypotheses, movable: Tensor, k: int
) -> tuple[RefinedHypotheses, Tensor]:
    """Put the hypotheses that repeat an earlier one last, keep `k`, and tell which of these are repetitions."""
    n, n_found, n_params = found.alpha.shape
    matrices = model.matrix(found.alpha.reshape(-1, n_params), images).view(n, n_found, 2, 3)
    duplicate = is_duplicate(matrices)
    # An image that may not move has one hypothesis, the others repeat it.
    duplicate = duplicate | (~movable[:, None] & (torch.arange(n_found, device=duplicate.device) > 0))
    found = found.taken(duplicate.long().argsort(dim=1, stable=True)).best(k)
    return found, duplicate.sort(dim=1, stable=True).values[:, :k]
