"""Variational autoencoders: the contract, the two built-in networks, and the check of a user's own.

The contract. A module of this package's kind has two methods and nothing else that is asked of it::

    encode(x) -> (mean, log_var)    x of shape (n, n_channels, height, width); both of shape (n, latent_size)
    decode(z) -> parameters         of the shape of x; logits for Bernoulli, means for Gaussian pixels

A module of somebody's own may take and give rows, of shape (n, n_channels * height * width), and probabilities for
logits: both are recognised, see `as_contracted` and `seems_to_give_probabilities`.

``log_var`` is the logarithm of the *variance*, for the sampler and for the KL divergence alike. A module
*class* is called as ``module(image_shape=(n_channels, height, width), latent_size=latent_size)``. It may say in an
attribute ``widest`` how many values its widest layer has for an image: wide networks are faster on fewer at once.

References
----------
Kingma & Welling (2013), "Auto-Encoding Variational Bayes"; Bidart & Wong (2019), appendix A.2 (`ConvVAE`),
after Schott et al. (2018).
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Matrix products whose sides are no multiple of this round a row by its place in the block on some processors.
_EVEN_WIDTH = 16
_LONGEST_SUM = 512

# A decoder's probability is taken to be this far from certain: a float32 that is exactly 1 would be infinitely wrong.
_LEAST_PROBABILITY = 1e-6


class EvenLinear(nn.Linear):
    """A fully connected layer that gives each row bits of its own.

    Widths are padded to multiples of 16, and wide products are taken in pieces: over more than 700 columns several
    threads share the sums of a small block, which rounds them otherwise than those of a large one, or one thread's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the product, of shape (n, out_features)."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.training:
            return F.linear(x, weight, bias)
        more_in, more_out = -self.in_features % _EVEN_WIDTH, -self.out_features % _EVEN_WIDTH
        if more_in or more_out:
            weight, bias = F.pad(weight, (0, more_in, 0, more_out)), F.pad(bias, (0, more_out))
            x = F.pad(x, (0, more_in))
        # The gradient sums over the other side.
        rows = _piece(len(weight))
        parts = zip(torch.split(weight, rows), torch.split(bias, rows), strict=True)
        return torch.cat([_summed_in_pieces(x, *part) for part in parts], dim=1)[:, : self.out_features]


