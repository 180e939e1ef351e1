"""How fast is alignment, beside the loss that it reaches, against the paper's search on the same VAE and images?

    python benchmarks/speed.py [FOLDER_WITH_IDX_FILES] [--repeats N] [--only PART ...]

One run, in turns, medians. Rivals: the paper's search image by image (30 random angles, each refined by 30 steps of
Adam) and the authors' batched variant (30 screened, the best one refined), both on this package's ELBO. Beside them:
budgets of this package, the machine's ceiling (a large float32 matrix product), and growth with images, restarts and
pixels. Without a folder the bundled digits are used. The table goes to results/speed.md (--only: speed_PART.md).
"""

import copy
import math

import numpy as np
import torch
from shared.command import parser
from shared.digits import load_digits
from shared.paper_search import LR, STARTS, STEPS, PaperSearch, matrix_of, negative_elbo
from shared.tables import environment, save_table
from shared.timing import medians, timed
from torch.utils.flop_counter import FlopCounterMode

from sk_avae import AVAEEstimator
from sk_avae.datasets import make_perturbed
from sk_avae.model.affine import to_matrix
from sk_avae.model.vae import MODULES

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


def one_by_one(loss, images):
    """Search as the paper does: an image at a time, every one of 30 random angles refined; return the losses."""
    found, generator = [], torch.Generator().manual_seed(0)
    for image in images[:, None]:
        lowest = math.inf
        for start in math.pi * (2 * torch.rand(STARTS["rotation"], 1, 1, generator=generator) - 1):
            pose = start.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([pose], lr=LR["rotation"])
            for _ in range(STEPS):
                optimizer.zero_grad()
                value = loss(image, to_matrix(pose, "rotation")).sum()
                lowest = min(lowest, float(value.detach()))
                value.backward()
                optimizer.step()
        found.append(lowest)
    return np.array(found)


def batched(loss, images):
    """Search as the authors' faster variant does; return the losses."""
    found, generator = [], torch.Generator().manual_seed(0)
    search = PaperSearch("rotation", STARTS["rotation"])
    for some in images.split(512):
        pose = search.run(loss, some, generator)
        with torch.no_grad():
            found.append(loss(some, matrix_of(pose)))
    return torch.cat(found).numpy()


def ceiling(side=2048):
    """Return the float32 operations per second of a large matrix product."""
    a = torch.rand(side, side)
    return 2 * side**3 / min(timed(torch.mm, a, a)[1] for _ in range(5))


def operations(function, *args):
    """Return the operations of matrix products and convolutions that a function takes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args)
    return counter.get_total_flops()


def fitted(module, X):
    n, max_epochs = (2_000, 8) if module == "conv" else (20_000, 30)
    parameters = {"module": module, "image_shape": (40, 40), "critic": False, "random_state": 0}
    return AVAEEstimator(max_epochs=max_epochs, **parameters).fit(X[:n])


def by_budget(avae, X, names):
    """Return a function per budget that aligns images and returns their losses."""
    models = {name: copy.copy(avae).set_params(**BUDGETS[name]) for name in names}
    return {name: lambda model=model: -model.align(X).elbo for name, model in models.items()}


def compare(avae, X, repeats):
    """Return the rows of the table for one VAE: name, ms per image, times as fast, loss, share of the ceiling."""
    aligner = avae.aligner_
    images, loss = aligner.to_model(X), negative_elbo(aligner.model)
    # Seconds an image: a few will do.
    slow, slow_seconds = timed(one_by_one, loss, images[:N_ONE_BY_ONE])
    # The convolutional network would need minutes for a dense search.
    left_out = {DENSE} if avae.module == "conv" else set()
    names = [name for name in BUDGETS if name not in left_out]
    functions = {"the paper's search, batched": lambda: batched(loss, images), **by_budget(avae, X, names)}
    losses, seconds = medians(functions, repeats)
    slow_ms = 1000 * slow_seconds / N_ONE_BY_ONE
    rows = [["the paper's search, image by image", f"{slow_ms:.0f}", "1", "", f"{slow.mean():.2f}"]]
    for name, found in losses.items():
        ms = 1000 * seconds[name] / len(X)
        few = found[:N_ONE_BY_ONE].mean()
        rows.append([name, f"{ms:.2f}", f"{slow_ms / ms:.0f}", f"{found.mean():.2f}", f"{few:.2f}"])
    return rows, 1000 * seconds[DEFAULT] / len(X)


def share_of_ceiling(avae, X, ms):
    """Say which share of the machine's matrix products per second alignment reaches, and how many it takes."""
    vae, blank = avae.module_, torch.zeros(1, *avae.image_format_.frame_shape)
    one_pass = operations(lambda: vae.decode(vae.encode(blank)[0]))
    per_image = operations(avae.align, X) / len(X)
    share = per_image / (ms / 1000) / ceiling()
    return f"the products of {per_image / one_pass:.1f} passes of the VAE per image, {share:.0%} of the ceiling"


