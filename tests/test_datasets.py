"""The bundled sample, MNIST from a folder, and perturbations."""

import gzip
import math
import tracemalloc

import numpy as np
import pytest
import sklearn.datasets
import torch
from hostile_files import idx, mnist_files

from sk_avae.affine import FAMILIES, INTERPOLATIONS, to_matrix, warp
from sk_avae.datasets import DEFAULT_RANGES, fetch_mnist, load_mnist_sample, make_perturbed

every_family = pytest.mark.parametrize("family", FAMILIES)


def digits(n=100):
    X, _ = load_mnist_sample("test")
    return X[:n]


# ---------------------------------------------------------------- the sample


@pytest.mark.parametrize(("subset", "n"), [("train", 5000), ("test", 1000)])
def test_sample_is_balanced(subset, n):
    X, y = load_mnist_sample(subset)
    assert (X.shape, X.dtype) == ((n, 784), np.uint8)
    assert (y.shape, y.dtype) == ((n,), np.int64)
    assert np.bincount(y).tolist() == [n // 10] * 10
    assert (X.min(), X.max()) == (0, 255)


def test_samples_share_no_image_and_repeat_none():
    X = np.concatenate([load_mnist_sample(subset)[0] for subset in ("train", "test")])
    assert len(np.unique(X, axis=0)) == 6000


def test_sample_has_its_digits_upright_and_its_labels_right():
    X, y = load_mnist_sample("train")
    X_test, y_test = load_mnist_sample("test")
    means = np.stack([X[y == digit].mean(axis=0) for digit in range(10)])
    nearest = np.linalg.norm(X_test[:, None] - means, axis=2).argmin(axis=1)
    assert np.mean(nearest == y_test) > 0.75
    # A 7 has its bar on top: turned it has not.
    ink_per_row = means[7].reshape(28, 28).sum(axis=1)
    assert ink_per_row[5:11].sum() > 1.5 * ink_per_row[17:23].sum()


def test_sample_belongs_to_its_caller():
    X, y = load_mnist_sample("test")
    X[:], y[:] = 0, 0
    again = load_mnist_sample("test")
    assert again[0].any()
    assert again[1].any()


@pytest.mark.parametrize("function", [load_mnist_sample, lambda subset: fetch_mnist(subset=subset)])
def test_unknown_subset_is_refused(function):
    with pytest.raises(ValueError, match="subset must be 'train' or 'test', got 'valid'"):
        function("valid")


# ---------------------------------------------------------------- perturbations


@every_family
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_perturbed_images_keep_shape_dtype_and_range(family, dtype):
    X = digits().astype(dtype)
    before = X.copy()
    X_perturbed, alpha = make_perturbed(X, family=family, random_state=0)
    assert (X_perturbed.shape, X_perturbed.dtype) == (X.shape, X.dtype)
    assert (alpha.shape, alpha.dtype) == ((100, len(FAMILIES[family])), np.float64)
    assert 0 <= X_perturbed.min() <= X_perturbed.max() <= 255
    assert not np.array_equal(X_perturbed, X)
    assert np.array_equal(X, before)


@pytest.mark.parametrize("shape", [(100, 28, 28), (100, 14, 56), (100, 14, 28, 2)])
def test_stacks_stay_stacks_and_agree_with_rows(shape):
    X = digits().reshape(shape)
    stack, alpha = make_perturbed(X, family="affine", random_state=0)
    rows, again = make_perturbed(X.reshape(100, -1), family="affine", image_shape=shape[1:], random_state=0)
    assert stack.shape == shape
    assert np.array_equal(stack.reshape(100, -1), rows)
    assert np.array_equal(alpha, again)


@every_family
def test_poses_fill_their_ranges(family):
    _, alpha = make_perturbed(digits(1000)[:, :16], family=family, random_state=0)
    for name, values in zip(FAMILIES[family], alpha.T, strict=True):
        reach = DEFAULT_RANGES[name]
        assert -reach <= values.min() < -0.95 * reach
        assert 0.95 * reach < values.max() <= reach
        assert abs(values.mean()) < 0.1 * reach


@every_family
def test_ranges_are_a_reach_or_two_bounds(family):
    name = FAMILIES[family][-1]
    for reach, low, high in [(0.1, -0.1, 0.1), ((0.05, 0.2), 0.05, 0.2), ((0.1, 0.1), 0.1, 0.1), (0, 0, 0)]:
        _, alpha = make_perturbed(digits(), family=family, ranges={name: reach}, random_state=0)
        assert (alpha[:, -1] >= low).all()
        assert (alpha[:, -1] <= high).all()


@every_family
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_no_perturbation_is_none_at_all(family, interpolation):
    ranges = dict.fromkeys(FAMILIES[family], 0)
    X_perturbed, alpha = make_perturbed(digits(), family=family, ranges=ranges, interpolation=interpolation)
    assert np.array_equal(X_perturbed, digits())
    assert not alpha.any()


@every_family
def test_undoing_the_true_pose_gives_the_original(family):
    X = digits().reshape(-1, 28, 28)[:, 2:26].astype(np.float64)
    # Mild: strong ones push ink out of the frame.
    ranges = {name: 0.1 for name in FAMILIES[family] if name != "angle"}
    X_perturbed, alpha = make_perturbed(X, family=family, ranges=ranges, random_state=0)
    matrix = to_matrix(torch.tensor(alpha), family, aspect=28 / 24)
    undone = warp(torch.tensor(X_perturbed)[:, None], matrix, interpolation="bicubic")[:, 0].numpy()
    # The middle is in the frame whatever the turn.
    middle = (slice(None), slice(6, 18), slice(8, 20))
    assert np.abs(undone - X)[middle].mean() < 0.25 * np.abs(X_perturbed - X)[middle].mean()


MARKERS = {
    "quarter turn counter-clockwise": ({"angle": math.pi / 2}, (1, 4)),
    "right": ({"angle": 0, "tx": 2 * 2 / 10}, (2, 8)),
    "down": ({"angle": 0, "ty": 2 * 1 / 6}, (3, 6)),
}


@pytest.mark.parametrize(("pose", "pixel"), MARKERS.values(), ids=MARKERS)
def test_marker_pixel(pose, pixel):
    image = np.zeros((1, 6, 10))
    image[0, 2, 6] = 1.0
    ranges = {name: (pose.get(name, 0.0),) * 2 for name in FAMILIES["rigid"]}
    moved, alpha = make_perturbed(image, family="rigid", ranges=ranges)
    expected = np.zeros((6, 10))
    expected[pixel] = 1.0
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)
    assert alpha[0].tolist() == [pose.get(name, 0.0) for name in FAMILIES["rigid"]]


