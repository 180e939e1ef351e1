"""Print a checksum of what ten small fits answer, to compare two commits of the package bit by bit.

Run it on both commits, in one environment, and compare what it prints::

    OMP_NUM_THREADS=1 PYTHONPATH=OTHER_CHECKOUT python tests/same_bits.py > before.txt
    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/same_bits.py > after.txt
    diff before.txt after.txt

Only public names are used, and every parameter whose default has ever changed is set. `--folder` also writes each
model there, as a pickle and as a safe file, or with `--read` reads what another commit wrote.
"""

import argparse
import hashlib
import pickle
import warnings
from pathlib import Path

import numpy as np

import sk_avae
from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

# All that had another default in some version.
STILL = {"n_restarts": 16, "n_refine": 2, "max_epochs": 3, "latent_size": 6, "random_state": 0}
SMALL = {**STILL, "hidden_layer_sizes": (32,)}

FITS = {
    "rotation, mlp, gate": {"family": "rotation", "min_gain": "auto"},
    "rigid, mlp, pad": {"family": "rigid", "pad": 3},
    "similarity, conv": {"family": "similarity", "module": "conv"},
    "linear, mlp, reflection": {"family": "linear", "allow_reflection": True},
    "affine, mlp": {"family": "affine"},
    "rotation, align_training": {"family": "rotation", "align_training": True},
    "rotation, from_vae": {"family": "rotation"},
    "rotation, gaussian, colour": {"family": "rotation", "likelihood": "gaussian", "padding": "border"},
    "rotation, warm_start": {"family": "rotation", "warm_start": True},
    "similarity, partial_fit": {"family": "similarity"},
}


def images(name):
    """Return training images and perturbed ones, small enough for a minute altogether."""
    X, _ = load_mnist_sample("train")
    X_test, _ = load_mnist_sample("test")
    rows, perturbed = X[:400], make_perturbed(X_test[:40], family="rotation", random_state=1)[0]
    if "colour" in name:

        def colour(rows):
            stack = rows.reshape(-1, 28, 28, 1)[:, ::2, ::2].astype(np.float32)
            return np.concatenate([stack, 255 - stack / 2, stack / 3], axis=3)

        return colour(rows), colour(perturbed)
    if "align_training" in name:
        rows = make_perturbed(rows, family="rotation", random_state=2)[0]
    return rows, perturbed


def fitted(name, rows):
    """Return the fitted model of a name."""
    parameters = SMALL | FITS[name]
    if "from_vae" in name:
        vae = AVAEEstimator(**parameters).fit(rows).module_
        del parameters["latent_size"]
        parameters["max_epochs"] = 30  # of the proposer
        return AVAEEstimator.from_vae(vae, image_shape=(28, 28), scale=255.0, X=rows, **parameters)
    if "partial_fit" in name:
        return AVAEEstimator(**parameters).partial_fit(rows[:200]).partial_fit(rows[200:])
    model = AVAEEstimator(**parameters).fit(rows)
    return model.fit(rows) if "warm_start" in name else model


def answers(model, rows):
    """Yield the name and the array of each answer of a model."""
    flat = rows.reshape(len(rows), -1)
    T = model.transform(rows)
    yield "transform", T
    yield from ((f"align.{name}", array) for name, array in model.align(rows).arrays().items())
    yield "score_samples", model.score_samples(rows)
    yield "negative_elbo", model.negative_elbo(rows, align=False)
    hypotheses, weights = model.transform_hypotheses(rows)
    yield from (("hypotheses", hypotheses), ("weights", weights))
    yield "encode", model.encode(rows)
    yield "reconstruct", model.reconstruct(rows)
    yield "inverse_transform", model.inverse_transform(T)
    yield from zip(("perturb", "perturb.alpha"), model.perturb(flat, 3), strict=True)
    yield "sample", model.sample(3)
    yield "alone", model.transform(rows[:1])
    # What was learned.
    yield from ((f"history.{key}", np.array([e[key] for e in model.history_])) for key in (model.history_ or [{}])[0])
    for key in ("temperature_", "min_gain_"):
        yield key, np.array(getattr(model, key), dtype=float)
    yield "pose_spread_", np.array(list(model.pose_spread_.values()), dtype=float)
    if hasattr(model, "alpha_"):
        yield "alpha_", model.alpha_


def show(name, model, rows):
    """Print a checksum of each answer."""
    for what, array in answers(model, rows):
        array = np.ascontiguousarray(array)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        print(f"{name} | {what} | {array.dtype} {array.shape} | {digest}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--read", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for number, name in enumerate(FITS):
        rows, perturbed = images(name)
        pickled, safe = ((options.folder or Path()) / f"{number}.{kind}" for kind in ("pickle", "safetensors"))
        if options.read:
            loaded = pickle.loads(pickled.read_bytes())
            own = {"module": loaded.module} if "from_vae" in name else {}
            for model in (loaded, sk_avae.load(safe, **own)):
                show(name, model, perturbed)
            continue
        model = fitted(name, rows)
        show(name, model, perturbed)
        if options.folder:
            pickled.write_bytes(pickle.dumps(model))
            sk_avae.save(model, safe)


if __name__ == "__main__":
    main()
