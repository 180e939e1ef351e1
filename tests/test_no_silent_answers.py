"""What gave a wrong answer without a word: each is an error, a warning or the right answer now."""

import os
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.ensemble import AdaBoostClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.validation import has_fit_parameter
from skorch.callbacks import EpochScoring
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier, ExpertSettings
from sk_avae.datasets import make_perturbed
from sk_avae.likelihoods import Bernoulli, Gaussian
from sk_avae.scaling import pixel_range
from sk_avae.search.certainty import is_near

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


@pytest.fixture(scope="session")
def quick():
    """Make an unfitted estimator that learns next to nothing in a tenth of a second."""

    def make(**parameters):
        small = {"max_epochs": 1, "hidden_layer_sizes": (16,), "n_restarts": 8, "random_state": 0}
        return AVAEEstimator(2, **{**small, "critic": False, "learned_starts": False, **parameters})

    return make


@pytest.fixture(scope="session")
def plain(quick, digits):
    """One quickly fitted model for the whole session: nothing may change it."""
    return quick().fit(digits.X[:60])


def told(call):
    """Return what a call returns, and the warnings it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, [str(warning.message) for warning in caught]


# ---------------------------------------------------------------- a newcomer's first hours
class AsInPyTorchsExample(nn.Module):
    """A VAE of rows with a sigmoid at its end, with the weights of another one."""

    def __init__(self, vae, sigmoid=True):
        super().__init__()
        self.vae, self.sigmoid = vae, sigmoid

    def encode(self, x):
        if x.ndim != 2:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return self.vae.encode(x.view(-1, 1, 28, 28))

    def decode(self, z):
        logits = self.vae.decode(z).flatten(1)
        return torch.sigmoid(logits) if self.sigmoid else logits


class OfImages(AsInPyTorchsExample):
    def encode(self, x):
        return self.vae.encode(x)

    def decode(self, z):
        return super().decode(z).view(-1, 1, 28, 28)


def test_a_foreign_vae_with_a_sigmoid_aligns_as_with_logits(fitted, turned):
    def wrapped(module, **parameters):
        parameters = {"n_restarts": 16, "n_refine": 2, "random_state": 0, **parameters}
        return AVAEEstimator.from_vae(module, image_shape=(28, 28), scale=255.0, **parameters)

    X, vae = turned.X[:40], fitted.module_
    expected = wrapped(vae).align(X)
    for module in (AsInPyTorchsExample(vae), OfImages(vae)):
        model, messages = told(lambda module=module: wrapped(module))
        assert len(messages) == 1
        assert "decoder_output='probabilities'" in messages[0]
        found = model.align(X)
        assert_allclose(found.alpha, expected.alpha, atol=np.deg2rad(0.5))
        assert_allclose(found.elbo, expected.elbo, rtol=1e-3)
        assert_array_equal(pickle.loads(pickle.dumps(model)).align(X[:5]).alpha, found.alpha[:5])
        named, messages = told(lambda module=module: wrapped(module, decoder_output="probabilities"))
        assert not messages
        assert_array_equal(named.align(X[:5]).alpha, found.alpha[:5])
    logits = wrapped(AsInPyTorchsExample(vae, sigmoid=False))
    assert_array_equal(logits.align(X[:5]).alpha, expected.alpha[:5])
    with pytest.raises(ValueError, match=r"puts out numbers outside \[0, 1\]"):
        wrapped(AsInPyTorchsExample(vae, sigmoid=False), decoder_output="probabilities")
    with pytest.raises(ValueError, match="decoder_output must be one of"):
        wrapped(vae, decoder_output="odds")


class SigmoidRows(nn.Module):
    """PyTorch's own example, made smaller."""

    def __init__(self, image_shape, latent_size):
        super().__init__()
        n_pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.code, self.pixels = nn.Linear(n_pixels, 2 * latent_size), nn.Linear(latent_size, n_pixels)

    def encode(self, x):
        return self.code(x).chunk(2, dim=1)

    def decode(self, z):
        return torch.sigmoid(self.pixels(z))


def test_a_module_class_with_a_sigmoid_is_trained_as_probabilities(quick, digits):
    model, messages = told(lambda: quick(module=SigmoidRows, max_epochs=30, lr=0.01).fit(digits.X[:200]))
    assert any("they are taken for probabilities" in message for message in messages)
    assert isinstance(model.module_, SigmoidRows)
    # Read as logits the darkest that a pixel could be would be one half.
    assert np.quantile(model.reconstruct(digits.X_test[:20]), 0.5) < 40
    assert_array_equal(
        pickle.loads(pickle.dumps(model)).transform(digits.X_test[:5]), model.transform(digits.X_test[:5])
    )


