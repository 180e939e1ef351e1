"""Fitted models in safe files."""

from ..model.module_state import PackedModule
from .safe_files import load, save

# PackedModule: pickles of version 0.1 name it here.
__all__ = ["PackedModule", "load", "save"]
