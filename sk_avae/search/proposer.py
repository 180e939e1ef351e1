r"""The proposer: a small network that looks at an image and proposes starting poses.

One pose is not enough: a 6 rotated by half a turn is a 9, and a network that regresses to a single pose ends up
between the two. The proposer predicts a distribution: a probability for each of 48 angles, and at each angle what the
other parameters then are. Its modes are where the search starts; the ELBO decides, as with every other start. An image
whose modes do not hold most of the probability, or whose ELBO at them is lower than that of nearly all training
images, gets the whole table of starts besides.

Before the network looks, an image is given the centroid and the second moments of a typical training image, as far as
the family can, so that the network has little more than an angle to tell. What it predicts is the rest,
:math:`A_\alpha = M(x) \, A_{\text{rest}}`.

References
----------
Bishop (1994), "Mixture density networks" (a distribution where the target has several modes); Hu (1962), "Visual
pattern recognition by moment invariants".
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..model.affine import (
    REFLECTED,
    compose,
    from_matrix,
    invert,
    parameters_of,
    to_matrix,
    without_reflection,
    wrap_angle,
)
from ..model.avae import AVAE
from ..model.batches import images_per_batch, in_batches
from ..model.moments import Moments
from ..model.polar import N_ANGLES, PolarNetwork, angles
from ..model.vae import EvenLinear
from .objective import step_units
from .screening import CandidatePoses
from .starting_poses import moment_proposals, reach_of, starting_poses, uses_moments

_N_ANGLES_THEN = 36
# Modes that start a search; one with less probability than this has to wait for the others.
_N_MODES = 4
_FAINT = 0.003
# An image is sure of its modes if they hold as much.
_SURE = 0.6
# The probability of what it has not learned: it never rules a pose out.
_NOT_SEEN = 0.02
# How far from the angle of its bin, in half bins, and from the moments a proposal may lie.
_LARGEST_OFFSET = 2.0
_LARGEST_REST = 1.5


class Proposer(nn.Module):
    """A network that turns with its image gives it a distribution over poses; see `polar.PolarNetwork`.

    Parameters
    ----------
    image_shape : tuple of int
        (n_channels, height, width).
    family : str
        Whose poses are proposed.
    convolutional : bool, default=False
        Whether it has the network of version 0.1, convolutions that look at 36 angles: files of then have its weights.
    dropout : float, default=0.0
        See `polar.PolarNetwork`.

    Attributes
    ----------
    n_angles, n_bins : int
        The circle's bins, and those of mirrored images besides.
    metric : Tensor of shape (n_params, n_params)
        See `certainty.typical_metric`.
    floor : Tensor of shape ()
        Score in nats that nearly all training images reach at their proposals.
    reach : Tensor of shape (n_params,)
        How far to either side of 0 the poses went that it has seen.

    Examples
    --------
    >>> logits, rest = Proposer((1, 28, 28), "rotation").eval()(torch.zeros(2, 1, 28, 28))
    >>> logits.shape, rest.shape
    (torch.Size([2, 48]), torch.Size([2, 48, 1]))
    """

    metric: Tensor
    floor: Tensor
    reach: Tensor

    def __init__(
        self, image_shape: tuple[int, int, int], family: str, *, convolutional: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.family = family
        self.n_params = len(parameters_of(family))
        n_sides = 1 + (parameters_of(family)[-1] == REFLECTED)
        n_outputs = n_sides * (1 + self.n_params)
        self.n_angles = _N_ANGLES_THEN if convolutional else N_ANGLES
        self.n_bins = self.n_angles * n_sides
        if convolutional:
            self.layers = _convolutions(image_shape, self.n_angles * n_outputs)
            self.widest = 16 * -(-image_shape[1] // 2) * -(-image_shape[2] // 2)
        else:
            self.network = PolarNetwork(image_shape, n_outputs, dropout=dropout)
            self.widest = self.network.widest
        # Not `torch.eye`: on the meta device, on which files are checked, that imports for two seconds.
        self.register_buffer("metric", torch.zeros(self.n_params, self.n_params).fill_diagonal_(1))
        self.register_buffer("floor", torch.tensor(-math.inf))
        self.register_buffer("reach", torch.zeros(self.n_params))

    def knows(self, family: str, scale: tuple[float, ...]) -> bool:
        """Tell whether it was trained for a family, and for poses as far out as its prior now lets them be."""
        if family != self.family:
            return False
        return all(now <= seen * 1.001 for now, seen in zip(reach_of(family, scale), self.reach.tolist(), strict=True))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the bins, (n, n_bins), and the rest of the pose there, (n, n_bins, n_params)."""
        if self.n_angles == N_ANGLES:
            out = self.network(images).view(len(images), N_ANGLES, -1, 1 + self.n_params).transpose(1, 2)
        else:
            out = self.layers(images)
        out = out.reshape(len(images), self.n_bins, 1 + self.n_params)
        return out[:, :, 0], out[:, :, 1:]


