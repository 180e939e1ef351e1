"""Perturbed MNIST: what four classifiers read behind every front-end, in one table.

    python benchmarks/robustness.py FOLDER_WITH_IDX_FILES [--quick] [--time-limit MINUTES] [--device DEVICE]

60,000 upright training digits and 10,000 perturbed test digits on a 40 x 40 canvas, three seeds (`--quick`: 4,000 and
400, one seed, smaller budgets). A seed sets the poses, the VAE's and the networks' initial weights. Nothing is chosen
on test digits. Whatever was computed is kept in the cache folder, so that a run that was stopped goes on where it was.
"""

import argparse
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import numpy as np
from cache import Cache, Lazy, OutOfTimeError, code_digest
from classifiers import SIDE, make_classifier, predict_weighted
from common import load_digits
from frontends import as_bytes, drawn, missing, only, undo
from plan import CLASSIFIERS, FULL, PERTURBATIONS, QUICK, REFERENCES, ROWS, make_frontend
from report import assemble, write_report

from sk_avae.datasets import make_perturbed

IMAGES_PER_PART = 10_000


def perturb(rows, perturbation, random_state):
    family = perturbation.drawn or perturbation.family
    return make_perturbed(rows, family=family, ranges=perturbation.ranges, random_state=random_state)


class Experiment:
    """The digits of one seed, front-ends and classifiers fitted on them, and what these read."""

    def __init__(self, digits, settings, seed, cache, device):
        (self.X_train, self.y_train), (self.X_test, self.y_test) = digits["train"], digits["test"]
        self.settings, self.seed, self.cache, self.device = settings, seed, cache, device
        self.data_key = {"seed": seed, "digits": digits["key"]}

    # ------------------------------------------------------------------ images
    def test_images(self, perturbation=None):
        """Return test digits and their poses, perturbed or upright."""
        if perturbation is None:
            return Lazy({"test": "upright", **self.data_key}, lambda: (self.X_test, None))
        key = {"test": asdict(perturbation), **self.data_key}
        return Lazy(
            key, lambda: self.cache.get("perturbed", key, lambda: perturb(self.X_test, perturbation, self.seed))
        )

    def seen_images(self, row, perturbation, test):
        """Return what classifiers read of test images in a row: images, weights and what these cost."""
        family = ROWS[row].family(perturbation)
        kind = ROWS[row].images
        if kind == "raw":
            return Lazy(test.key, lambda: only("images", test.load()[0]))
        if kind == "true":
            return Lazy(
                {"undone": test.key},
                lambda: only("images", as_bytes(undo(*test.load(), perturbation.drawn or perturbation.family))),
            )
        frontend = ROWS[row].frontend or row
        k = None if any(other.averaged and other.frontend == frontend for other in ROWS.values()) else 1
        found = self._found(frontend, family, test.key, lambda: test.load()[0], "test", k)
        if ROWS[row].averaged:
            return Lazy(found.key, lambda: found.load() | {"images": drawn(found.load(), test.load()[0])})
        return Lazy(
            {"best": found.key},
            lambda: found.load() | only("images", drawn(found.load(), test.load()[0], 1)[:, 0]),
        )

    def _found(self, row, family, images_key, load, name, k=None):
        """Return what the front-end of a row finds in images, the best k of it."""
        frontend = make_frontend(row, family, self.settings, self.seed, self.device)
        model = self.model(frontend)
        key = {
            "frontend": type(frontend).__name__,
            "model": model.key,
            "search": frontend.search_key,
            "images": images_key,
            "k": k,
        }

        def compute():
            fit, rows = model.load(), load()
            start = time.perf_counter()
            found = frontend.search(fit["model"], rows)
            drawn(found, rows)  # counts as well, though it is the poses that are kept
            costs = {
                "ms_per_image": 1000 * (time.perf_counter() - start) / len(rows),
                "fit_seconds": fit["seconds"],
                "code": f"{fit['code']}/{code_digest()}",
            }
            return {name: array[:, :k] for name, array in found.items()} | {n: np.array(v) for n, v in costs.items()}

        return Lazy(key, lambda: self.cache.get(f"{name}_{row}_{family}_{self.seed}.npz", key, compute))

    def training_images(self, row, perturbation, classifier):
        """Return the images and labels that a classifier of a row is fitted on."""
        kind = ROWS[row].training
        if kind == "upright":
            return Lazy({"training": kind, **self.data_key}, lambda: (self.X_train, self.y_train))
        if kind == "perturbed":
            n_copies = self.settings.copies(classifier)
            key = {"training": asdict(perturbation), "copies": n_copies, **self.data_key}
            return Lazy(key, lambda: self._perturbed_copies(perturbation, n_copies))
        starts, copies = range(0, len(self.X_train), IMAGES_PER_PART), 1 + ROWS[row].copies
        family = ROWS[row].family(perturbation)
        parts = [self._canonical_part(kind, family, start, copy) for copy in range(copies) for start in starts]
        return Lazy(
            {"training": [part.key for part in parts]},
            lambda: (np.concatenate([part.load() for part in parts]), np.tile(self.y_train, copies)),
        )

    def _canonical_part(self, row, family, start, copy=0):
        """Return some of the training digits, or of a perturbed copy of them, canonicalised.

        Parts, so that a stopped run loses little.
        """
        key = {"training": "upright", "start": start, "n": IMAGES_PER_PART, **self.data_key}
        rows = self.X_train[start : start + IMAGES_PER_PART]

        if copy:
            key["perturbed"] = self.training_seed(start + copy)
        frontend = make_frontend(row, family, self.settings, self.seed, self.device)

        def images():
            return frontend.perturb(self.model(frontend).load()["model"], rows, key["perturbed"]) if copy else rows

        found = self._found(row, family, key, images, "copy" if copy else "train", k=1)
        return Lazy(found.key, lambda: drawn(found.load(), images())[:, 0])

    def training_seed(self, copy):
        """Return the seed of a perturbed copy of the training digits; test digits have the experiment's own."""
        return 1000 * (self.seed + 1) + copy

    def _perturbed_copies(self, perturbation, n_copies):
        seeds = map(self.training_seed, range(n_copies))
        images = [perturb(self.X_train, perturbation, seed)[0] for seed in seeds]
        return np.concatenate(images), np.tile(self.y_train, n_copies)

    # ------------------------------------------------------------------ fits
    def model(self, frontend):
        """Return a front-end's fitted model and the seconds that it took."""
        key = {**frontend.model_key, **self.data_key}

        def compute():
            start = time.perf_counter()
            model = frontend.fit(self.X_train, self.y_train)
            return {"model": model, "seconds": time.perf_counter() - start, "code": code_digest()}

        return Lazy(key, lambda: self.cache.get(f"model_{frontend.model_name}_{self.seed}.joblib", key, compute))

    def classifier(self, name, training, perturbation=None):
        """Return a fitted classifier; networks see new copies in every epoch if there is a perturbation."""
        is_network = name.endswith("CNN")
        settings = self.settings
        epochs = settings.cnn_epochs if perturbation is None else settings.augmented_epochs
        key = {"classifier": name, "training": training.key}
        if is_network:
            key["epochs"] = epochs

        def fresh_copy(rows, epoch):
            return perturb(rows, perturbation, self.training_seed(epoch))[0]

        def compute():
            classifier = make_classifier(name, epochs=epochs, random_state=self.seed, device=self.device)
            if is_network and perturbation is not None:
                return classifier.fit(self.X_train / np.float32(255), self.y_train, perturb=fresh_copy)
            images, labels = training.load()
            return classifier.fit(images / np.float32(255), labels)

        # A fitted kNN is its training set: nothing is won by keeping it.
        suffix = "" if name.startswith("kNN") else ".joblib"
        return Lazy(key, lambda: self.cache.get(f"classifier_{slug(name)}_{self.seed}{suffix}", key, compute))

    # ------------------------------------------------------------------ what is read
    def reading(self, classifier, seen):
        """Return the accuracy of a classifier on images, over all digits and without the nines."""
        key = {"classifier": classifier.key, "images": seen.key}

        def compute():
            images = seen.load()
            right = predict_weighted(classifier.load(), images["images"], images["weights"]) == self.y_test
            return {"all": float(right.mean()), "without_9": float(right[self.y_test != 9].mean())}

        return self.cache.get(f"reading_{slug(classifier.key['classifier'])}_{self.seed}.json", key, compute)

    def cell(self, row, perturbation, column):
        """Return what a row reads in a column: accuracies and costs."""
        is_augmented = ROWS[row].training == "perturbed"
        name = ROWS[row].classifier(column)
        training = self.training_images(row, perturbation, name)
        own = self.classifier(name, training, perturbation if is_augmented else None)
        upright = self.classifier(column, self.training_images("none", perturbation, column))
        seen = {
            "canonicalized": self.seen_images(row, perturbation, self.test_images(perturbation)),
            "upright_canonicalized": self.seen_images(row, perturbation, self.test_images()),
        }
        if ROWS[row].images == "true":
            del seen["upright_canonicalized"]
        key = {
            "row": row,
            "own": own.key,
            "upright": upright.key,
            "seen": {n: images.key for n, images in seen.items()},
        }

        def compute():
            cell = {name: self.reading(own, images) for name, images in seen.items()}
            if ROWS[row].images == "canonical":
                cell |= {f"{name}_upright_fit": self.reading(upright, images) for name, images in seen.items()}
                found = seen["canonicalized"].load()
                cell |= {name: found[name].item() for name in ("ms_per_image", "fit_seconds", "code")}
                cell["device"] = self.device
            return cell

        return self.cache.get(f"cell_{row}_{slug(column)}_{self.seed}.json", key, compute)


