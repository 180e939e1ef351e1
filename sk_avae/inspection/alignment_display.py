"""`AlignmentDisplay`: images as they came, aligned, reconstructed, and what was found."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._inputs import check_images_are_numbers
from .._validation import check_count
from ..model.affine import REFLECTED
from ..result import AlignmentResult
from .axes import GREY, fitted_aligner, minus, pyplot

_N_IMAGES = 6

_LINE = 9.5  # points from one line of small text to the next


class AlignmentDisplay:
    """A few images: as they came, in the canonical pose, reconstructed, and what was found, with its certainty.

    Make one with `from_estimator`.

    Parameters
    ----------
    inputs, canonical, reconstructed : ndarray of shape (n_images, H, W) or (n_images, H, W, C)
        Pixels, all in the units of the input.
    result : AlignmentResult
        Poses of these images.

    Attributes
    ----------
    axes_ : ndarray of Axes of shape (3, n_images)
        Rows: input, canonical, reconstruction.
    figure_ : Figure

    Examples
    --------
    >>> from sk_avae import AlignmentDisplay, AVAEEstimator
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, _ = load_mnist_sample("train")
    >>> avae = AVAEEstimator(max_epochs=1, random_state=0).fit(X[:300])
    >>> AlignmentDisplay.from_estimator(avae, X[:4]).axes_.shape
    (3, 4)
    """

    def __init__(
        self, inputs: NDArray[Any], canonical: NDArray[Any], reconstructed: NDArray[Any], result: AlignmentResult
    ) -> None:
        self.inputs = inputs
        self.canonical = canonical
        self.reconstructed = reconstructed
        self.result = result

    @classmethod
    def from_estimator(cls, estimator: Any, X: ArrayLike, *, n_images: int | None = None, ax: Any = None) -> Self:
        """Align images and draw what came out.

        Parameters
        ----------
        estimator : AVAEEstimator, AffineCanonicalizer or CanonicalizedClassifier
            Fitted.
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.
        n_images : int or None, default=None
            The first so many are drawn; None takes six, or as many as there are.
        ax : Axes, array of Axes of shape (3, n_images) or None, default=None
            See `plot`.

        Returns
        -------
        display : AlignmentDisplay

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If it cannot align images.
        ValueError
            If X has fewer than `n_images` images, or none, or pixels too large for a reconstruction in floats.
        ImportError
            If matplotlib is not installed.
        """
        pyplot()
        aligner = fitted_aligner(estimator)
        rows = aligner._rows(X)
        n_images = min(_N_IMAGES, len(rows)) if n_images is None else check_count("n_images", n_images)
        if n_images > len(rows):
            raise ValueError(f"n_images={n_images}, but X has {len(rows)}. Give more images, or lower n_images.")
        rows, shape = rows[:n_images], (n_images, *aligner.image_shape_)
        result, canonical, reconstructed = aligner._aligner().look(rows, verbose=aligner.verbose)
        check_images_are_numbers(reconstructed, "X")
        return cls(rows.reshape(shape), canonical.reshape(shape), reconstructed.reshape(shape), result).plot(ax=ax)

    def plot(self, ax: Any = None, *, cmap: str = "gray") -> Self:
        """Draw the images, a column each, and their poses below.

        Parameters
        ----------
        ax : Axes, array of Axes of shape (3, n_images) or None, default=None
            One Axes (of a grid of subplots) is divided; None makes a figure.
        cmap : str, default="gray"
            Colour map of images of one channel.

        Returns
        -------
        self : AlignmentDisplay

        Raises
        ------
        ValueError
            If `ax` is neither one Axes of a grid nor an array of the right shape.
        """
        self.axes_ = self._grid(ax)
        self.figure_ = self.axes_[0, 0].figure
        low, high = _pixel_range(self.inputs)
        stages = {"input": self.inputs, "canonical": self.canonical, "reconstruction": self.reconstructed}
        for axes, (name, images) in zip(self.axes_, stages.items(), strict=True):
            for cell, image in zip(axes, images, strict=True):
                # Rows lean towards the middle one where the cells are higher than the images.
                cell.set(xticks=[], yticks=[], anchor={"input": "S", "canonical": "C"}.get(name, "N"))
                pixels = _as_colours((np.asarray(image, dtype=float) - low) / (high - low))
                cell.imshow(pixels, cmap=cmap, vmin=0, vmax=1)
            axes[0].set_ylabel(name, rotation="horizontal", ha="right", va="center", fontsize="small")
        names, columns = _pose_table(self.result)
        self._write(self.axes_[2, 0], names, 0.0, color=GREY, ha="right")
        for cell, column in zip(self.axes_[2], columns, strict=True):
            self._write(cell, column, 0.5, color="black", ha="center")
        return self

    @staticmethod
    def _write(cell: Any, lines: Sequence[str], x: float, **style: Any) -> None:
        """Write lines below an axes; one by one, as lines of one text are as high as their letters."""
        for k, line in enumerate(lines):
            below = (-4 if x == 0 else 0, -_LINE * (k + 1) - 2)
            cell.annotate(
                line, (x, 0), xytext=below, xycoords="axes fraction", textcoords="offset points", fontsize=7, **style
            )

    def _grid(self, ax: Any) -> NDArray[Any]:
        """Return axes of shape (3, n_images): given, cut out of one, or in a figure of a size that fits."""
        shape = (3, len(self.inputs))
        if ax is None:
            height, width = self.inputs.shape[1:3]
            n_lines = len(self.result.parameters) + 1
            # Inches: a column is as wide as its text.
            size = (1.3 + 1.05 * shape[1], 0.3 + 3.2 * min(height / width, 2.0) + _LINE / 72 * n_lines)
            return pyplot().subplots(*shape, squeeze=False, figsize=size, layout="compressed")[1]
        if np.ndim(ax) == 0 and getattr(ax, "get_subplotspec", lambda: None)() is not None:
            ax.set_axis_off()
            return ax.get_subplotspec().subgridspec(*shape).subplots(squeeze=False)
        if np.shape(ax) != shape:
            what = f"an array of shape {np.shape(ax)}" if np.ndim(ax) else f"{ax!r}"
            raise ValueError(
                f"ax must be one Axes of a grid of subplots, or an array of them of shape {shape}, got {what}. "
                "Make it with plt.subplots()."
            )
        return np.asarray(ax)


def _pixel_range(images: NDArray[Any]) -> tuple[float, float]:
    """Return what is drawn as black and as white: the range of bytes, of unit floats, or that of the images."""
    low, high = float(np.nanmin(images)), float(np.nanmax(images))
    if images.dtype == np.uint8:
        return 0.0, 255.0
    return (0.0, 1.0) if low >= 0.0 and 0.2 < high <= 1.0 else (low, high if high > low else low + 1.0)


def _as_colours(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return an image of pixels around [0, 1] as matplotlib wants it: (H, W), or (H, W, 3 or 4)."""
    pixels = np.clip(pixels, 0.0, 1.0)
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        return pixels.mean(axis=2)
    return pixels


