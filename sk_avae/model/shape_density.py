r"""The density of canonical images: what the moments of their ink alone say of the pose.

An image's centroid and covariance are known at every pose at once: with the linear part L and the shift t of the
transform from canonical to input coordinates,

.. math:: c' = L^{-1} (c - t), \quad C' = L^{-1} C L^{-T}.

Of training images in their canonical pose these have a density, a mixture of normal distributions. It takes part in the
search as a prior does, next to the ELBO, to which a digit that lies flat and wide may be as likely as an upright one.

References
----------
Hu (1962), "Visual pattern recognition by moment invariants"; Arsigny, Fillard, Pennec & Ayache (2006), "Log-Euclidean
metrics for fast and simple calculus on diffusion tensors".
"""

import torch
from torch import Tensor, nn

from .affine import invert
from .moments import Moments

N_FEATURES = 5
N_COMPONENTS = 8
# What a nat of it counts next to one of the ELBO.
_WEIGHT = 3.0
# No ink is thinner than a hundredth of the half height; eigenvalues are never quite alike, where their logarithms'
# slope would be 0 / 0.
_THINNEST = 1e-4
_APART = 1e-12
_NOTHING = -1e9


def canonical_features(moments: Moments, matrix: Tensor, aspect: float) -> Tensor:
    """Return features of canonical images without making these: their centroids and logarithms of their covariances.

    Parameters
    ----------
    moments : Moments
        Of the images as they came, see `moments.exact_moments`.
    matrix : Tensor of shape (n, 2, 3)
        From canonical to input coordinates.
    aspect : float
        Width over height.

    Returns
    -------
    features : Tensor of shape (n, 5), float64
    """
    inverse = invert(matrix.double())
    half_heights = inverse.new_tensor([aspect, 1.0])
    linear = inverse[:, :, :2] * half_heights[:, None] / half_heights
    centroid = (linear @ moments.centroid[:, :, None])[:, :, 0] + inverse[:, :, 2] * half_heights
    covariance = linear @ moments.covariance @ linear.transpose(1, 2)
    return torch.cat([centroid, _logarithm(covariance)], dim=1)


def _logarithm(covariance: Tensor) -> Tensor:
    """Return xx, yy and xy of the matrix logarithms of covariances of shape (n, 2, 2), in closed form."""
    xx, yy, xy = covariance[:, 0, 0] + _THINNEST, covariance[:, 1, 1] + _THINNEST, covariance[:, 0, 1]
    half = (xx + yy) / 2
    away = (((xx - yy) / 2).square() + xy.square() + _APART).sqrt()
    low, high = (half - away).clamp(min=_THINNEST / 2).log(), (half + away).log()
    mean, slope = (low + high) / 2, (high - low) / (2 * away)
    return torch.stack([mean + slope * (xx - half), mean + slope * (yy - half), slope * xy], dim=1)


class ShapeDensity(nn.Module):
    """A mixture of normal distributions of `canonical_features`; of anything alike until it is given one.

    Examples
    --------
    >>> moments = Moments(torch.zeros(1, 2, dtype=torch.double), 0.1 * torch.eye(2, dtype=torch.double)[None])
    >>> features = canonical_features(moments, torch.eye(2, 3)[None], 1.0)
    >>> ShapeDensity()(features).shape
    torch.Size([1])
    """

    mean: Tensor
    root: Tensor
    log_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(N_COMPONENTS, N_FEATURES, dtype=torch.float32))
        self.register_buffer("root", torch.zeros(N_COMPONENTS, N_FEATURES, N_FEATURES, dtype=torch.float32))
        self.register_buffer("log_weight", torch.zeros(N_COMPONENTS, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Return the weighted log density up to a constant, of shape (n,), in double precision."""
        mean, root = self.mean.double(), self.root.double()
        # (features - mean) @ root as one product for all components.
        projected = (features @ root.transpose(0, 1).flatten(1)).view(-1, N_COMPONENTS, N_FEATURES)
        distance = (projected - (mean[:, None] @ root)[:, 0]).square().sum(dim=2)
        log_density: Tensor = (self.log_weight - 0.5 * distance).logsumexp(dim=1)
        return _WEIGHT * log_density

    def set_mixture(self, weights: Tensor, means: Tensor, roots: Tensor) -> None:
        """Take up a mixture of at most `N_COMPONENTS`; those that are missing weigh nothing.

        Parameters
        ----------
        weights : Tensor of shape (k,)
        means : Tensor of shape (k, 5)
        roots : Tensor of shape (k, 5, 5)
            Cholesky factors of the precisions, lower times upper.
        """
        k = len(weights)
        self.mean[:k], self.root[:k] = means, roots
        log_weight = weights.log() + roots.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        self.log_weight.fill_(_NOTHING)
        self.log_weight[:k] = log_weight - log_weight.max()
