"""First poses of training images that lie in any orientation: what their moments say.

An image is turned by its principal axis, and the two ways round are told apart by the third moments along it. That is
no canonical pose (letters have theirs from use, not from their moments). But like images come into like poses, and
joint training goes on from there. Images that have an orientation in common already are left as they are: turned
anyhow, they would vary more around their mean.

References
----------
Hu (1962), "Visual pattern recognition by moment invariants", section IV (principal axes, and third moments that tell
the two ways round).
"""

import math

import torch
from torch import Tensor

from ..model.affine import from_matrix, parameters_of, wrap_angle
from ..model.avae import AVAE
from ..model.moments import Moments
from ..search.proposer import moment_pose

_IMAGES_PER_PART = 2048
# How many images tell whether they lie anyhow, and by how much less than images turned anyhow these vary at least:
# upright digits by 7 percent, digits turned by up to 45 degrees by 4.
_N_COMPARED = 2000
_IN_COMMON = 0.02
# Below this relative difference of the two principal moments an image has no principal axis.
_ROUND = 1e-2


def first_poses(model: AVAE, images: Tensor, typical: Moments | None) -> Tensor:
    """Return the poses from which joint training begins, of shape (n, n_params): those of moments, or all 0.

    Those of moments are taken unless images have an orientation in common, or an angle is not to be found.

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
    if math.isfinite(model.scale[0]) or lie_alike(images[:: max(1, len(images) // _N_COMPARED)]):
        return still
    parts = images.split(_IMAGES_PER_PART)  # type: ignore[no-untyped-call]
    return torch.cat([moment_poses(model, part, typical) for part in parts])


def lie_alike(images: Tensor) -> bool:
    """Tell whether images have an orientation in common: they vary less than after quarter turns of one in four.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    """
    quarters = [0, 1, 2, 3] if images.shape[2] == images.shape[3] else [0, 2]
    anyhow = images.clone()
    for k, quarter in enumerate(quarters):
        anyhow[k :: len(quarters)] = images[k :: len(quarters)].rot90(quarter, dims=(2, 3))
    return _variation(images) < (1 - _IN_COMMON) * _variation(anyhow)


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
    matrix, aspect = model.matrix(alpha, images).double(), images.shape[3] / images.shape[2]
    # Whitened images turn into one another; those that then have the typical covariance do not.
    root = torch.eye(2, dtype=torch.double, device=images.device)
    if typical is not None and "shear" in names and base is not None:
        values, vectors = torch.linalg.eigh(typical.covariance[0].double().cpu())
        root = (vectors @ (values.clamp(min=1e-6).sqrt().diag()) @ vectors.T).to(images.device)
    half = root.new_tensor([aspect, 1.0])
    root = root * half / half[:, None]
    whitened = matrix[:, :, :2] @ root
    turn = orientation(images, model.background, whitened)
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, sin / aspect], 1), torch.stack([-sin * aspect, cos], 1)], 1)
    linear = whitened @ rotation @ torch.linalg.inv(root)
    found = from_matrix(torch.cat([linear, matrix[:, :, 2:]], dim=2), model.family, aspect=aspect).to(images)
    found = wrap_angle(found * found.new_tensor([float(s > 0) for s in model.scale]), model.family)
    return torch.where(found.isfinite().all(dim=1, keepdim=True), found, torch.zeros_like(found))


def orientation(images: Tensor, background: Tensor, linear: Tensor) -> Tensor:
    """Return by how much images are turned, once linear maps are removed, in radians, of shape (n,).

    The principal axis is upright then, and the third moment along it positive. Where there is no principal axis, as
    after whitening, the third moments alone tell.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)
    linear : Tensor of shape (n, 2, 2), float64
        From canonical to input coordinates.
    """
    ink = (images - background.view(1, -1, 1, 1)).abs().sum(dim=1).double().flatten(1) + 1e-9
    ink = ink / ink.sum(dim=1, keepdim=True)
    height, width = images.shape[2:]
    y = (torch.arange(height, device=images.device).double() + 0.5) * 2 / height - 1
    x = (torch.arange(width, device=images.device).double() + 0.5) * 2 / width - 1
    points = torch.stack([x.repeat(height), y.repeat_interleave(width)])
    half = points.new_tensor([width / height, 1.0])[:, None]
    centred = points[None] - (points[None] * ink[:, None]).sum(dim=2, keepdim=True)
    placed = (torch.linalg.inv(linear) @ centred) * half
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
