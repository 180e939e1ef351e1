"""What does training through skorch cost, and joint alignment, against a plain PyTorch loop of the same model?

    python benchmarks/training.py

Same network, batches, optimiser, learning-rate schedule and random numbers; they take turns, medians of the ratios.
Joint alignment (`align_training`) learns from the same digits, rotated by any angle. The table goes to
results/training.md.
"""

import copy
import math
from functools import partial

import numpy as np
import torch
from shared.command import parser
from shared.tables import environment, save_table
from shared.timing import in_turns, timed

from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.learning.epochs import n_steps
from sk_avae.learning.training_poses import TrainingPoses
from sk_avae.learning.training_run import AGREEING
from sk_avae.learning.vae_training import TrainingImages, VAESettings, train_vae
from sk_avae.model.avae import AVAE
from sk_avae.model.likelihoods import Bernoulli
from sk_avae.model.vae import MODULES

SEED, N_REPEATS, BATCH_SIZE, LR, LATENT_SIZE, N_RESTARTS = 0, 5, 256, 2e-3, 16, 16


def model_of(vae):
    return AVAE(vae, Bernoulli(), "rotation", torch.zeros(1), scale=(math.inf,))


def plain_loop(vae, images, max_epochs):
    model = model_of(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=LR, fused=True)
    steps = n_steps(len(images), max_epochs, BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    generator = torch.Generator().manual_seed(SEED)
    vae.train()
    for _ in range(max_epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):
            noise = torch.randn(len(rows), LATENT_SIZE, generator=generator)
            optimizer.zero_grad()
            loss = -model.elbo(images[rows], noise=noise).mean()
            loss.backward()
            optimizer.step()
            scheduler.step()


def with_skorch(vae, images, max_epochs, *, align=False):
    model, poses = model_of(vae), None
    if align:
        n_agreeing = round(AGREEING * n_steps(len(images), max_epochs, BATCH_SIZE))
        poses = TrainingPoses(model, images, None, N_RESTARTS, n_agreeing=n_agreeing)
    settings = VAESettings(LATENT_SIZE, max_epochs, BATCH_SIZE, LR)
    train_vae(model, TrainingImages(images, poses), settings, generator=torch.Generator().manual_seed(SEED))


def measured(function, vae, images, max_epochs):
    """Train a copy, and return its weights and the seconds per epoch."""
    trained = copy.deepcopy(vae)
    _, seconds = timed(function, trained, images, max_epochs)
    return list(trained.parameters()), seconds / max_epochs


def compare(module, max_epochs, upright, turned):
    """Return the row of a network."""
    torch.manual_seed(SEED)
    vae = MODULES[module]((1, 28, 28), latent_size=LATENT_SIZE)
    ways = {
        "plain": partial(measured, plain_loop, vae, upright, max_epochs),
        "skorch": partial(measured, with_skorch, vae, upright, max_epochs),
        "aligned": partial(measured, partial(with_skorch, align=True), vae, turned, max_epochs),
    }
    turns = in_turns(ways, N_REPEATS, warm_up=1)
    seconds = {name: np.array([seconds for _, seconds in turn]) for name, turn in turns.items()}
    same = all(
        torch.equal(a, b)
        for (plain, _), (skorch, _) in zip(turns["plain"], turns["skorch"], strict=True)
        for a, b in zip(plain, skorch, strict=True)
    )
    medians = [f"{np.median(seconds[name]):.2f}" for name in ways]
    ratios = [spread(seconds[name] / seconds["plain"]) for name in ("skorch", "aligned")]
    return [module, f"{len(upright):,}", max_epochs, *medians, *ratios, "yes" if same else "no"]


def spread(ratios):
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


def main():
    args = parser(__doc__).parse_args()
    X, _ = load_mnist_sample("train")
    turned, _ = make_perturbed(X, random_state=SEED)
    upright, turned = (torch.from_numpy(x.astype(np.float32) / 255).view(-1, 1, 28, 28) for x in (X, turned))
    rows = [
        compare(module, epochs, upright[:n], turned[:n]) for module, epochs, n in (("mlp", 8, 5000), ("conv", 2, 512))
    ]
    save_table(
        args.output / "training",
        "Training through skorch, and joint alignment, against a plain PyTorch loop",
        [
            *("network", "images", "epochs", "plain, s per epoch", "skorch, s", "align_training, s"),
            *("skorch / plain: median (range)", "align_training / plain", "skorch: same weights"),
        ],
        rows,
        [environment(SEED, repeats=N_REPEATS, batch_size=BATCH_SIZE)],
    )


if __name__ == "__main__":
    main()
