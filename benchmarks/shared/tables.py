"""Tables as Markdown, with a line that says what they were measured with."""

import os
import platform

import numpy as np
import sklearn
import skorch
import torch

import sk_avae


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


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def save_text(path, parts):
    """Print the parts of a page and keep them as Markdown."""
    text = "\n".join(parts) + "\n"
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(text)


def save_table(path, title, header, rows, notes):
    """Print a table and keep it as Markdown."""
    save_text(path, [f"# {title}", "", markdown(header, rows), *(f"- {note}" for note in notes)])
