"""State of torch modules as arrays: what a pickle of a fitted model holds instead of tensors."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def to_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Return the parameters and buffers of a module as numpy arrays, on whichever device they are."""
    return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in module.state_dict().items()}


def from_arrays(module: nn.Module, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> nn.Module:
    """Load arrays into a freshly built module and return it frozen, in evaluation mode, on `device`."""
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return freeze(module, device)


def freeze(module: nn.Module, device: torch.device) -> nn.Module:
    """Put a module into evaluation mode on `device`, its parameters without gradients."""
    module.zero_grad(set_to_none=True)
    return module.to(device).eval().requires_grad_(False)


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a module from a recipe: an instance to copy, or a class and its arguments.

    Building draws initial weights from torch's global generator; the caller forks it.
    """
    module: nn.Module | Callable[..., nn.Module] = recipe["module"]
    return copy.deepcopy(module) if isinstance(module, nn.Module) else module(**recipe["arguments"])


def rebuild(recipe: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device) -> nn.Module:
    """Build a module and load its state, leaving torch's global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        return from_arrays(build(recipe), arrays, device)


def available_device(device: Any) -> torch.device:
    """Return the device to load a model onto: the one it was fitted on if this machine has it, else the CPU."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):
        message = f"The model was fitted on {device!r}, which is not available here: loading it on the CPU."
        warnings.warn(message, UserWarning, stacklevel=3)
        return torch.device("cpu")


def warn_on_version(saved: str | None, current: str, name: str) -> None:
    """Warn that a model was pickled by another version of this package."""
    if saved != current:
        warnings.warn(
            f"This {name} was saved by sk_avae {saved}, and this is sk_avae {current}: results may differ. "
            f"Fit it again to be sure.",
            UserWarning,
            stacklevel=3,
        )
