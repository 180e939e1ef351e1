"""`AVAEEstimator.from_vae`: the affine layers around a VAE that was trained elsewhere."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from sk_avae import AVAEEstimator, ExpertSettings
from sk_avae.vae import MLPVAE

SHAPE = (28, 28)


@pytest.fixture(scope="module")
def vae(fitted):
    """A trained module, and nothing else of the model that it comes from."""
    return copy.deepcopy(fitted.module_)


def around(vae, **parameters):
    return AVAEEstimator.from_vae(vae, image_shape=SHAPE, scale=255.0, **parameters)


def test_it_aligns_like_the_model_that_the_module_comes_from(vae, fitted, turned):
    assert fitted.image_format_.scale == 255
    model = copy.deepcopy(fitted).set_params(learned_starts=False)
    # Without images it does not know what is usual, and leaves them as they are.
    model.aligner_ = replace(model.aligner_, image_format=replace(model.image_format_, exposure=None, noise=None))
    expected = model.align(turned.X[:100])
    np.testing.assert_array_equal(around(vae).align(turned.X[:100]).alpha, expected.alpha)


def test_the_module_is_left_bit_by_bit(vae, turned):
    vae.train()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    model = around(vae)
    model.transform(turned.X[:10])
    assert vae.training
    assert model.module_ is not vae
    assert not model.module_.training
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor, model.module_.state_dict()[name])


def test_images_give_the_moments_to_start_from(vae, digits, fitted):
    assert around(vae, family="affine").moments_ is None
    quick = {"n_restarts": 2, "n_refine": 1, "expert": ExpertSettings(max_iter=0)}
    model = around(vae, family="affine", critic=False, X=digits.X[:2000], **quick)
    for found, learned in zip(model.moments_, fitted.moments_, strict=True):
        np.testing.assert_allclose(found, learned, atol=1e-6)


def test_it_pickles(vae, turned):
    model = around(vae)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.transform(turned.X[:20]), model.transform(turned.X[:20]))


def test_pixels_and_background_are_in_the_units_of_the_input(vae, turned):
    black_on_white = AVAEEstimator.from_vae(vae, image_shape=SHAPE, offset=255.0, scale=-255.0, background=255.0)
    expected = around(vae).align(turned.X[:50]).alpha
    np.testing.assert_array_equal(black_on_white.align(255 - turned.X[:50]).alpha, expected)


def test_a_module_that_misses_the_contract_is_refused(vae):
    with pytest.raises(TypeError, match=r"Linear is not an AVAE module.*Missing: `encode` and `decode`"):
        AVAEEstimator.from_vae(torch.nn.Linear(2, 2), image_shape=SHAPE)
    with pytest.raises((ValueError, RuntimeError)):
        AVAEEstimator.from_vae(vae, image_shape=(8, 8))


def test_the_background_is_that_of_upright_images(vae, digits):
    X = 1 - digits.X[:80] / 255
    white = AVAEEstimator.from_vae(
        vae, image_shape=SHAPE, offset=1.0, scale=-1.0, X=X, learned_starts=False, critic=False
    )
    assert white.image_format_.background == (1.0,)
    assert AVAEEstimator.from_vae(vae, image_shape=SHAPE).image_format_.background == (0.0,)
    said = AVAEEstimator.from_vae(
        vae, image_shape=SHAPE, offset=1.0, scale=-1.0, X=X, background=0.5, critic=False, learned_starts=False
    )
    assert said.image_format_.background == (0.5,)


def test_a_gaussian_takes_the_range_of_upright_images_for_the_usual_one(vae, digits, recwarn):
    X = digits.X[:80] / 127.5 - 1
    avae = AVAEEstimator.from_vae(
        vae, image_shape=SHAPE, likelihood="gaussian", X=X, learned_starts=False, critic=False
    )
    avae.align(X[:5])
    assert not [warning for warning in recwarn if "units" in str(warning.message)]
    with pytest.warns(UserWarning, match="those that the model was made for between -1 and 1"):
        avae.align(digits.X[:5])


def test_few_right_poses_are_warned_of_at_the_line_that_asked(digits):
    torch.manual_seed(0)
    untrained = MLPVAE((1, 28, 28), 4)
    with pytest.warns(UserWarning, match="held-out images come back") as caught:
        AVAEEstimator.from_vae(untrained, image_shape=SHAPE, X=digits.X[:80] / 255, random_state=0)
    assert {warning.filename for warning in caught if "come back" in str(warning.message)} == {__file__}


def test_pixels_that_a_bernoulli_does_not_have_are_warned_of(vae, digits):
    X = 1 - digits.X[:80] / 127.5  # white paper: hardly a pixel is negative
    with pytest.warns(UserWarning, match="Bernoulli has no pixels below 0, but the module sees some of -1"):
        AVAEEstimator.from_vae(vae, image_shape=SHAPE, X=X, learned_starts=False, critic=False)
