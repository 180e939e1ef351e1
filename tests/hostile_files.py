"""Hostile files: what `sk_avae.load` and `fetch_mnist` may find in the place of a model or of MNIST.

Each is written when it is asked for. A file may be refused by a ValueError or be read as the undamaged one is; in no
other way, within a second, in 200 MB, and without running anything of its own.
"""

import gzip
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from sk_avae.persistence.safe_files import _checksum

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GIBIBYTE = 2**30
DEEP = "[" * 10_000 + "]" * 10_000


class Hostile(NamedTuple):
    """A kind of file, and what writes one into a folder."""

    kind: str
    write: Callable[[Path], Any]


class Bomb:
    """What a pickle would run: it leaves a folder of the name `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def cut(data: bytes, random: Any) -> bytes:
    return data[: int(random.integers(len(data)))]


def flipped(data: bytes, random: Any, stop: int | None = None) -> bytes:
    changed = bytearray(data)
    changed[int(random.integers(stop or len(data)))] ^= 1 << int(random.integers(8))
    return bytes(changed)


def sparse(path: Path, start: bytes, size: int) -> None:
    """Write a file that is long and takes no room on the disk."""
    path.write_bytes(start)
    os.truncate(path, size)


def zeros_zipped(start: bytes, size: int) -> bytes:
    """Return a gzip file of few bytes that unpacks into `size` zeros, more or less, after its start."""
    # Members of a gzip file follow one another: one of a mebibyte is packed once, and repeated.
    return gzip.compress(start) + gzip.compress(bytes(2**20)) * (size // 2**20)


# ---------------------------------------------------------------- models
def model_files(data: bytes, mark: Path, n_random: int, seed: int = 0) -> Iterator[Hostile]:
    """Yield what might be called ``model``; `data` is a whole file, `mark` what appears if anything is run."""
    random, header = np.random.default_rng(seed), 8 + struct.unpack("<Q", data[:8])[0]

    def of(make: Callable[[], bytes]) -> Callable[[Path], Any]:
        return lambda folder: (folder / "model").write_bytes(make())

    for _ in range(n_random):
        yield Hostile("model, cut short", of(lambda: cut(data, random)))
        yield Hostile("model, a bit of the header flipped", of(lambda: flipped(data, random, header)))
        yield Hostile("model, a bit flipped", of(lambda: flipped(data, random)))
    yield Hostile("model, longer than it says", of(lambda: data + b"\0"))
    yield Hostile("model of 4 GiB", lambda folder: sparse(folder / "model", data, 4 * GIBIBYTE))
    for length in (2**31, 2**62, 2**63, 2**64 - 1):
        yield Hostile("model, a header that promises too much", of(lambda n=length: struct.pack("<Q", n) + data[8:]))
    for shape in ([2**40, 2**40], [2**62], [-1], [0, 2**62], [1] * 100):
        yield Hostile("model, shapes that promise too much", of(lambda shape=shape: _with_shape(shape)))
    for what in (
        {"format": 99},
        {"format": "1"},
        {"model": None},
        {"model": DEEP},
        {"model": [[0] * 10**5]},
    ):
        yield Hostile("model, of another version or forged", lambda folder, what=what: _forged(folder, data, what))
    yield Hostile("pickle", of(lambda: pickle.dumps(Bomb(mark))))
    yield Hostile("pickle", lambda folder: joblib.dump(Bomb(mark), folder / "model"))
    yield Hostile("pickle", lambda folder: torch.save(Bomb(mark), folder / "model"))
    yield Hostile("zip that leaves its folder", lambda folder: _zip_slip(folder / "model", mark))
    yield Hostile("empty", of(bytes))
    yield Hostile("text", of(lambda: b"x" * 10_000))
    yield Hostile("folder", lambda folder: (folder / "model").mkdir())
    yield Hostile("pipe", lambda folder: os.mkfifo(folder / "model"))


def _with_shape(shape: list[int]) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    return struct.pack("<Q", len(header)) + header


def contents_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the document and the arrays of a model's file, without its checksum."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys() if name != "sha256"}  # noqa: SIM118
        return json.loads(file.metadata()["sk_avae"]), arrays


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any], text: str | None = None) -> None:
    """Change document and arrays of a model's file, or put a text in the document's place; the checksum is right."""
    document, arrays = contents_of(path)
    change(document, arrays)
    text = json.dumps(document) if text is None else text
    path.write_bytes(to_safetensors({**arrays, "sha256": _checksum(text, arrays)}, metadata={"sk_avae": text}))


def attributes_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a document says of its model, by attribute."""
    (content,) = document["model"].values()
    return content["dict"]  # type: ignore[no-any-return]