def test_oblong_rows_without_a_shape_are_refused(quick, digits):
    oblong = np.pad(digits.X[:50].reshape(-1, 28, 28), ((0, 0), (0, 0), (4, 4))).reshape(50, -1)
    with pytest.raises(ValueError, match=r"image_shape=\(height, width\).* perhaps \(28, 36\)"):
        quick().fit(oblong)
    assert quick(image_shape=(28, 36)).fit(oblong).image_shape_ == (28, 36)
    with pytest.raises(ValueError, match=r"perhaps \(28, 36\)"):
        make_perturbed(oblong)
    with pytest.raises(ValueError, match=r"no pose that family='rotation' could find. Say image_shape="):
        quick(image_shape=(1, 1008)).fit(oblong)
    with pytest.raises(ValueError, match="no pose that"):
        quick().fit(np.random.default_rng(0).random((30, 101)))
    signals, messages = told(lambda: quick(family="affine", image_shape=(1, 1008)).fit(oblong))
    assert not messages
    assert signals.image_shape_ == (1, 1008)
    with pytest.raises(ValueError, match="no pose that family='rotation'"):
        signals.set_params(family="rotation").align(oblong[:2])


@pytest.mark.parametrize("n_channels", [3, 4])
def test_rows_in_colour_without_a_shape_are_refused(quick, n_channels):
    grey = np.stack([np.outer(np.linspace(20, 220, 28), np.linspace(1, k / 50, 28)) for k in range(50)])
    colours = np.stack([grey, grey[:, ::-1], 255 - grey, np.full_like(grey, 255)], axis=-1)[..., :n_channels]
    with pytest.raises(ValueError, match=rf"\(28, 28, {n_channels}\)"):
        quick().fit(colours.reshape(50, -1))
    assert quick().fit(colours).image_shape_ == (28, 28, n_channels)


def test_an_image_of_nans_is_told_what_an_image_needs(plain, quick, digits):
    X = digits.X[:20].astype(float)
    X[3, 7] = np.nan
    for call in (plain.transform, quick().fit, AffineCanonicalizer(quick()).fit):
        with pytest.raises(ValueError, match=r"Input X contains NaN. .* say missing_values='ignore'") as error:
            call(X)
        assert "HistGradientBoosting" not in str(error.value)


def test_one_image_and_channels_first_are_told_how_to_go_on(plain, quick, digits):
    one = digits.X[0].reshape(28, 28)
    with pytest.raises(ValueError, match=r"it is one image, and a batch of images is expected. Pass X\[None\]"):
        plain.align(one)
    assert plain.align(one[None]).alpha.shape == (1, 1)
    with pytest.raises(ValueError, match=r"Pass X\[None\]"):
        quick(image_shape=(28, 28)).fit(one)
    stack = digits.X[:20].reshape(-1, 1, 28, 28)
    for call in (plain.transform, quick(image_shape=(28, 28)).fit):
        with pytest.raises(ValueError, match=r"channels come first: pass X.transpose\(0, 2, 3, 1\)"):
            call(stack)


def test_clusters_of_images_take_other_dtypes_in_predict_than_in_fit(quick, digits):
    pipeline = make_pipeline(AffineCanonicalizer(quick()), KMeans(2, n_init=1, random_state=0)).fit(digits.X[:60])
    expected = pipeline.predict(digits.X_test[:9])
    for dtype in (np.float32, np.float64, np.int64, np.uint16):
        assert_array_equal(pipeline.predict(digits.X_test[:9].astype(dtype)), expected)
    fitted_on_doubles = quick().fit(digits.X[:60] / 255)
    assert fitted_on_doubles.transform((digits.X_test[:9] / 255).astype(np.float32)).dtype == np.float64


def test_a_set_has_the_same_likelihood_upright_and_turned(quick):
    X = load_digits().images[:300].astype(np.uint8)
    for interpolation in ("nearest", "bilinear", "bicubic"):
        turned, _ = make_perturbed(X, random_state=0, interpolation=interpolation)
        assert isinstance(quick().fit(X).likelihood_, Bernoulli)
        assert isinstance(quick().fit(turned).likelihood_, Bernoulli)
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    assert isinstance(quick().fit(pictures).likelihood_, Gaussian)


UNLEARNED = {"critic": "critic=True has no effect", "learned_starts": "learned_starts=True has no effect"}


