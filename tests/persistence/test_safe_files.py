"""Safe files: what comes back, what cannot be saved, and files that are written while something fails."""

import json
import pickle
import re
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from hostile_files import contents_of, forge
from numpy.testing import assert_array_equal
from safetensors import safe_open
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import sk_avae
import sk_avae.persistence.safe_files
from sk_avae import AffineCanonicalizer, AVAEEstimator, ExpertSettings
from sk_avae.model.vae import MLPVAE

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged", "few_lessons")


@pytest.fixture(scope="module")
def tiny(digits):
    """A small fitted model with all networks."""
    return AVAEEstimator(4, hidden_layer_sizes=(16,), max_epochs=1, n_restarts=4, tol=1e3, random_state=0).fit(
        digits.X[:120]
    )


@pytest.fixture(scope="module")
def bare():
    """The smallest model: no networks but the VAE."""
    X = np.random.default_rng(0).random((40, 16))
    model = AVAEEstimator(2, hidden_layer_sizes=(4,), max_epochs=1, n_restarts=4, random_state=0)
    return model.set_params(critic=False, learned_starts=False, tol=1e3).fit(X)


@pytest.fixture
def file(bare, tmp_path):
    """The file of the smallest model."""
    path = tmp_path / "model.safetensors"
    sk_avae.save(bare, path)
    return path


def assert_same_answers(loaded, model, X):
    assert type(loaded) is type(model)
    T = model.transform(X)
    assert_array_equal(loaded.transform(X), T)
    mine, other = model.align(X), loaded.align(X)
    for name, value in vars(mine).items():
        assert_array_equal(getattr(other, name), value, err_msg=name)
    if T.shape[1] > model.n_features_in_:
        assert_array_equal(loaded.inverse_transform(T), model.inverse_transform(T))
    if isinstance(model, AVAEEstimator):
        assert_array_equal(loaded.score_samples(X), model.score_samples(X))
        assert_array_equal(loaded.sample(2), model.sample(2))
        assert_array_equal(loaded.encode(X), model.encode(X))
        assert loaded.history_ == model.history_


# ---------------------------------------------------------------- there and back
KINDS = ["critic", "conv", "gaussian", "aligned", "canonicalizer", "of a fitted one", "frozen"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_answers_bit_for_bit(tiny, digits, turned, tmp_path, kind):
    small = {"max_epochs": 1, "n_restarts": 4, "tol": 1e3, "critic": False, "random_state": 0}
    mlp = {**small, "hidden_layer_sizes": (16,)}
    model = {
        "critic": tiny,
        "conv": AVAEEstimator(4, module="conv", pad=2, **small),
        "gaussian": AVAEEstimator(4, likelihood="gaussian", family="affine", allow_reflection=True, **mlp),
        "aligned": AVAEEstimator(4, align_training=True, alpha_prior={"angle": np.inf}, batch_size=32, **mlp),
        "canonicalizer": AffineCanonicalizer(AVAEEstimator(4, **mlp), append_alpha=True, random_state=3),
        "of a fitted one": AffineCanonicalizer(tiny),
        "frozen": AffineCanonicalizer(FrozenEstimator(tiny)),
    }[kind]
    if model is not tiny:
        model.fit(digits.X[:110])
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    sk_avae.save(model, path)
    loaded = sk_avae.load(path)
    assert_same_answers(loaded, model, turned.X[:4])
    assert_same_answers(pickle.loads(pickle.dumps(loaded)), model, turned.X[:2])
    joblib.dump(loaded, tmp_path / "model.joblib")
    sk_avae.save(loaded, again)
    (first, arrays), (second, others) = contents_of(path), contents_of(again)
    assert second == first
    assert {name: a.tobytes() for name, a in others.items()} == {name: a.tobytes() for name, a in arrays.items()}
    aligner = loaded if isinstance(loaded, AVAEEstimator) else model.estimator
    if isinstance(aligner, AVAEEstimator):
        assert clone(loaded).get_params().keys() == model.get_params().keys()
        assert repr(clone(loaded)) == repr(clone(model))


def test_a_frozen_aligner_is_one_object(tiny, tmp_path):
    sk_avae.save(AffineCanonicalizer(FrozenEstimator(tiny)).fit(np.zeros((2, 784))), tmp_path / "m")
    loaded = sk_avae.load(tmp_path / "m")
    assert loaded.estimator_ is loaded.estimator


def test_numbers_keep_their_bits(bare, tmp_path):
    model = pickle.loads(pickle.dumps(bare))
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308, np.inf, -np.inf]
    model.history_ = [{"train_loss": value} for value in [*values, np.nan, np.float32(0.1), np.float64(0.1)]]
    sk_avae.save(model, tmp_path / "m")
    losses = [epoch["train_loss"] for epoch in sk_avae.load(tmp_path / "m").history_]
    for loss, epoch in zip(losses, model.history_, strict=True):
        assert type(loss) is type(epoch["train_loss"])
        assert np.asarray(loss).tobytes() == np.asarray(epoch["train_loss"]).tobytes()


