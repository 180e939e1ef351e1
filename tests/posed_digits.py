"""What the tests of the model and of the search share: digits as tensors, networks that learned them, and `align`."""

from functools import cache

import torch

from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.learning.vae_training import TrainingImages, VAESettings, train_vae
from sk_avae.model.avae import AVAE
from sk_avae.model.likelihoods import Bernoulli
from sk_avae.model.moments import Moments
from sk_avae.model.prior import prior_scale
from sk_avae.model.vae import MLPVAE, ConvVAE
from sk_avae.search.align import align
from sk_avae.search.objective import Objective
from sk_avae.search.screening import CandidatePoses
from sk_avae.search.settings import SearchSettings
from sk_avae.search.starting_poses import starting_poses

TYPICAL = Moments(torch.tensor([[0.0, 0.0]]), torch.tensor([[[0.08, -0.01], [-0.01, 0.16]]]))


def digits(subset="test", n=None):
    X, _ = load_mnist_sample(subset)
    return torch.tensor(X[:n].reshape(-1, 1, 28, 28) / 255.0).float()


def turned(images, family="rotation"):
    """Perturbed copies of images, and the true poses."""
    rows, alpha = make_perturbed(images[:, 0].numpy(), family=family, random_state=0)
    return torch.tensor(rows)[:, None], torch.tensor(alpha).float()


@cache
def network(name):
    """A small VAE of upright digits ("mlp"), or the paper's network after a few steps ("conv"); nothing changes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = MLPVAE((1, 28, 28), 16, (128, 64)) if name == "mlp" else ConvVAE((1, 28, 28), 16)
        train_vae(
            AVAE(vae, Bernoulli(), "rotation", torch.zeros(1), scale=(float("inf"),)),
            TrainingImages(digits("train", None if name == "mlp" else 512)),
            VAESettings(latent_size=16, max_epochs=8 if name == "mlp" else 1, batch_size=128, lr=2e-3),
            generator=torch.Generator().manual_seed(0),
        )
    vae.zero_grad()
    return vae.eval()


def avae_of(family="rotation", alpha_prior="auto", vae="mlp"):
    return AVAE(network(vae), Bernoulli(), family, torch.zeros(1), prior_scale(alpha_prior, family))


def candidates(model, images, n_restarts=16):
    return CandidatePoses(starting_poses(images, model.background, TYPICAL, n_restarts, model.family, model.scale))


def aligned(model, images, n_restarts=16, movable=None, **settings):
    poses = candidates(model, images, n_restarts)
    return align(Objective(model, images), poses, SearchSettings(**settings), movable)
