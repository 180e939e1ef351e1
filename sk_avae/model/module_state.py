"""State of torch modules as arrays: what a pickle of a fitted model holds instead of tensors."""

import copy
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

Module = TypeVar("Module", bound=nn.Module)


def to_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Return the parameters and buffers of a module as numpy arrays, on whichever device they are."""
    return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in module.state_dict().items()}


def check_storable(module: nn.Module) -> None:
    """Raise TypeError if the state of a module holds what is no tensor, so that it could not be kept as arrays."""
    others = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise TypeError(
            f"{type(module).__name__} has a state of its own beside its tensors ({', '.join(others)}), which a fitted "
            f"model could not keep. Remove `get_extra_state`, or register tensors in its place."
        )


def from_arrays(module: nn.Module, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> nn.Module:
    """Load arrays into a freshly built module and return it frozen, in evaluation mode, on `device`."""
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return freeze(module, device)


def freeze(module: Module, device: torch.device) -> Module:
    """Put a module into evaluation mode on `device`, its parameters without gradients."""
    module.zero_grad(set_to_none=True)
    return module.to(device).eval().requires_grad_(False)


# torch's global generator and default type are one for all threads: whoever lends them out holds this.
_GLOBAL_GENERATOR = threading.RLock()


def _renew_lock() -> None:
    """Give a forked process a lock of its own: the thread that held it while it forked is not there."""
    global _GLOBAL_GENERATOR
    _GLOBAL_GENERATOR = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def global_generator(seed: int | None, device: torch.device) -> Iterator[None]:
    """Lend torch's global generator to a block, seeded, and restore its state afterwards.

    Networks that are built in the block are of single precision, whatever torch's default is. Other threads wait: the
    block is to be short, see `RandomStream`.

    Parameters
    ----------
    seed : int or None
        None leaves it at its present state.
    device : torch.device
        A GPU's generator is lent along with the CPU's.
    """
    on_gpu, dtype = device.type == "cuda", torch.get_default_dtype()
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[device] if on_gpu else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


class RandomStream:
    """Random numbers for what draws from torch's global generator, as first weights and dropout do, bit by bit.

    Fits in several threads take turns, a step each: none waits for another's end.

    Parameters
    ----------
    seed : int
    device : torch.device
        A GPU has a stream of its own beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._seed: int | None = seed
        self._states: list[Tensor] = []

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the global generator go on where the stream was left."""
        on_gpu = self._device.type == "cuda"
        with global_generator(self._seed, self._device):
            if self._states:
                torch.set_rng_state(self._states[0])
                if on_gpu:
                    torch.cuda.set_rng_state(self._states[1], self._device)
            yield
            self._seed = None
            self._states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(self._device)] if on_gpu else [])]


# Where a tensor is: path of the submodule, its slots, name.
Place = tuple[str, str, str]


@dataclass
class PackedModule:
    """A module without its tensors, and those as arrays: what a pickle holds of a user's own instance.

    `tied` says of a tensor that the module holds twice where the first one is, `fixed` which parameters take no
    gradient, `parametrized` which tensors of a submodule are computed from others, in which order.
    """

    skeleton: nn.Module
    arrays: dict[Place, NDArray[Any]]
    tied: dict[Place, Place]
    fixed: tuple[Place, ...]
    parametrized: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def pack(value: Any, registered: Mapping[str, type[nn.Module]] = MappingProxyType({})) -> Any:
    """Take the tensors out of a module, and name a registered class; anything else comes back as it is."""
    for name, known in registered.items():
        if value is known:
            return name
    if not isinstance(value, nn.Module):
        return value
    skeleton = copy.deepcopy(value)
    tensors = {
        (path, slots, name): tensor
        for path, part in skeleton.named_modules()
        for slots in ("_parameters", "_buffers")
        for name, tensor in getattr(part, slots).items()
        if tensor is not None
    }
    first = {id(tensor): place for place, tensor in reversed(tensors.items())}
    tied = {place: first[id(tensor)] for place, tensor in tensors.items() if first[id(tensor)] != place}
    arrays = {place: np.array(tensor.detach().cpu().numpy()) for place, tensor in tensors.items() if place not in tied}
    fixed = tuple(place for place, tensor in tensors.items() if place[1] == "_parameters" and not tensor.requires_grad)
    for path, slots, name in tensors:
        getattr(skeleton.get_submodule(path), slots)[name] = None
    return PackedModule(skeleton, arrays, tied, fixed, _without_made_classes(skeleton))


def _without_made_classes(skeleton: nn.Module) -> dict[str, tuple[str, ...]]:
    """Give parametrized submodules their own classes back: those that torch made for them cannot be pickled."""
    parametrized = {}
    for path, part in skeleton.named_modules():
        if parametrize.is_parametrized(part):
            parametrized[path] = tuple(part.parametrizations)  # type: ignore[arg-type]
            part.__class__ = type(part).__bases__[0]
            part._load_state_dict_pre_hooks.clear()  # torch's own, for files of older versions; cannot be pickled
    return parametrized


def _with_made_classes(module: nn.Module, parametrized: Mapping[str, tuple[str, ...]]) -> None:
    """Let torch make the classes of parametrized submodules again."""
    for path, names in parametrized.items():
        part = module.get_submodule(path)
        lists = part._modules.pop("parametrizations")
        for name in names:
            # A stand-in of the right shape: registering computes one's originals, which are then those of before.
            original = lists[name]  # type: ignore[index]
            part.register_parameter(name, nn.Parameter(original().detach(), requires_grad=False))
            for step in original:
                parametrize.register_parametrization(part, name, step, unsafe=True)
            part.parametrizations[name] = original  # type: ignore[index, operator]


def unpack(value: Any, registered: Mapping[str, type[nn.Module]] = MappingProxyType({})) -> Any:
    """Put the tensors back, on the CPU, and the class for its name; anything else comes back as it is."""
    if isinstance(value, str) and value in registered:
        return registered[value]
    if not isinstance(value, PackedModule):
        return value
    module = copy.deepcopy(value.skeleton)
    tensors: dict[Place, torch.Tensor] = {}
    for place, array in value.arrays.items():
        tensor = torch.from_numpy(array.copy())
        is_parameter = place[1] == "_parameters"
        tensors[place] = nn.Parameter(tensor, requires_grad=place not in value.fixed) if is_parameter else tensor
    tensors |= {place: tensors[first] for place, first in value.tied.items()}
    for (path, slots, name), tensor in tensors.items():
        getattr(module.get_submodule(path), slots)[name] = tensor
    _with_made_classes(module, getattr(value, "parametrized", {}))
    return module


class Network(NamedTuple):
    """A module, and the recipe that builds it; see `build`."""

    recipe: dict[str, Any]
    module: Any


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a module from a recipe: an instance to copy, or a class and its arguments.

    In single precision, which is what images come in. Building draws initial weights from torch's global generator;
    the caller lends it.
    """
    module: nn.Module | Callable[..., nn.Module] = recipe["module"]
    built = copy.deepcopy(module) if isinstance(module, nn.Module) else module(**recipe["arguments"])
    check_storable(built)
    return built.float()


def rebuild(recipe: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], device: torch.device) -> nn.Module:
    """Build a module and load its state, leaving torch's global random state as it was."""
    with global_generator(None, torch.device("cpu")):
        return from_arrays(build(recipe), arrays, device)


def available_device(device: Any) -> torch.device:
    """Return the device to load a model onto: the one it was fitted on if this machine has it, else the CPU."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError):  # the last where a backend is a package of its own
        message = f"The model was fitted on {device!r}, which is not available here: loading it on the CPU."
        warnings.warn(message, UserWarning, stacklevel=3)
        return torch.device("cpu")
