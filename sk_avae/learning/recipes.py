"""Recipes: how the parameters say that a VAE and its likelihood are built, and whether a fitted one was built so."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..images import ImageFormat
from ..model.likelihoods import LIKELIHOODS, check_likelihood, likelihood_for
from ..model.vae import MODULES, check_methods

Recipe = dict[str, Any]


@dataclass(frozen=True)
class ModelParameters:
    """The parameters of the estimator that decide which model is built; see there.

    Attributes
    ----------
    module : str, nn.Module class or instance
    latent_size : int
    hidden_layer_sizes : sequence of int
    likelihood : str or nn.Module instance
    """

    module: Any
    latent_size: int
    hidden_layer_sizes: Sequence[int]
    likelihood: Any

    def vae_recipe(self, image_format: ImageFormat) -> Recipe:
        """Return how to build the VAE, see `module_state.build`.

        Raises
        ------
        ValueError, TypeError
            If the module is unknown, or lacks a method.
        """
        module = self.module
        arguments: Recipe = {"image_shape": image_format.frame_shape, "latent_size": int(self.latent_size)}
        if isinstance(module, str):
            if module not in MODULES:
                raise ValueError(f"module must be one of {sorted(MODULES)} or a torch.nn.Module, got {module!r}.")
            if module == "mlp":
                arguments["hidden_layer_sizes"] = tuple(self.hidden_layer_sizes)
            module = MODULES[module]
        check_methods(module)
        if isinstance(module, nn.Module):
            module = copy.deepcopy(module)  # later changes of the caller's instance are not this model's
        return {"module": module, "arguments": arguments}

    def likelihood_recipe(self, images: Tensor) -> Recipe:
        """Return how to build the likelihood; "auto" looks at images, scaled to [0, 1].

        Raises
        ------
        ValueError, TypeError
            If the likelihood is unknown, or lacks a part.
        """
        likelihood = self.likelihood
        if isinstance(likelihood, nn.Module):
            check_likelihood(likelihood)
            return {"module": copy.deepcopy(likelihood), "arguments": {}}
        if likelihood == "auto":
            likelihood = likelihood_for(images)
        if likelihood not in LIKELIHOODS:
            raise ValueError(
                f"likelihood must be 'auto', one of {sorted(LIKELIHOODS)} or a module, got {likelihood!r}."
            )
        return {"module": LIKELIHOODS[likelihood], "arguments": {}}


def check_same_model(then: tuple[Recipe, Recipe, ImageFormat], now: ModelParameters, image_format: ImageFormat) -> None:
    """Raise ValueError if the parameters that are set now describe another model than the one that is to go on.

    Parameters
    ----------
    then : tuple
        Recipes of the VAE and of the likelihood of the fitted model, and its format.
    now : ModelParameters
    image_format : ImageFormat
        The fitted one, with the shape, margin and padding that are set now.
    """
    vae_then, likelihood_then, format_then = then
    vae_now = now.vae_recipe(image_format)
    settings: dict[str, tuple[Any, Any]] = {
        "image_shape": (format_then.image_shape[:2], image_format.image_shape[:2]),
        "pad": (format_then.pad, image_format.pad),
        "padding": (format_then.padding, image_format.padding),
    }
    if _weight_signature(vae_then["module"]) != _weight_signature(vae_now["module"]):
        settings["module"] = _name(vae_then["module"]), _name(vae_now["module"])
    for name in ("latent_size", "hidden_layer_sizes"):
        if name in vae_then["arguments"] and name in vae_now["arguments"]:
            settings[name] = vae_then["arguments"][name], vae_now["arguments"][name]
    if now.likelihood != "auto":
        old, new = likelihood_then["module"], now.likelihood_recipe(torch.empty(0))["module"]
        if _weight_signature(old) != _weight_signature(new):
            settings["likelihood"] = _name(old), _name(new)
    changed = [f"{name}={new} (was {old})" for name, (old, new) in settings.items() if old != new]
    if changed:
        raise ValueError(
            f"The model cannot go on with its weights, which belong to other settings than {', '.join(changed)}. "
            f"Set them back, or fit a new model by `fit` with warm_start=False."
        )


def _weight_signature(module: Any) -> tuple[Any, ...]:
    """Return what a module has to have in common with one that takes its weights."""
    if not isinstance(module, nn.Module):
        return (module,)
    return type(module), tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())


def _name(module: Any) -> str:
    if not isinstance(module, nn.Module):
        return str(getattr(module, "__name__", module))
    return f"{type(module).__name__} of {sum(tensor.numel() for tensor in module.parameters())} weights"
