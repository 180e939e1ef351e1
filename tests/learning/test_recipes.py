"""Recipes: which parameters make which network, and which changes of them make another."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sk_avae.images import ImageFormat
from sk_avae.learning.recipes import ModelParameters, check_same_model
from sk_avae.model.likelihoods import LIKELIHOODS, Bernoulli, Gaussian
from sk_avae.model.module_state import build
from sk_avae.model.vae import MLPVAE, MODULES, check_shapes

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

FORMAT = ImageFormat((8, 12), 2, 0.0, 1.0, (0.0,))
PARAMETERS = ModelParameters("mlp", 3, (8, 6), "auto")
GREY, BINARY = torch.full((5, 1, 4, 4), 0.5), torch.eye(4).expand(5, 1, 4, 4)


def quietly(make):
    """Make a module without drawing from the global generator."""
    with torch.random.fork_rng(devices=[]):
        return make()


@pytest.mark.parametrize("name", MODULES)
def test_a_name_makes_a_network_of_the_frame_and_of_the_latent_size(name):
    recipe = replace(PARAMETERS, module=name).vae_recipe(FORMAT)
    assert recipe["module"] is MODULES[name]
    assert ("hidden_layer_sizes" in recipe["arguments"]) == (name == "mlp")
    vae = quietly(lambda: build(recipe)).eval()
    assert check_shapes(vae, (1, 12, 16)) == 3


def test_an_instance_is_copied_and_a_class_is_not():
    mine, scale = quietly(lambda: MLPVAE((1, 12, 16), 3)), Gaussian(0.5)
    vae = replace(PARAMETERS, module=mine).vae_recipe(FORMAT)["module"]
    likelihood = replace(PARAMETERS, likelihood=scale).likelihood_recipe(GREY)["module"]
    for copied, own in ((vae, mine), (likelihood, scale)):
        assert copied is not own
        assert type(copied) is type(own)
    assert replace(PARAMETERS, module=MLPVAE).vae_recipe(FORMAT)["module"] is MLPVAE


@pytest.mark.parametrize(("likelihood", "images", "made"), [
    ("auto", GREY, Gaussian), ("auto", BINARY, Bernoulli), *((name, GREY, made) for name, made in LIKELIHOODS.items()),
])  # fmt: skip
def test_a_likelihood_is_the_named_one_or_that_of_the_images(likelihood, images, made):
    assert replace(PARAMETERS, likelihood=likelihood).likelihood_recipe(images) == {"module": made, "arguments": {}}


@pytest.mark.parametrize(
    ("module", "error", "match"),
    [
        ("mpl", ValueError, r"module must be one of \['conv', 'mlp'\] or a torch.nn.Module, got 'mpl'"),
        (nn.Linear, TypeError, "encode"),
    ],
)
def test_what_is_no_module_is_named(module, error, match):
    parameters = replace(PARAMETERS, module=module)
    with pytest.raises(error, match=match):
        parameters.vae_recipe(FORMAT)


@pytest.mark.parametrize(
    ("likelihood", "error", "match"),
    [
        ("normal", ValueError, "likelihood must be 'auto', one of .* or a module, got 'normal'"),
        (nn.Identity(), TypeError, "log_prob"),
    ],
)
def test_what_is_no_likelihood_is_named(likelihood, error, match):
    parameters = replace(PARAMETERS, likelihood=likelihood)
    with pytest.raises(error, match=match):
        parameters.likelihood_recipe(GREY)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({}, None),
        ({"module": MLPVAE}, None),
        ({"likelihood": "bernoulli"}, None),
        ({"hidden_layer_sizes": [8, 6]}, None),
        ({"latent_size": 5}, r"latent_size=5 \(was 3\)"),
        ({"hidden_layer_sizes": (64, 32)}, r"hidden_layer_sizes=\(64, 32\) \(was \(8, 6\)\)"),
        ({"module": "conv"}, r"module=ConvVAE \(was MLPVAE\)"),
        ({"likelihood": "gaussian"}, r"likelihood=Gaussian \(was Bernoulli\)"),
        ({"likelihood": Gaussian(0.5)}, r"likelihood=Gaussian of 0 weights \(was Bernoulli\)"),
        ({"pad": 3}, r"pad=3 \(was 2\)"),
        ({"padding": "border"}, r"padding=border \(was background\)"),
        ({"image_shape": (12, 8)}, r"image_shape=\(12, 8\) \(was \(8, 12\)\)"),
        ({"latent_size": 5, "pad": 3}, r"pad=3 \(was 2\), .*latent_size=5 \(was 3\)"),
    ],
)
def test_a_model_goes_on_only_as_what_it_was(change, match):
    then = PARAMETERS.vae_recipe(FORMAT), PARAMETERS.likelihood_recipe(BINARY), FORMAT
    of_format = {name: change[name] for name in ("pad", "padding", "image_shape") if name in change}
    now = replace(PARAMETERS, **{name: value for name, value in change.items() if name not in of_format})
    if match is None:
        assert check_same_model(then, now, replace(FORMAT, **of_format)) is None
        return
    with pytest.raises(ValueError, match=match):
        check_same_model(then, now, replace(FORMAT, **of_format))


def test_instances_go_on_as_others_of_their_shapes():
    small, same_shapes, large = (quietly(lambda width=width: MLPVAE((1, 12, 16), 3, (width,))) for width in (8, 8, 9))
    parameters = replace(PARAMETERS, module=small)
    then = parameters.vae_recipe(FORMAT), parameters.likelihood_recipe(BINARY), FORMAT
    assert check_same_model(then, replace(parameters, module=same_shapes), FORMAT) is None
    with pytest.raises(ValueError, match=r"module=MLPVAE of \d+ weights \(was MLPVAE of \d+ weights\)"):
        check_same_model(then, replace(parameters, module=large), FORMAT)
