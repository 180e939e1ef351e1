r"""Likelihoods of images and the KL divergence: the terms of the evidence lower bound (ELBO).

.. math:: \text{ELBO}(x) = E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \,\|\, N(0, I))

A likelihood reads the parameters that a decoder puts out, one per pixel, gives the log-probability of an
image in nats and says what those parameters are outside the frame, so that a reconstruction can be warped
*as parameters* and compared with the input where the input lives. Everything here keeps the leading axis:
one number per image.

References
----------
Kingma & Welling (2013), "Auto-Encoding Variational Bayes", equation 10 and appendix B (the KL divergence);
Bidart & Wong (2019), equation 1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Logit of a background pixel that is exactly 0 or 1: a probability of about 3e-4 of being wrong.
_LARGEST_LOGIT = 8.0


def _sigmoid(logits: Tensor) -> Tensor:
    """Return the probabilities of log-odds.

    By way of tanh: `torch.sigmoid` rounds differently at the end of a block, so that an image's last bits would
    depend on how many others are in it.
    """
    return 0.5 * (1 + torch.tanh(0.5 * logits))


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits, per pixel, with a gradient that does not depend on the place in the block."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, images: Tensor) -> Tensor:
        ctx.save_for_backward(logits, images)
        return F.binary_cross_entropy_with_logits(logits, images, reduction="none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, images = ctx.saved_tensors
        return (_sigmoid(logits) - images) * gradient, None


def _logit(probability: Tensor) -> Tensor:
    """Return the log-odds of probabilities, bounded so that a certain background stays finite."""
    return torch.logit(probability.double().clamp(0, 1)).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).to(probability.dtype)


class Bernoulli(nn.Module):
    """Pixels in [0, 1] as probabilities; the decoder puts out logits.

    The log-probability is the negative cross-entropy, which for pixels strictly between 0 and 1 is the usual
    convention for grey images.

    Examples
    --------
    >>> Bernoulli().log_prob(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    tensor([-2.7726])
    """

    support = (0.0, 1.0)
    # A probability mass: it does not depend on the units of the pixels.
    is_density = False

    def log_prob(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the log-probability of each image, summed over pixels, in nats, of shape (n,)."""
        loss: Tensor = _CrossEntropy.apply(parameters, images)  # type: ignore[no-untyped-call]
        return -loss.flatten(1).sum(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected image."""
        return _sigmoid(parameters)

    def fill(self, background: Tensor) -> Tensor:
        """Return the parameters, of shape (n_channels,), of pixels that show the background."""
        return _logit(background)


class Gaussian(nn.Module):
    """Pixels with normal noise of one scale for all of them.

    Parameters
    ----------
    scale : float or None, default=None
        Standard deviation of a pixel in the model's units; None learns it. ``0.5 ** 0.5`` makes the
        log-probability the negative sum of squares of the paper (less a constant).
    mean : {"identity", "sigmoid"}, default="identity"
        What turns the decoder's output into the mean of a pixel.

    Raises
    ------
    ValueError
        If `scale` is not positive or `mean` is unknown.

    Examples
    --------
    >>> Gaussian(scale=1.0).log_prob(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    tensor([-0.9189])
    """

    support = (-math.inf, math.inf)
    is_density = True

    # A smaller scale than this would let a constant pixel make the density infinite.
    _smallest_log_scale = math.log(1e-3)

    def __init__(self, scale: float | None = None, mean: str = "identity") -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive or None (learned), got {scale!r}.")
        if mean not in ("identity", "sigmoid"):
            raise ValueError(f"mean must be 'identity' or 'sigmoid', got {mean!r}.")
        self.scale = scale
        self.mean_link = mean
        log_scale = torch.tensor(math.log(0.3 if scale is None else scale))
        if scale is None:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def extra_repr(self) -> str:
        """Return the scale for the module's repr."""
        return f"scale={float(self.log_scale.exp()):.3g}, mean={self.mean_link!r}"

    def log_prob(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the log-density of each image, summed over pixels, in nats, of shape (n,)."""
        log_scale = self.log_scale.clamp(min=self._smallest_log_scale)
        squares = ((images - self.mean(parameters)) * (-log_scale).exp()).square()
        n_pixels = images[0].numel()
        return -0.5 * squares.flatten(1).sum(dim=1) - n_pixels * (log_scale + 0.5 * math.log(2 * math.pi))

    def mean(self, parameters: Tensor) -> Tensor:
        """Return the expected image."""
        return _sigmoid(parameters) if self.mean_link == "sigmoid" else parameters

    def fill(self, background: Tensor) -> Tensor:
        """Return the parameters, of shape (n_channels,), of pixels that show the background."""
        return _logit(background) if self.mean_link == "sigmoid" else background


LIKELIHOODS = {"bernoulli": Bernoulli, "gaussian": Gaussian}


def check_likelihood(likelihood: nn.Module) -> None:
    """Raise TypeError, naming what is missing, unless a module has the parts of a likelihood."""
    parts = ("log_prob", "mean", "fill", "support", "is_density")
    missing = [part for part in parts if not hasattr(likelihood, part)]
    if missing:
        raise TypeError(
            f"{type(likelihood).__name__} is not a likelihood. It must have {', '.join(parts)}. "
            f"Missing: {', '.join(missing)}."
        )


# Binary pixels score 0 on mean 4u(1 - u), uniform ones 2/3. Ink and silhouettes score up to .40, upright, turned or
# blurred by it, photographs .55 and more: no set is to change its likelihood by being turned.
_LARGEST_BERNOULLI_GREYNESS = 0.47


def likelihood_for(pixels: Tensor) -> str:
    """Choose the likelihood of pixels scaled to [0, 1].

    Pixels that are mostly near one of the two ends (ink on paper) are read as Bernoulli, others as Gaussian:
    the mean of ``4 u (1 - u)``, 0 for binary pixels and 2/3 for uniform ones, decides at 0.47.

    Parameters
    ----------
    pixels : Tensor
        Pixels of any shape; any outside [0, 1] makes it Gaussian.

    Returns
    -------
    name : {"bernoulli", "gaussian"}

    Examples
    --------
    >>> likelihood_for(torch.tensor([0.0, 0.0, 1.0, 0.1])), likelihood_for(torch.linspace(0, 1, 9))
    ('bernoulli', 'gaussian')
    """
    if float(pixels.min()) < 0 or float(pixels.max()) > 1:
        return "gaussian"
    greyness = float((4 * pixels * (1 - pixels)).mean())
    return "bernoulli" if greyness <= _LARGEST_BERNOULLI_GREYNESS else "gaussian"


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_var)) || N(0, I)) of each row, in nats.

    Parameters
    ----------
    mean, log_var : Tensor of shape (n, latent_size)
        Posterior means and log variances.

    Returns
    -------
    kl : Tensor of shape (n,)

    References
    ----------
    Kingma & Welling (2013), appendix B.

    Examples
    --------
    >>> kl_divergence(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    tensor([0.5000])
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=1)
