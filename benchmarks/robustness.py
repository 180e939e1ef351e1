"""How robust is a classifier behind each front-end? Perturbed MNIST, four classifiers, all front-ends in one table.

    python benchmarks/robustness.py FOLDER_WITH_IDX_FILES [--quick] [--time-limit MINUTES] [--device DEVICE]

60,000 upright training digits and 10,000 perturbed test digits on a 40 x 40 canvas, three seeds (--quick: 4,000 and
400, one seed, smaller budgets). A seed sets the poses and the initial weights. Nothing is chosen on test digits.
A run that was stopped goes on where it was: all that was computed is kept in the cache folder.
The table goes to results/robustness.csv, .md and .png (--quick: robustness_quick).
"""

import sys
import traceback

from robustness.classifiers import SIDE
from robustness.experiment import Experiment
from robustness.frontends import missing
from robustness.plan import CLASSIFIERS, FULL, PERTURBATIONS, QUICK, REFERENCES, ROWS
from robustness.report import assemble, write_report
from shared.cache import Cache, OutOfTimeError
from shared.command import resumable_parser
from shared.digits import load_digits


def tasks(rows, perturbations, seeds, classifiers=CLASSIFIERS):
    """List (seed, row, column, perturbation), those that share fits next to each other."""
    return [
        (seed, row, column, perturbation)
        for seed in seeds
        for row in rows
        for column in classifiers
        for perturbation in perturbations
        if ROWS[row].family(PERTURBATIONS[perturbation]) and ROWS[row].classifier(column)
    ]


def measure(experiments, todo):
    """Return the cells of the tasks, a line each, those left open for lack of time, and the rows that failed."""
    lines, left, failed = [], [], set()
    for task in todo:
        seed, row, column, perturbation = task
        try:
            cell = experiments[seed].cell(row, PERTURBATIONS[perturbation], column)
        except OutOfTimeError:
            left.append(task)
        except Exception:
            # One row that fails must not cost the others hours.
            traceback.print_exc()
            failed.add(row)
        else:
            place = {"seed": seed, "frontend": row, "perturbation": perturbation, "classifier": column}
            lines.append(place | cell)
    return lines, left, failed


def parse_arguments():
    parser = resumable_parser(__doc__, "robustness")
    parser.add_argument("--seeds", type=int, nargs="+", help="compute these only; default: 0 1 2, with --quick 0")
    for name, choices in (("only", PERTURBATIONS), ("frontends", ROWS), ("classifiers", CLASSIFIERS)):
        text = f"of {', '.join(choices)}; default: all"
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=list(choices), metavar="NAME", help=text)
    return parser.parse_args()


def main():
    args = parse_arguments()
    settings, seeds = (QUICK, [0]) if args.quick else (FULL, [0, 1, 2])
    selected, seeds = args.seeds or seeds, sorted({*seeds, *(args.seeds or [])})
    digits = load_digits(args.folder, side=SIDE, n_train=settings.n_train, n_test=settings.n_test)
    cache = Cache(args.cache, args.time_limit)
    experiments = {seed: Experiment(digits, settings, seed, cache, args.device) for seed in seeds}
    absent = {row: reason for row in ROWS if (reason := missing(row))}
    rows = [row for row in ROWS if row in {*args.frontends, *REFERENCES} - set(absent)]
    _, _, failed = measure(experiments, tasks(rows, args.only, selected, args.classifiers))
    absent |= dict.fromkeys(failed, "failed")

    # The table has all that the cache has, whatever was asked for this time.
    cache.stop()
    lines, left, _ = measure(experiments, tasks(ROWS, PERTURBATIONS, seeds))
    if lines:
        n_open = sum(row not in absent for _, row, _, _ in left)
        path = args.output / ("robustness_quick" if args.quick else "robustness")
        write_report(path, assemble(lines), settings, absent, n_open, merge=args.merge)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
