"""Joint alignment: the poses of training images, found while the weights are learned.

Where the training images have no canonical pose, one is found on the way: before each step of the weights the poses of
its batch are improved under frozen weights, then the weights take a step at these poses. Poses are remembered. An image
that comes again starts from its own and from a few fresh ones, fewer as the poses settle. The first are those of its
moments (`first_poses`).

A network can learn a class in two poses, and then neither is worse than the other. At first, before it has learned
much, starting poses are therefore chosen by more than the ELBO: also by how well the canonical image agrees with the
mean of all of them, and after each epoch images that lie the other way round than images like them turn by half
(`half_turns`).

References
----------
Bidart & Wong (2019), section 3.3 (a random search per batch, forgotten afterwards); Learned-Miller (2006), "Data driven
image models through continuous joint alignment" (one common pose for a set of images).
"""

import math

import torch
from torch import Tensor

from ..model.affine import parameters_of, wrap_angle
from ..model.avae import AVAE, canonical_images, is_constant
from ..model.batches import images_per_batch, in_batches
from ..model.moments import Moments
from ..search.align import refine_poses
from ..search.objective import Objective
from ..search.screening import same_basin, screen
from ..search.settings import SearchSettings
from ..search.starting_poses import starting_poses
from .half_turns import without_half_turns

# Fresh starting poses at the first visit, and then per visit, while poses still move and once they have settled.
_FIRST_FRESH = 15
_MOST_FRESH = 2
_FEWEST_FRESH = 1
# Evaluations of a refinement per visit, and the gain below which it ends.
_VISIT = SearchSettings(max_iter=3, tol=0.3)
# Poses are remembered: their optimum is near (in units of `step_units`).
_BRACKET = 0.4
# The weight of the agreement with the mean image at first, what remains of the mean after a batch, and the share of the
# mean's own mean in it.
_AGREEMENT = 1.0
_MEMORY = 0.9
_MIXED_IN = 0.2
# A pose may not push more than this share of the ink out of the canonical frame.
_LARGEST_LOSS = 0.5


