"""What the benchmarks share: where they ran, and tables that are kept."""

import os
import platform
from pathlib import Path

import numpy as np
import sklearn
import skorch
import torch

import sk_avae

RESULTS = Path(__file__).parent / "results"


def environment(seed, **sizes):
    """Return one line that says what a table was measured with."""
    versions = {
        "sk_avae": sk_avae.__version__,
        "torch": torch.__version__,
        "skorch": skorch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
    }
    parts = [f"seed {seed}", *(f"{k} {v:,}" for k, v in sizes.items()), f"{os.cpu_count()} cores"]
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


def angle_errors(found, true):
    """Return errors in degrees, in [-180, 180), after removing the model's own canonical angle."""
    errors = (np.rad2deg(found - true) + 180) % 360 - 180
    canonical = np.median(errors[np.abs(errors) < 90])
    return (errors - canonical + 180) % 360 - 180
