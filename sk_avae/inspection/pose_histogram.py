"""`PoseHistogramDisplay`: how often each angle was found."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d

from .._validation import check_count
from .axes import COLOURS, check_axes, check_has_angle, fitted_aligner, minus, pyplot


class PoseHistogramDisplay:
    """How often each angle was found: a histogram on the circle, all together or by class.

    Make one with `from_estimator`.

    Parameters
    ----------
    angles : ndarray of shape (n_samples,)
        In radians.
    y : ndarray of shape (n_samples,) or None, default=None
        Classes.

    Attributes
    ----------
    ax_ : PolarAxes
    figure_ : Figure

    Examples
    --------
    >>> from sk_avae import AVAEEstimator, PoseHistogramDisplay
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, _ = load_mnist_sample("train")
    >>> avae = AVAEEstimator(max_epochs=1, random_state=0).fit(X[:300])
    >>> PoseHistogramDisplay.from_estimator(avae, X[:50]).angles.shape
    (50,)
    """

    def __init__(self, angles: NDArray[Any], *, y: NDArray[Any] | None = None) -> None:
        self.angles = angles
        self.y = y

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: ArrayLike | None = None, *, bins: int = 36, ax: Any = None
    ) -> Self:
        """Align images and draw how often each angle was found.

        Parameters
        ----------
        estimator : AVAEEstimator, AffineCanonicalizer or CanonicalizedClassifier
            Fitted.
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.
        y : array-like of shape (n_samples,) or None, default=None
            Their classes, which get a colour each.
        bins : int, default=36
            Around the circle.
        ax : PolarAxes or None, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : PoseHistogramDisplay

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If it cannot align images.
        ValueError
            If `ax` is not polar, `y` is not as long as X, or images are signals of one row.
        ImportError
            If matplotlib is not installed.
        """
        pyplot()
        _check_polar(ax)
        check_count("bins", bins)
        aligner = fitted_aligner(estimator)
        check_has_angle(aligner)
        classes = None if y is None else column_or_1d(y)
        if classes is not None:
            check_consistent_length(X, classes)
        result = aligner.align(X)
        return cls(result.alpha[:, result.parameters.index("angle")], y=classes).plot(ax=ax, bins=bins)

    def plot(self, ax: Any = None, *, bins: int = 36) -> Self:
        """Draw the histogram: 0 on top, angles counter-clockwise, classes stacked.

        Parameters
        ----------
        ax : PolarAxes or None, default=None
            Where to draw; None makes a figure.
        bins : int, default=36
            Around the circle; 0 degrees is the middle of one.

        Returns
        -------
        self : PoseHistogramDisplay

        Raises
        ------
        ValueError
            If `ax` is not polar.
        """
        plt = pyplot()
        from matplotlib.patheffects import withStroke
        from matplotlib.ticker import MaxNLocator

        _check_polar(ax)
        width = 2 * np.pi / check_count("bins", bins)
        if ax is None:
            _, ax = plt.subplots(subplot_kw={"projection": "polar"}, layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        middles = np.arange(bins) * width
        bin_of = np.round(self.angles / width).astype(int) % bins
        groups = [None] if self.y is None else np.unique(self.y)  # labels are words: matplotlib 3.8 takes no numbers
        below = np.zeros(bins, dtype=int)
        for k, group in enumerate(groups):
            counts = np.bincount(bin_of if group is None else bin_of[self.y == group], minlength=bins)
            style = {"color": COLOURS[k % len(COLOURS)], "edgecolor": "white", "linewidth": 0.4}
            # More classes than colours: the others are hatched.
            hatch = "////" if k >= len(COLOURS) else None
            ax.bar(
                middles,
                counts,
                width=width,
                bottom=below,
                label=None if group is None else str(group),
                hatch=hatch,
                **style,
            )
            below = below + counts
        ax.set_theta_zero_location("N")
        ax.set_thetagrids(range(0, 360, 45), [minus(f"{(a + 179) % 360 - 179}°") for a in range(0, 360, 45)])
        ax.tick_params(axis="x", pad=6)
        highest = max(1, int(below.max()))
        ticks = np.asarray(MaxNLocator(nbins=4, integer=True).tick_values(0, highest))
        ticks = ticks[(ticks > 0) & (ticks <= highest)]
        ax.set_rgrids(ticks, angle=22.5, path_effects=[withStroke(linewidth=2.5, foreground="white")])
        ax.set_ylim(0, 1.05 * highest)
        ax.grid(alpha=0.4)
        ax.set_xlabel(f"angle found (degrees, counter-clockwise)\nradius: images per {360 / bins:.3g}°", labelpad=8)
        if self.y is not None:
            ax.legend(title="class", frameon=False, loc="center left", bbox_to_anchor=(1.15, 0.5), fontsize="small")
        return self


def _check_polar(ax: Any) -> None:
    if ax is not None:
        check_axes(ax, "polar", "plt.subplots(subplot_kw={'projection': 'polar'})")
