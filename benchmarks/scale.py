"""Do memory and time of `transform` stay in bounds on many images, from one memory map to another?

    python benchmarks/scale.py [--n N] [--dask]

The bundled digits, rotated anew for every part of the file. Time for a tenth of them beside that for all: it should
grow with their number; memory (the process's own, not pages of the files) should not. With `--dask`, 20,000 digits on
one and on two single-threaded dask workers. The table goes to results/scale.md.
"""

import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
from shared.command import parser
from shared.tables import environment, save_table
from shared.timing import timed

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

N_PER_PART = 1_000


def own_memory():
    """Return the resident memory of this process in GB, without pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e6


class Peak:
    """Watches `own_memory` while a block runs."""

    def __enter__(self):
        self.highest, self._over = own_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._over.wait(0.05):
            self.highest = max(self.highest, own_memory())

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()


def digits_on_disk(path, n):
    X, _ = load_mnist_sample("test")
    stored = np.memmap(path, dtype=np.uint8, mode="w+", shape=(n, X.shape[1]))
    for part, start in enumerate(range(0, n, N_PER_PART)):
        stored[start : start + N_PER_PART] = make_perturbed(X, random_state=part)[0][: n - start]
    stored.flush()
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(n, X.shape[1]))


def measured(avae, X, folder):
    """Return seconds and peak memory of transforming `X` into a memory map."""
    out = np.memmap(Path(folder) / "out", dtype=np.float32, mode="w+", shape=(len(X), X.shape[1] + 1))
    with Peak() as peak:
        _, seconds = timed(partial(avae.transform, X, out=out))
    return seconds, peak.highest


def on_dask(avae, X):
    """Return the seconds that one and two single-threaded workers take, and whether both answers are equal."""
    import dask.array as da
    from dask.distributed import Client, LocalCluster
    from sklearn.frozen import FrozenEstimator

    canonicalizer = AffineCanonicalizer(FrozenEstimator(avae)).fit(X[:2])
    turns = []
    for n_workers in (1, 2):
        with LocalCluster(n_workers=n_workers, threads_per_worker=1) as cluster, Client(cluster) as client:
            blocks = da.from_array(X, chunks=(N_PER_PART, -1))
            client.submit(canonicalizer.transform, X[:64]).result()
            turns.append(timed(blocks.map_blocks(canonicalizer.transform, dtype=np.float32).compute))
    answers, seconds = zip(*turns, strict=True)
    return *seconds, np.array_equal(*answers)


def main():
    command = parser(__doc__)
    command.add_argument("--n", type=int, default=1_000_000, help="digits (1,000,000)")
    command.add_argument("--dask", action="store_true", help="on dask, too")
    args = command.parse_args()
    avae = AVAEEstimator(random_state=0).fit(load_mnist_sample("train")[0])
    before = own_memory()
    with tempfile.TemporaryDirectory() as folder:
        X = digits_on_disk(Path(folder) / "in", args.n)
        rows = []
        for n in (args.n // 10, args.n):
            seconds, memory = measured(avae, X[:n], folder)
            rows.append([f"{n:,}", f"{seconds:.0f}", f"{1000 * seconds / n:.3f}", f"{memory:.2f}"])
        notes = [f"Before the first image the process held {before:.2f} GB.", environment(0, n=args.n)]
        if args.dask:
            one, two, equal = on_dask(avae, np.array(X[:20_000]))
            notes.insert(
                0,
                f"dask, 20,000 digits: {one:.1f} s on one single-threaded worker, {two:.1f} s on two, "
                f"{one / two:.2f} times as fast; answers equal bit for bit: {equal}.",
            )
    header = ["digits of 28 x 28", "seconds", "ms per digit", "peak memory, GB"]
    save_table(args.output / "scale", "Transforming digits from one memory map to another", header, rows, notes)


if __name__ == "__main__":
    main()
