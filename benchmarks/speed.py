"""Speed of alignment beside the loss that it reaches, against the paper's search on the same VAE and images.

    python benchmarks/speed.py [FOLDER_WITH_IDX_FILES] [--repeats N]

One run, interleaved, medians. Rivals: the paper's search image by image (30 random angles, each refined by 30 steps of
Adam) and the authors' batched variant (30 screened, the best one refined), both on this package's ELBO. Beside them:
budgets of this package, the machine's ceiling (a large float32 matrix product), and growth with images, restarts and
pixels. Without a folder the bundled digits are used.
"""

import argparse
import copy
import math
import time

import numpy as np
import published
import torch
from common import environment, save_table

from sk_avae import AVAEEstimator
from sk_avae.affine import to_matrix
from sk_avae.alignment import AVAE
from sk_avae.datasets import fetch_mnist, load_mnist_sample, make_perturbed
from sk_avae.likelihoods import kl_divergence
from sk_avae.vae import MODULES

N_ONE_BY_ONE = 4
PARTS = ("conv", "mlp", "critic")
N_IMAGES = 1_000
N_CONV = 300  # of them, for the convolutional network
DEFAULT = "default (16 restarts at most, 2 refined)"
DENSE = "dense (360 restarts, 4 refined)"
BUDGETS = {
    DEFAULT: {},
    "1 refined": {"n_refine": 1},
    "4 refined": {"n_refine": 4},
    "no learned starts": {"learned_starts": False},
    "no learned starts, 8 restarts, 1 refined": {"learned_starts": False, "n_restarts": 8, "n_refine": 1},
    "no learned starts, 32 restarts, 4 refined": {"learned_starts": False, "n_restarts": 32, "n_refine": 4},
    DENSE: {"learned_starts": False, "n_restarts": 360, "n_refine": 4, "tol": 1e-3},
}


def negative_elbo(avae):
    """Return the loss of images at matrices, on one model that is built once."""
    model = avae._model()

    def loss(images, matrix):
        mean, log_var = model.encode(images, matrix)
        log_prob = model.likelihood.log_prob(images, model.decode(mean, matrix))
        return kl_divergence(mean, log_var) - log_prob

    return loss


def one_by_one(avae, images):
    """Search as the paper does: an image at a time, every one of 30 random angles refined; return the losses."""
    loss, generator = negative_elbo(avae), torch.Generator().manual_seed(0)
    found = []
    for image in images[:, None]:
        lowest = math.inf
        for start in math.pi * (2 * torch.rand(published.STARTS["rotation"], 1, 1, generator=generator) - 1):
            pose = start.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([pose], lr=published.LR["rotation"])
            for _ in range(published.STEPS):
                optimizer.zero_grad()
                value = loss(image, to_matrix(pose, "rotation")).sum()
                lowest = min(lowest, float(value.detach()))
                value.backward()
                optimizer.step()
        found.append(lowest)
    return np.array(found)


def batched(avae, images):
    """Search as the authors' faster variant does; return the losses."""
    loss, generator = negative_elbo(avae), torch.Generator().manual_seed(0)
    search = published.Search("rotation", published.STARTS["rotation"])
    found = []
    for some in images.split(512):
        pose = search.run(loss, some, generator)
        with torch.no_grad():
            found.append(loss(some, published.matrix_of(pose)))
    return torch.cat(found).numpy()


def timed(function, *arguments):
    start = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - start


