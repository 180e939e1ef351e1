"""The classifiers of the robustness table: fit, predict and predict_proba on rows of square images in [0, 1]."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from torch import nn

SIDE = 40
N_CLASSES = 10
ROWS_AT_ONCE = 1000


def convolution(n_in, n_out, size):
    return nn.Conv2d(n_in, n_out, size), nn.ReLU(), nn.MaxPool2d(2)


class SpatialTransformer(nn.Module):
    """Warp each image by the affine matrix that a small network reads off it; the identity at first.

    References
    ----------
    Jaderberg et al. (2015), "Spatial Transformer Networks".
    """

    def __init__(self):
        super().__init__()
        matrix = nn.Linear(32, 6)
        nn.init.zeros_(matrix.weight)
        matrix.bias.data = torch.eye(2, 3).flatten()
        self.localization = nn.Sequential(
            *convolution(1, 8, 7), *convolution(8, 10, 5), nn.Flatten(), nn.Linear(10 * 6 * 6, 32), nn.ReLU(), matrix
        )

    def forward(self, images):
        matrix = self.localization(images).view(-1, 2, 3)
        grid = F.affine_grid(matrix.float(), list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, align_corners=False)


def make_network():
    """Return a CNN that reads 99.6 % of upright digits and more."""

    def layers(n_in, n_out, size=3, stride=1):
        return (
            nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
        )

    return nn.Sequential(
        *layers(1, 32, 5, 2),
        *layers(32, 64),
        nn.MaxPool2d(2),
        *layers(64, 64),
        *layers(64, 128),
        nn.MaxPool2d(2),
        *layers(128, 128),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(128, N_CLASSES),
    )


def jittered(images, generator, *, angle=0.2, scale=0.12, shear=0.12, shift=0.1):
    """Return images that lie a little differently, as handwriting does."""
    n = len(images)

    def drawn(reach, *shape):
        return reach * (2 * torch.rand(n, *shape, generator=generator) - 1)

    turn, (sx, sy), lean = drawn(angle), torch.exp(drawn(scale, 2)).T, drawn(shear)
    cos, sin = torch.cos(turn), torch.sin(turn)
    matrix = torch.stack([cos * sx, cos * lean - sin * sy, sin * sx, sin * lean + cos * sy], dim=1).view(n, 2, 2)
    matrix = torch.cat([matrix, drawn(shift, 2, 1)], dim=2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def as_images(rows):
    side = math.isqrt(rows.shape[1])
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).view(-1, 1, side, side)


class CNNClassifier(ClassifierMixin, BaseEstimator):
    """A CNN with batch normalization that learns from jittered digits, in bfloat16; its logits are decision values.

    With a spatial transformer before it if asked for, which learns at a tenth of the network's rate, as in its paper.
    """

    def __init__(self, *, epochs=10, batch_size=256, lr=1e-2, spatial_transformer=False, random_state=0, device="cpu"):
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.spatial_transformer = spatial_transformer
        self.random_state = random_state
        self.device = device

    def _precision(self):
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def fit(self, X, y, perturb=None):
        """Train on X, or in each epoch on ``perturb(X, epoch)``; an epoch sees as many images as X has."""
        self.classes_ = np.arange(N_CLASSES)
        labels, generator = torch.from_numpy(np.asarray(y)), torch.Generator().manual_seed(self.random_state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            network = make_network()
            groups = [{"params": list(network.parameters()), "lr": self.lr}]
            if self.spatial_transformer:
                network.insert(0, SpatialTransformer())
                groups.append({"params": list(network[0].parameters()), "lr": 0.1 * self.lr})
        network.to(self.device, memory_format=torch.channels_last)
        steps = self.epochs * -(-len(labels) // self.batch_size)
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[group["lr"] for group in groups], total_steps=steps
        )
        for epoch in range(self.epochs):
            rows = X if perturb is None else perturb(X, epoch)
            for some in torch.randperm(len(labels), generator=generator).split(self.batch_size):
                images = jittered(as_images(rows[some.numpy()]), generator)
                images = images.to(self.device, memory_format=torch.channels_last)
                with self._precision():
                    logits = network(images).float()
                F.cross_entropy(logits, labels[some].to(self.device), label_smoothing=0.05).backward()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        self.network_ = network.cpu().eval()
        return self

    def decision_function(self, X):
        network = self.network_.to(self.device, memory_format=torch.channels_last)
        parts = []
        with torch.no_grad(), self._precision():
            for some in as_images(X).split(ROWS_AT_ONCE):
                some = some.to(self.device, memory_format=torch.channels_last)
                parts.append(network(some).float().cpu())
        return torch.cat(parts).numpy()

    def predict_proba(self, X):
        return torch.from_numpy(self.decision_function(X)).softmax(dim=1).numpy()

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]


def make_classifier(name, *, epochs, random_state, device):
    """Return an unfitted classifier of the table; `epochs` and `device` are the networks'."""
    network = {"epochs": epochs, "random_state": random_state, "device": device}
    makers = {
        "LogisticRegression": lambda: LogisticRegression(C=0.05, max_iter=1000),
        "kNN(3)": lambda: KNeighborsClassifier(3),
        "RBF-SVM": lambda: make_pipeline(PCA(50, random_state=random_state), SVC(C=10, gamma="scale", cache_size=1000)),
        "CNN": lambda: CNNClassifier(**network),
        "STN + CNN": lambda: CNNClassifier(**network, spatial_transformer=True),
    }
    return makers[name]()
