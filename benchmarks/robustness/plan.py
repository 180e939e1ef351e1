"""What the robustness table holds: sizes, perturbations, rows and columns."""

import math
from dataclasses import dataclass, field
from typing import Any

from shared.paper_search import GENERAL_AFFINE

CLASSIFIERS = ("LogisticRegression", "kNN(3)", "RBF-SVM", "CNN")


@dataclass(frozen=True)
class Settings:
    """Sizes and budgets; `avae` are parameters of `AVAEEstimator`, the defaults where it says nothing."""

    n_train: int = 60_000
    n_test: int = 10_000
    avae: dict[str, Any] = field(default_factory=dict)
    cnn_epochs: int = 10
    augmented_epochs: int = 15
    augmented_copies: int = 2
    paper_budget: float = 1.0
    equiadapt_images: int = 60_000
    equiadapt_epochs: int = 4

    def copies(self, classifier):
        """Return how many perturbed copies of the training digits a classifier is fitted on in augmented training.

        The SVM gets one: its cost grows with the square of their number. Networks see a new one in every epoch.
        """
        return 1 if classifier == "RBF-SVM" else self.augmented_copies


FULL = Settings()
QUICK = Settings(
    n_train=4_000,
    n_test=400,
    augmented_epochs=10,
    augmented_copies=1,
    paper_budget=0.25,
    equiadapt_images=1_500,
    equiadapt_epochs=2,
)


@dataclass(frozen=True)
class Perturbation:
    """How test digits are perturbed.

    Attributes
    ----------
    family : str
        What front-ends search.
    ranges : dict
        Of the poses' parameters.
    label : str
    drawn : str or None
        The family of the poses; None is the one that is searched.
    wider : str or None
        A family with more parameters than were perturbed, which takes out what digits of one class differ by.
    """

    family: str
    ranges: dict[str, Any]
    label: str
    drawn: str | None = None
    wider: str | None = None

    @property
    def drawn_family(self):
        return self.drawn or self.family


def log_factors(low, high):
    return {name: (math.log(low), math.log(high)) for name in ("log_scale_x", "log_scale_y")}


SEARCHED = {"angle": math.pi, "shear": 0.5, **log_factors(1 / 1.8, 1.8)}
PERTURBATIONS = {
    "rotation": Perturbation("rotation", {"angle": math.pi}, "±180°", wider="linear"),
    # MNIST's mass is half a pixel off the centre, always to the same side: exact turns tell up from down by that alone.
    "rotation_off_centre": Perturbation(
        "rotation",
        {"angle": math.pi, "tx": 0.05, "ty": 0.05},
        "±180°, up to a pixel off the centre to each side",
        drawn="rigid",
        wider="affine",
    ),
    "paper_affine": Perturbation("linear", GENERAL_AFFINE, "±180°, shear up to 55° (slope 1.43), scales 0.5 to 1.5"),
    "search_affine": Perturbation("linear", SEARCHED, "±180°, shear ±0.5, scales 1/1.8 to 1.8"),
    "search_affine_shift": Perturbation(
        "affine", {**SEARCHED, "tx": 0.3, "ty": 0.3}, "the same and shifts ±0.3 half sides"
    ),
    "affnist": Perturbation(
        "affine",
        {"angle": math.radians(20), "shear": 0.2, **log_factors(0.8, 1.2), "tx": 0.2, "ty": 0.2},
        "±20°, shear ±0.2, scales 0.8 to 1.2, shifts ±0.2 half sides",
    ),
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes
    ----------
    label : str
    images : {"canonical", "raw", "true"}
        What the classifier reads: what the front-end makes of an image, the image as it comes, or its true pose undone.
    training : str
        What classifiers are fitted on: "upright" digits, "perturbed" ones, or the canonical training digits of a row.
    frontend : str or None
        The row whose front-end this one shares; None has its own.
    classifiers : dict or None
        From columns to the classifier that is used there; None is the column's own.
    families : tuple of str
        Those of the perturbations that the row is for.
    wider : bool
        Whether the front-end searches the perturbation's wider family; the row is for those that have one.
    weighs : bool
        Whether classifiers do as `CanonicalizedClassifier` does: they are also fitted on a copy of the training digits
        that the model has perturbed before it canonicalised them, and read all hypotheses for a test digit.
    """

    label: str
    images: str = "canonical"
    training: str = "upright"
    frontend: str | None = None
    classifiers: Any = None
    families: tuple[str, ...] = ("rotation", "linear", "affine")
    wider: bool = False
    weighs: bool = False

    def classifier(self, column):
        return column if self.classifiers is None else self.classifiers.get(column)

    def family(self, perturbation):
        """Return the family that the front-end searches for a perturbation, or None if the row is not for it."""
        if perturbation.family not in self.families:
            return None
        return perturbation.wider if self.wider else perturbation.family


STN = {"CNN": "STN + CNN"}
ROWS = {
    "none": Row("alone", images="raw"),
    "augmented": Row("augmented", images="raw", training="perturbed"),
    "stn": Row("augmented, STN", images="raw", training="perturbed", classifiers=STN),
    "moments": Row("moments", training="moments"),
    "equiadapt": Row("equiadapt", training="equiadapt", families=("rotation",)),
    "paper": Row("paper's search", training="sk_avae"),
    "vae_only": Row("no critic", training="sk_avae"),
    "sk_avae": Row("canonicalizer", training="sk_avae"),
    "weighed": Row("classifier", training="sk_avae", frontend="sk_avae", weighs=True),
    "wider": Row("classifier, wider", training="sk_avae", frontend="sk_avae", weighs=True, wider=True),
    "oracle": Row("pose undone", images="true"),
}
# Every other row is read beside these two.
REFERENCES = ("none", "oracle")
