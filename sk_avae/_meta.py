"""What the meta-estimators share: the aligner that they fit."""

from typing import Any

from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from .estimator import AVAEEstimator


def new_aligner(estimator: Any, random_state: Any) -> Any:
    """Return the aligner that a meta-estimator fits: a clone of `estimator`, or of the default one for None.

    Parameters
    ----------
    estimator : AVAEEstimator, FrozenEstimator or None
    random_state : int, RandomState instance or None
        Given to the clone; None leaves the clone's own.

    Raises
    ------
    TypeError
        If `estimator` cannot align images.
    """
    aligner = AVAEEstimator() if estimator is None else clone(estimator)
    if not hasattr(aligner, "transform_hypotheses"):
        raise TypeError(
            f"estimator must be an AVAEEstimator, or one that is fitted in a FrozenEstimator, "
            f"got {type(aligner).__name__}."
        )
    if random_state is not None and not isinstance(aligner, FrozenEstimator):
        aligner.set_params(random_state=random_state)
    return aligner


def unfrozen(aligner: Any) -> AVAEEstimator:
    """Return the aligner itself where it is in a `FrozenEstimator`."""
    return aligner.estimator if isinstance(aligner, FrozenEstimator) else aligner


def missing_values_of(estimator: Any) -> str:
    """Return what an aligner, or the default one for None, makes of NaN."""
    return str(getattr(unfrozen(estimator), "missing_values", "error"))


def allows_gaps(estimator: Any) -> bool:
    """Tell whether an aligner takes missing pixels."""
    return missing_values_of(estimator) != "error"
