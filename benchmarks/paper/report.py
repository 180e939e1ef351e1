"""The tables of `paper.py`, made of its cells: beside the paper's own figures."""

import numpy as np
from shared.tables import markdown, save_text

from .cells import ANGLES

# Figures 3 and 5 of the paper; the means of these curves differ a little from its table 1.
PAPER_CURVES = {
    "VAE, single orientation": [590.0, 630.9, 676.8, 701.6, 712.2, 732.7, 726.2, 702.2, 691.1, 670.2],
    "AVAE, single orientation": [589.8, 607.7, 613.0, 614.5, 607.7, 607.5, 615.6, 613.3, 612.5, 588.1],
    "AVAE, random perturbations": [607.1, 616.1, 607.5, 609.1, 605.9, 612.5, 608.2, 609.8, 614.2, 602.6],
    "AVAE, transformation optimisation": [587.5, 598.3, 589.2, 598.7, 599.8, 599.2, 599.5, 593.0, 596.7, 587.8],
}
PAPER_TABLE_1 = {
    "VAE, single orientation": 684.4,
    "AVAE, single orientation": 608.6,
    "AVAE, random perturbations": 609.8,
    "AVAE, transformation optimisation": 601.2,
}
PAPER_AFFINE = {"vae": 368.9, "avae": 316.8}
# Rows of table 1, and the cells that they come from: (published, package, which curve).
ROWS = {
    "VAE, single orientation": ("published single", "curve upright", "vae"),
    "AVAE, single orientation": ("published single", "curve upright", "avae"),
    "AVAE, random perturbations": ("published random", "curve turned", "avae"),
    "AVAE, transformation optimisation": ("published optimised", "curve aligned", "avae"),
}
COLUMNS = ("the paper's figures", "as published, here", "as this package does it")
TRAINING_LABELS = {"upright": "upright", "turned": "any orientation", "aligned": "any orientation, align_training"}


def save_tables(cells, settings, path, notes):
    """Write the tables to `path`.md."""
    parts = [
        "# The paper's figures, reproduced\n",
        table_1(cells),
        table_gap(cells),
        table_affine(cells),
        table_latent(cells, settings),
        table_poses(cells),
        table_classified(cells),
        f"- {notes}",
    ]
    save_text(path, [part for part in parts if part])


def titled(title, header, rows):
    return f"## {title}\n\n{markdown(header, rows)}"


def curves_of(cells, row):
    """Return the three curves of a row of table 1, None where there is none yet."""
    published, package, kind = ROWS[row]
    here = [cells[name][kind] if name in cells else None for name in (published, package)]
    return [PAPER_CURVES[row], *here]


def table_1(cells):
    means = {
        row: [PAPER_TABLE_1[row], *(curve and np.mean(curve) for curve in curves_of(cells, row)[1:])] for row in ROWS
    }
    plain = means["VAE, single orientation"]
    rows = [[row, *map(with_reduction, means[row], plain)] for row in ROWS]
    return titled("Table 1: mean loss over 0 to 180 degrees (reduction against the VAE)", ["model", *COLUMNS], rows)


def with_reduction(mean, of):
    if mean is None or of is None:
        return ""
    return f"{mean:.1f}" + ("" if mean == of else f" (-{1 - mean / of:.1%})")


def gap_closed(vae, avae):
    """Return the share of what the VAE loses by a turn that the AVAE wins back, at all angles but 0."""
    vae, avae = np.array(vae), np.array(avae)
    return (vae[1:] - avae[1:]) / (vae[1:] - vae[0])


def table_gap(cells):
    rows = []
    kinds = [curves_of(cells, f"{kind}, single orientation") for kind in ("VAE", "AVAE")]
    package, smooth = (cells.get(name, {}) for name in ("curve upright", "smooth curve upright"))
    for column, vae, avae in [
        *zip(COLUMNS, *kinds, strict=True),
        ("the same, turned back by the true angle", package.get("vae"), package.get("true")),
        ("digits turned by bicubic interpolation", smooth.get("vae"), smooth.get("avae")),
        ("the same, turned back by the true angle", smooth.get("vae"), smooth.get("true")),
    ]:
        if vae and avae:
            share = gap_closed(vae, avae)
            rows.append([column, f"{share.min():.1%}", f"{share.mean():.1%}", *(f"{s:.0%}" for s in share)])
    header = ["", "least", "mean", *(f"{angle}°" for angle in ANGLES[1:])]
    return titled("Share of the gap to the upright loss that the AVAE closes (single orientation)", header, rows)


