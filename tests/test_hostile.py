"""A sample of hostile calls (`make soak` makes 10,000), and each bug that they found."""

import copy
from collections import Counter

import joblib
import numpy as np
import pytest
import torch
from hostile import Calls, digest, outcome

from sk_avae import AVAEEstimator
from sk_avae.datasets import make_perturbed
from sk_avae.vae import MLPVAE

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N_CALLS, N_CHUNKS = 900, 6


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return Calls(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("chunk", range(N_CHUNKS))
def test_a_hostile_call_ends_in_a_number_or_a_documented_error(calls, chunk):
    wrong, ended = [], Counter()
    for number in range(chunk, N_CALLS, N_CHUNKS):
        call = calls[number]
        how, complaint = outcome(call)
        ended[how] += 1
        if complaint:
            wrong.append(f"{number}: {call.target}({call.what}): {complaint}")
    assert not wrong, "\n".join(wrong)
    # A generator whose calls all fail, or all succeed, tests nothing.
    assert ended["result"] > 20
    assert ended["ValueError"] > 20
    assert ended["TypeError"] > 5


def test_every_public_method_is_called(calls):
    """A new public method has to be added to the generator."""
    called = {target.split("(")[0].split(".")[-1] for target in calls.METHODS}
    for name, (first, *_) in calls.subjects.items():
        own = {method for method in vars(type(first)) if not method.startswith("_") and not method.endswith("_request")}
        assert own - {"get_metadata_routing"} <= called, name  # that takes no arguments


def test_the_digest_sees_every_change(calls):
    avae = calls.subjects["AVAEEstimator"][0]
    before = digest(avae)
    assert digest(copy.deepcopy(avae)) == before
    weights = copy.deepcopy(avae)
    with torch.no_grad():
        next(weights.module_.parameters()).flatten()[0] += 1e-6
    moments = copy.deepcopy(avae)
    moments.moments_[0][0, 0] += 1e-6
    unnamed = copy.deepcopy(avae)
    del unnamed.history_
    parameter = copy.deepcopy(avae).set_params(tol=0.06)
    training = copy.deepcopy(avae)
    training.module_.train()
    digests = {digest(changed) for changed in (weights, moments, unnamed, parameter, training)}
    assert len(digests) == 5
    assert before not in digests


# ---------------------------------------------------------------- what the calls found
@pytest.fixture
def affine(calls):
    """A model with reflections and two more channels' worth of trouble."""
    return copy.deepcopy(calls.subjects["AVAEEstimator"][1])


def refuses(model, call, error, match):
    before = joblib.hash(model)
    with pytest.raises(error, match=match):
        call(model)
    assert joblib.hash(model) == before


def test_integers_beyond_all_floats_are_refused(calls, affine):
    X = calls.X[:3].astype(object)
    X[1, 2] = 10**400
    match = "too large for any float"
    refuses(affine, lambda model: model.transform(X), ValueError, match)
    refuses(affine, lambda model: model.decode(X), ValueError, match)
    with pytest.raises(ValueError, match=match):
        make_perturbed(X)


def test_poses_and_latent_variables_beyond_measure_are_refused_on_the_way_back(calls, affine):
    T = affine.transform(calls.X[:3].astype(float))
    Z = affine.encode(calls.X[:3].astype(float))
    T[1, 65] = Z[1, 3] = 1e3  # exp(1000)
    refuses(affine, lambda model: model.inverse_transform(T), ValueError, "X has numbers so large, in row 1 for one")
    refuses(affine, lambda model: model.decode(Z), ValueError, "Z has numbers so large, in row 1 for one")


@pytest.mark.parametrize("count", [2**31, 2**63, 10**30])
@pytest.mark.parametrize("name", ["n_restarts", "n_refine", "max_iter"])
def test_a_search_without_end_is_refused(calls, affine, name, count):
    affine.set_params(**{name: count})
    refuses(affine, lambda model: model.transform(calls.X[:3]), ValueError, f"{name} == {count}, must be <= 2147483647")


def test_a_tolerance_may_be_any_integer(calls, affine):
    assert affine.set_params(tol=10**30).align(calls.X[:3]).converged.all()


def test_the_way_back_checks_what_was_set_after_fit(affine):
    affine.set_params(family=np.datetime64("2020-01-01"))
    for call in (
        lambda model: model.decode(np.zeros((1, 9))),
        lambda model: model.sample(),
        lambda model: model.get_feature_names_out(),
        lambda model: model.inverse_transform(np.zeros((1, 71))),
    ):
        refuses(affine, call, ValueError, "family must be one of")


@pytest.mark.parametrize(("name", "words"), [("rescale", "'image', "), ("early_stopping", "")])
def test_flags_are_true_or_false(calls, affine, name, words):
    affine.set_params(**{name: torch.zeros(2)})
    refuses(affine, lambda model: model.fit(calls.X), TypeError, f"{name} must be {words}True or False")
    refuses(affine, lambda model: model.negative_elbo(calls.X, align="no"), TypeError, "align must be True or False")


@pytest.mark.parametrize(
    ("callbacks", "match"), [((8, 8), "got 8"), ("auto", "got 'a'"), ([("name", 3)], "got"), (3, "a list or None")]
)
def test_callbacks_that_are_none(calls, affine, callbacks, match):
    affine.set_params(expert__callbacks=callbacks)
    refuses(affine, lambda model: model.fit(calls.X), TypeError, f"callbacks must be .*{match}")


def test_pixels_further_apart_than_a_float_can_tell_are_refused(calls, affine):
    X = np.where(calls.X > 3, 1.7e308, -1.7e308)
    refuses(affine, lambda model: model.fit(X), ValueError, "no float holds the difference")


def test_a_module_for_other_images_says_so():
    with pytest.raises(ValueError, match=r"MLPVAE.encode takes no input of shape \(2, 1, 10, 10\)"):
        AVAEEstimator.from_vae(MLPVAE((1, 8, 8), 2), image_shape=(8, 8), pad=1)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"scale": 0.0}, "scale must not be 0"),
        ({"scale": np.nan}, "scale must be a number"),
        ({"offset": np.inf}, "offset"),
        ({"background": np.nan}, "background finite"),
    ],
)
def test_units_that_are_none_are_refused(argument, match):
    with pytest.raises(ValueError, match=match):
        AVAEEstimator.from_vae(MLPVAE((1, 8, 8), 2), image_shape=(8, 8), **argument)


