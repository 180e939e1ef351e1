"""The robustness table as CSV, Markdown and a picture."""

import numpy as np
import pandas as pd
from shared.cache import code_digest
from shared.tables import environment, markdown, save_text

from .plan import CLASSIFIERS, PERTURBATIONS, ROWS

SUFFIXES = ("", "_without_9", "_averaged", "_any", "_calibration", "_mixture")
READINGS = [name + suffix for name in ("canonicalized", "upright_canonicalized") for suffix in SUFFIXES]
TABLES = {
    "canonicalized": "Perturbed test digits, %",
    "canonicalized_without_9": "Perturbed test digits without 9, %",
    "upright_canonicalized": "Upright test digits, %",
}
WEIGHED = {
    "canonicalized": "read, %",
    "canonicalized_averaged": "averaged by alignment's weights, %",
    "canonicalized_any": "of some hypothesis, %",
    "canonicalized_calibration": "calibration error, points",
}


def assemble(lines):
    """Return a line per seed, front-end, perturbation and classifier."""
    costs = ["ms_per_image", "fit_seconds", "code", "device"]
    return pd.DataFrame(lines).reindex(columns=["seed", "frontend", "perturbation", "classifier", *READINGS, *costs])


def mean_and_spread(values):
    values = 100 * np.asarray(values, dtype=float)
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


def places(table):
    return [
        (p, c)
        for p in PERTURBATIONS
        for c in CLASSIFIERS
        if ((table.perturbation == p) & (table.classifier == c)).any()
    ]


def reading_table(table, reading, absent):
    """Return the Markdown of one reading: a line per perturbation and classifier, a column per front-end."""
    shown = [row for row in ROWS if row in set(table.frontend) or row in absent]
    grid = table.dropna(subset=[reading]).groupby(["perturbation", "classifier", "frontend"])[reading]
    cells = grid.agg(mean_and_spread)
    lines = []
    for perturbation, classifier in places(table):
        line = [
            cells.get((perturbation, classifier, row), why_empty(row, perturbation, classifier, reading, absent))
            for row in shown
        ]
        lines.append([perturbation, classifier, *line])
    return markdown(["perturbation", "classifier", *(ROWS[row].label for row in shown)], lines)


def why_empty(row, perturbation, classifier, reading, absent):
    """Say why a cell has no figure: it has no meaning, cannot be had here, or was not measured."""
    has_no_meaning = ROWS[row].images == "true" and reading.startswith("upright")
    if has_no_meaning or not ROWS[row].family(PERTURBATIONS[perturbation]) or not ROWS[row].classifier(classifier):
        return "n/a"
    return absent.get(row, "not run")


def weighed_table(table):
    """Return the Markdown of what reading several hypotheses is worth."""
    lines = []
    for row in (row for row in ROWS if ROWS[row].weighs):
        of_row = table[table.frontend == row]
        for perturbation, classifier in places(of_row):
            some = of_row[(of_row.perturbation == perturbation) & (of_row.classifier == classifier)]
            lines.append([ROWS[row].label, perturbation, classifier, *(mean_and_spread(some[r]) for r in WEIGHED)])
    return markdown(["front-end", "perturbation", "classifier", *WEIGHED.values()], lines)


def cost_table(table):
    measured = table.dropna(subset=["ms_per_image"])
    rows = []
    for (row, perturbation, device), group in measured.groupby(["frontend", "perturbation", "device"], sort=False):
        costs = f"{group.ms_per_image.mean():.2f}", f"{group.fit_seconds.mean():.0f}"
        rows.append([ROWS[row].label, perturbation, device, *costs])
    return markdown(["front-end", "perturbation", "device", "ms per image", "fit, s"], rows)


