"""VAEs: the contract and the two built-in networks; see `sk_avae.model.vae`."""

from .model.vae import (
    MLPVAE,
    MODULES,
    ConvVAE,
    EvenLinear,
    check_methods,
    check_shapes,
    fused,
)

__all__ = [
    "ConvVAE",
    "EvenLinear",
    "MLPVAE",
    "MODULES",
    "check_methods",
    "check_shapes",
    "fused",
]
