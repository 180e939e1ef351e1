"""What held-out images tell of a search: what its parts weigh, how certain poses are, the gate, and the report."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..aligner import SearchModels
from ..model.affine import parameters_of, wrap_angle
from ..model.avae import AVAE
from ..model.batches import image_slices
from ..model.critic import Critic
from ..model.module_state import freeze
from ..report import AlignmentReport
from ..search.certainty import NEAR, Confidence, chance_of_right, hypothesis_weights, is_near, pose_deviation
from ..search.objective import Objective
from ..search.proposer import PoseInitializer
from ..search.screening import screen
from ..search.settings import SearchSettings
from .calibration import calibrate, calibrate_confidence, calibrate_weights, pose_spread
from .critic_training import critic_scores_in_batches
from .hypotheses import Hypotheses, align_in_parts, find_hypotheses
from .perturbation import perturb, random_places

# Few images are perturbed several times, until there are so many poses.
_N_POSES = 120

# Share of images that score less at their proposals, and are given the whole table.
_UNSURE = 0.01

# So many of the poses tell the first weights, half of them at most.
_N_FIRST = 200

# Share of upright images that an "auto" gate lets move; the share whose gains tell how the largest are spread, and how
# many these are at least.
_FALSE_ALARMS = 0.01
_LARGEST_GAINS = 0.1
_FEWEST_GAINS = 8


def calibrated(
    model: AVAE,
    held_out: Tensor,
    initializer: PoseInitializer,
    critic: Critic | None,
    search: SearchSettings,
    generator: torch.Generator,
) -> SearchModels:
    """Return search models that are calibrated on held-out images, which the search finds again.

    Parameters
    ----------
    model : AVAE
        With its density, without a critic.
    held_out : Tensor of shape (n, n_channels, height, width)
        Canonical images that neither the VAE nor the networks have seen.
    initializer : PoseInitializer
        With the proposer, if there is to be one.
    critic : Critic or None
        Scaled in place.
    search : SearchSettings
        The one that hypotheses come from.
    generator : torch.Generator
        On the CPU: draws poses.

    Returns
    -------
    models : SearchModels
        The spread of the poses in units of the frame.
    """
    proposer, density = initializer.proposer, model.density
    n_images, upright = len(held_out), held_out
    held_out = held_out.repeat(max(1, math.ceil(_N_POSES / n_images)), 1, 1, 1)
    places = random_places(model, held_out, generator)
    true = places.alpha
    if proposer is not None and search.n_restarts > 1:
        perturbed, _ = perturb(model, held_out, places)
        proposer.floor.copy_(_first_scores(model, perturbed, initializer, search.n_restarts).quantile(_UNSURE))

    def found_by(model: AVAE, initializer: PoseInitializer, some: slice) -> Hypotheses:
        # One hypothesis is no choice to learn from.
        several = replace(search, n_refine=max(2, search.n_refine))
        return find_hypotheses(model, held_out[some], initializer, several, places.of(some))

    if critic is not None or proposer is not None:
        few = found_by(model, initializer, slice(min(_N_FIRST, len(held_out) // 2)))
        model, initializer = _heard(model, initializer, critic, few)
    # Now critic and proposer have their say in the search itself.
    found = found_by(model, initializer, slice(None))
    model, initializer = _heard(model, initializer, critic, found)
    judged = _Judged.of(model, initializer, found)
    right = judged.right & (_angle_errors(judged.alpha, true[:, None], model.family).abs() < NEAR["angle"])
    temperature, none_right = calibrate_weights(judged.score, right)
    weight = hypothesis_weights(judged.score / temperature, judged.score == -math.inf, none_right)
    spread, confidence = _certainty(model, judged, weight, true, initializer)
    gate = _gate(model, upright, initializer, replace(search, temperature=temperature))
    return SearchModels(
        proposer=proposer and freeze(proposer, held_out.device),
        density=density and freeze(density, held_out.device),
        critic=critic and freeze(critic, held_out.device),
        temperature=temperature,
        pose_spread=dict(zip(parameters_of(model.family), spread.tolist(), strict=True)),
        min_gain=gate,
        confidence=confidence,
        proposer_weight=initializer.weight,
        none_right=none_right,
        report=AlignmentReport.of(
            n_images,
            angle_error=_angle_errors(judged.alpha[:, 0], true, model.family).cpu().numpy(),
            right=right[:, 0].cpu().numpy(),
            weight=weight[:, 0].cpu().numpy(),
            gain=found.gain.cpu().numpy(),
        ),
    )


def _angle_errors(alpha: Tensor, true: Tensor, family: str) -> Tensor:
    """Return the errors of the angles of poses, of shape (..., n_params), in radians."""
    return wrap_angle((alpha - true).flatten(0, -2), family).view_as(alpha)[..., 0]


def _heard(
    model: AVAE, initializer: PoseInitializer, critic: Critic | None, found: Hypotheses
) -> tuple[AVAE, PoseInitializer]:
    """Return a model and an initializer in which critic and proposer have the weight that they are worth."""
    opinions = []
    if critic is not None:
        critic.scale.fill_(1.0)
        opinions.append(critic_scores_in_batches(model, critic, found))
    if initializer.proposer is not None:
        opinions.append(_posteriors(model, initializer, found))
    said = torch.stack(opinions, dim=2) if opinions else found.log_joint.new_zeros(*found.log_joint.shape, 0)
    weights = list(calibrate(said, found.log_joint, found.right).weights)
    if critic is not None:
        critic.scale.fill_(weights.pop(0))
        model = replace(model, critic=critic)
    return model, replace(initializer, weight=weights.pop()) if weights else initializer


def _posteriors(model: AVAE, initializer: PoseInitializer, found: Hypotheses) -> Tensor:
    """Return the proposer's log posteriors of hypotheses, of shape (n, k)."""
    n, k, n_params = found.alpha.shape
    said = []
    for rows in image_slices(found.images):
        posterior = initializer.posterior(model, found.images[rows])
        alpha = found.alpha[rows]
        owner = torch.arange(len(alpha), device=alpha.device).repeat_interleave(k)
        said.append(posterior.at(owner, alpha.reshape(-1, n_params)))
    return torch.cat(said).view(n, k)


