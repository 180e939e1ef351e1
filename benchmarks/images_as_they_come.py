"""What becomes of images that are dark, noisy, full of gaps or large?

    python benchmarks/images_as_they_come.py ZOO MNIST [--parts PART ...] [--without]

ZOO is a folder of .npz files with Xtr, ytr, Xte and yte, MNIST one of IDX files. Three parts. "digits": 5,000 training
digits; test digits are turned by scipy, then disturbed; kNN(3) reads the clean turned digits without the poses that
were found for the disturbed ones. "sizes": the same pictures in two sizes, by default settings, classifiers as in the
zoo. "photographs": 200 crops of scikit-learn's two photographs, 512 x 512 pixels, in a process of its own, with its
peak memory. One thread (OMP_NUM_THREADS=1), processor time. --without fits digits with rescale=True, resolution=None
beside the defaults. The table goes to results/images_as_they_come.md; parts that are not run keep their rows.
"""

import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from defaults import perturbed
from scipy.ndimage import gaussian_filter, zoom
from shared.command import parser
from shared.tables import environment, markdown, save_text
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from sk_avae import AVAEEstimator
from sk_avae.datasets import fetch_mnist

SEEDS = (0, 1, 2)
N_TRAIN, N_TEST = 5000, 1000
PARTS = ("digits", "sizes", "photographs")
SIZES = ("letters64 halved", "letters64", "stamps64c", "stamps128c")
PHOTOGRAPHS = 200, 512


def quarter_unknown(X, random):
    """Return images without one of their four corners."""
    out, half = X.copy(), X.shape[1] // 2
    for image, (row, column) in zip(out, random.integers(0, 2, (len(X), 2)) * half, strict=True):
        image[row : row + half, column : column + half] = np.nan
    return out


def unknown_at(X, where):
    out = X.copy()
    out[where] = np.nan
    return out


def disturbances(X, random):
    """Return what is done to images of bytes, by name, as floats."""
    X = X.astype(float)
    noise = random.normal(0, 40, X.shape)
    return {
        "clean": X,
        "background + 40": np.clip(X + 40, 0, 255),
        "gain .5, + 60": X * 0.5 + 60,
        "gain .25": X * 0.25,
        "inverted": 255 - X,
        "noise, sd 20": np.clip(X + noise / 2, 0, 255),
        "noise, sd 40": np.clip(X + noise, 0, 255),
        "noise, sd 40, not cut off": X + noise,
        "5 % salt": np.where(random.random(X.shape) < 0.05, 255, X),
        "blur of 1 pixel": np.stack([gaussian_filter(image, 1) for image in X]),
        "1 of 20 pixels unknown": unknown_at(X, random.random(X.shape) < 0.05),
        "a quarter unknown": quarter_unknown(X, random),
        "a column unknown": unknown_at(X, np.s_[:, :, 11]),
        "a beam stop": unknown_at(X, np.s_[:, 11:17, 11:17]),
    }


def digits(mnist, seed, **parameters):
    """Return, per disturbance, accuracy, right poses, the weights' and the confidence's mean, and ms an image."""
    X, y = fetch_mnist(mnist)
    X_test, y_test = fetch_mnist(mnist, subset="test")
    random = np.random.default_rng(seed)
    train, test = random.permutation(len(X))[:N_TRAIN], random.permutation(len(X_test))[:N_TEST]
    model = AVAEEstimator(random_state=seed, **parameters).fit(X[train])
    turned, angle = perturbed(X_test[test].reshape(-1, 28, 28), "rotation")
    model.set_params(missing_values="ignore")
    reader = KNeighborsClassifier(3).fit(model.transform(X[train])[:, :784] / 255, y[train])
    rows = {}
    for name, images in disturbances(turned, random).items():
        start = time.process_time()
        found = model.align(images)
        ms = 1e3 * (time.process_time() - start) / len(images)
        miss = np.abs(np.angle(np.exp(1j * (found.alpha[:, 0] - angle))))
        read = reader.score(model.warp(turned, found).reshape(-1, 784) / 255, y_test[test])
        weight, confidence = found.hypothesis_weight[:, 0].mean(), found.confidence.mean()
        rows[name] = [read, float((miss < np.radians(20)).mean()), float(weight), float(confidence), ms]
    return rows


def halved(X):
    """Return images of half the sides: means of four pixels."""
    n, height, width = X.shape
    return np.rint(X.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))).astype(X.dtype)


