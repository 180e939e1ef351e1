"""Bad input: a clear error or a defined result, and a fitted model that is never changed by a failed call."""

import copy
import math
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback
from torch import nn

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

IMAGE_METHODS = (
    *("transform", "transform_hypotheses", "align", "score", "score_samples", "negative_elbo", "encode", "reconstruct"),
    "perturb",
    "fit",
)


@pytest.fixture
def refuses(fitted):
    """Assert that a call on a fitted model raises as it should, and leaves the model as it was to the bit."""
    model = copy.deepcopy(fitted)

    def check(call, error, match, **parameters):
        model.set_params(**parameters)
        before, names = joblib.hash(model), list(vars(model))
        with pytest.raises(error, match=match):
            call(model)
        assert joblib.hash(model) == before
        assert list(vars(model)) == names

    return check


def spoiled(X, value):
    X = X.astype(float)
    X[1, 400] = value
    return X


# ---------------------------------------------------------------- images that cannot be read
BAD_IMAGES = {
    "NaN": (lambda X: spoiled(X, np.nan), ValueError, "Input X contains NaN"),
    "infinity": (lambda X: spoiled(X, -np.inf), ValueError, "Input X contains infinity"),
    "NaN in a stack": (lambda X: spoiled(X, np.nan).reshape(-1, 28, 28), ValueError, "Input X contains NaN"),
    "no rows": (lambda X: X[:0], ValueError, r"Found array with 0 sample\(s\)"),
    "no images in a stack": (lambda X: X[:0].reshape(-1, 28, 28), ValueError, r"Found array with 0 sample\(s\)"),
    "no columns": (lambda X: X[:, :0], ValueError, r"0 feature\(s\)"),
    "one flat image": (lambda X: X[0], ValueError, "Expected 2D array, got 1D array instead"),
    "five dimensions": (lambda X: X.reshape(-1, 28, 28, 1, 1), ValueError, "Found array with dim 5"),
    "complex": (lambda X: X + 1j, ValueError, "Complex data not supported"),
    "complex stack": (lambda X: (X + 1j).reshape(-1, 28, 28), ValueError, "Complex data not supported"),
    "words": (lambda X: np.full(X.shape, "ink"), ValueError, "could not convert string to float"),
    "objects": (lambda X: np.full(X.shape, object()), TypeError, "float"),
    "sparse": (lambda X: scipy.sparse.csr_array(X), TypeError, "Sparse data was passed"),
    "nothing": (lambda X: None, ValueError, "Expected 2D array, got scalar array"),
    "ragged": (lambda X: [[0.0] * 784, [0.0] * 783], ValueError, "inhomogeneous"),
}


@pytest.mark.parametrize("method", IMAGE_METHODS)
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_cannot_be_read(refuses, digits, method, name):
    spoil, error, match = BAD_IMAGES[name]
    refuses(lambda model: getattr(model, method)(spoil(digits.X[:5])), error, match)


BAD_SHAPES = {
    "wide": (lambda X: np.hstack([X, X[:, :1]]), "X has 785 features, but AVAEEstimator is expecting 784 features"),
    "narrow": (lambda X: X[:, :-1], "X has 783 features, but AVAEEstimator is expecting 784 features"),
    "one image, not in a batch": (lambda X: X[0].reshape(28, 28), "X has 28 features"),
    "another stack": (lambda X: X.reshape(-1, 56, 14), r"images of shape \(56, 14\), but image_shape is \(28, 28\)"),
    "another stack of colours": (lambda X: X.reshape(-1, 14, 28, 2), r"images of shape \(14, 28, 2\)"),
}


@pytest.mark.parametrize("method", IMAGE_METHODS[:-1])
@pytest.mark.parametrize("name", BAD_SHAPES)
def test_images_of_another_shape_than_in_fit(refuses, digits, method, name):
    reshape, match = BAD_SHAPES[name]
    refuses(lambda model: getattr(model, method)(reshape(digits.X[:5])), ValueError, match)


