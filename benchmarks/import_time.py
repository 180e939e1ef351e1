"""How long does `import sk_avae` take, against what it is made of?

    OMP_NUM_THREADS=1 python benchmarks/import_time.py [--repeats N]

Each import runs in a new process, in turns; the first turn warms the disk up and is not counted. Wall time is what a
user waits; processor time (user and system) depends less on what else the machine does meanwhile. The table goes to
results/import_time.md.
"""

import resource
import subprocess
import sys
from functools import partial

import numpy as np
from shared.command import parser
from shared.tables import environment, save_table
from shared.timing import in_turns, timed

# skorch imports a part of scikit-learn; the second line adds what sk_avae itself uses.
IMPORTS = {
    "torch, skorch, sklearn": "import torch, skorch, sklearn",
    "the same, with what sk_avae uses of sklearn": (
        "import torch, skorch, sklearn.base, sklearn.exceptions, sklearn.frozen, sklearn.metrics, "
        "sklearn.model_selection, sklearn.utils.metadata_routing, sklearn.utils.metaestimators, "
        "sklearn.utils.validation"
    ),
    "sk_avae": "import sk_avae",
}
PLAIN, _, OURS = IMPORTS


def measure(code):
    """Return wall and processor time of a new process that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, wall = timed(partial(subprocess.run, [sys.executable, "-c", code], check=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main():
    command = parser(__doc__)
    command.add_argument("--repeats", type=int, default=15, help="processes for each import (15)")
    args = command.parse_args()
    times = in_turns({name: partial(measure, code) for name, code in IMPORTS.items()}, args.repeats, warm_up=1)
    medians = {name: np.median(measured, axis=0) for name, measured in times.items()}
    rows = [
        [f"`import {name}`" if " with " not in name else name, *(f"{s:.2f}" for s in seconds)]
        + [f"{ratio:.2f}" for ratio in seconds / medians[PLAIN]]
        for name, seconds in medians.items()
    ]
    wall, processor = medians[OURS] / medians[PLAIN]
    save_table(
        args.output / "import_time",
        "Time of import",
        ["import", "wall, s", "processor, s", "wall, ratio", "processor, ratio"],
        rows,
        [
            f"medians of {args.repeats} processes each, in turns; at most 1.2 is wanted: "
            f"{wall:.2f} (wall), {processor:.2f} (processor)",
            environment(),
        ],
    )


if __name__ == "__main__":
    main()
