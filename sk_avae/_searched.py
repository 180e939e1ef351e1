"""What a search hands on: slices of rows with what was found, and what its caller is warned of."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ._callers import users_level
from .images import ImageFormat, SeenImages
from .model.faults import has_few
from .search.settings import SearchSettings


class Warping(NamedTuple):
    """How canonical images are made: the family of their poses, the interpolation, and whether gaps stay NaN."""

    family: str
    interpolation: str
    keeps_gaps: bool


class Searched(NamedTuple):
    """A slice of rows on its way: as tensors, and what was found.

    Attributes
    ----------
    rows : slice
        Which of the rows.
    padded : Tensor of shape (n, n_channels, height, width)
        The rows' own pixels with their margins.
    seen : SeenImages
        What the model sees.
    arrays : dict from str to ndarray
        Those of `AlignmentResult` but for its matrix, in the input's units.
    """

    rows: slice
    padded: Tensor
    seen: SeenImages
    arrays: dict[str, NDArray[Any]]

    def canonical(
        self, image_format: ImageFormat, rows: NDArray[Any], alpha: NDArray[Any], how: Warping
    ) -> NDArray[Any]:
        """Return these rows without their poses, in their own pixels; gaps are filled, or NaN again.

        Parameters
        ----------
        image_format : ImageFormat
        rows : ndarray of shape (n, n_features)
        alpha : ndarray of shape (n, n_params)
        how : Warping
        """
        padded, seen = self.padded, self.seen

        def warped(rows: NDArray[Any], pixels: Tensor, background: Tensor) -> NDArray[Any]:
            return image_format.warp_rows(
                rows, alpha, how.family, padded=pixels, background=background, interpolation=how.interpolation
            )

        background = image_format.own_background(seen.corrected, padded)
        if seen.corrected is not None:
            padded = image_format.with_own_margins(padded, seen.corrected, background)
        if seen.observed is None:
            return warped(rows, padded, background)
        unknown, expected = padded.isnan(), seen.images.cpu().to(padded.dtype)
        if seen.corrected is not None:
            expected = seen.corrected.undone(expected)
        filled = torch.where(unknown, image_format.frame.enlarged(image_format.from_model(expected)), padded)
        canonical = warped(image_format.to_rows(filled), filled, background)
        if how.keeps_gaps:
            gaps = unknown.to(padded.dtype)
            canonical[warped(image_format.to_rows(gaps), gaps, torch.zeros_like(background)) >= 0.5] = np.nan
        return canonical


class Told:
    """What a search has seen that its caller is warned of."""

    def __init__(self) -> None:
        self.n_missed = 0
        self.n_faulty = self.n_images = self.n_inverted = 0

    def note(self, seen: SeenImages) -> None:
        """Count faulty pixels; of images that are in other units altogether `fit`'s caller is told elsewhere."""
        if seen.corrected is not None:
            self.n_inverted += int(seen.corrected.inverts.sum())
        if seen.faulty is not None:
            few = has_few(seen.faulty)
            self.n_images += int(few.sum())
            self.n_faulty += int(seen.faulty[few].sum())

    def warn(self, n: int, settings: SearchSettings) -> None:
        """Warn of it, once for all n images."""
        if self.n_faulty:
            warnings.warn(
                f"{self.n_faulty} pixels of {self.n_images} of the {n} images lie farther outside the fitted range "
                f"than it is wide. The search takes them for faults and looks at their neighbours; results keep them.",
                UserWarning,
                stacklevel=users_level(),
            )
        if self.n_inverted:
            warnings.warn(
                f"The contrast of {self.n_inverted} of {n} images is inverted against the training images: dark where "
                f"these are bright. Their poses are found all the same, and results keep their pixels. A classifier "
                f"behind them needs images as it learned them: pass high + low - X.",
                UserWarning,
                stacklevel=users_level(),
            )
        if self.n_missed and settings.max_iter:
            warnings.warn(
                f"The poses of {self.n_missed} of {n} images stopped at max_iter={settings.max_iter} before they "
                f"converged to tol={settings.tol:g} nats. Raise max_iter or tol if that is too coarse.",
                ConvergenceWarning,
                stacklevel=users_level(),
            )
