"""Half turns: poses of like images that differ by half a turn are made one.

Joint training can learn a class in two poses, upright and upside down: then neither is worse than the other. A look at
both tells: an image whose neighbours look like itself when they are turned by half is the odd one out, and turns.

References
----------
Singer (2011), "Angular synchronization by eigenvectors and semidefinite programming" (poses that agree from relative
ones); Besag (1986), "On the statistical analysis of dirty pictures" (each in turn takes the side that its neighbours
favour).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.affine import wrap_angle
from ..model.avae import AVAE, canonical_images

# Images that others are compared with, the pixels a side that are compared, neighbours that have a say, and rounds.
_N_COMPARED = 3000
_SIDE = 14
_N_NEIGHBOURS = 20
_N_ROUNDS = 30
_N_ROWS = 4096


def without_half_turns(model: AVAE, images: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Return poses, of shape (n, n_params), some of them turned by half so that like images lie alike.

    Parameters
    ----------
    model : AVAE
        Its family has a free angle without a prior; else poses stay as they are.
    images : Tensor of shape (n, n_channels, height, width)
    alpha : Tensor of shape (n, n_params)
    generator : torch.Generator
        On the CPU: draws which images are compared with, and in which order they turn.
    """
    n = len(images)
    if math.isfinite(model.scale[0]) or n < 2:
        return alpha
    some = torch.randperm(n, generator=generator)[:_N_COMPARED].to(images.device)
    upright, turned = _looks(model, images[some], alpha[some])
    votes = _votes(upright, upright, turned, own=True)
    sign = upright.new_ones(len(some))
    for _ in range(_N_ROUNDS):
        # Half of them at a time: all at once would change sides for ever.
        wants = torch.einsum("nk,nk->n", votes[1], sign[votes[0]])
        turns = (wants * sign < 0) & (torch.rand(len(some), generator=generator) < 0.5).to(sign.device)
        sign = torch.where(turns, -sign, sign)
    if bool((sign > 0).all()):
        return alpha
    side = []
    for first in range(0, n, _N_ROWS):
        rows = slice(first, first + _N_ROWS)
        look, _ = _looks(model, images[rows], alpha[rows])
        neighbours, weight = _votes(look, upright, turned)
        side.append(torch.einsum("nk,nk->n", weight, sign[neighbours]))
    turns = torch.cat(side) < 0
    turns[some] = sign < 0
    half = torch.zeros_like(alpha)
    half[:, 0] = math.pi
    return torch.where((turns & alpha.isfinite().all(dim=1))[:, None], wrap_angle(alpha + half, model.family), alpha)


def _looks(model: AVAE, images: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return small canonical images as they are and turned by half, as vectors of length 1, of shape (n, d)."""
    canonical = canonical_images(model, images, alpha) - model.background.view(1, -1, 1, 1)
    height, width = canonical.shape[2:]
    small = F.adaptive_avg_pool2d(canonical, (min(height, _SIDE), min(width, _SIDE)))
    return F.normalize(small.flatten(1), dim=1), F.normalize(small.flip((2, 3)).flatten(1), dim=1)


def _votes(look: Tensor, upright: Tensor, turned: Tensor, *, own: bool = False) -> tuple[Tensor, Tensor]:
    """Return the nearest others of each, however they lie, and by how much these are for its side; (n, k) each."""
    alike, opposite = look @ upright.T, look @ turned.T
    if own:
        alike.fill_diagonal_(-1.0)
        opposite.fill_diagonal_(-1.0)
    k = min(_N_NEIGHBOURS, max(1, alike.shape[1] - own))
    near = torch.maximum(alike, opposite).topk(k, dim=1).indices
    return near, alike.gather(1, near) - opposite.gather(1, near)
