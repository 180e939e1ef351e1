"""The robustness table as CSV, Markdown and a picture."""

import numpy as np
import pandas as pd
from shared.cache import code_digest
from shared.tables import environment, markdown, save_text

from .plan import CLASSIFIERS, PERTURBATIONS, ROWS

READINGS = {
    "as_it_comes": "as it comes",
    "canonicalized": "through the front-end",
    "canonicalized_upright_fit": "through the front-end, classifier fitted on upright pixels",
    "oracle": "true pose undone",
    "upright": "upright",
    "upright_canonicalized": "upright, through the front-end",
    "upright_canonicalized_upright_fit": "upright, through the front-end, classifier fitted on upright pixels",
}
# What every row is compared with: name, row and reading of the other row.
REFERENCE_READINGS = [
    ("as_it_comes", "none", "canonicalized"),
    ("oracle", "oracle", "canonicalized"),
    ("upright", "none", "upright_canonicalized"),
]


def assemble(lines):
    """Return a line per seed, front-end, perturbation and classifier, with what the reference rows read beside it."""
    place = ["seed", "perturbation", "classifier"]
    table = pd.DataFrame(lines)
    for suffix in ("", "_without_9"):
        for name, reference, reading in REFERENCE_READINGS:
            read = table[table.frontend == reference].set_index(place).reindex(columns=[reading + suffix])
            table = table.join(read[reading + suffix].rename(name + suffix), on=place)
    readings = [name + suffix for suffix in ("", "_without_9") for name in READINGS]
    costs = ["ms_per_image", "fit_seconds", "code", "device"]
    return table.reindex(columns=["seed", "frontend", "perturbation", "classifier", *readings, *costs])


def mean_and_spread(values):
    values = 100 * np.asarray(values)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def pivot(table, reading, summary):
    """Return a grid of rows (front-ends) and columns (perturbation x classifier)."""
    grid = table.pivot_table(
        index="frontend", columns=["perturbation", "classifier"], values=reading, aggfunc=summary, sort=False
    )
    columns = [(p, c) for p in PERTURBATIONS for c in CLASSIFIERS if (p, c) in grid.columns]
    return grid.reindex(index=[row for row in ROWS if row in grid.index], columns=columns)


def reading_table(table, reading, absent):
    """Return the Markdown of one reading; `absent` says of rows without one why."""
    grid = pivot(table.dropna(subset=[reading]), reading, mean_and_spread)
    rows = []
    for row in ROWS:
        if row in grid.index:
            rows.append([ROWS[row].label, *grid.loc[row].fillna("")])
        elif row in absent:
            rows.append([f"{ROWS[row].label} ({absent[row]})", *[""] * grid.shape[1]])
    return markdown(["front-end", *(f"{p} {c}" for p, c in grid.columns)], rows)


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
        "Accuracies in %, mean ± standard deviation over the seeds. Scales are drawn uniformly in the logarithm.",
        "The classifiers of a front-end are fitted on the training digits that it has canonicalised (the gate leaves "
        "most of them alone); the rows of sk_avae, save the gate's, and the paper's search share those of sk_avae "
        "of the same family.",
        f"Augmented training: networks see new copies in each of {settings.augmented_epochs} epochs "
        f"({settings.cnn_epochs} on upright digits), LogisticRegression and kNN "
        f"{settings.copies('kNN(3)')}, the SVM 1.",
        "Averaged: class probabilities weighed by the hypotheses' weights (those of .001 and more); the SVM, which has "
        "none, sees the best one. Canonical images are rounded to bytes.",
        "Copies: classifiers also see each training digit in a pose that the model drew (`AVAEEstimator.perturb`, "
        "whatever the column's perturbation), canonicalised.",
        "One fit, critic and gate included, serves all rows of sk_avae and the paper's search.",
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
    for reading in ("canonicalized", "canonicalized_without_9", "canonicalized_upright_fit", "upright_canonicalized"):
        title = READINGS[reading.removesuffix("_without_9")] + (", without 9" if reading.endswith("_9") else "")
        parts += [f"## {title[0].upper()}{title[1:]}", "", reading_table(table, reading, absent)]
    parts += ["## Cost of the front-ends", "", cost_table(table)]
    save_text(path, parts + [f"- {note}" for note in notes(table, settings, n_open)])
    table.to_csv(csv, index=False, float_format="%.6g")
    draw(table, path.with_suffix(".png"))


def draw(table, path):
    """Draw accuracies as one heat map per classifier."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grid = 100 * pivot(table, "canonicalized", "mean")
    figure, axes = plt.subplots(
        1, len(CLASSIFIERS), figsize=(18, 1.5 + 0.4 * len(grid)), sharey=True, layout="constrained"
    )
    for ax, classifier in zip(axes, CLASSIFIERS, strict=True):
        perturbations = [p for p in PERTURBATIONS if (p, classifier) in grid.columns]
        values = grid[[(p, classifier) for p in perturbations]].to_numpy()
        ax.imshow(values, vmin=20, vmax=100, cmap="viridis", aspect="auto")
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            ax.text(column, row, f"{value:.1f}", ha="center", va="center", color="black" if value > 75 else "white")
        ax.set_title(classifier)
        ax.set_xticks(range(len(perturbations)), perturbations, rotation=30, ha="right")
        ax.set_yticks(range(len(grid)), [ROWS[row].label for row in grid.index])
    figure.suptitle("Test digits read correctly, %")
    figure.savefig(path, dpi=100)
    plt.close(figure)
