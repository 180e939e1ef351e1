"""What is too long for `make test`: hostile calls and files, load, single calls, a cluster that loses a worker.

`make soak` runs all of it and prints a table for each; the exit status says whether everything held.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import joblib
import numpy as np
import psutil
from hostile import Calls, outcome
from hostile_files import mnist_files, model_files
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

import sk_avae
from sk_avae import AffineCanonicalizer, AVAEEstimator, ExpertSettings
from sk_avae.datasets import fetch_mnist, load_mnist_sample, make_perturbed

N_THREADS, N_PROCESSES = 8, 4
# Resident memory may swing by so much around its median once everything is warm.
FLAT = 0.02
WARM_UP = 0.25


def table(head: str, rows: Any) -> None:
    """Print a table in Markdown."""
    columns = head.split("|")
    print("", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), sep="\n")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    sys.stdout.flush()


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 2**20


def drift(samples: list[float]) -> float:
    """Return the largest relative distance of warm samples from their median."""
    warm = np.array(samples[int(WARM_UP * len(samples)) :])
    return float(np.abs(warm / np.median(warm) - 1).max())


def fitted(quick: bool = False) -> tuple[AVAEEstimator, Any]:
    """Return a model of digits, and turned ones to try it on."""
    X, _ = load_mnist_sample("train")
    expert = ExpertSettings(max_iter=200)
    avae = AVAEEstimator(12, hidden_layer_sizes=(128,), max_epochs=10, tol=0.5, expert=expert, random_state=0)
    avae.set_params(learned_starts=not quick, critic=not quick).fit(X[:2000])
    return avae, make_perturbed(load_mnist_sample("test")[0], random_state=0)[0]


# ---------------------------------------------------------------- hostile calls
def fuzz(n_calls: int, first: int = 0) -> bool:
    """Make hostile calls, and print how they ended."""
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    complaints, longest = [], 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        calls = Calls(Path(folder))
        for number in range(first, first + n_calls):
            call, began = calls[number], time.perf_counter()
            how, complaint = outcome(call)
            longest = max(longest, time.perf_counter() - began)
            ended[call.target][how] += 1
            if complaint:
                complaints.append(f"{number}: {call.target}({call.what}): {complaint}")
    kinds = sorted({how for counts in ended.values() for how in counts} - {"result"})
    table(
        "|".join(["call", "all", "result", *kinds]),
        [
            (f"`{target}`", counts.total(), counts["result"], *(counts[kind] or "" for kind in kinds))
            for target, counts in sorted(ended.items())
        ],
    )
    seconds = time.perf_counter() - start
    print(
        f"\n{n_calls} hostile calls in {seconds:.0f} s, the longest {longest:.1f} s; {len(complaints)} ended wrongly."
    )
    print(*complaints[:50], sep="\n")
    return not complaints


# ---------------------------------------------------------------- hostile files
def files(n_random: int) -> bool:
    """Read damaged and forged files, each in a process of its own, and print how that ended."""
    X, y = load_mnist_sample("test")
    X, y = X[:500].reshape(-1, 28, 28), y[:500].astype(np.uint8)
    small = AVAEEstimator(4, hidden_layer_sizes=(32,), max_epochs=1, n_restarts=4, tol=1e3, random_state=0)
    small.set_params(expert=ExpertSettings(max_iter=5))
    small.set_params(critic=False).fit(X.reshape(-1, 784))
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "mark"
        whole = Path(folder) / "whole"
        sk_avae.save(small, whole)
        expected = small.transform(X[:3].reshape(3, 784))

        def loads(where: Path) -> bool:
            return np.array_equal(sk_avae.load(where / "model").transform(X[:3].reshape(3, 784)), expected)

        def fetches(where: Path) -> bool:
            images, labels = fetch_mnist(where)
            return np.array_equal(images, X.reshape(-1, 784)) and np.array_equal(labels, y)

        loads_soon = loads(_copied(whole, Path(folder) / "first"))  # what is imported on the first call
        ended: dict[str, list[Reading]] = defaultdict(list)
        for number, (hostile, read) in enumerate(
            [(file, loads) for file in model_files(whole.read_bytes(), mark, n_random)]
            + [(file, fetches) for file in mnist_files(X, y, n_random)]
        ):
            where = Path(folder) / str(number)
            where.mkdir()
            hostile.write(where)
            reading = _read_apart(read, where)
            ended[hostile.kind].append(reading)
            if reading.how not in HELD:
                print(f"{hostile.kind}: {reading.how}: {reading.sentence}")
            shutil.rmtree(where)
        ran = mark.exists()
    table(
        "file|of these|refused|read as if whole|neither|longest, s|most memory, MiB",
        [
            (
                kind,
                len(readings),
                sum(reading.how == "refused" for reading in readings),
                sum(reading.how == "whole" for reading in readings) or "",
                sum(reading.how not in HELD for reading in readings) or "",
                f"{max(reading.seconds for reading in readings):.2f}",
                f"{max(reading.megabytes for reading in readings):.0f}",
            )
            for kind, readings in ended.items()
        ],
    )
    print(f"\n{'SOMETHING was' if ran else 'Nothing was'} executed.")
    everything = [reading for readings in ended.values() for reading in readings]
    return (
        loads_soon
        and not ran
        and all(reading.how in HELD for reading in everything)
        and max(reading.seconds for reading in everything) < 1
        and max(reading.megabytes for reading in everything) < 200
    )


HELD = ("refused", "whole")


class Reading(NamedTuple):
    """How a file was read: refused, as if whole, or otherwise; the error's sentence, and what reading cost."""

    how: str
    sentence: str
    seconds: float
    megabytes: float