@pytest.mark.parametrize("name", UNLEARNED)
def test_search_models_that_were_not_learned_are_missed_aloud(plain, digits, name):
    model = pickle.loads(pickle.dumps(plain)).set_params(**{name: True})
    with pytest.warns(UserWarning, match=UNLEARNED[name]):
        model.align(digits.X_test[:2])


def test_too_few_images_for_search_models_are_named_by_fit(quick, digits):
    with pytest.warns(UserWarning, match="X has 20 images, and the proposer and the critic learn from 64 or more"):
        quick(critic=True, learned_starts=True).fit(digits.X[:20])


def test_a_proposer_of_another_family_is_missed_aloud(avae, digits):
    with pytest.warns(UserWarning, match="proposer was learned for other poses than family='rigid'"):
        avae.set_params(family="rigid").align(digits.X_test[:2])


def test_unsure_poses_tell_one_story(fitted_with_critic, stretched, digits):
    result = fitted_with_critic.align(np.vstack([stretched.X[:150], np.full((2, 784), 30, dtype=np.uint8)]))
    confidence = result.confidence
    assert confidence.shape == (152,)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert_array_equal(result.reject(0.5), confidence < 0.5)
    # An angle that may be any is nobody's to rely on, and what has no pose comes last.
    unknown = np.isnan(result.alpha_std[:, 0])
    assert unknown[150:].all()
    assert confidence[unknown].max() < 0.6
    assert_array_equal(confidence[150:], 0)
    # The less confident half holds most of the wrong poses.
    off = np.abs(np.angle(np.exp(1j * (result.alpha[:150, 0] - stretched.alpha[:150, 0]))))
    wrong = off > np.radians(20)
    order = np.argsort(confidence[:150])
    assert wrong[order[:75]].sum() >= 2 * wrong[order[75:]].sum()
    # A pose is right if each of its parameters is.
    right = is_near(torch.tensor(result.alpha[:150]), torch.tensor(stretched.alpha[:150]), "linear").numpy()
    assert abs(confidence[:150].mean() - right.mean()) < 0.15, right.mean()


# ---------------------------------------------------------------- kinds of faults
@pytest.mark.parametrize("offset", [1000, -300])
def test_images_at_another_offset_are_named(plain, digits, offset):
    with pytest.warns(UserWarning, match="made for between 0 and 255"):
        plain.align(digits.X_test[:5].astype(np.float32) + offset)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 5, 6, 8])
def test_channels_first_are_recognised_whatever_their_number(quick, digits, n_channels):
    X = np.repeat(digits.X[:20].reshape(-1, 1, 28, 28), n_channels, axis=1)
    for call in (quick().fit, make_perturbed):
        with pytest.raises(ValueError, match="look as if the channels came first"):
            call(X)
    if n_channels <= 5:
        assert make_perturbed(X.transpose(0, 2, 3, 1), random_state=0)[0].shape == (20, 28, 28, n_channels)


def test_a_hot_pixel_does_not_decide_the_scale(quick, digits):
    X = digits.X[:60].astype(np.float32)
    clean = quick().fit(X)
    for value in (65535, -40000):
        hot = X.copy()
        hot[5, 14 * 28 + 3] = value
        with pytest.warns(UserWarning, match=r"1 of the 47040 pixels of X lie far outside the others"):
            model = quick().fit(hot)
        assert model.image_format_.scale == clean.image_format_.scale == 255
        T, _ = told(lambda model=model, hot=hot: model.transform(hot[5:6]))
        assert np.isfinite(T).all()


def test_what_many_images_have_is_no_fault():
    dots = np.zeros((50, 400, 1))
    dots[np.arange(50), np.arange(50) * 7] = 1000.0
    assert pixel_range(dots + np.random.default_rng(0).random(dots.shape))[2] == 0
    rare = np.random.default_rng(0).random((50, 400, 1))
    rare[7, 100:120] = 30.0  # a bright object in one image
    _, high, n_outlying = pixel_range(rare)
    assert n_outlying == 0
    assert high == 30.0


