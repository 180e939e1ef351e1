"""What the tests share: bundled digits, one small model of them, and a guard on the global random states."""

import copy
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from sk_avae import AVAEEstimator, ExpertSettings
from sk_avae.datasets import load_mnist_sample, make_perturbed

# Examples are the same in every run, and none is timed.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def _global_random_state() -> tuple[bytes, ...]:
    _, keys, *position = np.random.get_state()  # noqa: NPY002
    return keys.tobytes(), repr(position).encode(), torch.random.get_rng_state().numpy().tobytes()


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Assert that a block leaves the global random states of numpy and torch as they were."""
    before = _global_random_state()
    yield
    assert _global_random_state() == before, "a global random state was changed"


@pytest.fixture
def global_random_state_unchanged():
    """Assert that a test leaves the global random states alone; name it in `pytestmark` to guard a module."""
    with unchanged_random_state():
        yield


@pytest.fixture(scope="session")
def digits() -> SimpleNamespace:
    """MNIST's bundled digits: `X`, `y` for fitting (read-only), `X_test`, `y_test` to try on."""
    X, y = load_mnist_sample("train")
    X_test, y_test = load_mnist_sample("test")
    for array in (X, y, X_test, y_test):
        array.flags.writeable = False
    return SimpleNamespace(X=X, y=y, X_test=X_test, y_test=y_test)


@pytest.fixture(scope="session")
def turned(digits) -> SimpleNamespace:
    """All test digits turned by any angle: `X` (uint8, read-only), the true `alpha` and the labels `y`."""
    X, alpha = make_perturbed(digits.X_test, random_state=0)
    X.flags.writeable = False
    return SimpleNamespace(X=X, alpha=alpha, y=digits.y_test)


@pytest.fixture(scope="session")
def stretched(digits) -> SimpleNamespace:
    """400 test digits turned by any angle, scaled and sheared: `X` (read-only), the true `alpha` and the labels `y`."""
    X, alpha = make_perturbed(digits.X_test[:400], family="linear", random_state=0)
    X.flags.writeable = False
    return SimpleNamespace(X=X, alpha=alpha, y=digits.y_test[:400])


@pytest.fixture(scope="session")
def small_avae() -> Callable[..., AVAEEstimator]:
    """Make an unfitted estimator that learns digits in about a second; keywords override its parameters.

    It trains no critic, which most tests do without. Parameters of `ExpertSettings` may stand among the others.
    """

    def make(**parameters: Any) -> AVAEEstimator:
        small = {
            "latent_size": 12,
            "hidden_layer_sizes": (128,),
            "max_epochs": 20,
            "batch_size": 128,
            "n_restarts": 16,
            "n_refine": 2,
            "critic": False,
            "random_state": 0,
        }
        expert = {name: parameters.pop(name) for name in ExpertSettings().get_params() if name in parameters}
        return AVAEEstimator(**{**small, **parameters}, expert=ExpertSettings(**{"max_iter": 60, **expert}))

    return make


@pytest.fixture(scope="session")
def fitted(small_avae, digits) -> AVAEEstimator:
    """One fitted model for the whole session: nothing may change it, so take `avae` to set parameters."""
    with unchanged_random_state():
        return small_avae().fit(digits.X[:2000])


@pytest.fixture
def avae(fitted) -> AVAEEstimator:
    """A copy of the session's model for this test alone."""
    return copy.deepcopy(fitted)


def built_once(folder: Path, name: str, build: Callable[[], Any]) -> Any:
    """Return what is built by whichever process of the tests needs it first; the others load its pickle."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build()
    path, lock = folder / f"{name}.pickle", folder / f"{name}.lock"
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        while lock.exists() and not path.exists():
            time.sleep(0.2)
        return pickle.loads(path.read_bytes()) if path.exists() else build()
    try:
        built = build()
        (folder / f"{name}.part").write_bytes(pickle.dumps(built))
        (folder / f"{name}.part").replace(path)
    except BaseException:
        lock.unlink()
        raise
    return built


@pytest.fixture(scope="session")
def fitted_with_critic(small_avae, digits, tmp_path_factory) -> AVAEEstimator:
    """One model of the session with a critic and a learned gate: nothing may change it, so take `choosy`."""

    def build() -> AVAEEstimator:
        model = small_avae(family="linear", critic=True, min_gain="auto", n_refine=3, max_epochs=30)
        return model.set_params(expert__max_iter=200, tol=0.1).fit(digits.X[:2200])

    with unchanged_random_state():
        return built_once(tmp_path_factory.getbasetemp().parent, "fitted_with_critic", build)


@pytest.fixture
def choosy(fitted_with_critic) -> AVAEEstimator:
    """A copy of the session's model with a critic for this test alone, its gate open."""
    return copy.deepcopy(fitted_with_critic).set_params(min_gain=0.0)