def _convolutions(image_shape: tuple[int, int, int], n_outputs: int) -> nn.Sequential:
    """Return the layers of version 0.1."""
    channels, height, width = image_shape
    first, second, third, hidden = 16, 32, 64, 256
    return nn.Sequential(
        *(nn.Conv2d(channels, first, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(first, second, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(second, third, 3, stride=2, padding=1), nn.ReLU()),
        nn.Flatten(),
        *(EvenLinear(third * -(-height // 8) * -(-width // 8), hidden), nn.ReLU()),
        EvenLinear(hidden, n_outputs),
    )


# Angles that are farther apart are no less wrong.
_DISAGREES = math.radians(60)
_STEPS_OF_AGREEMENT = 2.0**20


def bin_centres(proposer: Proposer, like: Tensor) -> Tensor:
    """Return what each bin stands for, of shape (n_bins, n_params): an angle, and whether reflected."""
    centres = like.new_zeros(proposer.n_bins, proposer.n_params)
    n_angles = proposer.n_angles
    centres[:, 0] = angles(like, n_angles).repeat(proposer.n_bins // n_angles)
    if proposer.n_bins > n_angles:
        centres[n_angles:, -1] = 1.0
    return centres


def output_units(model: AVAE, like: Tensor, n_angles: int = N_ANGLES) -> Tensor:
    """Return the unit of the network's outputs per parameter: half a bin, and a restart's typical distance."""
    units = step_units(model, like)
    units[0] = math.pi / n_angles if units[0] > 0 else 0.0
    return units


def moment_pose(model: AVAE, images: Tensor, typical: Moments | None) -> Tensor | None:
    """Return poses that give images the moments of a typical one, as far as the family can, without a ring of turns.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    typical : Moments or None

    Returns
    -------
    alpha : Tensor of shape (n, n_params) or None
        None where moments tell nothing: without typical ones, and for a family that only turns.
    """
    family, names = without_reflection(model.family), parameters_of(model.family)
    if typical is None or not uses_moments(images, family, model.scale):
        return None
    scale = model.scale[: len(parameters_of(family))]
    proposals = moment_proposals(images, model.background, typical, 2, family, scale)
    # Whitening (the second proposal) takes a shear; without one it would put in a turn.
    whitens = any(name == "shear" and s > 0 for name, s in zip(names, model.scale, strict=True))
    alpha = images.new_zeros(len(images), len(names))
    alpha[:, : len(scale)] = proposals[:, 1 if whitens else 0]
    return alpha


def without_moments(model: AVAE, images: Tensor, base: Tensor | None) -> Tensor:
    """Return images without the pose of their moments: what the network sees."""
    return images if base is None else model.canonical(images, model.matrix(base, images))


def residual_pose(model: AVAE, images: Tensor, base: Tensor | None, alpha: Tensor) -> Tensor:
    """Return the poses that, after `base`, make up `alpha`; all of shape (n, n_params)."""
    if base is None:
        return alpha
    rest = compose(invert(model.matrix(base, images)), model.matrix(alpha, images))
    return from_matrix(rest, model.family, aspect=images.shape[3] / images.shape[2])


def propose(proposer: Proposer, model: AVAE, images: Tensor, typical: Moments | None) -> tuple[Tensor, Tensor]:
    """Return the modes of the predicted distributions.

    Parameters
    ----------
    proposer : Proposer
        In evaluation mode.
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    typical : Moments or None
        See `moment_pose`.

    Returns
    -------
    alpha : Tensor of shape (n, n_modes, n_params)
        Most probable first.
    share : Tensor of shape (n, n_modes)
        Probability of each, and of the angles next to it.
    """
    return _modes(proposer, model, images, *_read(proposer, model, images, typical))


def _read(proposer: Proposer, model: AVAE, images: Tensor, typical: Moments | None) -> tuple[Tensor | None, Tensor]:
    """Return the poses of the moments, and what the network then makes of images: (n, n_bins, 1 + n_params)."""
    base = moment_pose(model, images, typical)
    rows = torch.arange(len(images), device=images.device)

    def predicted(row: Tensor) -> Tensor:
        seen = without_moments(model, images[row], None if base is None else base[row])
        logits, rest = proposer(seen)
        return torch.cat([logits[:, :, None], rest], dim=2)

    # In double precision: some functions round the last bit by their place in the block, which must not show.
    return base, in_batches(predicted, images_per_batch(images, proposer), rows).double().nan_to_num()


def _modes(proposer: Proposer, model: AVAE, images: Tensor, base: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the modes of what `_read` returned, see `propose`."""
    share, rest = out[:, :, 0].softmax(dim=1).view(len(images), -1, proposer.n_angles), out[:, :, 1:]
    before, after = share.roll(1, dims=2), share.roll(-1, dims=2)
    peaks = (share >= before) & (share > after)
    found = ((share + before + after) * peaks).flatten(1).topk(_N_MODES, dim=1)
    units = output_units(model, rest, proposer.n_angles)
    limit = torch.full_like(units, _LARGEST_REST)
    limit[0] = _LARGEST_OFFSET * math.pi / proposer.n_angles
    modes = found.indices[:, :, None].expand(-1, -1, rest.shape[2])
    free = rest.new_tensor([float(s > 0) for s in model.scale])
    poses = bin_centres(proposer, rest)[found.indices] * free + (rest.gather(1, modes) * units).clamp(-limit, limit)
    if base is not None:
        aspect = images.shape[3] / images.shape[2]
        own = to_matrix(base.double(), model.family, aspect=aspect).repeat_interleave(_N_MODES, dim=0)
        matrix = compose(own, to_matrix(poses.flatten(0, 1), model.family, aspect=aspect))
        poses = from_matrix(matrix, model.family, aspect=aspect).view_as(poses) * free
    return wrap_angle(poses.flatten(0, 1), model.family).view_as(poses).to(images.dtype), found.values


def agreement(proposer: Proposer, model: AVAE, images: Tensor, typical: Moments | None, alpha: Tensor) -> Tensor:
    """Return how well the proposer agrees with poses that were found, between 0 and 1, of shape (n,).

    One less the distance, up to 60 degrees, that it expects between the angle found and the true one, in parts of 60
    degrees. The network has not seen the ELBO: it is a second opinion.

    Parameters
    ----------
    proposer, model, images, typical
        See `propose`.
    alpha : Tensor of shape (n, n_params)
    """
    base, out = _read(proposer, model, images, typical)
    rest = residual_pose(model, images, None if base is None else base.double(), alpha.double())
    share = out[:, :, 0].softmax(dim=1)
    centres = bin_centres(proposer, rest)
    distance = wrap_angle((centres[None, :, :1] - rest[:, None, :1]).flatten(0, 1), "rotation")
    distance = distance.view(len(images), -1).abs().clamp(max=_DISAGREES)
    if proposer.n_bins > proposer.n_angles:
        mirrored = (centres[None, :, -1] - rest[:, None, -1]).abs() > 0.5
        distance = distance.masked_fill(mirrored, _DISAGREES)
    agreement = 1 - (share * distance).sum(dim=1) / _DISAGREES
    # Angles round by the place in the block, which must not show.
    return (agreement * _STEPS_OF_AGREEMENT).round() / _STEPS_OF_AGREEMENT


@dataclass(frozen=True)
class PosePosterior:
    """How probable a proposer takes each pose of given images to be: what it says when hypotheses are chosen from.

    It looks at the image as it came; ELBO and critic look at the canonical one, and err elsewhere.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    base : Tensor of shape (n, n_params) or None
        See `moment_pose`.
    log_share : Tensor of shape (n, n_bins), float64
        Logarithms of the probabilities of the bins.
    n_angles : int
        Bins of the circle.
    weight : float
        Nats of the score that one nat of it is worth.
    """

    model: AVAE
    images: Tensor
    base: Tensor | None
    log_share: Tensor
    n_angles: int
    weight: float = 1.0

    def at(self, rows: Tensor, poses: Tensor) -> Tensor:
        """Return what poses, of shape (m, n_params), of some images are worth, in nats, of shape (m,)."""
        base = None if self.base is None else self.base[rows].double()
        rest = residual_pose(self.model, self.images[rows], base, poses.double())
        place = (wrap_angle(rest[:, :1], "rotation")[:, 0] + math.pi) * (self.n_angles / (2 * math.pi)) - 0.5
        # Angles round by the place in the block, which must not show.
        place = (place * _STEPS_OF_AGREEMENT).round() / _STEPS_OF_AGREEMENT
        below = place.floor()
        side = (rest[:, -1] > 0.5).long() * self.n_angles * (self.log_share.shape[1] > self.n_angles)
        low, high = (side + (below.long() + step) % self.n_angles for step in (0, 1))
        found = torch.lerp(self.log_share[rows, low], self.log_share[rows, high], place - below)
        return (self.weight * found).to(self.images)


@dataclass(frozen=True)
class PoseInitializer:
    """Where searches start: what the proposer says, moments and the table.

    Parameters
    ----------
    typical : Moments or None
        See `starting_poses.starting_poses`.
    proposer : Proposer or None, default=None
        In evaluation mode; without one the table and moments are all.
    weight : float, default=0.0
        Of the proposer's own say in the choice, see `PosePosterior`.
    """

    typical: Moments | None
    proposer: Proposer | None = None
    weight: float = 0.0

    def posterior(self, model: AVAE, images: Tensor) -> PosePosterior:
        """Return what the proposer makes of images, at weight 1."""
        assert self.proposer is not None
        return self._posterior(model, images, *_read(self.proposer, model, images, self.typical), 1.0)

    def _posterior(self, model: AVAE, images: Tensor, base: Tensor | None, out: Tensor, weight: float) -> PosePosterior:
        assert self.proposer is not None
        share = out[:, :, 0].softmax(dim=1)
        log_share = ((1 - _NOT_SEEN) * share + _NOT_SEEN / share.shape[1]).log()
        return PosePosterior(model, images, base, log_share, self.proposer.n_angles, weight)

    def agreement(self, model: AVAE, images: Tensor, alpha: Tensor) -> Tensor:
        """Return how well the proposer agrees with poses, of shape (n,); one half, which says nothing, without one."""
        if self.proposer is None:
            return alpha.new_full((len(alpha),), 0.5, dtype=torch.double)
        return agreement(self.proposer, model, images, self.typical, alpha)

    def candidates(self, model: AVAE, images: Tensor, n_restarts: int) -> CandidatePoses:
        """Return starting poses: the identity, the proposer's modes, and the table for those who need it.

        Parameters
        ----------
        model : AVAE
        images : Tensor of shape (n, n_channels, height, width)
        n_restarts : int
            All of them together, at most.

        Returns
        -------
        candidates : CandidatePoses
        """
        proposer, metric = self.proposer, None if self.proposer is None else self.proposer.metric
        n_modes = 0 if proposer is None else min(_N_MODES, n_restarts - 1)
        table = starting_poses(images, model.background, self.typical, n_restarts - n_modes, model.family, model.scale)
        if proposer is None or not n_modes or not any(model.scale):
            return CandidatePoses(table, metric=metric)
        base, out = _read(proposer, model, images, self.typical)
        modes, share = _modes(proposer, model, images, base, out)
        modes, share = modes[:, :n_modes], share[:, :n_modes]
        alpha = torch.cat([table[:, :1], modes, table[:, 1:]], dim=1)
        first = torch.zeros(alpha.shape[:2], dtype=torch.bool, device=alpha.device)
        first[:, : 1 + n_modes] = torch.cat([torch.ones_like(share[:, :1]), share], dim=1) >= _FAINT
        first |= ~(share.sum(dim=1) >= _SURE)[:, None]
        posterior = self._posterior(model, images, base, out, self.weight) if self.weight else None
        return CandidatePoses(alpha, first, float(proposer.floor), metric, posterior)
