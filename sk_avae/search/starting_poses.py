r"""Starting poses: a shared low-discrepancy table, and proposals from each image's own moments.

The search for a pose is decided by where it starts. Two sources are interleaved, in a fixed order, so that the first k
starts of a longer list are the list of k:

- a Halton table around the identity, the same for every image: the identity first, then the half and the quarter
  turns, then ever finer rings of angles with the other parameters spread around 0;
- for families that can shift or scale, poses that give an image the centroid and the second moments of a typical
  training image, rotated by a ring of angles. With ink ``w``, centroid ``c`` and covariance ``C`` of the image and
  :math:`\bar c, \bar C` of the training images, :math:`L \bar C L^T = C` is solved by
  :math:`L = C^{1/2} R(\theta) \bar C^{-1/2}` (whitening) for every angle, and up to a scale by
  :math:`L = (|C| / |\bar C|)^{1/4} R(\theta)`; then :math:`t = c - L \bar c`.

References
----------
Halton (1960), "On the efficiency of certain quasi-random sequences of points"; Hu (1962), "Visual pattern recognition
by moment invariants".
"""

import math

import torch
from torch import Tensor

from ..model.affine import REFLECTED, from_matrix, parameters_of, without_reflection
from ..model.moments import Moments, exact_moments, mirrored

# How far the table reaches to either side of the identity, and what training images are perturbed by.
REACH = {
    "angle": math.pi,
    "log_scale": 0.5,
    "log_scale_x": 0.5,
    "log_scale_y": 0.5,
    "shear": 0.5,
    "tx": 0.3,
    "ty": 0.3,
}

# What a moment proposal may ask for: ink in a single row has no second moment to scale to.
_LARGEST_PROPOSAL = 1.5

_PRIMES = (2, 3, 5, 7, 11, 13)
_N_PURE_TURNS = 4


def radical_inverse(index: int, base: int) -> float:
    """Mirror the digits of `index` at the point: the van der Corput sequence.

    Examples
    --------
    >>> [radical_inverse(i, 2) for i in range(4)]
    [0.0, 0.5, 0.25, 0.75]
    """
    value, weight = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * weight
        weight /= base
    return value


def _centred(index: int, base: int) -> float:
    """Return the van der Corput sequence in [-0.5, 0.5), beginning at 0."""
    return (radical_inverse(index, base) + 0.5) % 1.0 - 0.5


def restart_table(n_restarts: int, family: str, scale: tuple[float, ...]) -> Tensor:
    """Return the starting poses that every image is screened at.

    Parameters
    ----------
    n_restarts : int
        Number of rows. A family whose parameters are all frozen has the identity alone.
    family : str
        The family whose parameters the columns are.
    scale : tuple of float
        The prior's standard deviations; columns of frozen parameters (0) are 0.

    Returns
    -------
    alpha : Tensor of shape (n_restarts, n_params)

    Examples
    --------
    >>> restart_table(4, "rotation", (float("inf"),)).rad2deg().flatten()
    tensor([   0., -180.,   90.,  -90.])
    """
    names = parameters_of(family)
    free = [s > 0 for s in scale]
    if not any(free):
        return torch.zeros(min(1, n_restarts), len(names), dtype=torch.float32)
    n_pure_turns = _N_PURE_TURNS if free[0] else 1
    rows = []
    for i in range(n_restarts):
        row = []
        for name, base, is_free in zip(names, _PRIMES, free, strict=False):
            varies = is_free and (name == "angle" or i >= n_pure_turns)
            row.append(2 * REACH[name] * _centred(i, base) if varies else 0.0)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float32).view(-1, len(names))


def reach_of(family: str, scale: tuple[float, ...]) -> list[float]:
    """Return how far to either side of 0 `random_poses` goes, per parameter."""
    return [float(min(REACH.get(name, 1.0), 3 * s)) for name, s in zip(parameters_of(family), scale, strict=True)]


