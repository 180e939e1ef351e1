"""Training that goes on: `warm_start`, `partial_fit`, what an interruption leaves, early stopping."""

import copy
import itertools
import pickle

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from skorch.callbacks import Callback

from sk_avae import AVAEEstimator
from sk_avae.learning.vae_training import VAENet
from sk_avae.model.vae import MLPVAE

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged", "few_lessons")


@pytest.fixture
def tiny(small_avae):
    """A model that is fitted in a moment and learns no starts."""
    return small_avae(latent_size=4, max_epochs=3, n_restarts=4, n_refine=1, learned_starts=False)


def state(model):
    """Everything that `fit` sets, as a hash."""
    model = copy.deepcopy(model)
    return joblib.hash({name: value for name, value in model.__getstate__().items() if name not in model.get_params()})


def weights(model):
    return {name: tensor.numpy().copy() for name, tensor in model.module_.state_dict().items()}


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


class Weights(Callback):
    """Keeps the weights after each epoch, in the class, and interrupts after one of them."""

    seen = ()

    def __init__(self, interrupt_in=None):
        self.interrupt_in = interrupt_in

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.interrupt_in:
            raise KeyboardInterrupt

    def on_epoch_end(self, net, **kwargs):
        Weights.seen = (*Weights.seen, {name: t.numpy().copy() for name, t in net.module_.state_dict().items()})


@pytest.fixture(autouse=True)
def nothing_seen():
    Weights.seen = ()


# ---------------------------------------------------------------- warm_start
def test_the_first_warm_fit_is_a_fit(tiny, digits):
    cold, warm = (clone(tiny).set_params(warm_start=w).fit(digits.X[:150]) for w in (False, True))
    assert state(cold) == state(warm)


def test_a_cold_fit_forgets(tiny, digits):
    model = clone(tiny).fit(digits.X[:150])
    first = state(model)
    assert state(model.partial_fit(digits.X[:150])) != first
    assert state(model.fit(digits.X[:150])) == first


def test_a_warm_fit_goes_on_with_its_weights(tiny, digits):
    model = tiny.set_params(warm_start=True).fit(digits.X[:300])
    before = weights(model)
    model.set_params(lr=1e-12, expert__callbacks=[Weights()]).fit(digits.X[:300])
    for name, tensor in weights(model).items():
        assert_allclose(tensor, before[name], atol=1e-8)
    assert len(Weights.seen) == 3
    assert model.n_iter_ == 6


def test_epochs_are_counted_on(tiny, digits):
    model = tiny.set_params(warm_start=True, max_epochs=4).fit(digits.X[:300])
    first, poor = model.history_, model.score(digits.X_test[:100])
    model.set_params(max_epochs=6).fit(digits.X[:300])
    assert model.n_iter_ == len(model.history_) == 10
    assert [epoch["epoch"] for epoch in model.history_] == list(range(1, 11))
    assert model.history_[:4] == first
    assert model.history_[4]["train_loss"] < first[-1]["train_loss"] + 1
    assert model.score(digits.X_test[:100]) > poor + 5


def test_other_random_numbers_are_drawn_but_the_same_images_held_out(tiny, digits, monkeypatch):
    seen = []
    step = VAENet.validation_step
    monkeypatch.setattr(VAENet, "validation_step", lambda net, batch: seen.append(batch[0][0]) or step(net, batch))
    noise = []
    train_step = VAENet.train_step_single
    monkeypatch.setattr(
        VAENet, "train_step_single", lambda net, batch: noise.append(batch[0][1].tolist()) or train_step(net, batch)
    )
    tiny.set_params(warm_start=True, expert__validation_fraction=0.2, max_epochs=1, batch_size=200)
    tiny.fit(digits.X[:100]).fit(digits.X[:100])
    assert torch.equal(seen[0], seen[1])
    assert noise[0] != noise[1]
    assert sorted(noise[0]) == sorted(noise[1])


