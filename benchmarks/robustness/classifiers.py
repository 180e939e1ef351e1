"""The classifiers of the robustness table: fit, predict and predict_proba on rows of 40 x 40 pixels in [0, 1]."""

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
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


def make_network():
    """Return a small CNN that reads about 99 % of upright digits."""
    return nn.Sequential(
        *convolution(1, 32, 3),
        *convolution(32, 64, 3),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, N_CLASSES),
    )


def make_strong_network():
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
    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32)).view(-1, 1, SIDE, SIDE)


class CNNClassifier(ClassifierMixin, BaseEstimator):
    """A small CNN, with a spatial transformer before it if asked for.

    The transformer learns at a tenth of the network's rate, as in its paper.
    """

    def __init__(self, *, epochs=4, batch_size=128, lr=3e-3, spatial_transformer=False, random_state=0, device="cpu"):
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.spatial_transformer = spatial_transformer
        self.random_state = random_state
        self.device = device

    def fit(self, X, y, perturb=None):
        """Train on X, or in each epoch on ``perturb(X, epoch)``."""
        self.classes_ = np.arange(N_CLASSES)
        labels = torch.from_numpy(np.asarray(y)).to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            optimizer = self._build()
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=[group["lr"] for group in optimizer.param_groups],
                total_steps=self.epochs * -(-len(labels) // self.batch_size),
            )
            for epoch in range(self.epochs):
                images = as_images(X if perturb is None else perturb(X, epoch)).to(self.device)
                for rows in torch.randperm(len(labels)).split(self.batch_size):
                    optimizer.zero_grad()
                    F.cross_entropy(self.network_(images[rows]), labels[rows]).backward()
                    optimizer.step()
                    scheduler.step()
        self.network_.cpu().eval()
        return self

    def _build(self):
        """Make the network and the optimiser of its parts."""
        network = make_network()
        groups = [{"params": network.parameters(), "lr": self.lr}]
        if self.spatial_transformer:
            network.insert(0, SpatialTransformer())
            groups.append({"params": network[0].parameters(), "lr": 0.1 * self.lr})
            groups[0]["params"] = network[1:].parameters()
        self.network_ = network.to(self.device)
        return torch.optim.Adam(groups)

    def predict_proba(self, X):
        network = self.network_.to(self.device)
        with torch.no_grad():
            parts = [network(some.to(self.device)).softmax(dim=1) for some in as_images(X).split(ROWS_AT_ONCE)]
        return torch.cat(parts).cpu().numpy()

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class StrongCNNClassifier(ClassifierMixin, BaseEstimator):
    """A CNN with batch normalization that learns from jittered digits; in bfloat16 where the machine has it.

    `decision_function` are its logits.
    """

    def __init__(self, *, epochs=10, batch_size=256, lr=1e-2, random_state=0, device="cpu"):
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
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
            network = make_strong_network().to(self.device, memory_format=torch.channels_last)
        steps = self.epochs * -(-len(labels) // self.batch_size)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
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


def predict_weighted(classifier, images, weights, smallest=1e-3):
    """Predict from several canonical images of each input, weighing their class probabilities.

    A classifier without probabilities (the SVM) sees the first image only.

    Parameters
    ----------
    images : ndarray of uint8 of shape (n, k, n_features)
    weights : ndarray of shape (n, k)
        Images that weigh less than `smallest` are not read.
    """
    if not hasattr(classifier, "predict_proba"):
        return classifier.predict(images[:, 0] / np.float32(255))
    total = np.zeros((len(images), len(classifier.classes_)))
    for k in range(images.shape[1]):
        read = weights[:, k] >= smallest
        if read.any():
            total[read] += weights[read, k, None] * classifier.predict_proba(images[read, k] / np.float32(255))
    return classifier.classes_[total.argmax(axis=1)]
