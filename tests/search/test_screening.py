"""Screening: every candidate's score, and the best that do not lead to one optimum."""

import math

import pytest
import torch
from posed_digits import TYPICAL, avae_of, digits

from sk_avae.model.affine import FAMILIES, to_matrix
from sk_avae.search.objective import Objective
from sk_avae.search.screening import CandidatePoses, distinct_best, is_duplicate, same_basin, screen, screen_staged
from sk_avae.search.starting_poses import restart_table, starting_poses

every_family = pytest.mark.parametrize("family", FAMILIES)
FLAT = math.inf


@every_family
def test_screen_against_brute_force(family):
    model = avae_of(family)
    images = digits(n=7)
    restarts = starting_poses(images, model.background, TYPICAL, 9, family, model.scale)
    with torch.no_grad():
        expected = [
            [float(model.elbo(image[None], pose[None]) + model.log_prior(pose[None])) for pose in poses]
            for image, poses in zip(images, restarts, strict=True)
        ]
    torch.testing.assert_close(screen(Objective(model, images), restarts), torch.tensor(expected), rtol=1e-4, atol=1e-2)


def test_screening_no_restarts_has_no_columns():
    assert screen(Objective(avae_of(), digits(n=3)), torch.zeros(3, 0, 1)).shape == (3, 0)


def test_restarts_are_screened_in_turn_where_the_first_are_not_good_enough():
    model, images = avae_of(), digits(n=6)
    alpha = starting_poses(images, model.background, TYPICAL, 5, model.family, model.scale)
    first = torch.tensor([True, True, False, False, True]).expand(6, 5)
    everything = screen(Objective(model, images), alpha)
    floor = everything[:, [0, 1, 4]].amax(dim=1).median().item()
    sure = everything[:, [0, 1, 4]].amax(dim=1) >= floor
    assert 0 < sure.sum() < 6
    scores = screen_staged(Objective(model, images), CandidatePoses(alpha, first, floor))
    assert torch.equal(scores, torch.where(first | ~sure[:, None], everything, -math.inf))


def turns(*degrees):
    return to_matrix(torch.tensor(degrees, dtype=torch.float32).deg2rad()[:, None], "rotation")


def distinct(scores, matrices, k):
    """Pick from restarts that all images share."""
    return distinct_best(scores, matrices.expand(len(scores), *matrices.shape), k)


def test_distinct_best_has_neighbours_of_its_own_for_each_image():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    matrices = torch.stack([turns(0, 5, 90), turns(0, 90, 95)])
    assert distinct_best(scores, matrices, 2).tolist() == [[0, 2], [0, 1]]


def test_distinct_best_passes_over_neighbours():
    matrices = turns(0, 5, 90, 180)
    scores = torch.tensor([[9.0, 8.0, 1.0, 2.0], [1.0, 2.0, 8.0, 9.0]])
    assert distinct(scores, matrices, 3).tolist() == [[0, 3, 2], [3, 2, 1]]


def test_distinct_best_returns_to_neighbours_when_nothing_else_is_left():
    matrices = turns(0, 5, 90)
    assert distinct(torch.tensor([[3.0, 2.0, 1.0]]), matrices, 3).tolist() == [[0, 2, 1]]
    assert distinct(torch.tensor([[3.0, 2.0, 1.0]]), matrices, 10).tolist() == [[0, 2, 1]]


def test_distinct_best_of_one_is_the_best():
    scores = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    matrices = to_matrix(restart_table(16, "rotation", (FLAT,)), "rotation")
    assert torch.equal(distinct(scores, matrices, 1)[:, 0], scores.argmax(dim=1))


def test_distinct_best_leaves_its_scores_alone():
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    distinct(scores, turns(0, 5, 90), 3)
    assert torch.equal(scores, torch.tensor([[3.0, 2.0, 1.0]]))


@pytest.mark.parametrize("outlier", [-math.inf, math.nan, -1e30, 1e30])
def test_an_outlying_score_of_one_image_does_not_touch_another(outlier):
    matrices = turns(0, 5, 10, 120, 240)
    scores = torch.tensor([[5.0, 1.0, 3.0, 2.0, 4.0], [0.0, outlier, 2.0, 3.0, 1.0]])
    for k in (2, 5):
        assert distinct(scores, matrices, k)[:1].tolist() == distinct(scores[:1], matrices, k).tolist()


@pytest.mark.parametrize("impossible", [-math.inf, math.nan])
def test_an_impossible_restart_comes_last(impossible):
    assert distinct(torch.tensor([[impossible, -2.0, -1.0]]), turns(0, 120, 240), 3).tolist() == [[2, 1, 0]]