class _Judged(NamedTuple):
    """Hypotheses of held-out images, best first, by the whole score."""

    images: Tensor
    alpha: Tensor
    score: Tensor
    right: Tensor

    @classmethod
    def of(cls, model: AVAE, initializer: PoseInitializer, found: Hypotheses) -> "_Judged":
        score = found.log_joint
        if model.critic is not None:
            score = score + critic_scores_in_batches(model, model.critic, found)
        if initializer.weight:
            score = score + initializer.weight * _posteriors(model, initializer, found)
        score, order = score.sort(dim=1, descending=True, stable=True)
        alpha = found.alpha.gather(1, order[:, :, None].expand_as(found.alpha))
        return cls(found.images, alpha, score, found.right.gather(1, order))


def _certainty(
    model: AVAE, judged: _Judged, weight: Tensor, true: Tensor, initializer: PoseInitializer
) -> tuple[Tensor, Confidence]:
    """Return the spread of poses, and how probably one is right, from hypotheses and their weights."""
    alpha = judged.alpha
    deviation = pose_deviation(Objective(model, judged.images), alpha[:, 0])
    right = judged.right[:, 0]
    spread = pose_spread(alpha[right, 0], true[right], deviation[right], model.family)
    deviation = torch.where(deviation == 0, deviation, deviation.hypot(spread.to(deviation)))
    return spread, calibrate_confidence(
        chance_of_right(alpha, weight, deviation, model.family),
        initializer.agreement(model, judged.images, alpha[:, 0]),
        is_near(alpha[:, 0], true, model.family),
    )


def _gate(model: AVAE, upright: Tensor, initializer: PoseInitializer, search: SearchSettings) -> float:
    """Return the gain of the score, in nats, that 1 % of upright images exceed.

    The largest tenth of the gains, or eight of them, are taken for the tail of an exponential distribution: few images
    have no hundredth.
    """
    gains = torch.cat([part.gain for part in align_in_parts(model, upright, initializer, search)]).double()
    share = min(1.0, max(_LARGEST_GAINS, _FEWEST_GAINS / len(gains)))
    threshold = gains.quantile(1 - share)
    beyond = (gains[gains >= threshold] - threshold).mean()
    return max(0.0, float(threshold + beyond * math.log(share / _FALSE_ALARMS)))


def _first_scores(model: AVAE, images: Tensor, initializer: PoseInitializer, n_restarts: int) -> Tensor:
    """Return the best score of each image at the restarts that are screened first, of shape (n,)."""
    best = []
    for rows in image_slices(images):
        candidates = initializer.candidates(model, images[rows], n_restarts).without_identity()
        best.append(screen(Objective(model, images[rows]), candidates.alpha, candidates.first).amax(dim=1))
    return torch.cat(best)
