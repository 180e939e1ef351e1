"""An `Aligner` as plain values, and back: what pickles and safe files hold.

The layout is a flat dict, one entry an attribute, as version 0.1 wrote it: pickles and files of that version load
through the same code.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from .aligner import Aligner, SearchModels
from .images import ImageFormat
from .model.contexts import in_plain_torch
from .model.critic import Critic, is_pooled
from .model.likelihoods import LIKELIHOODS
from .model.module_state import Network, pack, rebuild, to_arrays, unpack
from .model.shape_density import ShapeDensity
from .model.vae import MODULES
from .report import AlignmentReport
from .search.certainty import Confidence
from .search.proposer import Proposer
from .search.settings import PoseSettings, SearchSettings

# The networks of a fitted model, and the recipes in it with the names of the classes that this package builds.
NETWORKS = ("module_", "likelihood_", "density_", "critic_", "proposer_")
RECIPES: dict[str, Mapping[str, type[nn.Module]]] = {"_recipe": MODULES, "_likelihood_recipe": LIKELIHOODS}


def to_state(aligner: Aligner) -> dict[str, Any]:
    """Return an aligner as arrays, numbers, strings and containers of them, and the user's own objects."""
    models, proposer = aligner.models, aligner.models.proposer
    recipes = {"_recipe": aligner.vae.recipe, "_likelihood_recipe": aligner.likelihood.recipe}
    networks = {
        "module_": aligner.vae.module,
        "likelihood_": aligner.likelihood.module,
        "density_": models.density,
        "critic_": models.critic,
        "proposer_": proposer,
    }
    state: dict[str, Any] = {name: net if net is None else to_arrays(net) for name, net in networks.items()}
    if proposer is not None:
        state["proposer_"] = state["proposer_"], proposer.family
    for name, recipe in recipes.items():
        state[name] = {**recipe, "module": pack(recipe["module"], RECIPES[name])}
    # What version 0.1 did not know is left out where nothing is known of it.
    later = {
        "_proposer_weight": models.proposer_weight or None,
        "_none_right": models.none_right if math.isfinite(models.none_right) else None,
        "_report": models.report and models.report.state(),
    }
    return {
        **state,
        **{name: value for name, value in later.items() if value is not None},
        "_device": str(aligner.device),
        "image_format_": {name: part for name, part in asdict(aligner.image_format).items() if part is not None},
        "image_shape_": aligner.image_format.image_shape,
        "moments_": aligner.moments,
        "temperature_": models.temperature,
        "pose_spread_": dict(models.pose_spread),
        "min_gain_": models.min_gain,
        "_confidence": tuple(models.confidence),
    }


@in_plain_torch
def from_state(state: Mapping[str, Any], pose: PoseSettings, search: SearchSettings, device: torch.device) -> Aligner:
    """Return the aligner of a state, its networks on `device`; entries that are none of its own are left alone."""
    # Before version 0.1 a pickle had the format itself.
    format_state = state["image_format_"]
    image_format = format_state if isinstance(format_state, ImageFormat) else ImageFormat(**format_state)
    recipes = {name: {**state[name], "module": unpack(state[name]["module"], known)} for name, known in RECIPES.items()}
    networks: dict[str, Any] = {}
    for name, recipe in network_recipes({**state, **recipes}, image_format.frame_shape).items():
        arrays = state[name][0] if type(state[name]) is tuple else state[name]
        networks[name] = None if arrays is None else rebuild(recipe, arrays, device)
    return Aligner(
        vae=Network(recipes["_recipe"], networks["module_"]),
        likelihood=Network(recipes["_likelihood_recipe"], networks["likelihood_"]),
        image_format=image_format,
        moments=state["moments_"],
        models=SearchModels(
            networks["proposer_"],
            networks["density_"],
            networks["critic_"],
            state["temperature_"],
            state["pose_spread_"],
            state["min_gain_"],
            Confidence(*state.get("_confidence", ())),
            state.get("_proposer_weight", 0.0),
            state.get("_none_right", -math.inf),
            None if "_report" not in state else AlignmentReport(**state["_report"]),
        ),
        pose=pose,
        search=search,
    )


def network_recipes(state: Mapping[str, Any], frame_shape: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    """Return how to build each of the `NETWORKS` of a state, see `module_state.build`.

    Parameters
    ----------
    state : mapping from str to object
        What `to_state` returns, its recipes unpacked.
    frame_shape : tuple of int
        (n_channels, height, width) of what the networks see.
    """
    proposer, family = state["proposer_"] or ({}, None)
    # Networks of version 0.1 are told by their weights.
    convolutional = any(name.startswith("layers.") for name in proposer)
    pooled = is_pooled(state["critic_"] or {}, frame_shape)
    return {
        "module_": state["_recipe"],
        "likelihood_": state["_likelihood_recipe"],
        "density_": {"module": ShapeDensity, "arguments": {}},
        "critic_": {"module": Critic, "arguments": {"image_shape": frame_shape, "pooled": pooled}},
        "proposer_": {
            "module": Proposer,
            "arguments": {"image_shape": frame_shape, "family": family, "convolutional": convolutional},
        },
    }


STATE_NAMES = (
    *(*NETWORKS, *RECIPES, "_device", "image_format_", "image_shape_", "moments_"),
    *("temperature_", "pose_spread_", "min_gain_", "_confidence", "_proposer_weight", "_none_right", "_report"),
)
