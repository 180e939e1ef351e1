"""What a classifier says of the hypotheses for an image, put together into one probability per class.

Alignment gives hypotheses x_h and weights w_h. With the classifier's p(y | x_h) and its evidence e_h for x_h::

    p(y | x) = (1 - floor) sum_h v_h q_h(y) + floor prior(y)
    v_h  proportional to  w_h ** trust * exp(evidence . e_h)
    q_h  proportional to  p(y | x_h) ** sharpness

`sharpness` is one over the temperature of Guo et al. (2017), "On Calibration of Modern Neural Networks".
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from torch import Tensor

# What a classifier's evidence for an image is, in the order of its columns.
EVIDENCE = ("energy", "top probability")

# Parameters before they are learned: logarithms of trust and sharpness, log-odds of the floor; and how far from there
# (for evidence from 0) they are expected, in standard deviations. Few images leave them where they were.
_START, _SPREAD, _EVIDENCE_SPREAD = (0.0, 0.0, -4.0), 1.0, 0.5


class Readings(NamedTuple):
    """What a classifier says of k hypotheses for each of n images.

    Attributes
    ----------
    weights : ndarray of shape (n, k)
        Of alignment; 0 where a hypothesis repeats another.
    log_probabilities : ndarray of shape (n, k, n_classes)
    evidence : ndarray of shape (n, k, 2)
        How much an image looks like those that the classifier knows, see `EVIDENCE`: the logarithm of the summed
        exponentials of the decision values (0 if it has none), and the logarithm of the highest probability.
    """

    weights: NDArray[Any]
    log_probabilities: NDArray[Any]
    evidence: NDArray[Any]

    def only(self, rows: Any) -> "Readings":
        """Return those of some images."""
        return Readings(*(array[rows] for array in self))


@dataclass(frozen=True)
class HypothesisMixture:
    """How the answers to the hypotheses for an image become one; as it is by default, their average.

    Attributes
    ----------
    trust : float, default=1
        Power of the weights that alignment gives to hypotheses; less than 1 where they say less than they claim.
    sharpness : float, default=1
        Power of the classifier's probabilities: less than 1 where it is too sure.
    floor : float, default=0
        Share of what says nothing: the classes' frequencies.
    evidence : tuple of float, default=(0, 0)
        Weights of the classifier's own evidence for a hypothesis, see `EVIDENCE`.
    n_judged : int, default=0
        From how many images it was learned.
    prior : tuple of float
        Frequencies of the classes.
    """

    trust: float = 1.0
    sharpness: float = 1.0
    floor: float = 0.0
    evidence: tuple[float, ...] = (0.0, 0.0)
    n_judged: int = 0
    prior: tuple[float, ...] = field(default=(), repr=False)

    def probabilities(self, readings: Readings) -> NDArray[np.float64]:
        """Return the probabilities of the classes.

        Parameters
        ----------
        readings : Readings
            What the classifier says of each hypothesis.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes)
        """
        mixed = _mixed(_tensors(readings), self.trust, self.sharpness, torch.tensor(self.evidence, dtype=torch.float64))
        if not self.floor:
            return mixed.exp().numpy()
        return ((1 - self.floor) * mixed.exp() + self.floor * torch.tensor(self.prior, dtype=torch.float64)).numpy()


def learned_mixture(readings: Readings, labels: NDArray[np.intp], prior: NDArray[Any]) -> HypothesisMixture:
    """Learn how answers become one from images whose classes are known, but not to the classifier.

    Plain averages stay unless held-out images speak for more, and evidence is left out unless they do again: by more
    than a standard error of the mean log-probability of the right class.

    Parameters
    ----------
    readings : Readings
    labels : ndarray of int of shape (n,)
        Indices of the classes.
    prior : ndarray of shape (n_classes,)
        Frequencies of the classes.
    """
    best, best_loss = None, _losses(HypothesisMixture(), readings, labels)
    for with_evidence in (False, True):
        loss = np.empty(len(labels))
        for held_out in (slice(0, None, 2), slice(1, None, 2)):
            known = np.delete(np.arange(len(labels)), np.arange(len(labels))[held_out])
            mixture = _fitted(readings.only(known), labels[known], prior, with_evidence)
            loss[held_out] = _losses(mixture, readings.only(held_out), labels[held_out])
        gain = best_loss - loss
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best, best_loss = with_evidence, loss
    if best is None:
        return HypothesisMixture(n_judged=len(labels))
    return _fitted(readings, labels, prior, best)


def _losses(mixture: HypothesisMixture, readings: Readings, labels: NDArray[np.intp]) -> NDArray[Any]:
    """Return minus the log-probability of the right classes; what is impossible counts as one in a thousand."""
    right = mixture.probabilities(readings)[np.arange(len(labels)), labels]
    return -np.log(np.maximum(right, 1e-3))  # type: ignore[no-any-return]


def _fitted(
    readings: Readings, labels: NDArray[np.intp], prior: NDArray[Any], with_evidence: bool
) -> HypothesisMixture:
    """Fit all parameters at once, by maximal log-probability of the right classes."""
    tensors, n = _tensors(readings), len(labels)
    counts = readings.weights > 0
    units = np.maximum(readings.evidence[counts].std(axis=0), 1e-9)
    per_unit, log_prior = torch.from_numpy(1 / units), torch.from_numpy(prior).log()
    n_evidence = len(units) if with_evidence else 0
    start = np.array([*_START, *[0.0] * n_evidence])
    spread = torch.tensor([_SPREAD] * len(_START) + [_EVIDENCE_SPREAD] * n_evidence, dtype=torch.float64)
    rows = torch.arange(n), torch.from_numpy(labels)

    def loss_and_gradient(values: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        theta = torch.from_numpy(values).requires_grad_()
        evidence = theta[len(_START) :] * per_unit if with_evidence else torch.zeros_like(per_unit)
        mixed = _mixed(tensors, theta[0].exp(), theta[1].exp(), evidence)
        odds = torch.nn.functional.logsigmoid(-theta[2]), torch.nn.functional.logsigmoid(theta[2])
        log_p = torch.logaddexp(odds[0] + mixed, odds[1] + log_prior)[rows]
        pull = (((theta - torch.from_numpy(start)) / spread) ** 2).sum() / 2
        loss = (pull - log_p.sum()) / n
        loss.backward()  # type: ignore[no-untyped-call]
        assert theta.grad is not None
        return loss.item(), theta.grad.numpy()

    # The aligner has seen these images and is surer of them than of new ones: that is no reason to trust it more.
    bounds = [(None, 0.0)] + [(None, None)] * (len(start) - 1)
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[len(_START) :] / units if with_evidence else np.zeros(len(units))
    return HypothesisMixture(
        trust=float(np.exp(found[0])),
        sharpness=float(np.exp(found[1])),
        floor=float(expit(found[2])),
        evidence=tuple(float(weight) for weight in weights),
        n_judged=n,
        prior=tuple(float(p) for p in prior),
    )


def _tensors(readings: Readings) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in readings)


def _mixed(readings: tuple[Tensor, ...], trust: Any, sharpness: Any, per_evidence: Tensor) -> Tensor:
    """Return log-probabilities of the classes without the floor, of shape (n, n_classes)."""
    weights, log_p, evidence = readings
    counts = weights > 0
    score = trust * weights.masked_fill(~counts, 1.0).log() + (evidence * per_evidence).sum(dim=-1)
    share = score.masked_fill(~counts, -torch.inf).log_softmax(dim=1)
    answer = (sharpness * log_p).log_softmax(dim=-1)
    return (share.unsqueeze(-1) + answer).logsumexp(dim=1)


def joined(readings: list[Readings]) -> Readings:
    """Return the readings of all images."""
    return Readings(*(np.concatenate(parts) for parts in zip(*readings, strict=True)))


def read(classifier: Any, images: NDArray[Any], weights: NDArray[Any], *, energy: bool = True) -> Readings:
    """Ask a fitted classifier about all hypotheses that count.

    Parameters
    ----------
    classifier : classifier
        Its probabilities are read, else its decision values, a column per class (of two classes one value is
        enough), else its predictions.
    images : ndarray of shape (n, k, n_features)
    weights : ndarray of shape (n, k)
    energy : bool, default=True
        Whether decision values are asked for where there are probabilities; else the energy is 0.
    """
    n_classes = len(classifier.classes_)
    log_p = np.zeros((*weights.shape, n_classes))
    evidence = np.zeros((*weights.shape, len(EVIDENCE)))
    for k in range(weights.shape[1]):
        counts = weights[:, k] > 0
        if counts.any():
            log_p[counts, k], evidence[counts, k, 0] = _log_probabilities(classifier, images[counts, k], energy)
    evidence[..., 1] = log_p.max(axis=-1)
    return Readings(weights, log_p, evidence)


def _log_probabilities(classifier: Any, images: NDArray[Any], with_energy: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return log-probabilities of the classes, and the energy of the decision values, 0 without."""
    logits, energy, has_probabilities = None, np.zeros(len(images)), hasattr(classifier, "predict_proba")
    if hasattr(classifier, "decision_function") and (with_energy or not has_probabilities):
        logits = _logits(np.asarray(classifier.decision_function(images), dtype=np.float64), len(classifier.classes_))
    if logits is not None:
        energy = logsumexp(logits, axis=1)
    if has_probabilities:
        probabilities = np.asarray(classifier.predict_proba(images), dtype=np.float64)
        return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), energy
    if logits is not None:
        return logits - energy[:, None], energy
    said = np.asarray(classifier.predict(images))[:, None] == classifier.classes_
    return np.where(said, 0.0, np.log(np.finfo(np.float64).tiny)), energy


def _logits(decision: NDArray[Any], n_classes: int) -> NDArray[Any] | None:
    """Return decision values with a column per class; None where they compare pairs of classes."""
    if n_classes == 1:
        return np.zeros((len(decision), 1))
    if decision.ndim == 1:
        return np.stack([-decision / 2, decision / 2], axis=1)
    return decision if decision.shape[1] == n_classes else None
