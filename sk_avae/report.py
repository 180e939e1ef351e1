"""What came of images that `fit` held out: how far the poses of a fitted model are to be trusted."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._frames import pandas

# Fewer poses right than this is worth a warning; with fewer than that the images seem to have no common pose at all.
FEW_RIGHT = 0.6
HARDLY_ANY_RIGHT = 0.25
# An error of more than this is half a turn.
HALF_TURN = math.radians(160)
_N_BINS = 10


@dataclass(frozen=True, eq=False)
class AlignmentReport:
    """How many poses of held-out images come back: `fit` perturbs images that its VAE has not seen, and aligns them.

    A pose is right if its angle is within 20 degrees of the true one, and what it leaves of the true transform is
    nearer to the identity than 0.6 (Frobenius norm of matrices), the reach of a refinement. Few images are perturbed
    several times.

    Attributes
    ----------
    n_images : int
        Images that were held out.
    n_poses : int
        Poses that were looked for: so many times an image was perturbed.
    share_right : float
        Share of the poses that were found again, between 0 and 1.
    median_angle_error : float
        Median of the absolute error of the angle, in radians.
    share_half_turns : float
        Share of the poses that came out upside down: the angle wrong by more than 160 degrees.
    calibration_error : float
        Expected calibration error of `hypothesis_weight[:, 0]`, between 0 and 1: how far, on average over ten bins of
        the weight, it is from the share of poses that are right.
    mean_gain : float
        Mean gain of the score over the image as it came, in nats.
    weight, right : ndarray of shape (n_poses,)
        The weight of each first hypothesis, and whether its pose is right.

    References
    ----------
    Guo et al. (2017), "On calibration of modern neural networks", equation 3 (the expected calibration error).
    """

    n_images: int
    n_poses: int
    share_right: float
    median_angle_error: float
    share_half_turns: float
    calibration_error: float
    mean_gain: float
    weight: NDArray[Any] = field(repr=False)
    right: NDArray[Any] = field(repr=False)

    @classmethod
    def of(
        cls,
        n_images: int,
        *,
        angle_error: NDArray[Any],
        right: NDArray[Any],
        weight: NDArray[Any],
        gain: NDArray[Any],
    ) -> "AlignmentReport":
        """Sum up what was found.

        Parameters
        ----------
        n_images : int
            Images that were held out.
        angle_error : ndarray of shape (n_poses,)
            In radians, of either sign.
        right : ndarray of bool of shape (n_poses,)
            Whether each pose is right.
        weight : ndarray of shape (n_poses,)
            Weight of each first hypothesis.
        gain : ndarray of shape (n_poses,)
            Gain of each in score, in nats.

        Returns
        -------
        report : AlignmentReport

        Examples
        --------
        >>> found = AlignmentReport.of(
        ...     2,
        ...     angle_error=np.array([0.1, -0.1, 3.1, 0.0]),
        ...     right=np.array([True, True, False, True]),
        ...     weight=np.array([0.9, 0.9, 0.5, 0.9]),
        ...     gain=np.array([10.0, 20.0, 30.0, 0.0]),
        ... )
        >>> found
        AlignmentReport(75% of 4 poses right, of 2 held-out images; median angle error 5.7 degrees; 25% half turns; \
calibration error 0.20)
        """
        error = np.abs(angle_error)
        return cls(
            n_images=n_images,
            n_poses=len(right),
            share_right=float(right.mean()),
            median_angle_error=float(np.median(error)),
            share_half_turns=float((error > HALF_TURN).mean()),
            calibration_error=calibration_error(weight, right),
            mean_gain=float(gain.mean()),
            weight=np.ascontiguousarray(weight, dtype=np.float32),
            right=np.ascontiguousarray(right, dtype=bool),
        )

    def __repr__(self) -> str:
        return (
            f"AlignmentReport({self.share_right:.0%} of {self.n_poses:,} poses right, of {self.n_images:,} held-out "
            f"images; median angle error {math.degrees(self.median_angle_error):.1f} degrees; "
            f"{self.share_half_turns:.0%} half turns; calibration error {self.calibration_error:.2f})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in self._said().items())
        return f"<table><caption>Poses of held-out images</caption>{rows}</table>"

    def _said(self) -> dict[str, str]:
        return {
            "held-out images": f"{self.n_images:,}",
            "poses right": f"{self.share_right:.0%} of {self.n_poses:,}",
            "median angle error": f"{math.degrees(self.median_angle_error):.1f} degrees",
            "half turns": f"{self.share_half_turns:.0%}",
            "calibration error": f"{self.calibration_error:.2f}",
            "mean gain": f"{self.mean_gain:.1f} nats",
        }

    def state(self) -> dict[str, Any]:
        """Return all of it by name, as plain values: what files hold."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_dict(self) -> dict[str, float]:
        """Return the figures by name, without the arrays."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.repr}

    def to_frame(self) -> Any:
        """Return the figures as a pandas DataFrame of one row, so that those of several models can be stacked.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        return pandas().DataFrame([self.to_dict()])

    def advice(self, *, family: str, align_training: bool) -> str | None:
        """Return what to say where few poses come back; None where most do.

        Parameters
        ----------
        family : str
        align_training : bool
            As the model was fitted.
        """
        if self.share_right >= FEW_RIGHT:
            return None
        upright = "" if align_training else "align_training=True if the training images lie in any orientation; "
        narrower = "" if family == "rotation" else "family='rotation'; "
        seen = f"Only {self.share_right:.0%} of the poses of {self.n_images:,} held-out images come back"
        if self.share_half_turns > (1 - self.share_right) / 2:
            seen += f", and {self.share_half_turns:.0%} come back upside down"
        if self.share_right < HARDLY_ANY_RIGHT:
            seen += ": these images have no common pose, or are too few for how varied they are"
            return (
                f"{seen}. Try more images; {upright}{narrower}or leave them as they are: min_gain='auto' moves only "
                f"images that gain much by it. See alignment_report_."
            )
        return (
            f"{seen}. Try more images; {upright}{narrower}another padding, if something else lies around the images; "
            f"alpha_prior={{'angle': 0.3}} if large turns do not occur. See alignment_report_."
        )


def calibration_error(weight: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the expected calibration error of probabilities, over ten bins of equal width.

    Parameters
    ----------
    weight : ndarray of shape (n,)
        Between 0 and 1.
    right : ndarray of bool of shape (n,)

    Examples
    --------
    >>> round(calibration_error(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, True, False, False])), 3)
    0.1
    """
    bins = np.minimum((np.asarray(weight) * _N_BINS).astype(int), _N_BINS - 1)
    n = np.bincount(bins, minlength=_N_BINS)
    missing = np.bincount(bins, weights=np.asarray(weight, dtype=float) - right, minlength=_N_BINS)
    return float(np.abs(missing).sum() / max(1, n.sum()))
