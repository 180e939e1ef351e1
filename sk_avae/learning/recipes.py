"""Recipes: how the parameters say that a VAE and its likelihood are built, and whether a fitted one was built so."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._callers import users_level
from ..images import ImageFormat
from ..model.likelihoods import LIKELIHOODS, Bernoulli, check_likelihood, likelihood_for
from ..model.vae import MODULES, check_methods, check_shapes, seems_to_give_probabilities

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
    decoder_output : {"auto", "logits", "probabilities"}, default="auto"
    """

    module: Any
    latent_size: int
    hidden_layer_sizes: Sequence[int]
    likelihood: Any
    decoder_output: str = "auto"

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

    def check_latent_size(self, vae: nn.Module, image_format: ImageFormat) -> None:
        """Raise ValueError unless a VAE takes such images, and has as many latent variables as it is to have."""
        latent_size = check_shapes(vae, image_format.frame_shape)
        if latent_size != self.latent_size:
            raise ValueError(
                f"latent_size={self.latent_size}, but {type(vae).__name__} has {latent_size} latent variables."
            )

    def recipe_with_output(self, recipe: Recipe, likelihood: Recipe, vae: nn.Module) -> Recipe:
        """Return the recipe of a VAE, saying what its decoder puts out if these are probabilities.

        Parameters
        ----------
        recipe, likelihood : dict
            Of the VAE and of its likelihood.
        vae : nn.Module
            What the recipe builds, in evaluation mode.

        Warns
        -----
        UserWarning
            If "auto" takes what a decoder puts out for probabilities.

        Raises
        ------
        ValueError
            If the decoder cannot put out what it is said to.
        """
        wanted, name = self.decoder_output, type(vae).__name__
        if type(vae) in MODULES.values():
            if wanted == "probabilities":
                raise ValueError(f"{name} puts out logits. Leave decoder_output='auto'.")
            return recipe
        reads_logits = likelihood["module"] is Bernoulli or isinstance(likelihood["module"], Bernoulli)
        if wanted == "logits" or not reads_logits:
            return recipe
        within = seems_to_give_probabilities(vae, int(self.latent_size))
        if wanted == "probabilities" and not within:
            raise ValueError(f"{name}.decode puts out numbers outside [0, 1]. Say decoder_output='logits'.")
        if within and wanted == "auto":
            warnings.warn(
                f"{name}.decode puts out numbers within [0, 1] only, as a sigmoid does: they are taken for "
                f"probabilities rather than logits. Say decoder_output='probabilities' if so, else 'logits'.",
                UserWarning,
                stacklevel=users_level(),
            )
        return {**recipe, "decoder_output": "probabilities"} if within else recipe


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
        "resolution": (_resolution(format_then), _resolution(image_format)),
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
    puts_out = vae_then.get("decoder_output", "logits")
    if likelihood_then["module"] is Bernoulli and now.decoder_output not in ("auto", puts_out):
        changed.append(f"decoder_output={now.decoder_output} (was {puts_out})")
    if changed:
        raise ValueError(
            f"The model cannot go on with its weights, which belong to other settings than {', '.join(changed)}. "
            f"Set them back, or fit a new model by `fit` with warm_start=False."
        )


def _resolution(image_format: ImageFormat) -> int | None:
    return None if image_format.sides is None else max(image_format.sides)


def _weight_signature(module: Any) -> tuple[Any, ...]:
    """Return what a module has to have in common with one that takes its weights."""
    if not isinstance(module, nn.Module):
        return (module,)
    return type(module), tuple((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())


def _name(module: Any) -> str:
    if not isinstance(module, nn.Module):
        return str(getattr(module, "__name__", module))
    return f"{type(module).__name__} of {sum(tensor.numel() for tensor in module.parameters())} weights"
