"""Calibration: how much log joint density, critic and proposer weigh, and how far poses spread, on held-out images.

References
----------
Guo et al. (2017), "On calibration of modern neural networks" (one temperature).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.affine import wrap_angle
from ..search.certainty import Confidence, log_odds
from .critic_training import choice_loss

_FEWEST_RIGHT = 10
_NINE_TENTHS = 1.645  # standard deviations to either side
_LOG_TEMPERATURES = 0.0, math.log(10_000.0)
_LOG_WEIGHTS = -math.log(1000.0), math.log(1000.0)
_LOG_ODDS_OF_NONE = -7.0, 7.0


class Calibration(NamedTuple):
    """What the parts of a score weigh, and how probable it makes hypotheses.

    Attributes
    ----------
    temperature : float
        In nats, at least 1 (the ELBO taken at its word).
    weights : tuple of float
        Nats that one unit of each opinion is worth.
    """

    temperature: float
    weights: tuple[float, ...]


def calibrate(opinions: Tensor, log_joint: Tensor, right: Tensor) -> Calibration:
    """Fit the temperature of the log joint densities, and the weights of opinions, to right choices.

    Parameters
    ----------
    opinions : Tensor of shape (n, k, m)
        What m others say of the hypotheses; m = 0 fits the temperature alone.
    log_joint : Tensor of shape (n, k)
        In nats; minus infinity where a hypothesis repeats another.
    right : Tensor of bool of shape (n, k)

    Returns
    -------
    calibration : Calibration
        With a temperature of at most 10,000, and weights of at most 1,000 temperatures.
    """
    m = opinions.shape[2]
    some = right.any(dim=1) & ~right.all(dim=1)
    opinions, log_joint, right = opinions[some].double(), log_joint[some].double(), right[some]
    if not len(right):
        return Calibration(1.0, (1.0,) * m)
    log_joint, repeats = log_joint - log_joint.amax(dim=1, keepdim=True), log_joint == -math.inf
    log_joint = log_joint.masked_fill(repeats, 0.0)

    def fitted(logs: Tensor) -> tuple[Tensor, Tensor]:
        # Within bounds: a long step of the line search would overflow, and be nothing but NaN from then on.
        return logs[0].clamp(*_LOG_TEMPERATURES).exp(), logs[1:].clamp(*_LOG_WEIGHTS).exp()

    def loss(logs: Tensor) -> Tensor:
        temperature, weights = fitted(logs)
        total = (opinions @ weights + log_joint / temperature).masked_fill(repeats, -math.inf)
        # The faint pull keeps a choice without mistakes, or without a critic, from running off to infinity.
        return choice_loss(total, right) + 1e-4 * logs.square().sum()

    logs = _lowest(loss, [math.log(10.0), *[0.0] * m])
    temperature, weights = fitted(logs)
    return Calibration(float(temperature), tuple((weights * temperature).tolist()))


def calibrate_weights(score: Tensor, right: Tensor) -> tuple[float, float]:
    """Fit the temperature of whole scores, and how probably none of the hypotheses is right.

    Parameters
    ----------
    score : Tensor of shape (n, k)
        Best first; minus infinity where a hypothesis repeats another.
    right : Tensor of bool of shape (n, k)
        Of an image with none, "none" is right.

    Returns
    -------
    temperature : float
        In nats.
    none_right : float
        See `certainty.hypothesis_weights`.
    """
    score = (score - score[:, :1]).double()
    repeats = score == -math.inf
    score = score.masked_fill(repeats, 0.0)
    target = torch.cat([right, ~right.any(dim=1, keepdim=True)], dim=1)

    def loss(parameters: Tensor) -> Tensor:
        below = (score / parameters[0].clamp(*_LOG_TEMPERATURES).exp()).masked_fill(repeats, -math.inf)
        none = parameters[1].clamp(*_LOG_ODDS_OF_NONE).expand(len(score), 1)
        return choice_loss(torch.cat([below, none], dim=1), target) + 1e-4 * parameters.square().sum()

    temperature, none = _lowest(loss, [math.log(10.0), -2.0])
    lowest, highest = _LOG_TEMPERATURES
    return math.exp(min(max(temperature, lowest), highest)), float(none.clamp(*_LOG_ODDS_OF_NONE))


def _lowest(loss: Callable[[Tensor], Tensor], start: list[float]) -> Tensor:
    """Return the parameters at which a smooth function of few of them is lowest."""
    parameters = torch.tensor(start, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(parameters)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach()


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

    def loss(parameters: Tensor) -> Tensor:
        logits = evidence @ parameters[:2].clamp(min=0) + parameters[2]
        pull = (parameters - at_its_word).square().sum()
        return F.binary_cross_entropy_with_logits(logits, target) + 1e-3 * pull

    # What speaks for a pose never makes it less certain.
    by_chance, by_agreement, offset = _lowest(loss, at_its_word.tolist()).tolist()
    return Confidence(max(by_chance, 0.0), max(by_agreement, 0.0), offset)
