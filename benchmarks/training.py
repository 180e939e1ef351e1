"""Cost of training through skorch, and of joint alignment, against a plain PyTorch loop of the same model.

    python benchmarks/training.py

Same network, batches, optimiser, learning-rate schedule and random numbers; they take turns, medians of the ratios.
Joint alignment (`align_training`) learns from the same digits turned by any angle.
"""

import copy
import math
import time

import numpy as np
import torch
from common import environment, save_table

from sk_avae.alignment import AVAE
from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.joint import TrainingPoses
from sk_avae.likelihoods import Bernoulli
from sk_avae.net import n_steps, train
from sk_avae.training import AGREEING
from sk_avae.vae import MODULES

SEED, N_REPEATS, BATCH_SIZE, LR, N_RESTARTS = 0, 5, 256, 2e-3, 16


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


def with_skorch(vae, images, max_epochs, poses=None):
    model = AVAE(vae, Bernoulli(), "rotation", torch.zeros(1), scale=(math.inf,))
    train(
        model,
        images,
        validation_images=None,
        poses=poses and poses(model),
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


def with_alignment(vae, images, max_epochs):
    n_agreeing = round(AGREEING * n_steps(len(images), max_epochs, BATCH_SIZE))
    with_skorch(
        vae, images, max_epochs, lambda model: TrainingPoses(model, images, None, N_RESTARTS, n_agreeing=n_agreeing)
    )


def main():
    X, _ = load_mnist_sample("train")
    turned, _ = make_perturbed(X, random_state=SEED)
    upright, turned = (torch.from_numpy(x.astype(np.float32) / 255).view(-1, 1, 28, 28) for x in (X, turned))
    rows = []
    for module, max_epochs, n in (("mlp", 8, 5000), ("conv", 2, 512)):
        torch.manual_seed(SEED)
        vae = MODULES[module]((1, 28, 28), latent_size=16)
        ways = {"plain": (plain_loop, upright), "skorch": (with_skorch, upright), "aligned": (with_alignment, turned)}
        times = {name: [] for name in ways}
        same = True
        for repeat in range(N_REPEATS + 1):
            trained = {name: copy.deepcopy(vae) for name in ways}
            for name, (function, images) in ways.items():
                start = time.perf_counter()
                function(trained[name], images[:n], max_epochs)
                if repeat:  # the first round warms up
                    times[name].append(time.perf_counter() - start)
            weights = zip(trained["plain"].parameters(), trained["skorch"].parameters(), strict=True)
            same &= all(torch.equal(a, b) for a, b in weights)
        seconds = {name: np.array(times[name]) / max_epochs for name in ways}
        medians = [f"{np.median(seconds[name]):.2f}" for name in ways]
        ratios = [ratio(seconds[name] / seconds["plain"]) for name in ("skorch", "aligned")]
        rows.append([module, f"{n:,}", max_epochs, *medians, *ratios, "yes" if same else "no"])
    save_table(
        "training",
        "Training through skorch, and joint alignment, against a plain PyTorch loop",
        [
            *("network", "images", "epochs", "plain, s per epoch", "skorch, s", "align_training, s"),
            *("skorch / plain: median (range)", "align_training / plain", "skorch: same weights"),
        ],
        rows,
        [environment(SEED, repeats=N_REPEATS, batch_size=BATCH_SIZE)],
    )


def ratio(ratios):
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


if __name__ == "__main__":
    main()