def test_a_turn_by_22_degrees_shares_an_optimum_and_one_by_23_does_not():
    assert same_basin(turns(0, 0, 10), turns(22, 23, 32.2)).tolist() == [True, False, True]


def test_a_hypothesis_is_a_duplicate_if_it_is_near_an_earlier_one_that_is_none():
    # Each is near the one before it; the third is near none that counts.
    matrices = torch.stack([turns(0, 15, 30, 45), turns(0, 90, 180, 350), turns(10, 10, 10, 10)])
    expected = [[False, True, False, True], [False, False, False, True], [False, True, True, True]]
    assert is_duplicate(matrices).tolist() == expected
    assert is_duplicate(matrices[:, :1]).tolist() == [[False]] * 3


@pytest.mark.parametrize("staged", [False, True])
def test_the_identity_can_be_left_out(staged):
    alpha = torch.arange(12.0).view(2, 3, 2)
    first = torch.tensor([[True, False, True], [False, True, False]]) if staged else None
    given = CandidatePoses(alpha, first, -3.0, torch.eye(2))
    fewer = given.without_identity()
    assert torch.equal(fewer.alpha, alpha[:, 1:])
    assert fewer.min_score == -3.0
    assert torch.equal(fewer.metric, torch.eye(2))
    assert fewer.first is None if first is None else torch.equal(fewer.first, first[:, 1:])


class Recorded:
    """An objective that notes which pairs it is asked about, and whose losses are given."""

    def __init__(self, losses):
        self.losses, self.asked = losses, []
        self.images = losses.new_zeros(len(losses), 1, 2, 2)

    def loss(self, rows, poses):
        self.asked += [(int(row), int(pose)) for row, pose in zip(rows, poses[:, 0], strict=True)]
        return self.losses[rows, poses[:, 0].long()]


def test_only_what_is_wanted_is_evaluated():
    objective, poses = Recorded(torch.arange(6.0).view(2, 3)), torch.arange(3.0).expand(2, 3)[:, :, None]
    wanted = torch.tensor([[True, False, True], [False, False, True]])
    assert screen(objective, poses, wanted).tolist() == [[0.0, -math.inf, -2.0], [-math.inf, -math.inf, -5.0]]
    assert objective.asked == [(0, 0), (0, 2), (1, 2)]
    assert (screen(objective, poses, wanted & False) == -math.inf).all()


def test_the_second_stage_is_for_images_that_are_not_sure_or_no_numbers_and_evaluates_nothing_twice():
    losses = torch.tensor([[-5.0, 0.0, 9.0], [-4.9, 0.0, 9.0], [math.nan, 0.0, 9.0]])
    objective, poses = Recorded(losses), torch.arange(3.0).expand(3, 3)[:, :, None]
    first = torch.tensor([True, False, False]).expand(3, 3)
    scores = screen_staged(objective, CandidatePoses(poses, first, min_score=5.0))
    assert objective.asked == [(0, 0), (1, 0), (2, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert scores[:2].tolist() == [[5.0, -math.inf, -math.inf], [pytest.approx(4.9), 0.0, -9.0]]
    objective.asked.clear()
    screen_staged(objective, CandidatePoses(poses))
    assert len(objective.asked) == 9


@pytest.mark.parametrize("k", [1, 3, 9])
def test_distinct_best_takes_the_best_that_is_left_and_puts_its_neighbours_behind_the_others(k):
    generator = torch.Generator().manual_seed(0)
    degrees = (360 * torch.rand(20, 9, generator=generator)).round()
    matrices = torch.stack([turns(*row.tolist()) for row in degrees])
    scores = torch.rand(20, 9, generator=generator)
    found = distinct_best(scores, matrices, k)
    for row in range(20):
        left, pushed, chosen = set(range(9)), dict.fromkeys(range(9), 0), []
        while len(chosen) < k:
            best = max(left, key=lambda i: (-pushed[i], scores[row, i]))
            chosen.append(best)
            left.remove(best)
            for i in left:
                pushed[i] += bool(same_basin(matrices[row, i], matrices[row, best]))
        assert found[row].tolist() == chosen


def test_screening_is_made_where_the_images_are():
    poses, matrices, scores = (
        torch.arange(3.0).expand(2, 3)[:, :, None],
        turns(0, 5, 90).expand(2, 3, 2, 3),
        torch.rand(2, 3),
    )

    def found():
        yield screen(Recorded(scores), poses)
        yield distinct_best(scores, matrices, 2)
        yield is_duplicate(matrices)

    expected = [*found()]
    # A tensor that is made without saying where would be of no use.
    with torch.device("meta"):
        assert all(map(torch.equal, found(), expected))
