"""What a safe file may hold, and what forged, damaged and foreign files do."""

import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hostile_files import attributes_of, model_files
from hostile_files import forge as forge_file
from numpy.testing import assert_array_equal
from safetensors.numpy import save as to_safetensors
from sklearn.frozen import FrozenEstimator

import sk_avae
from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier, ExpertSettings
from sk_avae.estimator import AVAEEstimator as Estimator
from sk_avae.model.likelihoods import Gaussian
from sk_avae.persistence.plain_json import DTYPES
from sk_avae.persistence.safe_files import _DTYPES, _LONGEST_HEADER

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
    forge_file(path, lambda document, arrays: change(attributes_of(document), arrays))


def refusal(path):
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        sk_avae.load(path)
    assert caught.type is ValueError
    assert len(str(caught.value)) < 1500
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
    assert sk_avae.load(file).padding == "auto"


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


# ---------------------------------------------------------------- hostile files
@pytest.fixture
def whole(aligner, file):
    """A file that nothing is wrong with."""
    sk_avae.save(aligner, file)
    return file


def test_hostile_files_are_refused_in_little_memory_and_run_nothing(aligner, whole, tmp_path):
    mark, expected, n_refused, read = tmp_path / "mark", aligner.transform(X), 0, set()
    for number, hostile in enumerate(model_files(whole.read_bytes(), mark, n_random=120)):
        folder = tmp_path / str(number)
        folder.mkdir()
        hostile.write(folder)
        tracemalloc.start()
        try:
            loaded = sk_avae.load(folder / "model")
        except ValueError as error:
            assert type(error) is ValueError  # noqa: PT017
            assert re.fullmatch(rf"{folder}/model cannot be loaded: .+", str(error), re.DOTALL)  # noqa: PT017
            assert len(str(error)) < 1500  # noqa: PT017
            n_refused += 1
        else:  # JSON and safetensors have bits that mean nothing
            read.add(hostile.kind)
            assert_array_equal(loaded.transform(X), expected)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 200e6, hostile.kind
    assert n_refused > 360
    assert read <= {"model, a bit of the header flipped", "model, a bit flipped"}
    assert not mark.exists()


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        sk_avae.load(tmp_path / "none")


def test_a_foreign_safetensors_file_is_refusal(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(to_safetensors({"x": np.zeros(3)}))
    assert "not one of sk_avae.save's" in refusal(path)


def test_the_checksum_sees_a_changed_weight(whole):
    data = bytearray(whole.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    whole.write_bytes(data)
    assert "checksum" in refusal(whole)


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


DOCUMENTS = {
    "newer": lambda document, arrays: document.update(format=3),
    "format zero": lambda document, arrays: document.update(format=0),
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


@pytest.mark.parametrize("name", DOCUMENTS)
def test_forged_documents_are_refused(whole, name):
    forge_file(whole, DOCUMENTS[name])
    refusal(whole)


ATTRIBUTES = {
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


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_forged_attributes_are_refused(aligner, file, name):
    key, value = ATTRIBUTES[name]
    forge(file, aligner, lambda state, arrays: state.update({key: value}))
    refusal(file)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900, "1" * 100_000, "NaN", "", "{"]
)
def test_strange_json_is_refused(whole, text):
    forge_file(whole, lambda document, arrays: None, text=text)
    refusal(whole)


@pytest.mark.parametrize(("name", "n"), [("lr", 1), ("alpha_prior", 800)])
def test_what_is_nested_deeply_is_refused(whole, name, n):
    nested = 0
    for _ in range(300):
        nested = [nested, 0]
    forge_file(whole, lambda document, arrays: attributes_of(document).update({name: [nested] * n}))
    assert "deeper than 50" in refusal(whole)


@pytest.mark.parametrize("device", ["hpu", "privateuseone", "xla", "mps:7"])
def test_a_device_of_another_package_becomes_the_cpu(whole, device):
    forge_file(whole, lambda document, arrays: document.update(device=device))
    with pytest.warns(UserWarning, match="loading it on the CPU"):
        sk_avae.load(whole)


# ---------------------------------------------------------------- forged canonicalizers
UNFITTED = {"AVAEEstimator": {"dict": {}}}
CANONICALIZERS = {
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


@pytest.mark.parametrize("name", CANONICALIZERS)
def test_forged_canonicalizers_are_refused(file, name):
    model = AffineCanonicalizer(bare()).fit(X)
    forge(file, model, CANONICALIZERS[name])
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
    "more layers": lambda state, arrays: arguments(state).update(hidden_layer_sizes={"tuple": [10**6] * 900}),
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
