"""First poses of training images that lie in any orientation: what their moments say.

An image is turned by its principal axis, and the two ways round are told apart by the third moments along it. That is
no canonical pose (letters have theirs from use, not from their moments). But like images come into like poses, and
joint training goes on from there. Where images lie upright already they are left as they are.

References
----------
Hu (1962), "Visual pattern recognition by moment invariants", section IV (principal axes, and third moments that tell
the two ways round).
"""

import math

import torch
from torch import Tensor

from ..model.affine import from_matrix, invert, parameters_of, wrap_angle
from ..model.avae import AVAE, canonical_images
from ..model.moments import Moments
from ..search.proposer import moment_pose

_IMAGES_PER_PART = 2048
# How many images tell whether moments bring them any closer.
_N_COMPARED = 2000
# Below this relative difference of the two principal moments an image has no principal axis.
_ROUND = 1e-2


def first_poses(model: AVAE, images: Tensor, typical: Moments | None) -> Tensor:
    """Return the poses from which joint training begins, of shape (n, n_params): those of moments, or all 0.

    Those of moments are taken if canonical images then vary less around their mean.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    typical : Moments or None
        See `starting_poses.starting_poses`.
    """
    still = images.new_zeros(len(images), len(parameters_of(model.family)))
    if not len(images) or min(images.shape[2:]) < 2:
        return still
    parts = [moment_poses(model, part, typical) for part in images.split(_IMAGES_PER_PART)]  # type: ignore[no-untyped-call]
    alpha = torch.cat(parts)
    some = slice(None, None, max(1, len(images) // _N_COMPARED))
    moved = _variation(canonical_images(model, images[some], alpha[some]))
    return alpha if moved < _variation(images[some]) else still


def _variation(images: Tensor) -> float:
    return float(images.double().var(dim=0, correction=0).mean())


def moment_poses(model: AVAE, images: Tensor, typical: Moments | None) -> Tensor:
    """Return poses that bring images to one place, size and orientation, as far as the family goes.

    Parameters
    ----------
    model, images, typical
        See `first_poses`.

    Returns
    -------
    alpha : Tensor of shape (n, n_params)
    """
    names = parameters_of(model.family)
    base = moment_pose(model, images, typical)
    alpha = images.new_zeros(len(images), len(names)) if base is None else base
    if "angle" not in names or math.isfinite(model.scale[names.index("angle")]):
        return alpha  # a turn by any angle is not what the prior expects
    matrix = model.matrix(alpha, images).double()
    turn = orientation(images, model.background, matrix)
    aspect = images.shape[3] / images.shape[2]
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, sin / aspect], 1), torch.stack([-sin * aspect, cos], 1)], 1)
    linear = matrix[:, :, :2] @ rotation
    found = from_matrix(torch.cat([linear, matrix[:, :, 2:]], dim=2), model.family, aspect=aspect).to(images)
    free = images.new_tensor([float(s > 0) for s in model.scale])
    found = wrap_angle(found * free, model.family)
    return torch.where(found.isfinite().all(dim=1, keepdim=True), found, torch.zeros_like(found))


def orientation(images: Tensor, background: Tensor, matrix: Tensor) -> Tensor:
    """Return by how much images are turned, once transforms are removed, in radians, of shape (n,).

    The principal axis is upright then, and the third moment along it positive. Where there is no principal axis, as
    after whitening, the third moments alone tell.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)
    matrix : Tensor of shape (n, 2, 3), float64
        What is removed first; its shift makes no difference.
    """
    ink = (images - background.view(1, -1, 1, 1)).abs().sum(dim=1).double().flatten(1) + 1e-9
    ink = ink / ink.sum(dim=1, keepdim=True)
    height, width = images.shape[2:]
    y = (torch.arange(height, device=images.device).double() + 0.5) * 2 / height - 1
    x = (torch.arange(width, device=images.device).double() + 0.5) * 2 / width - 1
    points = torch.stack([x.repeat(height), y.repeat_interleave(width)])
    half = points.new_tensor([width / height, 1.0])[:, None]
    centred = points[None] - (points[None] * ink[:, None]).sum(dim=2, keepdim=True)
    inverse = invert(matrix)[:, :, :2]
    placed = (inverse @ centred) * half
    covariance = (placed * ink[:, None]) @ placed.transpose(1, 2)
    squared = placed.square().sum(dim=1, keepdim=True)
    third = (placed * squared * ink[:, None]).sum(dim=2)
    # Screen coordinates: y points down, angles are counter-clockwise.
    difference, mixed = covariance[:, 0, 0] - covariance[:, 1, 1], 2 * covariance[:, 0, 1]
    axis = 0.5 * torch.atan2(-mixed, difference)
    along = third[:, 0] * axis.cos() - third[:, 1] * axis.sin()
    by_axis = torch.where(along < 0, axis + math.pi, axis)
    by_third = torch.atan2(-third[:, 1], third[:, 0])
    round_ = torch.hypot(difference, mixed) < _ROUND * (covariance[:, 0, 0] + covariance[:, 1, 1])
    return torch.where(round_, by_third, by_axis) - math.pi / 2
