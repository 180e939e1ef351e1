"""What a safe file may hold: names, types and shapes. What is not known here is refused."""

import contextlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._version import __version__
from ..aligner_state import RECIPES, network_recipes
from ..estimator import AVAEEstimator
from ..expert import DEPRECATED, ExpertSettings
from ..images import ImageFormat
from ..model.affine import PADDINGS
from ..model.critic import Critic
from ..model.likelihoods import LIKELIHOODS
from ..model.module_state import build, global_generator, unpack
from ..model.shape_density import ShapeDensity
from ..model.vae import MODULES
from ..report import AlignmentReport
from ..search.proposer import Proposer
from .plain_json import Tagged

# 1 was version 0.1's, without `expert`; this version reads it, too.
FORMAT = 2

# A network is laid out, without memory, before its weights are compared; so many layers still take no time.
_MOST_LAYERS = 100
# Numbers and containers in the value of a parameter.
_MOST_PARTS = 1000
_LARGEST_INT = 2**53


def expect(holds: Any, what: str) -> None:
    """Raise ValueError unless something holds."""
    if not holds:
        raise ValueError(f"{what} is not as sk_avae.save writes it.")


def _is_int(value: Any, low: int = 0) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= int(value) < _LARGEST_INT


def _is_float(value: Any) -> bool:
    return isinstance(value, float | np.floating) or _is_int(value, -_LARGEST_INT)


def _is_finite(value: Any) -> bool:
    return _is_float(value) and math.isfinite(value)


def _are_floats(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_float(part) for part in value.values())


def _is_array(value: Any, *shape: int | None) -> bool:
    """Tell whether a value is an array of floats of a shape, None being any length."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != len(shape):
        return False
    return all(side in (None, found) for side, found in zip(shape, value.shape, strict=True))


def _are_arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(array, np.ndarray) for array in value.values())


def _are_moments(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and _is_array(value[0], 1, 2) and _is_array(value[1], 1, 2, 2)


def _is_proposer(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and _are_arrays(value[0]) and isinstance(value[1], str)


def _are_numbers(value: Any, n: int) -> bool:
    return type(value) is tuple and len(value) == n and all(map(_is_finite, value))


def _is_exposure(value: Any) -> bool:
    if type(value) is not tuple or len(value) != 3 or not isinstance(value[0], bool | np.bool_):
        return False
    return all(_are_numbers(ends, 2) and ends[0] <= ends[1] for ends in value[1:])


def _is_report(value: Any) -> bool:
    if not _has(*(part.name for part in fields(AlignmentReport)))(value):
        return False
    figures = {name: part for name, part in value.items() if name not in ("weight", "right")}
    n, right = figures["n_poses"], value["right"]
    if not all(map(_is_finite, figures.values())) or not (_is_int(n) and _is_int(figures["n_images"]) and n > 0):
        return False
    is_mask = isinstance(right, np.ndarray) and right.dtype == bool and right.shape == (n,)
    return _is_array(value["weight"], n) and is_mask


def _has(*names: str) -> Callable[[Any], bool]:
    """Return what tells whether a value is a dict with these keys."""
    return lambda value: isinstance(value, dict) and set(value) == set(names)


def _without(value: Any, name: str) -> Any:
    """Return a dict without a key that it may have."""
    return {key: part for key, part in value.items() if key != name} if isinstance(value, dict) else value


def _is_one_of(*kinds: str) -> Callable[[Any], bool]:
    """Return what tells whether a value is an estimator of one of these kinds."""
    return lambda value: isinstance(value, Tagged) and value.tag in kinds


def _n_parts(value: Any) -> float:
    """Count a value and all that it contains; an estimator in it is too much."""
    parts = value.values() if isinstance(value, dict) else value if type(value) in (list, tuple) else ()
    return math.inf if isinstance(value, Tagged) else 1 + sum(_n_parts(part) for part in parts)


def _is_small(value: Any) -> bool:
    return _n_parts(value) <= _MOST_PARTS


def _is_module(value: Any, known: Collection[str]) -> bool:
    """Tell whether a value names one of the package's modules, or is one that the caller gave."""
    if isinstance(value, str):
        return value in known
    return isinstance(value, nn.Module) or (isinstance(value, type) and issubclass(value, nn.Module))


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


# Of an image format: all, and those that files of version 0.1 lack.
_ALL_PARTS = {part.name for part in fields(ImageFormat)}
_NEW_PARTS = {"precision", "limits", "sides", "exposure", "noise"}

