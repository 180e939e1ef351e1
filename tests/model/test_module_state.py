"""State of modules: arrays there and back, modules packed for a pickle, and torch's generator lent out."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from sk_avae.model.likelihoods import Bernoulli, Gaussian
from sk_avae.model.module_state import (
    PackedModule,
    available_device,
    build,
    freeze,
    from_arrays,
    global_generator,
    pack,
    rebuild,
    to_arrays,
    unpack,
)
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


class Odd(nn.Module):
    """A module with all that a state can have: a buffer, an empty one, a tied and a fixed parameter, parts."""

    def __init__(self, size=3):
        super().__init__()
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.register_buffer("counted", torch.arange(4))
        self.register_buffer("empty", None)
        self.norm = nn.BatchNorm1d(size)
        self.note = {"anything": [1, 2]}

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


def same_state(one, other):
    states = one.state_dict(), other.state_dict()
    assert [*states[0]] == [*states[1]]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(a.dtype == b.dtype for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_arrays_of_a_module_are_copies_and_load_into_another():
    module, other = Odd(), Odd()
    arrays = to_arrays(module)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    loaded = from_arrays(other, arrays, CPU)
    assert loaded is other
    same_state(loaded, module)
    before = copy.deepcopy(module.state_dict())
    for array in arrays.values():
        array += 1
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_frozen_module_is_in_evaluation_mode_and_takes_and_keeps_no_gradient():
    module = Odd().train()
    module(torch.rand(5, 3)).sum().backward()
    assert module.first.bias.grad is not None
    assert freeze(module, CPU) is module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert freeze(Odd(), torch.device("meta")).first.weight.device.type == "meta"


def test_a_packed_module_holds_no_tensor_and_comes_back_whole():
    module = Odd().train()
    packed = pack(module)
    assert isinstance(packed, PackedModule)
    parts = [*packed.skeleton.modules()]
    assert not any(
        tensor is not None for part in parts for tensor in (*part._parameters.values(), *part._buffers.values())
    )
    # A weight that is held twice is stored once.
    assert sum(array.shape == (3, 3) for array in packed.arrays.values()) == 1
    for _ in range(2):
        back = unpack(packed)
        same_state(back, module)
        assert back.second.weight is back.first.weight
        assert isinstance(back.first.weight, nn.Parameter)
        assert not isinstance(back.counted, nn.Parameter)
        assert back.empty is None
        assert {name for name, p in back.named_parameters() if not p.requires_grad} == {"second.bias"}
        assert back.note == module.note
        assert back.training
        with torch.no_grad():
            back.first.weight += 1  # of the one that came back alone
    assert module.first.weight is module.second.weight
    same_state(unpack(packed), module)


def test_a_registered_class_is_packed_by_its_name_and_what_is_no_module_stays():
    registered = {"mlp": MLPVAE, "odd": Odd}
    assert pack(Odd, registered) == "odd"
    assert unpack("odd", registered) is Odd
    for value in ("conv", 3, None, MLPVAE):
        assert pack(value, {"odd": Odd}) is value
        assert unpack(value, {"odd": Odd}) is value
    assert pack(MLPVAE) is MLPVAE


def test_a_recipe_builds_a_copy_of_an_instance_or_calls_a_class_in_single_precision():
    instance = Odd().double()
    built = build({"module": instance})
    assert built is not instance
    assert built.first.weight.dtype == torch.float32
    assert instance.first.weight.dtype == torch.float64
    torch.testing.assert_close(built.first.weight, instance.first.weight.float())
    assert build({"module": Odd, "arguments": {"size": 5}}).first.weight.shape == (5, 5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_rebuilding_is_building_and_loading_frozen_and_leaves_the_generator_alone(recipe):
    module = build(recipe)
    for tensor in module.state_dict().values():
        tensor.add_(1)
    arrays = to_arrays(module)
    for array in arrays.values():
        array.flags.writeable = False  # as joblib's memory maps are
    again = rebuild(recipe, arrays, CPU)
    assert again is not recipe["module"]
    same_state(again, module)
    same_state(from_arrays(build(recipe), arrays, CPU), module)
    assert not any(part.training for part in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    random_state = torch.get_rng_state()
    rebuild(recipe, arrays, CPU)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_batch_norm_statistics_come_along():
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module = build(RECIPES["conv"]).train()
    module.encode(images)
    arrays = to_arrays(module)
    assert arrays["encoder.1.num_batches_tracked"] == 1
    again = rebuild(RECIPES["conv"], arrays, CPU)
    for mine, restored in zip(module.eval().encode(images), again.encode(images), strict=True):
        assert torch.equal(mine, restored)


def test_arrays_of_another_network_are_refused():
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        rebuild(RECIPES["mlp"], to_arrays(build(RECIPES["conv"])), CPU)


def test_the_generator_is_lent_seeded_or_as_it_is_and_given_back():
    state = torch.get_rng_state()
    with global_generator(7, CPU):
        seeded = torch.rand(3)
    assert torch.equal(seeded, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.Generator()
    expected.set_state(state)
    with global_generator(None, CPU):
        assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))
    with pytest.raises(KeyError), global_generator(1, CPU):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generator_is_lent_to_one_thread_at_a_time_and_again_to_the_same():
    order = []

    def other():
        with global_generator(1, CPU):
            order.append("other")

    with global_generator(0, CPU):
        thread = threading.Thread(target=other)
        thread.start()
        with global_generator(2, CPU):
            thread.join(0.2)
            order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_device_that_is_not_here_is_named_and_replaced_by_the_cpu():
    assert available_device("cpu") == available_device(CPU) == CPU
    for missing in ("cuda:97", "hpu"):
        with pytest.warns(
            UserWarning, match=f"fitted on '{missing}', which is not available here: loading it on the CPU"
        ):
            assert available_device(missing) == CPU