def _copied(path: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copy(path, folder / "model")
    return folder


def _read_apart(read: Any, where: Path) -> Reading:
    """Read a file in a forked process, whose memory at its peak is measured."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()

    def work() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, start = megabytes(), time.perf_counter()
        try:
            how, sentence = ("whole" if read(where) else "read as something else"), ""
        except ValueError as error:
            how, sentence = "refused", str(error)
        except BaseException as error:
            how, sentence = type(error).__name__, str(error)
        seconds = time.perf_counter() - start
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        queue.put(Reading(how, sentence, seconds, float(peak[1]) / 1024 - before if peak else float("nan")))

    process = context.Process(target=work, daemon=True)
    process.start()
    try:
        return queue.get(timeout=60)
    except Empty:
        process.kill()
        return Reading("no answer within a minute", "", 60.0, 0.0)
    finally:
        process.join()


# ---------------------------------------------------------------- load
def _different(avae: AVAEEstimator, X: Any, expected: Any, seed: int, until: float) -> tuple[int, int, list[float]]:
    """Transform random parts of X until a time; return calls, wrong answers and the process's memory."""
    random, n_calls, n_wrong, memory = np.random.default_rng(seed), 0, 0, []
    while time.time() < until:
        rows = random.choice(len(X), random.integers(1, 60), replace=False)
        n_wrong += not np.array_equal(avae.transform(X[rows]), expected[rows])
        n_calls += 1
        memory.append(megabytes())
    return n_calls, n_wrong, memory


def _report(queue: Any, *arguments: Any) -> None:
    queue.put(_different(*arguments))


def load(minutes: float) -> bool:
    """Let threads, then forked processes, use one fitted model at once; their answers must be the serial ones."""
    avae, X = fitted()
    expected, rows = avae.transform(X), []
    found: list[tuple[int, int, list[float]]] = []

    def work(seed: int) -> None:
        found.append(_different(avae, X, expected, seed, until))

    until = time.time() + 60 * minutes / 2
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # All threads look at one process: its memory as the first of them saw it.
    rows.append((f"{N_THREADS} threads", *_summary(found, [found[0][2]])))

    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    until = time.time() + 60 * minutes / 2
    processes = [
        context.Process(target=_report, args=(queue, avae, X, expected, seed, until), daemon=True)
        for seed in range(N_PROCESSES)
    ]
    for process in processes:
        process.start()
    forked = [queue.get(timeout=60 * minutes + 120) for _ in processes]
    for process in processes:
        process.join()
    rows.append((f"{N_PROCESSES} forked processes", *_summary(forked, [memory for *_, memory in forked])))
    table("at once|calls|unlike the serial answer|MiB, first|MiB, last|swing around the median", rows)
    return all(row[2] == 0 and float(row[5].rstrip(" %")) <= 100 * FLAT for row in rows)


def _summary(found: list[tuple[int, int, list[float]]], memories: list[list[float]]) -> Iterator[Any]:
    yield sum(n_calls for n_calls, *_ in found)
    yield sum(n_wrong for _, n_wrong, _ in found)
    warm = [memory[int(WARM_UP * len(memory)) :] for memory in memories]
    yield f"{np.mean([memory[0] for memory in warm]):.0f}"
    yield f"{np.mean([memory[-1] for memory in warm]):.0f}"
    yield f"{100 * max(map(drift, memories)):.2f} %"


def single(n_calls: int) -> bool:
    """Transform one image at a time, often."""
    avae, X = fitted()
    expected = avae.transform(X)
    seconds, memory, n_wrong = [], [], 0
    for i in range(n_calls):
        row = i % len(X)
        start = time.perf_counter()
        answer = avae.transform(X[row : row + 1])
        seconds.append(time.perf_counter() - start)
        n_wrong += not np.array_equal(answer[0], expected[row])
        memory.append(megabytes())
    warm = memory[int(WARM_UP * n_calls) :]
    half = np.array_split(1e3 * np.array(seconds), 2)
    table(
        "calls|wrong|median, ms|99 %, ms|median of the second half over the first|MiB, first|MiB, last|swing",
        [
            (
                n_calls,
                n_wrong,
                f"{1e3 * np.median(seconds):.1f}",
                f"{1e3 * np.quantile(seconds, 0.99):.1f}",
                f"{np.median(half[1]) / np.median(half[0]):.2f}",
                f"{warm[0]:.0f}",
                f"{warm[-1]:.0f}",
                f"{100 * drift(memory):.2f} %",
            )
        ],
    )
    return n_wrong == 0 and drift(memory) <= FLAT


# ---------------------------------------------------------------- a cluster
@contextmanager
def _cluster() -> Iterator[Any]:
    """Two workers, processes of one thread each."""
    import distributed

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as local,
        distributed.Client(local) as client,
    ):
        yield client