def test_columns_of_other_names_than_in_fit(small_avae, digits):
    X = pd.DataFrame(digits.X[:20]).rename(columns="p{}".format)
    model = small_avae(max_epochs=1).fit(X)
    before = joblib.hash(model)
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(X.rename(columns={"p3": "p784"}))
    assert joblib.hash(model) == before


@pytest.mark.parametrize(
    ("image_shape", "match"),
    [
        ((28, 27), r"X has 784 features per sample, but image_shape=\(28, 27\) needs 756"),
        ((28, 28, 3), r"X has 784 features per sample, but image_shape=\(28, 28, 3\) needs 2352"),
        ((784,), r"image_shape must be \(height, width\) or \(height, width, channels\), got \(784,\)"),
        ((28, 28, 1, 1), "image_shape must be"),
        ((-28, -28), "image_shape must be"),
        ((0, 784), "image_shape must be"),
        (28, "image_shape must be"),
        ("28x28", "image_shape must be"),
        ((28.5, 28.5), "image_shape must be"),
        ((None, 28), "image_shape must be"),
    ],
)
def test_an_image_shape_that_does_not_fit(refuses, digits, image_shape, match):
    refuses(lambda model: model.fit(digits.X[:5]), ValueError, match, image_shape=image_shape)


def test_a_stack_of_another_shape_than_image_shape(refuses, digits):
    match = r"images of shape \(28, 28\), but image_shape is \(14, 56\)"
    refuses(lambda model: model.fit(digits.X[:5].reshape(-1, 28, 28)), ValueError, match, image_shape=(14, 56))


# ---------------------------------------------------------------- images with a defined result
@pytest.mark.parametrize("value", [0, 1, 128, 255])
@pytest.mark.parametrize("family", ["rotation", "affine"])
def test_constant_images_stay_put(avae, digits, value, family):
    avae.set_params(family=family)
    X = np.vstack([np.full((2, 784), value), digits.X_test[:2]]).astype(float)
    result = avae.set_params(tol=1.0).align(X)
    assert_array_equal(result.alpha[:2], 0)
    assert result.converged[:2].all()
    assert_array_equal(result.elbo[:2], result.elbo_identity[:2])
    assert np.isfinite(result.elbo).all()
    assert_array_equal(avae.transform(X)[:2, :784], X[:2])


@pytest.mark.parametrize("likelihood", ["auto", "bernoulli", "gaussian"])
@pytest.mark.parametrize("value", [0.0, 7.0, -3.5])
def test_fitting_on_constant_images_only(small_avae, value, likelihood):
    X = np.full((20, 64), value)
    model = small_avae(max_epochs=2, likelihood=likelihood).fit(X)
    T = model.transform(X)
    assert_array_equal(T[:, :64], X)
    assert_array_equal(T[:, 64:], 0)
    assert np.isfinite(model.score_samples(X)).all()
    assert np.isfinite(model.sample(3)).all()


def test_one_row(small_avae, digits, fitted):
    model = small_avae(max_epochs=2).fit(digits.X[:1])
    assert model.transform(digits.X[:1]).shape == (1, 785)
    assert fitted.transform(digits.X[:1]).shape == (1, 785)
    assert fitted.score(digits.X[:1]) == pytest.approx(fitted.score_samples(digits.X[:1])[0])


def test_one_row_cannot_be_split(refuses, digits):
    refuses(lambda model: model.fit(digits.X[:1]), ValueError, "n_samples=1", early_stopping=True)


def test_one_pixel(small_avae):
    X = np.linspace(0, 1, 30)[:, None]
    with pytest.warns(UserWarning, match=r"shape \(1, 1\) have no pose .* Every pose will be 0"):
        model = small_avae(max_epochs=2).fit(X)
    assert model.image_shape_ == (1, 1)
    assert_array_equal(model.transform(X), np.hstack([X, np.zeros((30, 1))]))


