"""Training as a function of data, and its cache."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn

from sk_avae.learning import training_run
from sk_avae.learning.fit import batch_size_for
from sk_avae.model.vae import MLPVAE

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


@pytest.fixture
def trainings(monkeypatch):
    """Count how often weights are trained."""
    calls = []
    train_vae = training_run.train_vae

    def counted(model, data, settings, **kwargs):
        calls.append(settings.latent_size)
        return train_vae(model, data, settings, **kwargs)

    monkeypatch.setattr(training_run, "train_vae", counted)
    return calls


@pytest.fixture
def quick(small_avae, tmp_path):
    return small_avae(max_epochs=1, latent_size=4, n_restarts=4, n_refine=1, max_iter=0, memory=str(tmp_path))


def test_a_grid_over_restarts_trains_once_per_latent_size_and_fold(quick, digits, trainings):
    grid = GridSearchCV(quick, {"latent_size": [3, 4], "n_restarts": [2, 3, 4]}, cv=2, refit=False)
    grid.fit(digits.X[:80])
    assert sorted(trainings) == [3, 3, 4, 4]
    scores = grid.cv_results_["mean_test_score"].reshape(2, 3)
    assert len(np.unique(scores)) > 2


@pytest.mark.usefixtures("few_lessons")
def test_what_is_remembered_has_the_same_bits(quick, digits, trainings):
    X = digits.X[:150]
    memory = joblib.Memory(quick.memory, verbose=0)
    choices = ("a", memory), ("b", memory), ("c", None)
    fitted = {name: clone(quick).set_params(critic=True, memory=where).fit(X) for name, where in choices}
    assert len(trainings) == 4  # two of them are the last epochs, on all images
    for name in "bc":
        assert_array_equal(fitted[name].encode(X[:9]), fitted["a"].encode(X[:9]))
        assert fitted[name].temperature_ == fitted["a"].temperature_


@pytest.mark.parametrize(
    "change", [{"lr": 1e-3}, {"max_epochs": 2}, {"random_state": 1}, {"pad": 2}, {"expert__validation_fraction": 0.3}]
)
def test_other_settings_train_anew(quick, digits, trainings, change):
    quick.fit(digits.X[:60])
    quick.set_params(**change).fit(digits.X[:60])
    assert len(trainings) == 2


@pytest.mark.parametrize("same", [{"family": "affine"}, {"tol": 3.0}, {"critic": True}, {"min_gain": 3.0}])
def test_the_search_trains_nothing_anew(quick, digits, trainings, same):
    quick.fit(digits.X[:60])
    quick.set_params(**same).fit(digits.X[:60])
    assert len(trainings) == 1


def test_other_images_train_anew(quick, digits, trainings):
    X = digits.X[:60].copy()
    quick.fit(X)
    X[3, 400] ^= 1
    quick.fit(X)
    assert len(trainings) == 2


def test_the_search_is_a_part_of_joint_training(quick, digits, trainings):
    quick.set_params(align_training=True, batch_size=20).fit(digits.X[:60])
    quick.fit(digits.X[:60])
    quick.set_params(n_restarts=5).fit(digits.X[:60])
    assert len(trainings) == 2


def test_without_a_seed_nothing_is_remembered(quick, digits, trainings, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="Without effect: memory="):
            quick.set_params(random_state=None).fit(digits.X[:60])
    assert len(trainings) == 2
    assert not list(tmp_path.rglob("output.pkl"))


@pytest.mark.parametrize("same_images", [np.asfortranarray, lambda X: np.repeat(X, 2, axis=0)[::2]])
def test_how_images_lie_in_memory_does_not_matter(quick, digits, trainings, same_images):
    quick.fit(digits.X[:60])
    quick.fit(same_images(digits.X[:60]))
    assert len(trainings) == 1


def test_callbacks_are_called_every_time(quick, digits, trainings):
    for _ in range(2):
        with pytest.warns(UserWarning, match="Without effect: memory="):
            quick.set_params(expert__callbacks=[Callback()]).fit(digits.X[:60])
    assert len(trainings) == 2


def test_modules_are_told_apart_by_their_weights(quick, digits, trainings):
    with torch.random.fork_rng():
        module = MLPVAE((1, 28, 28), 4, hidden_layer_sizes=(8,))
    quick.set_params(module=module).fit(digits.X[:60])
    quick.fit(digits.X[:60])
    assert len(trainings) == 1
    module.requires_grad_(False)
    next(module.parameters()).mul_(1.1)
    module.requires_grad_(True)
    quick.fit(digits.X[:60])
    assert len(trainings) == 2


def test_a_memory_that_is_none_is_named(quick, digits):
    with pytest.raises(ValueError, match="memory"):
        quick.set_params(memory=3).fit(digits.X[:60])


class TiedVAE(nn.Module):
    """One layer is fixed, two others share their weights."""

    def __init__(self):
        super().__init__()
        self.fixed = nn.Linear(784, 16).requires_grad_(False)
        self.inner, self.same = nn.Linear(16, 4), nn.Linear(16, 4)
        self.same.weight = self.inner.weight
        self.back = nn.Linear(4, 784)

    def encode(self, x):
        code = self.fixed(x.flatten(1))
        return self.inner(code), self.same(code)

    def decode(self, z):
        return self.back(z).view(-1, 1, 28, 28)


@pytest.mark.parametrize("memory", [False, True])
def test_fixed_layers_stay_and_tied_ones_stay_tied(quick, digits, memory):
    with torch.random.fork_rng():
        vae = TiedVAE()
    quick.set_params(module=vae, memory=quick.memory if memory else None, batch_size=20).fit(digits.X[:100])
    assert torch.equal(quick.module_.fixed.weight, vae.fixed.weight)
    assert not torch.equal(quick.module_.inner.weight, vae.inner.weight)
    assert quick.module_.same.weight is quick.module_.inner.weight
    again = pickle.loads(pickle.dumps(clone(quick)))
    assert not any(weight.requires_grad for weight in again.module.fixed.parameters())
    assert again.module.same.weight is again.module.inner.weight
    assert again.module.inner.weight.requires_grad


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_the_automatic_batch_size_goes_by_the_number_of_images(small_avae, digits, method):
    X = digits.X[:150]
    sized = {
        size: getattr(small_avae(max_epochs=1, learned_starts=False, batch_size=size), method)(X)
        for size in ("auto", 32, 64)
    }
    assert batch_size_for(len(X)) == 32
    assert_array_equal(sized["auto"].encode(X[:5]), sized[32].encode(X[:5]))
    assert (sized["auto"].encode(X[:5]) != sized[64].encode(X[:5])).any()


def test_batches_grow_with_the_images_and_no_further_than_they_help():
    sizes = [batch_size_for(n) for n in range(1, 20_000, 97)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {32, 64, 128, 256}