def test_column_names_come_along(digits, tmp_path):
    import pandas as pd

    frame = pd.DataFrame(digits.X[:30, 300:316], columns=[f"p{i}" for i in range(16)])
    model = AVAEEstimator(2, hidden_layer_sizes=(4,), max_epochs=1, random_state=0).fit(frame)
    sk_avae.save(model, tmp_path / "m")
    assert_array_equal(sk_avae.load(tmp_path / "m").feature_names_in_, frame.columns)


def test_the_file_is_safetensors_and_json(file):
    with safe_open(file, framework="numpy") as opened:
        assert json.loads(opened.metadata()["sk_avae"])["format"] == 2
        assert "module_.encoder.0.weight" in opened.keys()  # noqa: SIM118


def test_output_settings_come_along(bare, tmp_path):
    model = pickle.loads(pickle.dumps(bare)).set_output(transform="pandas")
    sk_avae.save(model, tmp_path / "m")
    T = sk_avae.load(tmp_path / "m").transform(np.zeros((2, 16)))
    assert list(T.columns) == list(model.get_feature_names_out())


# ---------------------------------------------------------------- versions and devices
def test_another_version_warns(bare, tmp_path, monkeypatch):
    with monkeypatch.context() as past:
        past.setattr(sk_avae.persistence.safe_files, "__version__", "0.0.7")
        sk_avae.save(bare, tmp_path / "m")
    with pytest.warns(UserWarning, match=r"AVAEEstimator was saved by sk_avae 0\.0\.7"):
        sk_avae.load(tmp_path / "m")


def test_a_missing_device_becomes_the_cpu_with_a_warning(file):
    forge(file, lambda document, _: document.update(device="cuda:77"))
    with pytest.warns(UserWarning, match="fitted on 'cuda:77', which is not available here"):
        model = sk_avae.load(file)
    assert next(model.module_.parameters()).device.type == "cpu"


def test_a_device_can_be_given(file):
    assert sk_avae.load(file, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match="device"):
        sk_avae.load(file, device="cuda:77")


# ---------------------------------------------------------------- the user's own module
class MyVAE(MLPVAE):
    """A module that is not the package's."""

    def __init__(self, image_shape=(1, 4, 4), latent_size=2):
        super().__init__(image_shape, latent_size, (6,))


@pytest.fixture
def mine():
    """Make modules without drawing from the global generator."""

    def make(latent_size=2):
        with torch.random.fork_rng(devices=[]):
            return MyVAE(latent_size=latent_size)

    return make


@pytest.mark.parametrize("kind", ["class", "instance"])
def test_a_module_of_ones_own_is_given_again(tmp_path, mine, kind):
    given = MyVAE if kind == "class" else mine()
    X = np.random.default_rng(0).random((40, 16))
    model = AVAEEstimator(2, module=given, max_epochs=1, n_restarts=4, random_state=0).fit(X)
    sk_avae.save(model, tmp_path / "m")
    for again in (MyVAE, mine()):
        assert_array_equal(sk_avae.load(tmp_path / "m", module=again).transform(X[:3]), model.transform(X[:3]))
    with pytest.raises(ValueError, match=r"MyVAE.*load\(path, module="):
        sk_avae.load(tmp_path / "m")
    with pytest.raises(ValueError, match="module_"):
        sk_avae.load(tmp_path / "m", module=mine(3))
    with pytest.raises(TypeError, match="encode"):
        sk_avae.load(tmp_path / "m", module=torch.nn.Identity())


