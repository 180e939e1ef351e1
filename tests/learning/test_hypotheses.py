"""Hypotheses: what alignment finds for images in known poses, and which of it is right."""

import math
from dataclasses import replace

import pytest
import torch

from sk_avae.learning import hypotheses
from sk_avae.learning.hypotheses import align_in_parts, find_hypotheses, is_right, propose_hypotheses
from sk_avae.learning.perturbation import Places, random_poses
from sk_avae.model.affine import compose, to_matrix, with_reflection
from sk_avae.search.objective import step_units
from sk_avae.search.proposer import Proposer, propose
from sk_avae.search.settings import SearchSettings

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

SEARCH = SearchSettings(n_restarts=16, n_refine=4, max_iter=6, tol=1e-2)
INFINITE = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tensors(X):
    return torch.tensor(X).view(-1, 1, 28, 28) / 255


@pytest.mark.parametrize(("degrees", "expected"), [(0, True), (20, True), (-24, True), (26, False), (180, False)])
def test_a_turn_is_right_up_to_about_25_degrees(degrees, expected):
    true = to_matrix(torch.tensor([[0.4, 0.2, -0.3, 0.3, 0.1, -0.2]]))
    error = to_matrix(torch.tensor([[math.radians(degrees), 0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert is_right(compose(true, error), true).tolist() == [expected]


def test_a_stretch_and_a_shift_are_right_up_to_a_point():
    true = to_matrix(torch.tensor([[2.0, 0.2, -0.3, 0.3, 0.1, -0.2]])).expand(4, 2, 3)
    errors = torch.zeros(4, 6)
    errors[0, 1], errors[1, 1], errors[2, 4], errors[3, 4] = math.log(1.5), math.log(1.7), 0.55, 0.65
    assert is_right(compose(true, to_matrix(errors)), true).tolist() == [True, False, True, False]


def test_the_mirror_image_is_wrong():
    larger = with_reflection("rotation")
    plain, mirrored = to_matrix(torch.tensor([[0.3, 0.0], [0.3, 1.0]]), larger).split(1)
    assert is_right(mirrored, mirrored).all()
    assert not is_right(mirrored, plain).any()


def test_hypotheses_are_those_of_images_perturbed_by_the_truth(model, starts, digits):
    images = tensors(digits.X[:40])
    true = random_poses(40, model.family, model.scale, generator())
    found = find_hypotheses(model, images, starts, SEARCH, Places(true))
    assert found.alpha.shape == (40, 4, 4)
    truth = model.matrix(true, images)
    # Warped by the truth, the perturbed digit is the digit again.
    again = model.canonical(found.images, truth)
    assert (again - images).abs().mean() < 0.3 * (found.images - images).abs().mean()
    with torch.no_grad():
        poses = found.alpha.view(-1, 4)
        energy = model.elbo(found.images.repeat_interleave(4, dim=0), poses) + model.log_prior(poses)
    counts = found.log_joint > -INFINITE
    assert 40 < counts.sum() < 160
    torch.testing.assert_close(found.log_joint[counts], energy.view(40, 4)[counts], rtol=1e-4, atol=1e-2)
    right = is_right(model.matrix(poses, images), truth.repeat_interleave(4, dim=0)).view(40, 4)
    assert torch.equal(found.right, right & counts)


def test_proposals_are_the_modes_of_the_proposer_and_a_pose_near_the_truth(model, digits):
    images = tensors(digits.X[:60])
    true = random_poses(60, model.family, model.scale, generator())
    offset = torch.eye(2, 3).repeat(60, 1, 1)
    with torch.random.fork_rng(devices=[]):
        proposer = Proposer((1, 28, 28), model.family).eval().requires_grad_(False)
    found = propose_hypotheses(model, images, proposer, None, places=Places(true, offset), generator=generator())
    modes = propose(proposer, model, found.images, None)[0]
    assert torch.equal(found.alpha[:, :-1], modes[:, : found.alpha.shape[1] - 1])
    assert ((found.alpha[:, -1] - true).abs() < 4 * step_units(model, images)).all()
    assert found.right[:, -1].float().mean() > 0.5
    truth = model.matrix(true, images)
    for j in range(found.alpha.shape[1]):
        counts = found.log_joint[:, j] == 0
        assert torch.equal(found.right[:, j], counts & is_right(model.matrix(found.alpha[:, j], images), truth))
    assert set(found.log_joint.unique().tolist()) <= {0.0, -INFINITE}


def test_images_are_as_far_off_centre_as_was_said(model, starts, digits):
    images = tensors(digits.X[:20])
    true = torch.zeros(20, len(model.scale))
    offset = torch.eye(2, 3).repeat(20, 1, 1)
    offset[:, :, 2] = torch.tensor([2.0, -3.0]) * 2 / 28
    found = find_hypotheses(model, images, starts, SEARCH, Places(true, offset))
    moved = images.roll((-3, 2), dims=(2, 3))
    assert torch.allclose(found.images, moved, atol=1e-5)


def test_hypotheses_of_an_image_do_not_depend_on_the_others(model, starts, digits):
    images = tensors(digits.X[:40])
    true = random_poses(40, model.family, model.scale, generator())
    whole = find_hypotheses(model, images, starts, SEARCH, Places(true))
    rows = slice(11, 18)
    part = find_hypotheses(model, images[rows], starts, SEARCH, Places(true[rows]))
    for name, tensor in part._asdict().items():
        assert torch.equal(tensor, getattr(whole, name)[rows]), name


def test_images_are_aligned_in_parts_as_all_at_once(model, starts, digits, monkeypatch):
    images = tensors(digits.X[:40])
    (whole,) = align_in_parts(model, images, starts, SEARCH)
    monkeypatch.setattr(hypotheses, "image_slices", lambda images: (slice(0, 17), slice(17, 40)))
    parts = list(align_in_parts(model, images, starts, SEARCH))
    assert [len(part.alpha) for part in parts] == [17, 23]
    for name in ("alpha", "gain", "hypotheses", "hypothesis_elbo", "hypothesis_weight"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_no_hypothesis_is_given_up_whatever_the_temperature(model, starts, digits):
    images = tensors(digits.X[:20])
    true = random_poses(20, model.family, model.scale, generator())
    cold, hot = (
        find_hypotheses(model, images, starts, replace(SEARCH, temperature=temperature), Places(true))
        for temperature in (1e-3, 1e3)
    )
    for name, tensor in cold._asdict().items():
        assert torch.equal(tensor, getattr(hot, name)), name