def test_a_hot_pixel_in_each_image_does_not_decide_its_pose(quick):
    y, x = np.mgrid[:20, :20] - 9.5
    bars = np.stack([300 + 600 * np.exp(-((x / 3) ** 2) - ((y + 2 + k / 20) / 6) ** 2) for k in range(40)])
    model = quick(likelihood="gaussian", max_epochs=30, batch_size=8).fit(bars)
    X, _ = make_perturbed(bars[:20], random_state=0)
    hot = X.copy()
    hot[:, 2, 15] = 65535
    expected = model.align(X)
    found, messages = told(lambda: model.align(hot))
    assert any("20 pixels of 20 of the 20 images" in message for message in messages)
    assert_allclose(np.exp(1j * found.alpha), np.exp(1j * expected.alpha), atol=0.1)
    # The search alone overlooks it: the ELBO is that of the image as it is.
    assert (found.elbo < expected.elbo - 1000).all()
    assert_allclose(found.elbo_identity, -told(lambda: model.negative_elbo(hot, align=False))[0], rtol=1e-5)


def test_a_bright_channel_does_not_hide_the_others(quick, digits):
    ink = digits.X[:40].reshape(-1, 28, 28, 1).astype(float)
    noise = np.random.default_rng(0).random((40, 28, 28, 1)) * 255 * 200
    model = quick().fit(np.concatenate([ink, noise], axis=-1))
    assert_allclose(np.abs(model.image_format_.scale), [255, noise.max() - noise.min()])
    X = np.concatenate([ink, noise], axis=-1)[:5]
    padded = model.image_format_.to_padded_images(X.reshape(5, -1))
    seen = model.image_format_.seen(padded, (-np.inf, np.inf), torch.device("cpu")).images
    assert_allclose(seen.amax(dim=(0, 2, 3)), 1.0, atol=0.01)
    back = model.image_format_.to_rows(model.image_format_.from_model(seen))
    assert_allclose(back, X.reshape(5, -1), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "int64", "int32", "uint32", "longdouble", ">i8"])
def test_grey_levels_survive_any_type_of_number(quick, digits, dtype):
    X = (digits.X[:60].astype(np.int64) + 2**30).astype(dtype)
    T = quick(alpha_prior={"angle": 0}).fit(X).transform(X[:20])
    assert T.dtype == np.float64
    assert len(np.unique(T[:, :784])) == len(np.unique(X[:20]))


def test_masked_values_are_refused(plain, quick, digits):
    X = np.ma.masked_greater(digits.X[:20], 250)
    calls = (plain.transform, quick().fit, make_perturbed, AffineCanonicalizer(quick()).fit)
    for call in calls:
        with pytest.raises(ValueError, match=r"X is a masked array with .* masked values"):
            call(X)
    assert_array_equal(plain.transform(np.ma.array(digits.X[:5])), plain.transform(digits.X[:5]))


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_torchs_contexts_change_nothing(plain, quick, digits, name):
    X = digits.X[:60]
    with CONTEXTS[name]():
        T, alpha, model = plain.transform(X[:5]), plain.align(X[:5]).alpha, quick(family="affine").fit(X)
        loaded, turned = pickle.loads(pickle.dumps(plain)), make_perturbed(X[:5], random_state=0)[0]
    assert_array_equal(T, plain.transform(X[:5]))
    assert_array_equal(alpha, plain.align(X[:5]).alpha)
    assert_array_equal(loaded.transform(X[:5]), T)
    assert_array_equal(turned, make_perturbed(X[:5], random_state=0)[0])
    assert_array_equal(model.transform(X[:5]), quick(family="affine").fit(X).transform(X[:5]))


