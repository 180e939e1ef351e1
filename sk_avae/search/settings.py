"""Which poses are searched for, and how hard."""

import math
from dataclasses import dataclass

from ..model.affine import REFLECTED, parameters_of


@dataclass(frozen=True)
class SearchSettings:
    """How hard alignment searches, and how it reads what it found.

    Attributes
    ----------
    n_restarts : int
        Starting poses per image, at most.
    n_refine : int
        Distinct restarts that are refined per image.
    max_iter : int
        Evaluations per refined restart.
    tol : float
        Predicted decrease of the loss, in nats, below which a refinement has converged.
    min_gain : float
        An image is moved only if its score (ELBO, log prior, critic, proposer) gains more than this over the identity,
        in nats.
    temperature : float
        Of the hypotheses' weights, in nats.
    none_right : float
        Log-odds, against the best hypothesis, that none of them is right; minus infinity is never.
    """

    n_restarts: int = 16
    n_refine: int = 2
    max_iter: int = 100
    tol: float = 5e-2
    min_gain: float = 0.0
    temperature: float = 1.0
    none_right: float = -math.inf


@dataclass(frozen=True)
class PoseSettings:
    """Which poses are searched for, and what helps to find them.

    Attributes
    ----------
    family : str
        In full: with its reflections, where they are allowed.
    scale : tuple of float
        The prior's standard deviations, in units of the image; see `prior.prior_scale`.
    learned_starts, critic : bool
        Whether the proposer, and density and critic, take part where they were learned.
    learned_gate : bool
        Whether the gate is the one that was learned, rather than the `min_gain` of the search.
    """

    family: str
    scale: tuple[float, ...]
    learned_starts: bool = True
    critic: bool = True
    learned_gate: bool = False


def default_effort(family: str, *, has_proposer: bool) -> tuple[int, int]:
    """Return how many restarts and refinements a search takes where nobody says.

    With a proposer more of either gain nothing; without one a family that has more than the angle needs both.

    Parameters
    ----------
    family : str
    has_proposer : bool
        Whether a proposer leads the way.

    Returns
    -------
    n_restarts, n_refine : int

    Examples
    --------
    >>> default_effort("affine", has_proposer=True), default_effort("affine", has_proposer=False)
    ((16, 2), (64, 4))
    """
    names = [name for name in parameters_of(family) if name != REFLECTED]
    return (16, 2) if has_proposer or names == ["angle"] else (64, 4)
