"""`show_versions`: what to paste into a bug report."""

import importlib.metadata
import os
import platform

import torch

# What is needed, then what is used where it is installed.
_NEEDED = ("sk-avae", "torch", "scikit-learn", "skorch", "numpy", "scipy", "joblib", "safetensors", "tqdm")
_OPTIONAL = ("matplotlib", "pandas", "polars", "pillow", "dask", "distributed", "skops")


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def show_versions() -> None:
    """Print the versions of Python, of this package and of what it uses, and the devices that torch sees.

    Paste the output into a bug report.

    Examples
    --------
    >>> import sk_avae
    >>> sk_avae.show_versions()
    System
          python: ...
    """
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    sections: dict[str, dict[str, object]] = {
        "System": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "GPU": cuda,
        },
        "Needed": {package: _version_of(package) for package in _NEEDED},
        "Optional": {package: _version_of(package) for package in _OPTIONAL},
    }
    for title, lines in sections.items():
        print(title)
        for name, value in lines.items():
            print(f"{name:>14}: {value}")