OUTSIDE = {
    "a little brighter": lambda X: X * 1.2,
    "a little darker": lambda X: X - 30,
    "another scale": lambda X: X * 50 - 2000,
    "float32's unit interval": lambda X: X / 255,
    "so small that all images seem blank": lambda X: X / 1e6,
}


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", Gaussian(scale=0.5**0.5, mean="sigmoid")])
@pytest.mark.parametrize("name", OUTSIDE)
def test_pixels_outside_the_fitted_range_give_numbers(small_avae, digits, name, likelihood):
    model = small_avae(likelihood=likelihood, max_epochs=3, n_restarts=4, max_iter=200, tol=1.0).fit(digits.X[:300])
    X = OUTSIDE[name](digits.X_test[:10].astype(float))
    in_other_units = not name.startswith("a little")
    for method in ("transform", "score_samples", "encode", "reconstruct"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = getattr(model, method)(X)
        assert np.isfinite(found).all(), method
        told = [str(warning.message) for warning in caught]
        assert len(told) == in_other_units, told
        assert all(message.startswith(f"The pixels of X lie between {X.min():g} and") for message in told)
        assert all("made for between 0 and 255" in message for message in told)
        if method == "transform":  # the canonical pixels are the input's own, not clipped to the range that `fit` saw
            assert_allclose(np.ptp(found[:, :784]), np.ptp(X), rtol=0.1)


def test_units_are_not_known_where_pixels_were_not_rescaled(small_avae, digits):
    model = small_avae(likelihood="gaussian", rescale=False, max_epochs=1).fit(digits.X[:50] / 25.5)
    assert np.isfinite(model.negative_elbo(digits.X_test[:5] / 255)).all()


def test_blank_images_are_in_no_units(fitted):
    assert np.isfinite(fitted.negative_elbo(np.zeros((3, 784)))).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("value", [1e12, -1e30, 1e300])
def test_pixels_out_of_all_proportion_are_refused(small_avae, digits, value, likelihood):
    model = small_avae(likelihood=likelihood, max_epochs=1).fit(digits.X[:50])
    before = joblib.hash(model)
    for method in ("transform", "score", "encode", "reconstruct", "align", "negative_elbo"):
        with pytest.raises(ValueError, match=r"the fitted range .* the range is \[0, 255\]. Bring X to the units"):
            getattr(model, method)(spoiled(digits.X[:5], value))
    assert joblib.hash(model) == before


@pytest.mark.parametrize("value", [1e30, 1e300])
def test_fitting_on_enormous_pixels_gives_numbers(small_avae, digits, value):
    X = digits.X[:50] / 255 * value
    model = small_avae(max_epochs=1, n_restarts=4).fit(X)
    assert np.isfinite(model.transform(X)).all()
    assert np.isfinite(model.score(X))


# ---------------------------------------------------------------- the way back
@pytest.mark.parametrize(
    ("method", "n_columns", "match"),
    [
        ("inverse_transform", 784, r"X has 784 columns, but n_features \+ n_params = 784 \+ 1 are needed"),
        ("inverse_transform", 786, "X has 786 columns"),
        ("decode", 12, r"Z has 12 columns, but latent_size \+ n_params = 12 \+ 1 are needed"),
        ("decode", 14, "Z has 14 columns"),
    ],
)
def test_the_way_back_needs_all_columns(refuses, method, n_columns, match):
    refuses(lambda model: getattr(model, method)(np.zeros((2, n_columns))), ValueError, match)


@pytest.mark.parametrize(("method", "n_columns"), [("inverse_transform", 785), ("decode", 13)])
@pytest.mark.parametrize(
    ("value", "match"), [(np.nan, "contains NaN"), (np.inf, "contains infinity"), (1j, "Complex data not supported")]
)
def test_the_way_back_needs_finite_numbers(refuses, method, n_columns, value, match):
    refuses(lambda model: getattr(model, method)(np.full((2, n_columns), value)), ValueError, match)
    refuses(lambda model: getattr(model, method)(np.zeros((0, n_columns))), ValueError, "0 sample")


@pytest.mark.parametrize(
    ("n_samples", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), ("3", TypeError)]
)
def test_a_number_of_samples_that_is_none(refuses, n_samples, error):
    refuses(lambda model: model.sample(n_samples), error, "n_samples")


