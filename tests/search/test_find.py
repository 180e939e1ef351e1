"""One whole search: gaps are filled by what was found, and unknown pixels have no part in the likelihood."""

from types import SimpleNamespace

import pytest
import torch

from sk_avae.model.likelihoods import Gaussian
from sk_avae.search.find import find_poses
from sk_avae.search.objective import Objective
from sk_avae.search.settings import SearchSettings


@pytest.fixture
def parts(fitted, turned):
    aligner = fitted._aligner()
    images = aligner.to_model(turned.X[:40])
    return SimpleNamespace(aligner=aligner, model=aligner.model, images=images)


def seen(images, own=None, observed=None):
    return SimpleNamespace(images=images, own=images if own is None else own, observed=observed)


def found_for(parts, what, **how):
    movable = torch.ones(len(what.images), dtype=torch.bool)
    how = {"movable": movable, "certainty": False, **how}
    return find_poses(parts.model, parts.aligner.initializer, SearchSettings(), what, **how)


def with_quarter(images):
    observed = torch.ones_like(images, dtype=torch.bool)
    observed[:, :, :14, :14] = False
    return torch.where(observed, images, torch.zeros(())), observed


def test_all_pixels_known_is_as_if_none_were_said_to_be(parts):
    whole, tensors = found_for(parts, seen(parts.images))
    known = torch.ones_like(parts.images, dtype=torch.bool)
    filled, of_known = found_for(parts, seen(parts.images, observed=known))
    assert torch.equal(whole, filled)
    torch.testing.assert_close(of_known["elbo"], tensors["elbo"], atol=1e-2, rtol=0)
    torch.testing.assert_close(of_known["alpha"], tensors["alpha"], atol=1e-4, rtol=0)


def test_gaps_are_filled_and_nothing_else_is_touched(parts):
    images, observed = with_quarter(parts.images)
    filled, tensors = found_for(parts, seen(images, observed=observed))
    assert torch.equal(filled[observed], images[observed])
    assert (filled[~observed] > 0).any()
    # What fills them is nearer to what was there than the background is.
    was = parts.images[~observed]
    assert (filled[~observed] - was).square().mean() < was.square().mean()
    whole = found_for(parts, seen(parts.images))[1]["alpha"]
    near = (tensors["alpha"] - whole).abs().remainder(2 * torch.pi)[:, 0]
    assert (torch.minimum(near, 2 * torch.pi - near) < 0.35).double().mean() > 0.7


def test_what_stands_in_a_gap_is_not_looked_at_by_the_likelihood(parts):
    images, observed = with_quarter(parts.images)
    alpha = torch.zeros(len(images), 1)
    rows = torch.arange(len(images))
    spoiled = torch.where(observed, images, torch.rand(images.shape, generator=torch.Generator().manual_seed(0)))
    z = parts.model.vae.encode(images)[0]
    parameters = parts.model.vae.decode(z)
    of = parts.model._log_prob_of
    torch.testing.assert_close(of(images, parameters, observed), of(spoiled, parameters, observed))
    # And it is of the other pixels alone.
    logits = parameters[observed].view(len(images), -1)
    by_hand = -torch.nn.functional.binary_cross_entropy_with_logits(
        logits, images[observed].view(len(images), -1), reduction="none"
    ).sum(dim=1)
    torch.testing.assert_close(of(images, parameters, observed), by_hand, atol=1e-2, rtol=1e-4)
    assert Objective(parts.model, images, observed).loss(rows, alpha).isfinite().all()


@pytest.mark.parametrize("scale", [0.3, 0.01])
def test_a_density_is_of_the_known_pixels_too(parts, scale):
    images, observed = with_quarter(parts.images)
    likelihood = Gaussian(scale)
    model = SimpleNamespace(likelihood=likelihood, background=parts.model.background)
    found = type(parts.model)._log_prob_of(model, images.double(), 0.5 * images.double(), observed)
    miss = (0.5 * images.double() * observed).square().flatten(1).sum(dim=1)
    n_known = observed[0].sum()
    by_hand = -0.5 * miss / likelihood.log_scale.exp() ** 2 - n_known * (
        likelihood.log_scale + 0.5 * torch.log(torch.tensor(2 * torch.pi))
    )
    torch.testing.assert_close(found, by_hand.double(), atol=1e-2, rtol=1e-5)


def test_the_elbo_is_that_of_the_image_as_it_came(parts):
    own = parts.images.clone()
    own[3] = (own[3] + 0.2).clamp(0, 1)
    tensors = found_for(parts, seen(parts.images, own=own))[1]
    plain = found_for(parts, seen(parts.images))[1]
    assert torch.equal(tensors["alpha"], plain["alpha"])
    others = torch.arange(len(own)) != 3
    assert torch.equal(tensors["elbo"][others], plain["elbo"][others])
    assert tensors["elbo"][3] < plain["elbo"][3]


def test_certainty_is_of_what_was_searched(parts):
    images, observed = with_quarter(parts.images)
    tensors = found_for(parts, seen(images, observed=observed), certainty=True)[1]
    assert tensors["alpha_std"].shape == (40, 1)
    assert tensors["agreement"].shape == (40,)
    still = torch.zeros(40, dtype=torch.bool)
    assert found_for(parts, seen(images), movable=still, certainty=True)[1]["alpha_std"].isnan().all()
