"""Fitted models in safe files: weights as safetensors, everything else as JSON, nothing in them that could run.

A file is one of the safetensors format. Its metadata hold one entry, ``sk_avae``: a JSON document (see `plain_json`)
with the number of the format, the package's version, the device and the model: ``{"AVAEEstimator": {...}}`` with
what its `__getstate__` returns. The networks are named, never imported ("mlp", "conv", "bernoulli", "gaussian");
``{"own": [role, class]}`` stands for a module of the user's. The tensor ``sha256`` holds the checksum of the document
and of all other tensors.

References
----------
The safetensors format, https://github.com/huggingface/safetensors.
"""

import contextlib
import copy
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._validation import resolve_device
from .._version import __version__, warn_on_version
from ..aligner_state import RECIPES
from ..canonicalizer import AffineCanonicalizer
from ..estimator import AVAEEstimator
from ..expert import DEPRECATED, ExpertSettings, upgraded
from ..model.likelihoods import check_likelihood
from ..model.module_state import PackedModule, available_device
from ..model.vae import check_methods
from .plain_json import DTYPES, Arrays, Tagged, decode, encode
from .schema import FORMAT, check, check_document, check_numbers, expect

_ENTRY = "sk_avae"
_CHECKSUM = "sha256"
# Bytes of names, shapes and JSON: enough for 7,000 tensors or 50,000 named columns, and read in a moment.
_LONGEST_HEADER = 2**21
_ROLES = {"module": "_recipe", "likelihood": "_likelihood_recipe"}
_KINDS: dict[str, Any] = {
    cls.__name__: cls for cls in (AVAEEstimator, AffineCanonicalizer, FrozenEstimator, ExpertSettings)
}
# The names that safetensors has for types.
_DTYPES = {"BOOL": "bool"} | {
    re.sub("[a-z]+", lambda kind: kind[0][0].upper(), name): name for name in DTYPES - {"bool"}
}

Own = Mapping[str, Any]


