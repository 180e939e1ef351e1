"""The paper's own loss and training, as its authors' code does them; its search is `shared/paper_search.py`.

Kept with their mistakes, each named where it is made:

- the target is normalised (-0.42 to 2.82) while the decoder ends in a sigmoid (0 to 1);
- the squared error has no factor 1/2;
- the second head is a log variance to the sampler and a log standard deviation to the KL divergence;
- the affine layers fill with 0, which after normalising is brighter than the background.

References
----------
Bidart & Wong (2019), "Affine Variational Autoencoders", sections 3 and 4, appendix A.2.
"""

import numpy as np
import torch
from shared.paper_search import Loss, PaperSearch, matrix_of
from torch import Tensor

from sk_avae.model.affine import invert, to_matrix, warp
from sk_avae.model.vae import ConvVAE, fused

MEAN, DEVIATION = 0.1307, 0.3081
SIDE = 40
LATENT_SIZE = 8

# Budgets of the search in training, and Adam's settings there: the learning rate falls to a fifth every 60 epochs.
TRAINING_STARTS, TRAINING_STEPS = 20, 10
ADAM = {"lr": 1e-3, "weight_decay": 5e-4}
FALL, FALLS_EVERY = 0.2, 60
BATCH_SIZE = 128


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


def new_model() -> tuple[ConvVAE, torch.optim.Optimizer]:
    """Return the untrained VAE, and Adam for it."""
    torch.manual_seed(0)
    vae = ConvVAE((1, SIDE, SIDE), LATENT_SIZE).to(memory_format=torch.channels_last)
    return vae, torch.optim.Adam(vae.parameters(), **ADAM)


def train_epoch(vae: ConvVAE, optimizer, images: Tensor, training: str, epoch: int) -> float:
    """Take one pass over upright images, and return the mean loss; epochs are counted from 1.

    `training` is "single" (as they come), "random" (a new whole-degree turn of each) or "optimised" (the same turns,
    undone by the best of 20 random angles after 10 steps of Adam).
    """
    total, generator = 0.0, torch.Generator().manual_seed(epoch)
    (group,) = optimizer.param_groups
    group["lr"] = ADAM["lr"] * FALL ** ((epoch - 1) // FALLS_EVERY)
    for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
        batch, matrix = images[rows], None
        if training != "single":
            batch = turned(batch, torch.randint(360, (len(rows),), generator=generator))
        if training == "optimised":
            vae.eval()
            search = PaperSearch("rotation", TRAINING_STARTS, TRAINING_STEPS)
            matrix = matrix_of(search.run(loss_of(Searched(vae)), batch, generator))
        vae.train()
        noise = torch.randn(len(rows), LATENT_SIZE, generator=generator)
        optimizer.zero_grad()
        loss = published_loss(vae, batch, matrix, noise).mean()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(images)