def test_background_is_read_off_the_edges_or_given():
    shifted = {"family": "rigid", "ranges": {"angle": 0, "tx": (1.0, 1.0), "ty": 0}}
    inverted = 255 - digits()
    for background, expected in [("auto", 255), (7, 7)]:
        X_perturbed, _ = make_perturbed(inverted, background=background, **shifted)
        assert (X_perturbed.reshape(-1, 28, 28)[:, :, :13] == expected).all()


def test_background_is_read_channel_by_channel():
    X = np.stack([digits(), 255 - digits()], axis=2).reshape(-1, 28, 28, 2)
    turned, _ = make_perturbed(X, random_state=0)
    assert np.abs(turned[..., 0].astype(int) + turned[..., 1] - 255).max() <= 1


def test_nearest_invents_no_pixel_value():
    X = np.where(digits() > 127, 200, 10).astype(np.uint8)
    X_perturbed, _ = make_perturbed(X, family="affine", interpolation="nearest", random_state=0)
    assert set(np.unique(X_perturbed)) == {10, 200}


def test_a_row_of_no_square_is_a_signal():
    signal = np.eye(5)[None, 2]
    moved, _ = make_perturbed(signal, family="rigid", ranges={"angle": 0, "tx": (0.4, 0.4), "ty": 0})
    np.testing.assert_allclose(moved, [[0, 0, 0, 1, 0]], atol=1e-6)


