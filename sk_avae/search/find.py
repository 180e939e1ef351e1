"""One whole search: where to start, alignment, gaps filled by what was found, and how certain it is."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..model.avae import AVAE, with_gaps_explained
from .align import Alignment, align, with_own_elbo
from .certainty import pose_deviation
from .objective import Objective
from .proposer import PoseInitializer
from .settings import SearchSettings

# Times that gaps are filled by what was found, and searched again; and the fewest hypotheses of images with gaps, each
# of which has its say in what fills them.
_N_FILLINGS = 3
_N_FILLING = 4
# How many times the temperature grows with the part of an image that was guessed or smoothed: so that weights mean what
# they say for noisy digits and for digits without a quarter, too.
_IN_WEIGHTS = 3.0


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
    images, own, observed = seen.images, seen.own, seen.observed
    searched = _Search(model, initializer, settings)
    if observed is None or bool(observed.all()):
        doubt = None if own is images else _doubt(model, images, own)
        found = searched(images, None, movable, doubt)
    else:
        has_gaps = (~observed).flatten(1).any(dim=1)
        gaps, whole = has_gaps.nonzero()[:, 0], (~has_gaps).nonzero()[:, 0]
        filled, found = _found_with_gaps(searched, images[gaps], own[gaps], observed[gaps], movable[gaps])
        images = images.index_copy(0, gaps, filled)
        own, doubt = torch.where(observed, own, images), _doubt(model, images, own, observed)
        if len(whole):
            others = searched(images[whole], None, movable[whole], doubt[whole])
            found = found.beside(others, torch.cat([gaps, whole]).argsort())
    if own is not images:
        changed = (own != images).flatten(1).any(dim=1).nonzero()[:, 0]
        if len(changed):
            found = with_own_elbo(found, model, own, changed, observed)
    tensors = found.arrays()
    if certainty:
        tensors |= _certainty(Objective(model, images, observed), initializer, found.alpha, movable)
        if doubt is not None:
            tensors["alpha_std"] = tensors["alpha_std"] * (1 + doubt).sqrt()[:, None]
    return images, tensors


@dataclass(frozen=True)
class _Search:
    """Starting poses and alignment of some images."""

    model: AVAE
    initializer: PoseInitializer
    settings: SearchSettings

    def __call__(self, images: Tensor, observed: Tensor | None, movable: Tensor, doubt: Tensor | None) -> Alignment:
        candidates = self.initializer.candidates(self.model, images, self.settings.n_restarts)
        objective = Objective(self.model, images, observed, candidates.posterior)
        return align(objective, candidates, self.settings, movable, None if doubt is None else _IN_WEIGHTS * doubt)


def _found_with_gaps(
    search: _Search, images: Tensor, own: Tensor, observed: Tensor, movable: Tensor
) -> tuple[Tensor, Alignment]:
    """Fill gaps by what the model expects there, and search again, a few times over.

    What one pose expects would speak for that pose: all hypotheses have their say.
    """
    model, settings = search.model, search.settings
    wide = replace(search, settings=replace(settings, n_refine=max(settings.n_refine, _N_FILLING)))
    found = wide(images, observed, movable, _doubt(model, images, own, observed))
    for _ in range(_N_FILLINGS):
        images = _filled(model, images, observed, found)
        found = wide(images, observed, movable, _doubt(model, images, own, observed))
    best = with_gaps_explained(model, images, observed, found.alpha)
    return best, found.of_best(settings.n_refine)


def _filled(model: AVAE, images: Tensor, observed: Tensor, found: Alignment) -> Tensor:
    """Return images with gaps filled by the mean of what the model expects there at each hypothesis."""
    total = torch.zeros_like(images)
    for alpha, weight in zip(found.hypotheses.unbind(1), found.hypothesis_weight.unbind(1), strict=True):
        share = (weight > 0).to(images).view(-1, 1, 1, 1)
        total = total + share * with_gaps_explained(model, images, observed, alpha)
    n = (found.hypothesis_weight > 0).sum(dim=1).clamp(min=1).to(images)
    return torch.where(observed, images, total / n.view(-1, 1, 1, 1))


def _doubt(model: AVAE, images: Tensor, own: Tensor, observed: Tensor | None = None) -> Tensor:
    """Return which part of the ink of images was guessed or smoothed, between 0 and 1, of shape (n,)."""
    ink = (images - model.background.view(1, -1, 1, 1)).abs()
    guessed = (own - images).abs().minimum(ink.flatten(1).amax(dim=1).view(-1, 1, 1, 1))  # a hot pixel is one pixel
    if observed is not None:
        guessed = torch.where(observed, guessed, ink)
    guessed, ink = (some.flatten(1).double().sum(dim=1) for some in (guessed, ink))
    # In the precision of scores: beside a doubtful image another one's weights would round in double.
    return (guessed / ink.clamp(min=1e-6)).clamp(max=1.0).to(images)


def _certainty(objective: Objective, initializer: PoseInitializer, alpha: Tensor, movable: Tensor) -> dict[str, Tensor]:
    """Return what is known of poses, in units of the frame; of images that have none nothing is."""
    deviation = pose_deviation(objective, alpha)
    agreement = initializer.agreement(objective.model, objective.images, alpha)
    return {
        "alpha_std": deviation.masked_fill(~movable[:, None] & (deviation != 0), math.nan),
        "agreement": agreement.masked_fill(~movable, math.nan),
    }
