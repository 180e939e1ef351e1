"""Descent from many starting points at once, with a state per row: a quasi-Newton method, and one along a line.

One BFGS over a whole batch would tie the rows together: one curvature, one step, one verdict on convergence. Here each
row has its own, and only the evaluations of the loss are shared. Where a single parameter is free, parabolas through
losses do without the gradient, which costs more than the loss.

References
----------
Nocedal & Wright (2006), "Numerical Optimization", algorithms 3.1 (backtracking) and 6.1 (BFGS), equations 6.17 (the
update) and 6.20 (its first scaling); Brent (1973), "Algorithms for Minimization without Derivatives", chapter 5
(successive parabolic interpolation).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

Value = Callable[[Tensor, Tensor], Tensor]
ValueAndGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Refined(NamedTuple):
    """What a descent found, row by row.

    Attributes
    ----------
    alpha : Tensor of shape (n, n_params)
    loss : Tensor of shape (n,)
    n_iter : Tensor of shape (n,)
        Evaluations after the first.
    converged : Tensor of bool of shape (n,)
        Not so if given up.
    """

    alpha: Tensor
    loss: Tensor
    n_iter: Tensor
    converged: Tensor

    @classmethod
    def start(cls, alpha: Tensor, loss: Tensor) -> "Refined":
        """Return rows that have not gone anywhere."""
        n_iter = torch.zeros(len(alpha), dtype=torch.long, device=alpha.device)
        return cls(alpha.clone(), loss.clone(), n_iter, torch.zeros_like(n_iter, dtype=torch.bool))


@dataclass
class _Unfinished:
    """The rows that are still being refined."""

    row: Tensor

    def keep(self, mask: Tensor) -> None:
        """Drop the others, which have finished."""
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name)[mask])


@dataclass
class _State(_Unfinished):
    """Where each row is, and its next step, in units; see `refine`."""

    alpha: Tensor
    loss: Tensor
    gradient: Tensor
    inverse_hessian: Tensor
    direction: Tensor
    slope: Tensor
    step: Tensor
    fresh: Tensor

    def predicted_decrease(self) -> Tensor:
        """Return how far the losses fall by the quadratic model."""
        return 0.5 * ((self.inverse_hessian @ self.gradient[:, :, None])[:, :, 0] * self.gradient).sum(dim=1)

    def record(self, found: Refined) -> None:
        """Write down where the rows are, and that they were evaluated once more."""
        found.alpha[self.row], found.loss[self.row] = self.alpha, self.loss
        found.n_iter[self.row] += 1

    def has_converged(self, tol: float) -> Tensor:
        """Tell which rows' next step promises less than `tol`, or would hardly move them."""
        length = self.step * self.direction.norm(dim=1)
        return (-self.slope * self.step < tol) | (length < _SMALLEST_STEP)


_SUFFICIENT_DECREASE = 1e-4
_LARGEST_STEP = 1.0
_FIRST_STEP = 0.4
# Interpolation puts kinks into the ELBO, at which no slope ever vanishes: a row whose steps have become this
# short sits on one.
_SMALLEST_STEP = 1e-3
# A line is first looked at so far to either side, wide enough to step over a neighbouring dip.
BRACKET = 0.7
# A row is held to fall by at most so many times what its quadratic model promises.
_OPTIMISM = 2.0


def _bfgs(inverse_hessian: Tensor, s: Tensor, y: Tensor, first: Tensor) -> Tensor:
    """Update inverse Hessians of shape (n, p, p) with steps `s` and gradient changes `y` of shape (n, p).

    Where `first` (of shape (n,)) the identity is scaled to the curvature before it is updated.
    """
    curvature = (s * y).sum(dim=1)
    usable = curvature > 1e-10
    rho = torch.where(usable, 1 / curvature.where(usable, curvature.new_ones(())), 0)[:, None, None]
    size = curvature / y.square().sum(dim=1).clamp(min=1e-30)
    identity = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    inverse_hessian = torch.where((first & usable)[:, None, None], size[:, None, None] * identity, inverse_hessian)
    left = identity - rho * s[:, :, None] * y[:, None, :]
    updated = left @ inverse_hessian @ left.transpose(1, 2) + rho * s[:, :, None] * s[:, None, :]
    return torch.where(usable[:, None, None], updated, inverse_hessian)


