"""`TrainingDisplay`: the loss over the epochs of `fit`."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .axes import COLOURS, GREY, fitted_aligner, new_axes, pyplot


class TrainingDisplay:
    """The loss over the epochs of `fit`.

    Make one with `from_estimator`.

    Parameters
    ----------
    epochs : ndarray of shape (n_epochs,)
    train_loss : ndarray of shape (n_epochs,)
        In nats per image.
    valid_loss : ndarray of shape (n_epochs,) or None, default=None
        Of held-out images.
    moved : ndarray of shape (n_epochs,) or None, default=None
        With `align_training`, the share of images whose pose went to another optimum.
    name : str or None, default=None
        Put before the curves' names in the legend, to tell several estimators apart.

    Attributes
    ----------
    ax_ : Axes
        The loss.
    axes_ : ndarray of Axes of shape (1,) or (2,)
        `ax_`, and the one of `moved`, with which it shares its epochs.
    figure_ : Figure

    Examples
    --------
    >>> from sk_avae import AVAEEstimator, TrainingDisplay
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, _ = load_mnist_sample("train")
    >>> avae = AVAEEstimator(max_epochs=2, random_state=0).fit(X[:300])
    >>> TrainingDisplay.from_estimator(avae).epochs
    array([1, 2])
    """

    def __init__(
        self,
        epochs: NDArray[Any],
        train_loss: NDArray[Any],
        *,
        valid_loss: NDArray[Any] | None = None,
        moved: NDArray[Any] | None = None,
        name: str | None = None,
    ) -> None:
        self.epochs = epochs
        self.train_loss = train_loss
        self.valid_loss = valid_loss
        self.moved = moved
        self.name = name

    @classmethod
    def from_estimator(cls, estimator: Any, *, name: str | None = None, ax: Any = None) -> Self:
        """Draw the `history_` of a fitted estimator.

        Parameters
        ----------
        estimator : AVAEEstimator, AffineCanonicalizer or CanonicalizedClassifier
            Fitted.
        name : str or None, default=None
            Put before the curves' names in the legend.
        ax : Axes or None, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : TrainingDisplay

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If it is no aligner.
        ValueError
            If it was never trained: it came from `from_vae`.
        ImportError
            If matplotlib is not installed.
        """
        pyplot()
        history: Sequence[Mapping[str, Any]] = fitted_aligner(estimator).history_
        if not history:
            raise ValueError("history_ is empty: the VAE was trained elsewhere (`from_vae`). Draw what trained it.")
        columns = {name: np.array([epoch[name] for epoch in history]) for name in history[0]}
        return cls(
            columns["epoch"].astype(int),
            columns["train_loss"],
            valid_loss=columns.get("valid_loss"),
            moved=columns.get("moved"),
            name=name,
        ).plot(ax=ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the losses, and the share of images that moved on an axis of its own.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw, beside other curves if it has some; None makes a figure.

        Returns
        -------
        self : TrainingDisplay
        """
        self.ax_ = ax = new_axes(ax)
        from matplotlib.ticker import MaxNLocator, PercentFormatter

        self.figure_ = ax.figure
        style = {"marker": "o", "markersize": 3}
        prefix = "" if self.name is None else f"{self.name}, "
        lines, k = list(ax.lines), len(ax.lines)
        train, valid = COLOURS[k % len(COLOURS)], COLOURS[(k + 1) % len(COLOURS)]
        lines += ax.plot(self.epochs, self.train_loss, color=train, label=f"{prefix}training images", **style)
        if self.valid_loss is not None:
            lines += ax.plot(self.epochs, self.valid_loss, color=valid, label=f"{prefix}held-out images", **style)
            best = int(np.argmin(self.valid_loss))
            label = f"{prefix}lowest: {self.valid_loss[best]:.1f} in epoch {self.epochs[best]}"
            at = (self.epochs[best : best + 1], self.valid_loss[best : best + 1])
            lines += ax.plot(*at, "*", color=valid, markersize=13, label=label)
        ax.set(xlabel="epoch", ylabel="loss: negative ELBO (nats per image)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        self.axes_ = np.array([ax])
        if self.moved is not None:
            twin = ax.twinx()
            lines += twin.plot(
                self.epochs, self.moved, color=GREY, linestyle="--", label=f"{prefix}poses that moved (right)"
            )
            twin.set(ylabel="poses that moved to another optimum")
            twin.set_ylim(0, 1.02)
            twin.yaxis.set_major_formatter(PercentFormatter(1.0))
            self.axes_ = np.array([ax, twin])
        ax.legend(handles=lines, frameon=False, loc="upper right")
        return self