@pytest.mark.usefixtures("few_lessons")
def test_torchs_default_type_changes_nothing(quick, digits):
    settings = {"family": "affine", "critic": True, "learned_starts": True}
    expected = quick(**settings).fit(digits.X[:120]).transform(digits.X_test[:5])
    torch.set_default_dtype(torch.float64)
    try:
        model = quick(**settings).fit(digits.X[:120])
        assert_array_equal(model.transform(digits.X_test[:5]), expected)
        assert_array_equal(pickle.loads(pickle.dumps(model)).transform(digits.X_test[:5]), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_are_taken_everywhere(plain, digits):
    X = torch.tensor(digits.X[:5]).float().requires_grad_()
    T, Z = plain.transform(X), plain.encode(X)
    assert_array_equal(plain.decode(torch.tensor(Z).requires_grad_()), plain.decode(Z))
    assert_array_equal(plain.inverse_transform(torch.tensor(T).requires_grad_()), plain.inverse_transform(T))
    expected, _ = make_perturbed(X.detach().numpy(), random_state=0)
    assert_array_equal(make_perturbed(X, random_state=0)[0], expected)
    classifier = CanonicalizedClassifier(KNeighborsClassifier(1), FrozenEstimator(plain))
    assert classifier.fit(X, torch.tensor(digits.y[:5])).predict(X).shape == (5,)
    assert_array_equal(plain.transform(X.bfloat16()), plain.transform(X.bfloat16().float()))
    for wrong, match in ((X.to("meta"), "no values"), (X.detach().to_sparse(), "sparse tensor")):
        with pytest.raises(ValueError, match=match):
            plain.transform(wrong)


class Waits(nn.Module):
    """A module whose training goes on until it is told to end."""

    started, end = threading.Event(), threading.Event()

    def __init__(self, image_shape, latent_size):
        super().__init__()
        self.inner = SigmoidRows(image_shape, latent_size)

    def encode(self, x):
        if self.training:
            self.started.set()
            self.end.wait(0.01)
        return self.inner.encode(x.flatten(1))

    def decode(self, z):
        return self.inner.pixels(z).view(-1, 1, 28, 28)


@pytest.fixture
def a_fit_beside(quick, digits):
    """Have a fit go on in another thread."""
    Waits.started.clear()
    Waits.end.clear()
    stop = {"expert": ExpertSettings(callbacks=[StopsWhenTold])}
    fit = threading.Thread(target=lambda: _until_stopped(quick(module=Waits, max_epochs=10_000, **stop), digits.X[:60]))
    fit.start()
    assert Waits.started.wait(60)
    yield fit
    Waits.end.set()
    fit.join()


class StopsWhenTold(EpochScoring):
    """Ends a training by an error of its own."""

    def __init__(self):
        super().__init__(lambda *_: 0.0, name="zero", on_train=True)

    def on_epoch_end(self, net, **kwargs):
        if Waits.end.is_set():
            raise InterruptedError


def _until_stopped(model, X):
    with pytest.raises(InterruptedError):
        model.fit(X)


def test_loading_does_not_wait_for_a_fit_in_another_thread(plain, digits, a_fit_beside):
    loaded = pickle.loads(pickle.dumps(plain))
    assert a_fit_beside.is_alive()
    assert_array_equal(loaded.transform(digits.X[:3]), plain.transform(digits.X[:3]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_beside_a_fit_can_load(plain, a_fit_beside):
    state = pickle.dumps(plain)
    for _ in range(3):  # whether or not the lock is held just then
        child = os.fork()
        if child == 0:
            pickle.loads(state)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert a_fit_beside.is_alive()


class Parametrized(nn.Module):
    def __init__(self):
        super().__init__()
        self.code = spectral_norm(weight_norm(nn.Linear(784, 16)))
        self.pixels = weight_norm(nn.Linear(8, 784))

    def encode(self, x):
        return self.code(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return self.pixels(z).view(-1, 1, 28, 28)


def test_a_module_with_parametrizations_is_fitted_and_pickled(quick, digits):
    with torch.random.fork_rng():
        module = Parametrized()
    wrapped = AVAEEstimator.from_vae(module, image_shape=(28, 28), scale=255.0, n_restarts=4)
    fitted = quick(module=module).set_params(latent_size=8).fit(digits.X[:60])
    for model in (wrapped, fitted):
        T = model.transform(digits.X[:5])
        assert_array_equal(pickle.loads(pickle.dumps(model)).transform(digits.X[:5]), T)
        assert_array_equal(pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(model)))).transform(digits.X[:5]), T)


class WithExtraState(SigmoidRows):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        raise NotImplementedError


def test_a_state_that_could_not_be_kept_is_refused_before_training(quick, digits):
    epochs = []
    scoring = EpochScoring(lambda *_: epochs.append(1) or 0.0, name="s", on_train=True)
    with pytest.raises(TypeError, match=r"_extra_state.* could not keep"):
        quick(module=WithExtraState, expert=ExpertSettings(callbacks=[scoring])).fit(digits.X[:60])
    assert not epochs


class WithBatchNorm(SigmoidRows):
    def __init__(self, image_shape, latent_size):
        super().__init__(image_shape, latent_size)
        self.norm = nn.BatchNorm1d(784)

    def encode(self, x):
        return super().encode(self.norm(x.flatten(1)))

    def decode(self, z):
        return self.pixels(z)


def test_the_last_batch_is_never_one_image(quick, digits):
    for n in (33, 65):
        assert quick(module=WithBatchNorm, batch_size=32).fit(digits.X[:n]).n_iter_ == 1


@pytest.mark.parametrize("use_caching", [False, True])
def test_skorchs_epoch_scoring_is_called_once_per_epoch(quick, digits, use_caching):
    calls = []
    scoring = EpochScoring(lambda *_: calls.append(1) or 1.0, name="s", on_train=True, use_caching=use_caching)
    quick(max_epochs=3, expert=ExpertSettings(callbacks=[scoring])).fit(digits.X[:60])
    assert len(calls) == 3


def test_a_classifier_without_probabilities_decides(plain, digits):
    X, y, frozen = digits.X[:150], digits.y[:150], FrozenEstimator(plain)
    settings = {"n_copies": 0, "calibrate": False, "n_hypotheses": 1}
    model = CanonicalizedClassifier(LinearSVC(random_state=0), frozen, **settings).fit(X, y)
    pipeline = make_pipeline(AffineCanonicalizer(frozen), LinearSVC(random_state=0)).fit(X, y)
    expected = log_softmax(pipeline.decision_function(X[:9]), axis=1)
    assert_allclose(model.decision_function(X[:9]), np.maximum(expected, np.log(np.finfo(np.float32).tiny)), rtol=1e-5)
    assert_array_equal(model.predict(X), pipeline.predict(X))
    calibrated = CalibratedClassifierCV(CanonicalizedClassifier(LinearSVC(random_state=0), frozen, **settings), cv=2)
    calibrated.fit(X, y)
    assert calibrated.predict_proba(X[:3]).shape == (3, 10)


def test_decisions_log_probabilities_and_predictions_agree(plain, digits):
    X, y = digits.X[:150], digits.y[:150]
    for labels in (y, y > 4):
        model = CanonicalizedClassifier(KNeighborsClassifier(3), FrozenEstimator(plain)).fit(X, labels)
        decisions, log = model.decision_function(digits.X_test[:40]), model.predict_log_proba(digits.X_test[:40])
        assert_allclose(np.exp(log), model.predict_proba(digits.X_test[:40]), rtol=1e-6)
        best = decisions.argmax(axis=1) if decisions.ndim == 2 else (decisions > 0).astype(int)
        assert_array_equal(model.classes_[best], model.predict(digits.X_test[:40]))


def test_weights_are_seen_by_meta_estimators_and_used(plain, digits):
    X, y, frozen = digits.X[:150], digits.y[:150], FrozenEstimator(plain)
    model = CanonicalizedClassifier(LogisticRegression(max_iter=500), frozen)
    assert has_fit_parameter(model, "sample_weight")
    weight = np.where(y < 5, 1e-9, 1.0)
    assert (model.fit(X, y, sample_weight=weight).predict(X) >= 5).mean() > 0.95
    _, messages = told(lambda: CalibratedClassifierCV(model, cv=2).fit(X, y, sample_weight=weight))
    assert not [message for message in messages if "sample_weight" in message]
    AdaBoostClassifier(
        CanonicalizedClassifier(LogisticRegression(max_iter=500), frozen), n_estimators=2, random_state=0
    ).fit(X, y)
    with pytest.raises(TypeError, match=r"KNeighborsClassifier.fit takes no sample_weight"):
        CanonicalizedClassifier(KNeighborsClassifier(), frozen).fit(X, y, sample_weight=weight)
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(150,\)"):
        model.fit(X, y, sample_weight=weight[:3])


@pytest.mark.filterwarnings("ignore:X has feature names, but .* was fitted without:UserWarning")
def test_reordered_columns_are_noticed_behind_a_frozen_aligner(plain, digits):
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(digits.X[:60], columns=[f"p{i}" for i in range(784)])
    canonicalizer = AffineCanonicalizer(FrozenEstimator(plain)).fit(X)
    classifier = CanonicalizedClassifier(KNeighborsClassifier(1), FrozenEstimator(plain)).fit(X, digits.y[:60])
    for call in (canonicalizer.transform, canonicalizer.align, classifier.predict, classifier.predict_proba):
        with pytest.raises(ValueError, match="feature names should match"):
            call(X[X.columns[::-1]])


def test_a_device_without_numbers_is_refused(quick, digits):
    with pytest.raises(ValueError, match="device='meta' has no numbers"):
        quick(device="meta").fit(digits.X[:20])


@pytest.mark.parametrize("spread", [1e-6, 1e-3])
def test_images_that_hardly_vary_stay_put(plain, quick, spread):
    X = 100 + spread * np.random.default_rng(0).standard_normal((20, 784))
    result = plain.align(X)
    assert not result.alpha.any()
    assert_array_equal(result.gain[result.alpha[:, 0] != 0], [])
    if spread == 1e-6:
        assert not quick().fit(X).align(X).alpha.any()
