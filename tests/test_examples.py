"""The examples run at a fraction of their size, those with third-party packages where these are installed."""

import base64
import importlib
import io
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sk_avae import AffineCanonicalizer, datasets, save

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.exists(), reason="an installed package has no examples beside it"),
    pytest.mark.usefixtures("few_lessons"),
    pytest.mark.filterwarnings("default"),  # what other packages warn of is not this one's business
]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("plot_*.py")))
def test_an_example_of_the_gallery_runs_and_draws(name, monkeypatch, capsys):
    for needed in {"plot_dask": ["distributed"], "plot_galaxies": ["skimage"]}.get(name, []):
        pytest.importorskip(needed)
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    load = datasets.load_mnist_sample

    def few(subset="train"):
        # From all over the sample, so that all classes are among them.
        return tuple(array[:: len(array) // 100][:100] for array in load(subset))

    monkeypatch.setattr(datasets, "load_mnist_sample", few)
    code = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    small = re.sub(r"max_epochs( ?= ?)\d+", r"max_epochs\g<1>1", code)
    small = re.sub(r"\b800, reach", "160, reach", small)  # pictures that the tutorial draws
    small = small.replace("max_iter=1000", "max_iter=50")
    assert small != code
    plt.close("all")  # what other tests left open is none of its own
    try:
        exec(compile(small, f"{name}.py", "exec"), {"__name__": "__main__"})
        assert len(plt.get_fignums()) == 1
    finally:
        plt.close("all")
    assert capsys.readouterr().out


def needs(package):
    """Skip unless a package can be imported; some that are installed cannot, for want of an older numpy."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        pytest.skip(f"{package}: {error}")


def load_example(name):
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


@pytest.mark.parametrize("trainer", ["plain", "pythae"])
def test_a_vae_of_another_package_is_wrapped_and_stays_as_it_is(trainer, digits, turned):
    if trainer == "pythae":
        needs("pythae")
    example = load_example("wrap_a_vae")
    X, y = digits.X[:2000] / np.float32(255), digits.y[:2000]
    vae = getattr(example, f"train_{trainer}")(X.reshape(-1, 1, 28, 28), 10)
    avae, same = example.wrap(vae, X[:400])
    assert same
    classifier = LogisticRegression(C=0.05, max_iter=200).fit(X, y)
    X_turned, y = turned.X[:200] / np.float32(255), turned.y[:200]
    aligned = avae.transform(X_turned)[:, :784]
    assert classifier.score(aligned, y) > classifier.score(X_turned, y) + 0.3


def test_cells_are_described_whatever_their_pose():
    needs("geomstats.datasets.utils")
    example = load_example("cells")
    blob = np.exp(1j * np.linspace(0, 2 * np.pi, 400, endpoint=False))
    blob *= 40 + 9 * (blob**2).real + 5 * (blob**3).imag
    turned = 1.7 * np.roll(blob, 31) * np.exp(0.8j) + 300 - 200j
    outlines = [np.stack([outline.real, outline.imag], axis=1) for outline in (blob, turned)]
    np.testing.assert_allclose(*map(example.fourier_descriptors, outlines), atol=0.05)
    images = np.array([example.rasterise(outline) for outline in outlines])
    np.testing.assert_allclose(*example.hu_moments(images)[:, :2], atol=0.05)
    ink = images.sum(axis=1) / 255
    assert ink[0] == pytest.approx(ink[1], rel=0.02)
    area = [example.area_and_centroid(outline)[0] for outline in outlines]
    assert area[1] / area[0] == pytest.approx(1.7**2)


def test_cells_are_compared_and_drawn(tmp_path, small_avae, capsys):
    needs("geomstats.datasets.utils")
    example = load_example("cells")
    X, Y = example.load()
    assert X.shape[0] == len(Y) == 650
    some = np.random.default_rng(0).permutation(650)[:200]
    aligner = AffineCanonicalizer(small_avae(align_training=True, max_epochs=3, batch_size=50))
    aligner, held_out = example.compare(X[some], Y[some], example.describe(aligner), n_splits=2)
    assert capsys.readouterr().out.count("aligned pixels") == 2
    example.draw(tmp_path / "cells.png", held_out, aligner.transform(held_out))
    assert (tmp_path / "cells.png").exists()


@pytest.fixture(scope="module")
def served(tmp_path_factory, fitted):
    """Return a client of the service around the session's model."""
    testclient = pytest.importorskip("fastapi.testclient", reason="fastapi and httpx are not installed")
    path = tmp_path_factory.mktemp("served") / "digits.safetensors"
    save(fitted, path)
    return testclient.TestClient(load_example("serve").create_app(path))


def png(pixels):
    buffer = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_service_answers_with_pose_and_picture(served, fitted, turned):
    digit = turned.X[:1].reshape(28, 28)
    answer = served.post("/align", content=png(digit)).raise_for_status().json()
    result = fitted.align(digit[None])
    assert answer["pose"]["angle_deg"] == pytest.approx(np.rad2deg(result.alpha[0, 0]), abs=0.01)
    assert answer["pose"]["confidence"] == pytest.approx(result.confidence[0], abs=1e-5)
    assert answer["sure"] == (result.confidence[0] >= 0.8)
    image_module = pytest.importorskip("PIL.Image")
    canonical = np.asarray(image_module.open(io.BytesIO(base64.b64decode(answer["canonical_png"]))))
    np.testing.assert_allclose(canonical.ravel(), fitted.transform(digit[None])[0, :784], atol=1)
    large = served.post("/align", content=png(np.kron(digit, np.ones((3, 3), dtype=np.uint8)))).json()
    assert image_module.open(io.BytesIO(base64.b64decode(large["canonical_png"]))).size == (84, 84)


def test_the_service_says_what_it_cannot_read(served):
    assert served.get("/health").json()["image_shape"] == [28, 28]
    answer = served.post("/align", content=b"no picture")
    assert answer.status_code == 422
    assert "no picture that can be read" in answer.json()["detail"]
    answer = served.post("/align", content=png(np.zeros((4, 400), dtype=np.uint8)))
    assert answer.status_code == 422
    assert "quite another proportion" in answer.json()["detail"]
    assert served.post("/align", content=bytes(10_000_001)).status_code == 413