def table_affine(cells):
    rows = [["the paper's figures", "", PAPER_AFFINE["vae"], PAPER_AFFINE["avae"], "-14.1%", ""]]
    for label, name, kind in (
        (COLUMNS[1], "published affine", "avae"),
        (COLUMNS[2], "affine", "avae"),
        ("the same, flat prior", "affine", "flat_prior"),
    ):
        if name in cells:
            cell = cells[name]
            share = (cell["vae"] - cell[kind]) / (cell["vae"] - cell["upright"])
            losses = [f"{cell[k]:.1f}" for k in ("upright", "vae", kind)]
            rows.append([label, *losses, f"-{1 - cell[kind] / cell['vae']:.1%}", f"{share:.1%}"])
    header = ["", "upright, VAE", "transformed, VAE", "transformed, AVAE", "reduction", "gap closed"]
    return titled("Section 4.4: turned, sheared up to 55 degrees, scaled by up to 50 %", header, rows)


def latent_means(cells, settings, training, kind):
    """Return mean and standard deviation of a loss over the seeds, per latent size."""
    found = {}
    for latent in settings.latent_sizes:
        names = [f"latent {latent} {training} {seed}" for seed in settings.latent_seeds]
        values = [cells[name][kind] for name in names if name in cells]
        if values:
            found[latent] = np.mean(values), np.std(values)
    return found


LATENT_LINES = {
    "trained upright: upright digits, VAE": ("upright", "upright_vae"),
    "trained upright: turned digits, AVAE": ("upright", "turned_avae"),
    "trained turned: turned digits, VAE": ("turned", "turned_vae"),
    "trained turned: turned digits, AVAE": ("turned", "turned_avae"),
    "trained turned, align_training: turned digits, AVAE": ("aligned", "turned_avae"),
}


def table_latent(cells, settings):
    rows = []
    for label, (training, kind) in LATENT_LINES.items():
        means = latent_means(cells, settings, training, kind)
        rows.append(
            [label, *("{:.1f} ± {:.1f}".format(*means[k]) if k in means else "" for k in settings.latent_sizes)]
        )
    title = f"Figure 4: loss against latent size ({settings.n_latent_train:,} training digits, this package)"
    return titled(title, ["", *settings.latent_sizes], rows)


def resultant_length(angles, times=1):
    return abs(np.exp(1j * times * np.asarray(angles)).mean())


def pose_lengths(poses, y):
    """Return the resultant lengths of the classes' poses per epoch, and how far 6 and 9 are apart at the end."""
    lengths = {}
    for epoch, error in sorted(poses.items()):
        for times, what in ((1, ""), (2, " of doubled angles")):
            by_class = [float(resultant_length(error[y == digit], times)) for digit in range(10)]
            lengths[f"epoch {epoch}{what}"] = by_class
    _, last = max(poses.items())
    apart = np.angle(np.exp(1j * last[y == 6]).mean() / np.exp(1j * last[y == 9]).mean(), deg=True)
    return {"lengths": lengths, "apart": float(abs(apart))}


def table_poses(cells):
    if "pose lengths" not in cells:
        return ""
    found = cells["pose lengths"]
    rows = [[label, *(f"{length:.2f}" for length in lengths)] for label, lengths in found["lengths"].items()]
    text = titled("Figures 7 and 8: resultant length of the poses per class, the turn removed", ["", *range(10)], rows)
    return text + f"\nAt the end the mean poses of 6 and 9 are {found['apart']:.0f} degrees apart.\n"


def table_classified(cells):
    names = [name for name in ("upright", "aligned") if f"classified {name}" in cells]
    rows = [[TRAINING_LABELS[n], f"{cells[f'classified {n}']['accuracy']:.3f}"] for n in names]
    title = "LogisticRegression on turned digits, fitted on the canonical training digits"
    return titled(title, ["VAE trained on digits that are", "accuracy"], rows) if rows else ""
