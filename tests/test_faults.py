"""Training that goes wrong: an error that says so, or a model of finite numbers; never a half-fitted one."""

import copy
import math
import signal
import threading

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from skorch.callbacks import Callback
from torch import nn

from sk_avae import AffineCanonicalizer, CanonicalizedClassifier
from sk_avae.vae import MLPVAE

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Have Ctrl-C raise KeyboardInterrupt also where the tests were started with it ignored, as a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fails(fitted):
    """Assert that a fit of a fitted model raises, and leaves it as it was to the bit."""
    model = copy.deepcopy(fitted)

    def check(error, match, X, **parameters):
        model.set_params(**parameters)
        before = joblib.hash(model)
        with pytest.raises(error, match=match):
            model.fit(X)
        assert joblib.hash(model) == before

    return check


# ---------------------------------------------------------------- a loss that diverges
@pytest.mark.parametrize("module", ["mlp", "conv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("lr", [2.0, 2e3])
def test_a_thousandfold_learning_rate_diverges_or_gives_numbers(small_avae, digits, module, likelihood, lr):
    model = small_avae(module=module, likelihood=likelihood, lr=lr, max_epochs=2, n_restarts=2)
    try:
        model.set_params(expert__max_iter=0).fit(digits.X[:150])
    except ValueError as error:
        assert "Training diverged" in str(error)  # noqa: PT017
        assert not hasattr(model, "module_")
    else:
        assert all(weight.isfinite().all() for weight in model.module_.state_dict().values())
        assert np.isfinite([epoch["train_loss"] for epoch in model.history_]).all()


def test_a_learning_rate_that_ends_all_numbers_says_what_to_do(fails, digits):
    fails(ValueError, r"Training diverged: .*Lower lr \(now 1e\+25\)", digits.X[:300], lr=1e25)


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class NanFromNowhere(MLPVAE):
    """Its loss is a number, its gradient is none."""

    def encode(self, x):
        mean, log_var = super().encode(x)
        return (NanGradient.apply(mean) if torch.is_grad_enabled() else mean), log_var


class NanLater(MLPVAE):
    """Trains well for some steps, and puts out NaN from then on."""

    def __init__(self, image_shape, latent_size):
        super().__init__(image_shape, latent_size, (16,))
        self.n_calls = 0

    def decode(self, z):
        self.n_calls += self.training
        return super().decode(z) + (math.nan if self.n_calls > 3 else 0.0)


class OneBadImage(MLPVAE):
    """Knows one image in a hundred that it cannot encode."""

    def encode(self, x):
        mean, log_var = super().encode(x)
        return torch.where(x[:, 0, 14, 14, None] > 0.99, math.inf, mean), log_var


class Explodes(MLPVAE):
    def encode(self, x):
        if self.training:
            raise ZeroDivisionError("of the user's own")
        return super().encode(x)


@pytest.mark.parametrize("module", [NanFromNowhere, NanLater, OneBadImage])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_module_that_makes_no_numbers_is_found_out(fails, digits, module, early_stopping):
    parameters = {"module": module, "max_epochs": 3, "batch_size": 50, "early_stopping": early_stopping}
    fails(ValueError, "Training diverged", digits.X[:300], **parameters)


def test_an_error_of_the_users_own_module_comes_through(fails, digits):
    fails(ZeroDivisionError, "of the user's own", digits.X[:50], module=Explodes)


# ---------------------------------------------------------------- a batch of one
@pytest.mark.parametrize("module", ["mlp", "conv"])
@pytest.mark.parametrize(("n", "batch_size"), [(1, 256), (9, 1), (9, 8), (3, 2)])
def test_batches_of_one_image_train(small_avae, digits, module, n, batch_size):
    model = small_avae(module=module, batch_size=batch_size, max_epochs=2, max_iter=100, tol=1.0, n_restarts=4)
    model.fit(digits.X[:n])
    assert all(weight.isfinite().all() for weight in model.module_.state_dict().values())
    assert np.isfinite(model.transform(digits.X_test[:2])).all()


# ---------------------------------------------------------------- classes of poses without an image
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "parameters",
    [
        {"alpha_prior": {"angle": 0}},
        {"alpha_prior": {"angle": 1e-3}},
        {"alpha_prior": {"angle": 0, "tx": 0, "ty": 0}},
        {"allow_reflection": True, "alpha_prior": {"angle": 0}},
    ],
)
@pytest.mark.parametrize("n", [3, 110])
def test_poses_that_are_all_in_one_class_train(small_avae, digits, turned, parameters, n):
    """Starts are learned as classes of angles, the critic from right and wrong poses: most classes may be empty."""
    model = small_avae(family="rigid", max_epochs=1, n_restarts=8, max_iter=5, critic=True, **parameters)
    result = model.fit(digits.X[:n]).align(turned.X[:20])
    assert all(np.isfinite(array).all() for array in result.arrays().values())
    frozen = [i for i, scale in enumerate(model._aligner().model.scale) if scale == 0]
    assert not result.alpha[:, frozen].any()
    assert 0 < model.temperature_ < math.inf


# ---------------------------------------------------------------- Ctrl-C
class CtrlC(Callback):
    """Sends the signal of Ctrl-C in the middle of an epoch."""

    def __init__(self, after):
        self.after = after

    def on_batch_begin(self, net, **kwargs):
        self.after -= 1
        if not self.after:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("parameters", [{}, {"early_stopping": True}, {"align_training": True}, {"pad": 2}])
@pytest.mark.parametrize("after", [1, 4])
def test_ctrl_c_is_raised_and_the_fitted_model_stays(fitted, turned, digits, parameters, after):
    avae = copy.deepcopy(fitted)
    # `set_params` is the caller's; only what `fit` sets must stay.
    avae.set_params(expert__callbacks=[CtrlC(after)], batch_size=50, **parameters)
    before = joblib.hash({name: value for name, value in avae.__getstate__().items() if name != "callbacks"})
    with pytest.raises(KeyboardInterrupt):
        avae.fit(digits.X[:200] / 255.0)
    assert joblib.hash({name: value for name, value in avae.__getstate__().items() if name != "callbacks"}) == before
    assert_array_equal(avae.set_params(align_training=False).transform(turned.X[:5]), fitted.transform(turned.X[:5]))


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # a hundred digits after one epoch
@pytest.mark.parametrize("meta", [AffineCanonicalizer, CanonicalizedClassifier])
def test_ctrl_c_leaves_a_fitted_meta_estimator(small_avae, digits, turned, meta):
    model = meta(estimator=small_avae(max_epochs=1, tol=1.0)).fit(digits.X[:100] / 255.0, digits.y[:100])
    answer = model.transform if meta is AffineCanonicalizer else model.predict
    expected = answer(turned.X[:5] / 255.0)
    model.set_params(estimator__expert__callbacks=[CtrlC(1)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(digits.X[:100, :400], digits.y[:100])
    assert model.n_features_in_ == 784
    assert_array_equal(answer(turned.X[:5] / 255.0), expected)


def test_ctrl_c_leaves_no_lock_behind(small_avae, digits):
    """Fits take turns with torch's global generator: one that was interrupted must not keep it."""
    with pytest.raises(KeyboardInterrupt):
        small_avae(callbacks=[CtrlC(1)]).fit(digits.X[:100])
    model = small_avae(max_epochs=1)
    other = threading.Thread(target=model.fit, args=(digits.X[:100],), daemon=True)
    other.start()
    other.join(timeout=60)
    assert hasattr(model, "module_")


def test_ctrl_c_in_the_middle_of_alignment_leaves_the_model(fitted, turned, monkeypatch):
    avae = copy.deepcopy(fitted)
    before, expected = joblib.hash(avae), avae.transform(turned.X[:5])
    n_calls = 0
    decode = nn.Module.__call__

    def interrupted(module, *args):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 20:
            signal.raise_signal(signal.SIGINT)
        return decode(module, *args)

    monkeypatch.setattr(nn.Module, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        avae.transform(turned.X[:200])
    monkeypatch.undo()
    assert joblib.hash(avae) == before
    assert_array_equal(avae.transform(turned.X[:5]), expected)


def test_fitting_again_after_a_failure_is_fitting(small_avae, digits, turned):
    model = small_avae(max_epochs=2, max_iter=100, tol=1.0)
    expected = joblib.hash(copy.deepcopy(model).fit(digits.X[:200]).transform(turned.X[:10]))
    with pytest.raises(ValueError, match="Training diverged"):
        model.set_params(lr=1e30).fit(digits.X[:200])
    model.set_params(lr=2e-3)
    assert joblib.hash(model.fit(digits.X[:200]).transform(turned.X[:10])) == expected