def _aim(state: _State, metric: Tensor) -> None:
    """Set direction, slope and a full step from gradient and inverse Hessian, within the step limit."""
    direction = -(state.inverse_hessian @ state.gradient[:, :, None])[:, :, 0]
    # Rounding can spoil an inverse Hessian: one that no longer points downhill is given up.
    uphill = (direction * state.gradient).sum(dim=1) >= 0
    state.inverse_hessian = torch.where(uphill[:, None, None], metric, state.inverse_hessian)
    direction = -(state.inverse_hessian @ state.gradient[:, :, None])[:, :, 0]
    state.fresh = state.fresh | uphill
    length = direction.norm(dim=1, keepdim=True)
    steps = torch.tensor([_LARGEST_STEP, _FIRST_STEP], dtype=torch.float32, device=length.device)
    limit = steps[state.fresh.long()][:, None]
    # The first inverse Hessian is not the row's own, so the first step has a length of its own.
    stretch = torch.where(state.fresh[:, None] | (length > limit), limit / length.clamp(min=1e-30), 1.0)
    state.direction = direction * stretch
    state.slope = (state.direction * state.gradient).sum(dim=1)
    state.step = torch.ones_like(state.slope)


@dataclass(frozen=True)
class Race:
    """Rows that compete: one that has no hope of coming near the best of its group is given up.

    Attributes
    ----------
    group : Tensor of shape (n,)
        Number of each row's group, counted from 0.
    handicap : Tensor of shape (n,)
        Added to the losses before they are compared.
    margin : float
        How far behind is hopeless.
    """

    group: Tensor
    handicap: Tensor
    margin: float

    def is_dominated(self, row: Tensor, loss: Tensor, decrease: Tensor, best_loss: Tensor) -> Tensor:
        """Tell which of the unfinished rows are, of their loss and how far it promises to fall.

        `best_loss` is the best so far of all rows.
        """
        total = (best_loss + self.handicap).nan_to_num(nan=math.inf)
        leader = total.new_full((int(self.group.max()) + 1,), math.inf)
        leader = leader.scatter_reduce(0, self.group, total, "amin")
        reach = loss - _OPTIMISM * decrease.clamp(min=0) + self.handicap[row]
        return reach > leader[self.group[row]] + self.margin


