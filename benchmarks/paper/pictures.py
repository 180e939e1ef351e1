"""The paper's figures, drawn from the cells of `paper.py`; each returns a figure, or None without its cells."""

from functools import partial

import matplotlib as mpl
import numpy as np

from .cells import ANGLES
from .report import COLUMNS, LATENT_LINES, ROWS, curves_of, latent_means

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "0.45"
COLOURS = dict(zip(ROWS, (GREY, BLUE, ORANGE, GREEN), strict=True))
LATENT_COLOURS = dict(zip(LATENT_LINES, (GREY, BLUE, ORANGE, PURPLE, GREEN), strict=True))


def draw_curves(cells, settings, *, names):
    columns = [column for column in range(3) if any(curves_of(cells, name)[column] for name in names)]
    figure, axes = plt.subplots(1, len(columns), figsize=(4 * len(columns), 3.8), layout="constrained", squeeze=False)
    axes = axes[0]
    for ax, column in zip(axes, columns, strict=True):
        for name in names:
            curve = curves_of(cells, name)[column]
            if curve:
                ax.plot(ANGLES, curve, marker="o", markersize=4, color=COLOURS[name], label=name)
        ax.set_title(COLUMNS[column], fontsize=10)
        ax.set_xlabel("angle (degrees)")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("loss per image")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def draw_latent(cells, settings):
    lines = {label: latent_means(cells, settings, *line) for label, line in LATENT_LINES.items()}
    if not any(lines.values()):
        return None
    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for label, means in lines.items():
        if means:
            centre, spread = np.array(list(means.values())).T
            style = {"marker": "o", "markersize": 4, "capsize": 2, "color": LATENT_COLOURS[label]}
            ax.errorbar(list(means), centre, spread, label=label, **style)
    ax.set_xlabel("latent size")
    ax.set_ylabel("loss per image (nats)")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return figure


def draw_reconstructions(cells, settings, *, name, labels=()):
    if "pictures" not in cells:
        return None
    rows = {"input": "input", "vae": "VAE", "avae": "AVAE"}
    images = {kind: cells["pictures"][f"{name}_{kind}"] for kind in rows}
    n = len(images["input"])
    side = int(np.sqrt(images["input"].shape[1]))
    figure, axes = plt.subplots(3, n, figsize=(n, 3.3), layout="constrained", squeeze=False)
    for line, kind in zip(axes, rows, strict=True):
        for ax, image in zip(line, images[kind], strict=True):
            ax.imshow(image.reshape(side, side), cmap="gray", vmin=0, vmax=1)
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(rows[kind])
    for ax, label in zip(axes[0], labels, strict=False):
        ax.set_title(label, fontsize=9)
    return figure


def draw_poses(cells, settings, *, digits):
    if "poses" not in cells:
        return None
    poses, y = cells["poses"]
    figure, axes = plt.subplots(
        len(digits), len(poses), figsize=(3 * len(poses), 3 * len(digits)),
        subplot_kw={"projection": "polar"}, layout="constrained", squeeze=False,
    )  # fmt: skip
    edges = np.linspace(-np.pi, np.pi, 49)
    for line, digit in zip(axes, digits, strict=True):
        for ax, (epoch, error) in zip(line, sorted(poses.items()), strict=True):
            wrapped = (error[y == digit] + np.pi) % (2 * np.pi) - np.pi
            count, _ = np.histogram(wrapped, edges)
            ax.bar(edges[:-1], count / max(1, count.sum()), width=np.diff(edges), align="edge", color=BLUE)
            ax.set_title(f"digit {digit}, epoch {epoch}", fontsize=10)
            ax.set_yticklabels([])
    return figure


SINGLE = [row for row in ROWS if row.endswith("single orientation")]
AVAES = [row for row in ROWS if row.startswith("AVAE")]
DRAWINGS = {
    1: partial(draw_reconstructions, name="turned", labels=[f"{angle}°" for angle in ANGLES]),
    3: partial(draw_curves, names=SINGLE),
    4: draw_latent,
    5: partial(draw_curves, names=AVAES),
    6: partial(draw_reconstructions, name="affine"),
    7: partial(draw_poses, digits=(1,)),
    8: partial(draw_poses, digits=(6, 9)),
}


def save_pictures(cells, settings, folder, prefix):
    folder.mkdir(parents=True, exist_ok=True)
    for number, draw in DRAWINGS.items():
        figure = draw(cells, settings)
        if figure is not None:
            figure.savefig(folder / f"{prefix}reproduction_{number}.png", dpi=110)
            plt.close(figure)
