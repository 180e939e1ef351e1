"""How many wrong poses the least confident images hold.

    python benchmarks/risk_coverage.py FOLDER

FOLDER holds .npz files with Xtr and ytr, letters32 among them; digits are the bundled sample of MNIST. Training images
alone are used: a quarter of each set (of the digits 1,000) is held out, turned by any angle with scipy's interpolation,
and aligned by a default model of the others; three seeds. A pose is wrong if it is more than 20 degrees off: off the
angle that the image was turned by, and, beside it, off that and the pose which the model gives the same image upright,
so that handwriting which leans by itself does not count. The table goes to results/risk_coverage.md.
"""

import warnings
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform
from shared.command import parser
from shared.tables import environment, save_table

from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample

SEEDS = 3
REJECTED = (0.05, 0.15, 0.3)
N_DIGITS = 1000


def turned(images, angles):
    """Turn images about their centres by scipy, in radians."""
    centre = (np.array(images.shape[1:]) - 1) / 2
    found = []
    for image, angle in zip(images, angles, strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        shift = centre - matrix @ centre
        found.append(affine_transform(image.astype(float), matrix, shift, order=1, cval=np.median(edge)))
    return np.rint(np.clip(found, 0, 255)).astype(np.uint8)


def images_of(name, folder):
    if name == "digits":
        return load_mnist_sample("train")[0].reshape(-1, 28, 28), N_DIGITS
    images = np.load(folder / f"{name}.npz")["Xtr"]
    return images, len(images) // 4


def measured(name, folder, seed):
    """Return the confidence of each held-out image, and its errors in degrees, as drawn and beside the upright pose."""
    images, n_held_out = images_of(name, folder)
    rng = np.random.default_rng(seed)
    images = images[rng.permutation(len(images))]
    held_out, angles = images[:n_held_out], rng.uniform(-np.pi, np.pi, n_held_out)
    model = AVAEEstimator(random_state=seed).fit(images[n_held_out:])
    result, upright = model.align(turned(held_out, angles)), model.align(held_out)
    # scipy turns the other way, where its rows count as the first axis.
    errors = [np.angle(np.exp(1j * (result.alpha[:, 0] - sign * angles))) for sign in (1, -1)]
    error = min(errors, key=lambda error: np.median(np.abs(error)))
    own = np.angle(np.exp(1j * (error - upright.alpha[:, 0])))
    return result.confidence, np.degrees(np.abs(error)), np.degrees(np.abs(own))


def row(name, seed, kind, confidence, error):
    wrong = error > 20
    order = np.argsort(confidence, kind="stable")
    removed = [wrong[order[: round(share * len(order))]].sum() / max(1, wrong.sum()) for share in REJECTED]
    # Expected calibration error, in ten bins of as many images.
    bins = np.array_split(order, 10)
    ece = np.mean([abs(confidence[some].mean() - (~wrong[some]).mean()) for some in bins])
    return (name, seed, kind, f"{wrong.mean():.3f}", *(f"{share:.2f}" for share in removed), f"{ece:.3f}")


def main():
    options = parser(__doc__)
    options.add_argument("folder", type=Path)
    options = options.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in ("digits", "letters32"):
        for seed in range(SEEDS):
            confidence, error, own = measured(name, options.folder, seed)
            for kind, found in (("the angle drawn", error), ("and the upright pose", own)):
                rows.append(row(name, seed, kind, confidence, found))
                print(*rows[-1], flush=True)
    header = ["set", "seed", "off", "wrong poses", *(f"of these in the lowest {s:.0%}" for s in REJECTED)]
    notes = [
        environment(seeds=SEEDS),
        "calibration error: mean of |confidence - share right| over tenths of images",
    ]
    save_table(
        options.output / "risk_coverage", "Wrong poses and confidence", [*header, "calibration error"], rows, notes
    )


if __name__ == "__main__":
    main()
