"""What the meta-estimators share: the aligner that they fit, and training images in other poses, aligned."""

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state

from ._validation import seed_from
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


def aligned_copies(aligner: AVAEEstimator, rows: NDArray[Any], n: int, random_state: Any) -> Iterator[NDArray[Any]]:
    """Yield the canonical images of rows in other poses, drawn anew each time.

    Parameters
    ----------
    aligner : AVAEEstimator
        Fitted.
    rows : ndarray of shape (n_samples, n_features)
        Images in the canonical pose, checked.
    n : int
        Number of copies.
    random_state : int, RandomState instance or None
        Draws the poses, see `AVAEEstimator.perturb`; None takes the aligner's own.
    """
    random = check_random_state(seed_from(aligner.random_state if random_state is None else random_state))
    for _ in range(n):
        perturbed, _ = aligner._perturbed(rows, random)
        yield aligner._transformed(perturbed)[:, : rows.shape[1]]
