"""What a safe file may hold, in the estimators around an aligner; and files that are written while something fails."""

import json
import signal
import subprocess
import sys

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors
from sklearn.frozen import FrozenEstimator

import sk_avae
from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier, ExpertSettings
from sk_avae.estimator import AVAEEstimator as Estimator
from sk_avae.model.likelihoods import Gaussian
from sk_avae.persistence.plain_json import DTYPES
from sk_avae.persistence.safe_files import _DTYPES, _LONGEST_HEADER, _checksum

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

X = np.random.default_rng(0).random((40, 16))


def bare(**parameters):
    small = {"hidden_layer_sizes": (4,), "max_epochs": 1, "n_restarts": 4, "critic": False, "learned_starts": False}
    return AVAEEstimator(2, **{**small, "tol": 1e3, "random_state": 0, **parameters})


@pytest.fixture(scope="module")
def aligner():
    return bare().fit(X)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def forge(path, model, change):
    """Save a model as another one that has a right checksum."""
    sk_avae.save(model, path)
    with safe_open(path, framework="numpy") as opened:
        arrays = {name: opened.get_tensor(name) for name in opened.keys() if name != "sha256"}  # noqa: SIM118
        document = json.loads(opened.metadata()["sk_avae"])
    change(next(iter(document["model"].values()))["dict"], arrays)
    text = json.dumps(document)
    data = to_safetensors({**arrays, "sha256": _checksum(text, arrays)}, metadata={"sk_avae": text})
    path.write_bytes(data)


def refusal(path):
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        sk_avae.load(path)
    assert caught.type is ValueError
    return str(caught.value)


def test_every_type_has_its_name():
    assert sorted(_DTYPES.values()) == sorted(DTYPES)
    assert {"BOOL", "F32", "F64", "I64", "U8"} <= set(_DTYPES)


# ---------------------------------------------------------------- parameters and attributes
def test_parameters_come_back(file):
    parameters = {
        "alpha_prior": {"angle": np.inf},
        "hidden_layer_sizes": [np.int64(4)],
        "tol": np.float32(1e3),
        "family": np.str_("rotation"),
        "image_shape": [4, 4],
        "padding": "border",
        "random_state": np.int64(7),
        "expert": ExpertSettings(max_iter=np.int64(7), callbacks=[]),
    }
    model = bare(**parameters).fit(X)
    sk_avae.save(model, file)
    loaded = sk_avae.load(file)
    found, expected = loaded.get_params(), model.get_params()
    assert found.pop("expert").get_params() == {**expected.pop("expert").get_params(), "callbacks": None}
    assert found == {**expected, "expert__callbacks": None}
    assert type(loaded.tol) is np.float32
    assert_array_equal(loaded.transform(X), model.transform(X))
    assert_array_equal(loaded.fit(X).transform(X), model.transform(X))


def test_a_folder_of_memory_stays_behind(file, tmp_path):
    model = bare(memory=str(tmp_path / "cache")).fit(X)
    sk_avae.save(model, file)
    assert model.memory == str(tmp_path / "cache")
    assert sk_avae.load(file).memory is None


def test_data_frames_stay_the_output(aligner, file):
    model = AffineCanonicalizer(FrozenEstimator(aligner)).fit(X).set_output(transform="pandas")
    sk_avae.save(model, file)
    assert sk_avae.load(file).transform(X[:2]).equals(model.transform(X[:2]))


def test_an_older_file_lacks_a_parameter(aligner, file):
    forge(file, aligner, lambda state, arrays: state.pop("padding"))
    assert sk_avae.load(file).padding == "background"


def test_a_fixed_likelihood_is_given_again(file):
    model = bare(likelihood=Gaussian(0.5)).fit(X)
    sk_avae.save(model, file)
    assert r"load(path, likelihood=Gaussian(...))" in refusal(file)
    given = Gaussian(0.5)
    loaded = sk_avae.load(file, likelihood=given)
    assert loaded.likelihood is given
    assert loaded.likelihood_ is not given
    assert_array_equal(loaded.score_samples(X), model.score_samples(X))


def test_an_unknown_attribute_is_named(aligner, file):
    model = bare().fit(X)
    model.note = "mine"
    with pytest.raises(ValueError, match="AVAEEstimator with the unknown note"):
        sk_avae.save(model, file)


class Derived(Estimator):
    pass


@pytest.mark.parametrize("model", [Derived(), CanonicalizedClassifier(), print, None])
def test_another_class_is_refused(model, file):
    with pytest.raises(TypeError, match="takes an AVAEEstimator or an AffineCanonicalizer, got"):
        sk_avae.save(model, file)
    with pytest.raises(TypeError, match=r"estimator_?\S* is of type Derived"):
        sk_avae.save(
            AffineCanonicalizer(FrozenEstimator(Derived().set_params(**bare().get_params()).fit(X))).fit(X), file
        )


def test_two_saves_are_the_same_bytes(aligner, file):
    sk_avae.save(aligner, file)
    before = file.read_bytes()
    sk_avae.save(aligner, file)
    assert file.read_bytes() == before


def test_a_header_that_could_not_be_read_is_not_written(aligner, file, monkeypatch):
    monkeypatch.setattr("sk_avae.persistence.safe_files._LONGEST_HEADER", 1000)
    with pytest.raises(ValueError, match="so many tensors or column names"):
        sk_avae.save(aligner, file)
    assert not file.exists()


