"""Safe files: what comes back, what cannot be saved, and what hostile or damaged files do."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import sk_avae
import sk_avae.persistence.safe_files
from sk_avae import AffineCanonicalizer, AVAEEstimator, ExpertSettings
from sk_avae.model.vae import MLPVAE
from sk_avae.persistence.safe_files import _checksum

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


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
    assert {k: a.tobytes() for k, a in others.items() if k != "sha256"} == {
        k: a.tobytes() for k, a in arrays.items() if k != "sha256"
    }
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
        assert json.loads(opened.metadata()["sk_avae"])["format"] == 1
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


KILLED_IN = """
import os, pickle, signal, sys
import sk_avae.persistence.safe_files

model = pickle.loads(open(sys.argv[1], "rb").read())
for name, path in zip(("fsync", "replace"), sys.argv[2:]):
    child = os.fork()
    if not child:
        # Before the new file is on the disk, and when it is, but not yet in its place.
        setattr(sk_avae.persistence.safe_files.os, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        sk_avae.save(model, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, name
"""


def test_a_process_that_is_killed_while_it_saves_leaves_the_old_file_whole(bare, file, tmp_path):
    before, pickled = file.read_bytes(), tmp_path / "pickle"
    changed = pickle.loads(pickle.dumps(bare)).set_params(n_restarts=7)
    pickled.write_bytes(pickle.dumps(changed))
    paths = [tmp_path / name / "model" for name in ("fsync", "replace")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(before)
    subprocess.run([sys.executable, "-c", KILLED_IN, pickled, *paths], check=True, timeout=120)
    for path in paths:
        assert path.read_bytes() == before
        # What the killed one wrote lies beside it, hidden, and is in nobody's way.
        (left,) = [other.name for other in path.parent.iterdir() if other != path]
        assert re.fullmatch(r"\.sk_avae-[0-9a-f]+\.tmp", left)
        sk_avae.save(changed, path)
        assert sk_avae.load(path).n_restarts == 7


def test_a_link_stays_a_link(bare, file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    sk_avae.save(bare, link)
    assert link.is_symlink()
    assert type(sk_avae.load(link)) is AVAEEstimator


# ---------------------------------------------------------------- hostile files
def contents_of(path):
    with safe_open(path, framework="numpy") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return json.loads(opened.metadata()["sk_avae"]), arrays


def forge(path, change, text=None):
    """Change a file, and give it a right checksum."""
    document, arrays = contents_of(path)
    arrays.pop("sha256")
    change(document, arrays)
    text = json.dumps(document) if text is None else text
    path.write_bytes(to_safetensors({**arrays, "sha256": _checksum(text, arrays)}, metadata={"sk_avae": text}))


def refused(path):
    """Assert that a file is refused with a sentence, in little memory; return the sentence."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            sk_avae.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.type is ValueError
    assert re.match(r".*cannot be loaded: .+", str(caught.value), re.DOTALL)
    assert len(str(caught.value)) < 1500
    assert peak < 200e6
    return str(caught.value)


class Bomb:
    """What a pickle would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "joblib", "torch", "zip", "empty", "text", "folder"])
def test_other_files_are_refused_and_run_nothing(tmp_path, kind):
    path, mark = tmp_path / "m", tmp_path / "mark"
    if kind == "torch":
        torch.save(Bomb(mark), path)
    elif kind == "joblib":
        joblib.dump(Bomb(mark), path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../mark", "here")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"pickle": pickle.dumps(Bomb(mark)), "empty": b"", "text": b"x" * 10_000}[kind])
    refused(path)
    assert not mark.exists()


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        sk_avae.load(tmp_path / "none")


def test_files_cut_short_are_refused(file):
    data = file.read_bytes()
    random = np.random.default_rng(0)
    for length in {0, 1, 7, 8, 9, 100, len(data) - 1, *random.integers(len(data), size=60).tolist()}:
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cannot be loaded"):
            sk_avae.load(file)
    file.write_bytes(data + b"\0")
    refused(file)


def test_flipped_bits_are_refused(bare, file):
    data = file.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    random = np.random.default_rng(0)
    X = random.random((2, 16))
    expected = bare.transform(X)
    places = [*range(16), *random.integers(header, size=150), *random.integers(header, len(data), size=150)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(8))
        file.write_bytes(flipped)
        try:
            loaded = sk_avae.load(file)
        except ValueError:
            continue
        assert_array_equal(loaded.transform(X), expected)


@pytest.mark.parametrize("length", [2**62, 2**63, 2**64 - 1, 2**31, 10**8])
def test_a_header_that_promises_too_much_is_refused(file, length):
    data = file.read_bytes()
    file.write_bytes(struct.pack("<Q", length) + data[8:])
    refused(file)


def test_shapes_that_promise_too_much_are_refused(tmp_path):
    path = tmp_path / "m"
    for shape in ([2**40, 2**40], [2**62], [-1], [2**64], [0, 2**62], [1] * 100):
        header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        refused(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(to_safetensors({"x": np.zeros(3)}))
    assert "not one of sk_avae.save's" in refused(path)


def attributes_of(document):
    (content,) = document["model"].values()
    return content["dict"]


def renamed(new):
    def change(document, arrays):
        arrays[new] = arrays.pop("module_.encoder.0.weight")
        attributes_of(document)["module_"]["dict"]["encoder.0.weight"] = {"array": new}
        del attributes_of(document)["module_"]["dict"]["encoder.0.bias"]

    return change


def with_array(make):
    def change(document, arrays):
        arrays["module_.encoder.0.weight"] = np.array(make(arrays["module_.encoder.0.weight"]))

    return change


CHANGES = {
    "newer": lambda document, arrays: document.update(format=2),
    "format true": lambda document, arrays: document.update(format=True),
    "format text": lambda document, arrays: document.update(format="1"),
    "more at the top": lambda document, arrays: document.update(more=1),
    "version": lambda document, arrays: document.update(sk_avae=["x"]),
    "device": lambda document, arrays: document.update(device="../../x"),
    "device meta": lambda document, arrays: document.update(device="meta"),
    "unknown class": lambda document, arrays: document.update(model={"os.system": {"dict": {}}}),
    "no class": lambda document, arrays: document.update(model=3),
    "frozen": lambda document, arrays: document.update(model={"FrozenEstimator": document["model"]}),
    "two tags": lambda document, arrays: document["model"].update(AffineCanonicalizer={}),
    "nan weight": with_array(lambda weight: weight * np.nan),
    "double weight": with_array(lambda weight: weight.astype(float)),
    "wide weight": with_array(lambda weight: np.hstack([weight, weight])),
    "whole weight": with_array(lambda weight: weight.astype(np.int32)),
    "path": renamed("../../etc/passwd"),
    "spare tensor": lambda document, arrays: arrays.update(more=np.zeros(3)),
    "lost tensor": lambda document, arrays: arrays.pop("module_.encoder.0.weight"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_forged_files_are_refused(file, name):
    forge(file, CHANGES[name])
    refused(file)


BAD = {
    "unknown": ("__class__", "x"),
    "missing": ("image_format_", None),
    "family": ("family", "../../etc/passwd"),
    "module": ("module", "os.system"),
    "n_restarts": ("n_restarts", -1),
    "n_refine": ("n_refine", "many"),
    "latent size": ("latent_size", 1.5),
    "callbacks": ("callbacks", ["x"]),
    "memory": ("memory", "/tmp/x"),
    "random state": ("random_state", {"tuple": []}),
    "features": ("n_features_in_", 10**15),
    "shape": ("image_shape_", {"tuple": [10**9, 10**9]}),
    "recipe": ("_recipe", {"dict": {"module": "os.system", "arguments": {"dict": {}}}}),
    "moments": ("moments_", {"tuple": [1, 2]}),
    "temperature": ("temperature_", {"float": "nan"}),
    "history": ("history_", [1, 2]),
    "gate": ("min_gain_", {"float": "nan"}),
    "output": ("_sklearn_output_config", {"dict": {"transform": "os.system"}}),
    "names": ("feature_names_in_", {"names": ["x"]}),
    "float": ("lr", {"float": "1e400"}),
    "scalar": ("lr", {"scalar": ["object", "00"]}),
    "tag": ("lr", {"pickle": "gASV"}),
    "nested estimator": ("lr", {"AVAEEstimator": {"dict": {}}}),
    "an array that is not there": ("moments_", {"array": "../../etc/passwd"}),
}


@pytest.mark.parametrize("name", BAD)
def test_forged_attributes_are_refused(file, name):
    key, value = BAD[name]
    forge(file, lambda document, arrays: attributes_of(document).update({key: value}))
    refused(file)


def test_huge_networks_are_refused_before_they_are_built(file):
    def change(document, arrays):
        recipe = attributes_of(document)["_recipe"]["dict"]["arguments"]["dict"]
        recipe["hidden_layer_sizes"] = {"tuple": [10**6] * 900}

    forge(file, change)
    refused(file)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, "1" * 100_000, "NaN", "", "{"]
)
def test_strange_json_is_refused(file, text):
    forge(file, lambda document, arrays: None, text=text)
    refused(file)


def test_a_deeply_nested_value_is_refused(file):
    nested = 0
    for _ in range(400):
        nested = [nested]
    forge(file, lambda document, arrays: attributes_of(document).update(lr=nested))
    refused(file)


def test_the_checksum_sees_a_changed_weight(file):
    document, arrays = contents_of(file)
    arrays["module_.encoder.0.weight"][0, 0] += 1
    file.write_bytes(to_safetensors(arrays, metadata={"sk_avae": json.dumps(document)}))
    assert "checksum" in refused(file)


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "xla", "mps:7"])
def test_a_device_of_another_package_becomes_the_cpu(file, device):
    forge(file, lambda document, arrays: document.update(device=device))
    with pytest.warns(UserWarning, match="loading it on the CPU"):
        sk_avae.load(file)


def test_much_that_is_nested_is_refused(file):
    nested = 0
    for _ in range(300):
        nested = [nested, 0]
    forge(file, lambda document, arrays: attributes_of(document).update(alpha_prior=[nested] * 800))
    with pytest.raises(ValueError, match="deeper than 50"):
        sk_avae.load(file)
