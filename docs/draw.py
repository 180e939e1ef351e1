"""Draws the pictures of "How it works" and "When not to use it": `make pictures`, about two minutes on two cores."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from sk_avae import AVAEEstimator, ELBOProfileDisplay
from sk_avae.datasets import load_mnist_sample, make_perturbed

IMAGES = Path(__file__).parent / "images"
SIDE = 28


def grid(rows, columns, width=7.5):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, width / columns * rows * 1.12), layout="constrained", squeeze=False
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    return figure, axes


def show(ax, image, title="", below=""):
    ax.imshow(image.reshape(SIDE, SIDE), cmap="gray", vmin=0, vmax=255)
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(below, fontsize=9)


def save(figure, name):
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    plt.close(figure)


def posed(image, angle, **others):
    """Return one image rotated by an angle in degrees, and shifted where asked."""
    ranges = {"angle": 2 * (np.deg2rad(angle),), **{name: 2 * (value,) for name, value in others.items()}}
    return make_perturbed(image[None], family="rigid" if others else "rotation", ranges=ranges)[0]


def draw_vae(avae, image):
    """Draw an image at six angles, what the VAE makes of it as it comes, and the ELBO."""
    angles = (0, 30, 60, 90, 135, 180)
    figure, axes = grid(2, len(angles))
    for column, angle in zip(axes.T, angles, strict=True):
        rotated = posed(image, angle)
        elbo = -avae.negative_elbo(rotated, align=False)[0]
        show(column[0], rotated, f"{angle}°")
        as_it_came = avae.module_.decode(avae.module_.encode(avae.aligner_.to_model(rotated))[0]).sigmoid()
        show(column[1], 255 * as_it_came.detach().numpy(), below=f"ELBO {elbo:.0f}")
    axes[0, 0].set_ylabel("input", fontsize=9)
    axes[1, 0].set_ylabel("VAE", fontsize=9)
    save(figure, "stage_1_vae")


def draw_profile(avae, rotated):
    """Draw the ELBO over the angle, with starts and hypotheses, beside the image."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9), width_ratios=(1, 2.4), layout="constrained")
    left.set(xticks=[], yticks=[])
    show(left, rotated, "input")
    ELBOProfileDisplay.from_estimator(avae, rotated, ax=right)
    save(figure, "stage_2_search")


def draw_choice(avae, rotated, name):
    """Draw images beside the canonical images of their two best hypotheses, and how probable each is."""
    result = avae.align(rotated)
    images, _ = avae.transform_hypotheses(rotated)
    figure, axes = grid(3, len(rotated))
    for k, column in enumerate(axes.T):
        show(column[0], rotated[k])
        for rank in range(2):
            if result.hypothesis_weight[k, rank] > 0:
                show(column[1 + rank], images[k, rank], below=f"{result.hypothesis_weight[k, rank]:.2f}")
            else:
                column[1 + rank].axis("off")
    for ax, title in zip(axes[:, 0], ("input", "first", "second"), strict=True):
        ax.set_ylabel(title, fontsize=9)
    save(figure, name)


def draw_way(avae, rotated):
    """Draw input, canonical image, reconstruction there, and reconstruction in the pose of the input."""
    T = avae.transform(rotated)
    Z = avae.encode(rotated)
    back = avae.decode(Z)
    Z[:, avae.latent_size :] = 0
    rows = {"input": rotated, "canonical": T[:, :-1], "decoded": avae.decode(Z), "and back": back}
    figure, axes = grid(4, len(rotated))
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(row, images, strict=True):
            show(ax, image)
        row[0].set_ylabel(title, fontsize=9)
    save(figure, "stage_3_way")


def draw_before_after(avae, images, titles, name):
    """Draw images above what comes out, with the confidence below."""
    result, canonical = avae.align(images), avae.transform(images)[:, : SIDE * SIDE]
    figure, axes = grid(2, len(images))
    for k, column in enumerate(axes.T):
        show(column[0], images[k], titles[k])
        show(column[1], canonical[k], below=f"confidence {result.confidence[k]:.2f}")
    axes[0, 0].set_ylabel("input", fontsize=9)
    axes[1, 0].set_ylabel("canonical", fontsize=9)
    save(figure, name)


def errors(found, true):
    """Return by how many degrees angles are off, from -180 to 180."""
    return (np.rad2deg(found - true) + 180) % 360 - 180


def draw_half_turns(avae, sixes, nines):
    """Draw those of some rotated and shifted sixes and nines that come out half a turn off."""
    rows, alpha = make_perturbed(np.concatenate([sixes, nines]), family="rigid", random_state=0)
    wrong = np.flatnonzero(np.abs(errors(avae.align(rows).alpha[:, 0], alpha[:, 0])) > 135)
    print(f"{len(wrong)} of {len(rows)} sixes and nines half a turn off")
    some = wrong[:: len(wrong) // 6][:6]
    draw_before_after(avae, rows[some], ["a 6" if k < len(sixes) else "a 9" for k in some], "failure_half_turn")


def draw_off_centre(aligners, X):
    """Draw the share of right poses against how far digits are off centre, for two families."""
    pixels = np.arange(7)
    figure, ax = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
    for (name, avae), style in zip(aligners.items(), ("o-", "s--"), strict=True):
        shares = []
        for shift in pixels:
            ranges = {"tx": 2 * (2 * shift / SIDE,), "ty": (0, 0)}
            moved, alpha = make_perturbed(X, family="rigid", ranges=ranges, random_state=0)
            shares.append(np.mean(np.abs(errors(avae.align(moved).alpha[:, 0], alpha[:, 0])) < 20))
        print(name, np.round(shares, 2))
        ax.plot(pixels, shares, style, label=f'family="{name}"')
    ax.set(xlabel=f"pixels off centre, of {SIDE}", ylabel="share of right poses", ylim=(0, 1))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    save(figure, "failure_off_centre")


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    X, _ = load_mnist_sample("train")
    test, labels = load_mnist_sample("test")
    avae = AVAEEstimator(max_epochs=30, random_state=0).fit(X[:3000])
    by_label = {digit: test[labels == digit] for digit in range(10)}
    draw_vae(avae, by_label[4][2])
    draw_profile(avae, posed(by_label[7][3], 110))
    some = np.concatenate([by_label[digit][2:3] for digit in (2, 3, 4, 5, 7)])
    draw_way(avae, make_perturbed(some, random_state=1)[0])
    draw_choice(
        avae,
        make_perturbed(np.concatenate([by_label[d][4:5] for d in (4, 6, 9, 8, 0, 7)]), random_state=2)[0],
        "stage_4_choice",
    )
    rigid = AVAEEstimator(family="rigid", max_epochs=30, random_state=0).fit(X[:3000])
    draw_half_turns(rigid, by_label[6], by_label[9])
    draw_off_centre({"rotation": avae, "rigid": rigid}, test[::4])


if __name__ == "__main__":
    main()
