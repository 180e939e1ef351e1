"""Checks of parameters, random states and devices.

The only file that touches scikit-learn's private helpers.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state, check_scalar
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import _check_feature_names_in, _check_method_params

# Nothing that is counted one by one comes to an end beyond it, and torch counts no further.
_LARGEST_COUNT = 2**31 - 1


def feature_names(estimator: BaseEstimator, input_features: Any) -> NDArray[Any]:
    """Return the names of the input columns, as scikit-learn names them."""
    return _check_feature_names_in(estimator, input_features)


def wants_container(estimator: BaseEstimator) -> bool:
    """Tell whether `set_output` asks for data frames, which hold rows and no stacks."""
    return bool(_get_output_config("transform", estimator)["dense"] != "default")


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return an integer parameter, or raise TypeError or ValueError naming it."""
    return int(check_scalar(value, name, (int, np.integer), min_val=minimum, max_val=_LARGEST_COUNT))


def check_count_or_auto(name: str, value: Any) -> None:
    """Raise TypeError or ValueError naming a parameter that is neither a count nor "auto"."""
    if not isinstance(value, str):
        check_count(name, value)
    elif value != "auto":
        raise ValueError(f"{name} must be a count or 'auto', got {value!r}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError naming a parameter that is none of its choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}.")


def check_number(
    name: str, value: Any, minimum: float = 0.0, maximum: float | None = None, boundaries: str = "left"
) -> float:
    """Return a real parameter, or raise TypeError or ValueError naming it."""
    kinds = (int, float, np.integer, np.floating)
    if isinstance(value, kinds) and math.isnan(value):
        raise ValueError(f"{name} must be a number, got nan.")
    return float(check_scalar(value, name, kinds, min_val=minimum, max_val=maximum, include_boundaries=boundaries))


def check_verbose(value: Any) -> int:
    """Return how much is to be told, or raise TypeError or ValueError."""
    return int(value) if isinstance(value, bool | np.bool_) else check_count("verbose", value, minimum=0)


def check_flag(name: str, value: Any) -> bool:
    """Return a parameter that is True or False, or raise TypeError naming it."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_out(out: NDArray[Any] | None, shape: tuple[int, ...], floats: type[np.floating[Any]]) -> NDArray[Any]:
    """Return an array to write floats into: the one given, if it fits, or a new one."""
    if out is None:
        return np.empty(shape, dtype=floats)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype.kind != "f" or not out.flags.writeable:
        what = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be a writeable array of floats of shape {shape}, got {what}.")
    return out


def seed_from(random_state: Any) -> int:
    """Draw a seed from a scikit-learn random state; None draws a fresh one, not from numpy's global state."""
    if random_state is None:
        return secrets.randbelow(2**31)
    return int(check_random_state(random_state).randint(2**31 - 1))


def of_samples(params: dict[str, Any], n: int, indices: NDArray[np.intp]) -> dict[str, Any]:
    """Return `fit`'s parameters for some of n samples, also for some again; what has no value per sample stays."""
    return dict(_check_method_params(range(n), params, indices))


def resolve_device(device: Any) -> torch.device:
    """Return a torch device.

    Raises
    ------
    ValueError
        If torch cannot use it on this machine.
    """
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={device!r} is not available here ({error}). Choose device='cpu'.") from error
    if found.type == "meta":
        raise ValueError("device='meta' has no numbers to compute with. Choose device='cpu'.")
    return found


@contextmanager
def unchanged_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give an estimator its attributes back if the block raises: a failed fit leaves a fitted model as it was."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise
