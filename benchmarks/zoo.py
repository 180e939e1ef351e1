"""What does canonicalization do to images that nobody tuned it on?

    python benchmarks/zoo.py FOLDER [--only SET ...] [--quick] [--time-limit MINUTES]

FOLDER has one .npz file a set: Xtr, ytr, Xte and yte (bytes), and mode, which says what lies outside an image: "bg" its
background, "edge" its edge pixels, "context" its surroundings, given as larger images Btr and Bte. Test images are put
into poses at random by scipy: turned by any angle, and for "affine" scaled and sheared by up to .3 and shifted by up to
.15 half sides, too. Three classifiers read them: LogisticRegression(C=.05), kNN(3) and SVC(C=10). Everything is left at
its default.

Columns, each a mean over the classifiers: upright test images; perturbed ones; canonicalized ones; the same behind
CanonicalizedClassifier; the true pose undone by scipy; images turned by their principal axes; classifiers
fitted on five perturbed copies; canonicalized with min_gain="auto". Then the share of the gap that is closed, the right
poses (angle within 20 degrees, transform within .6), what the fit itself foretold, how far the weights are off, and
what it cost in processor time of one thread (OMP_NUM_THREADS=1).

Three seeds; --quick is one seed, rotation only, and no images of more than 100 pixels a side. What is measured is kept
in a cache, by the digest of the package's code. The table goes to results/zoo.md, a contact sheet a set to docs/images.
"""

import contextlib
import functools
import itertools
import math
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import affine_transform
from shared.cache import Cache, OutOfTimeError, code_digest
from shared.command import BENCHMARKS, parser
from shared.tables import environment, markdown, save_text
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from sk_avae import AVAEEstimator, CanonicalizedClassifier
from sk_avae.report import calibration_error

FAMILIES, SEEDS = ("rotation", "affine"), (0, 1, 2)
CLASSIFIERS = (LogisticRegression(C=0.05, max_iter=300), KNeighborsClassifier(3), SVC(C=10))
N_COPIES = 5
LARGEST_OF_QUICK = 100
READ = ("upright", "perturbed", "canonicalized", "one copy", "pose undone", "principal axis", "augmented", "auto gate")
N_SHOWN = 8
PICTURES = BENCHMARKS.parent / "docs" / "images"


class Poses:
    """Poses at random of n images: angles counter-clockwise, logarithms of scales, shears, and shifts in half sides."""

    def __init__(self, n, family, random):
        affine = family == "affine"
        self.angle = random.uniform(-np.pi, np.pi, n)
        self.log_scale, self.shear, self.shift = (
            random.uniform(-reach, reach, shape) * affine for reach, shape in ((0.3, (n, 2)), (0.3, n), (0.15, (n, 2)))
        )

    def matrices(self):
        """Return the maps of (row, column) from canonical to input, of shape (n, 2, 2)."""
        return np.stack([linear_map(*one) for one in zip(self.angle, self.log_scale, self.shear, strict=True)])

    def are_right(self, aligned):
        """Tell which poses of an `AlignmentResult` are right: angle within 20 degrees, and all of it within 0.6."""
        miss = np.abs(np.angle(np.exp(1j * (aligned.alpha[:, 0] - self.angle))))
        back = np.linalg.inv(self.matrices()[:, ::-1, ::-1])
        left = np.concatenate([back, -back @ self.shift[:, :, None]], axis=2)
        left = np.concatenate([left[:, :, :2] @ aligned.matrix[:, :, :2], left @ with_one(aligned.matrix)], axis=2)
        return (miss < np.radians(20)) & (np.linalg.norm(left - np.eye(2, 3), axis=(1, 2)) < 0.6)


def with_one(matrix):
    """Return shifts of shape (n, 3, 1), a 1 below them."""
    return np.concatenate([matrix[:, :, 2:], np.ones((len(matrix), 1, 1))], axis=1)


