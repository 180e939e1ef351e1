"""Cost of training through skorch against a plain PyTorch loop of the same model.

    python benchmarks/training.py

Same network, batches, optimiser, learning-rate schedule and random numbers; the two alternate, medians of the ratios.
"""

import copy
import time

import numpy as np
import torch
from common import environment, save_table

from sk_avae.alignment import AVAE
from sk_avae.datasets import load_mnist_sample
from sk_avae.likelihoods import Bernoulli
from sk_avae.net import train
from sk_avae.vae import MODULES

SEED, N_REPEATS, BATCH_SIZE, LR = 0, 5, 256, 2e-3


def plain_loop(vae, images, max_epochs):
    likelihood, background = Bernoulli(), torch.zeros(1)
    model = AVAE(vae, likelihood, "rotation", background, scale=())
    optimizer = torch.optim.Adam(vae.parameters(), lr=LR, fused=True)
    n_batches = -(-len(images) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max_epochs * n_batches)
    generator = torch.Generator().manual_seed(SEED)
    vae.train()
    for _ in range(max_epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            noise = torch.randn(len(rows), 16, generator=generator)
            optimizer.zero_grad()
            loss = -model.elbo(images[rows], noise=noise).mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return loss


def with_skorch(vae, images, max_epochs):
    return train(
        AVAE(vae, Bernoulli(), "rotation", torch.zeros(1), scale=()),
        images,
        validation_images=None,
        poses=None,
        validation_poses=None,
        latent_size=16,
        max_epochs=max_epochs,
        batch_size=BATCH_SIZE,
        lr=LR,
        weight_decay=0.0,
        patience=None,
        callbacks=[],
        generator=torch.Generator().manual_seed(SEED),
        device=torch.device("cpu"),
        verbose=0,
    )


def main():
    X, _ = load_mnist_sample("train")
    images = torch.from_numpy(X.astype(np.float32) / 255).view(-1, 1, 28, 28)
    rows = []
    for module, max_epochs, n in (("mlp", 5, 5000), ("conv", 1, 1024)):
        torch.manual_seed(SEED)
        vae = MODULES[module]((1, 28, 28), latent_size=16)
        times = {"plain": [], "skorch": []}
        same = True
        for repeat in range(N_REPEATS + 1):
            one, other = copy.deepcopy(vae), copy.deepcopy(vae)
            for name, function, network in (("plain", plain_loop, one), ("skorch", with_skorch, other)):
                start = time.perf_counter()
                function(network, images[:n], max_epochs)
                if repeat:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
            same &= all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        ratios = np.array(times["skorch"]) / np.array(times["plain"])
        medians = [f"{np.median(times[name]) / max_epochs:.2f}" for name in ("plain", "skorch")]
        spread = f"{ratios.min():.2f}-{ratios.max():.2f}"
        rows.append([module, f"{n:,}", *medians, f"{np.median(ratios):.3f}", spread, "yes" if same else "no"])
    save_table(
        "training",
        "Training through skorch against a plain PyTorch loop",
        ["network", "images", "plain, s per epoch", "skorch, s per epoch", "ratio (median)", "range", "same weights"],
        rows,
        [environment(SEED, repeats=N_REPEATS, batch_size=BATCH_SIZE)],
    )


if __name__ == "__main__":
    main()
