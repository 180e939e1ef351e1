"""What the benchmarks share: where they ran, and tables that are kept."""

import hashlib
import math
import os
import platform
from pathlib import Path

import numpy as np
import sklearn
import skorch
import torch

import sk_avae
from sk_avae.datasets import fetch_mnist

RESULTS = Path(__file__).parent / "results"


def environment(seed=None, **sizes):
    """Return one line that says what a table was measured with."""
    versions = {
        "sk_avae": sk_avae.__version__,
        "torch": torch.__version__,
        "skorch": skorch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    parts = [] if seed is None else [f"seed {seed}"]
    parts += [*(f"{k} {v:,}" for k, v in sizes.items()), f"{os.cpu_count()} cores"]
    return ", ".join(parts + [f"{name} {version}" for name, version in versions.items()])


def save_table(name, title, header, rows, notes):
    """Print a table and keep it as Markdown."""
    lines = [
        f"# {title}",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
        "",
        *(f"- {note}" for note in notes),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)


def load_digits(folder, settings, side):
    """Read MNIST, as much of it as the settings say, and put it on a canvas of side x side; `key` is its digest."""
    digits = {}
    for subset, n in (("train", settings.n_train), ("test", settings.n_test)):
        X, y = fetch_mnist(folder, subset=subset)
        margin = (side - math.isqrt(X.shape[1])) // 2
        stack = X[:n].reshape(-1, side - 2 * margin, side - 2 * margin)
        padded = np.pad(stack, ((0, 0), (margin, margin), (margin, margin)))
        digits[subset] = padded.reshape(len(padded), -1), y[:n]
    content = b"".join(array.tobytes() for subset in ("train", "test") for array in digits[subset])
    return digits | {"key": hashlib.sha256(content).hexdigest()}


def angle_errors(found, true):
    """Return errors in degrees, in [-180, 180), after removing the model's own canonical angle."""
    errors = (np.rad2deg(found - true) + 180) % 360 - 180
    canonical = np.median(errors[np.abs(errors) < 90])
    return (errors - canonical + 180) % 360 - 180
