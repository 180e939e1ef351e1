"""Where pickles of version 0.1 look for `AlignmentResult`."""

from .result import AlignmentResult

__all__ = ["AlignmentResult"]
