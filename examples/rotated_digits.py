"""Rotated digits come back upright.

Fits an affine variational autoencoder and two classifiers on upright digits, rotates the test digits by random
angles, and shows what the classifiers read with and without the canonicalizer in front. Prints one table, writes one
picture: digits before and after, and accuracy against the angle.

    python examples/rotated_digits.py --output rotated_digits.png
"""

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

mpl.use("Agg")
import matplotlib.pyplot as plt

# More digits and epochs make the aligner better, and take longer: these take 20 seconds on two cores.
N_FIT, EPOCHS = 1000, 20

BLUE, ORANGE = "#0072B2", "#D55E00"


def angle_errors(found, true):
    """Return errors in degrees, in [-180, 180), after removing the model's own canonical angle."""
    errors = (np.rad2deg(found - true) + 180) % 360 - 180
    canonical = np.median(errors[np.abs(errors) < 90])
    return (errors - canonical + 180) % 360 - 180


def fit_models(X, y):
    """Fit the aligner on some images, and each classifier on all, plain and behind the canonicalizer."""
    avae = AVAEEstimator(max_epochs=EPOCHS, random_state=0, verbose=1).fit(X[:N_FIT])
    avae.set_params(verbose=0)
    canonicalizer = AffineCanonicalizer(FrozenEstimator(avae))
    plain, robust = {}, {}
    for name, classifier in (
        ("LogisticRegression", LogisticRegression(C=0.05, max_iter=200)),
        ("kNN (3 neighbours)", KNeighborsClassifier(3)),
    ):
        plain[name] = clone(classifier).fit(X, y)
        robust[name] = make_pipeline(canonicalizer, clone(classifier)).fit(X, y)
    return avae, plain, robust


def print_table(avae, plain, robust, X, X_rotated, alpha, y):
    print(f"\n{'':22}{'upright':>10}{'rotated':>10}{'rotated, with':>15}")
    print(f"{'':22}{'':>10}{'':>10}{'canonicalizer':>15}")
    for name in plain:
        scores = plain[name].score(X, y), plain[name].score(X_rotated, y), robust[name].score(X_rotated, y)
        print(f"{name:22}{scores[0]:10.3f}{scores[1]:10.3f}{scores[2]:15.3f}")
    start = time.perf_counter()
    result = avae.align(X_rotated)
    milliseconds = 1000 * (time.perf_counter() - start) / len(X_rotated)
    print(f"{'mean ELBO (nats)':22}{-avae.negative_elbo(X, align=False).mean():10.1f}", end="")
    print(f"{result.elbo_identity.mean():10.1f}{result.elbo.mean():15.1f}")
    errors = np.abs(angle_errors(result.alpha[:, 0], alpha[:, 0]))
    print(f"\nmedian angle error {np.median(errors):.1f} degrees; {np.mean(errors > 135):.1%} of the digits are found")
    print(f"half a turn off (a 6 is a 9 upside down); alignment takes {milliseconds:.2f} ms per image")


def draw_digits(figure, avae, X_rotated, side=28, n=6):
    canonical = avae.transform(X_rotated[:n])[:, : side * side]
    axes = figure.subplots(2, n)
    for row, title, images in zip(axes, ("rotated", "aligned"), (X_rotated, canonical), strict=True):
        for ax, image in zip(row, images, strict=False):
            ax.imshow(image.reshape(side, side), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)


def draw_curves(ax, plain, robust, X, y, angles):
    for model, label, colour, marker in (
        (plain, "alone", ORANGE, "s"),
        (robust, "with sk_avae in front", BLUE, "o"),
    ):
        accuracy = []
        for angle in np.deg2rad(angles):
            rotated, _ = make_perturbed(X, ranges={"angle": (angle, angle)}, random_state=0)
            accuracy.append(model.score(rotated, y))
        ax.plot(angles, accuracy, label=label, color=colour, marker=marker, markersize=4)
    ax.set(title="accuracy of LogisticRegression", xlabel="angle of the digits (degrees)", ylim=(0, 1))
    ax.set_xticks(range(0, 181, 30))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.66))


def draw(path, avae, plain, robust, X, X_rotated, y):
    figure = plt.figure(figsize=(10.5, 2.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    draw_digits(left, avae, X_rotated)
    name = "LogisticRegression"
    draw_curves(right.subplots(), plain[name], robust[name], X[:500], y[:500], angles=range(0, 181, 15))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nThe picture is {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("rotated_digits.png"), help="where the picture goes")
    output = parser.parse_args().output

    X_train, y_train = load_mnist_sample("train")
    X, y = load_mnist_sample("test")
    X_train, X = X_train / np.float32(255), X / np.float32(255)
    X_rotated, alpha = make_perturbed(X, family="rotation", random_state=0)

    print(f"Fitting the aligner on {N_FIT} upright digits, about 20 seconds on two cores:")
    avae, plain, robust = fit_models(X_train, y_train)
    print_table(avae, plain, robust, X, X_rotated, alpha, y)
    draw(output, avae, plain, robust, X, X_rotated, y)


if __name__ == "__main__":
    main()
