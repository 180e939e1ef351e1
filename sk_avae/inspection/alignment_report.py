"""`AlignmentReportDisplay`: whether weights of hypotheses mean what they say, on images that `fit` held out."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .axes import BLUE, GREY, fitted_aligner, new_axes, pyplot


class AlignmentReportDisplay:
    """How many of the poses with a weight are right, on images that `fit` held out: a reliability diagram.

    Make one with `from_estimator`. A curve on the diagonal is calibrated; one below it is overconfident.

    Parameters
    ----------
    weight : ndarray of shape (n_poses,)
        The weight of each first hypothesis.
    right : ndarray of bool of shape (n_poses,)
        Whether its pose is right.
    n_bins : int, default=10
        Bins of the weight between 0 and 1.

    Attributes
    ----------
    ax_ : Axes
    figure_ : Figure

    References
    ----------
    Guo et al. (2017), "On calibration of modern neural networks", section 2.

    Examples
    --------
    >>> from sk_avae import AlignmentReportDisplay, AVAEEstimator
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, _ = load_mnist_sample("train")
    >>> avae = AVAEEstimator(max_epochs=20, critic=False, random_state=0).fit(X[:300])
    >>> AlignmentReportDisplay.from_estimator(avae).right.shape
    (120,)
    """

    def __init__(self, weight: NDArray[Any], right: NDArray[Any], *, n_bins: int = 10) -> None:
        self.weight = weight
        self.right = right
        self.n_bins = n_bins

    @classmethod
    def from_estimator(cls, estimator: Any, *, n_bins: int = 10, ax: Any = None) -> Self:
        """Draw the `alignment_report_` of a fitted estimator.

        Parameters
        ----------
        estimator : AVAEEstimator, AffineCanonicalizer or CanonicalizedClassifier
            Fitted.
        n_bins : int, default=10
            Bins of the weight between 0 and 1.
        ax : Axes or None, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : AlignmentReportDisplay

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If it is no aligner.
        ValueError
            If it has no report: it learned from too few images.
        ImportError
            If matplotlib is not installed.
        """
        pyplot()
        report = fitted_aligner(estimator).alignment_report_
        if report is None:
            raise ValueError("There is no alignment_report_: `fit` makes one from at least 64 images with a pose.")
        return cls(report.weight, report.right, n_bins=n_bins).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the share of right poses against the weight, and how many poses have which weight.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        self : AlignmentReportDisplay
        """
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        bins = np.minimum((np.asarray(self.weight) * self.n_bins).astype(int), self.n_bins - 1)
        n = np.bincount(bins, minlength=self.n_bins)
        some = n > 0
        weight, right = (
            np.bincount(bins, weights=values, minlength=self.n_bins)[some] / n[some]
            for values in (np.asarray(self.weight, dtype=float), np.asarray(self.right, dtype=float))
        )
        centres = (np.arange(self.n_bins) + 0.5) / self.n_bins
        ax.bar(centres, n / max(1, n.sum()), width=0.9 / self.n_bins, color=GREY, alpha=0.3, label="share of poses")
        ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="calibrated")
        ax.plot(weight, right, color=BLUE, marker="o", label="poses that are right")
        ax.set(xlabel="weight of the first hypothesis", ylabel="share", xlim=(0, 1), ylim=(0, 1.02))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, loc="upper left")
        return self
