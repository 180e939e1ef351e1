"""The front-ends of the robustness table: each brings 40 x 40 images into one pose.

``fit(X, y)`` returns a front-end's model; ``search(model, X)`` returns a dict: "weights" of shape (n, k), and "matrix"
of shape (n, k, 2, 3), from canonical to input coordinates, or else "images" of shape (n, k, n_features). `drawn` makes
images of either. Rows are bytes everywhere. Plain data says what results depend on beside the images: ``model_name``
and ``model_key`` for the model, which front-ends with equal ones share, ``search_key`` for what is found with it.
"""

import copy
import importlib.util
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from shared import paper_search
from torch import nn

import sk_avae
from sk_avae import AVAEEstimator
from sk_avae.model.affine import to_matrix, warp
from sk_avae.model.avae import AVAE

from .classifiers import SIDE, as_images, make_network
from .plan import ROWS

# What the package's rows search with. One model serves them all: it is fitted with a critic and a gate.
FITTED = {"critic": True, "min_gain": "auto"}
RANKED = {"critic": True, "min_gain": 0.0}
VAE_ONLY = RANKED | {"critic": False}
GATED = FITTED

# equiadapt's own example (image classification, group_equivariant, prior weight 100), with 16 rotations for its 4,
# since these turns are continuous, and 4 channels for its 32, since it runs on a CPU.
EQUIADAPT_NETWORK = {
    "kernel_size": 5,
    "out_channels": 4,
    "num_layers": 3,
    "group_type": "rotation",
    "num_rotations": 16,
}
EQUIADAPT_TRAINING = {"lr": 1e-3, "batch_size": 128, "task_weight": 1.0, "prior_weight": 100.0}

IMAGES_AT_ONCE = 512


def as_bytes(rows):
    return np.clip(np.rint(rows), 0, 255).astype(np.uint8)


def only(name, values):
    """Return what a search for one pose per input found: its matrices or images."""
    return {name: np.asarray(values)[:, None], "weights": np.ones((len(values), 1), dtype=np.float32)}


def drawn(found, rows, k=None):
    """Return the canonical images, of shape (n, k, n_features), of what a search found in rows; the best k only."""
    if "images" in found:
        return found["images"][:, :k]
    matrix = torch.from_numpy(found["matrix"][:, :k])
    return np.stack([as_bytes(warp_rows(rows, matrix[:, j])) for j in range(matrix.shape[1])], axis=1)


def warp_rows(rows, matrix):
    """Warp rows of bytes by matrices that map canonical to input coordinates, with black outside."""
    pairs = zip(in_parts(rows), in_parts(matrix), strict=True)
    return torch.cat([warp(as_images(some), m).flatten(1) for some, m in pairs]).numpy()


