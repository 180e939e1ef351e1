"""`ELBOProfileDisplay`: the ELBO of one image over all angles, and where the search started and ended."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import check_count
from ..model.affine import REFLECTED
from .axes import AXES, BLUE, COLOURS, GREEN, GREY, ORANGE, check_has_angle, fitted_aligner, minus, new_axes, pyplot


class ELBOProfileDisplay:
    """The ELBO of one image over all angles, with the poses where the search started and ended.

    Make one with `from_estimator`. In a family that has more than the angle, the curve holds the other parameters
    at what was found, so that starts and other hypotheses lie beside it.

    Parameters
    ----------
    angles : ndarray of shape (n_angles,)
        In radians.
    elbo : ndarray of shape (n_angles,)
        In nats.
    start_angles, start_elbo : ndarray of shape (n_starts,)
        Starting poses that were tried.
    hypothesis_angles, hypothesis_elbo, hypothesis_weight : ndarray of shape (n_hypotheses,)
        What was found, best first, with the probabilities.
    elbo_mirrored : ndarray of shape (n_angles,) or None, default=None
        The ELBO over the angle of the pose found, but mirrored; None without reflections.

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure

    Examples
    --------
    >>> from sk_avae import AVAEEstimator, ELBOProfileDisplay
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, _ = load_mnist_sample("train")
    >>> avae = AVAEEstimator(max_epochs=1, random_state=0).fit(X[:300])
    >>> ELBOProfileDisplay.from_estimator(avae, X, index=3).elbo.shape
    (361,)
    """

    def __init__(
        self,
        angles: NDArray[Any],
        elbo: NDArray[Any],
        *,
        start_angles: NDArray[Any],
        start_elbo: NDArray[Any],
        hypothesis_angles: NDArray[Any],
        hypothesis_elbo: NDArray[Any],
        hypothesis_weight: NDArray[Any],
        elbo_mirrored: NDArray[Any] | None = None,
    ) -> None:
        self.angles = angles
        self.elbo = elbo
        self.start_angles = start_angles
        self.start_elbo = start_elbo
        self.hypothesis_angles = hypothesis_angles
        self.hypothesis_elbo = hypothesis_elbo
        self.hypothesis_weight = hypothesis_weight
        self.elbo_mirrored = elbo_mirrored

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, *, index: int = 0, n_angles: int = 361, ax: Any = None
    ) -> Self:
        """Align one image, take its ELBO at all angles and draw both.

        Parameters
        ----------
        estimator : AVAEEstimator, AffineCanonicalizer or CanonicalizedClassifier
            Fitted.
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.
        index : int, default=0
            Which of them.
        n_angles : int, default=361
            Angles from -180 to 180 degrees.
        ax : Axes or None, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : ELBOProfileDisplay

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If it cannot align images.
        ValueError
            If X has no image `index`, or images that are signals of one row.
        ImportError
            If matplotlib is not installed.
        """
        pyplot()
        aligner = fitted_aligner(estimator)
        check_has_angle(aligner)
        check_count("index", index, minimum=0)
        check_count("n_angles", n_angles, minimum=2)
        rows = aligner._rows(X)
        if index >= len(rows):
            raise ValueError(f"index={index}, but X has {len(rows)} images, counted from 0. Lower index.")
        row, learned = rows[index : index + 1], aligner._aligner()
        result = learned.align(row, verbose=aligner.verbose)
        angle = result.parameters.index("angle")
        poses = np.repeat(result.alpha, n_angles, axis=0)
        poses[:, angle] = np.linspace(-np.pi, np.pi, n_angles)
        mirrored = None
        if REFLECTED in result.parameters:
            other = poses.copy()
            other[:, -1] = 1 - other[:, -1]
            mirrored = learned.elbo(row, other)
        starts = learned.tried_starts(row)
        return cls(
            poses[:, angle],
            learned.elbo(row, poses),
            start_angles=starts[:, angle],
            start_elbo=learned.elbo(row, starts),
            hypothesis_angles=result.hypotheses[0, :, angle],
            hypothesis_elbo=result.hypothesis_elbo[0],
            hypothesis_weight=result.hypothesis_weight[0],
            elbo_mirrored=mirrored,
        ).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the curve, and the poses on it; angles in degrees.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        self : ELBOProfileDisplay
        """
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        ax.plot(np.rad2deg(self.angles), self.elbo, color=BLUE, label="ELBO")
        if self.elbo_mirrored is not None:
            style = {"color": COLOURS[4], "linestyle": "--"}
            ax.plot(np.rad2deg(self.angles), self.elbo_mirrored, label="ELBO, mirrored", **style)
        hollow = {"linestyle": "none", "marker": "o", "markerfacecolor": "none"}
        ax.plot(_turns(self.start_angles), self.start_elbo, color=GREY, label="starts tried", **hollow)
        real = self.hypothesis_weight > 0
        real[0] = True
        at, elbo, weight = (
            _turns(self.hypothesis_angles[real]),
            self.hypothesis_elbo[real],
            self.hypothesis_weight[real],
        )
        if len(at) > 1:
            label = f"other hypotheses (p = {weight[1:].sum():.2f})"
            ax.plot(at[1:], elbo[1:], linestyle="none", marker="D", color=GREEN, label=label)
        label = minus(f"found: {at[0]:.0f}°") + f" (p = {weight[0]:.2f})"
        ax.plot(at[:1], elbo[:1], linestyle="none", marker="*", markersize=13, color=ORANGE, label=label)
        ax.set(xlabel=AXES["angle"][0], ylabel="ELBO (nats)", xlim=(-185, 185))
        ax.set_xticks(range(-180, 181, 45))
        ax.grid(alpha=0.3)
        # Above the axes: wherever it lay inside, it would hide some image's curve.
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", borderaxespad=0.2)
        return self


def _turns(angles: NDArray[Any]) -> NDArray[Any]:
    """Return angles in degrees, from -180 to 180."""
    return (np.rad2deg(angles) + 180) % 360 - 180
