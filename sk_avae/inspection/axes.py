"""What the displays share: colours, axes, and the aligner that they look at.

matplotlib is imported when something is drawn, not before: ``pip install 'sk_avae[plot]'``.
"""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._meta import unfrozen

# Okabe and Ito's colours, which the colour-blind tell apart; yellow, hard to see on white, comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")

BLUE, ORANGE, GREEN = COLOURS[:3]

GREY = "0.45"

# What an axis says of a pose parameter, and how its values are drawn.
AXES: dict[str, tuple[str, Any]] = {
    "angle": ("angle (degrees, counter-clockwise)", np.rad2deg),
    "log_scale": ("scale (factor)", np.exp),
    "log_scale_x": ("scale along x (factor)", np.exp),
    "log_scale_y": ("scale along y (factor)", np.exp),
    "shear": ("shear (slope)", np.asarray),
    "tx": ("shift to the right (half widths)", np.asarray),
    "ty": ("shift down (half heights)", np.asarray),
}

# Steps, up to a power of ten, in which degrees are counted.
_DEGREES = (1, 1.5, 3, 4.5, 9, 10)


def pyplot() -> Any:
    """Return matplotlib.pyplot, or raise ImportError saying what to install."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib, which is not here: pip install 'sk_avae[plot]'.") from error
    return plt


def new_axes(ax: Any) -> Any:
    """Return the axes to draw on: those given, if they are rectilinear, or those of a new figure."""
    plt = pyplot()
    if ax is None:
        return plt.subplots(layout="constrained")[1]
    check_axes(ax, "rectilinear", "plt.subplots()")
    return ax


def check_axes(ax: Any, kind: str, how: str) -> None:
    """Raise ValueError unless these are axes of a kind; `how` makes them."""
    if getattr(ax, "name", None) != kind:
        got = f"{ax.name} ones" if hasattr(ax, "name") else type(ax).__name__
        raise ValueError(f"ax must be {kind} axes, got {got}. Make them with {how}.")


def fitted_aligner(estimator: Any) -> Any:
    """Return the fitted `AVAEEstimator`: the estimator itself, or the one inside a canonicalizer or a classifier."""
    check_is_fitted(estimator)
    aligner = unfrozen(getattr(estimator, "estimator_", estimator))
    if not hasattr(aligner, "transform_hypotheses"):
        raise TypeError(
            "estimator must be an AVAEEstimator, an AffineCanonicalizer or a CanonicalizedClassifier, "
            f"got {type(estimator).__name__}. Of a pipeline, pass the step that aligns."
        )
    return aligner


def check_has_angle(aligner: Any) -> None:
    """Raise ValueError if images are too flat to have an angle."""
    if min(aligner.image_shape_[:2]) == 1:
        raise ValueError(f"Images of shape {tuple(aligner.image_shape_)} are signals of one row, which have no angle.")


def minus(text: str) -> str:
    """Return a number with a minus sign as long as its plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def degree_ticks(axis: Any) -> None:
    """Put ticks at multiples of 45, 30, 15 ... degrees."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, steps=_DEGREES))