def save(model: AVAEEstimator | AffineCanonicalizer, path: str | os.PathLike[str]) -> None:
    """Write a fitted model to a file that holds nothing but numbers and text, without pickle.

    Weights go in as safetensors, the rest as JSON. `load` gives a model with the same answers, bit for bit. The file is
    written under another name in the same folder and put in its place when it is whole, so that a full disk or a
    killed process leaves an older file as it was (and a killed one perhaps a hidden ``.tmp`` file beside it).

    Parameters
    ----------
    model : AVAEEstimator or AffineCanonicalizer
        Fitted; a canonicalizer also around a frozen aligner. Of a module or likelihood of your own (a class or an
        instance) the weights are saved and no code: give it to `load` again. A folder of `memory`, which holds
        pickles, stays behind: the loaded model has ``memory=None``. So do callbacks, and the optimiser's state:
        `partial_fit` then begins anew.
    path : str or path-like
        Where; ``.safetensors`` is the usual ending. What is there is replaced.

    Raises
    ------
    TypeError
        If `model` is something else, or if a parameter or attribute of it could only be pickled: a `random_state`
        that is no int, `callbacks`, a `joblib.Memory`. The message names it. `joblib.dump` can save such a model.
    ValueError
        If a weight is NaN, a parameter is not as documented, or an attribute is unknown to the format.
    sklearn.exceptions.NotFittedError
        If `model` is not fitted.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from sk_avae import AVAEEstimator, load, save
    >>> from sk_avae.vae import MLPVAE
    >>> avae = AVAEEstimator.from_vae(MLPVAE((1, 8, 8), 2), image_shape=(8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(avae, f"{folder}/avae.safetensors")
    ...     loaded = load(f"{folder}/avae.safetensors", module=MLPVAE((1, 8, 8), 2))
    >>> X = np.eye(8).reshape(1, 64)
    >>> np.array_equal(loaded.transform(X), avae.transform(X))
    True
    """
    if type(model) not in (AVAEEstimator, AffineCanonicalizer):
        raise TypeError(
            f"sk_avae.save takes an AVAEEstimator or an AffineCanonicalizer, got {type(model).__name__}. "
            f"Use joblib.dump, or skops.io.dump for a pipeline."
        )
    check_is_fitted(model)
    aligner, arrays = _aligner_of(model), Arrays()
    try:
        aligner._check_parameters()
        content = encode(_tagged(model), arrays)
        own = {"module": aligner.module_, "likelihood": aligner.likelihood_}
        check(_with_own(decode(content, arrays, {*_KINDS, "own"}), own))
        check_numbers(arrays)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"A safe file cannot hold this model: {error} Replace it (`random_state` by an int; `callbacks` and "
            f"`memory`, which matter to `fit` only, by None), or use joblib.dump, which pickles."
        ) from error
    document = {"format": FORMAT, "sk_avae": __version__, "device": str(aligner.aligner_.device), "model": content}
    text = json.dumps(document, allow_nan=False)
    data = to_safetensors({**arrays, _CHECKSUM: _checksum(text, arrays)}, metadata={_ENTRY: text})
    if int.from_bytes(data[:8], "little") > _LONGEST_HEADER:
        raise ValueError("A safe file cannot hold so many tensors or column names. Use joblib.dump.")
    _write(Path(os.path.realpath(path)), data)


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    module: nn.Module | type[nn.Module] | None = None,
    likelihood: nn.Module | None = None,
) -> AVAEEstimator | AffineCanonicalizer:
    """Read a fitted model that `save` wrote; whatever the file holds, none of it is executed.

    Everything is checked before it is used: names, types, shapes and a checksum. That guards against accidents, not
    against forgers: who makes up a file can make up its checksum, too.

    Parameters
    ----------
    path : str or path-like
        The file.
    device : str, torch.device or None, default=None
        Where to put the model; it becomes the parameter `device`. None is where the weights were when it was saved,
        or the CPU if that is not available here.
    module : nn.Module class or instance, default=None
        Your own module, if the model was fitted with one, made as it was then: the file has only its weights.
        It becomes the parameter `module`, and is copied for `module_`; a class is called with the shapes that the file
        names.
    likelihood : nn.Module instance or None, default=None
        Your own likelihood, or one of this package's that was given as an instance; likewise.

    Returns
    -------
    model : AVAEEstimator or AffineCanonicalizer

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no file of this kind, was cut or changed, or has a newer format; if it needs a module of your own and
        got none, or another one than it was saved with; if `device` is not available.
    TypeError
        If `module` or `likelihood` lacks a method.

    Warns
    -----
    UserWarning
        If another version of this package saved it, or its device is not available.
    """
    path, own = Path(path), {"module": module, "likelihood": likelihood}
    if module is not None:
        check_methods(module)
    if likelihood is not None:
        check_likelihood(likelihood)
    target = None if device is None else resolve_device(device)
    with _refusing(path):
        document, tree = _read(path, own)
    warn_on_version(document["sk_avae"], tree.tag)
    there = available_device(document["device"]) if target is None else target
    with _refusing(path):
        model: AVAEEstimator | AffineCanonicalizer = _built(tree, there, None if device is None else str(device))
        _aligner_of(model)._check_parameters()
    return model


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn whatever a file provokes into one ValueError."""
    try:
        yield
    except (OSError, Warning):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be loaded: {reason[:1000]}") from error


# ---------------------------------------------------------------- models as plain values
def _aligner_of(model: Any) -> Any:
    """Return the estimator that does the work in a model."""
    for kind, inner in ((AffineCanonicalizer, "estimator_"), (FrozenEstimator, "estimator")):
        model = getattr(model, inner) if isinstance(model, kind) else model
    return model


def _tagged(value: Any) -> Any:
    """Return an estimator as the name of its class and its attributes; anything else as it is."""
    kind = type(value).__name__
    if _KINDS.get(kind) is not type(value):
        return value
    state = _state_of(value) if kind == "AVAEEstimator" else dict(vars(value))
    if kind == "ExpertSettings":
        state["callbacks"] = state["callbacks"] or None
    if kind == "AffineCanonicalizer" and state["estimator"] is state["estimator_"]:
        del state["estimator"]  # a frozen one is both
    return Tagged(kind, {name: _tagged(part) for name, part in state.items()})


def _state_of(estimator: AVAEEstimator) -> dict[str, Any]:
    """Return the attributes of an aligner that go into a file."""
    state = estimator.__getstate__()
    del state["_sk_avae_version"]
    state.pop("_device", None)
    state.pop("_adam", None)
    state.pop("_skl_callbacks", None)
    if isinstance(state["memory"], str):
        state["memory"] = None
    if isinstance(state["callbacks"], list) and not state["callbacks"]:
        state["callbacks"] = DEPRECATED
    for role, recipe in _ROLES.items():
        state[role] = _without_code(state[role], role)
        if recipe in state:
            state[recipe] = {**state[recipe], "module": _without_code(state[recipe]["module"], role)}
    return state


def _without_code(module: Any, role: str) -> Any:
    """Return a module of the user's as its name."""
    module = type(module.skeleton) if isinstance(module, PackedModule) else module
    return Tagged("own", (role, module.__name__)) if isinstance(module, type) else module