def with_critic(X_train, X, X_stretched, repeats):
    """Return the rows of the table for all defaults, critic included."""
    rows = []
    for family, images in (("rotation", X), ("affine", X_stretched)):
        avae = AVAEEstimator(family=family, image_shape=(40, 40), random_state=0).fit(X_train[:20_000])
        losses, seconds = medians(by_budget(avae, images, (DEFAULT, "1 refined", "4 refined", DENSE)), repeats)
        for name, loss in losses.items():
            ms = f"{1000 * seconds[name] / len(images):.2f}"
            rows.append([f"mlp, critic, {family}", name, ms, "", f"{loss.mean():.2f}", ""])
    return rows


def growth(avae, X):
    """Say how many ms per image more images, restarts and pixels take."""
    runs = [(f"{n:,} images", avae, n) for n in (250, 500, 1_000)]
    for n_restarts in (16, 32, 64):
        model = copy.copy(avae).set_params(n_restarts=n_restarts, learned_starts=False)
        runs.append((f"{n_restarts} restarts, none learned", model, 500))
    for pad in (0, 10, 20):
        model = AVAEEstimator(image_shape=(40, 40), pad=pad, max_epochs=1, critic=False, random_state=0).fit(X[:500])
        side = 40 + 2 * pad
        runs.append((f"{side} x {side} pixels", model, 500))
    return [f"{what}: {1000 * timed(model.align, X[:n])[1] / n:.2f} ms per image" for what, model, n in runs]


def read_digits(folder):
    """Return training digits, turned test digits, and ones that are stretched and shifted too; 40 x 40 pixels."""
    digits = load_digits(folder, side=40, n_test=N_IMAGES)
    (X_train, _), (X, _) = digits["train"], digits["test"]
    ranges = dict.fromkeys(("log_scale_x", "log_scale_y"), math.log(1.8))
    stretched, _ = make_perturbed(X, family="affine", ranges=ranges, random_state=0)
    return X_train, make_perturbed(X, random_state=0)[0], stretched


def main():
    command = parser(__doc__, folder="optional")
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="part of the table")
    args = command.parse_args()
    X_train, X_turned, X_stretched = read_digits(args.folder)
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
        notes.append("Growth of the mlp: " + "; ".join(growth(avae, X_turned)) + ".")
    header = ["VAE", "search", "ms per image", "times as fast", "loss", f"loss of the first {N_ONE_BY_ONE}"]
    notes += [
        f"Loss: mean negative ELBO in nats of turned digits ({N_CONV} for conv); no critic, but where one is named. "
        "Affine: also shear 0.5, scales 1/1.8 to 1.8, shifts 0.3.",
        "The ceiling is that of a large float32 matrix product.",
        environment(0, n_train=len(X_train), n_test=N_IMAGES, threads=torch.get_num_threads(), repeats=args.repeats),
    ]
    name = "speed" if len(args.only) == len(PARTS) else "speed_" + "_".join(args.only)
    save_table(args.output / name, "Speed of alignment: rotation, 40 x 40 digits", header, rows, notes)


if __name__ == "__main__":
    main()
