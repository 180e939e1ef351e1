"""What a classifier behind an aligner learns from: training images, aligned, in the pose they have and in others."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state

from ._validation import of_samples, seed_from
from .estimator import AVAEEstimator

# How answers are put together is learned from this many images or more, if there are; fewer than the other say nothing.
_ENOUGH_JUDGED, _FEWEST = 1_000, 50
_FEWEST_FOLDS = 5

_ALL = slice(None)

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


class Lessons(NamedTuple):
    """Aligned training images, with those of other poses that a classifier is judged by.

    Attributes
    ----------
    images : ndarray of shape (1 + n_copies, n_samples, n_features)
        Canonical: as they are first, then the copies.
    folds : list of tuple of ndarray
        Indices of the images that are learned from, and of those that are judged.
    hypotheses : ndarray of shape (n_judged, n_hypotheses, n_features)
        Canonical images of a copy of the judged ones, in the order of the folds.
    weights : ndarray of shape (n_judged, n_hypotheses)
    """

    images: NDArray[Any]
    folds: list[Fold]
    hypotheses: NDArray[Any]
    weights: NDArray[Any]

    def of(self, labels: NDArray[Any], rows: Any = _ALL) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return images and labels of some of the training images, with their copies."""
        images = self.images[:, rows]
        return images.reshape(-1, images.shape[2]), np.tile(labels[rows], len(images))

    def params(self, params: dict[str, Any], rows: Any = _ALL) -> dict[str, Any]:
        """Return `fit`'s parameters for what `of` returns."""
        n = self.images.shape[1]
        return of_samples(params, n, np.tile(np.arange(n)[rows], len(self.images)))

    def judged(self, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the hypotheses of a fold, and their weights."""
        start = sum(len(judged) for _, judged in self.folds[:n])
        part = slice(start, start + len(self.folds[n][1]))
        return self.hypotheses[part], self.weights[part]


def folds_to_judge(labels: NDArray[Any], seed: int) -> list[Fold]:
    """Return as many folds as it takes to judge enough images; none if there are too few.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        A fold has to know all classes.
    seed : int
    """
    n = len(labels)
    if n < _FEWEST:
        return []
    folds: list[Fold] = []
    n_classes, n_judged = len(np.unique(labels)), 0
    for known, judged in KFold(max(_FEWEST_FOLDS, n // _ENOUGH_JUDGED), shuffle=True, random_state=seed).split(labels):
        if n_judged < _ENOUGH_JUDGED and len(np.unique(labels[known])) == n_classes:
            folds.append((known, judged))
            n_judged += len(judged)
    return folds if n_judged >= _FEWEST else []


def aligned_lessons(
    aligner: AVAEEstimator, rows: NDArray[Any], n_copies: int, folds: list[Fold], random_state: Any
) -> Lessons:
    """Align training images and copies of them in other poses.

    Parameters
    ----------
    aligner : AVAEEstimator
        Fitted.
    rows : ndarray of shape (n_samples, n_features)
        Images in the canonical pose, checked.
    n_copies : int
    folds : list of tuple of ndarray
        Whose images are judged: by the first copy, which is drawn of them alone if `n_copies` is 0.
    random_state : int or RandomState instance
        Draws the poses, see `AVAEEstimator.perturb`.
    """
    random = check_random_state(seed_from(random_state))
    n_features = rows.shape[1]
    first = aligner._transformed(rows)[:, :n_features]
    images = np.empty((1 + n_copies, *first.shape), dtype=first.dtype)
    images[0] = first
    judged = np.concatenate([judged for _, judged in folds]) if folds else np.arange(0)
    hypotheses, weights = images[:0], np.empty((0, 0))
    if folds and not n_copies:
        hypotheses, weights = aligner._hypotheses(aligner._perturbed(rows[judged], random)[0])
    for copy in range(n_copies):
        posed, rest = aligner._perturbed(rows, random)[0], np.arange(len(rows))
        if folds and copy == 0:
            hypotheses, weights = aligner._hypotheses(posed[judged])
            images[1, judged], rest = hypotheses[:, 0], np.delete(rest, judged)
        if len(rest):
            images[1 + copy, rest] = aligner._transformed(posed[rest])[:, :n_features]
    return Lessons(images, folds, hypotheses, weights)