def test_chunks_leave_no_seam(monkeypatch):
    whole, alpha = make_perturbed(digits(), family="affine", background=0, random_state=0)
    monkeypatch.setattr("sk_avae.datasets._IMAGES_PER_CHUNK", 7)
    pieces, again = make_perturbed(digits(), family="affine", background=0, random_state=0)
    assert np.abs(whole.astype(int) - pieces).max() <= 1
    assert np.array_equal(alpha, again)


def test_random_state_decides_and_the_global_ones_stay():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draws = [make_perturbed(digits(), random_state=seed)[1] for seed in (0, 0, 1, None, None)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[3], draws[4])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "afine"}, r"Did you mean 'affine'\?"),
        ({"ranges": {"tx": 0.1}}, r"ranges names \['tx'\], but the family 'rotation' has \['angle'\]"),
        ({"ranges": {"angle": -1}}, r"ranges\['angle'\] must be a positive number or \(low, high\), got -1"),
        ({"ranges": {"angle": (1, 0)}}, r"got \(1, 0\)"),
        ({"ranges": {"angle": math.nan}}, "must be a positive number"),
        ({"interpolation": "cubic"}, "interpolation must be one of .* got 'cubic'"),
        ({"image_shape": (28, 27)}, r"X has 784 features per sample, but image_shape=\(28, 27\)"),
        ({"image_shape": (784,)}, r"got \(784,\)"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_perturbed(digits(), **settings)


# ---------------------------------------------------------------- MNIST from a folder


def write(folder, images, labels, prefix="train", zipped=False):
    for name, array in [("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)]:
        content = idx(array)
        path = folder / f"{prefix}-{name}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def mnist():
    X, y = load_mnist_sample("test")
    return X[:20].reshape(20, 28, 28), y[:20].astype(np.uint8)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("subset", "prefix"), [("train", "train"), ("test", "t10k")])
def test_fetch_reads_idx_files(tmp_path, mnist, zipped, subset, prefix):
    write(tmp_path, *mnist, prefix=prefix, zipped=zipped)
    X, y = fetch_mnist(tmp_path, subset=subset)
    assert np.array_equal(X, mnist[0].reshape(20, 784))
    assert np.array_equal(y, mnist[1])
    assert (X.dtype, y.dtype) == (np.uint8, np.int64)
    assert X.flags.writeable
    assert y.flags.writeable


def test_fetch_finds_the_folder_by_the_variable_and_prefers_its_argument(tmp_path, mnist, monkeypatch):
    images, labels = mnist
    (tmp_path / "variable").mkdir()
    (tmp_path / "argument").mkdir()
    write(tmp_path / "variable", images, labels)
    write(tmp_path / "argument", images[:5], labels[:5])
    monkeypatch.setenv("SK_AVAE_DATA", str(tmp_path / "variable"))
    assert len(fetch_mnist()[0]) == 20
    assert len(fetch_mnist(str(tmp_path / "argument"))[0]) == 5


def test_missing_files_are_named(tmp_path, mnist):
    with pytest.raises(FileNotFoundError, match=r"has neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        fetch_mnist(tmp_path)
    write(tmp_path, *mnist)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="has neither train-labels-idx1-ubyte"):
        fetch_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="has neither t10k-images-idx3-ubyte"):
        fetch_mnist(tmp_path, subset="test")


@pytest.mark.parametrize("n_bytes", [0, 2, 4, 7, 15, 16, 1000, -1])
def test_truncated_files_are_named(tmp_path, mnist, n_bytes):
    write(tmp_path, *mnist)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte (is no IDX file|announces)"):
        fetch_mnist(tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>Not found</html>", b"\0\0\x0d\x03" + bytes(12), b"\0\0\x08\x02" + bytes(8)]
)
def test_garbage_is_named(tmp_path, mnist, content):
    write(tmp_path, *mnist)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte is no IDX file"):
        fetch_mnist(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda _: b"<html>"])