def _square_root(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of covariances of shape (n, 2, 2), in closed form."""
    identity = torch.eye(2, dtype=covariance.dtype, device=covariance.device)
    # No thinner than a hundredth of the half height: a single line of ink still has a root that can be inverted.
    covariance = covariance + 1e-4 * identity
    determinant = covariance[:, 0, 0] * covariance[:, 1, 1] - covariance[:, 0, 1].square()
    root = determinant.clamp(min=1e-12).sqrt()[:, None, None]
    trace = (covariance[:, 0, 0] + covariance[:, 1, 1])[:, None, None]
    return (covariance + root * identity) / (trace + 2 * root).sqrt()


def moment_proposals(
    images: Tensor, background: Tensor, typical: Moments, n_proposals: int, family: str, scale: tuple[float, ...]
) -> Tensor:
    """Return poses that give each image the moments of a typical training image.

    Whitening and one common scale take turns, each over a ring of angles that grows ever finer.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)
    typical : Moments
        Of the training images, with n = 1.
    n_proposals : int
    family : str
    scale : tuple of float
        The prior's standard deviations; columns of frozen parameters (0) are 0.

    Returns
    -------
    alpha : Tensor of shape (n, n_proposals, n_params)
    """
    found = exact_moments(images, background)
    typical = Moments(typical.centroid.double(), typical.covariance.double())
    n, aspect = len(images), images.shape[3] / images.shape[2]
    root, typical_root = _square_root(found.covariance), _square_root(typical.covariance)
    common = (torch.linalg.det(root) / torch.linalg.det(typical_root)).sqrt()[:, None, None]
    back = torch.linalg.inv(typical_root)
    proposals = []
    for i in range(n_proposals):
        turn = _rotation(2 * math.pi * _centred(i // 2, 2) if scale[0] > 0 else 0.0, root)
        linear = root @ turn @ back if i % 2 else common * turn
        shift = found.centroid - (linear @ typical.centroid[:, :, None])[:, :, 0]
        proposals.append(_pose(linear, shift, family, aspect))
    alpha = torch.stack(proposals, dim=1) if proposals else images.new_zeros(n, 0, len(parameters_of(family)))
    alpha = alpha.to(images.dtype)
    return alpha * alpha.new_tensor([float(s > 0) for s in scale])


def uses_moments(images: Tensor, family: str, scale: tuple[float, ...]) -> bool:
    """Tell whether a family does more than turn images, so that their moments say something of the pose."""
    more = any(
        name not in ("angle", REFLECTED) and s > 0 for name, s in zip(parameters_of(family), scale, strict=False)
    )
    return more and images.shape[2] > 1 and images.shape[3] > 1


def _rotation(angle: float, like: Tensor) -> Tensor:
    """Return the matrix that turns counter-clockwise as seen on the screen, where y points down."""
    return like.new_tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _pose(linear: Tensor, shift: Tensor, family: str, aspect: float) -> Tensor:
    """Read a family's parameters off transforms in half heights, within bounds."""
    full = from_matrix(torch.cat([linear, shift[:, :, None]], dim=2), family)
    names = parameters_of(family)
    if "tx" in names:
        full = full / full.new_tensor([aspect if name == "tx" else 1.0 for name in names])
    bounds = full.new_tensor([math.pi if name == "angle" else _LARGEST_PROPOSAL for name in names])
    return full.clamp(-bounds, bounds)


def starting_poses(
    images: Tensor,
    background: Tensor,
    typical: Moments | None,
    n_restarts: int,
    family: str,
    scale: tuple[float, ...],
) -> Tensor:
    """Return each image's starting poses: the table, interleaved with moment proposals where they can help.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)
    typical : Moments or None
        Of the training images; None leaves the proposals out.
    n_restarts : int
        All starts of an image together.
    family : str
    scale : tuple of float
        The prior's standard deviations.

    Returns
    -------
    alpha : Tensor of shape (n, n_restarts, n_params)
        The identity first.
    """
    names = parameters_of(family)
    if names[-1] == REFLECTED:
        return _mirrored_too(images, background, typical, n_restarts, without_reflection(family), scale[:-1])
    if typical is None or not uses_moments(images, family, scale):
        return restart_table(n_restarts, family, scale).to(images).expand(len(images), -1, -1)
    from_moments = [i >= _N_PURE_TURNS and i % 3 != 0 for i in range(n_restarts)]
    n_proposals = sum(from_moments)
    table = restart_table(n_restarts - n_proposals, family, scale).to(images)
    proposals = moment_proposals(images, background, typical, n_proposals, family, scale)
    starts = images.new_empty(len(images), n_restarts, len(names))
    proposed = torch.tensor(from_moments, dtype=torch.bool)
    starts[:, proposed], starts[:, ~proposed] = proposals, table
    return starts


def _mirrored_too(
    images: Tensor,
    background: Tensor,
    typical: Moments | None,
    n_restarts: int,
    family: str,
    scale: tuple[float, ...],
) -> Tensor:
    """Return the starting poses of a family, every second one of them for the mirrored canonical image."""
    plain = starting_poses(images, background, typical, -(-n_restarts // 2), family, scale)
    typical = typical and mirrored(typical)
    of_mirrored = starting_poses(images, background, typical, n_restarts // 2, family, scale)
    starts = images.new_zeros(len(images), plain.shape[1] + of_mirrored.shape[1], plain.shape[2] + 1)
    starts[:, 0::2, :-1] = plain
    starts[:, 1::2, :-1] = of_mirrored
    starts[:, 1::2, -1] = 1.0
    return starts
