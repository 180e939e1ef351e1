"""Descent from many starting points at once: a quasi-Newton method whose state is kept per row.

One BFGS over a whole batch would tie the rows together: one curvature, one step, one verdict on convergence. Here each
row has its own, and only the evaluations of the loss are shared.

References
----------
Nocedal & Wright (2006), "Numerical Optimization", algorithms 3.1 (backtracking) and 6.1 (BFGS), equations 6.17 (the
update) and 6.20 (its first scaling).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

ValueAndGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class _State:
    """The rows that are still being refined; `keep` drops the finished ones."""

    row: Tensor
    alpha: Tensor
    loss: Tensor
    gradient: Tensor
    inverse_hessian: Tensor
    direction: Tensor
    slope: Tensor
    step: Tensor
    fresh: Tensor

    def keep(self, mask: Tensor) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name)[mask])


_SUFFICIENT_DECREASE = 1e-4
_LARGEST_STEP = 2.0
_FIRST_STEP = 0.4
# Interpolation puts kinks into the ELBO, at which no slope ever vanishes: a row whose steps have become this
# short sits on one.
_SMALLEST_STEP = 1e-3


def _bfgs(inverse_hessian: Tensor, s: Tensor, y: Tensor, fresh: Tensor) -> Tensor:
    """Update inverse Hessians of shape (n, p, p) with steps `s` and gradient changes `y` of shape (n, p)."""
    curvature = (s * y).sum(dim=1)
    usable = curvature > 1e-10
    rho = torch.where(usable, 1 / curvature.where(usable, curvature.new_ones(())), 0)[:, None, None]
    size = curvature / y.square().sum(dim=1).clamp(min=1e-30)
    identity = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    first = (fresh & usable)[:, None, None]
    inverse_hessian = torch.where(first, size[:, None, None] * identity, inverse_hessian)
    left = identity - rho * s[:, :, None] * y[:, None, :]
    updated = left @ inverse_hessian @ left.transpose(1, 2) + rho * s[:, :, None] * s[:, None, :]
    return torch.where(usable[:, None, None], updated, inverse_hessian)


def _aim(state: _State) -> None:
    """Set direction, slope and a full step from gradient and inverse Hessian, within the step limit."""
    direction = -(state.inverse_hessian @ state.gradient[:, :, None])[:, :, 0]
    # Rounding can spoil an inverse Hessian: one that no longer points downhill is given up.
    uphill = (direction * state.gradient).sum(dim=1) >= 0
    direction = torch.where(uphill[:, None], -state.gradient, direction)
    state.fresh = state.fresh | uphill
    length = direction.norm(dim=1, keepdim=True)
    limit = torch.where(state.fresh[:, None], _FIRST_STEP, _LARGEST_STEP)
    # The first inverse Hessian is arbitrary, so the first step has a length of its own.
    stretch = torch.where(state.fresh[:, None] | (length > limit), limit / length.clamp(min=1e-30), 1.0)
    state.direction = direction * stretch
    state.slope = (state.direction * state.gradient).sum(dim=1)
    state.step = torch.ones_like(state.slope)


def refine(
    loss_and_gradient: ValueAndGradient, alpha: Tensor, unit: Tensor, *, max_iter: int, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimise a loss from many starting points at once: BFGS with a state per row.

    Each iteration evaluates every unfinished row once. A row whose loss falls enough moves and updates its
    curvature; one whose loss does not, tries a shorter step from where it was. A row is finished when the
    next step promises less than `tol` or would hardly move it; it then leaves the batch. The loss of a row never rises.

    Parameters
    ----------
    loss_and_gradient : callable
        ``(row_numbers, alpha) -> (loss, gradient)``, of shapes (m,) and (m, n_params).
    alpha : Tensor of shape (n, n_params)
        Starting points.
    unit : Tensor of shape (n_params,)
        Typical distance to the optimum in each parameter; 0 freezes it.
    max_iter : int
        Evaluations per row after the first.
    tol : float
        Promised decrease of the loss, in nats, below which a row has converged.

    Returns
    -------
    alpha : Tensor of shape (n, n_params)
    loss : Tensor of shape (n,)
    n_iter : Tensor of shape (n,)
        Evaluations after the first.
    converged : Tensor of shape (n,)

    References
    ----------
    Nocedal & Wright (2006), algorithm 6.1 with backtracking (algorithm 3.1).
    """
    n, p = alpha.shape
    row = torch.arange(n, device=alpha.device)
    loss, gradient = loss_and_gradient(row, alpha)
    best_alpha, best_loss = alpha.clone(), loss.clone()
    n_iter = torch.zeros(n, dtype=torch.long, device=alpha.device)
    converged = torch.zeros(n, dtype=torch.bool, device=alpha.device)
    state = _State(
        row=row,
        alpha=alpha,
        loss=loss,
        gradient=gradient * unit,
        inverse_hessian=torch.eye(p, dtype=alpha.dtype, device=alpha.device).repeat(n, 1, 1),
        direction=torch.zeros_like(alpha),
        slope=torch.zeros_like(loss),
        step=torch.ones_like(loss),
        fresh=torch.ones(n, dtype=torch.bool, device=alpha.device),
    )
    _aim(state)
    for _ in range(max_iter):
        if not len(state.row):
            break
        trial = state.alpha + state.step[:, None] * state.direction * unit
        loss, gradient = loss_and_gradient(state.row, trial)
        n_iter[state.row] += 1
        accepted = loss <= state.loss + _SUFFICIENT_DECREASE * state.step * state.slope
        shorter = _shorter_step(state, loss)
        _move(state, accepted, trial, loss, gradient * unit)
        state.step = torch.where(accepted, state.step, shorter)
        best_alpha[state.row], best_loss[state.row] = state.alpha, state.loss
        length = state.step * state.direction.norm(dim=1)
        done = (-state.slope * state.step < tol) | (length < _SMALLEST_STEP)
        converged[state.row] = done
        state.keep(~done)
    return best_alpha, best_loss, n_iter, converged


def _shorter_step(state: _State, loss: Tensor) -> Tensor:
    """Return the step to try next where the trial failed: the minimum of a parabola, within bounds."""
    excess = 2 * (loss - state.loss - state.step * state.slope)
    parabola = -state.slope * state.step.square() / excess
    fraction = (parabola / state.step).nan_to_num(0.5).clamp(0.1, 0.5)
    return state.step * fraction


def _move(state: _State, accepted: Tensor, alpha: Tensor, loss: Tensor, gradient: Tensor) -> None:
    """Take the accepted trials as the new points and aim anew; the other rows stay as they are."""
    column = accepted[:, None]
    s = state.step[:, None] * state.direction
    updated = _bfgs(state.inverse_hessian, s, gradient - state.gradient, state.fresh)
    old_direction, old_slope, old_step = state.direction, state.slope, state.step
    state.inverse_hessian = torch.where(column[:, :, None], updated, state.inverse_hessian)
    state.alpha = torch.where(column, alpha, state.alpha)
    state.loss = torch.where(accepted, loss, state.loss)
    state.gradient = torch.where(column, gradient, state.gradient)
    state.fresh = state.fresh & ~accepted
    _aim(state)
    state.direction = torch.where(column, state.direction, old_direction)
    state.slope = torch.where(accepted, state.slope, old_slope)
    state.step = torch.where(accepted, state.step, old_step)
