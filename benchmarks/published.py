"""The paper's own algorithm: its loss, its training and its search, as its authors' code does them.

Kept with their mistakes, each named where it is made:

- the target is normalised (-0.42 to 2.82) while the decoder ends in a sigmoid (0 to 1);
- the squared error has no factor 1/2;
- the second head is a log variance to the sampler and a log standard deviation to the KL divergence;
- the affine layers fill with 0, which after normalising is brighter than the background.

References
----------
Bidart & Wong (2019), "Affine Variational Autoencoders", sections 3 and 4, appendix A.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sk_avae.affine import invert, to_matrix, warp
from sk_avae.vae import ConvVAE, fused

MEAN, DEVIATION = 0.1307, 0.3081
SIDE = 40
LATENT_SIZE = 8

# Budgets of the search at test time: random starts, how far they reach, Adam's learning rate; steps for all.
STARTS = {"rotation": 30, "linear": 120, "affine": 120}
STEPS = 30
LR = {"rotation": 0.01, "linear": 0.03, "affine": 0.03}
REACH = {"rotation": math.pi, "linear": 1.5, "affine": 1.5}
N_ENTRIES = {"rotation": 1, "linear": 4, "affine": 6}

# Budgets in training, and Adam's settings there: the learning rate falls to a fifth every 60 epochs.
TRAINING_STARTS, TRAINING_STEPS, TRAINING_LR = 20, 10, 0.01
ADAM = {"lr": 1e-3, "weight_decay": 5e-4}
FALL, FALLS_EVERY = 0.2, 60
BATCH_SIZE = 128

Loss = Callable[[Tensor, Tensor], Tensor]


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
class Search:
    """Random starts screened, the best one refined by Adam: the authors' faster, batched variant.

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


# ---------------------------------------------------------------------- its VAE


def normalised(rows: np.ndarray) -> Tensor:
    """Return 40 x 40 rows of bytes as the paper's network sees them."""
    images = torch.from_numpy(rows).float().view(-1, 1, SIDE, SIDE) / 255
    return (images - MEAN) / DEVIATION


def turned(images: Tensor, angle: Tensor) -> Tensor:
    """Turn images by angles in degrees, as the paper does: nearest pixel, black outside."""
    matrix = to_matrix(torch.deg2rad(-angle.float())[:, None], "rotation")
    return warp(images, matrix, background=-MEAN / DEVIATION, interpolation="nearest")


def published_loss(vae: ConvVAE, images: Tensor, matrix: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
    """Return the paper's loss of each image, with a transform or as it comes; without noise at the posterior mean."""
    canonical = images if matrix is None else warp(images, matrix)
    mean, second = vae.encode(canonical)
    z = mean if noise is None else mean + noise * (0.5 * second).exp()
    output = vae.decode(z).sigmoid()
    if matrix is not None:
        output = warp(output, invert(matrix))
    divergence = -0.5 * (1 + 2 * second - mean.square() - (2 * second).exp()).sum(dim=1)
    return (images - output).square().sum(dim=(1, 2, 3)) + divergence


def loss_of(vae: ConvVAE) -> Loss:
    return lambda images, matrix: published_loss(vae, images, matrix)


class Searched:
    """A `ConvVAE` as a search evaluates it: fused, with products in bfloat16, at half the time.

    The poses that it finds are worse by less than a thousandth of the loss; the weights take their steps in float32.
    """

    def __init__(self, vae: ConvVAE) -> None:
        self.vae = fused(vae).requires_grad_(False)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            mean, second = self.vae.encode(x)
        return mean.float(), second.float()

    def decode(self, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.vae.decode(z).float()


def learning_rate(epoch: int) -> float:
    """Return the rate of an epoch, counted from 1."""
    return ADAM["lr"] * FALL ** ((epoch - 1) // FALLS_EVERY)


def train_epoch(vae: ConvVAE, optimizer, images: Tensor, training: str, generator: torch.Generator) -> float:
    """Take one pass over upright images, and return the mean loss.

    `training` is "single" (as they come), "random" (a new whole-degree turn of each) or "optimised" (the same turns,
    undone by the best of 20 random angles after 10 steps of Adam).
    """
    total = 0.0
    for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
        batch, matrix = images[rows], None
        if training != "single":
            batch = turned(batch, torch.randint(360, (len(rows),), generator=generator))
        if training == "optimised":
            vae.eval()
            search = Search("rotation", TRAINING_STARTS, TRAINING_STEPS)
            matrix = matrix_of(search.run(loss_of(Searched(vae)), batch, generator))
        vae.train()
        noise = torch.randn(len(rows), LATENT_SIZE, generator=generator)
        optimizer.zero_grad()
        loss = published_loss(vae, batch, matrix, noise).mean()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(images)
