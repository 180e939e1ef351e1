"""Modules as arrays and back."""

import copy

import numpy as np
import pytest
import torch

from sk_avae.datasets import load_mnist_sample
from sk_avae.model.likelihoods import Bernoulli, Gaussian
from sk_avae.model.module_state import available_device, build, freeze, from_arrays, rebuild, to_arrays
from sk_avae.model.vae import MLPVAE, ConvVAE

CPU = torch.device("cpu")
ARGUMENTS = {"image_shape": (1, 8, 8), "latent_size": 3}
RECIPES = {
    "mlp": {"module": MLPVAE, "arguments": ARGUMENTS | {"hidden_layer_sizes": (7,)}},
    "conv": {"module": ConvVAE, "arguments": ARGUMENTS},
    "bernoulli": {"module": Bernoulli, "arguments": {}},
    "gaussian": {"module": Gaussian, "arguments": {}},
    "gaussian, fixed": {"module": Gaussian, "arguments": {"scale": 0.2}},
    "instance": {"module": MLPVAE((1, 4, 4), 2), "arguments": {}},
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


def images():
    X, _ = load_mnist_sample("test")
    return torch.tensor(X[:16].reshape(16, 1, 28, 28)[..., 10:18, 10:18] / 255.0).float()


def assert_same_state(first, second):
    assert list(first.state_dict()) == list(second.state_dict())
    for name, tensor in first.state_dict().items():
        other = second.state_dict()[name]
        assert torch.equal(tensor, other), name
        assert tensor.dtype == other.dtype


@every_recipe
def test_a_module_comes_back_from_its_arrays(recipe):
    module = build(recipe)
    for tensor in module.state_dict().values():
        tensor.add_(1)
    arrays = to_arrays(module)
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert_same_state(rebuild(recipe, arrays, CPU), module)
    assert_same_state(from_arrays(build(recipe), arrays, CPU), module)


def test_batch_norm_statistics_come_along():
    module = build(RECIPES["conv"]).train()
    module.encode(images())
    arrays = to_arrays(module)
    again = rebuild(RECIPES["conv"], arrays, CPU)
    assert arrays["encoder.1.num_batches_tracked"] == 1
    assert again.encoder[1].running_mean.any()
    for mine, restored in zip(module.eval().encode(images()), again.encode(images()), strict=True):
        assert torch.equal(mine, restored)


@every_recipe
def test_arrays_are_copies(recipe):
    module = build(recipe)
    arrays = to_arrays(module)
    again = rebuild(recipe, arrays, CPU)
    before = copy.deepcopy(module)
    for array in arrays.values():
        array += 1
    assert_same_state(module, before)
    assert_same_state(again, before)


def test_read_only_arrays_load():
    # As joblib's memory maps are.
    arrays = to_arrays(build(RECIPES["mlp"]))
    for array in arrays.values():
        array.flags.writeable = False
    again = rebuild(RECIPES["mlp"], arrays, CPU)
    assert np.array_equal(again.encoder[0].weight.numpy(), arrays["encoder.0.weight"])


@every_recipe
def test_a_rebuilt_module_is_frozen_and_in_evaluation_mode(recipe):
    module = rebuild(recipe, to_arrays(build(recipe)), CPU)
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_freeze_works_in_place():
    module = build(RECIPES["mlp"])
    assert freeze(module, CPU) is module
    assert not module.training
    assert not module.encoder[0].weight.requires_grad


@every_recipe
def test_rebuilding_leaves_the_global_random_state(recipe):
    arrays = to_arrays(build(recipe))
    before = torch.get_rng_state()
    rebuild(recipe, arrays, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_building_from_an_instance_copies_it():
    mine = RECIPES["instance"]["module"]
    built = build(RECIPES["instance"])
    assert built is not mine
    assert_same_state(built, mine)
    assert built.encoder[0].weight.data_ptr() != mine.encoder[0].weight.data_ptr()


def test_arrays_of_another_network_are_refused():
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        rebuild(RECIPES["mlp"], to_arrays(build(RECIPES["conv"])), CPU)


def test_an_available_device_is_taken():
    assert available_device("cpu") == CPU


@pytest.mark.parametrize("device", ["cuda:99", "no such device"])
def test_a_missing_device_becomes_the_cpu_with_a_warning(device):
    with pytest.warns(UserWarning, match=rf"fitted on '{device}', which is not available here: loading it on the CPU"):
        assert available_device(device) == CPU
