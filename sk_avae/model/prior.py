"""The prior of the pose parameters: Gaussian, von Mises on the angle, flat or frozen."""

import math
from collections.abc import Mapping
from numbers import Real

from torch import Tensor, tensor, where

from .affine import REFLECTED, parameters_of, without_reflection

# Standard deviations of the default prior: radians, natural logarithms, slopes, half sides. The angle is
# flat: nothing is known about it.
DEFAULT_PRIOR = {
    "angle": math.inf,
    "log_scale": 0.2,
    "log_scale_x": 0.2,
    "log_scale_y": 0.2,
    "shear": 0.2,
    "tx": 0.5,
    "ty": 0.5,
    REFLECTED: math.inf,
}
# A prior narrower than this is as good as frozen, and its precision would not fit float32.
_FROZEN = 1e-6


def prior_scale(alpha_prior: str | Mapping[str, float] | None, family: str) -> tuple[float, ...]:
    """Return the standard deviation of the prior of each parameter of a family.

    Parameters
    ----------
    alpha_prior : "auto", mapping or None
        "auto" is `DEFAULT_PRIOR`; None is flat everywhere (the paper's); a mapping from names to standard
        deviations replaces single defaults, where 0 freezes a parameter at 0 and infinity makes it flat. That
        of an angle is a von Mises distribution's, ``kappa = 1 / sd ** 2``.
    family : str
        The family whose parameters are meant.

    Returns
    -------
    scale : tuple of float
        One per parameter; ``inf`` is flat, 0 frozen.

    Raises
    ------
    ValueError
        If a name is no parameter of the family or a value is negative or not a number.

    Examples
    --------
    >>> prior_scale({"tx": 0}, "rigid")
    (inf, 0.0, 0.5)
    """
    names = parameters_of(family)
    own = [name for name in names if name != REFLECTED]
    if alpha_prior is None:
        return (math.inf,) * len(names)
    if alpha_prior == "auto":
        alpha_prior = {}
    if not isinstance(alpha_prior, Mapping):
        raise ValueError(f"alpha_prior must be 'auto', None or a dict, got {alpha_prior!r}.")
    unknown = sorted(set(alpha_prior) - set(own))
    if unknown:
        raise ValueError(f"alpha_prior names {unknown}, but the family {without_reflection(family)!r} has {own}.")
    for name, value in alpha_prior.items():
        if not isinstance(value, Real) or not value >= 0:
            raise ValueError(f"alpha_prior[{name!r}] must be a standard deviation >= 0, got {value!r}.")
    scale = [float(alpha_prior.get(name, DEFAULT_PRIOR[name])) for name in names]
    return tuple(0.0 if value < _FROZEN else value for value in scale)


def is_free(family: str, scale: tuple[float, ...]) -> bool:
    """Tell whether a prior with these deviations lets any parameter move; a reflection alone is none."""
    return any(s for name, s in zip(parameters_of(family), scale, strict=True) if name != REFLECTED)


def log_prior(alpha: Tensor, family: str, scale: tuple[float, ...]) -> Tensor:
    """Return the log-density of poses up to a constant, of shape (n,); 0 at the identity.

    Gaussian, and von Mises on an angle: there the distance is a chord of the circle.

    Parameters
    ----------
    alpha : Tensor of shape (n, n_params)
    family : str
    scale : tuple of float
        See `prior_scale`.
    """
    precision = [0.0 if s == 0 else s**-2 for s in scale]
    names = parameters_of(family)
    if any(name == "angle" and p for name, p in zip(names, precision, strict=True)):
        angles = tensor([name == "angle" for name in names], device=alpha.device)
        alpha = where(angles, 2 * (alpha / 2).sin(), alpha)
    return -0.5 * (alpha.square() * alpha.new_tensor(precision)).sum(dim=1)