def test_feature_names_of_another_number(refuses):
    refuses(lambda model: model.get_feature_names_out(["a", "b"]), ValueError, "should have length equal")


# ---------------------------------------------------------------- before fit
@pytest.mark.parametrize("method", [*IMAGE_METHODS[:-1], "decode", "inverse_transform"])
def test_an_unfitted_estimator_says_so(digits, method):
    with pytest.raises(NotFittedError, match="This AVAEEstimator instance is not fitted yet"):
        getattr(AVAEEstimator(), method)(digits.X[:2])


@pytest.mark.parametrize("method", ["sample", "get_feature_names_out"])
def test_an_unfitted_estimator_has_neither_samples_nor_names(method):
    with pytest.raises(NotFittedError, match="This AVAEEstimator instance is not fitted yet"):
        getattr(AVAEEstimator(), method)()


@pytest.mark.parametrize("method", ["transform", "align", "inverse_transform"])
def test_an_unfitted_canonicalizer_says_so(digits, method):
    with pytest.raises(NotFittedError, match="This AffineCanonicalizer instance is not fitted yet"):
        getattr(AffineCanonicalizer(append_alpha=True), method)(digits.X[:2])
    with pytest.raises(NotFittedError, match="This AffineCanonicalizer instance is not fitted yet"):
        AffineCanonicalizer().get_feature_names_out()


def test_a_failed_first_fit_leaves_the_estimator_unfitted(digits):
    estimator = AVAEEstimator(lr=-1.0)
    with pytest.raises(ValueError, match="lr == -1"):
        estimator.fit(digits.X[:5])
    assert vars(estimator) == vars(AVAEEstimator(lr=-1.0))


# ---------------------------------------------------------------- parameters
BAD_PARAMETERS = [
    ("family", "rotaton", ValueError, r"family must be one of .* got 'rotaton'. Did you mean 'rotation'\?"),
    ("family", "Affine", ValueError, r"got 'Affine'. Did you mean 'affine'\?"),
    ("family", "similarty", ValueError, r"Did you mean 'similarity'\?"),
    ("family", "homography", ValueError, "family must be one of .* got 'homography'"),
    ("family", None, ValueError, "family must be one of .* got None"),
    ("family", "rotation+reflection", ValueError, r"must be one of .* got 'rotation\+reflection'"),
    ("n_restarts", 0, ValueError, "n_restarts == 0, must be >= 1"),
    ("n_restarts", -3, ValueError, "n_restarts == -3, must be >= 1"),
    ("n_restarts", 2.5, TypeError, "n_restarts must be an instance of"),
    ("n_restarts", "many", ValueError, "n_restarts must be a count or 'auto', got 'many'"),
    ("n_refine", "all", ValueError, "n_refine must be a count or 'auto', got 'all'"),
    ("expert", {"max_iter": 3}, TypeError, "expert must be ExpertSettings or None, got"),
    ("n_restarts", None, TypeError, "n_restarts must be an instance of"),
    ("n_refine", 0, ValueError, "n_refine == 0, must be >= 1"),
    ("expert__max_iter", -1, ValueError, "max_iter == -1, must be >= 0"),
    ("tol", -1e-3, ValueError, "tol == -0.001, must be >= 0"),
    ("tol", math.nan, ValueError, "tol"),
    ("min_gain", -1.0, ValueError, "min_gain == -1.0, must be >= 0"),
    ("min_gain", math.nan, ValueError, "min_gain"),
    ("min_gain", "Auto", TypeError, "min_gain must be an instance of"),
    ("min_gain", None, TypeError, "min_gain must be an instance of"),
    ("critic", "yes", TypeError, "critic must be True or False, got 'yes'"),
    ("critic", None, TypeError, "critic must be True or False, got None"),
    ("allow_reflection", math.nan, TypeError, "allow_reflection must be True or False, got nan"),
    ("allow_reflection", 2, TypeError, "allow_reflection must be True or False, got 2"),
    ("alpha_prior", "flat", ValueError, "alpha_prior must be 'auto', None or a dict, got 'flat'"),
    ("alpha_prior", 0.5, ValueError, "alpha_prior must be 'auto', None or a dict, got 0.5"),
    ("alpha_prior", {"tx": 0.1}, ValueError, r"alpha_prior names \['tx'\], but the family 'rotation' has \['angle'\]"),
    ("alpha_prior", {"angle": -1}, ValueError, r"alpha_prior\['angle'\] must be a standard deviation >= 0, got -1"),
    ("alpha_prior", {"angle": math.nan}, ValueError, r"alpha_prior\['angle'\] must be .* got nan"),
    ("alpha_prior", {"angle": "wide"}, ValueError, r"alpha_prior\['angle'\] must be .* got 'wide'"),
]