def _pose_table(result: AlignmentResult) -> tuple[list[str], list[list[str]]]:
    """Return the names of what was found, with their units, and per image its values as text."""
    height, width = result.image_shape
    units = {"angle": ("angle (°)", 180 / np.pi), "shear": ("shear", 1.0)}
    units |= {"tx": ("shift right (px)", width / 2), "ty": ("shift down (px)", height / 2)}
    names, rows = [], []
    for j, parameter in enumerate(result.parameters):
        values = result.alpha[:, j]
        deviations = np.zeros(len(values)) if result.alpha_std is None else result.alpha_std[:, j]
        if parameter == REFLECTED:
            names.append("mirrored")
            rows.append(["yes" if mirrored else "no" for mirrored in result.reflected])
            continue
        if parameter.startswith("log_scale"):
            names.append(parameter.removeprefix("log_").replace("_", " "))
            values = np.exp(values)
            deviations = values * deviations
        else:
            name, unit = units[parameter]
            names.append(name)
            values, deviations = values * unit, deviations * unit
        digits = 2 if parameter.startswith("log_scale") or parameter == "shear" else 1
        pairs = zip(values, deviations, strict=True)
        rows.append([minus(f"{v:.{digits}f}") + (f" ± {d:.{digits}f}" if d > 0 else "") for v, d in pairs])
    names.append("confidence")
    sure = result.hypothesis_weight[:, 0] if result.confidence is None else result.confidence
    rows.append([f"{value:.2f}" for value in sure])
    return names, [list(column) for column in zip(*rows, strict=True)]
