"""Calibration: how much the log joint density and the critic weigh, and how far poses spread, on held-out images.

References
----------
Guo et al. (2017), "On calibration of modern neural networks" (one temperature).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.affine import wrap_angle
from ..search.certainty import Confidence, log_odds
from .critic_training import choice_loss

_FEWEST_RIGHT = 10
_NINE_TENTHS = 1.645  # standard deviations to either side
_LOG_TEMPERATURES = 0.0, math.log(1000.0)
_LOG_WEIGHTS = -math.log(1000.0), math.log(1000.0)


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


def pose_spread(alpha: Tensor, true: Tensor, deviation: Tensor, family: str) -> Tensor:
    """Return how far the training images' own poses spread around the canonical one.

    The error of a pose is that of the curvature and that of the image, which may have been drawn a little askew. The
    spread is the standard deviation of the second for which nine tenths of the true poses lie within 1.645 standard
    deviations of both.

    Parameters
    ----------
    alpha, true, deviation : Tensor of shape (n, n_params)
        Poses that are right, the true ones and what `certainty.pose_deviation` says of them.
    family : str

    Returns
    -------
    spread : Tensor of shape (n_params,)
        In units of the frame; 0 if fewer than ten poses are right.
    """
    if len(alpha) < _FEWEST_RIGHT:
        return true.new_zeros(true.shape[1])
    error = wrap_angle(alpha - true, family)
    # Of an angle of which nothing is known no spread is missing.
    missing = ((error / _NINE_TENTHS).square() - deviation.square()).nan_to_num(nan=0.0)
    return missing.quantile(0.9, dim=0).clamp(min=0).sqrt()


def calibrate_confidence(chance: Tensor, agreement: Tensor, right: Tensor) -> Confidence:
    """Fit how often a pose is right of which the search and the proposer are so sure.

    Parameters
    ----------
    chance : Tensor of shape (n,)
        See `certainty.chance_of_right`.
    agreement : Tensor of shape (n,)
        See `proposer.agreement`.
    right : Tensor of bool of shape (n,)

    Returns
    -------
    confidence : Confidence
        A logistic regression on the log-odds of both.

    References
    ----------
    Platt (1999), "Probabilistic outputs for support vector machines" (the targets short of 0 and 1, too).
    """
    evidence, n_right = torch.stack([log_odds(chance), log_odds(agreement)], dim=1), float(right.double().sum())
    target = torch.where(right, (n_right + 1) / (n_right + 2), 1 / (len(right) - n_right + 2)).double()
    at_its_word = torch.tensor([1.0, 0.0, 0.0], dtype=torch.double, device=evidence.device)
    parameters = at_its_word.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = evidence @ parameters[:2].clamp(min=0) + parameters[2]
        pull = (parameters - at_its_word).square().sum()
        loss = F.binary_cross_entropy_with_logits(logits, target) + 1e-3 * pull
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    # What speaks for a pose never makes it less certain.
    by_chance, by_agreement, offset = parameters.tolist()
    return Confidence(max(by_chance, 0.0), max(by_agreement, 0.0), offset)