def _kill_a_worker(client: Any) -> None:
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)


def transform_with_a_kill(n_images: int) -> bool:
    """Kill a worker in the middle of a long transform: the result must be complete, and the serial one."""
    import dask.array as da
    import distributed

    avae, X = fitted(quick=True)
    X = np.resize(X, (n_images, X.shape[1]))
    canonicalizer = AffineCanonicalizer(FrozenEstimator(avae)).fit(X[:10])
    # An image's answer depends on that image alone: the thousand different ones are enough.
    expected = np.resize(canonicalizer.transform(X[:1000]), X.shape)
    with _cluster() as client:
        start = time.perf_counter()
        blocks = da.from_array(X, chunks=(1000, X.shape[1])).map_blocks(canonicalizer.transform, dtype=np.float32)
        done = client.persist(blocks)
        futures, before = distributed.futures_of(done), 0
        for before, _ in enumerate(distributed.as_completed(futures), 1):
            if before >= len(futures) // 3:
                break
        _kill_a_worker(client)
        result = done.compute()
        seconds = time.perf_counter() - start
    equal = bool(np.array_equal(result, expected))
    table(
        "images|blocks|finished when a worker was killed|complete and equal to the serial result|s",
        [(n_images, len(futures), before, "yes" if equal else "NO", f"{seconds:.0f}")],
    )
    return equal


def _noted(path: Path, model: Any, X: Any, y: Any) -> float:
    """Return a model's score, and leave a byte in a file for each fit that came so far."""
    with path.open("ab") as file:
        file.write(b".")
    return float(model.score(X, y))


def search_with_a_kill() -> bool:
    """Kill a worker in the middle of a grid search: the scores must be complete, and those of a serial search.

    As docs/scaling.md says: images and labels on every worker, the folds as lists (joblib leaves arrays on one alone).
    """
    X, y = load_mnist_sample("train")
    X, y = X[:1000] / np.float32(255), y[:1000]
    avae = AVAEEstimator(hidden_layer_sizes=(64,), max_epochs=3, n_restarts=8, n_refine=1, tol=1.0, random_state=0)
    avae.set_params(learned_starts=False, critic=False)
    pipeline = make_pipeline(AffineCanonicalizer(avae), LogisticRegression(max_iter=200, tol=0.1))
    grid = {"affinecanonicalizer__estimator__latent_size": [2, 4, 6, 8, 10, 12]}
    folds = [(train.tolist(), test.tolist()) for train, test in StratifiedKFold(4).split(X, y)]
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "finished"
        search = GridSearchCV(pipeline, grid, cv=folds, refit=False, scoring=partial(_noted, notes))
        serial, n_fits = clone(search).fit(X, y), 6 * len(folds)
        notes.write_bytes(b"")
        with _cluster() as client:
            start, before = time.perf_counter(), 0

            def kill() -> None:
                nonlocal before
                while (before := notes.stat().st_size) < n_fits // 3:
                    time.sleep(0.05)
                _kill_a_worker(client)

            killer = threading.Thread(target=kill, daemon=True)
            killer.start()
            with joblib.parallel_config(backend="dask", scatter=[X, y]):
                search.fit(X, y)
            seconds = time.perf_counter() - start
        n_finished = notes.stat().st_size
    names = [name for name in serial.cv_results_ if name.endswith("_test_score")]
    equal = all(np.array_equal(search.cv_results_[name], serial.cv_results_[name]) for name in names)
    table(
        "fits of a grid search|finished when a worker was killed|scored in all|scores equal to the serial ones|s",
        [(n_fits, before, n_finished, "yes" if equal else "NO", f"{seconds:.0f}")],
    )
    # A worker that was killed when all was done proves nothing.
    return equal and not killer.is_alive() and before < n_fits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000, help="hostile calls, 0 for none")
    parser.add_argument("--first", type=int, default=0, help="number of the first hostile call")
    parser.add_argument("--files", type=int, default=100, help="hostile files of each random kind, 0 for none")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load, 0 for none")
    parser.add_argument("--single", type=int, default=10_000, help="calls with a single image, 0 for none")
    parser.add_argument("--images", type=int, default=50_000, help="for the cluster that loses a worker, 0 for none")
    given = parser.parse_args()
    held = [
        not given.calls or fuzz(given.calls, given.first),
        not given.files or files(given.files),
        not given.minutes or load(given.minutes),
        not given.single or single(given.single),
        not given.images or transform_with_a_kill(given.images),
        not given.images or search_with_a_kill(),
    ]
    print("\nEverything held." if all(held) else "\nNot everything held.")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
