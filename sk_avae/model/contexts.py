"""torch's contexts are the caller's: what this package computes does not depend on them."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave `inference_mode`, `autocast` and another default device for a block; only this thread is concerned.

    Examples
    --------
    >>> with torch.inference_mode(), plain_torch():
    ...     torch.is_inference_mode_enabled()
    False
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def in_plain_torch(function: Function) -> Function:
    """Let a function run in `plain_torch`."""

    @functools.wraps(function)
    def within(*args: Any, **kwargs: Any) -> Any:
        with plain_torch():
            return function(*args, **kwargs)

    return within  # type: ignore[return-value]


def methods_in_plain_torch(cls: Class) -> Class:
    """Let the public methods of a class run in `plain_torch`; generators run where they are consumed."""
    for name, member in list(vars(cls).items()):
        if inspect.isfunction(member) and not name.startswith("_") and not inspect.isgeneratorfunction(member):
            setattr(cls, name, in_plain_torch(member))
    return cls