def notes(table, settings, n_open):
    codes = table.code.dropna().value_counts()
    return [
        *(
            f"{name}: {p.label}; family `{p.family}`" + (f", wider `{p.wider}`." if p.wider else ".")
            for name, p in PERTURBATIONS.items()
        ),
        "affnist is drawn by this benchmark, in the style of affNIST; the official files are not used.",
        "Accuracies in %, mean ± standard deviation over the seeds. Scales are drawn uniformly in the logarithm.",
        "Alone: fitted on upright digits. Augmented: networks see new copies in each of "
        f"{settings.augmented_epochs} epochs ({settings.cnn_epochs} on upright digits), LogisticRegression and kNN "
        f"{settings.copies('kNN(3)')}, the SVM 1. STN: with a spatial transformer before it.",
        "Front-ends: classifiers are fitted on the training digits that it has canonicalised (the paper's search and "
        "no critic: those of the canonicalizer), and read the best hypothesis.",
        "Classifier: as `CanonicalizedClassifier` does it. It is fitted on canonical digits and one copy of each in a "
        "pose that the model drew, canonicalised; on all but a fold, which teaches how to put answers together.",
        "Wider: a family with more parameters than were perturbed, which takes out what digits of one class differ by.",
        "Pose undone: the true pose, by the same warp. Canonical images are rounded to bytes.",
        f"The paper's search takes {settings.paper_budget:g} times its own number of starts.",
        f"equiadapt is trained on {settings.equiadapt_images:,} digits for {settings.equiadapt_epochs} epochs.",
        "Without 9: nines among the test digits are left out; the classifiers know them.",
        f"Cells: {len(table)} measured, {n_open} open; the package's code at fitting/at searching "
        + ", ".join(f"{code} ({n} cells)" for code, n in codes.items())
        + f", now {code_digest()}.",
        environment(", ".join(map(str, sorted(table.seed.unique()))), train=settings.n_train, test=settings.n_test),
    ]


def with_old_cells(table, path):
    """Return the table with the cells of an earlier one that it lacks; their `code` says what they were measured on."""
    place = ["seed", "frontend", "perturbation", "classifier"]
    return pd.concat([table, pd.read_csv(path)]).drop_duplicates(place, keep="first").reset_index(drop=True)


def write_report(path, table, settings, absent, n_open, *, merge):
    """Write the table as CSV, Markdown and a picture."""
    csv = path.with_suffix(".csv")
    if merge and csv.exists():
        n_new, table = len(table), with_old_cells(table, csv)
        n_open = max(0, n_open - (len(table) - n_new))
    parts = [f"# Perturbed MNIST: {settings.n_train:,} upright training digits, {settings.n_test:,} test digits", ""]
    for reading, title in TABLES.items():
        parts += [f"## {title}", "", reading_table(table, reading, absent)]
    parts += ["## Several hypotheses", "", weighed_table(table), "## Cost of the front-ends", "", cost_table(table)]
    save_text(path, parts + [f"- {note}" for note in notes(table, settings, n_open)])
    table.to_csv(csv, index=False, float_format="%.6g")
    draw(table, path.with_suffix(".png"))


def draw(table, path):
    """Draw accuracies as one heat map per classifier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in ROWS if row in set(table.frontend)]
    perturbations = [p for p in PERTURBATIONS if p in set(table.perturbation)]
    figure, axes = plt.subplots(
        1, len(CLASSIFIERS), figsize=(18, 1.5 + 0.4 * len(shown)), sharey=True, layout="constrained"
    )
    for ax, classifier in zip(axes, CLASSIFIERS, strict=True):
        some = table[table.classifier == classifier]
        grid = 100 * some.pivot_table(index="frontend", columns="perturbation", values="canonicalized")
        values = grid.reindex(index=shown, columns=perturbations).to_numpy()
        ax.imshow(values, vmin=20, vmax=100, cmap="viridis", aspect="auto")
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            ax.text(column, row, f"{value:.1f}", ha="center", va="center", color="black" if value > 75 else "white")
        ax.set_title(classifier)
        ax.set_xticks(range(len(perturbations)), perturbations, rotation=30, ha="right")
        ax.set_yticks(range(len(shown)), [ROWS[row].label for row in shown])
    figure.suptitle("Test digits read correctly, %")
    figure.savefig(path, dpi=100)
    plt.close(figure)
