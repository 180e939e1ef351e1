"""Likelihoods and the KL divergence, against `torch.distributions`."""

import math

import pytest
import torch
from torch import distributions, nn

from sk_avae.datasets import load_mnist_sample
from sk_avae.model.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, check_likelihood, kl_divergence, likelihood_for

# One of each kind: a new one is added here and to `LIKELIHOODS`.
EVERY = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
    "gaussian, fixed": Gaussian(scale=0.2),
    "gaussian, sigmoid": Gaussian(mean="sigmoid"),
}
every_likelihood = pytest.mark.parametrize("likelihood", EVERY.values(), ids=EVERY)


def digits(n=20):
    X, _ = load_mnist_sample("test")
    return torch.tensor(X[:n].reshape(n, 1, 28, 28) / 255.0)


def decoder_output(images, seed=0):
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=images.dtype)


def test_kl_against_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64)
    posterior = distributions.Normal(mean, (0.5 * log_var).exp())
    prior = distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl_divergence(mean, log_var), distributions.kl_divergence(posterior, prior).sum(dim=1))


def test_kl_of_the_prior_is_zero():
    assert torch.equal(kl_divergence(torch.zeros(3, 4), torch.zeros(3, 4)), torch.zeros(3))


def test_bernoulli_against_torch_distributions_on_binary_pixels():
    images = digits().round()
    logits = 3 * decoder_output(images)
    expected = distributions.Bernoulli(logits=logits).log_prob(images).flatten(1).sum(dim=1)
    torch.testing.assert_close(Bernoulli().log_prob(images, logits), expected)


def test_bernoulli_is_the_negative_cross_entropy_on_grey_pixels():
    images = digits()
    logits = decoder_output(images)
    p = logits.sigmoid()
    expected = (images * p.log() + (1 - images) * (1 - p).log()).flatten(1).sum(dim=1)
    torch.testing.assert_close(Bernoulli().log_prob(images, logits), expected)


@pytest.mark.parametrize("mean", ["identity", "sigmoid"])
@pytest.mark.parametrize("scale", [None, 0.1, 2.0])
def test_gaussian_against_torch_distributions(scale, mean):
    images = digits()
    parameters = decoder_output(images)
    likelihood = Gaussian(scale=scale, mean=mean).double()
    expected_mean = parameters.sigmoid() if mean == "sigmoid" else parameters
    normal = distributions.Normal(expected_mean, likelihood.log_scale.exp())
    expected = normal.log_prob(images).flatten(1).sum(dim=1)
    torch.testing.assert_close(likelihood.log_prob(images, parameters), expected)


def test_gaussian_scale_is_the_standard_deviation():
    assert Gaussian(scale=0.25).log_scale.exp().item() == pytest.approx(0.25)


def test_the_papers_loss_is_the_sum_of_squared_errors():
    images = (digits() - 0.1307) / 0.3081
    parameters = decoder_output(images)
    squares = (images - parameters.sigmoid()).square().flatten(1).sum(dim=1)
    log_prob = Gaussian(scale=0.5**0.5, mean="sigmoid").log_prob(images, parameters)
    constant = log_prob + squares
    torch.testing.assert_close(constant, constant[:1].expand(len(images)), rtol=0, atol=1e-3)
    assert constant[0].item() == pytest.approx(-784 / 2 * math.log(math.pi), rel=1e-5)


@every_likelihood
def test_one_number_per_image_that_ignores_its_neighbours(likelihood):
    images = digits().float()
    parameters = decoder_output(images)
    together = likelihood.log_prob(images, parameters)
    alone = torch.cat([likelihood.log_prob(images[i : i + 1], parameters[i : i + 1]) for i in range(len(images))])
    assert together.shape == (len(images),)
    torch.testing.assert_close(together, alone)


@every_likelihood
def test_gradient_of_a_row_has_the_same_bits_whatever_its_neighbours(likelihood):
    # Vectorised loops do the last elements of a batch one by one, and some functions then round differently.
    images = digits(40)[..., :27, :27].float()
    parameters = decoder_output(images).requires_grad_(True)

    def gradient(rows):
        return torch.autograd.grad(likelihood.log_prob(images[rows], parameters[rows]).sum(), parameters)[0][rows]

    whole = gradient(slice(40))
    for n in range(17, 40):
        assert torch.equal(gradient(slice(n)), whole[:n])


@every_likelihood
def test_fill_shows_the_background(likelihood):
    background = torch.tensor([0.0, 0.3, 0.9, 1.0])
    torch.testing.assert_close(likelihood.mean(likelihood.fill(background)), background, rtol=0, atol=1e-3)


