"""What the search minimises: -(ELBO + log prior), in nats, of given images at given poses. Its one source of losses."""

from typing import Protocol

import torch
from torch import Tensor

from ..model.affine import REFLECTED, parameters_of
from ..model.avae import AVAE
from ..model.batches import images_per_batch, in_batches, row_batches

# Typical distance of a restart from its optimum: the unit in which refinement steps are measured.
_STEP = {
    "angle": 0.15,
    "log_scale": 0.15,
    "log_scale_x": 0.15,
    "log_scale_y": 0.15,
    "shear": 0.15,
    "tx": 0.1,
    "ty": 0.1,
    REFLECTED: 0.0,
}


def step_units(model: AVAE, like: Tensor) -> Tensor:
    """Return a restart's typical distance from its optimum per parameter, of shape (n_params,); 0 if frozen."""
    names = parameters_of(model.family)
    return like.new_tensor([0.0 if s == 0 else _STEP[name] for name, s in zip(names, model.scale, strict=True)])


def has_more_than_one(model: AVAE, like: Tensor) -> bool:
    """Tell whether more than one parameter is free, so that there is more to find than an angle."""
    return int(step_units(model, like).count_nonzero()) > 1


class SecondOpinion(Protocol):
    """Says what poses of given images are worth, without canonical images: see `proposer.PosePosterior`."""

    def at(self, rows: Tensor, poses: Tensor) -> Tensor:
        """Return nats, of shape (m,)."""


class Objective:
    """The losses of images at poses, their gradients, and what critic and proposer say; in batches, in bounded memory.

    Methods take `rows`, the numbers of images, of shape (m,), and `poses` of shape (m, n_params): a pose for each.

    Parameters
    ----------
    model : AVAE
        Its networks in evaluation mode; nothing in it is changed.
    images : Tensor of shape (n, n_channels, height, width)
    observed : Tensor of bool of the same shape, or None, default=None
        Which pixels are known, see `AVAE.elbo`; None knows all.
    posterior : SecondOpinion or None, default=None
        What the proposer says of poses; None says nothing.

    Attributes
    ----------
    moments : Moments or None
        What the model's density has to know of the images, found once for all their poses.
    """

    def __init__(
        self,
        model: AVAE,
        images: Tensor,
        observed: Tensor | None = None,
        posterior: SecondOpinion | None = None,
    ) -> None:
        self.model = model
        self.images = images
        self.observed = observed
        self.posterior = posterior
        self.moments = model.moments(images)
        self._size = images_per_batch(images, model.vae)
        self._critic_size = images_per_batch(images, model.critic)

    def loss(self, rows: Tensor, poses: Tensor) -> Tensor:
        """Return the losses, of shape (m,)."""
        return in_batches(self._loss, self._size, rows, poses)

    def loss_and_gradient(self, rows: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses, of shape (m,), and their gradients by the poses, of shape (m, n_params)."""
        losses, gradients = [], []
        for batch, n_kept in row_batches(len(rows), self._size, self.images.device):
            with torch.enable_grad():
                pose = poses[batch].detach().requires_grad_(True)
                loss = self._loss(rows[batch], pose)
                (gradient,) = torch.autograd.grad(loss.sum(), pose)
            losses.append(loss.detach()[:n_kept])
            gradients.append(gradient[:n_kept])
        return torch.cat(losses), torch.cat(gradients)

    def log_prior(self, rows: Tensor, poses: Tensor) -> Tensor:
        """Return the log prior: that of the parameters, and of the moments that the poses leave; of shape (m,)."""
        return self.model.log_prior_of(self.images, poses, self.moments and self.moments.of(rows))

    def opinion(self, rows: Tensor, poses: Tensor) -> Tensor:
        """Return what the critic says of canonical images, and the proposer of poses, in nats, of shape (m,)."""
        images, model = self.images, self.model
        said = in_batches(lambda row, pose: model.critic_score(images[row], pose), self._critic_size, rows, poses)
        return said if self.posterior is None else said + self.posterior.at(rows, poses)

    def elbo_identity(self) -> Tensor:
        """Return the ELBO of every image as it came, without warps, of shape (n,)."""
        if self.observed is None:
            return in_batches(self.model.elbo, self._size, self.images)
        model = self.model
        return in_batches(lambda some, known: model.elbo(some, observed=known), self._size, self.images, self.observed)

    def opinion_of_identity(self) -> Tensor:
        """Return what critic and proposer say of every image as it came, of shape (n,)."""
        said = in_batches(self.model.critic_score, self._critic_size, self.images)
        if self.posterior is None:
            return said
        rows = torch.arange(len(said), device=said.device)
        return said + self.posterior.at(rows, said.new_zeros(len(said), len(self.model.scale)))

    def _loss(self, rows: Tensor, poses: Tensor) -> Tensor:
        if self.observed is None:
            return -self.model.elbo(self.images[rows], poses) - self.log_prior(rows, poses)
        return -self.model.elbo(self.images[rows], poses, observed=self.observed[rows]) - self.log_prior(rows, poses)
