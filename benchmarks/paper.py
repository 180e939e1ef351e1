"""Are the paper's figures and tables reproduced, as published and as this package does it?

    python benchmarks/paper.py FOLDER_WITH_IDX_FILES [--quick] [--time-limit MINUTES] [--device DEVICE]

Two columns: the paper's network, loss and search, and `AVAEEstimator` with its defaults, but without the critic.
Settings are fixed in advance; test digits only measure. A run that was stopped goes on where it was: each cell is kept
in the cache folder. The tables go to results/paper.md and .json (--quick: paper_quick), the pictures to docs/images.
"""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict

from paper.cells import FULL, QUICK, SIDE, Reproduction
from paper.pictures import save_pictures
from paper.report import pose_lengths, save_tables
from shared.cache import Cache, OutOfTimeError
from shared.command import BENCHMARKS, RESULTS, resumable_parser
from shared.digits import load_digits
from shared.tables import environment


def computed(reproduction, only):
    """Return the cells that were asked for, computed now, and all others that the cache has."""
    cells = {}
    for asked in (True, False):
        if not asked:
            reproduction.cache.stop()
        for name, compute in reproduction.tasks():
            if name.startswith(tuple(only)) or not asked:
                with suppress(OutOfTimeError):
                    cells[name] = compute()
    with suppress(OutOfTimeError):
        cells["poses"] = reproduction.poses()
        cells["pose lengths"] = pose_lengths(*cells["poses"])
    return cells


def main():
    parser = resumable_parser(__doc__, "paper")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="cells whose names begin so")
    args = parser.parse_args()
    settings, name = (QUICK, "paper_quick") if args.quick else (FULL, "paper")
    digits = load_digits(args.folder, side=SIDE, n_train=settings.n_train, n_test=settings.n_test)
    cells = computed(Reproduction(digits, settings, Cache(args.cache, args.time_limit), args.device), args.only)
    written = args.output / f"{name}.json"
    if args.merge and written.exists():
        cells = json.loads(written.read_text()) | cells
    notes = environment(0, **{k: v for k, v in asdict(settings).items() if isinstance(v, int)})
    devices = Counter(cell.get("device", "cpu") for n, cell in cells.items() if n.startswith("latent"))
    notes += "; cells of figure 4 by device: " + ", ".join(f"{n} {device}" for device, n in devices.items())
    save_tables(cells, settings, args.output / name, notes)
    plain = {name: cell for name, cell in cells.items() if name not in ("poses", "pictures")}
    written.write_text(json.dumps(plain, indent=1) + "\n")
    pictures = BENCHMARKS.parent / "docs" / "images" if args.output == RESULTS else args.output
    save_pictures(cells, settings, pictures, prefix="quick_" if args.quick else "")


if __name__ == "__main__":
    main()