# What each attribute must be, by kind of estimator: those that must be there, and those that may.
_NEEDED: dict[str, dict[str, Callable[[Any], bool]]] = {
    "AVAEEstimator": {
        "_recipe": lambda value: _has("module", "arguments")(_without(value, "decoder_output")),
        "_likelihood_recipe": _has("module", "arguments"),
        "module_": _are_arrays,
        "likelihood_": _are_arrays,
        "density_": _or_none(_are_arrays),
        "critic_": _or_none(_are_arrays),
        "proposer_": _or_none(_is_proposer),
        "image_format_": lambda value: isinstance(value, dict) and _ALL_PARTS - _NEW_PARTS <= set(value) <= _ALL_PARTS,
        "image_shape_": lambda value: type(value) is tuple,
        "n_features_in_": _is_int,
        "history_": lambda value: isinstance(value, list) and all(_are_floats(epoch) for epoch in value),
        "n_iter_": _is_int,
        "moments_": _or_none(_are_moments),
        "temperature_": lambda value: _is_finite(value) and value > 0,
        "pose_spread_": _are_floats,
        "min_gain_": _or_none(lambda value: _is_float(value) and not math.isnan(value)),
    },
    "FrozenEstimator": {"estimator": _is_one_of("AVAEEstimator")},
    "ExpertSettings": {},
    "AffineCanonicalizer": {
        "estimator_": _is_one_of("AVAEEstimator", "FrozenEstimator"),
        "append_alpha": lambda value: isinstance(value, bool | np.bool_),
        "n_features_in_": _is_int,
    },
}
_ALLOWED: dict[str, dict[str, Callable[[Any], bool]]] = {
    "AVAEEstimator": {
        "alpha_": lambda value: _is_array(value, None, None),
        "_confidence": lambda value: _are_numbers(value, 3),
        "_proposer_weight": lambda value: _is_finite(value) and value >= 0,
        "_none_right": _is_finite,
        "_report": _is_report,
    },
    "FrozenEstimator": {},
    "ExpertSettings": {
        **dict.fromkeys(ExpertSettings().get_params(), _is_small),
        "callbacks": lambda value: value is None,
    },
    "AffineCanonicalizer": {
        "estimator": _or_none(_is_one_of("AVAEEstimator", "FrozenEstimator")),
        "random_state": _or_none(_is_int),
    },
}
_ALWAYS_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "feature_names_in_": lambda value: isinstance(value, np.ndarray) and value.dtype == object and len(value) > 0,
    "_sklearn_output_config": lambda value: (
        isinstance(value, dict)
        and set(value) <= {"transform"}
        and all(kind in (None, "default", "pandas", "polars") for kind in value.values())
    ),
}
# Of the parameters of `AVAEEstimator`; its own checks see to the others.
_PARAMETERS: dict[str, Callable[[Any], bool]] = {
    "module": lambda value: _is_module(value, MODULES),
    "likelihood": lambda value: _is_module(value, {"auto", *LIKELIHOODS}),
    "callbacks": lambda value: value in (None, DEPRECATED),
    "expert": _or_none(_is_one_of("ExpertSettings")),
    "memory": lambda value: value is None,
    "verbose": _is_float,
    "device": lambda value: isinstance(value, str),
    "random_state": _or_none(_is_int),
}


def check(tree: Any) -> None:
    """Raise ValueError unless this is a fitted model of ours; the numbers in arrays are not looked at."""
    expect(_is_one_of("AVAEEstimator", "AffineCanonicalizer")(tree), "the model")
    _check_estimator(tree, fitted=True)


def _check_estimator(tree: Tagged, *, fitted: bool) -> None:
    kind, state = tree
    expect(isinstance(state, dict), kind)
    needed, allowed = _NEEDED[kind], _ALWAYS_ALLOWED | _ALLOWED[kind]
    if kind == "AVAEEstimator":
        fitted = fitted or "module_" in state
        parameters = AVAEEstimator().get_params(deep=False).keys()
        allowed = allowed | dict.fromkeys(parameters, _is_small) | _PARAMETERS
        needed = needed if fitted else {}
    unknown, missing = state.keys() - (needed | allowed).keys(), needed.keys() - state.keys()
    expect(not unknown, f"{kind} with the unknown {', '.join(sorted(unknown))[:200]}")
    expect(not missing, f"{kind} without {', '.join(sorted(missing))}")
    for name, value in state.items():
        expect((allowed | needed)[name](value), f"{kind}.{name}")
        if isinstance(value, Tagged):
            _check_estimator(
                value, fitted=name == "estimator_" or kind == "FrozenEstimator" or value.tag != "AVAEEstimator"
            )
    names = state.get("feature_names_in_", ())
    expect(len(names) in (0, state.get("n_features_in_")), f"{kind}.feature_names_in_")
    if kind == "AffineCanonicalizer":
        expect("estimator" in state or state["estimator_"].tag == "FrozenEstimator", "AffineCanonicalizer.estimator")
        expect(
            state["n_features_in_"] == state_of_aligner(tree)["n_features_in_"], "AffineCanonicalizer.n_features_in_"
        )
    if kind == "AVAEEstimator" and fitted:
        frame_shape = _checked_frame(state)
        _check_recipes(state, frame_shape)
        _check_networks(state, frame_shape)


