"""`RobustnessCurveDisplay`: the score of an estimator against a pose parameter of its images."""

from difflib import get_close_matches
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.metrics import check_scoring
from sklearn.utils.validation import check_is_fitted

from ..datasets import DEFAULT_RANGES, make_perturbed
from ..model.affine import FAMILIES, parameters_of
from .axes import AXES, COLOURS, degree_ticks, new_axes, pyplot
from .perturbed_scorer import image_shape_in


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
        pyplot()
        check_is_fitted(estimator)
        _check_parameter(parameter)
        reach = DEFAULT_RANGES[parameter]
        poses = np.linspace(-reach, reach, 13) if values is None else np.asarray(values, dtype=float)
        if poses.ndim != 1 or not poses.size or not np.isfinite(poses).all():
            raise ValueError(f"values must be a list of one or more finite numbers, got {values!r}.")
        family = next(family for family in FAMILIES if parameter in parameters_of(family))
        still = dict.fromkeys(parameters_of(family), 0.0)
        image_shape = image_shape_in(estimator) if image_shape is None else image_shape
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
        label, drawn = AXES[_check_parameter(self.parameter)]
        self.ax_ = ax = new_axes(ax)
        self.figure_ = ax.figure
        k = len(ax.lines)
        style = {"color": COLOURS[k % len(COLOURS)], "marker": "osD^v"[k % 5], "markersize": 4}
        style["label"] = self.name if name is None else name
        (self.line_,) = ax.plot(drawn(self.values), self.scores, **{**style, **line_kwargs})
        ax.set(xlabel=label, ylabel=self.score_name)
        if self.parameter == "angle":
            degree_ticks(ax.xaxis)
        if self.score_name == "accuracy":
            ax.set_ylim(0, 1.02)
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            # Above the axes: inside it would hide a curve.
            ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small")
        return self


def _check_parameter(parameter: str) -> str:
    if not isinstance(parameter, str) or parameter not in AXES:
        near = get_close_matches(str(parameter), AXES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"parameter must be one of {list(AXES)}, got {parameter!r}.{hint}")
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