BAD_FIT_PARAMETERS = [
    ("latent_size", 0, ValueError, "latent_size == 0, must be >= 1"),
    ("latent_size", 2.0, TypeError, "latent_size must be an instance of"),
    ("max_epochs", 0, ValueError, "max_epochs == 0, must be >= 1"),
    ("max_epochs", "many", ValueError, "max_epochs must be a count or 'auto', got 'many'"),
    ("batch_size", 0, ValueError, "batch_size == 0, must be >= 1"),
    ("batch_size", "all", ValueError, "batch_size must be a count or 'auto', got 'all'"),
    ("batch_size", 64.0, TypeError, "batch_size must be an instance of"),
    ("expert__n_iter_no_change", 0, ValueError, "n_iter_no_change == 0, must be >= 1"),
    ("pad", -1, ValueError, "pad == -1, must be >= 0"),
    ("pad", "same", TypeError, "pad must be an instance of"),
    ("lr", 0.0, ValueError, "lr == 0.0, must be > 0"),
    ("lr", -1e-3, ValueError, "lr == -0.001, must be > 0"),
    ("lr", math.nan, ValueError, "lr|learning rate"),
    ("lr", "fast", TypeError, "lr must be an instance of"),
    ("expert__weight_decay", -0.1, ValueError, "weight_decay == -0.1, must be >= 0"),
    ("expert__validation_fraction", 0.0, ValueError, "validation_fraction == 0.0, must be > 0"),
    ("expert__validation_fraction", 1.0, ValueError, "validation_fraction == 1.0, must be < 1"),
    ("hidden_layer_sizes", (64, 0), ValueError, "hidden_layer_sizes == 0, must be >= 1"),
    ("hidden_layer_sizes", (64.5,), TypeError, "hidden_layer_sizes must be an instance of"),
    ("hidden_layer_sizes", 64, TypeError, "hidden_layer_sizes"),
    ("module", "mpl", ValueError, r"module must be one of \['conv', 'mlp'\] or a torch.nn.Module, got 'mpl'"),
    ("module", 3, TypeError, "int is not an AVAE module. It must be a torch.nn.Module"),
    ("likelihood", "binomial", ValueError, "likelihood must be 'auto', one of .* or a module, got 'binomial'"),
    ("likelihood", None, ValueError, "likelihood must be 'auto', one of .* or a module, got None"),
    ("likelihood", nn.ReLU(), TypeError, "ReLU is not a likelihood. It must have .* Missing: log_prob, mean, fill"),
    ("device", "gpu", ValueError, "device='gpu' is not available here .* Choose device='cpu'"),
    ("device", "cuda:77", ValueError, "device='cuda:77' is not available here"),
    ("random_state", "lucky", ValueError, "'lucky' cannot be used to seed"),
    ("random_state", -1, ValueError, "Seed must be between 0"),
    (
        "padding",
        "mirror",
        ValueError,
        r"padding must be one of \['auto', 'background', 'border', 'reflect'\], got 'mirror'",
    ),
    ("padding", None, ValueError, "padding must be one of .* got None"),
    ("align_training", "yes", TypeError, "align_training must be True or False, got 'yes'"),
]


