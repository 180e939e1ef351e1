"""The encode/decode contract, the two built-in networks, and the check of a user's own."""

import pytest
import torch
from torch import nn

from sk_avae.datasets import load_mnist_sample
from sk_avae.model.vae import MLPVAE, MODULES, ConvVAE, check_methods, check_shapes, fused

SHAPES = [(1, 28, 28), (3, 8, 8), (1, 8, 20), (3, 12, 16)]
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def seeded(module, *args, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(*args, **kwargs).eval()


@every_module
@pytest.mark.parametrize("image_shape", SHAPES, ids=str)
def test_contract(module, image_shape):
    vae = seeded(module, image_shape=image_shape, latent_size=5)
    check_methods(vae)
    assert check_shapes(vae, image_shape) == 5
    x = torch.rand(3, *image_shape, generator=torch.Generator().manual_seed(0))
    mean, log_var = vae.encode(x)
    assert mean.shape == log_var.shape == (3, 5)
    assert vae.decode(mean).shape == x.shape


@every_module
def test_mean_and_log_var_are_two_heads_that_depend_on_the_image(module):
    X, _ = load_mnist_sample("test")
    vae = seeded(module, image_shape=(1, 28, 28), latent_size=5)
    mean, log_var = vae.encode(torch.tensor(X[:4].reshape(4, 1, 28, 28) / 255.0).float())
    assert not torch.allclose(mean, log_var)
    for head in (mean, log_var):
        assert not torch.allclose(head[0], head[1])


@every_module
def test_decoder_puts_out_more_than_probabilities(module):
    # The sigmoid belongs to the likelihood: logits and Gaussian means are unbounded.
    vae = seeded(module, image_shape=(1, 28, 28), latent_size=5)
    parameters = vae.decode(50 * torch.eye(5))
    assert parameters.min() < 0


@every_module
def test_every_weight_is_trained(module):
    vae = seeded(module, image_shape=(1, 8, 8), latent_size=3)
    mean, log_var = vae.encode(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    (vae.decode(mean + log_var).square().sum() + mean.sum()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_mlp_widths_and_their_mirror():
    vae = MLPVAE((1, 4, 5), latent_size=3, hidden_layer_sizes=(11, 7))

    def widths(layers):
        return [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]

    assert widths(vae.encoder) == [(20, 11), (11, 7), (7, 6)]
    assert widths(vae.decoder) == [(3, 7), (7, 11), (11, 20)]
    assert isinstance(vae.encoder[-1], nn.Linear)
    assert isinstance(vae.decoder[-1], nn.Linear)


def test_mlp_without_hidden_layers_is_linear():
    vae = MLPVAE((1, 2, 2), latent_size=3, hidden_layer_sizes=())
    assert check_shapes(vae.eval(), (1, 2, 2)) == 3
    assert len(vae.encoder) == len(vae.decoder) == 1


def convolutions(layers):
    """Return (type, in, out, kernel, stride, padding, output_padding, bias) of each convolution."""
    return [
        (
            type(layer),
            layer.in_channels,
            layer.out_channels,
            *(size[0] for size in (layer.kernel_size, layer.stride, layer.padding, layer.output_padding)),
            layer.bias is not None,
        )
        for layer in layers
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]


def test_conv_has_the_papers_layers():
    vae = ConvVAE((1, 40, 40), latent_size=8)
    down, up = nn.Conv2d, nn.ConvTranspose2d
    assert convolutions(vae.encoder) == [
        (down, 1, 32, 5, 1, 2, 0, False),
        (down, 32, 32, 4, 2, 1, 0, False),
        (down, 32, 64, 3, 2, 1, 0, False),
        (down, 64, 16, 5, 1, 2, 0, True),
    ]
    assert convolutions(vae.decoder) == [
        (up, 16, 32, 4, 1, 2, 0, False),
        (up, 32, 16, 5, 2, 1, 1, False),
        (up, 16, 16, 5, 2, 2, 1, False),
        (up, 16, 1, 3, 1, 1, 0, True),
    ]
    for layers, convolution in [(vae.encoder, down), (vae.decoder, up)]:
        kinds = [type(layer) for layer in layers if not isinstance(layer, nn.Flatten)]
        assert kinds == [convolution, nn.BatchNorm2d, nn.ELU] * 3 + [convolution]
    heads = [(head.in_features, head.out_features) for head in (vae.mean, vae.log_var, vae.expand)]
    assert heads == [(1600, 8), (1600, 8), (8, 1600)]


@pytest.mark.parametrize("sides", [(28, 30), (27, 28), (4, 8), (8, 4), (1, 64)])
def test_conv_refuses_sides_that_do_not_fit(sides):
    with pytest.raises(ValueError, match=rf"divisible by 4 and at least 8, got {sides[0]}x{sides[1]}.*`pad`"):
        ConvVAE((1, *sides), latent_size=2)


# ---------------------------------------------------------------- a user's module


class Complete(nn.Module):
    """Two latent variables for images of 3 x 4."""

    def encode(self, x):
        return x.flatten(1)[:, :2], x.flatten(1)[:, 2:4]

    def decode(self, z):
        return z.sum(dim=1)[:, None, None, None].expand(-1, 1, 3, 4)


def variant(**methods):
    return type("Mine", (Complete,), methods)()


class Neither(nn.Module):
    pass


class NoDecode(nn.Module):
    def encode(self, x):
        return x, x


class EncodeIsNoMethod(Complete):
    encode = None


def test_a_module_without_parameters_may_be_complete():
    check_methods(Complete())
    check_methods(Complete)
    assert check_shapes(Complete(), (1, 3, 4)) == 2


@pytest.mark.parametrize(
    ("module", "missing"),
    [(Neither, "`encode` and `decode`"), (NoDecode, "`decode`"), (EncodeIsNoMethod, "`encode`")],
)
def test_missing_methods_are_named(module, missing):
    for given in (module, module()):
        with pytest.raises(TypeError, match=rf"^{module.__name__} is not an AVAE module.*Missing: {missing}\.$"):
            check_methods(given)


@pytest.mark.parametrize("thing", [3, object(), dict, lambda: None])
def test_what_is_no_torch_module_is_refused(thing):
    with pytest.raises(TypeError, match=r"is not an AVAE module\. It must be a torch\.nn\.Module"):
        check_methods(thing)


BAD = {
    "encode returns a tensor": ({"encode": lambda self, x: x}, r"Mine\.encode must return the pair.*got Tensor"),
    "encode returns three": ({"encode": lambda self, x: (x, x, x)}, r"must return the pair.*got tuple"),
    "a row is lost": ({"encode": lambda self, x: (x[:1, 0, 0], x[:1, 0, 0])}, r"n=2 it returned \(1, 4\) and \(1, 4\)"),
    "heads differ": ({"encode": lambda self, x: (x[:, 0, 0], x[:, 0, 0, :3])}, r"returned \(2, 4\) and \(2, 3\)"),
    "mean is no matrix": ({"encode": lambda self, x: (x.view(2, 3, -1),) * 2}, r"of shape \(n, latent_size\)"),
    "decode loses a pixel": (
        {"decode": lambda self, z: Complete.decode(self, z).flatten(1)[:, 1:]},
        r"Mine\.decode must return the shape of its images, \(n, channels, height, width\) = \(2, 1, 3, 4\), got "
        r"\(2, 11\)\. image_shape is \(height, width, channels\)",
    ),
    "decode returns a pair": ({"decode": lambda self, z: (z, z)}, r"got tuple"),
}


@pytest.mark.parametrize(("methods", "message"), BAD.values(), ids=BAD)
def test_wrong_shapes_are_named(methods, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(variant(**methods), (1, 3, 4))


def test_the_check_runs_in_the_modules_own_precision_and_leaves_no_gradient():
    vae = seeded(MLPVAE, (1, 4, 4), latent_size=2).double()
    assert check_shapes(vae, (1, 4, 4)) == 2
    assert all(parameter.grad is None for parameter in vae.parameters())


def seasoned(vae):
    """Return a network whose batch norms have statistics of their own."""
    generator = torch.Generator().manual_seed(0)
    for layer in vae.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.weight.data, layer.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return vae.eval()


def test_a_fused_network_computes_the_same():
    vae = seasoned(ConvVAE((1, 28, 28), 8))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    quick = fused(vae)
    images = torch.tensor(load_mnist_sample("test")[0][:20]).view(-1, 1, 28, 28) / 255
    with torch.no_grad():
        for own, expected in zip(quick.encode(images), vae.encode(images), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
        z = vae.encode(images)[0]
        torch.testing.assert_close(quick.decode(z), vae.decode(z), rtol=1e-4, atol=1e-3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in quick.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def test_a_network_without_convolutions_is_not_copied():
    vae = MLPVAE((1, 8, 8), 3).eval()
    assert fused(vae) is vae


class Own(ConvVAE):
    """A user's network, of which nothing is known."""


def test_networks_of_others_and_with_hooks_are_left_alone():
    for vae in (Own((1, 28, 28), 8).eval(), ConvVAE((1, 28, 28), 8)):
        assert fused(vae) is vae
    watched = ConvVAE((1, 28, 28), 8).eval()
    watched.encoder[0].register_forward_hook(lambda *_: None)
    assert fused(watched) is watched
