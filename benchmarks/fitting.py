"""What does `fit` cost beside its VAE alone, what does it find, and how long does one image take?

    python benchmarks/fitting.py ZOO MNIST [--cases CASE ...] [--repeats N] [--add]

ZOO is a folder of .npz files with Xtr and ytr, letters32 among them, MNIST one of IDX files. Training images alone are
used: some are held out, perturbed and found again; a pose is right within 20 degrees. A default fit and the VAE alone
(learned_starts=False, critic=False) take turns; processor time of one thread, medians. Run it with
OMP_NUM_THREADS=1. To compare two commits, install one after the other and run both with --output. The table goes to
results/fitting.md; --add keeps the rows of other cases that are there.
"""

import json
import time
import warnings
from pathlib import Path

import numpy as np
from defaults import perturbed
from shared.command import parser
from shared.tables import environment, markdown, save_text
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import fetch_mnist, load_mnist_sample, make_perturbed

SEED, N_HELD_OUT, N_ALONE = 0, 1000, 500
CASES = ("letters", "10,000 digits", "60,000 digits")
FAMILIES = ("rotation", "affine")


def images_of(case, zoo, mnist):
    """Return training images and classes, and held-out ones, all from the training set."""
    if case == "letters":
        data = np.load(zoo / "letters32.npz")
        X, y = data["Xtr"], data["ytr"]
        n, n_held_out = len(X), 300
    else:
        X, y = fetch_mnist(mnist)
        X, n, n_held_out = X.reshape(-1, 28, 28), int(case.split()[0].replace(",", "")), N_HELD_OUT
    order = np.random.default_rng(SEED).permutation(len(X))
    n = min(n, len(X) - n_held_out)
    return X[order[:n]], y[order[:n]], X[order[-n_held_out:]], y[order[-n_held_out:]]


def spent(function):
    """Return what a function returns and the processor time that it took."""
    start = time.process_time()
    return function(), time.process_time() - start


def measured(case, family, zoo, mnist, repeats):
    """Return a row of the table."""
    X, y, held_out, classes = images_of(case, zoo, mnist)
    seconds = {"alone": [], "all": []}
    for seed in range(SEED, SEED + repeats):
        alone = AVAEEstimator(family=family, random_state=seed, learned_starts=False, critic=False)
        seconds["alone"].append(spent(lambda alone=alone: alone.fit(X))[1])
        whole = AVAEEstimator(family=family, random_state=seed)
        seconds["all"].append(spent(lambda whole=whole: whole.fit(X))[1])
    turned, angle = perturbed(held_out, family if family == "rotation" else "linear")
    result, search = spent(lambda: whole.align(turned))
    error = np.abs(np.angle(np.exp(1j * (result.alpha[:, 0] - angle))))
    pixels = X[0].size
    canonical = whole.transform(turned).reshape(len(turned), -1)[:, :pixels]
    few = slice(0, 10_000)
    scores = [
        classifier.fit(X[few].reshape(-1, pixels) / 255, y[few]).score(canonical / 255, classes)
        for classifier in (LogisticRegression(C=0.05, max_iter=300), KNeighborsClassifier(3))
    ]
    vae, fit = (float(np.median(some)) for some in (seconds["alone"], seconds["all"]))
    return {
        "images": case,
        "n": f"{len(X):,}",
        "family": family,
        "VAE alone, s": f"{vae:.1f}",
        "fit, s": f"{fit:.1f}",
        "ratio": f"{np.median(np.divide(seconds['all'], seconds['alone'])):.2f}",
        "search, ms an image": f"{1e3 * search / len(turned):.2f}",
        "right poses": f"{(error < np.radians(20)).mean():.3f}",
        "LogisticRegression, kNN(3)": " ".join(f"{score:.3f}" for score in scores),
        "ELBO": f"{result.elbo.mean():.1f}",
    }


def one_at_a_time():
    """Return how long an image alone takes, in milliseconds: median and 99th percentile; and whether answers agree."""
    X, _ = load_mnist_sample("train")
    model = AVAEEstimator(random_state=SEED, max_epochs=10).fit(X[:1000])
    turned = make_perturbed(X[1000 : 1000 + N_ALONE], random_state=SEED)[0]
    together, times = model.transform(turned), []
    alone = []
    for row in turned:
        start = time.perf_counter()
        alone.append(model.transform(row[None]))
        times.append(1e3 * (time.perf_counter() - start))
    times = times[20:]
    return np.median(times), np.percentile(times, 99), np.array_equal(np.concatenate(alone), together)


def grid():
    """Return the processor time of a grid search over latent size and restarts."""
    X, y = load_mnist_sample("train")
    steps = [("canon", AffineCanonicalizer(AVAEEstimator(random_state=SEED))), ("clf", LogisticRegression(C=0.05))]
    values = {"canon__estimator__latent_size": [8, 16], "canon__estimator__n_restarts": [8, 16]}
    return spent(lambda: GridSearchCV(Pipeline(steps), values, cv=5).fit(X[:1500], y[:1500]))[1]


def main():
    options = parser(__doc__)
    options.add_argument("zoo", type=Path)
    options.add_argument("mnist", type=Path)
    options.add_argument("--cases", nargs="*", choices=CASES, default=CASES, metavar="CASE")
    options.add_argument("--repeats", type=int, default=3, metavar="N")
    options.add_argument("--grid", action="store_true", help="a grid search, too: twenty fits")
    options.add_argument("--add", action="store_true", help="keep what the table has of other cases")
    options.add_argument("--beside", type=Path, metavar="FILE", help="the commit before, its .json")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    path = options.output / "fitting"
    kept = path.with_suffix(".json")
    known = json.loads(kept.read_text()) if options.add and kept.exists() else {"rows": {}, "notes": {}}
    for case in options.cases:
        for family in FAMILIES:
            repeats = 1 if case == CASES[-1] else options.repeats
            row = measured(case, family, options.zoo, options.mnist, repeats)
            known["rows"][f"{case}, {family}"] = row
            print(row, flush=True)
    median, slowest, same = one_at_a_time()
    answers = "the same as" if same else "NOT those"
    known["notes"]["one"] = (
        f"one digit alone: median {median:.1f} ms, 99th percentile {slowest:.1f} ms, {answers} in a batch"
    )
    if options.grid:
        known["notes"]["grid"] = (
            f"GridSearchCV of 2 latent sizes, 2 numbers of restarts, 5 folds, 1,500 digits: {grid():.0f} s"
        )
    known["notes"]["environment"] = environment(SEED) + "; one thread"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(known, indent=1) + "\n")
    rows = list(known["rows"].values())
    table = markdown(list(rows[0]), [list(row.values()) for row in rows])
    parts = ["# What a fit costs", "", table, *(f"- {note}" for note in known["notes"].values())]
    if options.beside is not None:
        other = json.loads(options.beside.read_text())
        rows = list(other["rows"].values())
        parts += ["", "The commit before:", "", markdown(list(rows[0]), [list(row.values()) for row in rows])]
        parts += [f"- {note}" for note in other["notes"].values()]
    save_text(path, parts)


if __name__ == "__main__":
    main()
