"""The proposer's training: what its loss asks for, and of which images."""

import math

import pytest
import torch
from posed_digits import TYPICAL, avae_of, digits

from sk_avae.learning import proposer_training
from sk_avae.learning.perturbation import Places, perturb, random_places, random_poses
from sk_avae.learning.proposer_training import proposal_loss, train_proposer
from sk_avae.model.affine import FAMILIES, parameters_of, with_reflection
from sk_avae.model.polar import N_ANGLES
from sk_avae.progress import SILENT
from sk_avae.search.proposer import Proposer, bin_centres, output_units

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

every_family = pytest.mark.parametrize("family", [*FAMILIES, with_reflection("rotation"), with_reflection("affine")])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def new_proposer(family, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Proposer((1, 28, 28), family)


class Told:
    """Stands for a proposer that says the same of each image: logits of the bins, and the rest in each."""

    def __init__(self, family, logits, rest):
        self.logits, self.rest = logits, rest
        self.n_angles, self.n_bins, self.n_params = N_ANGLES, logits.shape[1], len(parameters_of(family))

    def __call__(self, images):
        return self.logits, self.rest[:, None].expand(-1, self.n_bins, -1)


def knowing(model, poses, sure=50.0):
    """Return a proposer that knows the bin and the rest of each pose, and is so sure of the bin."""
    n_bins = N_ANGLES * (1 + ("+" in model.family))
    blank = Told(model.family, torch.zeros(len(poses), n_bins), torch.zeros(len(poses), poses.shape[1]))
    centres, units = bin_centres(blank, poses), output_units(model, poses)
    apart = (poses[:, None] - centres)[:, :, 0].abs()
    if n_bins > N_ANGLES:
        apart = apart + 10 * (poses[:, None, -1] != centres[:, -1])
    bins = apart.argmin(dim=1)
    rest = torch.where(units > 0, (poses - centres[bins]) / units.clamp(min=1e-6), torch.zeros(()))
    logits = sure * torch.nn.functional.one_hot(bins, n_bins).float()
    return Told(model.family, logits, rest)


@every_family
def test_who_knows_the_pose_has_no_loss_and_who_knows_only_the_rest_that_of_the_bins(family):
    model = avae_of(family)
    poses = random_poses(60, family, model.scale, generator())
    assert proposal_loss(knowing(model, poses), model, torch.empty(0), poses).item() < 1e-6
    nothing = proposal_loss(knowing(model, poses, sure=0.0), model, torch.empty(0), poses)
    assert nothing.item() == pytest.approx(math.log(N_ANGLES * (1 + ("+" in family))), rel=1e-5)


@every_family
def test_a_miss_of_any_free_parameter_costs_and_a_huge_one_no_more_than_ten_units(family):
    model = avae_of(family)
    poses, n_free = random_poses(60, family, model.scale, generator()), len(parameters_of(family)) - ("+" in family)
    for i in range(n_free):
        costs = []
        for units in (0.0, 1.0, 2.0):
            told = knowing(model, poses)
            told.rest[:, i] += units
            costs.append(proposal_loss(told, model, torch.empty(0), poses).item())
        # Smooth L1 of the distance in units, at half weight.
        assert costs == pytest.approx([0, 0.25, 0.75], abs=1e-3)
    if n_free == 1:
        return
    told = knowing(model, poses)
    far = poses.clone()
    far[:, 1] += 1e4
    assert proposal_loss(told, model, torch.empty(0), far).item() <= 0.5 * (10 + told.rest[:, 1].abs().max().item())


def test_frozen_parameters_cost_nothing():
    model = avae_of("rigid", {"tx": 0})
    poses = random_poses(60, "rigid", model.scale, generator())
    told = knowing(model, poses)
    told.rest[:, 1] += 5.0
    assert proposal_loss(told, model, torch.empty(0), poses).item() < 1e-6


@every_family
def test_what_it_sees_has_the_pose_that_is_left_to_find(family, monkeypatch):
    model, images, shown = avae_of(family), digits("train", 40), []

    def watched(proposer, model, seen, rest):
        shown.append((seen, rest))
        return proposal_loss(proposer, model, seen, rest)

    monkeypatch.setattr(proposer_training, "proposal_loss", watched)
    monkeypatch.setattr("sk_avae.learning.perturbation._SHARE_OFF_CENTRE", 0.0)
    proposer = new_proposer(family)
    train_proposer(proposer, model, images, TYPICAL, max_epochs=2, generator=generator(), progress=SILENT)
    assert proposer.training
    assert len(shown) == 2
    assert not torch.equal(shown[0][1].sort(dim=0).values, shown[1][1].sort(dim=0).values), "perturbed anew"
    for seen, rest in shown:
        # Without the rest, each is one of the images again.
        again = model.canonical(seen, model.matrix(rest, seen))
        nearest = (again[:, None] - images).abs().mean(dim=(2, 3, 4))
        assert len(nearest.argmin(dim=1).unique()) > 30
        assert (
            nearest.amin(dim=1).median() < 0.4 * (seen[:, None] - images).abs().mean(dim=(2, 3, 4)).amin(dim=1).median()
        )


def test_an_image_that_is_off_centre_is_so_before_it_is_perturbed(monkeypatch):
    model, images, shown = avae_of(), digits("train", 20), []
    true = random_poses(20, "rotation", model.scale, generator())
    offset = torch.eye(2, 3).repeat(20, 1, 1)
    offset[:, :, 2] = torch.tensor([2.0, -3.0]) * 2 / 28
    monkeypatch.setattr(proposer_training, "random_places", lambda *args: Places(true, offset))
    monkeypatch.setattr(
        proposer_training, "proposal_loss", lambda *args: shown.append(args[2:]) or args[0](args[2])[0].sum()
    )
    train_proposer(new_proposer("rotation"), model, images, None, max_epochs=1, generator=generator(), progress=SILENT)
    ((seen, rest),) = shown
    again, moved = model.canonical(seen, model.matrix(rest, seen)), images.roll((-3, 2), dims=(2, 3))
    nearest = (again[:, None] - moved).abs().mean(dim=(2, 3, 4)).amin(dim=1)
    assert nearest.mean() < 0.3 * (again[:, None] - images).abs().mean(dim=(2, 3, 4)).amin(dim=1).mean()


def test_training_repeats_with_its_generators(capsys):
    model, images, states = avae_of(), digits("train", 100), []
    for seed in (0, 0, 1):
        proposer = new_proposer("rotation")
        train_proposer(proposer, model, images, None, max_epochs=2, generator=generator(seed), progress=SILENT)
        states.append(proposer.state_dict())
        assert capsys.readouterr().out == ""
    one, same, other = states
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["network.rings"], other["network.rings"])