def in_parts(rows):
    return np.array_split(rows, max(1, len(rows) // IMAGES_AT_ONCE))


def image_batches(rows, device):
    return (as_images(some / np.float32(255)).to(device) for some in in_parts(rows))


def undo(rows, alpha, family):
    """Undo known poses: what a perfect front-end would do."""
    return warp_rows(rows, to_matrix(torch.from_numpy(alpha), family).float())


class Moments:
    """Centroid, spread and direction of the ink, brought to fixed values.

    Rotation: the ink's long axis is turned upright, its skewness telling the ends apart. Richer families: the ink is
    whitened, then turned by its third moments.
    """

    model_name = "moments"
    SPREAD = 0.25

    def __init__(self, family):
        self.family = family
        self.model_key = {}
        self.search_key = {"family": family, "spread": self.SPREAD}

    def fit(self, X, y):
        return None

    def search(self, model, X):
        matrices = [self._matrices(some) for some in in_parts(X)]
        return only("matrix", np.concatenate(matrices).astype(np.float32))

    def _matrices(self, rows):
        ink = rows.astype(np.float64) + 1e-9
        ink /= ink.sum(axis=1, keepdims=True)
        side = (2 * np.arange(SIDE) + 1) / SIDE - 1
        points = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
        centre = ink @ points
        offsets = points - centre[:, None]
        covariance = np.einsum("np,npi,npj->nij", ink, offsets, offsets) + 1e-6 * np.eye(2)
        values, vectors = np.linalg.eigh(covariance)
        if self.family == "rotation":
            stretch = np.eye(2)
            along = np.einsum("npi,ni->np", offsets, vectors[:, :, 1])
            skewness = (ink * along**3).sum(axis=1)
            direction = vectors[:, :, 1] * np.where(skewness < 0, -1, 1)[:, None]
        else:
            stretch = np.einsum("nik,nk,njk->nij", vectors, np.sqrt(values) / self.SPREAD, vectors)
            white = np.einsum("nij,npj->npi", np.linalg.inv(stretch), offsets)
            direction = np.einsum("np,np,npi->ni", ink, (white**2).sum(axis=2), white)
            direction /= np.linalg.norm(direction, axis=1, keepdims=True) + 1e-12
        return np.concatenate([stretch @ upright(direction), centre[:, :, None]], axis=2)


def upright(direction):
    """Return the rotations, of shape (n, 2, 2), that take the axis pointing down to `direction`."""
    x, y = direction.T
    return np.stack([np.stack([y, x], axis=1), np.stack([-x, y], axis=1)], axis=1)


class Canonicalizer:
    """The package: the hypotheses for an image, the best one first, with their weights."""

    model_name = "avae"

    def __init__(self, family, *, random_state, search=RANKED, **parameters):
        self.estimator = AVAEEstimator(
            family=family, image_shape=(SIDE, SIDE), random_state=random_state, **(parameters | FITTED)
        )
        self.model_key = {"sk_avae": sk_avae.__version__, **self.estimator.get_params()}
        self.search_key = dict(search)

    def fit(self, X, y):
        return self.estimator.fit(X)

    def perturb(self, model, X, random_state):
        """Give training digits poses that the model learned to undo."""
        return as_bytes(model.perturb(X, random_state)[0])

    def search(self, model, X):
        found = copy.copy(model).set_params(**self.search_key).align(X)
        n, k, n_params = found.hypotheses.shape
        alpha = torch.from_numpy(np.ascontiguousarray(found.hypotheses)).view(n * k, n_params)
        matrix = to_matrix(alpha, self.estimator.family).float().view(n, k, 2, 3)
        return {"matrix": matrix.numpy(), "weights": found.hypothesis_weight}


class PaperFrontend(Canonicalizer):
    """The paper's search on the same VAE: no prior, no gate."""

    def __init__(self, family, *, random_state, n_starts, **parameters):
        super().__init__(family, random_state=random_state, **parameters)
        self.generator_seed = random_state
        self.paper_search = paper_search.PaperSearch(family, n_starts)
        self.search_key = {
            "n_starts": n_starts,
            "n_steps": paper_search.STEPS,
            "lr": paper_search.LR[family],
            "reach": paper_search.REACH[family],
        }

    def search(self, model, X):
        aligner, generator = model.aligner_, torch.Generator().manual_seed(self.generator_seed)
        black = torch.zeros(1, device=aligner.device)
        avae = AVAE(aligner.vae.module, aligner.likelihood.module, self.estimator.family, black, scale=())
        loss = paper_search.negative_elbo(avae)
        poses = [self.paper_search.run(loss, some, generator).cpu() for some in image_batches(X, aligner.device)]
        return only("matrix", paper_search.matrix_of(torch.cat(poses)))


class Equiadapt:
    """equiadapt's group-equivariant canonicalizer, trained together with a CNN on upright digits.

    As in its image classification example: task loss plus the prior that upright digits stay as they are.

    References
    ----------
    Mondal et al. (2023), "Equivariant Adaptation of Large Pretrained Models".
    """

    model_name = "equiadapt"

    def __init__(self, *, n_images, epochs, random_state, device):
        self.n_images, self.epochs, self.random_state, self.device = n_images, epochs, random_state, device
        settings = {"n_images": n_images, "epochs": epochs, "random_state": random_state}
        self.model_key = {"equiadapt": "0.1.2", **settings, **EQUIADAPT_NETWORK, **EQUIADAPT_TRAINING}
        self.search_key = {}

    def _build(self):
        from equiadapt.images.canonicalization.discrete_group import GroupEquivariantImageCanonicalization
        from equiadapt.images.canonicalization_networks import ESCNNEquivariantNetwork

        shape = (1, SIDE, SIDE)
        # The ratio and the size are for colour images; grey ones are taken whole.
        settings = SimpleNamespace(beta=1.0, input_crop_ratio=0.8, resize_shape=SIDE)
        return GroupEquivariantImageCanonicalization(
            ESCNNEquivariantNetwork(shape, **EQUIADAPT_NETWORK), settings, shape
        )

    def fit(self, X, y):
        images = as_images(X[: self.n_images] / np.float32(255))
        labels = torch.from_numpy(y[: self.n_images])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            canonicalizer, network = self._build(), make_network()
            self._train(canonicalizer, network, images, labels)
        return copy.deepcopy(canonicalizer.cpu().state_dict())

    def _train(self, canonicalizer, network, images, labels):
        weight = EQUIADAPT_TRAINING
        both = nn.ModuleList([canonicalizer, network]).to(self.device).train()
        images, labels = images.to(self.device), labels.to(self.device)
        optimizer = torch.optim.AdamW(both.parameters(), lr=weight["lr"])
        for _ in range(self.epochs):
            for rows in torch.randperm(len(images)).split(weight["batch_size"]):
                optimizer.zero_grad()
                task = F.cross_entropy(network(canonicalizer(images[rows])), labels[rows])
                prior = canonicalizer.get_prior_regularization_loss()
                (weight["task_weight"] * task + weight["prior_weight"] * prior).backward()
                optimizer.step()

    def search(self, model, X):
        # e2cnn's layers keep filters made from their weights, but only while in evaluation mode.
        canonicalizer = self._build().train()
        canonicalizer.load_state_dict(model)
        canonicalizer.to(self.device).eval()
        with torch.no_grad():
            canonical = torch.cat([canonicalizer(some).cpu() for some in image_batches(X, self.device)])
        return only("images", as_bytes(255 * canonical.flatten(1).numpy()))


def missing(name):
    """Say why a front-end cannot run here, or return None."""
    not_installed = name == "equiadapt" and importlib.util.find_spec("equiadapt") is None
    return "not installed" if not_installed else None


def make_frontend(row, family, settings, seed, device):
    """Return the front-end of a row; `device` is that of the networks in it."""
    # The richer families choose among four hypotheses, as the committed tables do.
    search = {} if family == "rotation" else {"n_refine": 4}
    avae = {"random_state": seed, "device": device, **search, **settings.avae}
    n_starts = round(settings.paper_budget * paper_search.STARTS[family])
    n_images, epochs = settings.equiadapt_images, settings.equiadapt_epochs
    makers = {
        "moments": lambda: Moments(family),
        "equiadapt": lambda: Equiadapt(n_images=n_images, epochs=epochs, random_state=seed, device=device),
        "paper": lambda: PaperFrontend(family, n_starts=n_starts, **avae),
        "vae_only": lambda: Canonicalizer(family, search=VAE_ONLY, **avae),
        "sk_avae": lambda: Canonicalizer(family, search=RANKED, **avae),
        "gated": lambda: Canonicalizer(family, search=GATED, **avae),
    }
    return makers[ROWS[row].frontend or row]()
