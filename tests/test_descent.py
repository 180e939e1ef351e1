"""Batched descent, by BFGS and along a line: minima, steps that fail, rows that finish at their own time."""

import math
from dataclasses import replace

import pytest
import torch

from sk_avae.descent import Race, refine, refine_line


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


@pytest.mark.parametrize("p", [1, 2, 4, 6])
def test_refine_finds_the_minima_of_quadratics(p):
    quadratics, minimum = random_quadratics(40, p)
    alpha, loss, n_iter, converged = refine(quadratics, torch.zeros_like(minimum), ones(p), max_iter=100, tol=1e-10)
    # Refinement ends at steps of a thousandth of the unit.
    torch.testing.assert_close(alpha, minimum, rtol=0, atol=1e-2)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-4)
    assert converged.all()
    assert (n_iter < 100).all()


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


def test_a_race_of_rows_that_are_no_numbers_ends():
    def nowhere(rows, alpha):
        return alpha.sum(dim=1) * math.nan, alpha * math.nan

    race = Race(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.float64), margin=1.0)
    alpha, loss, *_ = refine(nowhere, torch.zeros(4, 2).double(), ones(2), max_iter=3, tol=1e-6, race=race)
    assert torch.equal(alpha, torch.zeros(4, 2).double())
    assert loss.isnan().all()


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
    alpha, loss, n_iter, _ = down(lambda rows, alpha: alpha[:, 0] * 0, start, ones(1), max_iter=20)
    assert torch.equal(loss, torch.zeros(4).double())
    assert alpha.isfinite().all()
    assert (n_iter <= 20).all()


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