def refine(
    loss_and_gradient: ValueAndGradient,
    alpha: Tensor,
    unit: Tensor,
    *,
    max_iter: int,
    tol: float,
    metric: Tensor | None = None,
    race: Race | None = None,
) -> Refined:
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
    metric : Tensor of shape (n_params, n_params) or None, default=None
        Inverse Hessian that every row begins with, of a loss over parameters in units of `unit`; None begins with the
        identity, which the first step scales.
    race : Race or None, default=None
        Ends hopeless rows early; None refines every row to its end.

    References
    ----------
    Nocedal & Wright (2006), algorithm 6.1 with backtracking (algorithm 3.1).
    """
    scaled, metric = metric is None, _among_free(metric, unit, alpha)
    row = torch.arange(len(alpha), device=alpha.device)
    loss, gradient = loss_and_gradient(row, alpha)
    state, found = _start(row, alpha, loss, gradient * unit, metric), Refined.start(alpha, loss)
    if race is not None:
        state.keep(~race.is_dominated(state.row, state.loss, state.predicted_decrease(), found.loss))
    for _ in range(max_iter):
        if not len(state.row):
            break
        trial = state.alpha + state.step[:, None] * state.direction * unit
        loss, gradient = loss_and_gradient(state.row, trial)
        _move(state, trial, loss, gradient * unit, metric, scaled)
        state.record(found)
        found.converged[state.row] = done = state.has_converged(tol)
        if race is not None:
            done = done | race.is_dominated(state.row, state.loss, state.predicted_decrease(), found.loss)
        state.keep(~done)
    return found


def _among_free(metric: Tensor | None, unit: Tensor, alpha: Tensor) -> Tensor:
    """Return the inverse Hessian that every row begins with; directions of frozen parameters would count as length."""
    metric = torch.eye(alpha.shape[1], dtype=alpha.dtype, device=alpha.device) if metric is None else metric.to(alpha)
    free = (unit != 0).to(metric)
    return metric * free[:, None] * free


def _start(row: Tensor, alpha: Tensor, loss: Tensor, gradient: Tensor, metric: Tensor) -> _State:
    """Return the state of rows that have been evaluated once, and their first step."""
    state = _State(
        row=row,
        alpha=alpha,
        loss=loss,
        gradient=gradient,
        inverse_hessian=metric.repeat(len(row), 1, 1),
        direction=torch.zeros_like(alpha),
        slope=torch.zeros_like(loss),
        step=torch.ones_like(loss),
        fresh=torch.ones_like(row, dtype=torch.bool),
    )
    _aim(state, metric)
    return state


def _shorter_step(state: _State, loss: Tensor) -> Tensor:
    """Return the step to try next where the trial failed: the minimum of a parabola, within bounds."""
    excess = 2 * (loss - state.loss - state.step * state.slope)
    parabola = -state.slope * state.step.square() / excess
    fraction = (parabola / state.step).nan_to_num(0.5).clamp(0.1, 0.5)
    return state.step * fraction


def _move(state: _State, trial: Tensor, loss: Tensor, gradient: Tensor, metric: Tensor, scaled: bool) -> None:
    """Take the trials whose loss falls enough as the new points and aim anew; the other rows step shorter next."""
    accepted = loss <= state.loss + _SUFFICIENT_DECREASE * state.step * state.slope
    column = accepted[:, None]
    shorter = _shorter_step(state, loss)
    s = state.step[:, None] * state.direction
    updated = _bfgs(state.inverse_hessian, s, gradient - state.gradient, state.fresh & scaled)
    state.inverse_hessian = torch.where(column[:, :, None], updated, state.inverse_hessian)
    state.alpha = torch.where(column, trial, state.alpha)
    state.loss = torch.where(accepted, loss, state.loss)
    state.gradient = torch.where(column, gradient, state.gradient)
    state.fresh = state.fresh & ~accepted
    # Of the other rows the aim comes out as it was.
    _aim(state, metric)
    state.step = torch.where(accepted, state.step, shorter)


@dataclass
class _Lines(_Unfinished):
    """Up to three points on the line of each row, from left to right, the lowest so far, and where to look next."""

    place: Tensor
    height: Tensor
    best_place: Tensor
    best_height: Tensor
    trial: Tensor

    def look(self, found: Tensor) -> None:
        """Take up what was found at the trials."""
        self.place, self.height = _with_another_point(self.place, self.height, self.trial, found)
        better = found < self.best_height
        self.best_place = torch.where(better, self.trial, self.best_place)
        self.best_height = torch.where(better, found, self.best_height)

    def record(self, found: Refined, alpha: Tensor, unit: Tensor) -> None:
        """Write down where the rows are, and that they were evaluated once more."""
        found.alpha[self.row] = alpha[self.row] + self.best_place[:, None] * unit
        found.loss[self.row] = self.best_height
        found.n_iter[self.row] += 1

    def aim(self) -> Tensor:
        """Set where to look next; return how far the losses fall there, by the parabola through the points."""
        self.trial, decrease = _next_on_line(self.place, self.height)
        return decrease


def refine_line(
    loss_of: Value,
    alpha: Tensor,
    loss: Tensor,
    unit: Tensor,
    *,
    max_iter: int,
    tol: float,
    bracket: float = BRACKET,
    race: Race | None = None,
) -> Refined:
    """Minimise a loss along a line from many starting points at once, without gradients.

    Each row looks to both sides of its start, then at the minimum of the parabola through the best of its points and
    that one's neighbours, and so on; where the parabola has none, further downhill. A row is finished when the next
    point promises less than `tol` or is hardly another one.

    Parameters
    ----------
    loss_of : callable
        ``(row_numbers, alpha) -> loss`` of shape (m,).
    alpha : Tensor of shape (n, n_params)
        Starting points.
    loss : Tensor of shape (n,)
        The losses there; what is no number counts as infinite.
    unit : Tensor of shape (n_params,)
        The line's direction: typical distance to the optimum in the parameter that is free, 0 in the others.
    max_iter : int
        Evaluations per row.
    tol : float
        Promised decrease of the loss, in nats, below which a row has converged.
    bracket : float, default=0.7
        How far to either side a row looks first, in units.
    race : Race or None, default=None
        Ends hopeless rows early; None refines every row to its end.

    References
    ----------
    Brent (1973), section 5.2.
    """
    found = Refined.start(alpha, _number_or_infinite(loss))
    lines = _first_look(found.loss, -bracket)
    for i in range(max_iter):
        if not len(lines.row):
            break
        lines.look(_number_or_infinite(loss_of(lines.row, alpha[lines.row] + lines.trial[:, None] * unit)))
        lines.record(found, alpha, unit)
        if i == 0:
            lines.trial = -lines.trial
            continue
        decrease = lines.aim()
        at_end = (decrease < tol) | ((lines.trial - lines.best_place).abs() < _SMALLEST_STEP)
        lost = lines.best_height.isinf()
        found.converged[lines.row] = at_end & ~lost
        done = at_end | lost
        if race is not None:
            done = done | race.is_dominated(lines.row, lines.best_height, decrease, found.loss)
        lines.keep(~done)
    return found


def _number_or_infinite(loss: Tensor) -> Tensor:
    return loss.nan_to_num(nan=math.inf, posinf=math.inf)


def _first_look(loss: Tensor, trial: float) -> _Lines:
    """Return lines with one point, the start, and where to look first."""
    place = torch.zeros_like(loss)
    return _Lines(
        row=torch.arange(len(loss), device=loss.device),
        place=place[:, None],
        height=loss[:, None],
        best_place=place,
        best_height=loss,
        trial=torch.full_like(loss, trial),
    )


def _with_another_point(place: Tensor, height: Tensor, trial: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Insert a point into each row's, of shape (m, k), and keep three at most: the lowest between its neighbours."""
    place = torch.cat([place, trial[:, None]], dim=1)
    height = torch.cat([height, found[:, None]], dim=1)
    place, order = place.sort(dim=1, stable=True)
    height = height.gather(1, order)
    if place.shape[1] > 3:
        first = (height.argmin(dim=1, keepdim=True) - 1).clamp(0, place.shape[1] - 3)
        around = first + torch.arange(3, device=place.device)
        place, height = place.gather(1, around), height.gather(1, around)
    return place, height


def _next_on_line(place: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each row should look next, and how far its loss then falls by the parabola through its points."""
    (left, middle, right), (a, b, c) = place.unbind(dim=1), height.unbind(dim=1)
    lowest = height.argmin(dim=1)
    best = place.gather(1, lowest[:, None])[:, 0]
    slope = (b - a) / (middle - left)
    bend = ((c - b) / (right - middle) - slope) / (right - left)
    minimum = (left + middle) / 2 - slope / (2 * bend)
    cups = (bend > 0) & bend.isfinite() & minimum.isfinite()
    flat = (a == b) & (b == c)
    decrease = torch.where(cups, bend * (best - minimum).square(), best.new_tensor([math.inf, 0.0])[flat.long()])
    outwards = torch.where(lowest == 0, left - middle, right - middle)
    # Between the lowest point and one without a loss: half the way to it.
    hole = torch.where(c.isfinite(), left, right)
    otherwise = torch.where(lowest == 1, (middle + hole) / 2 - best, 2 * outwards)
    step = torch.where(cups, minimum - best, otherwise)
    return best + step.clamp(-_LARGEST_STEP, _LARGEST_STEP), decrease
