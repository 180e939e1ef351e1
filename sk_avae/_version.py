"""The version of the package, and the warning that a model was saved by another one."""

import warnings

__version__ = "0.2.0.dev0"


def warn_on_version(saved: str | None, name: str) -> None:
    """Warn if a model was saved by another version of this package."""
    if saved != __version__:
        warnings.warn(
            f"This {name} was saved by sk_avae {saved}, and this is sk_avae {__version__}: results may differ. "
            f"Fit it again to be sure.",
            UserWarning,
            stacklevel=3,
        )
