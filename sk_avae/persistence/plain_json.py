"""Plain values as JSON and arrays, and back: nothing is lost, nothing else is let through.

A value that JSON does not have becomes an object with one key, the tag, which says what it is: ``{"tuple": [...]}``,
``{"dict": {...}}``, ``{"float": "inf"}``, ``{"scalar": [dtype, hexadecimal bytes]}``, ``{"names": [...]}``,
``{"array": its name}``, or what a `Tagged` says.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"} | {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
)

Arrays = dict[str, NDArray[Any]]

# Lists within lists; nothing of ours is as deep.
_DEEPEST = 50


class Tagged(NamedTuple):
    """A value of a kind that the caller knows, as plain values."""

    tag: str
    content: Any


def encode(value: Any, arrays: Arrays, place: str = "") -> Any:
    """Return a value as JSON.

    Parameters
    ----------
    value : object
        None, numbers (numpy's too), text, arrays of numbers or of names, and lists, tuples, dicts and `Tagged` of them.
    arrays : dict from str to ndarray
        Where arrays are put, under the name of their place.
    place : str, default=""
        Where the value is, such as "history_.0.epoch".

    Raises
    ------
    TypeError
        If the value, or one in it, is anything else; the message has its place.
    """

    def inside(part: Any, key: Any) -> Any:
        return encode(part, arrays, f"{place}.{key}".removeprefix("."))

    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, str):
        return str(value)
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is list:
        return [inside(part, i) for i, part in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [inside(part, i) for i, part in enumerate(value)]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {str(key): inside(part, key) for key, part in value.items()}}
    if isinstance(value, Tagged):
        return {value.tag: encode(value.content, arrays, place)}
    if isinstance(value, np.generic) and value.dtype.name in DTYPES:
        return {"scalar": [value.dtype.name, value.astype(value.dtype.newbyteorder("<")).tobytes().hex()]}
    if type(value) is np.ndarray and value.dtype.name in DTYPES:
        arrays[place] = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        return {"array": place}
    if type(value) is np.ndarray and value.ndim == 1 and all(isinstance(name, str) for name in value):
        return {"names": [str(name) for name in value]}
    raise TypeError(f"{place or 'it'} is of type {type(value).__name__}, which cannot be saved without pickle.")


def decode(node: Any, arrays: Mapping[str, NDArray[Any]], tags: Collection[str], depth: int = 0) -> Any:
    """Return the value of a piece of JSON: the inverse of `encode`.

    Parameters
    ----------
    node : object
        What a JSON parser returns.
    arrays : mapping from str to ndarray
    tags : collection of str
        The tags of `Tagged` that may come.
    depth : int, default=0
        How deep in the document it is.

    Raises
    ------
    ValueError
        If a tag is unknown, a number is none, or the nesting deeper than 50. (What is otherwise malformed raises
        what Python raises.)
    """

    def inside(part: Any) -> Any:
        return decode(part, arrays, tags, depth + 1)

    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST}.")
    if isinstance(node, list):
        return [inside(part) for part in node]
    if not isinstance(node, dict):
        if isinstance(node, float) and not math.isfinite(node):
            raise ValueError("it has a number that is too large.")
        return node
    if len(node) != 1:
        raise ValueError(f"it has an object with {len(node)} keys, where one tag is expected.")
    tag, content = next(iter(node.items()))
    if tag in _MAKERS:
        return _MAKERS[tag](content)
    if tag == "array":
        return arrays[content]
    if tag == "tuple":
        return tuple(inside(list(content)))
    if tag == "dict":
        return {key: inside(part) for key, part in content.items()}
    if tag in tags:
        return Tagged(tag, inside(content))
    raise ValueError(f"it has an object of the unknown kind {tag[:100]!r}.")


def _float(content: Any) -> float:
    if content not in ("nan", "inf", "-inf"):
        raise ValueError(f"it has {str(content)[:100]!r} for a number.")
    return float(content)


def _scalar(content: Any) -> Any:
    name, digits = content
    if name not in DTYPES:
        raise ValueError(f"it has a number of the unknown type {str(name)[:100]!r}.")
    (number,) = np.frombuffer(bytes.fromhex(digits), np.dtype(name).newbyteorder("<")).astype(name)
    return number


def _names(content: Any) -> NDArray[Any]:
    if not all(type(name) is str for name in content):
        raise ValueError("it has a column name that is no text.")
    return np.array(content, dtype=object)


_MAKERS: dict[str, Callable[[Any], Any]] = {"float": _float, "scalar": _scalar, "names": _names}