def test_tensors_keep_their_precision(calls, affine):
    X = calls.X[:3] + 1e-12
    assert affine.transform(torch.from_numpy(X)).dtype == np.float64
    np.testing.assert_array_equal(affine.transform(torch.from_numpy(X)), affine.transform(X))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_the_largest_integer_stays_within_its_type(dtype):
    top = min(np.iinfo(dtype).max, 2**53)
    X = np.zeros((1, 64), dtype)
    X[0, 20:40] = top
    turned, _ = make_perturbed(X, ranges={"angle": 0})
    np.testing.assert_array_equal(turned, X)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"background": np.nan}, ValueError, "background must be a finite number"),
        ({"background": (1, 2)}, ValueError, "background must be a finite number"),
        ({"ranges": [("angle", 1)]}, TypeError, "ranges must be a dict"),
        ({"ranges": {"angle": None}}, ValueError, r"ranges\['angle'\] must be a positive number"),
        ({"ranges": {"angle": np.inf}}, ValueError, r"ranges\['angle'\] must be a positive number"),
        ({"ranges": {"angle": (1, 2, 3)}}, ValueError, r"ranges\['angle'\] must be a positive number"),
    ],
)
def test_perturbations_that_are_none(calls, arguments, error, match):
    with pytest.raises(error, match=match):
        make_perturbed(calls.X[:3], **arguments)


@pytest.mark.parametrize("X", [np.full((2, 64), 1e31), np.full((2, 64), 2**60)])
def test_pixels_that_cannot_be_interpolated_are_refused(X):
    with pytest.raises(ValueError, match=r"more than .* Scale X first"):
        make_perturbed(X)


def test_tensors_that_take_a_gradient_are_images_like_others(calls, affine):
    X = torch.from_numpy(calls.X[:3]).requires_grad_(True)
    np.testing.assert_array_equal(affine.transform(X), affine.transform(calls.X[:3]))
