"""The critic's network: any image shape, a score per image that is its own, and its scale."""

import pytest
import torch
from torch import nn

from sk_avae.model.critic import Critic


def critic_of(shape, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(shape).eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 1, 1), (2, 9, 33), (1, 64, 8), (1, 1, 9)], ids=str)
def test_an_image_of_any_shape_has_a_score_of_its_own_to_the_bit(shape):
    critic, images = critic_of(shape), torch.rand(40, *shape, generator=torch.Generator().manual_seed(0))
    scores = critic(images)
    assert scores.shape == (40,)
    assert len(scores.unique()) == 40
    for rows in (slice(0, 16), slice(5, 37), slice(20, 36)):
        assert torch.equal(critic(images[rows]), scores[rows])


def test_the_scale_multiplies_the_scores_and_travels_with_the_weights_but_is_not_trained():
    critic, images = critic_of((1, 8, 8)), torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = critic(images)
    assert critic.scale.item() == 1
    critic.scale.fill_(3.0)
    torch.testing.assert_close(critic(images), 3 * before)
    other = critic_of((1, 8, 8), seed=1)
    other.load_state_dict(critic.state_dict())
    assert torch.equal(other(images), critic(images))
    assert "scale" not in dict(critic.named_parameters())


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 33)], ids=str)
def test_each_convolution_halves_the_sides_rounded_up_and_the_first_is_the_widest(shape):
    critic, sizes = critic_of(shape), []
    for layer in critic.layers:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, given, out: sizes.append(tuple(out.shape[1:])))
    critic(torch.zeros(1, *shape))
    height, width = (side // critic.pooling for side in shape[1:])
    for channels, h, w in sizes:
        height, width = -(-height // 2), -(-width // 2)
        assert (h, w) == (height, width)
        assert channels * h * w <= critic.widest
    assert critic.widest == sizes[0][0] * sizes[0][1] * sizes[0][2]
    assert len(sizes) == 3


@pytest.mark.parametrize(("side", "pooling"), [(8, 1), (27, 1), (28, 2), (32, 2), (64, 4), (128, 9)])
def test_large_images_are_pooled_to_about_fourteen_pixels_a_side(side, pooling):
    critic = critic_of((1, side, side))
    assert critic.pooling == pooling
    images = torch.rand(16, 1, side, side, generator=torch.Generator().manual_seed(0))
    small = nn.functional.avg_pool2d(images, pooling)
    assert torch.equal(critic(images), critic.layers(small)[:, 0])


def test_training_drops_hidden_values_and_evaluation_does_not():
    critic, images = critic_of((1, 16, 16)), torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(critic(images), critic(images))
    norms = [layer for layer in critic.layers if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 3
    with torch.random.fork_rng(devices=[]):
        critic.train()
        for norm in norms:
            norm.eval()
        assert not torch.equal(critic(images), critic(images))