def medians(functions, repeats):
    """Run functions in turns; return the value of each, and its median time."""
    values, times = {}, {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            values[name], seconds = timed(function)
            times[name].append(seconds)
    return values, {name: float(np.median(seconds)) for name, seconds in times.items()}


def ceiling(side=2048):
    """Return the float32 operations per second of a large matrix product."""
    a = torch.rand(side, side)
    return 2 * side**3 / min(timed(torch.mm, a, a)[1] for _ in range(5))


def operations(avae):
    """Return the operations of matrix products and convolutions in one pass of the VAE over an image."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        n_out = output[0].numel()
        if isinstance(layer, torch.nn.Linear):
            total += 2 * layer.in_features * n_out
        elif isinstance(layer, torch.nn.ConvTranspose2d):
            total += 2 * layer.weight[0].numel() * inputs[0][0].numel()
        elif isinstance(layer, torch.nn.Conv2d):
            total += 2 * layer.weight[0].numel() * n_out

    module = copy.deepcopy(avae.module_)
    for layer in module.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        module.decode(module.encode(torch.zeros(1, *avae.image_format_.frame_shape))[0])
    return total


def fitted(module, X):
    small = {"max_epochs": 8} if module == "conv" else {"max_epochs": 30}
    n = 2_000 if module == "conv" else 20_000
    return AVAEEstimator(module=module, image_shape=(40, 40), critic=False, random_state=0, **small).fit(X[:n])


def compare(avae, X, repeats):
    """Return the rows of the table for one VAE: name, ms per image, times as fast, loss, share of the ceiling."""
    images = avae._to_model(X).clone()
    # Seconds an image: a few will do.
    slow, slow_seconds = timed(one_by_one, avae, images[:N_ONE_BY_ONE])
    functions = {"the paper's search, batched": lambda: batched(avae, images)}
    for name, budget in BUDGETS.items():
        if name == DENSE and avae.module == "conv":
            continue  # minutes
        model = copy.copy(avae).set_params(**budget)
        functions[name] = lambda model=model: -model._align(X).elbo
    losses, seconds = medians(functions, repeats)
    few = {name: loss[:N_ONE_BY_ONE].mean() for name, loss in losses.items()}
    slow_ms = 1000 * slow_seconds / N_ONE_BY_ONE
    rows = [["the paper's search, image by image", f"{slow_ms:.0f}", "1", "", f"{slow.mean():.2f}"]]
    for name, loss in losses.items():
        ms = 1000 * seconds[name] / len(X)
        rows.append([name, f"{ms:.2f}", f"{slow_ms / ms:.0f}", f"{loss.mean():.2f}", f"{few[name]:.2f}"])
    return rows, 1000 * seconds[DEFAULT] / len(X)


def passes(avae, X):
    """Return the passes of the VAE that alignment takes per image: (without, with gradient)."""
    counts = {False: 0, True: 0}
    elbo = AVAE.elbo

    def counted(self, images, *args, **kwargs):
        counts[torch.is_grad_enabled()] += len(images)
        return elbo(self, images, *args, **kwargs)

    AVAE.elbo = counted
    try:
        avae._align(X)
    finally:
        AVAE.elbo = elbo
    return counts[False] / len(X), counts[True] / len(X)


def share_of_ceiling(avae, X, ms):
    """Say which share of the machine's matrix products per second alignment reaches, and in how many passes."""
    plain, with_gradient = passes(avae, X)
    # A gradient by the pixels takes the products of one pass more. What finds the starts is not counted.
    share = (plain + 2 * with_gradient) * operations(avae) / (ms / 1000) / ceiling()
    return f"{plain:.1f} passes per image and {with_gradient:.1f} with a gradient, {share:.0%} of the ceiling"


def with_critic(X_train, X, X_stretched, repeats):
    """Return the rows of the table for all defaults, critic included."""
    rows = []
    for family, images in (("rotation", X), ("affine", X_stretched)):
        avae = AVAEEstimator(family=family, image_shape=(40, 40), random_state=0).fit(X_train[:20_000])
        models = {
            name: copy.copy(avae).set_params(**BUDGETS[name]) for name in (DEFAULT, "1 refined", "4 refined", DENSE)
        }
        functions = {
            name: lambda model=model, images=images: -model._align(images).elbo for name, model in models.items()
        }
        losses, seconds = medians(functions, repeats)
        for name, loss in losses.items():
            ms = f"{1000 * seconds[name] / len(images):.2f}"
            rows.append([f"mlp, critic, {family}", name, ms, "", f"{loss.mean():.2f}", ""])
    return rows


def growth(avae, X):
    """Return ms per image and restart for more images, restarts and pixels."""
    rows = []
    for n in (250, 500, 1_000):
        rows.append([f"{n:,} images", f"{1000 * timed(avae._align, X[:n])[1] / n:.2f}"])
    for n_restarts in (16, 32, 64):
        model = copy.copy(avae).set_params(n_restarts=n_restarts, learned_starts=False)
        rows.append([f"{n_restarts} restarts, none learned", f"{1000 * timed(model._align, X[:500])[1] / 500:.2f}"])
    for pad in (0, 10, 20):
        model = AVAEEstimator(image_shape=(40, 40), pad=pad, max_epochs=1, critic=False, random_state=0).fit(X[:500])
        side = 40 + 2 * pad
        rows.append([f"{side} x {side} pixels", f"{1000 * timed(model._align, X[:500])[1] / 500:.2f}"])
    return rows


def digits(folder):
    """Return training digits, turned test digits, and ones that are stretched and shifted too; 40 x 40 pixels."""
    load = load_mnist_sample if folder is None else lambda subset: fetch_mnist(folder, subset=subset)
    padded = []
    for subset in ("train", "test"):
        stack = load(subset)[0][:60_000].reshape(-1, 28, 28)
        padded.append(np.pad(stack, ((0, 0), (6, 6), (6, 6))).reshape(len(stack), -1))
    some = padded[1][:N_IMAGES]
    ranges = dict.fromkeys(("log_scale_x", "log_scale_y"), math.log(1.8))
    stretched, _ = make_perturbed(some, family="affine", ranges=ranges, random_state=0)
    return padded[0], make_perturbed(some, random_state=0)[0], stretched


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="MNIST's IDX files; the bundled sample without")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="part of the table")
    args = parser.parse_args()
    X_train, X_turned, X_stretched = digits(args.folder)
    rows, notes = [], []
    for module in [part for part in args.only if part in MODULES]:
        avae = fitted(module, X_train)
        X = X_turned[:N_CONV] if module == "conv" else X_turned
        table, ms = compare(avae, X, args.repeats)
        rows += [[module, *row] for row in table]
        notes.append(f"{module}, default budget: {share_of_ceiling(avae, X, ms)}.")
    if "critic" in args.only:
        rows += with_critic(X_train, X_turned, X_stretched, args.repeats)
    if "mlp" in args.only:
        growths = [f"{what}: {ms} ms per image" for what, ms in growth(avae, X_turned)]
        notes.append("Growth of the mlp: " + "; ".join(growths) + ".")
    header = ["VAE", "search", "ms per image", "times as fast", "loss", f"loss of the first {N_ONE_BY_ONE}"]
    notes += [
        f"Loss: mean negative ELBO in nats of turned digits ({N_CONV} for conv); no critic, but where one is named. "
        "Affine: also shear 0.5, scales 1/1.8 to 1.8, shifts 0.3.",
        "The ceiling is that of a large float32 matrix product.",
        environment(0, n_train=len(X_train), n_test=N_IMAGES, threads=torch.get_num_threads(), repeats=args.repeats),
    ]
    name = "speed" if len(args.only) == len(PARTS) else "speed_" + "_".join(args.only)
    save_table(name, "Speed of alignment: rotation, 40 x 40 digits", header, rows, notes)


if __name__ == "__main__":
    main()
