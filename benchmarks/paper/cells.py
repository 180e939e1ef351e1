"""The cells of `paper.py`: models, and what they make of test digits, in two columns.

`published_*` are the paper's network, loss and search (`published.py`). The others are `AVAEEstimator` with its
defaults, but without the critic, which chooses by more than the loss.
"""

import copy
import inspect
import math
from dataclasses import asdict, dataclass
from functools import partial, wraps

import numpy as np
import torch
from shared import paper_search
from shared.cache import code_digest
from shared.paper_search import GENERAL_AFFINE, STARTS, PaperSearch, matrix_of
from sklearn.linear_model import LogisticRegression
from skorch.callbacks import Callback

from sk_avae import AVAEEstimator, ExpertSettings
from sk_avae.datasets import make_perturbed
from sk_avae.model import affine, vae

from . import published
from .published import SIDE

ANGLES = tuple(range(0, 181, 20))
TURNED_BY = "nearest"  # pixel, as the paper does
TRAININGS = ("upright", "turned", "aligned")
PUBLISHED_TRAININGS = ("single", "random", "optimised")


@dataclass(frozen=True)
class Settings:
    """Sizes and budgets of both columns."""

    n_train: int = 60_000
    n_test: int = 1_000
    epochs: int = 30
    pose_epochs: tuple[int, ...] = (1, 5, 30)
    latent_sizes: tuple[int, ...] = (4, 6, 8, 16, 32)
    n_latent_train: int = 12_000
    latent_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_published_train: int = 12_000
    published_epochs: int = 30
    published_random_epochs: int = 60


FULL = Settings()
QUICK = Settings(
    n_train=3_000,
    n_test=200,
    epochs=20,
    pose_epochs=(1, 5, 20),
    latent_sizes=(4, 16),
    n_latent_train=2_000,
    latent_seeds=(0,),
    n_published_train=1_500,
    published_epochs=10,
    published_random_epochs=10,
)


class PosesByEpoch(Callback):
    """Keeps the training images' poses of some epochs; skorch copies callbacks, so the class holds them."""

    kept: dict[int, np.ndarray] = {}  # noqa: RUF012

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch_end(self, net, **kwargs):
        epoch = len(net.history)
        if epoch in self.epochs:
            self.kept[epoch] = net.data.poses.alpha.cpu().numpy().copy()


def loss(avae, rows, *, align=True):
    return float(avae.negative_elbo(rows, align=align).mean())


def loss_at(avae, rows, alpha):
    """Return the mean loss of images at given poses."""
    aligner = avae.aligner_
    with torch.no_grad():
        return float(-aligner.model.elbo(aligner.to_model(rows), aligner.pose_to_model(alpha)).mean())


def reconstructed_as_they_come(avae, rows):
    """Return what the VAE makes of images that are not aligned."""
    aligner = avae.aligner_
    with torch.no_grad():
        z = aligner.vae.module.encode(aligner.to_model(rows))[0].cpu().numpy()
    return avae.decode(np.pad(z, ((0, 0), (0, len(aligner.parameters)))))


def cell(file):
    """Make a method a cell: computed once for its arguments, and kept in a file of the cache."""

    def decorate(method):
        signature = inspect.signature(method)

        @wraps(method)
        def kept(self, *args, **kwargs):
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
            return self.kept(file, partial(method, *bound.args), arguments)

        return kept

    return decorate


