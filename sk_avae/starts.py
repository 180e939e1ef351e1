r"""Starting poses: a shared low-discrepancy table, and proposals from each image's own moments.

The search for a pose is decided by where it starts. Two sources are interleaved, in a fixed order, so that the first k
starts of a longer list are the list of k:

- a Halton table around the identity, the same for every image: the identity first, then the half and the quarter
  turns, then ever finer rings of angles with the other parameters spread around 0;
- for families that can shift or scale, poses that give an image the centroid and the second moments of a typical
  training image, turned by a ring of angles. With ink ``w``, centroid ``c`` and covariance ``C`` of the image and
  :math:`\bar c, \bar C` of the training images, :math:`L \bar C L^T = C` is solved by
  :math:`L = C^{1/2} R(\theta) \bar C^{-1/2}` (whitening) for every angle, and up to a scale by
  :math:`L = (|C| / |\bar C|)^{1/4} R(\theta)`; then :math:`t = c - L \bar c`.

References
----------
Halton (1960), "On the efficiency of certain quasi-random sequences of points"; Hu (1962), "Visual pattern recognition
by moment invariants".
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .affine import REFLECTED, from_matrix, parameters_of, without_reflection

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

# Where the family cannot shift them, this share of images is taken to be off centre, by up to so many half sides to
# either side. MNIST's digits have their mass half a pixel off the frame's centre, all to the same side: taken at its
# word that alone tells up from down, and digits that are half a pixel off come out half a turn wrong.
_SHARE_OFF_CENTRE = 0.25
_OFF_CENTRE = 1 / 16

# What a moment proposal may ask for: ink in a single row has no second moment to scale to.
_LARGEST_PROPOSAL = 1.5

_PRIMES = (2, 3, 5, 7, 11, 13)
_N_PURE_TURNS = 4
_IMAGES_PER_PART = 4096


class Moments(NamedTuple):
    """Centroid, of shape (n, 2), and covariance, of shape (n, 2, 2), of the ink of images, in half heights."""

    centroid: Tensor
    covariance: Tensor

    def of(self, rows: Tensor) -> "Moments":
        """Return those of some of the images."""
        return Moments(self.centroid[rows], self.covariance[rows])


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
        return torch.zeros(min(1, n_restarts), len(names))
    n_pure_turns = _N_PURE_TURNS if free[0] else 1
    rows = []
    for i in range(n_restarts):
        row = []
        for name, base, is_free in zip(names, _PRIMES, free, strict=False):
            varies = is_free and (name == "angle" or i >= n_pure_turns)
            row.append(2 * REACH[name] * _centred(i, base) if varies else 0.0)
        rows.append(row)
    return torch.tensor(rows).view(-1, len(names))


def reach_of(family: str, scale: tuple[float, ...]) -> list[float]:
    """Return how far to either side of 0 `random_poses` goes, per parameter."""
    return [float(min(REACH.get(name, 1.0), 3 * s)) for name, s in zip(parameters_of(family), scale, strict=True)]


def random_poses(n: int, family: str, scale: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Draw poses uniformly within the reach of the table, and of three deviations of the prior.

    Half of them are reflected where the family reflects.

    Parameters
    ----------
    n : int
    family : str
    scale : tuple of float
        The prior's standard deviations.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    alpha : Tensor of shape (n, n_params)
    """
    names = parameters_of(family)
    uniform = 2 * torch.rand(n, len(names), generator=generator) - 1
    alpha = uniform * torch.tensor(reach_of(family, scale))
    if names[-1] == REFLECTED:
        alpha[:, -1] = (alpha[:, -1] > 0).to(alpha)
    return alpha


def random_offsets(images: Tensor, family: str, scale: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Draw how far off centre images are: one in four, by up to a 32nd of a side where the family cannot shift it.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    family : str
    scale : tuple of float
        The prior's standard deviations.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    matrix : Tensor of shape (n, 2, 3)
        To be applied to an image before its pose.
    """
    matrix = torch.eye(2, 3).repeat(len(images), 1, 1)
    offset = _OFF_CENTRE * (2 * torch.rand(len(images), 2, generator=generator) - 1)
    offset = offset * (torch.rand(len(images), 1, generator=generator) < _SHARE_OFF_CENTRE)
    shifted = {name for name, s in zip(parameters_of(family), scale, strict=True) if s > 0}
    for axis, (name, side) in enumerate((("tx", images.shape[3]), ("ty", images.shape[2]))):
        if name not in shifted and side > 1:
            matrix[:, axis, 2] = offset[:, axis]
    return matrix.to(images)


def exact_moments(images: Tensor, background: Tensor) -> Moments:
    """Return the moments of the ink, of whatever differs from the background, in double precision.

    In single precision functions of them would round the last bit by their place in the block, which must not show.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
    background : Tensor of shape (n_channels,)

    Returns
    -------
    moments : Moments
        A constant image has its ink spread evenly.
    """
    ink = (images - background.view(1, -1, 1, 1)).abs().sum(dim=1).double() + 1e-6
    n, height, width = ink.shape
    y = (torch.arange(height, device=ink.device) + 0.5).double() * 2 / height - 1
    x = ((torch.arange(width, device=ink.device) + 0.5).double() * 2 / width - 1) * (width / height)
    # sums[:, i, j] is that of y^i x^j.
    sums = torch.stack([y**0, y, y**2]) @ (ink @ torch.stack([x**0, x, x**2], dim=1))
    means = sums / sums[:, :1, :1]
    mean_x, mean_y = means[:, 0, 1], means[:, 1, 0]
    var_x, var_y = means[:, 0, 2] - mean_x.square(), means[:, 2, 0] - mean_y.square()
    cov = means[:, 1, 1] - mean_x * mean_y
    covariance = torch.stack([var_x, cov, cov, var_y], dim=1).view(n, 2, 2)
    return Moments(torch.stack([mean_x, mean_y], dim=1), covariance)


def moments(images: Tensor, background: Tensor) -> Moments:
    """Return `exact_moments` in the precision of the images."""
    found = exact_moments(images, background)
    return Moments(found.centroid.to(images), found.covariance.to(images))


def mean_moments(images: Tensor, background: Tensor) -> Moments:
    """Return the means of the moments of images: those of a typical one, with n = 1."""
    parts = [moments(part, background) for part in images.split(_IMAGES_PER_PART)]  # type: ignore[no-untyped-call]
    found = Moments(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    return Moments(found.centroid.mean(dim=0, keepdim=True), found.covariance.mean(dim=0, keepdim=True))


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


def moves(images: Tensor, family: str, scale: tuple[float, ...]) -> bool:
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
    if typical is None or not moves(images, family, scale):
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
    typical = typical and _mirror(typical)
    mirrored = starting_poses(images, background, typical, n_restarts // 2, family, scale)
    starts = images.new_zeros(len(images), plain.shape[1] + mirrored.shape[1], plain.shape[2] + 1)
    starts[:, 0::2, :-1] = plain
    starts[:, 1::2, :-1] = mirrored
    starts[:, 1::2, -1] = 1.0
    return starts


def _mirror(typical: Moments) -> Moments:
    """Return the moments of the mirrored images."""
    sign = typical.centroid.new_tensor([-1.0, 1.0])
    return Moments(typical.centroid * sign, typical.covariance * sign[:, None] * sign)
