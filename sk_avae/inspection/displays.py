"""Pictures, as scikit-learn's displays: the data in the object, `from_estimator` to get it, `plot` to draw it.

matplotlib is imported when something is drawn, not before: ``pip install 'sk_avae[plot]'``.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.metrics import check_scoring
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.validation import check_is_fitted

from .._validation import check_count, check_rows
from ..datasets import DEFAULT_RANGES, make_perturbed
from ..model.affine import FAMILIES, REFLECTED, parameters_of
from ..result import AlignmentResult

__all__ = [
    "AlignmentDisplay",
    "ELBOProfileDisplay",
    "PoseHistogramDisplay",
    "RobustnessCurveDisplay",
    "TrainingDisplay",
]

# Okabe and Ito's colours, which the colour-blind tell apart; yellow, hard to see on white, comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
_BLUE, _ORANGE, _GREEN = COLOURS[:3]
_GREY = "0.45"

# What an axis says of a pose parameter, and how its values are drawn.
_AXES: dict[str, tuple[str, Any]] = {
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

_N_IMAGES = 6
_LINE = 9.5  # points from one line of small text to the next


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib, which is not here: pip install 'sk_avae[plot]'.") from error
    return plt


def _new_axes(ax: Any) -> Any:
    """Return the axes to draw on: those given, if they are rectilinear, or those of a new figure."""
    plt = _pyplot()
    if ax is None:
        return plt.subplots(layout="constrained")[1]
    _check_axes(ax, "rectilinear", "plt.subplots()")
    return ax


def _check_axes(ax: Any, kind: str, how: str) -> None:
    if getattr(ax, "name", None) != kind:
        got = f"{ax.name} ones" if hasattr(ax, "name") else type(ax).__name__
        raise ValueError(f"ax must be {kind} axes, got {got}. Make them with {how}.")


def _aligner(estimator: Any) -> Any:
    """Return the fitted aligner: the estimator itself, or the one inside a canonicalizer or a classifier."""
    check_is_fitted(estimator)
    aligner = getattr(estimator, "estimator_", estimator)
    if not hasattr(aligner, "transform_hypotheses"):
        raise TypeError(
            "estimator must be an AVAEEstimator, an AffineCanonicalizer or a CanonicalizedClassifier, "
            f"got {type(estimator).__name__}. Of a pipeline, pass the step that aligns."
        )
    return aligner


def _image_shape_in(estimator: Any) -> tuple[int, ...] | None:
    """Return the first `image_shape_` of an estimator, its steps and what it holds; None if there is none."""
    if hasattr(estimator, "image_shape_"):
        return tuple(estimator.image_shape_)
    inner = [step for _, step in getattr(estimator, "steps", [])]
    inner += [getattr(estimator, name) for name in ("best_estimator_", "estimator_") if hasattr(estimator, name)]
    return next(filter(None, map(_image_shape_in, inner)), None)


def _check_has_angle(aligner: Any) -> None:
    if min(aligner.image_shape_[:2]) == 1:
        raise ValueError(f"Images of shape {tuple(aligner.image_shape_)} are signals of one row, which have no angle.")


def _minus(text: str) -> str:
    """Return a number with a minus sign as long as its plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def _degree_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, steps=_DEGREES))


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
            If X has fewer than `n_images` images, or none.
        ImportError
            If matplotlib is not installed.
        """
        _pyplot()
        aligner = _aligner(estimator)
        rows, image_shape = check_rows(aligner, X, image_shape=aligner.image_shape_)
        n_images = min(_N_IMAGES, len(rows)) if n_images is None else check_count("n_images", n_images)
        if n_images > len(rows):
            raise ValueError(f"n_images={n_images}, but X has {len(rows)}. Give more images, or lower n_images.")
        some: Any = X[:n_images]  # type: ignore[index]  # of X, not of its rows: a data frame keeps its names
        canonical = np.asarray(aligner.transform(some))[:, : rows.shape[1]]
        shape = (n_images, *image_shape)
        return cls(
            rows[:n_images].reshape(shape),
            canonical.reshape(shape),
            aligner.reconstruct(some).reshape(shape),
            aligner.align(some),
        ).plot(ax=ax)

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
        self._write(self.axes_[2, 0], names, 0.0, color=_GREY, ha="right")
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
            return _pyplot().subplots(*shape, squeeze=False, figsize=size, layout="compressed")[1]
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
    low, high = float(images.min()), float(images.max())
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
        rows.append([_minus(f"{v:.{digits}f}") + (f" ± {d:.{digits}f}" if d > 0 else "") for v, d in pairs])
    names.append("probability")
    rows.append([f"{weight:.2f}" for weight in result.hypothesis_weight[:, 0]])
    return names, [list(column) for column in zip(*rows, strict=True)]


class RobustnessCurveDisplay:
    """The score of an estimator against a pose parameter of the images that it is given.

    Make one with `from_estimator`; give the `ax_` of one to the next to compare estimators.

    Parameters
    ----------
    values : ndarray of shape (n_values,)
        Of the pose parameter: radians, natural logarithms of scales, slopes, half sides.
    scores : ndarray of shape (n_values,)
        Higher is better.
    parameter : str, default="angle"
        Which pose parameter: angle, log_scale, log_scale_x, log_scale_y, shear, tx or ty.
    score_name : str, default="score"
        Says what `scores` are, with the unit if they have one.
    name : str or None, default=None
        Of the estimator, for the legend.

    Attributes
    ----------
    line_ : Line2D
    ax_ : Axes
    figure_ : Figure

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sk_avae import RobustnessCurveDisplay
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, y = load_mnist_sample("test")
    >>> classifier = LogisticRegression(max_iter=20, tol=0.1).fit(X[:500], y[:500])
    >>> display = RobustnessCurveDisplay.from_estimator(
    ...     classifier, X[500:], y[500:], parameter="angle", values=np.deg2rad([0, 45, 90])
    ... )
    >>> display.scores.shape
    (3,)
    """

    def __init__(
        self,
        values: NDArray[Any],
        scores: NDArray[Any],
        *,
        parameter: str = "angle",
        score_name: str = "score",
        name: str | None = None,
    ) -> None:
        self.values = values
        self.scores = scores
        self.parameter = parameter
        self.score_name = score_name
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike | None = None,
        *,
        parameter: str = "angle",
        values: ArrayLike | None = None,
        scoring: Any = None,
        image_shape: tuple[int, ...] | None = None,
        name: str | None = None,
        ax: Any = None,
        **line_kwargs: Any,
    ) -> Self:
        """Perturb images by each value in turn, score the estimator on them and draw the scores.

        Parameters
        ----------
        estimator : estimator
            Fitted; a classifier, a pipeline, an aligner: anything with a `score`, or that `scoring` can score.
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in their canonical pose.
        y : array-like of shape (n_samples,) or None, default=None
            Targets.
        parameter : str, default="angle"
            Which pose parameter is perturbed: angle, log_scale, log_scale_x, log_scale_y, shear, tx or ty.
        values : array-like of shape (n_values,) or None, default=None
            By how much: radians (counter-clockwise), natural logarithms of scales, slopes, half sides. None is 13
            values over `make_perturbed`'s default range.
        scoring : str, callable or None, default=None
            As everywhere in scikit-learn; None is the estimator's own `score`.
        image_shape : tuple of int or None, default=None
            (height, width) or (height, width, channels) of rows; None asks the estimator and what is inside it
            for an `image_shape_`, else reads a square.
        name : str or None, default=None
            For the legend; None is the estimator's class.
        ax : Axes or None, default=None
            Where to draw; None makes a figure.
        **line_kwargs
            For matplotlib's `plot`.

        Returns
        -------
        display : RobustnessCurveDisplay

        Raises
        ------
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If `scoring` is several scores, or None for an estimator without `score`.
        ValueError
            If `parameter` is unknown, `values` are empty or no numbers, X does not fit, or `ax` is polar.
        ImportError
            If matplotlib is not installed.
        """
        _pyplot()
        check_is_fitted(estimator)
        _check_parameter(parameter)
        reach = DEFAULT_RANGES[parameter]
        poses = np.linspace(-reach, reach, 13) if values is None else np.asarray(values, dtype=float)
        if poses.ndim != 1 or not poses.size or not np.isfinite(poses).all():
            raise ValueError(f"values must be a list of one or more finite numbers, got {values!r}.")
        family = next(family for family in FAMILIES if parameter in parameters_of(family))
        still = dict.fromkeys(parameters_of(family), 0.0)
        image_shape = _image_shape_in(estimator) if image_shape is None else image_shape
        if scoring is not None and not isinstance(scoring, str) and not callable(scoring):
            raise TypeError(f"scoring must be one score, by name or callable, or None, got {scoring!r}.")
        scorer = check_scoring(estimator, scoring=scoring)
        scores = []
        for value in poses:
            ranges = {**still, parameter: (value, value)}
            perturbed, _ = make_perturbed(X, family=family, ranges=ranges, image_shape=image_shape, random_state=0)
            if hasattr(X, "iloc"):  # a data frame keeps its names
                perturbed = type(X)(perturbed, columns=X.columns)  # type: ignore
            scores.append(scorer(estimator, perturbed, y))
        display = cls(
            poses,
            np.array(scores),
            parameter=parameter,
            score_name=_score_name(estimator, scoring),
            name=type(estimator).__name__ if name is None else name,
        )
        return display.plot(ax=ax, **line_kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **line_kwargs: Any) -> Self:
        """Draw the curve; angles in degrees, scales as factors.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw, beside other curves if it has some; None makes a figure.
        name : str or None, default=None
            For the legend; None is the display's own.
        **line_kwargs
            For matplotlib's `plot`.

        Returns
        -------
        self : RobustnessCurveDisplay
        """
        label, drawn = _AXES[_check_parameter(self.parameter)]
        self.ax_ = ax = _new_axes(ax)
        self.figure_ = ax.figure
        k = len(ax.lines)
        style = {"color": COLOURS[k % len(COLOURS)], "marker": "osD^v"[k % 5], "markersize": 4}
        style["label"] = self.name if name is None else name
        (self.line_,) = ax.plot(drawn(self.values), self.scores, **{**style, **line_kwargs})
        ax.set(xlabel=label, ylabel=self.score_name)
        if self.parameter == "angle":
            _degree_ticks(ax.xaxis)
        if self.score_name == "accuracy":
            ax.set_ylim(0, 1.02)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            # Above the axes: inside it would hide a curve.
            ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small")
        return self


def _check_parameter(parameter: str) -> str:
    if not isinstance(parameter, str) or parameter not in _AXES:
        near = get_close_matches(str(parameter), _AXES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"parameter must be one of {list(_AXES)}, got {parameter!r}.{hint}")
    return parameter


def _score_name(estimator: Any, scoring: Any) -> str:
    """Return what the axis of scores says."""
    if isinstance(scoring, str):
        return scoring.replace("_", " ")
    if scoring is not None:
        return str(getattr(scoring, "__name__", "score")).replace("_", " ")
    if is_classifier(estimator):
        return "accuracy"
    if hasattr(estimator, "negative_elbo"):
        return "mean ELBO (nats per image)"
    return "R²" if is_regressor(estimator) else "score"


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
        _pyplot()
        aligner = _aligner(estimator)
        _check_has_angle(aligner)
        check_count("index", index, minimum=0)
        check_count("n_angles", n_angles, minimum=2)
        rows, _ = check_rows(aligner, X, image_shape=aligner.image_shape_)
        if index >= len(rows):
            raise ValueError(f"index={index}, but X has {len(rows)} images, counted from 0. Lower index.")
        result = aligner.align(X[index : index + 1])  # type: ignore[index]
        row = rows[index : index + 1]
        angle = result.parameters.index("angle")
        poses = np.repeat(result.alpha, n_angles, axis=0)
        poses[:, angle] = np.linspace(-np.pi, np.pi, n_angles)
        mirrored = None
        if REFLECTED in result.parameters:
            other = poses.copy()
            other[:, -1] = 1 - other[:, -1]
            mirrored = aligner._elbo_at(row, other)
        starts = aligner._screened(row)
        return cls(
            poses[:, angle],
            aligner._elbo_at(row, poses),
            start_angles=starts[:, angle],
            start_elbo=aligner._elbo_at(row, starts),
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
        self.ax_ = ax = _new_axes(ax)
        self.figure_ = ax.figure
        ax.plot(np.rad2deg(self.angles), self.elbo, color=_BLUE, label="ELBO")
        if self.elbo_mirrored is not None:
            style = {"color": COLOURS[4], "linestyle": "--"}
            ax.plot(np.rad2deg(self.angles), self.elbo_mirrored, label="ELBO, mirrored", **style)
        hollow = {"linestyle": "none", "marker": "o", "markerfacecolor": "none"}
        ax.plot(_turns(self.start_angles), self.start_elbo, color=_GREY, label="starts tried", **hollow)
        real = self.hypothesis_weight > 0
        real[0] = True
        at, elbo, weight = (
            _turns(self.hypothesis_angles[real]),
            self.hypothesis_elbo[real],
            self.hypothesis_weight[real],
        )
        if len(at) > 1:
            label = f"other hypotheses (p = {weight[1:].sum():.2f})"
            ax.plot(at[1:], elbo[1:], linestyle="none", marker="D", color=_GREEN, label=label)
        label = _minus(f"found: {at[0]:.0f}°") + f" (p = {weight[0]:.2f})"
        ax.plot(at[:1], elbo[:1], linestyle="none", marker="*", markersize=13, color=_ORANGE, label=label)
        ax.set(xlabel=_AXES["angle"][0], ylabel="ELBO (nats)", xlim=(-185, 185))
        ax.set_xticks(range(-180, 181, 45))
        ax.grid(alpha=0.3)
        # Above the axes: wherever it lay inside, it would hide some image's curve.
        ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small", borderaxespad=0.2)
        return self


def _turns(angles: NDArray[Any]) -> NDArray[Any]:
    """Return angles in degrees, from -180 to 180."""
    return (np.rad2deg(angles) + 180) % 360 - 180


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
        _pyplot()
        _check_polar(ax)
        check_count("bins", bins)
        aligner = _aligner(estimator)
        _check_has_angle(aligner)
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
        plt = _pyplot()
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
        ax.set_thetagrids(range(0, 360, 45), [_minus(f"{(a + 179) % 360 - 179}°") for a in range(0, 360, 45)])
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
        _check_axes(ax, "polar", "plt.subplots(subplot_kw={'projection': 'polar'})")


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
        _pyplot()
        history: Sequence[Mapping[str, Any]] = _aligner(estimator).history_
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
        self.ax_ = ax = _new_axes(ax)
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
                self.epochs, self.moved, color=_GREY, linestyle="--", label=f"{prefix}poses that moved (right)"
            )
            twin.set(ylabel="poses that moved to another optimum")
            twin.set_ylim(0, 1.02)
            twin.yaxis.set_major_formatter(PercentFormatter(1.0))
            self.axes_ = np.array([ax, twin])
        ax.legend(handles=lines, frameon=False, loc="upper right")
        return self
