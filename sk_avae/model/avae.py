r"""The AVAE: a VAE between an affine layer and its inverse, with a prior on the pose.

.. math:: \text{ELBO}(x; \alpha) = \text{ELBO}(x; A_\alpha^{-1} \circ \text{decoder} \circ \text{encoder}
          \circ A_\alpha)

References
----------
Bidart & Wong (2019), "Affine Variational Autoencoders", figure 2, equations 1 and 2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import prior
from .affine import invert, to_matrix, warp
from .batches import images_per_batch, in_batches
from .likelihoods import kl_divergence
from .moments import Moments, exact_moments
from .shape_density import canonical_features

# Images that vary by less of the fitted range are taken to be constant.
LEAST_CONTRAST = 1e-3


@dataclass(frozen=True)
class AVAE:
    """A VAE between an affine layer and its inverse (figure 2 of the paper), with a prior on the pose.

    Parameters
    ----------
    vae : nn.Module
        Has `encode` and `decode`; in evaluation mode while images are aligned.
    likelihood : nn.Module
        Reads what the decoder puts out.
    family : str
        Which parameters alpha has.
    background : Tensor of shape (n_channels,)
        Pixel value outside the frame.
    scale : tuple of float
        The prior's standard deviations, see `prior_scale`.
    padding : {"background", "border", "reflect"}, default="background"
        What lies outside the frame, see `affine.warp`.
    critic : nn.Module or None, default=None
        Scores canonical images, in nats; see `critic.Critic`. It has a say in which restarts are refined and in which
        of the refined poses is best; ELBO and prior alone decide where these lie.
    density : nn.Module or None, default=None
        Log density of what canonical images look like, a part of the prior; see `shape_density.ShapeDensity`.
    """

    vae: nn.Module
    likelihood: nn.Module
    family: str
    background: Tensor
    scale: tuple[float, ...]
    padding: str = "background"
    critic: nn.Module | None = None
    density: nn.Module | None = None

    def matrix(self, alpha: Tensor, images: Tensor) -> Tensor:
        """Return the matrices, of shape (n, 2, 3), of poses of images."""
        return to_matrix(alpha, self.family, aspect=images.shape[3] / images.shape[2])

    def canonical(self, images: Tensor, matrix: Tensor) -> Tensor:
        """Apply the first affine layer: images in the canonical pose."""
        return warp(images, matrix, background=self.background, padding=self.padding)

    def encode(self, images: Tensor, matrix: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Apply the first affine layer and the encoder: mean and log variance, each (n, latent_size)."""
        return self.vae.encode(images if matrix is None else self.canonical(images, matrix))  # type: ignore[operator]

    def decode(self, z: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Apply the decoder and the last affine layer: the likelihood's parameters in the input's pose."""
        parameters = self.vae.decode(z)  # type: ignore[operator]
        if matrix is None:
            return parameters
        fill = self.likelihood.fill(self.background)  # type: ignore[operator]
        return warp(parameters, invert(matrix), background=fill, padding=self.padding)

    def elbo(
        self,
        images: Tensor,
        alpha: Tensor | None = None,
        noise: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Tensor:
        """Return the ELBO of each image, in nats, taken in the input frame.

        Parameters
        ----------
        images : Tensor of shape (n, n_channels, height, width)
        alpha : Tensor of shape (n, n_params) or None
            Poses; None is the plain VAE, without warps.
        noise : Tensor of shape (n, latent_size) or None
            Standard normal noise for a sampled z; None takes the posterior mean: a score must be
            deterministic.
        observed : Tensor of bool of the shape of the images, or None
            Which pixels are known: the likelihood is of these alone. None knows all.

        Returns
        -------
        elbo : Tensor of shape (n,)

        References
        ----------
        Bidart & Wong (2019), equations 1 and 2.
        """
        matrix = None if alpha is None else self.matrix(alpha, images)
        mean, log_var = self.encode(images, matrix)
        z = mean if noise is None else mean + noise * (0.5 * log_var).exp()
        parameters = self.decode(z, matrix)
        log_prob = (
            self.likelihood.log_prob(images, parameters)  # type: ignore[operator]
            if observed is None
            else self._log_prob_of(images, parameters, observed)
        )
        return log_prob - kl_divergence(mean, log_var)

    def _log_prob_of(self, images: Tensor, parameters: Tensor, observed: Tensor) -> Tensor:
        """Return the log-probability of the pixels that are known.

        A likelihood sums over all pixels. The others show the background for certain, and what that adds is taken off:
        nothing of an image that is known whole, which keeps its bits beside others.
        """
        likelihood, n_pixels = self.likelihood, images[0].numel()
        ground = self.background.view(1, -1, 1, 1).to(images).expand_as(images)
        certain = likelihood.fill(self.background).view(1, -1, 1, 1).to(images).expand_as(images)  # type: ignore[operator]
        found = likelihood.log_prob(  # type: ignore[operator]
            torch.where(observed, images, ground), torch.where(observed, parameters, certain)
        )
        n_unknown = (~observed).flatten(1).sum(dim=1)
        return found - likelihood.log_prob(ground, certain) * (n_unknown / n_pixels)  # type: ignore[operator, no-any-return]

    def log_prior(self, alpha: Tensor) -> Tensor:
        """Return the log-density of poses up to a constant, of shape (n,); see `prior.log_prior`."""
        return prior.log_prior(alpha, self.family, self.scale)

    def log_prior_of(self, images: Tensor, alpha: Tensor, moments: Moments | None) -> Tensor:
        """Return the log prior of the poses of images, of shape (n,): of their parameters, and of what they leave."""
        log_prior = self.log_prior(alpha)
        if self.density is None or moments is None:
            return log_prior
        features = canonical_features(moments, self.matrix(alpha, images), images.shape[3] / images.shape[2])
        return log_prior + self.density(features).to(log_prior)

    def moments(self, images: Tensor) -> Moments | None:
        """Return what the density has to know of images, once for all their poses; None without one."""
        return None if self.density is None else exact_moments(images, self.background)

    def critic_score(self, images: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return what the critic says of the canonical images, in nats, of shape (n,); 0 without one."""
        if self.critic is None:
            return images.new_zeros(len(images))
        if alpha is not None:
            images = self.canonical(images, self.matrix(alpha, images))
        return self.critic(images)  # type: ignore[no-any-return]


def is_constant(images: Tensor) -> Tensor:
    """Tell which images, scaled to [0, 1], of shape (n, C, H, W), have one value per channel, and so no pose.

    What varies by less than the smallest scale of a pixel is rounding or noise.
    """
    channels = images.flatten(2)
    return (channels.amax(dim=2) - channels.amin(dim=2) < LEAST_CONTRAST).all(dim=1)


def canonical_images(model: AVAE, images: Tensor, alpha: Tensor) -> Tensor:
    """Return images of shape (n, n_channels, height, width) without their poses, of shape (n, n_params).

    Images at the identity keep their pixels, bit by bit.
    """
    canonical = in_batches(
        lambda some, pose: model.canonical(some, model.matrix(pose, some)), images_per_batch(images), images, alpha
    )
    return torch.where(alpha.any(dim=1)[:, None, None, None], canonical, images)


def with_gaps_explained(model: AVAE, images: Tensor, observed: Tensor, alpha: Tensor) -> Tensor:
    """Return images whose missing pixels are what the model expects there, given their poses.

    Parameters
    ----------
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
        Their gaps filled somehow.
    observed : Tensor of bool of shape (n, n_channels, height, width)
    alpha : Tensor of shape (n, n_params)
    """

    def expected(some: Tensor, pose: Tensor) -> Tensor:
        matrix = model.matrix(pose, some)
        return model.likelihood.mean(model.decode(model.encode(some, matrix)[0], matrix))  # type: ignore[operator, no-any-return]

    return torch.where(observed, images, in_batches(expected, images_per_batch(images, model.vae), images, alpha))
