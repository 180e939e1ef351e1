"""The robustness table's cells for one seed: images, fits, and what is read. Each is computed when it is needed."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from shared.cache import code_digest
from shared.timing import timed

from sk_avae._lessons import folds_to_judge
from sk_avae.datasets import make_perturbed
from sk_avae.mixture import HypothesisMixture, joined, learned_mixture, read
from sk_avae.report import calibration_error

from .classifiers import make_classifier
from .frontends import as_bytes, drawn, make_frontend, only, undo
from .plan import ROWS

IMAGES_PER_PART = 10_000


@dataclass(frozen=True)
class Lazy:
    """Something that is computed, or read from the cache, when it is needed; `key` is all that it depends on."""

    key: dict[str, Any]
    load: Callable[[], Any]


def perturb(rows, perturbation, random_state):
    return make_perturbed(rows, family=perturbation.drawn_family, ranges=perturbation.ranges, random_state=random_state)


def slug(name):
    return "".join(c for c in name.lower() if c.isalnum())


class Experiment:
    """The digits of one seed, front-ends and classifiers fitted on them, and what these read."""

    def __init__(self, digits, settings, seed, cache, device):
        (self.X_train, self.y_train), (self.X_test, self.y_test) = digits["train"], digits["test"]
        self.settings, self.seed, self.cache, self.device = settings, seed, cache, device
        self.data_key = {"seed": seed, "digits": digits["key"]}

    def kept(self, name, suffix, key, compute):
        """Return something that is kept in a file of the cache."""
        return Lazy(key, lambda: self.cache.get(f"{name}_{self.seed}{suffix}", key, compute))

    def frontend(self, row, family):
        """Return the front-end of a row, not fitted, and its fitted model with the seconds that it took."""
        frontend = make_frontend(row, family, self.settings, self.seed, self.device)

        def compute():
            model, seconds = timed(frontend.fit, self.X_train, self.y_train)
            return {"model": model, "seconds": seconds, "code": code_digest()}

        key = {**frontend.model_key, **self.data_key}
        return frontend, self.kept(f"model_{frontend.model_name}", ".joblib", key, compute)

    # ------------------------------------------------------------------ images
    def test_images(self, perturbation=None):
        """Return test digits and their poses, perturbed or upright."""
        if perturbation is None:
            return Lazy({"test": "upright", **self.data_key}, lambda: (self.X_test, None))
        key = {"test": asdict(perturbation), **self.data_key}
        return self.kept("perturbed", "", key, lambda: perturb(self.X_test, perturbation, self.seed))

    def seen_images(self, row, perturbation, test):
        """Return what classifiers read of test images in a row: images, weights and what these cost."""
        images, kind = Lazy(test.key, lambda: test.load()[0]), ROWS[row].images
        if kind == "raw":
            return Lazy(test.key, lambda: only("images", images.load()))
        if kind == "true":
            family = perturbation.drawn_family
            return Lazy({"undone": test.key}, lambda: only("images", as_bytes(undo(*test.load(), family))))
        frontend = ROWS[row].frontend or row
        k = None if any(other.weighs and other.frontend == frontend for other in ROWS.values()) else 1
        found = self._found(frontend, ROWS[row].family(perturbation), images, "test", k)
        if ROWS[row].weighs:
            return Lazy(found.key, lambda: found.load() | {"images": drawn(found.load(), images.load())})
        best = Lazy({"best": found.key}, lambda: drawn(found.load(), images.load(), 1)[:, 0])
        return Lazy(best.key, lambda: found.load() | only("images", best.load()))

    def _found(self, row, family, images, name, k):
        """Return what the front-end of a row finds in images, the best k of it (None: all), and what that costs."""
        frontend, model = self.frontend(row, family)
        key = {"frontend": type(frontend).__name__, "model": model.key, "search": frontend.search_key}
        key |= {"images": images.key, "k": k}

        def compute():
            fit, rows = model.load(), images.load()

            def search():
                found = frontend.search(fit["model"], rows)
                drawn(found, rows)  # counts as well, though it is the poses that are kept
                return found

            found, seconds = timed(search)
            return {name: array[:, :k] for name, array in found.items()} | {
                "ms_per_image": 1000 * seconds / len(rows),
                "fit_seconds": fit["seconds"],
                "code": f"{fit['code']}/{code_digest()}",
            }

        return self.kept(f"{name}_{row}_{family}", ".joblib", key, compute)

    def training_images(self, row, perturbation, classifier):
        """Return the images and labels that a classifier of a row is fitted on."""
        kind = ROWS[row].training
        if kind == "upright":
            return Lazy({"training": kind, **self.data_key}, lambda: (self.X_train, self.y_train))
        if kind == "perturbed":
            n_copies = self.settings.copies(classifier)
            key = {"training": asdict(perturbation), "copies": n_copies, **self.data_key}
            seeds = [self.training_seed(copy) for copy in range(n_copies)]
            return self._joined(key, lambda: (perturb(self.X_train, perturbation, seed)[0] for seed in seeds), n_copies)
        family, copies = ROWS[row].family(perturbation), 1 + ROWS[row].weighs
        parts = [
            self._canonical_part(kind, family, start, copy) for copy in range(copies) for start in self._part_starts()
        ]
        key = {"training": [part.key for part in parts]}
        return self._joined(key, lambda: (part.load()["images"][:, 0] for part in parts), copies)

    def _part_starts(self):
        return range(0, len(self.X_train), IMAGES_PER_PART)

    def _joined(self, key, parts, n_copies):
        """Return images, computed in parts, with the labels of so many copies of the training digits."""
        return Lazy(key, lambda: (np.concatenate(list(parts())), np.tile(self.y_train, n_copies)))

    def _canonical_part(self, row, family, start, copy):
        """Return the canonical images of some of the training digits, or all hypotheses' of a perturbed copy of them.

        Parts, so that a stopped run loses little.
        """
        key = {"training": "upright", "start": start, "n": IMAGES_PER_PART, **self.data_key}
        if copy:
            key["perturbed"] = self.training_seed(start + copy)

        def load():
            rows = self.X_train[start : start + IMAGES_PER_PART]
            if not copy:
                return rows
            frontend, model = self.frontend(row, family)
            return frontend.perturb(model.load()["model"], rows, key["perturbed"])

        images = Lazy(key, load)
        found = self._found(row, family, images, "copy" if copy else "train", None if copy else 1)
        return Lazy(found.key, lambda: found.load() | {"images": drawn(found.load(), images.load())})

    def training_seed(self, copy):
        """Return the seed of a perturbed copy of the training digits; test digits have the experiment's own."""
        return 1000 * (self.seed + 1) + copy

    # ------------------------------------------------------------------ what is read
    def classifier(self, name, training, perturbation=None):
        """Return a fitted classifier; networks see new copies in every epoch if there is a perturbation."""
        is_network, settings = name.endswith("CNN"), self.settings
        epochs = settings.cnn_epochs if perturbation is None else settings.augmented_epochs
        key = {"classifier": name, "training": training.key} | ({"epochs": epochs} if is_network else {})

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
        return self.kept(f"classifier_{slug(name)}", suffix, key, compute)

    def reading(self, classifier, seen, name):
        """Return the accuracies of a classifier on images, over all digits and without the nines, under a name."""

        def compute():
            images = seen.load()["images"][:, 0] / np.float32(255)
            right = classifier.load().predict(images) == self.y_test
            return float(right.mean()), float(right[self.y_test != 9].mean())

        key = {"classifier": classifier.key, "images": seen.key}
        read = self.kept(f"reading_{slug(classifier.key['classifier'])}", ".json", key, compute).load()
        return dict(zip((name, f"{name}_without_9"), read, strict=True))

    # ------------------------------------------------------------------ as CanonicalizedClassifier does it
    def weighing(self, row, perturbation, name):
        """Return a classifier fitted on all training digits but a fold, with their copies, and what the fold taught.

        `CanonicalizedClassifier` fits once more, on all; here the dear ones are fitted once.
        """
        training = self.training_images(row, perturbation, name)
        known, judged = folds_to_judge(self.y_train, self.seed)[0]
        family = ROWS[row].family(perturbation)
        parts = [self._canonical_part(ROWS[row].training, family, start, 1) for start in self._part_starts()]

        def compute():
            images, labels = training.load()
            lessons = np.concatenate([known, len(self.X_train) + known])
            classifier = make_classifier(
                name, epochs=-(-self.settings.cnn_epochs // 2), random_state=self.seed, device=self.device
            ).fit(images[lessons] / np.float32(255), labels[lessons])
            taught = []
            for start, part in zip(self._part_starts(), parts, strict=True):
                some = judged[(judged >= start) & (judged < start + IMAGES_PER_PART)]
                found = part.load()
                hypotheses = found["images"][some - start] / np.float32(255)
                taught.append((some, read(classifier, hypotheses, found["weights"][some - start])))
            order = np.concatenate([some for some, _ in taught])
            readings = joined([readings for _, readings in taught])
            prior = np.bincount(self.y_train) / len(self.y_train)
            return {"classifier": classifier, "mixture": learned_mixture(readings, self.y_train[order], prior)}

        key = {"weighing": name, "training": training.key, "epochs": self.settings.cnn_epochs}
        suffix = "" if name.startswith("kNN") else ".joblib"
        return self.kept(f"weighing_{slug(name)}", suffix, key, compute)

    def weighed_reading(self, weighing, seen, name):
        """Return what a classifier reads of all hypotheses: accuracies, averaged ones, and the calibration error."""

        def compute():
            images, fitted = seen.load(), weighing.load()
            readings = read(fitted["classifier"], images["images"] / np.float32(255), images["weights"])
            probabilities = fitted["mixture"].probabilities(readings)
            right = probabilities.argmax(axis=1) == self.y_test
            averaged = HypothesisMixture().probabilities(readings).argmax(axis=1) == self.y_test
            possible = (readings.log_probabilities.argmax(axis=2) == self.y_test[:, None]) & (images["weights"] > 0)
            return {
                "": float(right.mean()),
                "_without_9": float(right[self.y_test != 9].mean()),
                "_averaged": float(averaged.mean()),
                "_any": float(possible.any(axis=1).mean()),
                "_calibration": calibration_error(probabilities.max(axis=1), right),
                "_mixture": str(fitted["mixture"]),
            }

        key = {"weighing": weighing.key, "images": seen.key}
        read_ = self.kept(f"reading_{slug(weighing.key['weighing'])}", ".json", key, compute).load()
        return {name + suffix: value for suffix, value in read_.items()}

    def cell(self, row, perturbation, column):
        """Return what a row reads in a column: accuracies and costs."""
        name = ROWS[row].classifier(column)
        seen = {"canonicalized": self.seen_images(row, perturbation, self.test_images(perturbation))}
        if ROWS[row].images != "true":
            seen["upright_canonicalized"] = self.seen_images(row, perturbation, self.test_images())
        if ROWS[row].weighs:
            own, reading = self.weighing(row, perturbation, name), self.weighed_reading
        else:
            training = self.training_images(row, perturbation, name)
            augmented = perturbation if ROWS[row].training == "perturbed" else None
            own, reading = self.classifier(name, training, augmented), self.reading
        key = {"row": row, "own": own.key, "seen": {n: images.key for n, images in seen.items()}}

        def compute():
            cell = {}
            for name, images in seen.items():
                cell |= reading(own, images, name)
            if ROWS[row].images == "canonical":
                found = seen["canonicalized"].load()
                cell |= {name: found[name] for name in ("ms_per_image", "fit_seconds", "code")}
                cell["device"] = self.device
            return cell

        return self.kept(f"cell_{row}_{slug(column)}", ".json", key, compute).load()
