"""Scores on images in other poses: upright ones say nothing of what a canonicalizer is there for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import get_scorer

from ..datasets import check_ranges, make_perturbed


def perturbed(
    scorer: Any = None,
    *,
    family: str = "rotation",
    ranges: Mapping[str, Any] | None = None,
    image_shape: tuple[int, ...] | None = None,
    random_state: Any = 0,
) -> "PerturbedScorer":
    """Return a scorer that gives images poses at random before it scores, for searches and cross-validation.

    Upright held-out images prefer a search that hardly moves anything. Score on images such as will come.

    Parameters
    ----------
    scorer : str, callable or None, default=None
        One of scikit-learn's names ("accuracy"), or a callable ``scorer(estimator, X, y)``; None is the estimator's own
        `score`.
    family, ranges : object
        What poses are drawn; see `make_perturbed`.
    image_shape : tuple of int or None, default=None
        (height, width) or (height, width, channels) of rows; None asks the estimator, else reads a square.
    random_state : int, RandomState instance or None, default=0
        Draws the poses. An int gives images the same poses at each call, so that settings are compared on the same
        images.

    Returns
    -------
    scorer : PerturbedScorer
        Callable as ``scorer(estimator, X, y=None)``; it can be pickled.

    Raises
    ------
    ValueError, TypeError
        If the scorer, the family or a range is unknown.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import Pipeline
    >>> from sk_avae import AffineCanonicalizer, AVAEEstimator
    >>> pipeline = Pipeline([("canon", AffineCanonicalizer(AVAEEstimator())), ("clf", LogisticRegression())])
    >>> grid = {"canon__estimator__latent_size": [8, 16], "canon__estimator__n_restarts": [4, 16]}
    >>> search = GridSearchCV(pipeline, grid, scoring=perturbed("accuracy", random_state=0))
    """
    if isinstance(scorer, str):
        get_scorer(scorer)
    elif scorer is not None and not callable(scorer):
        raise TypeError(f"scorer must be a name of scikit-learn's, a callable or None, got {scorer!r}.")
    check_ranges(family, ranges)
    return PerturbedScorer(scorer, family, ranges, image_shape, random_state)


@dataclass(frozen=True)
class PerturbedScorer:
    """What `perturbed` returns; its fields are the arguments."""

    scorer: Any
    family: str
    ranges: Mapping[str, Any] | None
    image_shape: tuple[int, ...] | None
    random_state: Any

    def __call__(self, estimator: Any, X: ArrayLike, y: Any = None, **params: Any) -> float:
        """Return the score of an estimator on images X in other poses, higher is better.

        Parameters
        ----------
        estimator : estimator
            Fitted.
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in their canonical pose.
        y : array-like or None, default=None
            Passed on.
        **params
            Passed on, as `sample_weight`.
        """
        image_shape = self.image_shape
        if image_shape is None and len(np.shape(X)) == 2:  # rows, whose shape the aligner knows
            image_shape = image_shape_in(estimator)
        images, _ = make_perturbed(
            X,
            family=self.family,
            ranges=self.ranges,
            image_shape=image_shape,
            random_state=self.random_state,
        )
        scorer = get_scorer(self.scorer) if isinstance(self.scorer, str) else self.scorer
        if scorer is None:
            return float(estimator.score(_like(X, images), y, **params))
        return float(scorer(estimator, _like(X, images), y, **params))


def image_shape_in(estimator: Any) -> tuple[int, ...] | None:
    """Return the first `image_shape_` of an estimator, its steps and what it holds; None if there is none."""
    if hasattr(estimator, "image_shape_"):
        return tuple(estimator.image_shape_)
    inner = [step for _, step in getattr(estimator, "steps", [])]
    inner += [getattr(estimator, name) for name in ("best_estimator_", "estimator_") if hasattr(estimator, name)]
    return next(filter(None, map(image_shape_in, inner)), None)


def _like(X: Any, images: Any) -> Any:
    """Return images in a data frame with the names of another one, if they came in one."""
    if hasattr(X, "iloc"):
        return type(X)(images, index=X.index, columns=X.columns)
    return type(X)(images, schema=X.columns) if hasattr(X, "columns") else np.asarray(images)
