"""A cache on disk: what was computed once is read the next time, also after a run that was killed."""

import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

import sk_avae


class OutOfTimeError(Exception):
    """Something is not in the cache and there is no time left to compute it."""


def write_json(value, file):
    file.write(json.dumps(value, indent=1).encode())


def read_json(path):
    return json.loads(path.read_text())


def write_npz(arrays, file):
    np.savez_compressed(file, **arrays)


def read_npz(path):
    with np.load(path) as arrays:
        return dict(arrays)


WRITERS = {".json": write_json, ".npz": write_npz, ".joblib": joblib.dump}
READERS = {".json": read_json, ".npz": read_npz, ".joblib": joblib.load}


class Cache:
    """What was computed, on disk; the last few images and fits also in memory.

    A file's name ends in a digest of the key: plain data, all that the value depends on. A file is complete or not
    there.
    """

    def __init__(self, folder, minutes=None, n_in_memory=5):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.memory = OrderedDict()
        self.n_in_memory = n_in_memory

    def stop(self):
        """Compute nothing any more."""
        self.deadline = -math.inf

    def get(self, name, key, compute):
        """Return the value of a key; `name` is that of the file, or without a suffix it is kept in memory only."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        path = self.folder / f"{Path(name).stem}-{digest}{Path(name).suffix}"
        if path.suffix == ".json":
            return self._read_or_compute(path, compute)
        if path.name not in self.memory:
            self.memory[path.name] = self._read_or_compute(path, compute)
        self.memory.move_to_end(path.name)
        value = self.memory[path.name]
        while len(self.memory) > self.n_in_memory:
            self.memory.popitem(last=False)
        return value

    def _read_or_compute(self, path, compute):
        if path.suffix and path.exists():
            return READERS[path.suffix](path)
        if time.monotonic() > self.deadline:
            raise OutOfTimeError(path.name)
        start = time.perf_counter()
        value = compute()
        if path.suffix:
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            with temporary.open("wb") as file:
                WRITERS[path.suffix](value, file)
            temporary.replace(path)
        print(f"{time.strftime('%H:%M:%S')} {time.perf_counter() - start:7.1f} s  {path.name}", flush=True)
        return value


@dataclass(frozen=True)
class Lazy:
    """Something that is computed, or read from the cache, when it is needed."""

    key: dict[str, Any]
    load: Callable[[], Any]


def code_digest():
    """Return a digest of the package's code, which tells whether cells were measured with the same."""
    content = b"".join(path.read_bytes() for path in sorted(Path(sk_avae.__file__).parent.glob("*.py")))
    return hashlib.sha256(content).hexdigest()[:8]
