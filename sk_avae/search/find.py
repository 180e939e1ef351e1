"""One whole search: where to start, alignment, gaps filled by what was found, and how certain it is."""

import math
from typing import Protocol

import torch
from torch import Tensor

from ..model.avae import AVAE, with_gaps_explained
from .align import Alignment, align, with_own_elbo
from .certainty import pose_deviation
from .objective import Objective
from .proposer import PoseInitializer
from .settings import SearchSettings

# Times that gaps are filled by what was found, and searched again.
_N_FILLINGS = 2


class Seen(Protocol):
    """Images to search, as they came, and which of their pixels are known; all of shape (n, C, H, W)."""

    @property
    def images(self) -> Tensor:
        """What the search looks at: without faults and noise, gaps filled somehow."""

    @property
    def own(self) -> Tensor:
        """The images with these, of which the ELBO is."""

    @property
    def observed(self) -> Tensor | None:
        """Which pixels are known; None if all are."""


def find_poses(
    model: AVAE,
    initializer: PoseInitializer,
    settings: SearchSettings,
    seen: Seen,
    *,
    movable: Tensor,
    certainty: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Find the poses of some images; where these have gaps, fill them by what was found and search again.

    Parameters
    ----------
    model : AVAE
    initializer : PoseInitializer
    settings : SearchSettings
    seen : Seen
    movable : Tensor of bool of shape (n,)
        Which images may move.
    certainty : bool
        Whether `alpha_std` and the proposer's agreement are wanted.

    Returns
    -------
    images : Tensor of shape (n, C, H, W)
        What was searched in the end.
    tensors : dict from str to Tensor
        Those of `Alignment`, and with `certainty` these two, in units of the frame.
    """

    def search(images: Tensor, observed: Tensor | None, movable: Tensor) -> tuple[Objective, Alignment]:
        objective = Objective(model, images, observed)
        candidates = initializer.candidates(model, images, settings.n_restarts)
        return objective, align(objective, candidates, settings, movable)

    images, own, observed = seen.images, seen.own, seen.observed
    objective, found = search(images, observed, movable)
    if observed is not None and not bool(observed.all()):
        gaps = (~observed).flatten(1).any(dim=1).nonzero()[:, 0]
        for _ in range(_N_FILLINGS):
            images = _filled(model, images, observed, found, gaps)
            _, again = search(images[gaps], observed[gaps], movable[gaps])
            found = found.updated(gaps, again)
        images = _filled(model, images, observed, found, gaps)
        objective, own = Objective(model, images, observed), torch.where(observed, own, images)
    if own is not images:
        changed = (own != images).flatten(1).any(dim=1).nonzero()[:, 0]
        if len(changed):
            found = with_own_elbo(found, model, own, changed, observed)
    tensors = found.arrays()
    if certainty:
        tensors |= _certainty(objective, initializer, found.alpha, movable)
    return images, tensors


def _filled(model: AVAE, images: Tensor, observed: Tensor, found: Alignment, gaps: Tensor) -> Tensor:
    """Return images, some of them with gaps filled by what the model expects there at the poses found."""
    filled = with_gaps_explained(model, images[gaps], observed[gaps], found.alpha[gaps])
    return images.index_copy(0, gaps, filled)


def _certainty(objective: Objective, initializer: PoseInitializer, alpha: Tensor, movable: Tensor) -> dict[str, Tensor]:
    """Return what is known of poses, in units of the frame; of images that have none nothing is."""
    deviation = pose_deviation(objective, alpha)
    agreement = initializer.agreement(objective.model, objective.images, alpha)
    return {
        "alpha_std": deviation.masked_fill(~movable[:, None] & (deviation != 0), math.nan),
        "agreement": agreement.masked_fill(~movable, math.nan),
    }