def slug(name):
    return "".join(c for c in name.lower() if c.isalnum())


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
            lines.append(place | flat(cell))
    return lines, left, failed


def flat(cell):
    """Turn {"upright": {"all": .., "without_9": ..}} into {"upright": .., "upright_without_9": ..}."""
    values = {}
    for name, value in cell.items():
        if isinstance(value, dict):
            values |= {name: value["all"], f"{name}_without_9": value["without_9"]}
        else:
            values[name] = value
    return values


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="MNIST's IDX files")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer digits, smaller budgets")
    parser.add_argument("--seeds", type=int, nargs="+", help="compute these only; default: 0 1 2, with --quick 0")
    parser.add_argument("--only", nargs="+", choices=PERTURBATIONS, default=list(PERTURBATIONS), metavar="PERTURBATION")
    parser.add_argument("--frontends", nargs="+", choices=ROWS, default=list(ROWS), metavar="FRONTEND")
    parser.add_argument(
        "--classifiers", nargs="+", choices=CLASSIFIERS, default=list(CLASSIFIERS), metavar="CLASSIFIER"
    )
    parser.add_argument("--cache", default=Path(__file__).parent / ".cache" / "robustness", help="folder")
    parser.add_argument("--merge", action="store_true", help="keep cells of the last table that the cache lacks")
    parser.add_argument("--device", default="cpu", help="of networks; the rest stays on the CPU")
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="start nothing new after this")
    return parser.parse_args()


def main():
    args = parse_arguments()
    settings, seeds = (QUICK, [0]) if args.quick else (FULL, [0, 1, 2])
    selected, seeds = args.seeds or seeds, sorted({*seeds, *(args.seeds or [])})
    digits, cache = load_digits(args.folder, settings, SIDE), Cache(args.cache, args.time_limit)
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
        name = "robustness_quick" if args.quick else "robustness"
        write_report(name, assemble(lines), settings, absent, n_open, merge=args.merge)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