class Reproduction:
    """All cells of the two columns."""

    def __init__(self, digits, settings, cache, device):
        self.settings, self.cache, self.device = settings, cache, device
        (self.X, self.y), (self.X_test, self.y_test) = digits["train"], digits["test"]
        self.key = {"digits": digits["key"], **asdict(settings)}
        self.published_code = code_digest(published, paper_search, affine, vae)

    def kept(self, file, compute, arguments):
        code = self.published_code if file.startswith("published") else code_digest()
        stem, suffix = file.split(".")
        name = "_".join([stem, *map(str, arguments.values())])
        return self.cache.get(f"{name}.{suffix}", {"cell": file, "code": code, **arguments, **self.key}, compute)

    # ------------------------------------------------------------------ digits
    def training_digits(self, training, n=None):
        """Return the first n training digits, upright or turned by any angle, and their angles."""
        X = self.X[: n or self.settings.n_train]
        return (X, None) if training == "upright" else self._turned(X, math.pi, 1)

    def turned_test_digits(self, degrees=None, interpolation=TURNED_BY):
        angle = math.pi if degrees is None else (math.radians(degrees),) * 2
        return self._turned(self.X_test, angle, 2, interpolation)

    def _turned(self, rows, angle, random_state, interpolation=TURNED_BY):
        return make_perturbed(rows, ranges={"angle": angle}, interpolation=interpolation, random_state=random_state)

    def transformed_test_digits(self, n=None):
        return make_perturbed(self.X_test[:n], family="linear", ranges=GENERAL_AFFINE, random_state=2)[0]

    # ------------------------------------------------------------------ this package
    @cell("package.joblib")
    def model(self, training, family="rotation", latent_size=16, seed=0, n=None):
        """Return a model fitted on upright or turned digits; with the poses by epoch."""
        PosesByEpoch.kept.clear()
        poses = self.settings.pose_epochs if training == "aligned" else ()
        avae = AVAEEstimator(
            latent_size,
            family=family,
            image_shape=(SIDE, SIDE),
            align_training=training == "aligned",
            critic=False,
            max_epochs=self.settings.epochs,
            n_restarts="auto" if family == "rotation" else 64,
            expert=ExpertSettings(callbacks=[PosesByEpoch(poses)]),
            device=self.device,
            random_state=seed,
        ).fit(self.training_digits(training, n)[0])
        return {"model": avae.set_params(expert=None), "poses": dict(PosesByEpoch.kept)}

    @cell("curve.json")
    def curve(self, training, interpolation=TURNED_BY):
        """Return the losses over the angles, of the VAE, of the AVAE, and where digits are turned back by the angle."""
        avae = self.model(training)["model"]
        turned = [self.turned_test_digits(angle, interpolation) for angle in ANGLES]
        return {
            "vae": [loss(avae, X, align=False) for X, _ in turned],
            "avae": [loss(avae, X) for X, _ in turned],
            "true": [loss_at(avae, X, alpha) for X, alpha in turned],
        }

    @cell("affine.json")
    def affine(self):
        """Return the losses of upright and of generally transformed digits."""
        avae, X = self.model("upright", family="linear")["model"], self.transformed_test_digits()
        return {
            "upright": loss(avae, self.X_test, align=False),
            "vae": loss(avae, X, align=False),
            "avae": loss(avae, X),
            "flat_prior": loss(copy.copy(avae).set_params(alpha_prior=None), X),
        }

    @cell("latent.json")
    def by_latent_size(self, latent_size, training, seed):
        """Return the losses of turned and of upright digits for a latent size."""
        n = self.settings.n_latent_train
        avae = self.model(training, latent_size=latent_size, seed=seed, n=n)["model"]
        turned, _ = self.turned_test_digits()
        return {
            "upright_vae": loss(avae, self.X_test, align=False),
            "turned_vae": loss(avae, turned, align=False),
            "turned_avae": loss(avae, turned),
            "device": self.device,
        }

    @cell("classified.json")
    def classified(self, training):
        """Return LogisticRegression's accuracy on turned test digits behind a model; fitted on its training digits."""
        avae = self.model(training)["model"]

        def pixels(rows):
            return avae.transform(rows)[:, : SIDE * SIDE] / 255

        X, y = pixels(self.training_digits(training)[0]), self.y[: self.settings.n_train]
        classifier = LogisticRegression(max_iter=100, tol=1e-3).fit(X, y)
        turned, _ = self.turned_test_digits()
        return {"accuracy": float(classifier.score(pixels(turned), self.y_test))}

    def poses(self):
        """Return, per epoch, how far the poses of the training digits are from the turns, and the digits' classes."""
        _, true = self.training_digits("aligned")
        found = self.model("aligned")["poses"]
        return {epoch: alpha[:, 0] - true[:, 0] for epoch, alpha in found.items()}, self.y[: len(true)]

    @cell("pictures.joblib")
    def pictures(self):
        """Return digits and what VAE and AVAE make of them: turned by the angles, and generally transformed."""
        turned = np.concatenate([self.turned_test_digits(angle)[0][:1] for angle in ANGLES])
        pictures = {}
        for name, rows, family in (
            ("turned", turned, "rotation"),
            ("affine", self.transformed_test_digits(10), "linear"),
        ):
            avae = self.model("upright", family=family)["model"]
            plain, aligned = reconstructed_as_they_come(avae, rows), avae.reconstruct(rows)
            for kind, pixels in (("input", rows), ("vae", plain), ("avae", aligned)):
                pictures[f"{name}_{kind}"] = pixels / 255
        return pictures

    # ------------------------------------------------------------------ as published
    def published_model(self, training):
        """Return the paper's VAE after all epochs; each epoch is kept."""
        images = published.normalised(self.X[: self.settings.n_published_train])
        network, optimizer = published.new_model()
        s = self.settings
        n_epochs = s.published_random_epochs if training == "random" else s.published_epochs
        for epoch in range(1, n_epochs + 1):

            def compute(epoch=epoch):
                mean_loss = published.train_epoch(network, optimizer, images, training, epoch)
                return {"vae": network.state_dict(), "optimizer": optimizer.state_dict(), "loss": mean_loss}

            # An epoch is the same however many are to follow.
            key = {"digits": self.key["digits"], "n": len(images), "code": self.published_code}
            key |= {"training": training, "epoch": epoch}
            state = self.cache.get(f"published_{training}_{epoch}.joblib", key, compute)
            network.load_state_dict(state["vae"])
            optimizer.load_state_dict(state["optimizer"])
        return network.eval()

    @cell("published_curve.json")
    def published_curve(self, training):
        """Return the paper's losses over the angles, of the VAE and of the AVAE."""
        network, images = self.published_model(training), published.normalised(self.X_test)
        turned = [published.turned(images, torch.full((len(images),), angle)) for angle in ANGLES]
        return {
            "vae": [mean_published_loss(network, some) for some in turned],
            "avae": [aligned_published_loss(network, some, "rotation") for some in turned],
        }

    @cell("published_affine.json")
    def published_affine(self):
        """Return the paper's losses of generally transformed digits."""
        network = self.published_model("single")
        upright, images = map(published.normalised, (self.X_test, self.transformed_test_digits()))
        return {
            "upright": mean_published_loss(network, upright),
            "vae": mean_published_loss(network, images),
            "avae": aligned_published_loss(network, images, "linear"),
        }

    # ------------------------------------------------------------------ all
    def tasks(self):
        """List the cells, cheap ones first: (name, function)."""
        s = self.settings
        return [
            *((f"curve {t}", partial(self.curve, t)) for t in TRAININGS),
            *((f"classified {t}", partial(self.classified, t)) for t in ("upright", "aligned")),
            ("smooth curve upright", partial(self.curve, "upright", "bicubic")),
            ("affine", self.affine),
            ("pictures", self.pictures),
            *((f"published {t}", partial(self.published_curve, t)) for t in PUBLISHED_TRAININGS),
            ("published affine", self.published_affine),
            *(
                (f"latent {latent} {t} {seed}", partial(self.by_latent_size, latent, t, seed))
                for seed in s.latent_seeds
                for latent in s.latent_sizes
                for t in TRAININGS
            ),
        ]


def mean_published_loss(network, images, matrix=None):
    with torch.no_grad():
        return float(published.published_loss(network, images, matrix).mean())


def aligned_published_loss(network, images, family):
    search, generator = PaperSearch(family, STARTS[family]), torch.Generator().manual_seed(0)
    pose = search.run(published.loss_of(published.Searched(network)), images, generator)
    return mean_published_loss(network, images, matrix_of(pose))
