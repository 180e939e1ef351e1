"""What should "auto" stand for: how many epochs, restarts and refinements?

    python benchmarks/defaults.py ZOO MNIST [--only SET ...] [--cache FOLDER]

ZOO is a folder of .npz files with Xtr and ytr, MNIST one of IDX files. Training images alone are used: a quarter (of
MNIST 500) is held out, given poses with scipy's interpolation, aligned, and read by classifiers that were fitted on the
other canonical images. A pose is right within 20 degrees. What is done is kept in the cache; an hour and a half on one
core. The table goes to results/defaults.md.
"""

import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform
from shared.command import BENCHMARKS, parser
from shared.tables import environment, markdown, save_text
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sk_avae import AVAEEstimator
from sk_avae.datasets import fetch_mnist

SEED = 0
SETS = ("digits8", "letters32", "stamps64c", "MNIST 1,000", "MNIST 3,000")
EPOCHS = (30, 60, 100)
SEARCHES = {
    "proposer, 16 restarts, 2 refined": {"n_restarts": 16, "n_refine": 2},
    "proposer, 16 restarts, 4 refined": {"n_restarts": 16, "n_refine": 4},
    "proposer, 64 restarts, 4 refined": {"n_restarts": 64, "n_refine": 4},
    "none, 16 restarts, 2 refined": {"n_restarts": 16, "n_refine": 2, "learned_starts": False},
    "none, 64 restarts, 2 refined": {"n_restarts": 64, "n_refine": 2, "learned_starts": False},
    "none, 64 restarts, 4 refined": {"n_restarts": 64, "n_refine": 4, "learned_starts": False},
}
CLASSIFIERS = {"LR": LogisticRegression(C=0.05, max_iter=1000), "kNN": KNeighborsClassifier(3)}


def images_of(name, zoo, mnist):
    """Return training images and classes, and held-out ones, all from the training set."""
    if name.startswith("MNIST"):
        X, y = fetch_mnist(mnist)
        X, n, n_held_out = X.reshape(-1, 28, 28), int(name.split()[1].replace(",", "")), 500
    else:
        data = np.load(zoo / f"{name}.npz")
        X, y = data["Xtr"], data["ytr"]
        n = len(X) * 3 // 4
        n_held_out = len(X) - n
    order = np.random.default_rng(SEED).permutation(len(X))
    train, held_out = order[:n], order[-n_held_out:]
    return X[train], y[train], X[held_out], y[held_out]


def perturbed(X, family):
    """Return images in random poses of a family, by scipy, and their angles."""
    random = np.random.default_rng(SEED + 1)
    angle, matrix = random.uniform(-np.pi, np.pi, len(X)), np.tile(np.eye(2), (len(X), 1, 1))
    if family == "linear":
        matrix = np.exp(random.uniform(-0.3, 0.3, (len(X), 2)))[:, :, None] * np.eye(2)
        shear = np.tile(np.eye(2), (len(X), 1, 1))
        shear[:, 1, 0] = random.uniform(-0.3, 0.3, len(X))
        matrix = shear @ matrix
    edges = np.concatenate([X[:, 0], X[:, -1], X[:, :, 0], X[:, :, -1]], axis=1)
    fill = np.atleast_1d(np.median(edges.reshape(-1, *X.shape[3:]), axis=0))
    return np.stack([posed(*one, fill) for one in zip(X, angle, matrix, strict=True)]), angle


def posed(image, angle, matrix, fill):
    """Turn an image counter-clockwise, as seen on the screen, after a linear map of (row, column)."""
    cos, sin = math.cos(angle), math.sin(angle)
    back = np.linalg.inv(np.array([[cos, -sin], [sin, cos]]) @ matrix)
    centre = (np.array(image.shape[:2]) - 1) / 2
    planes = image.reshape(*image.shape[:2], -1).astype(float)
    moved = [
        affine_transform(planes[..., k], back, centre - back @ centre, order=1, cval=fill[k])
        for k in range(planes.shape[2])
    ]
    return np.rint(np.stack(moved, axis=2)).reshape(image.shape).clip(0, 255).astype(image.dtype)


def score(model, X, y, rotated, y_held_out, angle):
    """Return accuracies behind a fitted aligner, the share of right poses, ms per image and ELBO."""
    n = math.prod(X.shape[1:])
    canonical = model.transform(X)[:, :n] / 255
    start = time.perf_counter()
    T = model.transform(rotated)
    ms = 1000 * (time.perf_counter() - start) / len(rotated)
    miss = np.abs((T[:, n] - angle + np.pi) % (2 * np.pi) - np.pi)
    found = {"right": float((miss < np.deg2rad(20)).mean()), "ms": ms, "elbo": float(model.score(rotated))}
    for name, classifier in CLASSIFIERS.items():
        found[name] = float(classifier.fit(canonical, y).score(T[:, :n] / 255, y_held_out))
    return found


def measured(name, family, epochs, options):
    """Return the figures of a fit for each search, from the cache if they are there."""
    path = Path(options.cache) / f"{name}_{family}_{epochs}.json".replace(" ", "_")
    if path.exists():
        return json.loads(path.read_text())
    X, y, held_out, y_held_out = images_of(name, Path(options.zoo), options.mnist)
    rotated, angle = perturbed(held_out, family)
    model = AVAEEstimator(family=family, image_shape=X.shape[1:], max_epochs=epochs, random_state=SEED)
    start = time.process_time()
    model.set_params(n_restarts=16, n_refine=2).fit(X)
    figures = {"n": len(X), "fit": time.process_time() - start}
    for search, settings in (SEARCHES if family == "linear" else {"default": {}}).items():
        model.set_params(**{"learned_starts": True, "n_restarts": 16, "n_refine": 2, **settings})
        figures[search] = score(model, X, y, rotated, y_held_out, angle)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures))
    print(path.stem, figures, flush=True)
    return figures


def row(*first, found):
    return [*first, *(f"{found[key]:.3f}" for key in ("right", "LR", "kNN")), f"{found['elbo']:.1f}"]


def main():
    options = parser(__doc__)
    options.add_argument("zoo")
    options.add_argument("mnist")
    options.add_argument("--cache", default=BENCHMARKS / ".cache" / "defaults", metavar="FOLDER")
    options.add_argument("--only", nargs="*", default=SETS, metavar="SET")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    epochs_rows, search_rows = [], []
    for name in options.only:
        for epochs in EPOCHS:
            figures = measured(name, "rotation", epochs, options)
            first = (name, figures["n"], epochs, f"{figures['fit']:.0f}")
            epochs_rows.append(row(*first, found=figures["default"]))
        if name != "stamps64c":  # whose poses are too often wrong to tell searches apart
            figures = measured(name, "linear", 60, options)
            search_rows += [
                row(name, search, f"{figures[search]['ms']:.1f}", found=figures[search]) for search in SEARCHES
            ]
    columns = ["right poses", "LogisticRegression", "kNN(3)", "ELBO, nats"]
    parts = [
        '# What "auto" stands for',
        "",
        "Held-out training images, rotated:",
        "",
        markdown(["set", "images", "epochs", "fit, s of processor time", *columns], epochs_rows),
        "Held-out training images, rotated, scaled and sheared; family `linear`, 60 epochs:",
        "",
        markdown(["set", "proposer, search", "ms per image", *columns], search_rows),
        f"- {environment(SEED)}; one thread, beside other processes (times are rough).",
    ]
    save_text(options.output / "defaults", parts)


if __name__ == "__main__":
    main()