def test_what_helps_the_search_is_learned_again(small_avae, digits):
    model = small_avae(max_epochs=2, warm_start=True, min_gain="auto").fit(digits.X[:200])
    before, gate = model.proposer_, model.min_gain_
    model.set_params(family="rigid").fit(digits.X[:200])
    assert model.proposer_ is not before
    assert model.proposer_.family == "rigid"
    assert model.min_gain_ != gate
    assert model.align(digits.X_test[:3]).alpha.shape == (3, 3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"latent_size": 5}, r"latent_size=5 \(was 4\)"),
        ({"module": MLPVAE}, None),
        ({"pad": 3}, r"pad=3 \(was 0\)"),
        ({"image_shape": (14, 56)}, r"image_shape=\(14, 56\) \(was \(28, 28\)\)"),
        ({"image_shape": (28, 28)}, None),
        ({"image_shape": (10, 10)}, r"needs 100"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_weights_of_another_model_are_refused(tiny, digits, change, match, method):
    model = tiny.set_params(warm_start=True, max_epochs=1).fit(digits.X[:60])
    before = state(model)
    model.set_params(**change)
    if match is None:
        getattr(model, method)(digits.X[:60])
        assert model.n_iter_ == 2
        return
    with pytest.raises(ValueError, match=match):
        getattr(model, method)(digits.X[:60])
    assert state(model) == before
    if method == "fit" and "image_shape" not in change:
        assert model.set_params(warm_start=False).fit(digits.X[:60]).n_iter_ == 1


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_images_of_another_size_are_refused(tiny, digits, method):
    model = tiny.set_params(warm_start=True).fit(digits.X[:60])
    before = state(model)
    with pytest.raises(ValueError, match="X has 400 features, but AVAEEstimator is expecting 784"):
        getattr(model, method)(digits.X[:60, :400])
    assert state(model) == before


def test_a_vae_from_elsewhere_is_tuned(digits):
    with torch.random.fork_rng(devices=[]):
        mine = MLPVAE((1, 28, 28), 4, (32,))
    model = AVAEEstimator.from_vae(mine, image_shape=(28, 28), scale=255.0, random_state=0, learned_starts=False)
    poor, untouched = model.score(digits.X_test[:20]), copy.deepcopy(mine.state_dict())
    model.set_params(warm_start=True, max_epochs=3, batch_size=16, critic=False).fit(digits.X[:300])
    assert model.score(digits.X_test[:20]) > poor + 50
    assert model.n_iter_ == 3
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in mine.state_dict().items())


def test_warm_fits_are_remembered_apart(tiny, digits, tmp_path):
    model = tiny.set_params(warm_start=True, memory=str(tmp_path), max_epochs=1)
    one = clone(model).fit(digits.X[:60])
    first = weights(one)
    assert not same(weights(one.fit(digits.X[:60])), first)
    again = clone(model).fit(digits.X[:60]).fit(digits.X[:60])
    assert same(weights(one), weights(again))


def test_warm_start_is_a_truth_value(tiny, digits):
    with pytest.raises(TypeError, match="warm_start must be True or False, got 'yes'"):
        tiny.set_params(warm_start="yes").fit(digits.X[:60])


