"""A cache on disk: what was computed once is read the next time, also after a run that was killed."""

import functools
import hashlib
import json
import math
import os
import time
from collections import OrderedDict
from pathlib import Path

import joblib

import sk_avae

from .timing import timed


class OutOfTimeError(Exception):
    """Something is not in the cache and there is no time left to compute it."""


class Cache:
    """What was computed, on disk; the last few images and fits also in memory.

    Names end in .json (plain data), in .joblib, or have no suffix (memory only). A file's name ends in a digest of the
    key: plain data, all that the value depends on. A file is complete or not there.
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
        """Return the value of a key; `name` is that of the file."""
        digest = digest_of(json.dumps(key, sort_keys=True, default=str).encode(), 16)
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
            return json.loads(path.read_text()) if path.suffix == ".json" else joblib.load(path)
        if time.monotonic() > self.deadline:
            raise OutOfTimeError(path.name)
        value, seconds = timed(compute)
        if path.suffix:
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            if path.suffix == ".json":
                temporary.write_text(json.dumps(value, indent=1))
            else:
                # A stream: a name would be read for a compression.
                with temporary.open("wb") as file:
                    joblib.dump(value, file)
            temporary.replace(path)
        print(f"{time.strftime('%H:%M:%S')} {seconds:7.1f} s  {path.name}", flush=True)
        return value


def digest_of(content, n=8):
    return hashlib.sha256(content).hexdigest()[:n]


@functools.cache
def code_digest(*modules):
    """Return a digest of the code of modules, or of the whole package: cells of equal ones were measured alike."""
    paths = [Path(module.__file__) for module in modules] or sorted(Path(sk_avae.__file__).parent.rglob("*.py"))
    return digest_of(b"".join(path.read_bytes() for path in paths))
