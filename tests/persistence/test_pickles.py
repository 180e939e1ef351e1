"""Fitted models in files, in other processes, on other machines, in several threads."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.frozen import FrozenEstimator
from torch import nn

import sk_avae.estimator
from sk_avae import AffineCanonicalizer, AVAEEstimator

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged", "few_lessons")


# ---------------------------------------------------------------- from one process to another
LOAD = """
import sys, warnings
warnings.simplefilter("error")
import joblib, numpy as np
folder = sys.argv[1]
model = joblib.load(f"{folder}/model.joblib")
np.save(f"{folder}/there.npy", model.transform(np.load(f"{folder}/X.npy")))
print(joblib.hash(model))
"""


@pytest.mark.parametrize("kind", ["mlp", "conv", "gaussian", "critic", "canonicalizer", "frozen"])
def test_a_model_loaded_in_another_process_gives_the_same_bits(small_avae, digits, turned, fitted, tmp_path, kind):
    model = {
        "mlp": fitted,
        "conv": small_avae(module="conv", pad=2, max_epochs=1, n_restarts=4),
        "gaussian": small_avae(likelihood="gaussian", family="similarity", max_epochs=1, n_restarts=4, max_iter=0),
        "critic": small_avae(critic=True, min_gain="auto", allow_reflection=True, max_epochs=1, n_restarts=4, pad=1),
        "canonicalizer": AffineCanonicalizer(small_avae(max_epochs=1, n_restarts=4), append_alpha=True),
        "frozen": AffineCanonicalizer(FrozenEstimator(fitted)),
    }[kind]
    if model is not fitted:
        model.fit(digits.X[:100])
    X = turned.X[:8]
    joblib.dump(model, tmp_path / "model.joblib", compress=3 if kind == "mlp" else 0)
    np.save(tmp_path / "X.npy", X)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_array_equal(np.load(tmp_path / "there.npy"), model.transform(X))
    assert done.stdout.strip() == joblib.hash(model)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_method_survives_pickling(fitted, turned, protocol):
    loaded = pickle.loads(pickle.dumps(fitted, protocol=protocol))
    X = turned.X[:5]
    for method in ("transform", "encode", "score_samples", "reconstruct"):
        assert_array_equal(getattr(loaded, method)(X), getattr(fitted, method)(X), err_msg=method)
    assert_array_equal(loaded.sample(3), fitted.sample(3))
    assert loaded.history_ == fitted.history_
    assert joblib.hash(loaded) == joblib.hash(fitted)
    assert not loaded.module_.training
    assert not any(parameter.requires_grad for parameter in loaded.module_.parameters())


def test_an_unfitted_estimator_pickles(small_avae):
    estimator = small_avae(family="affine")
    parameters, expected = pickle.loads(pickle.dumps(estimator)).get_params(), estimator.get_params()
    assert parameters.pop("expert").get_params() == expected.pop("expert").get_params()
    assert parameters == expected


def test_a_copy_does_not_share_weights(fitted, turned):
    other = copy.deepcopy(fitted)
    before = fitted.transform(turned.X[:3])
    with torch.no_grad():
        for parameter in other.module_.parameters():
            parameter.zero_()
    assert_array_equal(fitted.transform(turned.X[:3]), before)


# ---------------------------------------------------------------- what is in the file
def contents(value):
    """Everything that a state holds, at any depth."""
    yield value
    if isinstance(value, dict):
        children = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set):
        children = list(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        children = list(vars(value).values())
    else:
        children = []
    for child in children:
        yield from contents(child)


@pytest.mark.parametrize("module", ["mlp", "conv"])
def test_the_state_holds_arrays_and_no_tensors(small_avae, digits, module):
    model = small_avae(module=module, likelihood="gaussian", max_epochs=1).fit(digits.X[:64])
    state = model.__getstate__()
    held = list(contents(state))
    assert not [value for value in held if isinstance(value, torch.Tensor | nn.Module | torch.Generator)]
    weights = state["module_"]
    assert {name: array.shape for name, array in weights.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.module_.state_dict().items()
    }
    assert all(type(array) is np.ndarray for array in weights.values())
    assert json.loads(json.dumps(state["history_"])) == model.history_


def test_the_state_is_a_copy(fitted):
    weights = fitted.__getstate__()["module_"]
    before = joblib.hash(fitted)
    for array in weights.values():
        array[...] = 0
    assert joblib.hash(fitted) == before


def test_the_training_images_are_not_in_the_file(fitted):
    modules = (fitted.module_, fitted.proposer_)
    n_bytes = sum(t.numel() * t.element_size() for module in modules for t in module.state_dict().values())
    assert len(pickle.dumps(fitted)) < n_bytes + 20_000


# ---------------------------------------------------------------- other versions, other machines
def test_a_model_of_another_version_warns(fitted, turned, monkeypatch):
    with monkeypatch.context() as past:
        past.setattr(sk_avae.estimator, "__version__", "0.0.7")
        file = pickle.dumps(fitted)
    with pytest.warns(UserWarning, match=r"AVAEEstimator was saved by sk_avae 0\.0\.7, and this is sk_avae") as caught:
        loaded = pickle.loads(file)
    assert len(caught) == 1
    assert_array_equal(loaded.transform(turned.X[:3]), fitted.transform(turned.X[:3]))


def test_a_model_of_this_version_does_not_warn(fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pickle.loads(pickle.dumps(fitted))


def test_the_version_stamp_is_no_attribute_of_the_model(fitted):
    assert "_sk_avae_version" not in vars(pickle.loads(pickle.dumps(fitted)))


def test_a_model_whose_device_is_missing_comes_to_the_cpu(fitted, turned):
    state = fitted.__getstate__()
    state["_device"] = "cuda:77"
    loaded = AVAEEstimator.__new__(AVAEEstimator)
    with pytest.warns(UserWarning, match="fitted on 'cuda:77', which is not available here: loading it on the CPU"):
        loaded.__setstate__(state)
    assert {parameter.device.type for parameter in loaded.module_.parameters()} == {"cpu"}
    assert_array_equal(loaded.transform(turned.X[:3]), fitted.transform(turned.X[:3]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_fitted_on_a_gpu_pickles_as_arrays_and_aligns_alike(small_avae, digits, turned, fitted):
    model = small_avae(device="cuda").fit(digits.X[:2000])
    assert not [value for value in contents(model.__getstate__()) if isinstance(value, torch.Tensor)]
    loaded = pickle.loads(pickle.dumps(model))
    assert next(loaded.module_.parameters()).device.type == "cuda"
    assert_array_equal(loaded.transform(turned.X[:20]), model.transform(turned.X[:20]))
    assert abs(model.score(turned.X[:100]) - fitted.score(turned.X[:100])) < 5


def test_a_state_with_classes_and_a_format_still_loads(fitted, turned):
    # As pickles had them before recipes were names.
    state = fitted.__getstate__()
    state["image_format_"] = fitted.image_format_
    state["_recipe"] = fitted.aligner_.vae.recipe
    state["_likelihood_recipe"] = fitted.aligner_.likelihood.recipe
    assert isinstance(state["_recipe"]["module"], type)
    loaded = AVAEEstimator.__new__(AVAEEstimator)
    loaded.__setstate__(state)
    assert_array_equal(loaded.transform(turned.X[:3]), fitted.transform(turned.X[:3]))
    assert joblib.hash(loaded.__getstate__()) == joblib.hash(fitted.__getstate__())


# ---------------------------------------------------------------- several threads
@pytest.mark.parametrize("method", ["transform", "reconstruct"])
def test_four_threads_on_one_model_give_the_serial_answer(fitted, turned, method):
    parts = [turned.X[start : start + 30] for start in (0, 30, 60, 90)]
    call = getattr(fitted, method)
    serial = [call(part) for part in parts]
    before = joblib.hash(fitted)
    barrier = Barrier(4)

    def in_step(part):
        barrier.wait()
        return [call(part) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(in_step, parts))
    for expected, repeated in zip(serial, answers, strict=True):
        for answer in repeated:
            assert_array_equal(answer, expected)
    assert joblib.hash(fitted) == before


ONE_THREAD = """
import sys
import numpy as np
import psutil
import torch
from sk_avae import AVAEEstimator

X = np.random.default_rng(0).random((300, 400))
before = psutil.Process().num_threads()  # of all kinds, tqdm's and the like too
model = AVAEEstimator(2, hidden_layer_sizes=(64,), max_epochs=1, n_restarts=4, tol=1e9, random_state=0)
model.fit(X).transform(X)
print(torch.get_num_threads(), psutil.Process().num_threads() - before)
"""


def test_a_process_of_one_thread_starts_no_other():
    """With OMP_NUM_THREADS=1, which docs/scaling.md names for processes beside one another."""
    pytest.importorskip("psutil")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_THREAD], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["1", "0"]