@pytest.mark.parametrize(("name", "value", "error", "match"), BAD_PARAMETERS + BAD_FIT_PARAMETERS)
def test_a_parameter_out_of_range_is_named_by_fit(refuses, digits, name, value, error, match):
    refuses(lambda model: model.fit(digits.X[:20]), error, match, **{name: value})


@pytest.mark.parametrize(("name", "value", "error", "match"), BAD_PARAMETERS)
def test_a_parameter_of_the_search_is_named_when_set_after_fit(refuses, digits, name, value, error, match):
    for method in ("transform", "align", "score", "encode"):
        refuses(lambda model, method=method: getattr(model, method)(digits.X[:3]), error, match, **{name: value})


@pytest.mark.parametrize(
    ("family", "match"),
    [
        (None, "family must be one of .* got None"),
        ("rigit", r"family must be one of .* got 'rigit'. Did you mean 'rigid'\?"),
    ],
)
def test_an_unknown_family_is_named_as_it_was_given_with_reflection_too(refuses, digits, family, match):
    for method in ("fit", "transform"):
        refuses(
            lambda model, method=method: getattr(model, method)(digits.X[:20]),
            ValueError,
            match,
            family=family,
            allow_reflection=True,
        )


def test_the_mirror_has_no_prior(refuses, digits):
    match = r"alpha_prior names \['reflected'\]"
    refuses(
        lambda model: model.fit(digits.X[:20]), ValueError, match, alpha_prior={"reflected": 0.5}, allow_reflection=True
    )


def test_numbers_of_numpy_are_numbers(small_avae, digits):
    model = small_avae(
        latent_size=np.int64(3), n_restarts=np.int32(4), max_epochs=np.int64(1), lr=np.float32(1e-3), pad=np.int8(1)
    )
    assert model.fit(digits.X[:20]).transform(digits.X[:2]).shape == (2, 785)


def test_diverging_training_says_what_to_do(refuses, digits):
    match = r"Training diverged: .* in epoch \d+\. Lower lr \(now 1e\+30\)"
    refuses(lambda model: model.fit(digits.X[:300]), ValueError, match, lr=1e30)