def size(zoo, name, seed):
    """Return accuracies of three classifiers, right poses, seconds of fit and ms an image, of one set."""
    data = np.load(zoo / f"{name.split()[0]}.npz")
    X, y, X_test, y_test = (data[part] for part in ("Xtr", "ytr", "Xte", "yte"))
    turned, angle = perturbed(X_test, "rotation")
    if name.endswith("halved"):
        X, turned = halved(X), halved(turned)
    start = time.process_time()
    model = AVAEEstimator(random_state=seed).fit(X)
    fit, start = time.process_time() - start, time.process_time()
    T = model.transform(turned)
    ms, n = 1e3 * (time.process_time() - start) / len(turned), X[0].size
    miss = np.abs(np.angle(np.exp(1j * (T[:, n] - angle))))
    canonical = model.transform(X)[:, :n] / 255
    readers = LogisticRegression(C=0.05, max_iter=300), KNeighborsClassifier(3), SVC(C=10)
    scores = [reader.fit(canonical, y).score(T[:, :n] / 255, y_test) for reader in readers]
    return [*scores, float((miss < np.radians(20)).mean()), fit, ms]


def photographs():
    """Print, as JSON, what 200 photographs cost: seconds of fit, ms an image, peak memory in GB."""
    n, side = PHOTOGRAPHS
    random, scenes = np.random.default_rng(0), load_sample_images().images
    X = np.empty((n, side, side, 3), dtype=np.uint8)
    for k in range(n):
        scene, crop = scenes[k % len(scenes)], int(random.integers(150, 400))
        top, left = (int(random.integers(0, s - crop + 1)) for s in scene.shape[:2])
        part = scene[top : top + crop, left : left + crop]
        X[k] = zoom(part, (side / crop, side / crop, 1), order=1)[:side, :side]
    start = time.process_time()
    model = AVAEEstimator(random_state=0).fit(X)
    fit, start = time.process_time() - start, time.process_time()
    model.transform(X)
    ms = 1e3 * (time.process_time() - start) / n
    print(json.dumps([fit, ms, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))


def table_of_digits(known):
    """Return the rows of the digits' table: means over seeds."""
    rows = []
    for name in next(iter(known.values())):
        read, right, weight, confidence, ms = np.mean([by_name[name] for by_name in known.values()], axis=0)
        rows.append([name, f"{read:.3f}", f"{right:.3f}", f"{weight:.2f}", f"{confidence:.2f}", f"{ms:.2f}"])
    return markdown(["digits", "kNN(3)", "right poses", "mean weight", "mean confidence", "ms an image"], rows)


def table_of_sizes(known):
    rows = []
    for name in SIZES:
        found = [known[f"{name} {seed}"] for seed in SEEDS if f"{name} {seed}" in known]
        if found:
            *scores, right, fit, ms = np.median(found, axis=0)
            rows.append([name, " ".join(f"{s:.3f}" for s in scores), f"{right:.3f}", f"{fit:.1f}", f"{ms:.2f}"])
    return markdown(["images", "LR, kNN(3), SVM", "right poses", "fit, s", "ms an image"], rows)


def main():
    options = parser(__doc__)
    options.add_argument("zoo", type=Path)
    options.add_argument("mnist", type=Path)
    options.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, metavar="PART")
    options.add_argument("--without", action="store_true", help="digits with rescale=True and resolution=None, too")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    kept = options.output / "images_as_they_come.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}

    def keep(part, key, value):
        known.setdefault(part, {})[key] = value
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known, indent=1) + "\n")
        print(part, key, value, flush=True)

    for seed in SEEDS:
        if "sizes" in options.parts:
            for name in SIZES:
                keep("sizes", f"{name} {seed}", size(options.zoo, name, seed))
        if "digits" in options.parts:
            keep("digits", str(seed), digits(options.mnist, seed))
            if options.without:
                keep("digits without", str(seed), digits(options.mnist, seed, rescale=True, resolution=None))
    if "photographs" in options.parts:
        lines = subprocess.run([sys.executable, __file__, "--photographs"], check=True, capture_output=True, text=True)
        keep("photographs", "200", json.loads(lines.stdout.splitlines()[-1]))
    parts = ["# Images as they come", ""]
    if "digits" in known:
        parts += [f"{N_TRAIN:,} training digits, {N_TEST:,} test digits, turned, then disturbed.", ""]
        parts += [table_of_digits(known["digits"])]
    if "digits without" in known:
        parts += ["The same with `rescale=True`, which leaves brightness and noise as they are:", ""]
        parts += [table_of_digits(known["digits without"])]
    if "sizes" in known:
        parts += ["The same pictures in two sizes, by default settings:", "", table_of_sizes(known["sizes"])]
    if "photographs" in known:
        fit, ms, gigabytes = known["photographs"]["200"]
        n, side = PHOTOGRAPHS
        what = f"{n} photographs of {side} x {side} x 3"
        parts += [f"- {what}: fit {fit:.1f} s, {ms:.1f} ms an image, {gigabytes:.2f} GB at most"]
    seeds = f"seeds {', '.join(map(str, SEEDS))}, means of the digits', medians of the sizes'; one thread; "
    save_text(options.output / "images_as_they_come", [*parts, f"- {seeds}{environment()}"])


if __name__ == "__main__":
    if sys.argv[1:] == ["--photographs"]:
        warnings.simplefilter("ignore")
        photographs()
    else:
        main()
