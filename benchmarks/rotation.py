"""What do classifiers read of rotated MNIST, all of it, with the canonicalizer in front and without?

    python benchmarks/rotation.py FOLDER_WITH_IDX_FILES [--n-restarts N] [--n-refine N] [--device DEVICE]

60,000 upright training digits; all 10,000 test digits rotated uniformly within +-180 degrees (seed 0). The defaults of
`AVAEEstimator`, nothing chosen on the test digits. The table goes to results/rotation.md.
"""

from itertools import pairwise

import numpy as np
from shared.command import parser
from shared.digits import load_digits
from shared.tables import environment, save_table
from shared.timing import timed
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sk_avae import AVAEEstimator
from sk_avae.datasets import make_perturbed

SEED = 0
BINS = [0, 5, 10, 20, 45, 90, 135, 180.001]
CLASSIFIERS = {"LogisticRegression": LogisticRegression(C=0.05, max_iter=1000), "kNN(3)": KNeighborsClassifier(3)}
TURNED = "turned + canonicalizer"


def angle_errors(found, true):
    """Return absolute errors in degrees, after removing the model's own canonical angle."""
    errors = (np.rad2deg(found - true) + 180) % 360 - 180
    canonical = np.median(errors[np.abs(errors) < 90])
    return np.abs((errors - canonical + 180) % 360 - 180)


def classified(fitted_on, y_train, read, y):
    """Return a row of accuracies per classifier and images that it is fitted on; `read` are the table's columns."""
    rows = []
    without_9 = y != 9
    for name, classifier in CLASSIFIERS.items():
        for label, images in fitted_on.items():
            classifier.fit(images, y_train)
            scores = [classifier.score(X, y) for X in read.values()]
            scores.append(classifier.score(read[TURNED][without_9], y[without_9]))
            rows.append([name, label, *(f"{score:.4f}" for score in scores)])
            print(rows[-1], flush=True)
    return rows


def error_notes(found, found_upright, alpha, y):
    """Say how far the found angles are from the true ones, of shape (n,)."""
    errors = angle_errors(found, alpha)
    # Writers slant: what a digit's own pose adds is no error of the search.
    own = angle_errors(found - found_upright, alpha)
    counts, _ = np.histogram(errors, BINS)
    bins = zip(pairwise(BINS), counts, strict=True)
    half_turns = {digit: (errors[y == digit] > 135).mean() for digit in range(10)}
    return [
        f"Angle error after removing the model's canonical angle: median {np.median(errors):.2f}°, "
        f"within 20° {np.mean(errors < 20):.1%}.",
        f"The same against the pose found for the digit before it was turned: median {np.median(own):.2f}°, "
        f"within 45° {np.mean(own < 45):.1%}.",
        "Histogram of errors: "
        + ", ".join(f"{low:.0f}-{high:.0f}° {count / len(y):.2%}" for (low, high), count in bins)
        + ".",
        "Found half a turn off (>135°), by digit: "
        + ", ".join(f"{digit}: {share:.1%}" for digit, share in half_turns.items())
        + ". A 6 is a turned 9; 0, 1 and 8 look the same half a turn on.",
    ]


def main():
    command = parser(__doc__, folder="required")
    command.add_argument("--n-restarts", type=int, default=16)
    command.add_argument("--n-refine", type=int, default=2)
    command.add_argument("--device", default="cpu", help="of the model; classifiers stay on the CPU")
    args = command.parse_args()
    digits = load_digits(args.folder)
    (X_train, y_train), (X, y) = ((X / np.float32(255), y) for X, y in (digits["train"], digits["test"]))
    X_turned, alpha = make_perturbed(X, random_state=SEED)

    avae = AVAEEstimator(random_state=SEED, n_restarts=args.n_restarts, n_refine=args.n_refine, device=args.device)
    _, fit_seconds = timed(avae.fit, X_train)
    result, seconds = timed(avae.align, X_turned)

    def canonical(rows):
        return avae.transform(rows)[:, : X.shape[1]]

    fitted_on = {"upright pixels": X_train, "canonical pixels": canonical(X_train)}
    read = {
        "upright": X,
        "turned": X_turned,
        TURNED: canonical(X_turned),
        "oracle (true angle undone)": avae.image_format_.warp_rows(X_turned, alpha, "rotation"),
        "upright + canonicalizer": canonical(X),
    }
    notes = [
        f"Fit {fit_seconds:.0f} s, alignment {1000 * seconds / len(X):.2f} ms per image, on {args.device}.",
        f"Mean negative ELBO: upright {avae.negative_elbo(X, align=False).mean():.2f}, turned "
        f"{-result.elbo_identity.mean():.2f}, turned and aligned {-result.elbo.mean():.2f} nats.",
        *error_notes(result.alpha[:, 0], avae.align(X).alpha[:, 0], alpha[:, 0], y),
        f"Refinements that converged: {result.converged.mean():.2%}.",
        environment(SEED, n_restarts=args.n_restarts, n_refine=args.n_refine),
    ]
    save_table(
        args.output / "rotation",
        "Rotated MNIST: 60,000 upright training digits, 10,000 test digits turned within ±180°",
        ["classifier", "fitted on", *read, f"{TURNED}, without 9"],
        classified(fitted_on, y_train, read, y),
        notes,
    )


if __name__ == "__main__":
    main()