def test_an_interrupted_refit_leaves_the_model_as_it_was(avae, digits):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    avae.set_params(pad=3)
    weights, expected = joblib.hash(avae.__getstate__()["module_"]), avae.transform(digits.X[:3])
    avae.set_params(expert__callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        avae.fit(digits.X[:100, :400])
    avae.set_params(expert__callbacks=None)
    assert avae.n_features_in_ == 784
    assert joblib.hash(avae.__getstate__()["module_"]) == weights
    assert_array_equal(avae.transform(digits.X[:3]), expected)


def test_a_refit_on_other_images_that_fails_leaves_the_model_as_it_was(refuses, digits):
    other = digits.X[:50].reshape(-1, 28, 28)[:, :20, :20]
    refuses(lambda model: model.fit(other), ValueError, "Training diverged", lr=1e30)


def test_a_failed_refit_of_a_canonicalizer_leaves_it_as_it_was(small_avae, digits):
    canonicalizer = AffineCanonicalizer(small_avae(max_epochs=1)).fit(digits.X[:50])
    before = joblib.hash(canonicalizer)
    for X in (spoiled(digits.X[:50], np.nan), digits.X[:0]):
        with pytest.raises(ValueError, match=r"NaN|0 sample"):
            canonicalizer.fit(X)
        assert joblib.hash(canonicalizer) == before
    canonicalizer.set_params(estimator__n_restarts=0)
    before = joblib.hash(canonicalizer)
    with pytest.raises(ValueError, match="n_restarts == 0"):
        canonicalizer.fit(digits.X[:50, :400])
    assert joblib.hash(canonicalizer) == before


# ---------------------------------------------------------------- modules that miss the contract
class Sound(nn.Module):
    """Meets the contract; the others break one thing each."""

    def __init__(self, image_shape=(1, 28, 28), latent_size=12):
        super().__init__()
        self.image_shape, self.latent_size = image_shape, latent_size
        self.weight = nn.Parameter(torch.zeros(math.prod(image_shape), latent_size))

    def encode(self, x):
        mean = x.flatten(1) @ self.weight
        return mean, mean

    def decode(self, z):
        return (z @ self.weight.T).view(-1, *self.image_shape)


class NoDecode(nn.Module):
    def encode(self, x):
        return x.flatten(1), x.flatten(1)


class Neither(nn.Module):
    pass


class MeanOnly(Sound):
    def encode(self, x):
        return super().encode(x)[0]


class Three(Sound):
    def encode(self, x):
        return (*super().encode(x), x)


class NarrowVariance(Sound):
    def encode(self, x):
        mean, log_var = super().encode(x)
        return mean, log_var[:, :1]


class Squeezed(Sound):
    def encode(self, x):
        mean, log_var = super().encode(x)
        return mean[0], log_var[0]


class TwoImages(Sound):
    def decode(self, z):
        return super().decode(z), z


class AnotherSize(Sound):
    def __init__(self, image_shape, latent_size):
        super().__init__(image_shape, latent_size + 1)


class NoModule:
    def encode(self, x):
        return x, x

    def decode(self, z):
        return z


BAD_MODULES = [
    (NoDecode, TypeError, "NoDecode is not an AVAE module. It must implement .*Missing: `decode`"),
    (NoDecode(), TypeError, "NoDecode is not an AVAE module. It must implement .*Missing: `decode`"),
    (Neither, TypeError, "Missing: `encode` and `decode`"),
    (NoModule, TypeError, "NoModule is not an AVAE module. It must be a torch.nn.Module"),
    (NoModule(), TypeError, "NoModule is not an AVAE module. It must be a torch.nn.Module"),
    (MeanOnly, ValueError, r"MeanOnly.encode must return the pair \(mean, log_var\), got Tensor"),
    (Three, ValueError, r"Three.encode must return the pair \(mean, log_var\)"),
    (NarrowVariance, ValueError, r"both of shape \(n, latent_size\); for n=2 it returned \(2, 12\) and \(2, 1\)"),
    (Squeezed, ValueError, r"both of shape \(n, latent_size\); for n=2 it returned \(12,\) and \(12,\)"),
    (TwoImages, ValueError, r"TwoImages.decode must return the shape of its images, .* got tuple"),
    (AnotherSize, ValueError, "latent_size=12, but AnotherSize has 13 latent variables"),
    (Sound(latent_size=3), ValueError, "latent_size=12, but Sound has 3 latent variables"),
]


@pytest.mark.parametrize(("module", "error", "match"), BAD_MODULES)
def test_a_module_that_misses_the_contract_is_refused(refuses, digits, module, error, match):
    refuses(lambda model: model.fit(digits.X[:20]), error, match, module=module)


def test_the_module_that_meets_the_contract_is_taken(small_avae, digits):
    assert isinstance(small_avae(module=Sound, max_epochs=1).fit(digits.X[:20]).module_, Sound)


def test_a_module_for_images_of_another_size_is_refused(refuses, digits):
    module = Sound(image_shape=(1, 20, 20))
    refuses(lambda model: model.fit(digits.X[:20]), (ValueError, RuntimeError), "Sound|shape", module=module)


def test_the_papers_network_says_which_sides_it_takes(refuses, digits):
    match = "ConvVAE needs image sides divisible by 4 and at least 8, got 30x30. Choose `pad` so that they are"
    refuses(lambda model: model.fit(digits.X[:20]), ValueError, match, module="conv", pad=1)
