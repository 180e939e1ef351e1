"""The VAE's training: the loss, the history, early stopping, and what goes wrong on the way."""

import copy
import math

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sk_avae import AVAEEstimator, ExpertSettings
from sk_avae.datasets import load_mnist_sample
from sk_avae.learning.epochs import Reporting
from sk_avae.learning.vae_training import TrainingImages, VAESettings, train_vae
from sk_avae.model.avae import AVAE
from sk_avae.model.likelihoods import Bernoulli, Gaussian
from sk_avae.model.vae import MLPVAE, ConvVAE
from sk_avae.progress import Progress

SHAPE = (1, 28, 28)


def digits(n=500):
    X, _ = load_mnist_sample("train")
    return torch.tensor(X[:n].reshape(n, *SHAPE) / 255.0).float()


def small_vae(module=MLPVAE, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module(SHAPE, 4, **settings)


def small_mlp():
    return small_vae(hidden_layer_sizes=(32,))


def trained(vae, images, likelihood=None, **settings):
    data = TrainingImages(images, held_out=settings.pop("validation_images", None))
    own = {"latent_size": 4, "max_epochs": 3, "batch_size": 64, "lr": 2e-3}
    own |= {name: settings.pop(name) for name in list(settings) if name in VAESettings.__dataclass_fields__}
    rest = {"generator": torch.Generator().manual_seed(0)} | settings
    return train_vae(around(vae, likelihood), data, VAESettings(**own), **rest)


def around(vae, likelihood=None):
    return AVAE(vae, likelihood or Bernoulli(), "rotation", torch.zeros(1), scale=(math.inf,))


def mean_loss(vae, images, likelihood=None):
    model = around(vae.eval(), likelihood)
    with torch.no_grad():
        return -float(model.elbo(images).mean())


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("vae", [small_mlp(), small_vae(ConvVAE)], ids=["mlp", "conv"])
def test_training_lowers_the_loss(vae):
    images = digits(256)
    vae = copy.deepcopy(vae)
    before = mean_loss(vae, images)
    history = trained(vae, images, lr=1e-2)
    losses = [row["train_loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    assert mean_loss(vae, images) < 0.8 * before


def test_the_learned_pixel_scale_is_trained_along():
    likelihood = Gaussian()
    before = likelihood.log_scale.item()
    trained(small_mlp(), digits(), likelihood)
    assert abs(likelihood.log_scale.item() - before) > 1e-3


def test_history_has_a_row_per_epoch():
    history = trained(small_mlp(), digits(), max_epochs=3)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(set(row) == {"epoch", "train_loss"} for row in history)
    assert all(type(value) is float for row in history for value in row.values())


def test_held_out_images_are_reported_at_the_posterior_mean():
    images, held_out = digits(600).split([500, 100])
    vae = small_mlp()
    history = trained(vae, images, validation_images=held_out)
    assert all(set(row) == {"epoch", "train_loss", "valid_loss"} for row in history)
    assert history[-1]["valid_loss"] == pytest.approx(mean_loss(vae, held_out), rel=1e-5)


def test_held_out_images_do_not_change_training():
    images, held_out = digits(600).split([500, 100])
    alone, watched = small_vae(ConvVAE), small_vae(ConvVAE)
    trained(alone, images, max_epochs=1)
    trained(watched, images, max_epochs=1, validation_images=held_out)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name


def test_train_loss_is_the_mean_over_images_not_over_batches():
    # No learning: 64 + 64 + 2 images, whose losses must not weigh the last two images like the others.
    images = torch.cat([torch.zeros(128, *SHAPE), torch.ones(2, *SHAPE)])
    vae = small_mlp()
    nn.init.constant_(vae.decoder[-1].bias, -5.0)
    expected = mean_loss(vae, images)
    history = trained(vae, images, lr=1e-12, max_epochs=1, validation_images=images)
    assert history[0]["valid_loss"] == pytest.approx(expected, rel=1e-4)
    assert history[0]["train_loss"] == pytest.approx(expected, rel=0.05)


def test_training_repeats_with_its_generator():
    images = digits()
    runs = [trained(small_mlp(), images, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_training_reads_its_images_only():
    images = digits()
    before = images.clone()
    trained(small_mlp(), images)
    assert torch.equal(images, before)


def test_progress_is_told_of_every_epoch(capsys):
    trained(small_mlp(), digits(), max_epochs=2)
    assert capsys.readouterr().out == ""
    trained(small_mlp(), digits(), max_epochs=2, callbacks=[Reporting(Progress({}))])
    assert "epoch 2/2, loss" in capsys.readouterr().out


# ---------------------------------------------------------------- early stopping


def stopped_early(likelihood=None):
    """Overfit 40 digits; return the network, the held-out digits and the history."""
    images, held_out = digits(240).split([40, 200])
    vae = small_mlp()
    settings = {"validation_images": held_out, "max_epochs": 300, "batch_size": 40, "lr": 2e-2, "patience": 3}
    try:
        return vae, held_out, trained(vae, images, likelihood, **settings)
    except KeyboardInterrupt:  # skorch's way of stopping; it would end the test session
        pytest.fail("Early stopping left `train` as a KeyboardInterrupt.")


def test_early_stopping_stops_after_as_many_epochs_without_progress():
    _, _, history = stopped_early()
    assert len(history) < 300
    losses = [row["valid_loss"] for row in history]
    assert len(history) - 1 - int(np.argmin(losses)) == 3


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()], ids=["bernoulli", "learned scale"])
def test_early_stopping_brings_the_best_weights_back(likelihood):
    likelihood = copy.deepcopy(likelihood)
    vae, held_out, history = stopped_early(likelihood)
    losses = [row["valid_loss"] for row in history]
    assert losses[-1] > min(losses)
    assert mean_loss(vae, held_out, likelihood) == pytest.approx(min(losses), rel=1e-5)


# ---------------------------------------------------------------- callbacks and interruptions


class Counting(Callback):
    def __init__(self):
        self.epochs = 0
        self.nets = []

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1
        self.nets.append(net)
        Counting.last = self


class Interrupting(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_callbacks_are_called_but_copied():
    named, plain = Counting(), Counting()
    callbacks = [("named", named), plain]
    trained(small_mlp(), digits(), max_epochs=2, callbacks=callbacks)
    assert Counting.last.epochs == 2
    for original in (named, plain):
        assert vars(original) == {"epochs": 0, "nets": []}
    assert callbacks == [("named", named), plain]


def test_ctrl_c_is_raised():
    with pytest.raises(KeyboardInterrupt):
        trained(small_mlp(), digits(), callbacks=[Interrupting()])


def test_ctrl_c_is_raised_with_early_stopping_too():
    with pytest.raises(KeyboardInterrupt):
        trained(small_mlp(), digits(), callbacks=[Interrupting()], patience=2, validation_images=digits(50))


def test_divergence_names_the_learning_rate():
    with pytest.raises(ValueError, match=r"Training diverged: .* Lower lr \(now 1e\+08\)"):
        trained(small_mlp(), digits(), lr=1e8)


# ---------------------------------------------------------------- global random states


class Dropping(MLPVAE):
    """A module that draws from torch's global generator while it trains."""

    def encode(self, x):
        return super().encode(nn.functional.dropout(x, training=self.training))


@pytest.mark.parametrize("module", ["mlp", Dropping])
@pytest.mark.usefixtures("few_lessons")
def test_fit_leaves_the_global_random_states_alone(module):
    X, _ = load_mnist_sample("train")
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    avae = AVAEEstimator(4, module=module, hidden_layer_sizes=(16,), max_epochs=1, n_restarts=4, tol=1e3)
    avae.set_params(expert=ExpertSettings(validation_fraction=0.1))
    avae.fit(X[:300])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_fit_repeats_with_its_random_state_whatever_the_global_one():
    X, _ = load_mnist_sample("train")
    losses = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            avae = AVAEEstimator(4, module=Dropping, max_epochs=1, learned_starts=False, critic=False, random_state=3)
            losses.append(avae.set_params(n_restarts=4, tol=1e3).fit(X[:300]).history_)
    assert losses[0] == losses[1]