def _piece(width: int) -> int:
    """Return the width of even pieces, multiples of 16, none of which is wider than `_LONGEST_SUM`."""
    n_pieces = -(-width // _LONGEST_SUM)
    return -(-width // (n_pieces * _EVEN_WIDTH)) * _EVEN_WIDTH


def _summed_in_pieces(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    columns = _piece(x.shape[1])
    first, *others = zip(torch.split(x, columns, dim=1), torch.split(weight, columns, dim=1), strict=True)
    total = F.linear(*first, bias)
    for some, weights in others:
        total = torch.addmm(total, some, weights.t())
    return total


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    """Return fully connected layers through `widths`, each but the last followed by an activation."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [EvenLinear(wide, narrow), nn.ReLU()]
    return layers[:-1]


class MLPVAE(nn.Module):
    """A VAE of fully connected layers; the default.

    Parameters
    ----------
    image_shape : tuple of int
        (n_channels, height, width).
    latent_size : int
        Number of latent variables.
    hidden_layer_sizes : sequence of int, default=(512, 256)
        Widths of the encoder's hidden layers; the decoder has them in reverse.

    Examples
    --------
    >>> vae = MLPVAE((1, 8, 8), latent_size=3)
    >>> mean, log_var = vae.encode(torch.zeros(2, 1, 8, 8))
    >>> mean.shape, vae.decode(mean).shape
    (torch.Size([2, 3]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        hidden_layer_sizes: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        n_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        hidden = list(hidden_layer_sizes)
        self.encoder = nn.Sequential(*_layers([n_pixels, *hidden, 2 * latent_size]))
        self.decoder = nn.Sequential(*_layers([latent_size, *hidden[::-1], n_pixels]))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior, each of shape (n, latent_size)."""
        mean, log_var = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Return the likelihood's parameters, of shape (n, n_channels, height, width)."""
        return self.decoder(z).view(-1, *self.image_shape)


# What both sides of `ConvVAE`'s images are multiples of.
CONV_MULTIPLE = 4


class ConvVAE(nn.Module):
    """The paper's convolutional VAE.

    Parameters
    ----------
    image_shape : tuple of int
        (n_channels, height, width), both sides divisible by 4 and at least 8.
    latent_size : int
        Number of latent variables.

    Raises
    ------
    ValueError
        If a side does not fit.

    References
    ----------
    Bidart & Wong (2019), appendix A.2. The closing sigmoid belongs to the likelihood here.

    Examples
    --------
    >>> vae = ConvVAE((1, 28, 28), latent_size=8)
    >>> vae.decode(torch.zeros(2, 8)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_size: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        if height % CONV_MULTIPLE or width % CONV_MULTIPLE or min(height, width) < 8:
            raise ValueError(
                f"ConvVAE needs image sides divisible by 4 and at least 8, got {height}x{width}. "
                f"Choose `pad` so that they are, or module='mlp'."
            )
        self.code_shape = (16, height // 4, width // 4)
        self.widest = 32 * height * width
        code_size = 16 * (height // 4) * (width // 4)
        self.encoder = nn.Sequential(
            *_block(nn.Conv2d(channels, 32, 5, stride=1, padding=2, bias=False)),
            *_block(nn.Conv2d(32, 32, 4, stride=2, padding=1, bias=False)),
            *_block(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)),
            nn.Conv2d(64, 16, 5, stride=1, padding=2),
            nn.Flatten(),
        )
        self.mean = EvenLinear(code_size, latent_size)
        self.log_var = EvenLinear(code_size, latent_size)
        self.expand = EvenLinear(latent_size, code_size)
        self.decoder = nn.Sequential(
            *_block(nn.ConvTranspose2d(16, 32, 4, stride=1, padding=2, bias=False)),
            *_block(nn.ConvTranspose2d(32, 16, 5, stride=2, padding=1, output_padding=1, bias=False)),
            *_block(nn.ConvTranspose2d(16, 16, 5, stride=2, padding=2, output_padding=1, bias=False)),
            nn.ConvTranspose2d(16, channels, 3, stride=1, padding=1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior, each of shape (n, latent_size)."""
        code = self.encoder(x)
        return self.mean(code), self.log_var(code)

    def decode(self, z: Tensor) -> Tensor:
        """Return the likelihood's parameters, of shape (n, n_channels, height, width)."""
        return self.decoder(self.expand(z).view(-1, *self.code_shape))


def _block(convolution: nn.Module) -> list[nn.Module]:
    """Return a convolution followed by batch norm and ELU."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ELU()]  # type: ignore[arg-type]


MODULES = {"mlp": MLPVAE, "conv": ConvVAE}


def fused(module: nn.Module) -> nn.Module:
    """Return a module that computes the same as a `ConvVAE` in evaluation mode, faster.

    Batch norms are folded into the convolutions before them, and the weights put into the memory format in which
    convolutions are fastest. Any other module comes back itself: what happens between its layers is its own affair.

    Parameters
    ----------
    module : nn.Module
        Stays as it is.

    Returns
    -------
    fused : nn.Module
        Equal up to rounding.
    """
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    if type(module) is not ConvVAE or module.training or hooked:
        return module
    module = copy.deepcopy(module)
    for layers in (module.encoder, module.decoder):
        for i, (layer, norm) in enumerate(pairwise(list(layers))):
            if isinstance(norm, nn.BatchNorm2d):
                transposed = isinstance(layer, nn.ConvTranspose2d)
                layers[i] = fuse_conv_bn_eval(layer, norm, transpose=transposed)  # type: ignore[type-var]
                layers[i + 1] = nn.Identity()
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def check_methods(module: object) -> None:
    """Raise TypeError, naming what is missing, unless `module` has the two methods of the contract."""
    name = module.__name__ if isinstance(module, type) else type(module).__name__
    is_module = issubclass(module, nn.Module) if isinstance(module, type) else isinstance(module, nn.Module)
    if not is_module:
        raise TypeError(
            f"{name} is not an AVAE module. It must be a torch.nn.Module (class or instance), "
            f"or one of {sorted(MODULES)}."
        )
    missing = [method for method in ("encode", "decode") if not callable(getattr(module, method, None))]
    if missing:
        raise TypeError(
            f"{name} is not an AVAE module. It must implement `encode(x) -> (mean, log_var)` and "
            f"`decode(z) -> parameters`. Missing: {' and '.join(f'`{m}`' for m in missing)}."
        )


def _answer(vae: nn.Module, method: str, x: Tensor) -> Any:
    """Return what a method of a module says; complaints about shapes become a ValueError that names it."""
    try:
        return getattr(vae, method)(x)
    except (RuntimeError, ValueError) as error:
        hint = (
            " Is image_shape (height, width, channels)? For images of another size say resolution=."
            if x.ndim == 4
            else ""
        )
        raise ValueError(
            f"{type(vae).__name__}.{method} takes no input of shape {tuple(x.shape)}: {error}.{hint}"
        ) from error


class ForeignVAE(nn.Module):
    """A VAE of somebody's own, seen as the contract has it: of images, with a decoder that puts out logits or means.

    Parameters
    ----------
    inner : nn.Module
        Its `decode` returns images or rows.
    image_shape : tuple of int
        (n_channels, height, width).
    takes_rows : bool
        Whether `encode` takes rows of shape (n, n_channels * height * width).
    gives_probabilities : bool
        Whether `decode` returns probabilities in the place of logits.
    """

    def __init__(
        self, inner: nn.Module, image_shape: tuple[int, int, int], *, takes_rows: bool, gives_probabilities: bool
    ) -> None:
        super().__init__()
        self.inner = inner
        self.image_shape = image_shape
        self.takes_rows = takes_rows
        self.gives_probabilities = gives_probabilities
        self.train(inner.training)

    def encode(self, x: Tensor) -> Any:
        """Return mean and log variance of the posterior, each of shape (n, latent_size)."""
        return self.inner.encode(x.flatten(1) if self.takes_rows else x)  # type: ignore[operator]

    def decode(self, z: Tensor) -> Any:
        """Return the likelihood's parameters, of shape (n, n_channels, height, width)."""
        parameters = self.inner.decode(z).view(-1, *self.image_shape)  # type: ignore[operator]
        if self.gives_probabilities:
            certain = parameters.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
            parameters = certain.log() - (-certain).log1p()
        return parameters


def inner_of(vae: nn.Module) -> nn.Module:
    """Return the module that a `ForeignVAE` is around, or a VAE itself."""
    return vae.inner if isinstance(vae, ForeignVAE) else vae


def as_contracted(vae: nn.Module, image_shape: tuple[int, int, int], decoder_output: str | None = None) -> nn.Module:
    """Return a VAE that fulfils the contract: itself, or one around it where it has rows or probabilities.

    Parameters
    ----------
    vae : nn.Module
        In evaluation mode.
    image_shape : tuple of int
        (n_channels, height, width).
    decoder_output : {"probabilities"} or None, default=None
        What it puts out, if no logits or means.
    """
    if type(vae) in MODULES.values() or isinstance(vae, ForeignVAE):
        return vae
    has_rows = _has_rows(vae, image_shape)
    gives_probabilities = decoder_output == "probabilities"
    if not any(has_rows) and not gives_probabilities:
        return vae
    return ForeignVAE(vae, image_shape, takes_rows=has_rows[0], gives_probabilities=gives_probabilities)


def _has_rows(vae: nn.Module, image_shape: tuple[int, int, int]) -> tuple[bool, bool]:
    """Tell whether a VAE takes rows of pixels, and gives them; one that takes neither rows nor images does not."""
    x = _blank(vae, image_shape)
    with torch.no_grad():
        for takes_rows in (False, True):
            try:
                mean, _ = vae.encode(x.flatten(1) if takes_rows else x)  # type: ignore[operator]
                decoded = vae.decode(mean)  # type: ignore[operator]
            except Exception:  # whatever it is that a module of somebody's own raises
                continue
            gives_rows = isinstance(decoded, Tensor) and decoded.shape == x.flatten(1).shape
            return takes_rows, gives_rows
    return False, False


def _blank(vae: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    parameter = next(vae.parameters(), torch.zeros((), dtype=torch.float32))
    return torch.zeros(2, *image_shape, dtype=parameter.dtype, device=parameter.device)


def seems_to_give_probabilities(vae: nn.Module, latent_size: int) -> bool:
    """Tell whether all that a decoder puts out lies within [0, 1], for latent variables of all sizes.

    Log-odds would hardly do so: none of their pixels would be more likely dark than bright, or certain.

    Parameters
    ----------
    vae : nn.Module
        In evaluation mode.
    latent_size : int
    """
    parameter = next(vae.parameters(), torch.zeros((), dtype=torch.float32))
    z = torch.randn(64, latent_size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    z = (z * torch.linspace(0, 3, 64, dtype=torch.float32)[:, None]).to(parameter)
    with torch.no_grad():
        decoded = vae.decode(z)  # type: ignore[operator]
    return bool(((decoded >= 0) & (decoded <= 1)).all()) and bool((decoded > 0).any())


def check_shapes(vae: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Run two blank images through a module and return its latent size.

    Parameters
    ----------
    vae : nn.Module
        A module that passed `check_methods`, in evaluation mode; one of rows is seen as by `as_contracted`.
    image_shape : tuple of int
        (n_channels, height, width).

    Returns
    -------
    latent_size : int

    Raises
    ------
    ValueError
        If the module takes no images of this shape, or what it returns does not have the shapes of the contract.
    """
    name = type(vae).__name__
    vae = as_contracted(vae, image_shape)
    x = _blank(vae, image_shape)
    with torch.no_grad():
        encoded = _answer(vae, "encode", x)
        if not (isinstance(encoded, tuple) and len(encoded) == 2):
            raise ValueError(f"{name}.encode must return the pair (mean, log_var), got {type(encoded).__name__}.")
        mean, log_var = encoded
        if mean.ndim != 2 or mean.shape[0] != 2 or mean.shape != log_var.shape:
            raise ValueError(
                f"{name}.encode must return mean and log_var, both of shape (n, latent_size); for n=2 it "
                f"returned {tuple(mean.shape)} and {tuple(log_var.shape)}."
            )
        decoded = _answer(vae, "decode", mean)
    if not isinstance(decoded, Tensor) or decoded.shape != x.shape:
        got = tuple(decoded.shape) if isinstance(decoded, Tensor) else type(decoded).__name__
        raise ValueError(
            f"{name}.decode must return the shape of its images, (n, channels, height, width) = {tuple(x.shape)}, got "
            f"{got}. image_shape is (height, width, channels), the channels last."
        )
    return mean.shape[1]