def linear_map(angle, log_scale=(0.0, 0.0), shear=0.0):
    cos, sin = math.cos(angle), math.sin(angle)
    of_xy = np.array([[cos, sin], [-sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag(np.exp(log_scale))
    return of_xy[::-1, ::-1]


class Outside:
    """What lies outside the images of a set: background, edge pixels or surroundings."""

    def __init__(self, X, mode):
        self.mode = mode
        edges = np.concatenate([X[:, 0], X[:, -1], X[:, :, 0], X[:, :, -1]], axis=1)
        self.fill = np.atleast_1d(np.median(edges.reshape(-1, *X.shape[3:]), axis=0))

    def warped(self, X, matrices, shifts, wider=None, *, undo=False):
        """Warp images of bytes by maps of (row, column) and shifts in pixels, or back."""
        return np.stack(
            [
                self._warped(image, X.shape[1:3], matrix, shift, undo)
                for image, matrix, shift in zip(X if wider is None else wider, matrices, shifts, strict=True)
            ]
        )

    def _warped(self, image, sides, matrix, shift, undo):
        planes, centre = image.reshape(*image.shape[:2], -1).astype(float), (np.array(sides) - 1) / 2
        own, read = (np.array(planes.shape[:2]) - 1) / 2, matrix if undo else np.linalg.inv(matrix)
        start = own + shift - read @ centre if undo else own - read @ (centre + shift)
        how = {"order": 1, "mode": "constant" if self.mode == "bg" else "nearest", "output_shape": sides}
        moved = [
            affine_transform(planes[..., k], read, start, cval=self.fill[k], **how) for k in range(planes.shape[2])
        ]
        return np.rint(np.stack(moved, axis=2)).clip(0, 255).astype(np.uint8).reshape(*sides, *image.shape[2:])

    def put(self, X, poses, wider=None):
        """Put images into poses; their surroundings come into view."""
        return self.warped(X, poses.matrices(), poses.shift[:, ::-1] * np.array(X.shape[1:3]) / 2, wider)

    def without(self, X, poses):
        return self.warped(X, poses.matrices(), poses.shift[:, ::-1] * np.array(X.shape[1:3]) / 2, undo=True)

    def by_principal_axis(self, X):
        """Turn images so that their principal axis is upright, the heavier tail above."""
        ink = np.abs(X.reshape(*X.shape[:3], -1).astype(float) - self.fill).sum(axis=3) + 1e-9
        ink /= ink.sum(axis=(1, 2), keepdims=True)
        row, column = np.indices(X.shape[1:3]) - (np.array(X.shape[1:3])[:, None, None] - 1) / 2
        x, y = (c - (ink * c).sum(axis=(1, 2), keepdims=True) for c in (column, -row))
        angle = np.arctan2(2 * (ink * x * y).sum(axis=(1, 2)), (ink * (x**2 - y**2)).sum(axis=(1, 2))) / 2
        along = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
        angle += np.pi * ((ink * along**3).sum(axis=(1, 2)) < 0)
        matrices = np.stack([linear_map(one - np.pi / 2) for one in angle])
        return self.warped(X, matrices, np.zeros((len(X), 2)), undo=True)


def read_by(X, y, *tests):
    """Return what each classifier, fitted on images of bytes, makes of test images: lists of accuracies."""
    fitted = [clone(classifier).fit(X.reshape(len(X), -1) / 255, y) for classifier in CLASSIFIERS]
    return [[float(one.score(T.reshape(len(T), -1) / 255, classes)) for one in fitted] for T, classes in tests]


class Trial(NamedTuple):
    """A set, and its test images in poses at random."""

    X: np.ndarray
    y: np.ndarray
    T: np.ndarray
    classes: np.ndarray
    poses: Poses
    perturbed: np.ndarray
    outside: Outside
    wider: np.ndarray | None
    random: np.random.Generator

    @classmethod
    def of(cls, path, family, seed):
        data = np.load(path)
        X, y, T, classes = (data[part] for part in ("Xtr", "ytr", "Xte", "yte"))
        random, outside = np.random.default_rng(1000 + seed), Outside(X, str(data["mode"]))
        poses = Poses(len(T), family, random)
        perturbed = outside.put(T, poses, data.get("Bte"))
        return cls(X, y, T, classes, poses, perturbed, outside, data.get("Btr"), random)


def without_us(trial, family):
    """Return accuracies, per classifier, that have nothing to do with this package."""
    X, y, T, classes, poses, perturbed, outside, wider, random = trial
    found = dict(zip(("upright", "perturbed"), read_by(X, y, (T, classes), (perturbed, classes)), strict=True))
    found["pose undone"] = read_by(X, y, (outside.without(perturbed, poses), classes))[0]
    turned = outside.by_principal_axis(perturbed)
    found["principal axis"] = read_by(outside.by_principal_axis(X), y, (turned, classes))[0]
    copies = [outside.put(X, Poses(len(X), family, random), wider) for _ in range(N_COPIES)]
    found["augmented"] = read_by(np.concatenate(copies), np.tile(y, N_COPIES), (perturbed, classes))[0]
    return found


def with_us(trial, family, seed, pictures=None):
    """Return accuracies, per classifier, behind an aligner, and figures."""
    X, y, T, classes, poses, perturbed, *_ = trial
    start = time.process_time()
    model = AVAEEstimator(family=family, random_state=seed).fit(X)
    found = {"fit, s": time.process_time() - start}
    start = time.process_time()
    aligned = model.align(perturbed)
    found["ms"] = 1e3 * (time.process_time() - start) / len(T)
    found["canonicalized"] = read_canonical(model, X, y, perturbed, classes)
    found["one copy"] = [copied(model, one, X, y).score(perturbed, classes) for one in CLASSIFIERS]
    right, report = poses.are_right(aligned), model.alignment_report_
    found["right"], found["images"] = float(right.mean()), len(X)
    found["weights off by"] = calibration_error(aligned.hypothesis_weight[:, 0], right)
    found["foretold"] = math.nan if report is None else report.share_right
    if pictures is not None:
        sheet(model, perturbed[:N_SHOWN], pictures)
    model.set_params(min_gain="auto")
    found["upright moved"] = float(model.align(T).alpha.any(axis=1).mean())
    found["auto gate"] = read_canonical(model, X, y, perturbed, classes)
    return found


def read_canonical(model, X, y, perturbed, classes):
    n = X[0].size
    canonical = model.transform(X)[:, :n].reshape(X.shape)
    return read_by(canonical, y, (model.transform(perturbed)[:, :n], classes))[0]


def scaled(X):
    return X / 255


def copied(model, classifier, X, y):
    reader = make_pipeline(FunctionTransformer(scaled), clone(classifier))
    return CanonicalizedClassifier(reader, FrozenEstimator(model)).fit(X, y)


def sheet(model, X, path):
    """Draw images as they came, their canonical images and the reconstructions."""
    import matplotlib

    matplotlib.use("Agg")
    from sk_avae import AlignmentDisplay

    display = AlignmentDisplay.from_estimator(model, X, n_images=N_SHOWN)
    path.parent.mkdir(parents=True, exist_ok=True)
    display.figure_.savefig(path, dpi=60)


def closed(found):
    """Return the share of the gap between perturbed and undone images that is closed, by means over classifiers."""
    mean = {name: np.mean(found[name]) for name in READ}
    gap = mean["pose undone"] - mean["perturbed"]
    return math.nan if gap < 0.02 else (mean["canonicalized"] - mean["perturbed"]) / gap


def tables(known):
    """Return the table's rows, of means over seeds, by family."""
    rows, detailed = [], []
    for name, family in dict.fromkeys((name, family) for name, family, _ in known):
        runs = [found for (n, f, _), found in known.items() if (n, f) == (name, family)]
        mean = {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}
        read = [f"{np.mean(mean[key]):.3f}" for key in READ]
        share = closed(mean)
        rows.append(
            [
                *(
                    name,
                    family,
                    len(runs),
                    f"{int(mean['images']):,}",
                    *read,
                    "" if math.isnan(share) else f"{share:.0%}",
                ),
                *(f"{mean[key]:.2f}" for key in ("right", "foretold", "weights off by", "upright moved")),
                *(f"{mean['fit, s']:.1f}", f"{mean['ms']:.2f}"),
            ]
        )
        detailed.append([name, family, *(" ".join(f"{score:.3f}" for score in mean[key]) for key in READ)])
    return rows, detailed


def main():
    options = parser(__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--only", nargs="*", metavar="SET")
    options.add_argument("--quick", action="store_true", help="one seed, rotation only, no large images")
    options.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    options.add_argument("--families", nargs="*", choices=FAMILIES, default=FAMILIES)
    options.add_argument("--cache", default=BENCHMARKS / ".cache" / "zoo", metavar="FOLDER")
    options.add_argument("--pictures", type=Path, default=PICTURES, metavar="FOLDER", help="of contact sheets")
    options.add_argument("--time-limit", type=float, metavar="MINUTES", help="start nothing new after this")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    cache, known = Cache(options.cache, options.time_limit), {}
    paths = [path for path in sorted(options.folder.glob("*.npz")) if not options.only or path.stem in options.only]
    seeds, families = (SEEDS[:1], FAMILIES[:1]) if options.quick else (options.seeds, options.families)
    if options.quick:
        paths = [path for path in paths if max(np.load(path)["Xtr"].shape[1:3]) <= LARGEST_OF_QUICK]
    for family, seed, path in itertools.product(families, seeds, paths):
        pictures = options.pictures / f"zoo_{path.stem}.png" if family == "rotation" and seed == SEEDS[0] else None
        own, name = [code_digest(sys.modules[__name__]), path.stat().st_size], f"{path.stem}-{family}-{seed}.json"
        with contextlib.suppress(OutOfTimeError):
            trial = functools.cache(functools.partial(Trial.of, path, family, seed))
            others = cache.get(f"others-{name}", own, lambda: without_us(trial(), family))  # noqa: B023
            ours = [*own, code_digest()]
            known[path.stem, family, seed] = others | cache.get(
                name,
                ours,
                lambda: with_us(trial(), family, seed, pictures),  # noqa: B023
            )
    rows, detailed = tables(known)
    ends = ["gap closed", "right poses", "foretold", "weights off by", "upright moved", "fit, s", "ms an image"]
    seeds = ", ".join(map(str, dict.fromkeys(seed for _, _, seed in known)))
    parts = ["# Images that nobody tuned on", "", "Test images in poses at random. Means over three classifiers:", ""]
    parts += [markdown(["set", "family", "seeds", "images", *READ, *ends], rows)]
    parts += ["LogisticRegression, kNN(3) and SVC, one by one:", "", markdown(["set", "family", *READ], detailed)]
    parts += [f"- seeds {seeds}, as many as the table says; one thread; {environment()}"]
    save_text(options.output / "zoo", parts)


if __name__ == "__main__":
    main()
