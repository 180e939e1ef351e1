"""The paper's search in its authors' faster, batched variant: random starts, the best one refined by Adam.

References
----------
Bidart & Wong (2019), "Affine Variational Autoencoders", sections 3.2 and 4.4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sk_avae.model.affine import to_matrix
from sk_avae.model.avae import AVAE
from sk_avae.model.likelihoods import kl_divergence

# Random starts, how far they reach, Adam's learning rate; steps for all.
STARTS = {"rotation": 30, "linear": 120, "affine": 120}
STEPS = 30
LR = {"rotation": 0.01, "linear": 0.03, "affine": 0.03}
REACH = {"rotation": math.pi, "linear": 1.5, "affine": 1.5}
N_ENTRIES = {"rotation": 1, "linear": 4, "affine": 6}
# "Random shears up to 55 degrees, random scaling by up to 50 %"; the slope of a shear is the tangent of its angle.
GENERAL_AFFINE = {
    "angle": math.pi,
    "shear": math.tan(math.radians(55)),
    **dict.fromkeys(("log_scale_x", "log_scale_y"), (math.log(0.5), math.log(1.5))),
}

Loss = Callable[[Tensor, Tensor], Tensor]


def negative_elbo(model: AVAE) -> Loss:
    """Return the loss of images at matrices under this package's model, without a prior."""

    def loss(images, matrix):
        mean, log_var = model.encode(images, matrix)
        return kl_divergence(mean, log_var) - model.likelihood.log_prob(images, model.decode(mean, matrix))

    return loss


def matrix_of(pose: Tensor) -> Tensor:
    """Return matrices of an angle, or of four entries and a shift that may be missing."""
    if pose.shape[1] == 1:
        return to_matrix(pose, "rotation")
    shift = pose[:, 4:] if pose.shape[1] == 6 else pose.new_zeros(len(pose), 2)
    return torch.cat([pose[:, :4].view(-1, 2, 2), shift[:, :, None]], dim=2)


def keep_better(lowest, best, loss, pose):
    """Return the lowest loss of each image so far and its pose; NaN (a singular matrix) is never better."""
    better = loss < lowest
    return torch.where(better, loss, lowest), torch.where(better[:, None], pose, best).clone()


@dataclass(frozen=True)
class PaperSearch:
    """The search for one family.

    Rotation searches the angle; the other families the entries of the matrix (2 x 2 from random starts; "affine" also a
    shift, which starts at 0: the paper's own experiment has none).
    """

    family: str
    n_starts: int
    n_steps: int = STEPS

    def run(self, loss: Loss, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the pose of each image; `loss` takes images and matrices."""
        return self._refine(loss, images, self._best_start(loss, images, generator))

    def _draw(self, images, generator):
        pose = torch.zeros(len(images), N_ENTRIES[self.family])
        pose[:, :4] = REACH[self.family] * (2 * torch.rand(pose[:, :4].shape, generator=generator) - 1)
        return pose.to(images.device)

    def _best_start(self, loss, images, generator):
        lowest, best = images.new_full((len(images),), math.inf), self._draw(images, generator)
        with torch.no_grad():
            for _ in range(self.n_starts):
                pose = self._draw(images, generator)
                lowest, best = keep_better(lowest, best, loss(images, matrix_of(pose)), pose)
        return best

    def _refine(self, loss, images, start):
        pose = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([pose], lr=LR[self.family])
        lowest, best = images.new_full((len(images),), math.inf), start
        for _ in range(self.n_steps):
            optimizer.zero_grad()
            value = loss(images, matrix_of(pose))
            lowest, best = keep_better(lowest, best, value.detach(), pose.detach())
            (pose.grad,) = torch.autograd.grad(value.sum(), pose)
            pose.grad.nan_to_num_(0.0, 0.0, 0.0)
            optimizer.step()
        with torch.no_grad():
            return keep_better(lowest, best, loss(images, matrix_of(pose)), pose.detach())[1]
