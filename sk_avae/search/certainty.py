"""How certain a pose is: weights of hypotheses, and standard deviations from the curvature of the loss.

References
----------
MacKay (2003), "Information Theory, Inference, and Learning Algorithms", chapter 27 (Laplace's approximation).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.affine import REFLECTED, parameters_of, wrap_angle
from .objective import Objective, step_units

# The part of such a distance over which curvature is taken, and the deviation of parameters (1 but for these) of which
# neither ELBO nor prior say anything: an angle is then uniform on the circle.
_CURVATURE_STEP = 0.5
_FLATTEST = 1.0  # nats per squared unit: no typical curvature is weaker
_WIDEST = {"angle": math.pi / math.sqrt(3)}
_SURELY = 0.999

# A pose is called right if each parameter is so near to the true one: 20 degrees, a third in scale, a tenth of a side.
NEAR = {
    "angle": math.radians(20),
    "log_scale": 0.3,
    "log_scale_x": 0.3,
    "log_scale_y": 0.3,
    "shear": 0.3,
    "tx": 0.2,
    "ty": 0.2,
    REFLECTED: 0.5,
}


def hypothesis_weights(score: Tensor, duplicate: Tensor, none_right: float = -math.inf) -> Tensor:
    """Return probabilities of hypotheses from energies of shape (n, k) in units of the temperature, best first.

    What they lack to 1 is the probability that none is right, whose log-odds against the first are `none_right`.
    """
    below = (score - score[:, :1]).nan_to_num(nan=-math.inf).masked_fill(duplicate, -math.inf)
    below[:, 0] = 0.0
    if none_right == -math.inf:
        return below.softmax(dim=1)
    return F.pad(below, (0, 1), value=none_right).softmax(dim=1)[:, :-1]


def curvature(objective: Objective, alpha: Tensor) -> Tensor:
    """Return the Hessians of -(ELBO + log prior) at poses, of shape (n, n_free, n_free), in units of `step_units`.

    Central differences of the gradient, over steps in which the kinks of the interpolation average out.

    Parameters
    ----------
    objective : Objective
    alpha : Tensor of shape (n, n_params)

    Returns
    -------
    hessian : Tensor of shape (n, n_free, n_free), float64
        Over the parameters that are not frozen.
    """
    unit = step_units(objective.model, alpha)
    free = unit.nonzero()[:, 0].tolist()
    evaluate = objective.loss_and_gradient
    rows = torch.arange(len(alpha), device=alpha.device)
    columns = []
    for i in free:
        step = torch.zeros_like(alpha[:1])
        step[0, i] = unit[i] * _CURVATURE_STEP
        change = evaluate(rows, alpha + step)[1] - evaluate(rows, alpha - step)[1]
        columns.append((change[:, free] * unit[free] / (2 * _CURVATURE_STEP)).nan_to_num())
    hessian = torch.stack(columns, dim=2).double()
    return (hessian + hessian.transpose(1, 2)) / 2


def typical_metric(objective: Objective) -> Tensor:
    """Return the inverse Hessian that refinement begins with, of shape (n_params, n_params): that of canonical images.

    The geometric mean (of matrices: the mean of logarithms) of the images' own at the identity, in which those of
    strong and of weak curvature have equal say; 0 for frozen parameters.
    """
    model, images = objective.model, objective.images
    alpha = images.new_zeros(len(images), len(parameters_of(model.family)))
    free = step_units(model, alpha).nonzero()[:, 0]
    metric = images.new_zeros(alpha.shape[1], alpha.shape[1])
    if len(free):
        eigenvalues, vectors = torch.linalg.eigh(curvature(objective, alpha))
        logs = eigenvalues.clamp(min=_FLATTEST).log()
        mean = (vectors @ (logs[:, :, None] * vectors.transpose(1, 2))).mean(dim=0)
        metric[free[:, None], free] = torch.linalg.matrix_exp(-mean).to(metric)
    return metric


def pose_deviation(objective: Objective, alpha: Tensor) -> Tensor:
    """Return standard deviations of poses, from the curvature of ELBO plus log prior at the optimum.

    The covariance is the inverse Hessian (Laplace's approximation), see `curvature`. Where the ELBO is flat the
    deviation is that of the prior; where the prior is flat too nothing is known of it.

    Parameters
    ----------
    objective : Objective
    alpha : Tensor of shape (n, n_params)

    Returns
    -------
    deviation : Tensor of shape (n, n_params)
        In units of alpha; 0 for frozen parameters, NaN where nothing is known.
    """
    model = objective.model
    names = parameters_of(model.family)
    unit = step_units(model, alpha).tolist()
    free = [i for i, u in enumerate(unit) if u]
    deviation = torch.zeros_like(alpha)
    if not free:
        return deviation
    steps = alpha.new_tensor(unit)[free]
    # On the CPU: a GPU's solver takes gigabytes for as many small matrices.
    eigenvalues, vectors = torch.linalg.eigh(curvature(objective, alpha).cpu())
    widest = steps.new_tensor([min(model.scale[i], _WIDEST.get(names[i], 1.0)) for i in free])
    # No direction is wider than the widest parameter, so that a flat one does not swamp the others.
    flattest = float((steps / widest).square().min())
    variance = (vectors.square() / eigenvalues.clamp(min=flattest)[:, None]).sum(dim=2)
    found = variance.sqrt().to(alpha) * steps
    flat_prior = steps.new_tensor([math.isinf(model.scale[i]) for i in free]) > 0
    deviation[:, free] = found.minimum(widest).masked_fill(flat_prior & (found >= widest * _SURELY), math.nan)
    return deviation


def log_odds(chance: Tensor) -> Tensor:
    """Return the log-odds of probabilities, bounded where these are as good as certain."""
    return torch.logit(chance.double(), eps=1e-4)


class Confidence(NamedTuple):
    """Turns what is known of a pose into the probability that it is right, by a logistic regression.

    Attributes
    ----------
    chance, agreement : float
        Coefficients of the log-odds of `chance_of_right` and of `proposer.agreement`.
    offset : float
    """

    chance: float = 1.0
    agreement: float = 0.0
    offset: float = 0.0

    def of(self, chance: Tensor, agreement: Tensor) -> Tensor:
        """Return the probabilities, of shape (n,)."""
        logits = self.chance * log_odds(chance) + self.agreement * log_odds(agreement) + self.offset
        return 0.5 * (1 + torch.tanh(0.5 * logits))  # `torch.sigmoid` rounds by the place in the block


def is_near(alpha: Tensor, other: Tensor, family: str) -> Tensor:
    """Tell which poses, of shape (..., n_params), are right if others are: each parameter within `NEAR` of theirs."""
    names = parameters_of(family)
    reach = alpha.new_tensor([NEAR[name] for name in names])
    difference = wrap_angle((alpha - other).flatten(0, -2), family).view_as(alpha)
    return (difference.abs() < reach).all(dim=-1)


def chance_of_right(hypotheses: Tensor, weight: Tensor, deviation: Tensor, family: str) -> Tensor:
    """Return the probability that the first hypothesis is right, within `NEAR`, of shape (n,).

    That it, or one as good as it, is the mode that is true, times the probability mass of the normal distribution
    around it. An angle of which nothing is known is uniform on the circle.

    Parameters
    ----------
    hypotheses : Tensor of shape (n, k, n_params)
    weight : Tensor of shape (n, k)
    deviation : Tensor of shape (n, n_params)
        Of the first hypothesis; see `pose_deviation`.
    family : str
    """
    hypotheses, weight, deviation = hypotheses.double(), weight.double(), deviation.double()
    near = is_near(hypotheses, hypotheses[:, :1].expand_as(hypotheses), family)
    names = parameters_of(family)
    reach = deviation.new_tensor([NEAR[name] for name in names])
    uniform = deviation.new_tensor([NEAR[name] / math.pi if name == "angle" else 1.0 for name in names])
    mass = torch.erf(reach / (math.sqrt(2) * deviation.clamp(min=1e-6)))
    mass = torch.where(deviation.isnan(), uniform, mass)
    return (weight * near).sum(dim=1) * mass.prod(dim=1)