@every_likelihood
def test_fill_of_a_background_makes_the_background_likely(likelihood):
    background = torch.zeros(1)
    images = torch.zeros(1, 1, 4, 4)
    filled = likelihood.fill(background).view(1, 1, 1, 1).expand_as(images)
    assert likelihood.log_prob(images, filled) > likelihood.log_prob(images, filled + 1)


@pytest.mark.parametrize("background", [-0.4242, 2.8215])
def test_fill_is_finite_for_a_standardised_background(background):
    # The paper's own setting: pixels from -0.42 to 2.82, a decoder that ends in a sigmoid.
    likelihood = Gaussian(scale=0.5**0.5, mean="sigmoid")
    shown = likelihood.mean(likelihood.fill(torch.tensor([background]))).item()
    assert shown == pytest.approx(min(max(background, 0.0), 1.0), abs=1e-3)


def test_learned_scale_is_a_parameter_and_a_given_one_is_not():
    assert isinstance(Gaussian().log_scale, nn.Parameter)
    assert list(Gaussian(scale=0.3).parameters()) == []


def test_gradient_of_the_learned_scale_vanishes_at_the_root_mean_square():
    images = digits().float()
    parameters = torch.zeros_like(images)
    likelihood = Gaussian()
    gradient = {}
    for scale in (images.square().mean().sqrt(), torch.tensor(0.1)):
        likelihood.log_scale.data = scale.log()
        likelihood.zero_grad()
        likelihood.log_prob(images, parameters).mean().backward()
        gradient[scale.item()] = likelihood.log_scale.grad.item()
    best, smaller = gradient.values()
    assert abs(best) < 0.1
    assert smaller > 100


def test_a_vanishing_scale_keeps_the_density_finite():
    likelihood = Gaussian()
    likelihood.log_scale.data.fill_(-1000.0)
    images = digits().float()
    assert likelihood.log_prob(images, images + 0.1).isfinite().all()


def test_a_scale_that_is_learned_begins_at_three_tenths_of_the_range():
    images = digits().float()
    parameters = decoder_output(images)
    assert torch.equal(Gaussian().log_prob(images, parameters), Gaussian(scale=0.3).log_prob(images, parameters))


def test_no_scale_is_smaller_than_a_thousandth():
    vanishing, smallest, larger = Gaussian(scale=1e-9), Gaussian(scale=1e-3), Gaussian(scale=1.01e-3)
    images = digits().float()
    parameters = images + 0.01
    torch.testing.assert_close(vanishing.log_prob(images, parameters), smallest.log_prob(images, parameters))
    assert (larger.log_prob(images, parameters) > smallest.log_prob(images, parameters)).all()


@pytest.mark.parametrize("inverted", [False, True])
def test_digits_are_read_as_bernoulli(inverted):
    images = digits(200)
    assert likelihood_for(1 - images if inverted else images) == "bernoulli"


def test_noise_is_read_as_gaussian():
    noise = torch.randn(50, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert likelihood_for((noise - noise.min()) / (noise.max() - noise.min())) == "gaussian"


@pytest.mark.parametrize(("greyness", "name"), [(0.0, "bernoulli"), (0.469, "bernoulli"), (0.471, "gaussian")])
def test_the_mean_greyness_decides(greyness, name):
    u = (1 - math.sqrt(1 - greyness)) / 2  # 4 u (1 - u) is the greyness
    assert likelihood_for(torch.tensor([u, 1 - u, u])) == name


@pytest.mark.parametrize("outside", [-1e-3, 1.001, 1.9, -5.0])
def test_pixels_outside_the_unit_interval_are_read_as_gaussian(outside):
    binary = torch.tensor([0.0, 1.0] * 100)
    assert likelihood_for(binary) == "bernoulli"
    binary[7] = outside
    assert likelihood_for(binary) == "gaussian"


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale must be positive or None"):
        Gaussian(scale=scale)


def test_unknown_mean_is_refused():
    with pytest.raises(ValueError, match="mean must be 'identity' or 'sigmoid', got 'tanh'"):
        Gaussian(mean="tanh")


@every_likelihood
def test_built_in_likelihoods_pass_the_check(likelihood):
    check_likelihood(likelihood)
    assert type(likelihood) in LIKELIHOODS.values()


def test_check_names_what_is_missing():
    class Poisson(nn.Module):
        support = (0.0, math.inf)
        is_density = False

        def mean(self, parameters):
            return parameters.exp()

    with pytest.raises(TypeError, match=r"Poisson is not a likelihood.*Missing: log_prob, fill\.$"):
        check_likelihood(Poisson())