def _forged(folder: Path, data: bytes, what: dict[str, Any]) -> None:
    """Change the document of a model's file."""
    path = folder / "model"
    path.write_bytes(data)
    document, _ = contents_of(path)
    text = json.dumps({**document, **what}).replace(json.dumps(DEEP), DEEP)
    forge(path, lambda document, arrays: None, text)


def _zip_slip(path: Path, mark: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"../../{mark.name}", "here")


# ---------------------------------------------------------------- MNIST
def idx(array: Any) -> bytes:
    """Return an IDX file of unsigned bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_files(X: Any, y: Any, n_random: int, seed: int = 0) -> Iterator[Hostile]:
    """Yield folders whose images, of shape (n, H, W), or labels are not what they should be."""
    random = np.random.default_rng(seed)
    images, labels = idx(X), idx(y)
    zipped = gzip.compress(images)

    def of(make: Callable[[], bytes], name: str = IMAGES) -> Callable[[Path], Any]:
        def write(folder: Path) -> None:
            (folder / LABELS).write_bytes(labels)
            if not name.endswith(".gz"):
                (folder / IMAGES).write_bytes(images)
            (folder / name).write_bytes(make())

        return write

    def announcing(*shape: int) -> bytes:
        return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)

    for _ in range(n_random):
        yield Hostile("IDX, cut short", of(lambda: cut(images, random)))
        yield Hostile("IDX, a bit of the header flipped", of(lambda: flipped(images, random, 16)))
        yield Hostile("IDX, a bit of the labels' header flipped", of(lambda: flipped(labels, random, 8), LABELS))
        yield Hostile("gzip, cut short", of(lambda: cut(zipped, random), f"{IMAGES}.gz"))
        yield Hostile("gzip, a bit flipped", of(lambda: flipped(zipped, random), f"{IMAGES}.gz"))
    for magic in (b"\x89PNG", b"PK\x03\x04", b"\0\0\x0d\x03", b"\0\0\x08\x02", b"\0\0\x08\xff", b"<htm"):
        yield Hostile("IDX, another magic number", of(lambda magic=magic: magic + images[4:]))
    yield Hostile("IDX, longer than it says", of(lambda: images + b"\0"))
    yield Hostile("IDX of 4 GiB", lambda folder: (of(bytes)(folder), sparse(folder / IMAGES, images, 4 * GIBIBYTE)))
    for shape in ((2**32 - 1,) * 3, (60_000, 2**16, 2**16), (2**26, 1, 1), (60_001, 28, 28), (0, 28, 28), (20, 0, 0)):
        yield Hostile("IDX, a shape of too much or nothing", of(lambda shape=shape: announcing(*shape)))
        yield Hostile(
            "gzip that unpacks into a gibibyte",
            of(lambda shape=shape: zeros_zipped(announcing(*shape), GIBIBYTE), f"{IMAGES}.gz"),
        )
    yield Hostile(
        "gzip that unpacks into a gibibyte",
        of(lambda: zeros_zipped(announcing(60_000, 28, 28), GIBIBYTE), f"{IMAGES}.gz"),
    )
    yield Hostile("gzip that unpacks into a gibibyte", of(lambda: zeros_zipped(b"", GIBIBYTE), f"{IMAGES}.gz"))
    yield Hostile("labels above 9", of(lambda: idx(y + 10), LABELS))
    yield Hostile("folder", lambda folder: (of(bytes)(folder), (folder / IMAGES).unlink(), (folder / IMAGES).mkdir()))
    yield Hostile("pipe", lambda folder: (of(bytes)(folder), (folder / IMAGES).unlink(), os.mkfifo(folder / IMAGES)))
