"""The paper's figures and tables, as published and as this package does it.

    python benchmarks/paper.py FOLDER_WITH_IDX_FILES [--quick] [--time-limit MINUTES] [--device DEVICE]

Two columns: the paper's network, loss and search (`published.py`), and `AVAEEstimator` with its defaults, but for the
critic, which chooses by more than the loss and is left out. Settings are
fixed in advance; test digits only measure. Each cell is kept in the cache folder, so that a run that was stopped goes
on where it was. Writes `results/paper*.md` and `.json`, and the pictures of
`docs/reproduction.md`.
"""

import argparse
import copy
import hashlib
import json
import math
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import published
import torch
from cache import Cache, OutOfTimeError, code_digest
from common import RESULTS, environment, load_digits
from paper_report import pose_lengths, write
from sklearn.linear_model import LogisticRegression
from skorch.callbacks import Callback

from sk_avae import AVAEEstimator, affine, vae
from sk_avae.datasets import make_perturbed
from sk_avae.vae import ConvVAE

SIDE = published.SIDE
FIGURES = Path(__file__).parent.parent / "docs" / "images"
ANGLES = tuple(range(0, 181, 20))
# "Random shears up to 55 degrees, random scaling by up to 50 %"; the slope of a shear is the tangent of its angle.
GENERAL_AFFINE = {
    "angle": math.pi,
    "shear": math.tan(math.radians(55)),
    **dict.fromkeys(("log_scale_x", "log_scale_y"), (math.log(0.5), math.log(1.5))),
}
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
            self.kept[epoch] = net.poses.alpha.cpu().numpy().copy()