def _checked_frame(state: dict[str, Any]) -> tuple[int, int, int]:
    """Check an image format and return the shape of its frame."""
    parts = state["image_format_"]
    shape, background = parts["image_shape"], parts["background"]
    expect(type(shape) is tuple and len(shape) in (2, 3) and all(_is_int(side, 1) for side in shape), "image_shape")
    expect(state["image_shape_"] == shape and state["n_features_in_"] == math.prod(shape), "image_shape_")
    expect(_is_int(parts["pad"]) and parts["pad"] < 2**20 and parts["padding"] in PADDINGS, "pad or padding")
    expect(type(background) is tuple and len(background) == (*shape, 1)[2], "background")
    scaling = [part if type(part) is tuple else (part,) for part in (parts["offset"], parts["scale"])]
    expect(all(len(part) in (1, len(background)) for part in scaling), "offset or scale")
    expect(all(_is_finite(number) for part in (background, *scaling) for number in part), "image_format_")
    expect(0 not in scaling[1], "a scale of 0")
    limits = parts.get("limits")
    expect(limits is None or _are_numbers(limits, 2), "limits")
    expect(parts.get("precision") in (None, "float32", "float64"), "precision")
    sides, exposure, noise = (parts.get(name) for name in ("sides", "exposure", "noise"))
    expect(sides is None or (type(sides) is tuple and len(sides) == 2 and all(_is_int(s, 1) for s in sides)), "sides")
    expect(exposure is None or _is_exposure(exposure), "exposure")
    expect(noise is None or _are_numbers(noise, 2), "noise")
    return ImageFormat(**parts).frame_shape


def _check_recipes(state: dict[str, Any], frame_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless the networks are known and their arguments those of the images."""
    for recipe, registered in RECIPES.items():
        expect(_is_module(state[recipe]["module"], registered), recipe)
    arguments = state["_recipe"]["arguments"]
    expect(state["_recipe"].get("decoder_output", "probabilities") == "probabilities", "decoder_output")
    hidden: tuple[Any, ...] = ()
    names = ["image_shape", "latent_size"]
    if isinstance(state["_recipe"]["module"], str) and state["_recipe"]["module"] == "mlp":
        names, hidden = [*names, "hidden_layer_sizes"], arguments["hidden_layer_sizes"]
    expect(_has(*names)(arguments) and _is_int(arguments["latent_size"], 1), "_recipe")
    expect(arguments["image_shape"] == frame_shape and state["_likelihood_recipe"]["arguments"] == {}, "_recipe")
    expect(type(hidden) is tuple and len(hidden) <= _MOST_LAYERS, "hidden_layer_sizes")
    expect(all(_is_int(width, 1) for width in hidden), "hidden_layer_sizes")


def _check_networks(state: dict[str, Any], frame_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless names, shapes and types of all weights are those of the networks."""
    named = {
        recipe: {**state[recipe], "module": unpack(state[recipe]["module"], registered)}
        for recipe, registered in RECIPES.items()
    }
    for network, recipe in network_recipes({**state, **named}, frame_shape).items():
        arrays = state[network][0] if type(state[network]) is tuple else state[network]
        if arrays is None:
            continue
        expected, found = _table(_laid_out(recipe).state_dict()), _table(arrays)
        for name in sorted(expected | found):
            what, got = expected.get(name, "nothing"), found.get(name, "nothing")
            expect(what == got, f"{network} with {got} for {name[:200]}, where {what} is needed,")


def _laid_out(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a network: one of the package's without memory, a user's own as it is."""
    ours = recipe["module"] in (*MODULES.values(), *LIKELIHOODS.values(), ShapeDensity, Critic, Proposer)
    with global_generator(None, torch.device("cpu")), torch.device("meta") if ours else contextlib.nullcontext():
        return build(recipe)


def _table(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the types and shapes of tensors or arrays as text."""
    return {key: f"{str(a.dtype).removeprefix('torch.')} {tuple(a.shape)}" for key, a in arrays.items()}


def check_numbers(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError if a number is NaN."""
    for name, array in arrays.items():
        expect(array.dtype.kind != "f" or not np.isnan(array).any(), f"NaN in {name[:200]}")


def check_document(document: Any) -> None:
    """Raise ValueError unless a document is of this format; its model is not looked at."""
    expect(isinstance(document, dict), "the document")
    number = document.get("format")
    if type(number) is int and number > FORMAT:
        raise ValueError(f"its format is newer than {FORMAT}, which sk_avae {__version__} reads: update sk_avae.")
    expect(type(number) is int and 1 <= number <= FORMAT, "the number of the format")
    expect(set(document) == {"format", "sk_avae", "device", "model"}, "the document")
    expect(isinstance(document["sk_avae"], str) and len(document["sk_avae"]) < 100, "the version")
    device = document["device"]
    expect(isinstance(device, str) and re.fullmatch(r"(?!meta)[a-z]{1,20}(:\d{1,3})?", device), "the device")


def state_of_aligner(tree: Tagged) -> dict[str, Any]:
    """Return the attributes of the estimator that does the work in a model."""
    inner = {"AffineCanonicalizer": "estimator_", "FrozenEstimator": "estimator"}.get(tree.tag)
    state: dict[str, Any] = tree.content
    return state if inner is None else state_of_aligner(state[inner])