# ---------------------------------------------------------------- forged canonicalizers
UNFITTED = {"AVAEEstimator": {"dict": {}}}
CHANGES = {
    "unfitted": lambda state, arrays: state.update(estimator_=UNFITTED),
    "frozen unfitted": lambda state, arrays: state.update(
        estimator_={"FrozenEstimator": {"dict": {"estimator": UNFITTED}}}
    ),
    "frozen twice": lambda state, arrays: state.update(
        estimator_={"FrozenEstimator": {"dict": {"estimator": {"FrozenEstimator": {"dict": {}}}}}}
    ),
    "itself": lambda state, arrays: state.update(estimator={"AffineCanonicalizer": {"dict": {}}}),
    "an estimator for a number": lambda state, arrays: state.update(random_state=UNFITTED),
    "an estimator that is no object": lambda state, arrays: state.update(estimator={"AVAEEstimator": [1]}),
    "features": lambda state, arrays: state.update(n_features_in_=17),
    "append": lambda state, arrays: state.update(append_alpha="yes"),
    "more": lambda state, arrays: state.update(__class__="x"),
    "none": lambda state, arrays: state.update(estimator_=None),
    "no parameter": lambda state, arrays: state.pop("estimator"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_forged_canonicalizers_are_refused(file, name):
    model = AffineCanonicalizer(bare()).fit(X)
    forge(file, model, CHANGES[name])
    assert "is not as sk_avae.save writes it" in refusal(file)


# ---------------------------------------------------------------- memory
WATCH = """
import resource, sys, sk_avae
sk_avae.load(sys.argv[1] + "/good")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        sk_avae.load(path)
    except ValueError:
        continue
    sys.exit("loaded " + path)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def arguments(state):
    return state["_recipe"]["dict"]["arguments"]["dict"]


GREEDY = {
    "layers": lambda state, arrays: arguments(state).update(hidden_layer_sizes={"tuple": [10**6] * 90}),
    "latent": lambda state, arrays: arguments(state).update(latent_size=10**9),
    "objects": lambda state, arrays: state.update(alpha_prior=[{"dict": {}}] * 110_000),
    "numbers": lambda state, arrays: state.update(history_=[0] * 600_000),
    "names": lambda state, arrays: state.update(feature_names_in_={"names": ["x"] * 250_000}),
    "tensors": lambda state, arrays: arrays.update({f"x{i}": np.zeros(0) for i in range(25_000)}),
    "margin": lambda state, arrays: (
        state["image_format_"]["dict"].update(pad=2**19),
        arguments(state).update(image_shape={"tuple": [1, 4 + 2**20, 4 + 2**20]}),
    ),
}


@pytest.mark.parametrize("name", ["module", "likelihood"])
@pytest.mark.parametrize("value", [5, None, [], UNFITTED, "os.system", {"tuple": []}], ids=repr)
def test_what_is_no_module_is_refused(aligner, file, name, value):
    forge(file, aligner, lambda state, arrays: state.update({name: value}))
    assert f"AVAEEstimator.{name} is not as" in refusal(file)


@pytest.mark.parametrize("name", ["lr", "alpha_prior", "family", "hidden_layer_sizes"])
def test_a_parameter_is_small(aligner, file, name):
    forge(file, aligner, lambda state, arrays: state.update({name: [0] * 1000}))
    assert f"AVAEEstimator.{name} is not as" in refusal(file)


def test_small_files_cannot_ask_for_much_memory(aligner, tmp_path):
    for name, change in GREEDY.items():
        forge(tmp_path / name, aligner, change)
        assert (tmp_path / name).stat().st_size < _LONGEST_HEADER
    with open(tmp_path / "sparse", "wb") as file:
        file.write((100).to_bytes(8, "little") + b"{" + b" " * 99)
        file.truncate(10**10)
    sk_avae.save(aligner, tmp_path / "good")
    paths = [str(tmp_path / name) for name in (*GREEDY, "sparse")]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path), *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200


# ---------------------------------------------------------------- writing while something fails
WRITE = """
import resource, signal, sys, joblib, sk_avae
model = joblib.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills who writes more than the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
sk_avae.save(model, sys.argv[2])
"""


@pytest.fixture
def old(aligner, tmp_path):
    """A file that is to stay whole, alone in its folder."""
    path = tmp_path / "folder" / "model.safetensors"
    path.parent.mkdir()
    sk_avae.save(aligner, path)
    assert path.stat().st_size > 3000
    return path


def test_a_full_disk_leaves_the_old_file_whole(aligner, old):
    resource = pytest.importorskip("resource")
    before, limits = old.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            sk_avae.save(aligner, old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_bytes() for path in old.parent.iterdir()] == [before]


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit to a file's size")
def test_a_process_killed_while_writing_leaves_the_old_file_whole(aligner, old, tmp_path):
    joblib.dump(aligner, tmp_path / "model.joblib")
    before = old.read_bytes()
    command = [sys.executable, "-c", WRITE, str(tmp_path / "model.joblib"), str(old)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert old.read_bytes() == before
    (left,) = (path for path in old.parent.iterdir() if path != old)
    assert left.name.startswith(".sk_avae-")
    assert 0 < left.stat().st_size <= 3000
    assert_array_equal(sk_avae.load(old).transform(X), aligner.transform(X))


def test_a_new_file_has_the_rights_of_the_old(aligner, file):
    sk_avae.save(aligner, file)
    file.chmod(0o600)
    sk_avae.save(aligner, file)
    assert file.stat().st_mode & 0o777 == 0o600