def test_a_trained_proposer_tells_poses_that_it_has_not_seen():
    model, images, proposer = avae_of(), digits("train", 900), new_proposer("rotation")
    train_proposer(proposer, model, images, None, max_epochs=20, generator=generator(), progress=SILENT)
    test = digits("test", 300)
    true = random_poses(300, "rotation", model.scale, generator(5))
    loss = proposal_loss(proposer.eval(), model, perturb(model, test, Places(true))[0], true).item()
    assert loss < math.log(N_ANGLES) - 0.5


@pytest.mark.parametrize(
    ("max_epochs", "fewest", "n_images", "n_epochs"), [(9, 4, 400, 9), (9, 4, 240, 6), (9, 4, 1, 4), (2, 4, 400, 2)]
)
def test_few_images_take_more_epochs_but_not_more_than_wanted(monkeypatch, max_epochs, fewest, n_images, n_epochs):
    monkeypatch.setattr(proposer_training, "_EPOCHS", (fewest, 100))
    monkeypatch.setattr(proposer_training, "_IMAGES", (n_images, 4000))
    calls = []
    monkeypatch.setattr(proposer_training, "random_places", lambda *args: calls.append(1) or random_places(*args))
    images = digits("train", 40)
    train_proposer(
        new_proposer("rotation"), avae_of(), images, None, max_epochs=max_epochs, generator=generator(), progress=SILENT
    )
    assert len(calls) == n_epochs
