"""`AlignmentResult`: what alignment found, image by image, as arrays."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from ._frames import pandas
from .model.affine import REFLECTED

# Images that a notebook shows.
_SHOWN = 5


@dataclass(frozen=True)
class AlignmentResult:
    """What alignment found, image by image.

    `len` counts the images. ``result[mask]`` is the result of some of them; a slice, an array of numbers and one number
    do as well.

    Attributes
    ----------
    alpha : ndarray of shape (n_samples, n_params)
        The pose of each image: angles in radians, logarithms of scales, translations in half sides.
    matrix : ndarray of shape (n_samples, 2, 3)
        Maps canonical to input coordinates.
    elbo : ndarray of shape (n_samples,)
        ELBO at `alpha`, without the prior, in nats.
    elbo_identity : ndarray of shape (n_samples,)
        ELBO of the image as it came.
    gain : ndarray of shape (n_samples,)
        What the best hypothesis gains over the image as it came, in nats: ELBO, log prior and what critic and proposer
        say.
        The image was moved if this exceeds `min_gain`.
    n_iter : ndarray of shape (n_samples,)
        Evaluations that refining took, for the hypothesis that took the most.
    converged : ndarray of shape (n_samples,)
        Whether the refinement of the best hypothesis converged.
    hypotheses : ndarray of shape (n_samples, n_hypotheses, n_params)
        Distinct poses, best first; an image that stays put has the identity before them. Where fewer were found,
        repetitions follow, with weight 0.
    hypothesis_elbo : ndarray of shape (n_samples, n_hypotheses)
        Their ELBO.
    hypothesis_weight : ndarray of shape (n_samples, n_hypotheses)
        Their probabilities: proportional to exp(score / temperature), with the score as in `gain` (an image that stays
        adds `min_gain` to the identity's) and the temperature that `fit` learned. A hypothesis that was given up on the
        way, hopelessly behind, has the score that it had got to. What they lack to 1 is the probability that none of
        them is right.
    alpha_std : ndarray of shape (n_samples, n_params) or None
        Standard deviation of `alpha` if its mode is right: of the curvature at the optimum and of the training images'
        own poses together; 0 where a parameter is frozen. NaN where neither curvature nor prior say anything: an angle
        may then be any.
    confidence : ndarray of shape (n_samples,) or None
        The probability, between 0 and 1, that the pose is right: the angle within 20 degrees, logarithms of scales and
        shear within 0.3, shifts within 0.2 half sides. Weights and `alpha_std` together, calibrated in `fit` on
        perturbed images that it held out; 0 for a constant image, which has no pose. See `reject`.
    parameters : tuple of str
        Names of alpha's columns.
    image_shape : tuple of int
        (height, width) in pixels, the unit of `to_frame`'s shifts.
    """

    alpha: Any
    matrix: Any
    elbo: Any
    elbo_identity: Any
    gain: Any
    n_iter: Any
    converged: Any
    hypotheses: Any
    hypothesis_elbo: Any
    hypothesis_weight: Any
    alpha_std: Any = None
    confidence: Any = None
    parameters: tuple[str, ...] = ()
    image_shape: tuple[int, int] = (1, 1)

    def __repr__(self) -> str:
        # A sentence, not a thousand rows of numbers.
        n, found = len(self.alpha), ", ".join(self.parameters)
        if not n:
            return f"AlignmentResult(0 images, alpha: {found})"
        before, after = float(self.elbo_identity.mean()), float(self.elbo.mean())
        share = float(self.converged.sum()) / n
        return (
            f"AlignmentResult({n:,} images, alpha: {found}; "
            f"mean ELBO {before:.1f} as they came, {after:.1f} at alpha; {share:.0%} converged)"
        )

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, index: Any) -> Self:
        """Return the result of some images: a slice, a mask, an array of numbers, or one number.

        One number gives a result of one image, so that its arrays have as many axes as before.
        """
        some = index if isinstance(index, slice) else np.atleast_1d(np.asarray(index))
        return replace(self, **{name: array[some] for name, array in self.arrays().items()})

    def _repr_html_(self) -> str:
        """Return what notebooks show: the sentence of `repr` and the first images."""
        shown = min(len(self), _SHOWN)
        columns = self[:shown]._columns()
        head = "".join(f"<th>{name}</th>" for name in columns)
        rows = zip(*columns.values(), strict=True)
        body = "".join(
            f"<tr><th>{k}</th>{''.join(f'<td>{_readable(value)}</td>' for value in row)}</tr>"
            for k, row in enumerate(rows)
        )
        more = f"<p>… and {len(self) - shown:,} more; <code>to_frame()</code> has all.</p>" if len(self) > shown else ""
        return f"<p>{self!r}</p><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    @property
    def reflected(self) -> Any:
        """Which images are mirrored (left to right in the canonical pose), of shape (n_samples,), bool."""
        mirrored = self.alpha[:, -1] > 0.5
        return mirrored if self.parameters[-1:] == (REFLECTED,) else mirrored & False

    @property
    def pixel_matrix(self) -> Any:
        """Transforms from canonical to input pixels, of shape (n_samples, 3, 3), float64.

        They map homogeneous coordinates (x, y, 1): x counts pixels to the right and y down, from 0 at the centre of the
        first. ``skimage.transform.AffineTransform(matrix=result.pixel_matrix[0])`` is the pose of the first image, and
        ``skimage.transform.warp(image, that)`` its canonical image.
        """
        matrix = np.zeros((len(self.matrix), 3, 3))
        matrix[:, :2], matrix[:, 2, 2] = self.matrix, 1.0
        height, width = self.image_shape
        to_pixels = np.array([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])
        return to_pixels @ matrix @ np.linalg.inv(to_pixels)

    def transform_points(self, points: Any) -> Any:
        """Carry points along to the canonical images: landmarks, the corners of boxes, outlines.

        Parameters
        ----------
        points : array-like of shape (n_samples, n_points, 2) or (n_points, 2)
            (x, y) in pixels of the images as they came, see `pixel_matrix`; of shape (n_points, 2) the same ones in
            each image. NaN stays NaN.

        Returns
        -------
        points : ndarray of shape (n_samples, n_points, 2)
            Where these are in the canonical images.

        Raises
        ------
        ValueError
            If the shape is none of these.

        Examples
        --------
        >>> from sk_avae import AVAEEstimator
        >>> from sk_avae.datasets import load_mnist_sample
        >>> X, _ = load_mnist_sample("train")
        >>> result = AVAEEstimator(max_epochs=1, random_state=0).fit(X[:300]).align(X[300:310])
        >>> corners = [[0, 0], [27, 0], [27, 27], [0, 27]]
        >>> result.transform_points(corners).shape
        (10, 4, 2)
        """
        return self._carried(points, np.linalg.inv(self.pixel_matrix))

    def inverse_transform_points(self, points: Any) -> Any:
        """Carry points in canonical images back to the images as they came.

        Parameters
        ----------
        points : array-like of shape (n_samples, n_points, 2) or (n_points, 2)
            (x, y) in pixels of the canonical images, see `transform_points`.

        Returns
        -------
        points : ndarray of shape (n_samples, n_points, 2)
            Where these are in the images as they came.
        """
        return self._carried(points, self.pixel_matrix)

    def _carried(self, points: Any, matrix: Any) -> Any:
        points = np.asarray(points, dtype=float)
        n = len(matrix)
        if points.ndim not in (2, 3) or points.shape[-1] != 2 or (points.ndim == 3 and len(points) != n):
            raise ValueError(
                f"points must have shape ({n}, n_points, 2), or (n_points, 2) for the same in each of the {n} images, "
                f"got {points.shape}. Each point is (x, y) in pixels."
            )
        return points @ matrix[:, :2, :2].transpose(0, 2, 1) + matrix[:, None, :2, 2]

    def reject(self, threshold: float = 0.8) -> Any:
        """Tell which images have a pose that is not to be relied on.

        Parameters
        ----------
        threshold : float, default=0.8
            Between 0 and 1: images whose `confidence` is below it are rejected. Choose it on images whose poses are
            known; of two poses that are equally likely each has a confidence of about 0.5.

        Returns
        -------
        rejected : ndarray of bool of shape (n_samples,)

        Raises
        ------
        ValueError
            If the threshold is not between 0 and 1, or this result was made without `confidence`.

        Examples
        --------
        >>> import numpy as np
        >>> result = AlignmentResult(*[np.zeros(3)] * 10, confidence=np.array([0.2, 0.9, 0.99]))
        >>> result.reject(0.5)
        array([ True, False, False])
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold!r}.")
        if self.confidence is None:
            raise ValueError("This result has no confidence. Use the one that `align` returns.")
        return self.confidence < threshold

    def arrays(self) -> dict[str, Any]:
        """Return the per-image arrays by name."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.type is Any}
        return {name: array for name, array in arrays.items() if array is not None}

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with a row per image, in degrees, factors and pixels.

        Angles become ``<name>_deg``, scales factors (``scale`` for ``log_scale``), translations pixels
        (``tx_px``), reflection True or False; the probability of the mode, the confidence, ELBO, `gain`, iterations
        and convergence follow.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return pandas().DataFrame(self._columns())

    def _columns(self) -> dict[str, Any]:
        """Return the columns of `to_frame`."""
        height, width = self.image_shape
        columns: dict[str, Any] = {}
        for name, values in zip(self.parameters, self.alpha.T, strict=True):
            if name == "angle":
                columns["angle_deg"] = values * (180 / math.pi)
            elif name.startswith("log_scale"):
                columns[name.removeprefix("log_")] = np.array([math.exp(value) for value in values])
            elif name in ("tx", "ty"):
                columns[f"{name}_px"] = values * (width if name == "tx" else height) / 2
            else:
                columns[name] = self.reflected if name == REFLECTED else values
        columns["probability"] = self.hypothesis_weight[:, 0]
        if self.confidence is not None:
            columns["confidence"] = self.confidence
        columns["elbo"] = self.elbo
        columns["gain"] = self.gain
        columns["n_iter"] = self.n_iter
        columns["converged"] = self.converged
        return columns


def _readable(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