def _with_own(value: Any, own: Own) -> Any:
    """Put what the caller gives where the file has a module of his own."""
    if isinstance(value, dict):
        return {key: _with_own(part, own) for key, part in value.items()}
    if not isinstance(value, Tagged):
        return value
    if value.tag != "own":
        return Tagged(value.tag, _with_own(value.content, own))
    role, name = value.content
    if own[role] is None:
        raise ValueError(
            f"it holds only the weights of a {role} of your own, {str(name)[:100]}. Give it again: "
            f"load(path, {role}={str(name)[:100]}(...))."
        )
    return own[role]


def _built(value: Any, device: torch.device, wanted: str | None) -> Any:
    """Return the estimator of a checked tree, its networks on `device`; `wanted` becomes its parameter."""
    if not isinstance(value, Tagged):
        return value
    state = {name: _built(part, device, wanted) for name, part in value.content.items()}
    model = _KINDS[value.tag].__new__(_KINDS[value.tag])
    if value.tag == "ExpertSettings":
        return ExpertSettings(**state)
    if value.tag != "AVAEEstimator":
        vars(model).update(({"estimator": state["estimator_"]} if "estimator_" in state else {}) | state)
        return model
    state = AVAEEstimator().get_params(deep=False) | upgraded(state) | {"_sk_avae_version": __version__}
    if wanted is not None:
        state["device"] = wanted
    if "module_" in state:
        state["_device"] = str(device)
        for recipe in RECIPES:  # later changes of the caller's instance are not this model's
            state[recipe] = {**state[recipe], "module": copy.deepcopy(state[recipe]["module"])}
    model.__setstate__(state)
    return model


# ---------------------------------------------------------------- files
def _checksum(text: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Return the SHA-256 of a document and its arrays, of shape (32,)."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _write(path: Path, data: bytes) -> None:
    """Put a whole file in the place of an older one, or leave that as it was."""
    temporary = path.with_name(f".sk_avae-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # a folder cannot be synchronised everywhere
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _Recorded(dict[str, Any]):
    """A dict that knows what it was asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Any:
        expect(name in self, f"the name {str(name)[:100]!r}")
        self.asked.append(name)
        return super().__getitem__(name)


def _read(path: Path, own: Own) -> tuple[dict[str, Any], Tagged]:
    """Return the document and the model of a file, checked; its weights are read when all else is right."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file.")
    with open(path, "rb") as file:
        length, n_bytes = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if n_bytes < 8 or not 0 < length <= min(_LONGEST_HEADER, n_bytes - 8):
        raise ValueError(
            "it is no whole safetensors file. (Files of joblib and pickle are for joblib.load, if you trust them.)"
        )
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(_ENTRY)
        if text is None:
            raise ValueError("it is a safetensors file, but not one of sk_avae.save's.")
        document = json.loads(text, parse_constant=_no_number)
        check_document(document)
        blank = _Recorded({name: _blank(file.get_slice(name)) for name in file.keys()})  # noqa: SIM118
        expect(blank[_CHECKSUM].shape == (32,), "the checksum")
        wanted = _Recorded(own)
        check(_with_own(decode(document["model"], blank, {*_KINDS, "own"}), wanted))
        expect(sorted(blank.asked) == sorted(blank), "a tensor that is unused, or used twice,")
        arrays = {name: np.array(file.get_tensor(name)) for name in blank}
    if not np.array_equal(arrays.pop(_CHECKSUM), _checksum(text, arrays)):
        raise ValueError("its checksum is wrong: it was changed or damaged since it was saved.")
    check_numbers(arrays)
    for role, given in own.items():
        if given is not None and role not in wanted.asked:
            raise ValueError(f"its {role} is one of this package's. Leave out {role}=.")
    return document, _with_own(decode(document["model"], arrays, {*_KINDS, "own"}), own)


def _blank(tensor: Any) -> NDArray[Any]:
    """Return an array of zeros of the type and shape of a stored tensor, which takes no memory."""
    expect(tensor.get_dtype() in _DTYPES, f"a tensor of type {tensor.get_dtype()}")
    return np.broadcast_to(np.zeros((), _DTYPES[tensor.get_dtype()]), tensor.get_shape())


def _no_number(name: str) -> float:
    raise ValueError(f"it has {name} for a number.")
