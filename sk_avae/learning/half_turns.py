"""Half turns: poses of like images that differ by half a turn are made one.

Joint training can learn a class in two poses, upright and upside down: then neither is worse than the other. A look at
both tells. Images that are alike have sides in common, and those that are alike once one of them is turned by half have
not; from neighbour to neighbour, all sides follow from these.

References
----------
Singer (2011), "Angular synchronization by eigenvectors and semidefinite programming" (poses that agree, from relative
ones: the leading eigenvector of the graph, here by power iteration from the sides as they are).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array
from torch import Tensor

from ..model.affine import wrap_angle
from ..model.avae import AVAE, canonical_images

# Images that others are compared with, the pixels a side that are compared, and neighbours that have a say.
_N_COMPARED = 3000
_SIDE = 14
_N_NEIGHBOURS = 20
# A difference of cosines that says nothing: many images look the same both ways.
_NO_DIFFERENCE = 0.05
_N_STEPS = 1000
_N_ROWS = 4096


def without_half_turns(model: AVAE, images: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Return poses, of shape (n, n_params), some of them turned by half so that like images lie alike.

    Parameters
    ----------
    model : AVAE
        Where its family's angle is frozen or has a prior, poses stay as they are.
    images : Tensor of shape (n, n_channels, height, width)
    alpha : Tensor of shape (n, n_params)
    generator : torch.Generator
        On the CPU: draws which images the others are compared with.
    """
    n = len(images)
    if math.isfinite(model.scale[0]) or n < 2:
        return alpha
    some = torch.randperm(n, generator=generator)[:_N_COMPARED].to(images.device)
    upright, turned = _looks(model, images[some], alpha[some])
    side = torch.from_numpy(_sides(*_votes(upright, upright, turned, own=True))).to(upright)
    wants = []
    for first in range(0, n, _N_ROWS):
        rows = slice(first, first + _N_ROWS)
        look, _ = _looks(model, images[rows], alpha[rows])
        neighbours, vote = _votes(look, upright, turned)
        wants.append((vote * side[neighbours]).sum(dim=1))
    turns = torch.cat(wants) < 0
    turns[some] = side < 0
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
    """Return the nearest others of each, whichever way they lie, and how much these are for its side; (n, k) each."""
    alike, opposite = look @ upright.T, look @ turned.T
    if own:
        alike.fill_diagonal_(-1.0)
        opposite.fill_diagonal_(-1.0)
    k = min(_N_NEIGHBOURS, max(1, alike.shape[1] - own))
    near = torch.maximum(alike, opposite).topk(k, dim=1).indices
    vote = alike.gather(1, near) - opposite.gather(1, near)
    return near, vote * (vote.abs() > _NO_DIFFERENCE)


def _sides(near: Tensor, vote: Tensor) -> NDArray[np.float64]:
    """Return the side of each image, positive or negative, of shape (n,): the leading eigenvector of the votes."""
    n, k = near.shape
    votes = vote.double().cpu().numpy().ravel()
    row, column = np.repeat(np.arange(n), k), near.cpu().numpy().ravel()
    graph = coo_array((votes, (row, column)), shape=(n, n)).tocsr()
    graph = (graph + graph.T) / 2
    degree = np.sqrt(np.maximum(np.abs(graph).sum(axis=1), 1e-6))
    side: NDArray[np.float64] = degree.copy()
    for _ in range(_N_STEPS):
        side = (graph @ (side / degree)) / degree
        largest = np.abs(side).max()
        if not largest:
            return np.ones(n)
        side = side / largest
    return side
