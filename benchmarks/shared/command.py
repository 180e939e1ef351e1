"""The command line of a benchmark: its module's docstring is its help."""

import argparse
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1]
RESULTS = BENCHMARKS / "results"


def parser(doc, *, folder=None):
    """Return a parser with `--output`; `folder` is "required" or "optional" where MNIST is read."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if folder is not None:
        text = "MNIST's IDX files" + ("; the bundled sample without" if folder == "optional" else "")
        made.add_argument("folder", nargs="?" if folder == "optional" else None, help=text)
    made.add_argument(
        "--output", type=Path, default=RESULTS, metavar="FOLDER", help="where tables go (benchmarks/results)"
    )
    return made


def resumable_parser(doc, name):
    """Return the parser of a long benchmark, which keeps what it has computed in a cache folder."""
    made = parser(doc, folder="required")
    made.add_argument("--quick", action="store_true", help="one seed, fewer digits, smaller budgets")
    made.add_argument(
        "--cache", default=BENCHMARKS / ".cache" / name, metavar="FOLDER", help="where it keeps what it has computed"
    )
    made.add_argument("--merge", action="store_true", help="keep cells of the last table that the cache lacks")
    made.add_argument("--time-limit", type=float, metavar="MINUTES", help="start nothing new after this")
    made.add_argument("--device", default="cpu", help="of networks; the rest stays on the CPU")
    return made