def test_a_module_that_is_not_needed_is_refused(file, mine):
    with pytest.raises(ValueError, match="Leave out module="):
        sk_avae.load(file, module=mine())


# ---------------------------------------------------------------- what cannot be saved
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("random_state", np.random.RandomState(0)),
        ("expert__callbacks", [print]),
        ("memory", joblib.Memory(None)),
    ],
)
def test_what_needs_pickle_is_named(bare, tmp_path, name, value):
    model = pickle.loads(pickle.dumps(bare)).set_params(expert=ExpertSettings()).set_params(**{name: value})
    with pytest.raises(TypeError, match=rf"(?s){name.removeprefix('expert__')}.*joblib\.dump"):
        sk_avae.save(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path, mine):
    with pytest.raises(TypeError, match="AVAEEstimator or an AffineCanonicalizer, got MyVAE"):
        sk_avae.save(mine(), tmp_path / "m")
    with pytest.raises(NotFittedError):
        sk_avae.save(AVAEEstimator(), tmp_path / "m")


def test_weights_that_are_nan_are_not_saved(bare, tmp_path):
    model = pickle.loads(pickle.dumps(bare))
    next(model.module_.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        sk_avae.save(model, tmp_path / "m")


# ---------------------------------------------------------------- writing
@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "shutil.copymode"])
def test_a_failure_leaves_the_old_file_whole(bare, file, monkeypatch, call):
    before = file.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(f"sk_avae.persistence.safe_files.{call}", fail)
    with pytest.raises(OSError, match="no space"):
        sk_avae.save(bare, file)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [before]


def test_a_full_disk_leaves_the_old_file_whole(bare, file):
    resource = pytest.importorskip("resource")
    assert file.stat().st_size > 3000
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sk_avae.save(bare, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [before]


KILLED_IN = """
import os, pickle, resource, signal, sys
import sk_avae.persistence.safe_files

def in_write():
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills who writes more than the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

def killed_in(name):
    # Before the new file is on the disk, and when it is, but not yet in its place.
    return lambda: setattr(sk_avae.persistence.safe_files.os, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))

model = pickle.loads(open(sys.argv[1], "rb").read())
for prepare, by, path in zip(
    (in_write, killed_in("fsync"), killed_in("replace")),
    (signal.SIGXFSZ, signal.SIGKILL, signal.SIGKILL),
    sys.argv[2:],
):
    child = os.fork()
    if not child:
        prepare()
        sk_avae.save(model, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -by, path
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit to a file's size")
def test_a_process_that_is_killed_while_it_saves_leaves_the_old_file_whole(bare, file, tmp_path):
    before, pickled = file.read_bytes(), tmp_path / "pickle"
    assert len(before) > 3000
    changed = pickle.loads(pickle.dumps(bare)).set_params(n_restarts=7)
    pickled.write_bytes(pickle.dumps(changed))
    paths = [tmp_path / name / "model" for name in ("write", "fsync", "replace")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(before)
    subprocess.run([sys.executable, "-c", KILLED_IN, pickled, *paths], check=True, timeout=120)
    for path in paths:
        assert path.read_bytes() == before
        # What the killed one wrote lies beside it, hidden, and is in nobody's way.
        (left,) = [other for other in path.parent.iterdir() if other != path]
        assert re.fullmatch(r"\.sk_avae-[0-9a-f]+\.tmp", left.name)
        assert (0 < left.stat().st_size <= 3000) == (path.parent.name == "write")
        sk_avae.save(changed, path)
        assert sk_avae.load(path).n_restarts == 7


def test_a_new_file_has_the_rights_of_the_old(bare, file):
    file.chmod(0o600)
    sk_avae.save(bare, file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(bare, file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    sk_avae.save(bare, link)
    assert link.is_symlink()
    assert type(sk_avae.load(link)) is AVAEEstimator


def test_two_saves_are_the_same_bytes(bare, file):
    before = file.read_bytes()
    sk_avae.save(bare, file)
    assert file.read_bytes() == before


def test_a_header_that_could_not_be_read_is_not_written(bare, tmp_path, monkeypatch):
    monkeypatch.setattr("sk_avae.persistence.safe_files._LONGEST_HEADER", 1000)
    with pytest.raises(ValueError, match="so many tensors or column names"):
        sk_avae.save(bare, tmp_path / "m")
    assert not list(tmp_path.iterdir())