class Reproduction:
    """The cells: models, and what they read."""

    def __init__(self, digits, settings, cache, device):
        self.settings, self.cache, self.device = settings, cache, device
        (self.X, self.y), (self.X_test, self.y_test) = digits["train"], digits["test"]
        self.key = {"digits": digits["key"], **asdict(settings)}
        sources = (Path(module.__file__).read_bytes() for module in (published, affine, vae))
        self.published_code = hashlib.sha256(b"".join(sources)).hexdigest()[:8]

    def cell(self, name, compute, **key):
        file = "_".join([Path(name).stem, *map(str, key.values())]) + Path(name).suffix
        code = self.published_code if name.startswith("published") else code_digest()
        return self.cache.get(file, {"cell": name, "code": code, **key, **self.key}, compute)

    # ------------------------------------------------------------------ this package
    def model(self, training, *, family="rotation", latent_size=16, seed=0, n=None):
        """Return a model fitted on upright or turned digits; with the poses by epoch."""
        n = n or self.settings.n_train
        poses = self.settings.pose_epochs if training == "aligned" else ()

        def compute():
            X = self.X[:n] if training == "upright" else self.turned_training_digits(n)[0]
            PosesByEpoch.kept.clear()
            search = {} if family == "rotation" else {"n_restarts": 64, "n_refine": 4}
            avae = AVAEEstimator(
                latent_size,
                family=family,
                image_shape=(SIDE, SIDE),
                align_training=training == "aligned",
                critic=False,
                max_epochs=self.settings.epochs,
                callbacks=[PosesByEpoch(poses)],
                device=self.device,
                random_state=seed,
                **search,
            ).fit(X)
            return {
                "model": avae.set_params(callbacks=None),
                "poses": dict(PosesByEpoch.kept),
            }

        key = {"training": training, "family": family, "latent": latent_size, "seed": seed, "n": n}
        return self.cell("package.joblib", compute, **key)

    def turned_training_digits(self, n):
        return make_perturbed(self.X[:n], ranges={"angle": math.pi}, interpolation=TURNED_BY, random_state=1)

    def turned_test_digits(self, degrees=None, interpolation=TURNED_BY):
        ranges = math.pi if degrees is None else (math.radians(degrees),) * 2
        return make_perturbed(self.X_test, ranges={"angle": ranges}, interpolation=interpolation, random_state=2)

    def curve(self, training, interpolation=TURNED_BY):
        """Return the losses over the angles, of the VAE, of the AVAE, and where digits are turned back by the angle."""

        def compute():
            avae = self.model(training)["model"]
            turned = [self.turned_test_digits(angle, interpolation) for angle in ANGLES]
            return {
                "vae": [float(avae.negative_elbo(X, align=False).mean()) for X, _ in turned],
                "avae": [float(avae.negative_elbo(X).mean()) for X, _ in turned],
                "true": [loss_at(avae, X, alpha) for X, alpha in turned],
            }

        return self.cell("curve.json", compute, training=training, interpolation=interpolation)

    def affine(self):
        """Return the losses of upright and of generally transformed digits."""

        def compute():
            avae = self.model("upright", family="linear")["model"]
            X, _ = make_perturbed(self.X_test, family="linear", ranges=GENERAL_AFFINE, random_state=2)
            return {
                "upright": float(avae.negative_elbo(self.X_test, align=False).mean()),
                "vae": float(avae.negative_elbo(X, align=False).mean()),
                "avae": float(avae.negative_elbo(X).mean()),
                "flat_prior": float(copy.copy(avae).set_params(alpha_prior=None).negative_elbo(X).mean()),
            }

        return self.cell("affine.json", compute)

    def by_latent_size(self, latent_size, training, seed):
        """Return the losses of turned and of upright digits for a latent size."""

        def compute():
            n = self.settings.n_latent_train
            avae = self.model(training, latent_size=latent_size, seed=seed, n=n)["model"]
            turned, _ = self.turned_test_digits()
            return {
                "upright_vae": float(avae.negative_elbo(self.X_test, align=False).mean()),
                "turned_vae": float(avae.negative_elbo(turned, align=False).mean()),
                "turned_avae": float(avae.negative_elbo(turned).mean()),
                "device": self.device,
            }

        return self.cell("latent.json", compute, latent=latent_size, training=training, seed=seed)

    def classified(self, training):
        """Return LogisticRegression's accuracy on turned test digits behind a model; fitted on its training digits."""

        def compute():
            avae = self.model(training)["model"]
            n = self.settings.n_train
            X = self.X[:n] if training == "upright" else self.turned_training_digits(n)[0]

            def pixels(rows):
                return avae.transform(rows)[:, : SIDE * SIDE] / 255

            classifier = LogisticRegression(max_iter=100, tol=1e-3).fit(pixels(X), self.y[:n])
            turned, _ = self.turned_test_digits()
            return {"accuracy": float(classifier.score(pixels(turned), self.y_test))}

        return self.cell("classified.json", compute, training=training)

    def poses(self):
        """Return, per epoch, how far the poses of the training digits are from the turns, and the digits' classes."""
        n = self.settings.n_train
        _, true = self.turned_training_digits(n)
        found = self.model("aligned")["poses"]
        return {epoch: alpha[:, 0] - true[:, 0] for epoch, alpha in found.items()}, self.y[:n]

    # ------------------------------------------------------------------ as published
    def published_model(self, training):
        """Return the paper's VAE after all epochs; each epoch is kept."""
        images = published.normalised(self.X[: self.settings.n_published_train])
        torch.manual_seed(0)
        vae = ConvVAE((1, SIDE, SIDE), published.LATENT_SIZE).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(vae.parameters(), **published.ADAM)
        s = self.settings
        n_epochs = s.published_random_epochs if training == "random" else s.published_epochs
        for epoch in range(1, n_epochs + 1):

            def compute(epoch=epoch):
                generator = torch.Generator().manual_seed(epoch)
                (group,) = optimizer.param_groups
                group["lr"] = published.learning_rate(epoch)
                loss = published.train_epoch(vae, optimizer, images, training, generator)
                return {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "loss": loss}

            # An epoch is the same however many are to follow.
            key = {"digits": self.key["digits"], "n": len(images), "code": self.published_code}
            key |= {"training": training, "epoch": epoch}
            state = self.cache.get(f"published_{training}_{epoch}.joblib", key, compute)
            vae.load_state_dict(state["vae"])
            optimizer.load_state_dict(state["optimizer"])
        return vae.eval()

    def published_curve(self, training):
        """Return the paper's losses over the angles, of the VAE and of the AVAE."""

        def compute():
            vae = self.published_model(training)
            search = published.Search("rotation", published.STARTS["rotation"])
            images = published.normalised(self.X_test)
            turned = [published.turned(images, torch.full((len(images),), angle)) for angle in ANGLES]
            return {
                "vae": [mean_loss(vae, some) for some in turned],
                "avae": [self._aligned_loss(vae, some, search) for some in turned],
            }

        return self.cell("published_curve.json", compute, training=training)

    def published_affine(self):
        """Return the paper's losses of generally transformed digits."""

        def compute():
            vae = self.published_model("single")
            X, _ = make_perturbed(self.X_test, family="linear", ranges=GENERAL_AFFINE, random_state=2)
            images = published.normalised(X)
            search = published.Search("linear", published.STARTS["linear"])
            return {
                "upright": mean_loss(vae, published.normalised(self.X_test)),
                "vae": mean_loss(vae, images),
                "avae": self._aligned_loss(vae, images, search),
            }

        return self.cell("published_affine.json", compute)

    def _aligned_loss(self, vae, images, search):
        generator = torch.Generator().manual_seed(0)
        pose = search.run(published.loss_of(published.Searched(vae)), images, generator)
        with torch.no_grad():
            return float(published.published_loss(vae, images, published.matrix_of(pose)).mean())

    # ------------------------------------------------------------------ all
    def pictures(self):
        """Return digits and what VAE and AVAE make of them: turned by the angles, and generally transformed."""

        def compute():
            turned = np.concatenate([self.turned_test_digits(angle)[0][:1] for angle in ANGLES])
            affine, _ = make_perturbed(self.X_test[:10], family="linear", ranges=GENERAL_AFFINE, random_state=2)
            both = {}
            for name, rows, family in (("turned", turned, "rotation"), ("affine", affine, "linear")):
                avae = self.model("upright", family=family)["model"]
                plain = avae.decode(np.pad(codes_as_they_come(avae, rows), ((0, 0), (0, n_params(avae)))))
                images = {"input": rows, "vae": plain, "avae": avae.reconstruct(rows)}
                both |= {f"{name}_{kind}": pixels / 255 for kind, pixels in images.items()}
            return both

        return self.cell("pictures.npz", compute)

    def tasks(self):
        """List the cells, cheap ones first: (name, function)."""
        s = self.settings
        tasks = [(f"curve {t}", lambda t=t: self.curve(t)) for t in TRAININGS]
        tasks += [(f"classified {t}", lambda t=t: self.classified(t)) for t in ("upright", "aligned")]
        tasks += [("smooth curve upright", lambda: self.curve("upright", "bicubic"))]
        tasks += [("affine", self.affine), ("pictures", self.pictures)]
        tasks += [(f"published {t}", lambda t=t: self.published_curve(t)) for t in PUBLISHED_TRAININGS]
        tasks += [("published affine", self.published_affine)]
        for seed in s.latent_seeds:
            for latent in s.latent_sizes:
                tasks += [
                    (f"latent {latent} {t} {seed}", lambda k=latent, t=t, seed=seed: self.by_latent_size(k, t, seed))
                    for t in TRAININGS
                ]
        return tasks


