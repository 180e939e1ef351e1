"""What is too long for `make test`: hostile calls by the thousand, load, single calls, a cluster that loses a worker.

`make soak` runs all of it and prints a table for each; the exit status says whether everything held.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from hostile import Calls, outcome
from sklearn.frozen import FrozenEstimator

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

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
    avae = AVAEEstimator(12, hidden_layer_sizes=(128,), max_epochs=10, tol=0.5, max_iter=200, random_state=0)
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
def cluster(n_images: int) -> bool:
    """Kill a worker in the middle of a long transform: the result must be complete, and the serial one."""
    import dask.array as da
    import distributed

    avae, X = fitted(quick=True)
    X = np.resize(X, (n_images, X.shape[1]))
    canonicalizer = AffineCanonicalizer(FrozenEstimator(avae)).fit(X[:10])
    # An image's answer depends on that image alone: the thousand different ones are enough.
    expected = np.resize(canonicalizer.transform(X[:1000]), X.shape)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as local,
        distributed.Client(local) as client,
    ):
        start = time.perf_counter()
        blocks = da.from_array(X, chunks=(1000, X.shape[1])).map_blocks(canonicalizer.transform, dtype=np.float32)
        done = client.persist(blocks)
        futures, victim, before = distributed.futures_of(done), None, 0
        for before, _ in enumerate(distributed.as_completed(futures), 1):
            if before >= len(futures) // 3:
                break
        victim = next(iter(client.run(os.getpid).values()))
        os.kill(victim, signal.SIGKILL)
        result = done.compute()
        seconds = time.perf_counter() - start
    equal = bool(np.array_equal(result, expected))
    table(
        "images|blocks|finished when a worker was killed|complete and equal to the serial result|s",
        [(n_images, len(futures), before, "yes" if equal else "NO", f"{seconds:.0f}")],
    )
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000, help="hostile calls, 0 for none")
    parser.add_argument("--first", type=int, default=0, help="number of the first hostile call")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load, 0 for none")
    parser.add_argument("--single", type=int, default=10_000, help="calls with a single image, 0 for none")
    parser.add_argument("--images", type=int, default=50_000, help="for the cluster that loses a worker, 0 for none")
    given = parser.parse_args()
    held = [
        not given.calls or fuzz(given.calls, given.first),
        not given.minutes or load(given.minutes),
        not given.single or single(given.single),
        not given.images or cluster(given.images),
    ]
    print("\nEverything held." if all(held) else "\nNot everything held.")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
