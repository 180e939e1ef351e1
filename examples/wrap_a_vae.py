"""
Affine layers around a VAE that was trained elsewhere
=====================================================

`AVAEEstimator.from_vae` takes any module with ``encode(x) -> (mean, log_var)`` and ``decode(z) -> parameters``, and
finds poses under it without changing a weight. Here it goes around two VAEs trained on upright digits: a plain PyTorch
module, and the VAE of the library pythae, which needs an adapter of five lines. A LogisticRegression fitted on upright
digits then reads turned ones. Prints one table, writes one picture: turned digits, and the pose each VAE gives them.

    pip install pythae    # without it there is one VAE instead of two
    python examples/wrap_a_vae.py --output out/wrap_a_vae.png
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import tempfile
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import nn

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

mpl.use("Agg")
import matplotlib.pyplot as plt

SIDE = 28


class PlainVAE(nn.Module):
    """A VAE as tutorials write it; its two methods happen to be what `from_vae` asks for."""

    def __init__(self, latent_size=16, width=512):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, width), nn.ReLU(), nn.Linear(width, 2 * latent_size)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, width), nn.ReLU(), nn.Linear(width, SIDE * SIDE), nn.Unflatten(1, (1, SIDE, SIDE))
        )

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z):
        return self.decoder(z)


def train_plain(images, n_epochs):
    """Train a `PlainVAE` by a plain loop."""
    torch.manual_seed(0)
    vae = PlainVAE()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for _ in range(n_epochs):
        for x in torch.from_numpy(images)[torch.randperm(len(images))].split(128):
            mean, log_var = vae.encode(x)
            logits = vae.decode(mean + torch.exp(log_var / 2) * torch.randn_like(mean))
            divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()
            loss = (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + divergence) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return vae


class PythaeAdapter(nn.Module):
    """Pythae's VAE in the words of `from_vae`: its decoder ends in a sigmoid, a Bernoulli likelihood takes logits."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def encode(self, x):
        output = self.vae.encoder(x)
        return output.embedding, output.log_covariance

    def decode(self, z):
        return torch.logit(self.vae.decoder(z).reconstruction, eps=1e-6)


def train_pythae(images, n_epochs):
    """Train pythae's VAE by its own trainer, and adapt it."""
    # A progress bar per epoch is no news. Pythae's log binds to stderr when it is imported.
    with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        from pythae.models import VAE, VAEConfig
        from pythae.pipelines import TrainingPipeline
        from pythae.trainers import BaseTrainerConfig

        torch.manual_seed(0)
        vae = VAE(VAEConfig(input_dim=images.shape[1:], latent_dim=16, reconstruction_loss="bce"))
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=n_epochs, learning_rate=1e-3, per_device_train_batch_size=128, no_cuda=True
        )
        TrainingPipeline(vae, config)(images)
    return PythaeAdapter(vae)


def wrap(vae, X):
    """Return the estimator around a VAE, and whether wrapping and aligning left all weights the same, bit by bit."""
    before = copy.deepcopy(vae.state_dict())
    # X is read, not trained on: it teaches the critic and the starting poses what upright digits look like.
    avae = AVAEEstimator.from_vae(vae, image_shape=(SIDE, SIDE), X=X, random_state=0)
    avae.transform(X[:100])
    same = all(
        torch.equal(before[name], state[name])
        for state in (vae.state_dict(), avae.module_.state_dict())
        for name in before
    )
    return avae, same


def train_all(X, n_epochs=30):
    """Return the VAEs by name: pythae's only where it is installed."""
    images = X.reshape(-1, 1, SIDE, SIDE)
    trainers = {"plain PyTorch": train_plain, "pythae": train_pythae}
    if importlib.util.find_spec("pythae") is None:
        print("pythae is not installed (pip install pythae): a plain PyTorch VAE has to do.")
        del trainers["pythae"]
    vaes = {}
    for name, trainer in trainers.items():
        start = time.perf_counter()
        vaes[name] = trainer(images, n_epochs)
        print(f"Trained the VAE of {name} in {time.perf_counter() - start:.0f} s")
    return vaes


def draw(path, turned, canonical):
    """Draw digits as they come, and a row of canonical images for each VAE."""
    rows = {"turned": turned, **{f"canonical\n({name})": images for name, images in canonical.items()}}
    n = len(turned)
    figure, axes = plt.subplots(len(rows), n, figsize=(0.8 * n + 1.4, 0.85 * len(rows)), layout="constrained")
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image.reshape(SIDE, SIDE), cmap="gray", vmin=0, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(title, rotation=0, ha="right", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"\nThe picture is {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--output", type=Path, default=Path("out/wrap_a_vae.png"), help="where the picture goes")
    output = parser.parse_args().output

    X_train, y_train = load_mnist_sample("train")
    X, y = load_mnist_sample("test")
    X_train, X = X_train / np.float32(255), X / np.float32(255)
    X_turned, _ = make_perturbed(X, family="rotation", random_state=0)
    vaes = train_all(X_train)

    classifier = LogisticRegression(C=0.05, max_iter=200).fit(X_train, y_train)
    print(f"\n{'accuracy of':22}{'upright':>10}{'turned':>10}{'turned, with':>15}{'weights':>12}")
    print(f"{'LogisticRegression':22}{'':>10}{'':>10}{'canonicalizer':>15}{'unchanged':>12}")
    canonical = {}
    for name, vae in vaes.items():
        avae, same = wrap(vae, X_train)
        # The classifier stays as it is, too: both steps are fitted already.
        pipeline = make_pipeline(AffineCanonicalizer(FrozenEstimator(avae)), FrozenEstimator(classifier))
        pipeline.fit(X_train, y_train)
        scores = classifier.score(X, y), classifier.score(X_turned, y), pipeline.score(X_turned, y)
        print(f"{name:22}{scores[0]:10.3f}{scores[1]:10.3f}{scores[2]:15.3f}{'yes' if same else 'NO':>12}")
        canonical[name] = pipeline[0].transform(X_turned[:12])
    draw(output, X_turned[:12], canonical)


if __name__ == "__main__":
    main()