def test_damaged_gzip_files_are_named(tmp_path, mnist, damage):
    write(tmp_path, *mnist, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz"):
        fetch_mnist(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path, mnist):
    images, labels = mnist
    for pair in [(images, labels[:-1]), (labels, labels), (images, images)]:
        write(tmp_path, *pair)
        with pytest.raises(ValueError, match=r"has images of shape .* but labels of shape"):
            fetch_mnist(tmp_path)


def test_hostile_files_are_refused_with_a_sentence_in_little_memory(tmp_path, mnist):
    n_refused = 0
    for number, hostile in enumerate(mnist_files(*mnist, n_random=25)):
        folder = tmp_path / str(number)
        folder.mkdir()
        hostile.write(folder)
        tracemalloc.start()
        try:
            X, y = fetch_mnist(folder)
        except ValueError as error:
            assert str(folder) in str(error)  # noqa: PT017
            n_refused += 1
        else:  # gzip's header has bits that mean nothing
            assert hostile.kind == "gzip, a bit flipped"
            assert np.array_equal(X, mnist[0].reshape(20, 784))
            assert np.array_equal(y, mnist[1])
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 200e6, hostile.kind
    assert n_refused > 125


def test_a_file_as_large_as_mnist_is_read(tmp_path):
    images, labels = np.zeros((60_000, 28, 28), np.uint8), np.arange(60_000, dtype=np.uint8) % 10
    images[-1, -1, -1] = 7
    write(tmp_path, images, labels)
    X, y = fetch_mnist(tmp_path)
    assert X.shape == (60_000, 784)
    assert X[-1, -1] == 7
    assert np.array_equal(y, labels)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (
            np.zeros((60_001, 1, 1), np.uint8),
            np.zeros(2, np.uint8),
            r"announces \(60001, 1, 1\) values, more than",
        ),
        (np.zeros((1, 8000, 6000), np.uint8), np.zeros(1, np.uint8), r"announces \(1, 8000, 6000\) values, more than"),
        (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8), r"has no pixels: its images have shape \(0, 28, 28\)"),
        (np.zeros((2, 0, 28), np.uint8), np.zeros(2, np.uint8), r"has no pixels: its images have shape \(2, 0, 28\)"),
        (np.zeros((2, 3, 3), np.uint8), np.array([9, 10], np.uint8), "has 10 for a label, but MNIST's are 0 to 9"),
    ],
)
def test_what_is_not_mnist_is_named(tmp_path, images, labels, match):
    write(tmp_path, images, labels)
    with pytest.raises(ValueError, match=match):
        fetch_mnist(tmp_path)


def test_a_file_that_may_not_be_read_is_an_error_of_the_system(tmp_path, mnist, monkeypatch):
    write(tmp_path, *mnist)

    def refuse(*args, **kwargs):
        raise PermissionError("not yours")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(PermissionError, match="not yours"):
        fetch_mnist(tmp_path)


@pytest.mark.parametrize(("subset", "rows"), [("train", slice(60_000)), ("test", slice(60_000, 70_000))])
def test_without_a_folder_openml_is_asked(monkeypatch, subset, rows):
    X_all = np.arange(70_000)[:, None] % 256
    y_all = np.array([str(i % 10) for i in range(70_000)], dtype=object)
    asked = []

    def fetch_openml(name, **settings):
        asked.append((name, settings["version"], settings["return_X_y"]))
        return X_all, y_all

    monkeypatch.delenv("SK_AVAE_DATA", raising=False)
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch_openml)
    X, y = fetch_mnist(subset=subset)
    assert asked == [("mnist_784", 1, True)]
    assert np.array_equal(X, X_all[rows])
    assert y.tolist() == [i % 10 for i in range(70_000)][rows]
    assert (X.dtype, y.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, bool, np.float64])
def test_any_kind_of_pixels_is_perturbed(mnist_like, dtype):
    X = (mnist_like > 127) if dtype is bool else mnist_like.astype(dtype)
    perturbed, _ = make_perturbed(X, random_state=0)
    assert perturbed.dtype == dtype
    assert (perturbed != X).any()


@pytest.fixture
def mnist_like():
    return load_mnist_sample("test")[0][:20]
