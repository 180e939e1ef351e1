"""Batched descent, by BFGS and along a line: minima, steps that fail, rows that finish at their own time."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from sk_avae.search.descent import Race, _aim, _State, refine, refine_line


def random_quadratics(n, p, seed=0):
    """Return convex quadratics as (loss_and_gradient, minima)."""
    generator = torch.Generator().manual_seed(seed)
    minimum, root = (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for shape in ((p,), (p, p)))
    hessian = root @ root.mT + torch.eye(p, dtype=torch.float64)

    def loss_and_gradient(rows, alpha):
        gradient = (hessian[rows] @ (alpha - minimum[rows])[:, :, None])[:, :, 0]
        return 0.5 * (gradient * (alpha - minimum[rows])).sum(dim=1), gradient

    return loss_and_gradient, minimum


def waves(rows, alpha):
    """Many local minima."""
    steep = alpha * (3 + rows[:, None])
    return (steep.sin() + alpha.square()).sum(dim=1), (3 + rows[:, None]) * steep.cos() + 2 * alpha


def ones(p):
    return torch.ones(p, dtype=torch.float64)


def traced(function):
    """Return the function, and the places of each row at which it will be asked."""
    seen = defaultdict(list)

    def asking(rows, alpha):
        for row, pose in zip(rows.tolist(), alpha.detach().tolist(), strict=True):
            seen[row].append(pose)
        return function(rows, alpha)

    return asking, seen


# ---------------------------------------------------------------- step by step


# The first step's length is a number in single precision, whatever that of the loss.
FIRST = float(np.float32(0.4))


def textbook(evaluate, x, unit, max_iter, tol, metric=None):
    """BFGS with backtracking of one row, written out after Nocedal & Wright: where it evaluates, in turn."""
    free, identity = unit != 0, np.eye(len(x))
    inverse_hessian = (identity if metric is None else metric) * np.outer(free, free)
    fall, gradient = evaluate(x)
    seen, first, step = [x], True, 1.0
    direction = -inverse_hessian @ (gradient * unit)
    direction *= FIRST / np.linalg.norm(direction)
    for _ in range(max_iter):
        slope = direction @ (gradient * unit)
        seen.append(x + step * direction * unit)
        loss, new = evaluate(seen[-1])
        if loss <= fall + 1e-4 * step * slope:
            s, y = step * direction, (new - gradient) * unit
            if s @ y > 1e-10:
                if first and metric is None:
                    inverse_hessian = identity * (s @ y) / (y @ y)
                left = identity - np.outer(s, y) / (s @ y)
                inverse_hessian = left @ inverse_hessian @ left.T + np.outer(s, s) / (s @ y)
            x, fall, gradient, first, step = seen[-1], loss, new, False, 1.0
            direction = -inverse_hessian @ (gradient * unit)
            direction /= max(1.0, np.linalg.norm(direction))
            slope = direction @ (gradient * unit)
        else:
            # The parabola of this loss and slope here, and the loss there.
            lowest = -slope * step**2 / (2 * (loss - fall - slope * step))
            step *= np.clip(lowest / step, 0.1, 0.5)
        if -slope * step < tol or step * np.linalg.norm(direction) < 1e-3:
            break
    return np.array(seen)


METRIC = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]])


@pytest.mark.parametrize("metric", [None, METRIC], ids=["identity", "metric"])
@pytest.mark.parametrize("unit", [[1.0, 1.0, 1.0], [0.15, 0.0, 2.0]], ids=str)
@pytest.mark.parametrize(("bend", "faint", "tol"), [(0.0, 1, 1e-6), (3.0, 1, 1e-6), (0.5, 1, 0.05), (0.0, 1e-10, 0.0)])
def test_every_row_goes_step_by_step_as_the_textbook_s(metric, unit, bend, faint, tol):
    quadratics, _ = random_quadratics(12, 3)

    def wavy(rows, alpha):
        """A quadratic, and waves that no quadratic model foresees."""
        loss, gradient = quadratics(rows, alpha)
        waves = bend * (4 * alpha).sin().sum(dim=1), 4 * bend * (4 * alpha).cos()
        return faint * (loss + waves[0]), faint * (gradient + waves[1])

    asking, seen = traced(wavy)
    generator = torch.Generator().manual_seed(1)
    start = 3 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    unit = torch.tensor(unit, dtype=torch.float64)
    known = None if metric is None else torch.from_numpy(metric)
    found = refine(asking, start, unit, max_iter=40, tol=tol, metric=known)
    for row in range(12):

        def evaluate(x, row=row):
            loss, gradient = wavy(torch.tensor([row]), torch.from_numpy(x)[None])
            return float(loss), gradient[0].numpy()

        expected = textbook(evaluate, start[row].numpy(), unit.numpy(), 40, tol, metric)
        np.testing.assert_allclose(seen[row], expected, rtol=0, atol=1e-5)
        assert found.n_iter[row] == len(expected) - 1


@pytest.mark.parametrize(("minimum", "second"), [(0.15, 0.15), (0.05, 0.05), (0.01, 0.04), (0.1999, 0.1999)])
def test_after_a_step_too_far_the_parabola_s_minimum_is_tried_within_bounds(minimum, second):
    def parabola(rows, alpha):
        return (alpha[:, 0].square() / (2 * minimum) - alpha[:, 0]), alpha / minimum - 1

    asking, seen = traced(parabola)
    refine(asking, torch.zeros(1, 1).double(), ones(1), max_iter=2, tol=1e-9)
    assert seen[0] == [[0.0], [FIRST], [pytest.approx(second)]]


@pytest.mark.parametrize(("share", "taken"), [(0.9e-4, False), (1.1e-4, True), (-0.5e-4, False)])
def test_a_step_is_taken_if_the_loss_falls_by_a_ten_thousandth_of_what_the_slope_says(share, taken):
    def nearly_flat(rows, alpha):
        return -share * alpha[:, 0], -torch.ones_like(alpha)

    asking, seen = traced(nearly_flat)
    found = refine(asking, torch.zeros(1, 1).double(), ones(1), max_iter=2, tol=0.0)
    assert (seen[0][2][0] > FIRST) == taken
    assert found.alpha.any() == taken
    if not taken:
        assert seen[0][2][0] <= FIRST / 2


def test_a_step_without_a_loss_is_halved():
    asking, seen = traced(lambda rows, alpha: (torch.where(alpha[:, 0] > 0, math.nan, -alpha[:, 0]), -ones(1)[None]))
    refine(asking, torch.zeros(1, 1).double(), ones(1), max_iter=4, tol=1e-9)
    assert seen[0] == [[0.0], [FIRST], [FIRST / 2], [FIRST / 4], [FIRST / 8]]


def test_no_step_is_longer_than_a_unit():
    quadratics, minimum = random_quadratics(10, 2)
    asking, seen = traced(quadratics)
    unit = torch.tensor([0.5, 2.0], dtype=torch.float64)
    refine(asking, minimum + 50, unit, max_iter=20, tol=1e-6)
    for places in seen.values():
        steps = np.linalg.norm(np.diff(places, axis=0) / unit.numpy(), axis=1)
        assert steps[0] == pytest.approx(0.4)
        assert steps.max() == pytest.approx(1.0)


def test_an_inverse_hessian_that_points_uphill_is_given_up_for_the_metric_and_a_first_step():
    metric, gradient = ones(2).diag() / 4, torch.tensor([[3.0, -4.0]] * 2, dtype=torch.float64)
    spoiled = torch.stack([-ones(2).diag() / 1000, ones(2).diag() / 10])
    state = _State(
        row=torch.arange(2),
        alpha=torch.zeros(2, 2).double(),
        loss=torch.zeros(2).double(),
        gradient=gradient,
        inverse_hessian=spoiled,
        direction=torch.zeros(2, 2).double(),
        slope=torch.zeros(2).double(),
        step=torch.full((2,), 0.1).double(),
        fresh=torch.zeros(2, dtype=torch.bool),
    )
    _aim(state, metric)
    assert torch.equal(state.inverse_hessian, torch.stack([metric, spoiled[1]]))
    assert state.fresh.tolist() == [True, False]
    expected = torch.tensor([[-0.6 * FIRST, 0.8 * FIRST], [-0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(state.direction, expected)
    torch.testing.assert_close(state.slope, (expected * gradient).sum(dim=1))
    assert state.step.tolist() == [1.0, 1.0]


# ---------------------------------------------------------------- where it ends


@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_refine_finds_the_minima_of_quadratics(p):
    quadratics, minimum = random_quadratics(40, p)
    alpha, loss, n_iter, converged = refine(quadratics, torch.zeros_like(minimum), ones(p), max_iter=100, tol=1e-10)
    # Refinement ends at steps of a thousandth of the unit.
    torch.testing.assert_close(alpha, minimum, rtol=0, atol=1e-2)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-4)
    assert converged.all()
    assert (n_iter < 100).all()
    assert n_iter.dtype == torch.int64
    assert converged.dtype == torch.bool


@pytest.mark.parametrize("max_iter", [0, 1, 2, 5, 30])
def test_refine_is_never_worse_than_its_start(max_iter):
    generator = torch.Generator().manual_seed(0)
    start = 4 * torch.rand(50, 2, generator=generator, dtype=torch.float64) - 2
    rows = torch.arange(50)
    alpha, loss, n_iter, _ = refine(waves, start, ones(2), max_iter=max_iter, tol=1e-6)
    before = waves(rows, start)[0]
    assert (loss <= before).all()
    assert torch.equal(loss, waves(rows, alpha)[0])
    assert (n_iter <= max_iter).all()
    assert (loss < before).any() == (max_iter > 0)


def test_refine_without_iterations_returns_its_start():
    quadratics, minimum = random_quadratics(5, 3)
    start = minimum + 1
    alpha, loss, n_iter, converged = refine(quadratics, start, ones(3), max_iter=0, tol=1e-3)
    assert torch.equal(alpha, start)
    assert torch.equal(loss, quadratics(torch.arange(5), start)[0])
    assert not n_iter.any()
    assert not converged.any()


def test_refine_does_not_move_what_has_no_unit():
    quadratics, minimum = random_quadratics(20, 4)
    start = torch.ones_like(minimum)
    unit = torch.tensor([1.0, 0.0, 0.15, 0.0], dtype=torch.float64)
    alpha, _, _, converged = refine(quadratics, start, unit, max_iter=100, tol=1e-10)
    assert torch.equal(alpha[:, [1, 3]], start[:, [1, 3]])
    _, gradient = quadratics(torch.arange(20), alpha)
    torch.testing.assert_close(gradient[:, [0, 2]], torch.zeros(20, 2).double(), rtol=0, atol=1e-2)
    assert converged.all()


def test_refine_from_a_minimum_is_done_at_once():
    quadratics, minimum = random_quadratics(5, 3)
    alpha, _, n_iter, converged = refine(quadratics, minimum, ones(3), max_iter=50, tol=1e-3)
    assert torch.equal(alpha, minimum)
    assert converged.all()
    assert (n_iter == 1).all()


@pytest.mark.parametrize(("metric", "tol"), [(0.5, 0.5), (1e-3, 0.0)], ids=["promise", "length"])
def test_a_step_that_is_exactly_as_small_as_allowed_is_taken(metric, tol):
    """Down an endless slope of 1 the inverse Hessian stays what it was, and is both the step and what it promises."""

    def slope(rows, alpha):
        return -alpha[:, 0], -torch.ones_like(alpha)

    start, metric = torch.zeros(1, 1).double(), torch.tensor([[metric]]).double()
    found = refine(slope, start, ones(1), max_iter=9, tol=tol, metric=metric.double())
    assert found.n_iter.item() == 9
    assert not found.converged.any()
    assert refine(slope, start, ones(1), max_iter=9, tol=tol, metric=0.99 * metric).n_iter.item() == 1


def test_refine_only_evaluates_unfinished_rows():
    quadratics, minimum = random_quadratics(10, 2)
    start = torch.where(torch.arange(10)[:, None] < 5, minimum, minimum + 3)
    asked = torch.zeros(10, dtype=torch.long)

    def counting(rows, alpha):
        asked[rows] += 1
        return quadratics(rows, alpha)

    _, _, n_iter, _ = refine(counting, start, ones(2), max_iter=50, tol=1e-8)
    assert torch.equal(asked, n_iter + 1)
    assert asked[:5].max() < asked[5:].min()


@pytest.mark.parametrize("hole", [math.nan, math.inf])
@pytest.mark.parametrize("gradient_too", [False, True])
def test_refine_survives_trial_points_without_a_loss(hole, gradient_too):
    quadratics, minimum = random_quadratics(30, 2)
    minimum *= 0.3 / minimum.norm(dim=1, keepdim=True)
    start = torch.zeros_like(minimum)
    fell = torch.zeros(30, dtype=torch.bool)

    def holed(rows, alpha):
        loss, gradient = quadratics(rows, alpha)
        outside = (alpha.norm(dim=1) > 0.35) & (rows % 2 == 0)
        fell[rows] |= outside
        loss = loss.masked_fill(outside, hole)
        return loss, gradient.masked_fill(outside[:, None], hole) if gradient_too else gradient

    alpha, *_ = refine(holed, start, ones(2), max_iter=100, tol=1e-10)
    assert fell[::2].all()
    torch.testing.assert_close(alpha, minimum, rtol=0, atol=1e-2)
    whole, *_ = refine(quadratics, start, ones(2), max_iter=100, tol=1e-10)
    assert torch.equal(alpha[1::2], whole[1::2])


def test_refine_with_a_minimum_out_of_reach_stays_finite():
    def walled(rows, alpha):
        return torch.where(alpha[:, 0] < 1, -alpha[:, 0], math.nan), -torch.ones_like(alpha)

    alpha, loss, _, _ = refine(walled, torch.zeros(3, 1).double(), ones(1), max_iter=60, tol=1e-6)
    torch.testing.assert_close(alpha, torch.ones_like(alpha), rtol=0, atol=1e-3)
    assert torch.equal(loss, -alpha[:, 0])


def test_the_right_metric_needs_fewer_evaluations():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT + 0.1 * torch.eye(6, dtype=torch.float64)
    minimum = torch.randn(30, 6, generator=generator, dtype=torch.float64)

    def alike(rows, alpha):
        gradient = (alpha - minimum[rows]) @ hessian
        return 0.5 * (gradient * (alpha - minimum[rows])).sum(dim=1), gradient

    start = torch.zeros_like(minimum)
    plain = refine(alike, start, ones(6), max_iter=200, tol=1e-6)
    informed = refine(alike, start, ones(6), max_iter=200, tol=1e-6, metric=torch.linalg.inv(hessian))
    assert informed[2].float().mean() < 0.5 * plain[2].float().mean()
    assert informed[3].all()
    torch.testing.assert_close(informed[1], torch.zeros_like(informed[1]), rtol=0, atol=1e-4)


def test_a_race_gives_up_the_hopeless_and_leaves_the_best_alone():
    quadratics, minimum = random_quadratics(40, 3)
    behind = (torch.arange(40) % 4 == 3).double() * 1000

    def handicapped(rows, alpha):
        loss, gradient = quadratics(rows, alpha)
        return loss + behind[rows], gradient

    start = minimum + 1.5
    settings = {"max_iter": 100, "tol": 1e-6}
    group = torch.arange(40) // 4
    whole = refine(handicapped, start, ones(3), **settings)
    race = Race(group, torch.zeros(40, dtype=torch.float64), margin=200.0)
    raced = refine(handicapped, start, ones(3), **settings, race=race)
    assert not raced[3][behind > 0].any()
    assert (raced[2][behind > 0] < whole[2][behind > 0]).all()
    for found, expected in zip(raced, whole, strict=True):
        assert torch.equal(found[behind == 0], expected[behind == 0])
    # A handicap that makes up for the loss puts them back into the race.
    level = refine(handicapped, start, ones(3), **settings, race=replace(race, handicap=-behind))
    assert level[3].all()


def test_a_row_is_dominated_where_twice_its_promise_leaves_it_a_margin_behind_its_leader():
    generator = torch.Generator().manual_seed(0)
    best, handicap = (10 * torch.randn(24, generator=generator, dtype=torch.float64) for _ in range(2))
    best += 60
    group, margin = torch.arange(24) % 5, 7.0
    best[3] = math.nan
    row = torch.arange(23, -1, -1)
    decrease = 3 * torch.randn(len(row), generator=generator, dtype=torch.float64)
    found = Race(group, handicap, margin).is_dominated(row, best[row], decrease, best)
    expected = []
    for i, promise in zip(row.tolist(), decrease.tolist(), strict=True):
        leader = min(float(best[j] + handicap[j]) for j in range(24) if group[j] == group[i] and j != 3)
        expected.append(float(best[i]) - 2 * max(promise, 0.0) + float(handicap[i]) > leader + margin)
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(row) - 1
    # A row exactly the margin behind is still in the race.
    level = Race(torch.tensor([0, 0]), torch.zeros(2), margin=2.0)
    behind = torch.tensor([1.0, 3.0])
    assert level.is_dominated(torch.arange(2), behind, torch.zeros(2), behind).tolist() == [False, False]
    # Small promises are no large ones, and one that it will rise is none.
    further = torch.tensor([1.0, 4.5])
    for promise, dominated in [(0.5, True), (0.8, False), (-9.0, True)]:
        found = level.is_dominated(torch.arange(2), further, torch.tensor([0.0, promise]), further)
        assert found.tolist() == [False, dominated]
    risen = level.is_dominated(torch.arange(2), behind, torch.tensor([0.0, -9.0]), behind)
    assert risen.tolist() == [False, False]


@pytest.mark.parametrize(("margin", "goes_on"), [(4.9, False), (5.1, True)])
def test_a_row_enters_the_race_if_twice_what_its_quadratic_model_promises_brings_it_near_the_leader(margin, goes_on):
    bend = torch.tensor([2.0, 4.0], dtype=torch.float64)

    def bowls(rows, alpha):
        """The first row begins at 0, a nat above its minimum, the second at 11, 3 nats above its own."""
        return 9.0 * rows - 1.0 + 0.5 * (bend * alpha.square()).sum(dim=1), bend * alpha

    start = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    race = Race(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.float64), margin)
    found = refine(bowls, start, ones(2), max_iter=30, tol=1e-9, metric=(1 / bend).diag(), race=race)
    assert (found.n_iter[1] > 0) == goes_on
    assert found.n_iter[0] > 0


def test_a_race_of_rows_that_are_no_numbers_ends():
    def nowhere(rows, alpha):
        return alpha.sum(dim=1) * math.nan, alpha * math.nan

    race = Race(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.float64), margin=1.0)
    alpha, loss, *_ = refine(nowhere, torch.zeros(4, 2).double(), ones(2), max_iter=3, tol=1e-6, race=race)
    assert torch.equal(alpha, torch.zeros(4, 2).double())
    assert loss.isnan().all()


@pytest.mark.parametrize("metric", [None, ones(2).diag()])
@pytest.mark.parametrize("raced", [False, True])
def test_descent_makes_its_tensors_where_the_poses_are(metric, raced):
    race = Race(torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.float64), margin=5.0) if raced else None
    start, unit, line = torch.arange(12.0).double().view(6, 2) / 6, ones(2), torch.tensor([0.5, 0.0]).double()

    def bowls(rows, alpha):
        return (alpha - 0.3).square().sum(dim=1), 2 * (alpha - 0.3)

    def found():
        yield from refine(bowls, start, unit, max_iter=20, tol=1e-6, metric=metric, race=race)
        loss = bowls(None, start)[0]
        yield from refine_line(lambda *x: bowls(*x)[0], start, loss, line, max_iter=20, tol=1e-6, race=race)

    expected = [*found()]
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        assert all(map(torch.equal, found(), expected))


# ---------------------------------------------------------------- along a line


def parabolas(n, seed=0):
    """Return parabolas along the second of three parameters as (loss, minima)."""
    generator = torch.Generator().manual_seed(seed)
    minimum = 2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1
    bend = 1 + 20 * torch.rand(n, generator=generator, dtype=torch.float64)
    return lambda rows, alpha: bend[rows] * (alpha[:, 1] - minimum[rows]).square(), minimum


UNIT = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)


def down(loss_of, start, unit=UNIT, max_iter=50, tol=1e-8, **settings):
    loss = loss_of(torch.arange(len(start)), start)
    return refine_line(loss_of, start, loss, unit, max_iter=max_iter, tol=tol, **settings)


def test_three_looks_find_the_minimum_of_a_parabola():
    loss_of, minimum = parabolas(40)
    start = torch.linspace(-3, 3, 120, dtype=torch.float64).view(40, 3)
    start[:, 1] = minimum + 0.4 * start[:, 1] / 3
    alpha, loss, n_iter, converged = down(loss_of, start)
    torch.testing.assert_close(alpha[:, 1], minimum)
    assert torch.equal(alpha[:, [0, 2]], start[:, [0, 2]])
    assert torch.equal(loss, loss_of(torch.arange(40), alpha))
    assert (n_iter == 3).all()
    assert converged.all()


def test_a_minimum_far_away_is_walked_to():
    loss_of, minimum = parabolas(40)
    start = torch.zeros(40, 3, dtype=torch.float64)
    start[:, 1] = minimum + torch.where(torch.arange(40) % 2 == 0, 4.0, -4.0)
    alpha, _, n_iter, converged = down(loss_of, start)
    torch.testing.assert_close(alpha[:, 1], minimum)
    assert (n_iter > 6).all()
    assert converged.all()


@pytest.mark.parametrize("max_iter", [0, 1, 2, 3, 30])
def test_a_line_is_never_left_worse_than_at_its_start(max_iter):
    generator = torch.Generator().manual_seed(0)
    start = 4 * torch.rand(50, 1, generator=generator, dtype=torch.float64) - 2
    rows, unit = torch.arange(50), torch.tensor([0.3], dtype=torch.float64)
    alpha, loss, n_iter, converged = down(lambda r, a: waves(r, a)[0], start, unit, max_iter, tol=1e-6)
    before = waves(rows, start)[0]
    assert (loss <= before).all()
    assert torch.equal(loss, waves(rows, alpha)[0])
    assert (n_iter <= max_iter).all()
    assert (loss < before).any() == (max_iter > 0)
    assert converged.all() == (max_iter == 30)
    assert not (converged.any() and max_iter < 2)


def test_a_neighbouring_dip_is_stepped_over():
    def dips(rows, alpha):
        x = alpha[:, 0]
        return 0.2 * x.square() - torch.exp(-20 * x.square()) - 3 * torch.exp(-20 * (x - 0.9).square())

    start, unit = torch.zeros(1, 1).double(), ones(1)
    wide, narrow = (down(dips, start, unit, bracket=bracket)[0] for bracket in (0.9, 0.1))
    assert wide.item() == pytest.approx(0.9, abs=0.02)
    assert narrow.item() == pytest.approx(0.0, abs=0.02)


def test_each_row_of_a_line_has_the_bits_of_one_alone():
    loss_of, _ = parabolas(30)

    def wavy(rows, alpha):
        return loss_of(rows, alpha) + (7 * alpha[:, 1]).cos()

    start = torch.zeros(30, 3, dtype=torch.float64)
    together = down(wavy, start)
    for i in (0, 7, 29):
        alone = down(lambda rows, alpha, i=i: wavy(rows + i, alpha), start[:1])
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[i])


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize(
    ("bracket", "places"), [(0.7, [0.7, 1.7, 2.7, 3.7]), (0.2, [0.2, 0.6, 1.4, 2.4]), (0.5, [0.5, 1.5, 2.5, 3.5])]
)
def test_an_endless_slope_is_walked_down_in_steps_that_double_up_to_a_unit(side, bracket, places):
    asking, seen = traced(lambda rows, alpha: -side * alpha[:, 0])
    found = down(asking, torch.zeros(1, 1).double(), 2 * ones(1), max_iter=5, bracket=bracket)
    # The start, to the left, to the right, and on.
    looked = [x / 2 for (x,) in seen[0]]
    assert looked[:3] == [0.0, -bracket, bracket]
    assert looked[3:] == pytest.approx([side * place for place in places[1:]])
    assert found.alpha.item() == pytest.approx(2 * side * places[-1])
    assert not found.converged.any()


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_edge_of_a_hole_is_approached_by_halves(side):
    def walled(rows, alpha):
        return torch.where(side * alpha[:, 0] < 0.5, -side * alpha[:, 0], math.nan)

    asking, seen = traced(walled)
    down(asking, torch.zeros(1, 1).double(), ones(1), max_iter=6)
    assert [side * x for (x,) in seen[0][3:]] == pytest.approx([0.35, 0.525, 0.4375, 0.48125])


@pytest.mark.parametrize(("start", "promise"), [(-0.3, 0.5), (-1.0, 1.28), (1.4, 1.28)])
def test_a_line_is_left_where_the_parabola_promises_less_than_tol(start, promise):
    def parabola(rows, alpha):
        return 2 * (alpha[:, 0] - 0.2).square()

    # After looks 2 to the left and to the right the minimum is 0.5 or 0.8 from the best of the three.
    for tol, n_iter in [(promise - 0.01, 3), (promise + 0.01, 2)]:
        found = down(parabola, torch.full((1, 1), start).double(), ones(1), tol=tol, bracket=2.0)
        assert found.n_iter.item() == n_iter
        assert found.converged.all()


def test_a_look_that_promises_exactly_tol_is_taken():
    found = down(
        lambda rows, alpha: 2 * (alpha[:, 0] - 0.5).square(), torch.zeros(1, 1).double(), ones(1), tol=0.5, bracket=2.0
    )
    assert found.n_iter.item() == 3


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_plateau_on_one_side_does_not_end_a_descent_to_the_other(side):
    found = down(
        lambda rows, alpha: -(side * alpha[:, 0]).clamp(min=0.1), torch.zeros(1, 1).double(), ones(1), max_iter=5
    )
    assert side * found.alpha.item() == pytest.approx(3.7)


@pytest.mark.parametrize("seed", range(3))
def test_the_next_look_is_at_the_minimum_of_the_parabola_through_the_lowest_points(seed):
    generator = torch.Generator().manual_seed(seed)
    phase = 6 * torch.rand(20, generator=generator, dtype=torch.float64)

    def hills(rows, alpha):
        x = alpha[:, 0]
        return x.square() + 0.5 * (2 * x + phase[rows]).sin()

    asking, seen = traced(hills)
    found = down(asking, torch.zeros(20, 1).double(), ones(1), max_iter=8, tol=1e-7)
    n_interpolated = 0
    for row, looks in seen.items():
        looks = np.array(looks)[:, 0]
        heights = hills(torch.full((len(looks),), row), torch.from_numpy(looks)[:, None]).numpy()
        assert found.loss[row] == heights.min()
        assert found.alpha[row, 0] == looks[heights.argmin()]
        for n in range(3, len(looks)):
            order = looks[:n].argsort()
            places, levels = looks[:n][order], heights[:n][order]
            lowest = levels.argmin()
            if 0 < lowest < n - 1:
                bend, slope, _ = np.polyfit(places[lowest - 1 : lowest + 2], levels[lowest - 1 : lowest + 2], 2)
                assert looks[n] == pytest.approx(-slope / (2 * bend), abs=1e-6)
                n_interpolated += 1
    assert n_interpolated > 20


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_line_with_holes_is_searched_up_to_their_edge(hole):
    def walled(rows, alpha):
        return torch.where(alpha[:, 0] < 1, -alpha[:, 0], hole)

    alpha, loss, _, converged = down(walled, torch.zeros(3, 1).double(), ones(1), tol=1e-6)
    torch.testing.assert_close(alpha, torch.ones_like(alpha), rtol=0, atol=5e-3)
    assert torch.equal(loss, -alpha[:, 0])
    assert converged.all()


def test_a_line_without_any_loss_stays_where_it_is():
    start = torch.zeros(4, 1).double()
    alpha, loss, n_iter, converged = down(lambda rows, alpha: alpha[:, 0] * math.nan, start, ones(1))
    assert torch.equal(alpha, start)
    assert loss.isinf().all()
    assert (n_iter == 2).all()
    assert not converged.any()


def test_a_flat_line_stays_where_it_is():
    start = torch.full((4, 1), 0.5).double()
    alpha, loss, n_iter, converged = down(lambda rows, alpha: alpha[:, 0] * 0, start, ones(1), max_iter=20)
    assert torch.equal(loss, torch.zeros(4).double())
    assert torch.equal(alpha, start)
    assert (n_iter == 2).all()
    assert converged.all()


def test_a_race_along_lines_gives_up_the_hopeless():
    loss_of, _ = parabolas(40)
    behind = (torch.arange(40) % 4 == 3).double() * 1000
    start = torch.zeros(40, 3, dtype=torch.float64)

    def handicapped(rows, alpha):
        return loss_of(rows, alpha) + (5 * alpha[:, 1]).cos() + behind[rows]

    race = Race(torch.arange(40) // 4, torch.zeros(40, dtype=torch.float64), margin=200.0)
    whole, raced = down(handicapped, start), down(handicapped, start, race=race)
    assert whole[3].all()
    assert (raced[2][behind > 0] < 5).all()
    for found, expected in zip(raced, whole, strict=True):
        assert torch.equal(found[behind == 0], expected[behind == 0])
    assert not raced[3][behind > 0].any()
