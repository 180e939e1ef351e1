"""What scikit-learn's searches want: scorers, and a rule that prefers what is cheap.

Scorers have the signature ``scorer(estimator, X, y=None)``: higher is better, y is ignored. They take an
`AVAEEstimator`, or a `Pipeline` that ends in one, whose earlier steps then transform X first.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline

from .._inputs import as_images

__all__ = ["cheapest_within_one_se", "elbo", "neg_reconstruction_error"]


def elbo(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Return the mean evidence lower bound (ELBO) at each image's best pose.

    Parameters
    ----------
    estimator : estimator
        Fitted, with `score_samples`, or a `Pipeline` that ends in such a one.
    X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
    y : None
        Ignored.

    Returns
    -------
    score : float
        In nats per image, higher is better.

    Raises
    ------
    TypeError
        If the estimator has no `score_samples`.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_avae import AVAEEstimator
    >>> scoring = {"elbo": elbo, "pixels": neg_reconstruction_error}
    >>> search = GridSearchCV(AVAEEstimator(), {"latent_size": [8, 16]}, scoring=scoring, refit="elbo")
    """
    estimator, X = _last_step(estimator, X, "score_samples")
    return float(np.mean(estimator.score_samples(X), dtype=np.float64))


def neg_reconstruction_error(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Return minus the mean squared difference between pixels and their reconstruction.

    Parameters
    ----------
    estimator : estimator
        Fitted, with `reconstruct`, or a `Pipeline` that ends in such a one.
    X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
    y : None
        Ignored.

    Returns
    -------
    score : float
        At most 0, higher is better; per pixel, in squared units of X (of what reaches the last step of a pipeline).

    Raises
    ------
    TypeError
        If the estimator has no `reconstruct`.
    """
    estimator, X = _last_step(estimator, X, "reconstruct")
    difference = _rows(estimator.reconstruct(X)) - _rows(X)
    return -float(np.nanmean(np.square(difference), dtype=np.float64))


def _last_step(estimator: Any, X: Any, method: str) -> tuple[Any, Any]:
    """Return what has the method, and the images that reach it."""
    images = as_images(X)
    if isinstance(estimator, Pipeline):
        images = estimator[:-1].transform(images) if len(estimator) > 1 else images
        estimator = estimator[-1]
    if not hasattr(estimator, method):
        raise TypeError(
            f"The scorer needs an AVAEEstimator, or another estimator with `{method}`, got {type(estimator).__name__}. "
            f"Of a canonicalizer or classifier score its `estimator_`."
        )
    return estimator, images


def _rows(X: Any) -> NDArray[Any]:
    array = np.asarray(X)
    return array.reshape(len(array), -1)


def cheapest_within_one_se(*parameters: str, metric: str = "score") -> "partial[int]":
    """Return a rule for GridSearchCV's `refit`: the cheapest setting within one standard error of the best.

    The mean score of every setting is known up to its standard error over the folds only, so that a setting that falls
    behind the best by less than the best's own is as good, and may be much cheaper.

    Parameters
    ----------
    *parameters : str
        Parameters of the search by which settings are compared, the first one first; a lower value is cheaper. Where
        all are equal the higher mean score decides, then the earlier place in the grid.
    metric : str, default="score"
        The scorer's name, where the search has several.

    Returns
    -------
    rule : callable
        Takes `cv_results_`, returns `best_index_`; it can be pickled.

    Raises
    ------
    ValueError
        If there is no parameter. The rule raises one for a parameter or a metric that the search does not have, and
        where no setting has a finite score, and TypeError for values that have no order.

    References
    ----------
    Breiman, Friedman, Olshen & Stone (1984), "Classification and Regression Trees", section 3.4.3 (the 1 SE rule).

    Examples
    --------
    >>> rule = cheapest_within_one_se("n_restarts")
    >>> rule({
    ...     "params": [{"n_restarts": 4}, {"n_restarts": 16}, {"n_restarts": 64}],
    ...     "split0_test_score": [-130.0, -111.0, -110.0],
    ...     "split1_test_score": [-134.0, -115.0, -113.0],
    ... })
    1
    """
    if not parameters:
        raise ValueError("cheapest_within_one_se needs the name of a parameter that costs something, as 'n_restarts'.")
    return partial(_cheapest, parameters=parameters, metric=metric)


def _cheapest(cv_results: Mapping[str, Any], *, parameters: tuple[str, ...], metric: str) -> int:
    scores = _split_scores(cv_results, metric)
    means, n_splits = scores.mean(axis=0), len(scores)
    if not np.isfinite(means).any():
        raise ValueError("No setting has a finite score in all folds: see the search's warnings of fits that failed.")
    best = int(np.nanargmax(np.where(np.isfinite(means), means, np.nan)))
    error = scores[:, best].std(ddof=1) / np.sqrt(n_splits) if n_splits > 1 else 0.0
    settings = cv_results["params"]
    good = [index for index in range(len(settings)) if means[index] >= means[best] - error]
    costs = {index: _cost(settings[index], parameters) for index in good}
    try:
        return min(good, key=lambda index: (costs[index], -means[index], index))
    except TypeError as error_of_order:
        raise TypeError(
            f"The values of {list(parameters)} have no order: {sorted(map(str, costs.values()))}. Name parameters "
            f"whose lower value is cheaper."
        ) from error_of_order


def _split_scores(cv_results: Mapping[str, Any], metric: str) -> NDArray[np.float64]:
    """Return the scores, of shape (n_splits, n_settings)."""
    suffix = f"_test_{metric}"
    names = [name for name in cv_results if name.startswith("split") and name.endswith(suffix)]
    if not names:
        known = sorted({name.removeprefix("split0_test_") for name in cv_results if name.startswith("split0_test_")})
        raise ValueError(f"The search has no score called {metric!r}. Say metric=..., one of {known}.")
    return np.array([cv_results[name] for name in names], dtype=np.float64)


def _cost(setting: Mapping[str, Any], parameters: tuple[str, ...]) -> tuple[Any, ...]:
    missing = [name for name in parameters if name not in setting]
    if missing:
        raise ValueError(f"The search has no parameter {missing[0]!r} in {setting}. Name one that all settings have.")
    return tuple(setting[name] for name in parameters)
