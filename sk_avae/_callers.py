"""Whose line a warning names: the user's, however deep in this package it is given."""

import sys

# What lies between a user and this package, with callbacks, searches and pipelines.
_BETWEEN = ("sk_avae", "sklearn", "skorch", "joblib")


def users_level() -> int:
    """Return the `stacklevel` with which `warnings.warn`, called where this is called, names the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    return level