def n_params(avae):
    return avae.transform(np.zeros((1, SIDE * SIDE))).shape[1] - SIDE * SIDE


def loss_at(avae, rows, alpha):
    """Return the mean loss of images at given poses."""
    with torch.no_grad():
        return float(-avae._model().elbo(avae._to_model(rows), avae._pose_to_model(alpha)).mean())


def codes_as_they_come(avae, rows):
    """Return the posterior means of images that are not aligned."""
    with torch.no_grad():
        return avae.module_.encode(avae._to_model(rows))[0].cpu().numpy()


def mean_loss(vae, images):
    with torch.no_grad():
        return float(published.published_loss(vae, images).mean())


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="MNIST's IDX files")
    parser.add_argument("--quick", action="store_true", help="fewer digits, one seed, smaller budgets")
    parser.add_argument("--only", nargs="+", default=[""], help="compute the cells whose names begin so")
    parser.add_argument("--cache", default=Path(__file__).parent / ".cache" / "paper", help="folder")
    parser.add_argument("--merge", action="store_true", help="keep the cells of the table that is there")
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="start nothing new after this")
    parser.add_argument("--device", default="cpu", help="of this package's column")
    return parser.parse_args()


def main():
    args = parse_arguments()
    settings = QUICK if args.quick else FULL
    cache = Cache(args.cache, args.time_limit)
    reproduction = Reproduction(load_digits(args.folder, settings, SIDE), settings, cache, args.device)
    cells = {}
    for chosen in (True, False):  # what was asked for, then all that the cache has
        if not chosen:
            cache.stop()
        for name, compute in reproduction.tasks():
            if chosen and not name.startswith(tuple(args.only)):
                continue
            try:
                cells[name] = compute()
            except OutOfTimeError:
                continue
    with suppress(OutOfTimeError):
        cells["poses"] = reproduction.poses()
        cells["pose lengths"] = pose_lengths(*cells["poses"])
    name = "paper_quick" if args.quick else "paper"
    written = (RESULTS / name).with_suffix(".json")
    if args.merge and written.exists():
        cells = json.loads(written.read_text()) | cells
    notes = environment(0, **{k: v for k, v in asdict(settings).items() if isinstance(v, int)})
    devices = Counter(cell.get("device", "cpu") for n, cell in cells.items() if n.startswith("latent"))
    notes += "; cells of figure 4 by device: " + ", ".join(f"{n} {device}" for device, n in devices.items())
    write(cells, settings, RESULTS / name, FIGURES, prefix="quick_" if args.quick else "", notes=notes)
    plain = {name: cell for name, cell in cells.items() if name not in ("poses", "pictures")}
    written.write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
