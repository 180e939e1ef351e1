"""How well are rotated digits read when no upright digit was ever seen?

    python benchmarks/rotated_training.py FOLDER_WITH_IDX_FILES [--quick] [--family FAMILY]

As in the literature on rotated MNIST: 12,000 training digits and 50,000 test digits, each turned by any angle (--quick:
1,500 and 1,000). Which is up, `align_training` finds out. The digits are MNIST's, turned here; the official files are
others. The table goes to results/rotated_training.md.
"""

import math

import numpy as np
from robustness.classifiers import make_classifier
from shared.command import parser
from shared.digits import load_digits
from shared.tables import environment, save_table
from shared.timing import timed
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_avae import AVAEEstimator, CanonicalizedClassifier
from sk_avae.datasets import make_perturbed
from sk_avae.report import calibration_error

PUBLISHED = "equiadapt 98.0 % (Mondal et al. 2023), steerable networks 99.3 % (Weiler & Cesa 2019)"
CLASSIFIERS = ("LogisticRegression", "kNN(3)", "RBF-SVM", "CNN")


def turned(rows, seed):
    turned, angle = make_perturbed(rows, family="rotation", ranges={"angle": math.pi}, random_state=seed)
    return turned, angle[:, 0]


def in_units(rows):
    return rows / np.float32(255)


def direction_agreed(alpha, angle, labels):
    """Return, per class, the resultant length of the angles by which poses found and poses drawn differ."""
    turn = np.exp(1j * (alpha[:, 0] - angle))
    return [abs(turn[labels == label].mean()) for label in np.unique(labels)]


def main():
    command = parser(__doc__, folder="required")
    command.add_argument("--quick", action="store_true", help="fewer digits")
    command.add_argument("--family", default="rotation", help="that is searched; default: rotation")
    command.add_argument("--seed", type=int, default=0)
    args = command.parse_args()
    n_train, n_test = (1_500, 1_000) if args.quick else (12_000, 50_000)
    digits = load_digits(args.folder)
    X, y = (np.concatenate(pair) for pair in zip(digits["train"], digits["test"], strict=True))
    order = np.random.default_rng(args.seed).permutation(len(X))[: n_train + n_test]
    rows, angle = turned(X[order], args.seed)
    y, rows = y[order], np.rint(rows).clip(0, 255).astype(np.uint8)
    train, test = slice(n_train), slice(n_train, None)

    avae, seconds = timed(
        AVAEEstimator(family=args.family, align_training=True, random_state=args.seed).fit, rows[train]
    )
    agreed = direction_agreed(avae.align(rows[train]).alpha, angle[train], y[train])
    lines = []
    for name in CLASSIFIERS:
        epochs = 30 if args.quick else 14

        def fresh(name=name, epochs=epochs):
            classifier = make_classifier(name, epochs=epochs, random_state=args.seed, device="cpu")
            return make_pipeline(FunctionTransformer(in_units), classifier)

        alone = fresh().fit(rows[train], y[train]).score(rows[test], y[test])
        model = CanonicalizedClassifier(fresh(), FrozenEstimator(avae), random_state=args.seed)
        probabilities = model.fit(rows[train], y[train]).predict_proba(rows[test])
        right = model.classes_[probabilities.argmax(axis=1)] == y[test]
        error = calibration_error(probabilities.max(axis=1), right)
        lines.append([name, f"{100 * alone:.2f}", f"{100 * right.mean():.2f}", f"{100 * error:.1f}"])
        print(lines[-1], flush=True)
    save_table(
        args.output / ("rotated_training_quick" if args.quick else "rotated_training"),
        f"Rotated MNIST, no upright digit seen: {n_train:,} training, {n_test:,} test digits",
        ["classifier", "alone, %", "CanonicalizedClassifier, %", "calibration error, points"],
        lines,
        [
            f"Family `{args.family}`; the aligner was fitted in {seconds:.0f} s.",
            "Digits of a class that agree on which way is up (resultant length), 0 to 9: "
            + " ".join(f"{length:.2f}" for length in agreed),
            f"Published on the official files: {PUBLISHED}.",
            environment(args.seed),
        ],
    )


if __name__ == "__main__":
    main()