# ---------------------------------------------------------------- Ctrl-C
@pytest.mark.parametrize("fitted_before", [False, True])
def test_ctrl_c_leaves_the_last_whole_epoch_of_a_warm_fit(tiny, digits, fitted_before):
    model = tiny.set_params(warm_start=True, learned_starts=True)
    n_before = model.set_params(max_epochs=2).fit(digits.X[:120]).n_iter_ if fitted_before else 0
    model.set_params(max_epochs=9, expert__callbacks=[Weights(interrupt_in=4)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(digits.X[:120])
    assert model.n_iter_ == len(model.history_) == n_before + 3
    assert same(weights(model), Weights.seen[-1])
    assert model.proposer_ is None
    assert model.transform(digits.X_test[:3]).shape == (3, 785)
    model.set_params(expert__callbacks=None, max_epochs=1).fit(digits.X[:120])
    assert model.n_iter_ == n_before + 4
    assert model.proposer_ is not None


def test_ctrl_c_while_the_search_is_learned_keeps_the_weights_of_a_warm_fit(tiny, digits, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sk_avae.learning.fit.learn_search_models", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny.set_params(warm_start=True).fit(digits.X[:60])
    assert tiny.n_iter_ == 3
    assert tiny.transform(digits.X_test[:3]).shape == (3, 785)


@pytest.mark.parametrize("warm_start", [False, True])
def test_ctrl_c_before_an_epoch_is_whole_changes_nothing(tiny, digits, warm_start):
    model = tiny.set_params(warm_start=warm_start, expert__callbacks=[Weights(interrupt_in=1)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(digits.X[:60])
    assert not hasattr(model, "module_")
    before = state(model.set_params(expert__callbacks=None).fit(digits.X[:60]))
    with pytest.raises(KeyboardInterrupt):
        model.set_params(expert__callbacks=[Weights(interrupt_in=1 if warm_start else 3)]).fit(digits.X[:60])
    assert state(model) == before


# ---------------------------------------------------------------- partial_fit
def streamed(model, X, n_calls, size=200):
    """Pass over X in parts, again and again."""
    starts = itertools.cycle(range(0, len(X), size))
    for _ in range(n_calls):
        start = next(starts)
        model.partial_fit(X[start : start + size])
    return model


def test_partial_fits_learn_to_align(small_avae, digits, turned):
    model = streamed(small_avae(batch_size=64), digits.X[:1000], 5)
    poor = model.score(turned.X[:100])
    streamed(model, digits.X[:1000], 70)
    assert model.n_iter_ == len(model.history_) == 75
    assert [epoch["epoch"] for epoch in model.history_] == list(range(1, 76))
    assert model.score(turned.X[:100]) > poor + 30
    error = np.angle(np.exp(1j * (model.align(turned.X[:200]).alpha - turned.alpha[:200]).ravel()))
    assert np.median(np.abs(error)) < np.radians(20)


def test_what_was_learned_for_the_search_is_dropped_and_learned_again(small_avae, digits):
    model = small_avae(max_epochs=2, warm_start=True, n_restarts=8, critic=True).fit(digits.X[:200])
    assert model.proposer_ is not None
    model.partial_fit(digits.X[:100])
    assert model.proposer_ is model.critic_ is model.min_gain_ is None
    assert (model.temperature_, model.pose_spread_, model.n_iter_) == (1.0, {}, 3)
    assert model.align(digits.X_test[:5]).alpha_std.shape == (5, 1)
    assert model.fit(digits.X[:200]).proposer_ is not None
    assert model.n_iter_ == 5


def test_it_is_one_pass_at_one_learning_rate(tiny, digits):
    class Rates(Callback):
        seen = []  # noqa: RUF012

        def on_batch_end(self, net, training=False, **kwargs):
            Rates.seen.append(net.optimizer_.param_groups[0]["lr"])

    tiny.set_params(
        batch_size=50, expert__callbacks=[Rates()], lr=3e-3, early_stopping=True, expert__validation_fraction=0.5
    )
    tiny.partial_fit(digits.X[:200])
    assert Rates.seen == [3e-3] * 4
    assert tiny.n_iter_ == 1
    assert set(tiny.history_[0]) == {"epoch", "train_loss"}


def test_adam_goes_on(tiny, digits):
    X = digits.X[:100]
    one, forgetful = clone(tiny).partial_fit(X), clone(tiny).partial_fit(X)
    assert same(weights(one), weights(forgetful))
    forgetful._adam = None
    one.partial_fit(X)
    forgetful.partial_fit(X)
    assert not same(weights(one), weights(forgetful))
    assert one._adam[0]["step"] == 2
    assert forgetful._adam[0]["step"] == 1


def test_it_repeats_and_goes_on_from_a_pickle_bit_for_bit(tiny, digits):
    one, other = (streamed(clone(tiny), digits.X[:300], 2, size=100) for _ in range(2))
    assert joblib.hash(one) == joblib.hash(other)
    other = pickle.loads(pickle.dumps(other))
    assert state(streamed(one, digits.X[:300], 2)) == state(streamed(other, digits.X[:300], 2))
    assert b"torch._utils" not in pickle.dumps(one)


def test_the_first_call_fixes_what_pixels_mean(tiny, digits):
    model = tiny.partial_fit(digits.X[:200])
    first, moments = model.image_format_, model.moments_
    model.partial_fit(digits.X[200:400] // 2)
    assert model.image_format_ == first
    assert model.moments_ is moments
    assert type(model.likelihood_).__name__ == "Bernoulli"


def test_calls_draw_other_random_numbers(tiny, digits):
    orders = []

    class Order(Callback):
        def on_batch_begin(self, net, batch=None, **kwargs):
            orders.append(batch[0][1].tolist())

    tiny.set_params(expert__callbacks=[Order()])
    for _ in range(3):
        tiny.partial_fit(digits.X[:100])
    assert len({tuple(order) for order in orders}) == 3


def test_images_in_any_pose_are_aligned_in_each_call(tiny, turned):
    model = streamed(tiny.set_params(align_training=True, batch_size=50), turned.X[:100], 3, size=100)
    assert {"moved", "pose_std_angle"} < set(model.history_[-1])
    assert not hasattr(model, "alpha_")
    model.set_params(warm_start=True, max_epochs=1).fit(turned.X[:100])
    assert model.alpha_.shape == (100, 1)
    assert not hasattr(model.partial_fit(turned.X[:100]), "alpha_")


@pytest.mark.parametrize("fitted_before", [False, True])
def test_a_failed_call_leaves_the_model_as_it_was(tiny, digits, fitted_before):
    model = tiny.partial_fit(digits.X[:60]) if fitted_before else tiny
    before = joblib.hash(model)
    bad = digits.X[:60] / 255
    bad[3, 3] = np.nan
    for X in (bad, digits.X[:0]):
        with pytest.raises(ValueError, match=r"NaN|0 sample"):
            model.partial_fit(X)
    for name, value, match in (
        ("lr", 1e30, "Training diverged"),
        ("min_gain", "auto", "learned in `fit` only"),
        ("batch_size", 0, "batch_size == 0"),
    ):
        kept = getattr(model, name)
        with pytest.raises(ValueError, match=match):
            streamed(model.set_params(**{name: value}), digits.X[:300], 1, size=300)
        model.set_params(**{name: kept})
    model.set_params(expert__callbacks=[Weights(interrupt_in=1)])
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(digits.X[:60])
    assert joblib.hash(model.set_params(expert__callbacks=None)) == before
    assert hasattr(model, "module_") == fitted_before


# ---------------------------------------------------------------- early stopping, with set values
@pytest.mark.parametrize(
    ("losses", "patience", "n_iter", "best"),
    [
        ([5, 4, 3, 3.5, 3.6, 3.7, 1], 3, 6, 2),
        ([5, 4, 3, 3.5, 3.6, 3.7, 1], 2, 5, 2),
        ([5, 4, 4, 3.9, 3.9, 3.9, 3.9], 2, 6, 3),
        ([1, 2, 3, 4, 5, 6, 7], 1, 2, 0),
        ([7, 6, 5, 4, 3, 2, 1], 1, 7, 6),
        ([3, 9, 2, 9, 1, 9, 9], 2, 7, 4),
    ],
)
def test_it_stops_after_so_many_epochs_without_a_better_loss(tiny, digits, monkeypatch, losses, patience, n_iter, best):
    def step(net, batch):
        return {"loss": torch.tensor(float(losses[len(net.history) - 1])), "y_pred": None}

    monkeypatch.setattr(VAENet, "validation_step", step)
    tiny.set_params(
        max_epochs=len(losses), early_stopping=True, expert__n_iter_no_change=patience, expert__callbacks=[Weights()]
    )
    model = tiny.fit(digits.X[:60])
    assert model.n_iter_ == len(model.history_) == n_iter
    assert [epoch["valid_loss"] for epoch in model.history_] == pytest.approx(losses[:n_iter])
    assert same(weights(model), Weights.seen[best])


def test_without_early_stopping_every_epoch_is_run(tiny, digits, monkeypatch):
    monkeypatch.setattr(
        VAENet, "validation_step", lambda net, batch: {"loss": torch.tensor(float(len(net.history))), "y_pred": None}
    )
    model = tiny.set_params(
        max_epochs=8, expert__n_iter_no_change=1, expert__validation_fraction=0.2, expert__callbacks=[Weights()]
    )
    with pytest.warns(UserWarning, match=r"Without effect: expert__n_iter_no_change=1 \(early_stopping is False\)"):
        model.fit(digits.X[:60])
    assert model.n_iter_ == 8
    assert same(weights(model), Weights.seen[7])
    assert_array_equal([epoch["valid_loss"] for epoch in model.history_], range(1, 9))