class TrainingPoses:
    """The poses of a set of images, remembered and improved batch by batch.

    Parameters
    ----------
    model : AVAE
        Its weights may change between calls.
    images : Tensor of shape (n, n_channels, height, width)
    typical : Moments or None
        See `starting_poses.starting_poses`.
    n_restarts : int
        Starting poses that take turns as fresh ones.
    movable : Tensor of bool of shape (n,) or None, default=None
        Which images have a pose; None leaves the constant ones out.
    n_agreeing : int, default=0
        Calls of `improve` over which the agreement with the mean canonical image fades out.
    first : Tensor of shape (n, n_params) or None, default=None
        The poses at first; None is 0, the identity.
    seed : int, default=0
        Of what is drawn to find half turns.

    Attributes
    ----------
    alpha : Tensor of shape (n, n_params)
        The poses.
    """

    def __init__(
        self,
        model: AVAE,
        images: Tensor,
        typical: Moments | None,
        n_restarts: int,
        movable: Tensor | None = None,
        n_agreeing: int = 0,
        first: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.images = images
        self.typical = typical
        self.n_restarts = n_restarts
        self.movable = ~is_constant(images) if movable is None else movable
        still = images.new_zeros(len(images), len(parameters_of(model.family)))
        self.alpha = still if first is None else torch.where(self.movable[:, None], first, still)
        self.n_fresh = _FIRST_FRESH
        self.n_agreeing = n_agreeing
        self._generator = torch.Generator().manual_seed(seed)
        if bool(self.alpha.any()):
            self.merge_half_turns()
        self._mean = self.canonical_images().mean(dim=0) if bool(self.alpha.any()) else None
        self._n_calls = 0
        self._next = 1
        self._n_moved = self._n_seen = 0

    def improve(self, rows: Tensor) -> Tensor:
        """Improve the poses of some images under the present weights, and return them.

        Parameters
        ----------
        rows : Tensor of shape (m,)
            Which of the images.

        Returns
        -------
        alpha : Tensor of shape (m, n_params)
        """
        model, images, remembered = self.model, self.images[rows], self.alpha[rows]
        starts = torch.cat([remembered[:, None], self._fresh(images)], dim=1)
        objective = Objective(model, images)
        scores = screen(objective, starts)
        weight = _AGREEMENT * max(0.0, 1 - self._n_calls / max(1, self.n_agreeing))
        wanted = scores
        if weight and self._mean is not None:
            wanted = scores + weight * agreement(model, images, starts, self._mean)
        row = torch.arange(len(rows), device=rows.device)
        chosen = wanted.nan_to_num(nan=-math.inf).argmax(dim=1)
        # The refinement goes by the ELBO alone.
        best, loss = starts[row, chosen], -scores[row, chosen]
        found = refine_poses(objective, best, loss, _VISIT, owner=row, bracket=_BRACKET)[0]
        canonical, lost = self._without_pose(images, found)
        kept = self.movable[rows] & found.isfinite().all(dim=1) & (lost < _LARGEST_LOSS)
        alpha = torch.where(kept[:, None], wrap_angle(found, model.family), remembered)
        self._n_moved += int((~same_basin(model.matrix(alpha, images), model.matrix(remembered, images))).sum())
        self._n_seen += len(rows)
        self.alpha[rows] = alpha
        if weight and bool(kept.any()):
            mean = canonical[kept].mean(dim=0)
            self._mean = mean if self._mean is None else _MEMORY * self._mean + (1 - _MEMORY) * mean
        self._n_calls += 1
        return alpha

    def _fresh(self, images: Tensor) -> Tensor:
        """Return this epoch's fresh starting poses, of shape (m, n_fresh, n_params)."""
        model = self.model
        starts = starting_poses(images, model.background, self.typical, self.n_restarts, model.family, model.scale)
        n_fresh = min(self.n_fresh, max(1, starts.shape[1] - 1))
        turn = torch.arange(self._next, self._next + n_fresh) % starts.shape[1]
        return starts[:, turn]

    def _without_pose(self, images: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Return canonical images, and the share of the ink that the canonical frame does not hold, of shape (m,)."""
        model = self.model
        matrix = model.matrix(alpha, images)
        background = model.background.view(1, -1, 1, 1)
        canonical = model.canonical(images, matrix)
        held = (canonical - background).abs().sum(dim=(1, 2, 3))
        held = held * torch.linalg.det(matrix[:, :, :2].double()).abs().to(held)
        return canonical, 1 - held / (images - background).abs().sum(dim=(1, 2, 3)).clamp(min=1e-12)

    def canonical_images(self) -> Tensor:
        """Return the images without their poses."""
        return canonical_images(self.model, self.images, self.alpha)

    def merge_half_turns(self) -> None:
        """Turn images by half that lie the other way round than images like them."""
        found = without_half_turns(self.model, self.images, self.alpha, self._generator)
        self.alpha = torch.where(self.movable[:, None], found, self.alpha)

    def end_epoch(self) -> dict[str, float]:
        """Return what happened to the poses since the last call, and set the budget of the next epoch.

        Returns
        -------
        figures : dict
            `moved`: share of the images whose pose went to another optimum; `pose_std_<parameter>`: standard deviation
            of the poses, circular for angles.
        """
        moved = self._n_moved / max(1, self._n_seen)
        if self._n_calls < self.n_agreeing:
            self.merge_half_turns()
        self._next += self.n_fresh
        self.n_fresh = max(_FEWEST_FRESH, min(_MOST_FRESH, math.ceil(2 * _MOST_FRESH * moved)))
        self._n_moved = self._n_seen = 0
        names = parameters_of(self.model.family)
        spread = dispersion(self.alpha, self.model.family).tolist()
        return {"moved": moved, **{f"pose_std_{name}": s for name, s in zip(names, spread, strict=True)}}


def agreement(model: AVAE, images: Tensor, poses: Tensor, mean: Tensor) -> Tensor:
    """Return the log likelihood of canonical images under a mean image, of shape (n, n_poses).

    That is what a model without latent variables makes of them: it knows one image, in one pose.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    poses : Tensor of shape (n, n_poses, n_params)
    mean : Tensor of shape (n_channels, height, width)
    """
    n, n_poses, n_params = poses.shape
    alpha = poses.reshape(-1, n_params)
    # A pixel that no image has yet is unlikely, not impossible.
    mean = _MIXED_IN * mean.mean(dim=(1, 2), keepdim=True) + (1 - _MIXED_IN) * mean
    parameters: Tensor = model.likelihood.fill(mean)  # type: ignore[operator]

    def log_likelihood(pair: Tensor) -> Tensor:
        some = images[pair // n_poses]
        canonical = model.canonical(some, model.matrix(alpha[pair], some))
        log_prob: Tensor = model.likelihood.log_prob(canonical, parameters.expand_as(canonical))  # type: ignore[operator]
        return log_prob

    pairs = torch.arange(n * n_poses, device=images.device)
    return in_batches(log_likelihood, images_per_batch(images), pairs).view(n, n_poses)


def dispersion(alpha: Tensor, family: str) -> Tensor:
    """Return the standard deviation of poses per parameter, of shape (n_params,).

    That of angles is circular, ``sqrt(-2 log R)`` with the length R of their mean resultant, and at most pi.

    Parameters
    ----------
    alpha : Tensor of shape (n, n_params)
    family : str

    References
    ----------
    Mardia & Jupp (2000), "Directional Statistics", equation 2.3.11.

    Examples
    --------
    >>> dispersion(torch.tensor([[3.1], [-3.1]]), "rotation").round(decimals=2)
    tensor([0.0400])
    """
    angles = torch.tensor([name == "angle" for name in parameters_of(family)], device=alpha.device)
    length = torch.hypot(alpha.cos().mean(dim=0), alpha.sin().mean(dim=0)).clamp(min=1e-9, max=1)
    circular = (-2 * length.log()).sqrt().clamp(max=math.pi)
    return torch.where(angles, circular, alpha.std(dim=0, correction=0))
