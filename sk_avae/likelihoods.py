"""Likelihoods of pixels; see `sk_avae.model.likelihoods`."""

from .model.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Gaussian,
    check_likelihood,
    kl_divergence,
    likelihood_for,
)

__all__ = [
    "Bernoulli",
    "Gaussian",
    "LIKELIHOODS",
    "check_likelihood",
    "kl_divergence",
    "likelihood_for",
]
