"""Hostile calls: every public method with arguments that nobody should give, drawn from a seed so that each repeats.

A call may end in a result without NaN, or in one of the documented errors; in no other way. `tests/test_hostile.py`
makes a few of them, `make soak` as many as you like.
"""

import copy
import dataclasses
import hashlib
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.svm import LinearSVC
from torch import nn

from sk_avae import (
    AffineCanonicalizer,
    AVAEEstimator,
    CanonicalizedClassifier,
    ExpertSettings,
    datasets,
    load,
    save,
    scoring,
)
from sk_avae.affine import FAMILIES
from sk_avae.vae import MLPVAE

# What a public call may raise; NotFittedError is a ValueError. Methods that an object lacks are AttributeErrors.
DOCUMENTED = (ValueError, TypeError)
DOCUMENTED_OF = {
    "fetch_mnist": (*DOCUMENTED, OSError),
    "save": (*DOCUMENTED, OSError),
    "load": (*DOCUMENTED, OSError),
    "CanonicalizedClassifier.predict_proba": (*DOCUMENTED, AttributeError),
    "CanonicalizedClassifier.predict_log_proba": (*DOCUMENTED, AttributeError),
    "CanonicalizedClassifier.decision_function": (*DOCUMENTED, AttributeError),
    "AffineCanonicalizer.inverse_transform": (*DOCUMENTED, AttributeError),
}
# What a public call may warn of: poses that stopped at max_iter, a column vector of labels; little to learn, names of
# columns that were there or not in `fit`, pixels in other units than there.
# The last of parameters that moved to `ExpertSettings`.
DOCUMENTED_WARNINGS = (ConvergenceWarning, DataConversionWarning, FutureWarning)
DOCUMENTED_PHRASES = (
    *("learns little", "valid feature names", "has feature names", "in other units", "from 64 or more that are not"),
    *("Without effect", "has no effect", "for other poses", "have no pose", "far outside", "farther outside"),
    "inverted against",
)
LONGEST_CALL = 30  # seconds


# ---------------------------------------------------------------- images
def _spoiled(X: Any, value: Any) -> Any:
    X = X.copy() if np.can_cast(np.asarray(value).dtype, X.dtype) else X.astype(np.asarray(value).dtype)
    X[tuple(np.array(X.shape) // 2)] = value
    return X


VALUES: dict[str, Callable[[Any], Any]] = {
    "float64": lambda X: X.astype(float),
    "float32": lambda X: X.astype(np.float32),
    "float16": lambda X: X.astype(np.float16),
    "longdouble": lambda X: X.astype(np.longdouble),
    "big-endian": lambda X: X.astype(">f8"),
    "uint8": lambda X: np.abs(X).astype(np.uint8),
    "int8": lambda X: X.astype(np.int8),
    "bool": lambda X: X > 3,
    "int64, huge": lambda X: _spoiled(X.astype(np.int64), np.iinfo(np.int64).max),
    "int64, smallest": lambda X: _spoiled(X.astype(np.int64), np.iinfo(np.int64).min),
    "uint64, huge": lambda X: _spoiled(np.abs(X).astype(np.uint64), np.iinfo(np.uint64).max),
    "NaN": lambda X: _spoiled(X.astype(float), np.nan),
    "inf": lambda X: _spoiled(X.astype(float), np.inf),
    "float16 inf": lambda X: _spoiled(X.astype(np.float16), -np.inf),
    "1e30": lambda X: _spoiled(X.astype(float), 1e30),
    "1e300": lambda X: _spoiled(X.astype(float), -1e300),
    "all 1e300": lambda X: X.astype(float) * 1e300,
    "largest double": lambda X: np.where(X > 3, np.finfo(float).max, -np.finfo(float).max),
    "largest float32": lambda X: np.where(X > 3, np.finfo(np.float32).max, np.finfo(np.float32).min),
    "subnormal": lambda X: X * 5e-324,
    "subnormal float32": lambda X: X.astype(np.float32) * np.float32(1e-45),
    "tiny range far from 0": lambda X: 1e9 + 1e-6 * X,
    "negative": lambda X: -1.0 * X,
    "negative zero": lambda X: X * -0.0,
    "constant": lambda X: np.full(X.shape, 7.5),
    "one pixel": lambda X: _spoiled(np.zeros(X.shape), 1.0),
    "complex": lambda X: X + 1j,
    "words": lambda X: np.full(X.shape, "ink"),
    "numbers as words": lambda X: X.astype(str),
    "bytes": lambda X: np.full(X.shape, b"\xff"),
    "objects": lambda X: np.full(X.shape, object()),
    "numbers as objects": lambda X: X.astype(object),
    "None among objects": lambda X: _spoiled(X.astype(object), None),
    "huge integers as objects": lambda X: _spoiled(X.astype(object), 10**400),
    "dates": lambda X: X.astype(int).astype("datetime64[D]"),
    "durations": lambda X: X.astype(int).astype("timedelta64[s]"),
    "records": lambda X: X.astype([("ink", float)]),
}

SHAPES: dict[str, Callable[[Any], Any]] = {
    "stack": lambda X: X.reshape(len(X), -1, 8),
    "stack with a channel": lambda X: X.reshape(len(X), -1, 8, 1),
    "channels first": lambda X: X.reshape(len(X), 1, -1, 8),
    "five dimensions": lambda X: X.reshape(len(X), -1, 8, 1, 1),
    "flat": lambda X: X.ravel(),
    "one image": lambda X: X[0],
    "one row": lambda X: X[:1],
    "0-d": lambda X: X.reshape(-1)[0],
    "0-d array": lambda X: np.asarray(X.reshape(-1)[0]),
    "no rows": lambda X: X[:0],
    "no columns": lambda X: X[:, :0],
    "one column": lambda X: X[:, :1],
    "a column more": lambda X: np.hstack([X, X[:, :1]]),
    "a column less": lambda X: X[:, :-1],
    "no images in a stack": lambda X: X[:0].reshape(0, 8, -1),
    "transposed": lambda X: X.T,
}


class _Subclass(np.ndarray):
    """An array of a class of its own."""


def _read_only(X: Any, _: Path) -> Any:
    X = np.array(X)
    X.flags.writeable = False
    return X


def _memory_map(X: Any, folder: Path) -> Any:
    np.save(folder / "images.npy", X, allow_pickle=True)
    return np.load(folder / "images.npy", mmap_mode="r" if np.asarray(X).dtype != object else None, allow_pickle=True)


CONTAINERS: dict[str, Callable[[Any, Path], Any]] = {
    "list": lambda X, _: np.asarray(X).tolist(),
    "tuple": lambda X, _: tuple(np.atleast_1d(X)),
    "ragged": lambda X, _: [*np.atleast_2d(X).tolist(), [0.0]],
    "deep": lambda X, _: [[[[[X]]]]],
    "data frame": lambda X, _: pd.DataFrame(X),
    "data frame with missing": lambda X, _: pd.DataFrame(X).convert_dtypes().mask(np.asarray(X) == X.flat[0]),
    "categories": lambda X, _: pd.DataFrame(X).astype("category"),
    "named columns": lambda X, _: pd.DataFrame(X).rename(columns="p{}".format),
    "mixed names": lambda X, _: pd.DataFrame(X).rename(columns={0: "zero"}),
    "series": lambda X, _: pd.Series(list(X)),
    "sparse": lambda X, _: scipy.sparse.csr_array(X),
    "sparse matrix": lambda X, _: scipy.sparse.coo_matrix(X),
    "masked": lambda X, _: np.ma.masked_array(X, mask=np.asarray(X) == np.asarray(X).flat[0]),
    "matrix": lambda X, _: np.asmatrix(X),
    "subclass": lambda X, _: np.asarray(X).view(_Subclass),
    "tensor": lambda X, _: torch.as_tensor(np.array(X)),
    "read-only": _read_only,
    "memory map": _memory_map,
    "fortran": lambda X, _: np.asfortranarray(X),
    "backwards": lambda X, _: X[::-1][::-1].repeat(2, axis=0)[::2],
    "one row, many times": lambda X, _: np.broadcast_to(X[:1], X.shape),
    "iterator": lambda X, _: iter(X),
    "dict": lambda X, _: {"X": X},
    "set": lambda X, _: set(np.ravel(X).tolist()),
    "none": lambda X, _: None,
    "word": lambda X, _: "images",
    "function": lambda X, _: len,
    "type": lambda X, _: np.ndarray,
}

# Anything, for any argument. A number of a billion is a wish, not an error; one that no machine can count to is.
ANYTHING: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, -1, 0.5, 1.0, 2.5, -0.5, 1e-300, 1e30, -1e30, float("nan"), float("inf")),
    *(-float("inf"), 10**30, -(10**30), 2**63, 1j, "", "auto", "mlp", "background", "x" * 1000, "\0", b"auto"),
    *((), [], {}, set(), (1,), (8, 8), (8, 8, 1), (-8, -8), (8, float("nan")), ("a", "b"), [None], {"angle": None}),
    *({"angle": 0.1}, {"angle": (1, 0)}, {"tx": -1.0}, {1: 2}, object(), object, len, lambda: None, np.zeros(3)),
    *(np.zeros((2, 2)), np.float16(2), np.int8(2), np.bool_(True), np.str_("mlp"), np.datetime64("2020-01-01")),
    *(np.array(2), np.ma.masked, pd.NA, torch.zeros(2), torch.tensor(2), nn.ReLU(), nn.ReLU, Exception("x")),
    *(range(3), slice(2), Path("nowhere"), "rotation", "affine", "cpu", "cuda:7", "meta", "gaussian", "reflect"),
    *("nearest", "train", np.random.default_rng(0), np.nan, "pandas"),
)

# What makes sense, so that one wrong argument meets right ones, and wrong combinations of right ones come up.
SENSIBLE: dict[str, tuple[Any, ...]] = {
    "latent_size": (1, 2, np.int64(3)),
    "family": tuple(FAMILIES),
    "n_restarts": (1, 5),
    "n_refine": (1, 3),
    "max_iter": (0, 5),
    "alpha_prior": ("auto", None, {"angle": 0}, {"angle": 0.2}),
    "allow_reflection": (True, False),
    "min_gain": (0, 1.5, float("inf"), "auto"),
    "align_training": (True, False),
    "module": ("mlp", "conv", MLPVAE),
    "hidden_layer_sizes": ((), [4], (8, 3)),
    "likelihood": ("auto", "bernoulli", "gaussian"),
    "image_shape": (None, (8, 8), (8, 8, 1), (4, 16), (1, 64), (64, 1), (4, 4, 4)),
    "pad": (0, 1, 4),
    "padding": ("auto", "background", "border", "reflect"),
    "rescale": (True, False, "image"),
    "resolution": (None, "auto", 8, 32),
    "missing_values": ("error", "ignore", "keep"),
    "max_epochs": (1, 2),
    "batch_size": (1, 7, 1000),
    "lr": (1e-3, 1e-8),
    "early_stopping": (True, False),
    "validation_fraction": (None, 0.5, 0.01, 0.99),
    "random_state": (None, 0, 2**32, np.random.RandomState(0)),
    "interpolation": ("nearest", "bilinear", "bicubic"),
    "ranges": (None, {}, {"angle": 0.5}, {"angle": (0, 1)}),
    "background": ("auto", 0, 255.0),
}

QUICK = ExpertSettings(max_iter=4)

# Numbers of these cost memory or time in proportion: those that are merely large are left out.
_SEARCH = ("family", "n_restarts", "n_refine", "max_iter", "tol", "alpha_prior", "allow_reflection", "min_gain")


class Call(NamedTuple):
    """A call with its name, what is odd about it, and the object whose state it must not spoil."""

    target: str
    what: str
    run: Callable[[], Any]
    subject: Any


class Calls:
    """Hostile calls by number: the same number is the same call.

    Parameters
    ----------
    folder : Path
        For memory maps and broken files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        X, y = load_digits(return_X_y=True)
        self.X, self.y = X[:30], y[:30]
        make = AVAEEstimator(
            2,
            hidden_layer_sizes=(8,),
            max_epochs=1,
            n_restarts=4,
            n_refine=2,
            expert=QUICK,
            random_state=0,
        )
        with warnings.catch_warnings(action="ignore"):
            avae = make.fit(self.X)
            colour = copy.deepcopy(make).set_params(
                family="affine", likelihood="gaussian", pad=2, image_shape=(4, 4, 4), allow_reflection=True
            )
            self.subjects = {
                "AVAEEstimator": (
                    avae,
                    colour.fit(self.X),
                    copy.deepcopy(make).set_params(family="similarity").fit(pd.DataFrame(self.X).rename(columns=str)),
                    AVAEEstimator(max_epochs=1, expert=QUICK),
                ),
                "AffineCanonicalizer": (
                    AffineCanonicalizer(make).fit(self.X.reshape(-1, 8, 8)),
                    AffineCanonicalizer(colour, append_alpha=True).fit(self.X),
                    AffineCanonicalizer(append_alpha=True),
                ),
                "CanonicalizedClassifier": (
                    CanonicalizedClassifier(None, make).fit(self.X, self.y),
                    CanonicalizedClassifier(LinearSVC(), make).fit(self.X, self.y),
                    CanonicalizedClassifier(estimator=make),
                ),
            }
        self.files = [self._damaged(i) for i in range(8)]
        self.model = folder / "model.safetensors"
        save(avae, self.model)

    def __getitem__(self, number: int) -> Call:
        draw = random.Random(number)
        target = draw.choice([*self.METHODS])
        return self.METHODS[target](self, draw, target)

    # ------------------------------------------------------------ arguments
    def images(self, draw: random.Random, X: Any = None) -> tuple[Any, str]:
        """Return images, or something else in their place, and a name for it."""
        X = self.X[: draw.choice([1, 3, 20])] if X is None else X
        names = []
        for kind, wanted in ((VALUES, 0.5), (SHAPES, 0.15), (CONTAINERS, 0.25)):
            if draw.random() >= wanted:
                continue
            name = draw.choice([*kind])
            try:
                with warnings.catch_warnings(action="ignore"):
                    X = kind[name](X, self.folder) if kind is CONTAINERS else kind[name](X)  # type: ignore[call-arg]
                names.append(name)
            except Exception:
                continue  # no such images: a frame of five dimensions
        return X, " ".join(names) or "as it is"

    def parameters(self, draw: random.Random, names: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        """Return one to three parameters, most of them wrong."""
        chosen = draw.sample(names, min(len(names), draw.choice([1, 1, 2, 3])))
        values = {
            name: draw.choice(SENSIBLE[name]) if name in SENSIBLE and draw.random() < 0.6 else draw.choice(ANYTHING)
            for name in chosen
        }
        return values, ", ".join(f"{name}={_short(value)}" for name, value in values.items())

    def _damaged(self, i: int) -> Path:
        """Return a folder with files of MNIST that are not what they should be."""
        folder = self.folder / f"mnist{i}"
        folder.mkdir()
        images = b"\0\0\x08\x03" + np.array([2, 3, 3], ">u4").tobytes() + bytes(18)
        labels = b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + bytes(2)
        contents = [
            b"",
            images[:-1],
            images[:7],
            b"\0\0\x0d\x03" + images[4:],
            labels,
            images + b"\0",
            images,
            b"\x1f\x8b",
        ]
        (folder / "train-images-idx3-ubyte").write_bytes(contents[i])
        suffix = ".gz" if i == 7 else ""
        (folder / f"train-labels-idx1-ubyte{suffix}").write_bytes(labels if i != 5 else contents[0])
        return folder

    def _subject(self, draw: random.Random, target: str) -> tuple[Any, str]:
        """Return a copy of a subject, now and then with a parameter changed after `fit`."""
        name = target.split(".")[0]
        *fitted, unfitted = self.subjects[name]
        subject = copy.deepcopy(draw.choice(fitted) if draw.random() < 0.95 else unfitted)
        if name == "AVAEEstimator" and draw.random() < 0.3:
            parameters, what = self.parameters(draw, _SEARCH)
            return subject.set_params(**parameters), f" after {what}"
        return subject, ""

    # ------------------------------------------------------------ calls
    def _of_images(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, target)
        X, what = self.images(draw)
        method = target.split(".")[1]
        return Call(target, what + after, lambda: getattr(subject, method)(X), subject)

    def _align(self, draw: random.Random, target: str) -> Call:
        call = self._of_images(draw, target)
        return call._replace(run=lambda: (result := call.run(), result.to_frame()))

    def _negative_elbo(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, target)
        (X, what), align = self.images(draw), draw.choice([True, False, draw.choice(ANYTHING)])
        return Call(target, f"{what}, align={_short(align)}{after}", lambda: subject.negative_elbo(X, align), subject)

    def _warp(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, target)
        sizes = [(3, 8, 8), (3, 16, 16), (3, 8, 8, 2), (3, 4, 4, 4), (3, 4, 9), (0, 8, 8), (3, 64)]
        X, what = self.images(draw, np.random.default_rng(draw.randrange(2**32)).normal(size=draw.choice(sizes)))
        alpha = draw.choice([np.zeros((3, draw.choice([1, 4, 7]))), np.full((3, 1), 400.0), draw.choice(ANYTHING)])
        names = ("interpolation", "background")
        how, said = self.parameters(draw, names)
        return Call(target, f"{what}, {_short(alpha)}, {said}{after}", lambda: subject.warp(X, alpha, **how), subject)

    def _into(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, target)
        X, what = self.images(draw)
        rows = len(X) if isinstance(X, np.ndarray) and X.ndim else 3
        shape = (rows, draw.choice([65, 68, 71, 64]))
        out = draw.choice([np.empty(shape, draw.choice(["f4", "f8", "f2", "i4", "c8", "O"])), draw.choice(ANYTHING)])
        return Call(target, f"{what}, out={_short(out)}{after}", lambda: subject.transform(X, out=out), subject)

    def _back(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, target)
        n_params = draw.choice([1, 4, 7, 7])
        n_first = 2 if target.endswith("decode") else 64
        rows = np.random.default_rng(draw.randrange(2**32)).normal(size=(3, n_first + n_params)) * draw.choice(
            [1, 1, 1e3]
        )
        X, what = self.images(draw, rows)
        method = target.split(".")[1]
        return Call(target, f"{what}, {n_params} parameters{after}", lambda: getattr(subject, method)(X), subject)

    def _of_anything(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, target)
        value = draw.choice([*ANYTHING, *[[str(i) for i in range(64)]] * 20])
        method = target.split(".")[1]
        return Call(target, _short(value) + after, lambda: getattr(subject, method)(value), subject)

    def _set_output(self, draw: random.Random, target: str) -> Call:
        subject, _ = self._subject(draw, target)
        how, (X, what) = draw.choice(["pandas", "polars", "default", draw.choice(ANYTHING)]), self.images(draw)
        # `set_output` stores its word before it looks at it, as it does for every transformer of scikit-learn.
        return Call(target, f"{_short(how)}, {what}", lambda: subject.set_output(transform=how).transform(X), None)

    def _fit(self, draw: random.Random, target: str) -> Call:
        name = target.split(".")[0]
        subject = copy.deepcopy(draw.choice(self.subjects[name]))
        aligner = subject if name == "AVAEEstimator" else subject.estimator
        parameters, how = {}, "as it is"
        if draw.random() < 0.7 and aligner is not None:
            kept = {"verbose", "memory"}  # what is printed and what is written to disk is the caller's
            parameters, how = self.parameters(draw, tuple(sorted(set(aligner.get_params(deep=False)) - kept)))
            aligner.set_params(**parameters)
        elif aligner is None:
            subject.estimator = draw.choice([*ANYTHING, LinearSVC(), AVAEEstimator])
            how = f"estimator={_short(subject.estimator)}"
        X, what = self.images(draw) if draw.random() < 0.5 else (self.X, "as it is")
        n = X.shape[0] if isinstance(X, np.ndarray | pd.DataFrame) and X.shape else 30
        y = draw.choice([*[self.y[:n]] * 8, None, draw.choice(ANYTHING)])

        def run() -> Any:
            if target.endswith("fit_transform"):
                return subject.fit_transform(X, y)
            (subject.partial_fit if target.endswith("partial_fit") else subject.fit)(X, y)
            return subject.predict(X) if name == "CanonicalizedClassifier" else subject.transform(X)

        return Call(target, f"{what}, {how}, y={_short(y)}", run, _UnlessFitted(subject))

    def _from_vae(self, draw: random.Random, target: str) -> Call:
        module = draw.choice([MLPVAE((1, 8, 8), 2), MLPVAE((1, 8, 8), 2), draw.choice(ANYTHING)])
        names = ("image_shape", "likelihood", "offset", "scale", "background", "family", "pad", "padding", "min_gain")
        parameters, what = self.parameters(draw, names)
        arguments = {
            "image_shape": (8, 8),
            "expert": QUICK,
            "max_epochs": 1,
            "n_restarts": 4,
            **parameters,
        }
        X, images = self.images(draw) if draw.random() < 0.5 else (None, "none")
        return Call(
            target,
            f"{_short(module)}, {what}, X={images}",
            lambda: (avae := AVAEEstimator.from_vae(module, X=X, **arguments), avae.align(self.X[:3]))[1],
            module,
        )

    def _load(self, draw: random.Random, target: str) -> Call:
        subset = draw.choice(ANYTHING)
        return Call(target, _short(subset), lambda: datasets.load_mnist_sample(subset), None)

    def _fetch(self, draw: random.Random, target: str) -> Call:
        home = draw.choice([*self.files, draw.choice(ANYTHING), self.folder / "nothing", str(self.folder)])
        subset = draw.choice(["train", "train", "test", draw.choice(ANYTHING)])

        def run() -> Any:
            with mock.patch.dict(os.environ, SK_AVAE_DATA=str(self.folder)):  # or OpenML would be asked
                return datasets.fetch_mnist(home, subset=subset)

        return Call(target, f"{_short(home)}, {_short(subset)}", run, None)

    def _scorer(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, draw.choice(["AVAEEstimator", "AffineCanonicalizer"]))
        estimator = draw.choice([*[subject] * 8, draw.choice(ANYTHING)])
        X, what = self.images(draw)
        scorer = getattr(scoring, target)
        return Call(target, f"{_short(estimator)}, {what}{after}", lambda: scorer(estimator, X), subject)

    def _save(self, draw: random.Random, target: str) -> Call:
        subject, after = self._subject(draw, draw.choice([*self.subjects]))
        model = draw.choice([*[subject] * 8, draw.choice(ANYTHING)])
        # Not a number: that would be a file that is open already, this process's own output for one.
        odd = [value for value in ANYTHING if not isinstance(value, int | np.integer | str | Path)]
        path = draw.choice([*[self.folder / "model"] * 8, self.folder, self.folder / "no" / "m", draw.choice(odd)])
        return Call(
            target, f"{_short(model)}, {_short(path)}{after}", lambda: (save(model, path), load(path))[0], subject
        )

    def _load_model(self, draw: random.Random, target: str) -> Call:
        path = draw.choice([*[self.model] * 8, *self.files, self.folder / "none", draw.choice(ANYTHING)])
        names = draw.sample(["device", "module", "likelihood"], draw.choice([0, 1, 1, 2]))
        arguments = {name: draw.choice(ANYTHING) for name in names}
        what = ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())
        X = self.X[:3]
        return Call(target, f"{_short(path)}, {what}", lambda: load(path, **arguments).transform(X), None)

    def _make_perturbed(self, draw: random.Random, target: str) -> Call:
        names = ("family", "ranges", "image_shape", "background", "interpolation", "random_state")
        parameters, how = self.parameters(draw, names)
        X, what = self.images(draw)
        return Call(target, f"{what}, {how}", lambda: datasets.make_perturbed(X, **parameters), None)

    METHODS: ClassVar[dict[str, Callable[..., Call]]] = {
        "AVAEEstimator.transform": _of_images,
        "AVAEEstimator.transform_hypotheses": _of_images,
        "AVAEEstimator.perturb": _of_images,
        "AVAEEstimator.score": _of_images,
        "AVAEEstimator.score_samples": _of_images,
        "AVAEEstimator.encode": _of_images,
        "AVAEEstimator.reconstruct": _of_images,
        "AVAEEstimator.fit_transform": _fit,
        "AVAEEstimator.fit": _fit,
        "AVAEEstimator.partial_fit": _fit,
        "AVAEEstimator.align": _align,
        "AVAEEstimator.negative_elbo": _negative_elbo,
        "AVAEEstimator.warp": _warp,
        "AVAEEstimator.transform(out)": _into,
        "AVAEEstimator.inverse_transform": _back,
        "AVAEEstimator.decode": _back,
        "AVAEEstimator.sample": _of_anything,
        "AVAEEstimator.get_feature_names_out": _of_anything,
        "AVAEEstimator.set_output": _set_output,
        "AVAEEstimator.from_vae": _from_vae,
        "AffineCanonicalizer.fit": _fit,
        "AffineCanonicalizer.transform": _of_images,
        "AffineCanonicalizer.align": _align,
        "AffineCanonicalizer.inverse_transform": _back,
        "AffineCanonicalizer.get_feature_names_out": _of_anything,
        "AffineCanonicalizer.set_output": _set_output,
        "CanonicalizedClassifier.fit": _fit,
        "CanonicalizedClassifier.predict": _of_images,
        "CanonicalizedClassifier.predict_proba": _of_images,
        "CanonicalizedClassifier.predict_log_proba": _of_images,
        "CanonicalizedClassifier.decision_function": _of_images,
        "load_mnist_sample": _load,
        "fetch_mnist": _fetch,
        "make_perturbed": _make_perturbed,
        "elbo": _scorer,
        "neg_reconstruction_error": _scorer,
        "save": _save,
        "load": _load_model,
    }


class _UnlessFitted(NamedTuple):
    """A subject that a call may change if it succeeds: `fit`'s."""

    subject: Any


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}"
    return repr(value)[:40] if not isinstance(value, nn.Module | type) and not callable(value) else type(value).__name__


# ---------------------------------------------------------------- verdicts
def digest(value: Any) -> str:
    """Return a digest of all that an object holds: parameters, weights and what was learned, to the bit."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        found.update(f"<{type(value).__name__}>".encode())
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray) and value.dtype != object:
            found.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        elif isinstance(value, np.random.RandomState):
            pass  # drawn from, as the caller wishes
        elif isinstance(value, nn.Module):
            found.update(str(value.training).encode())
            add(value.state_dict())
        elif isinstance(value, BaseEstimator):
            add(vars(value))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            add({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        elif isinstance(value, dict):
            for key in sorted(value, key=repr):  # a copy may have its attributes in another order
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple | set) or (isinstance(value, np.ndarray) and value.ndim):
            for part in value:
                add(part)
        else:
            found.update(repr(value).encode())

    add(value)
    return found.hexdigest()


def _floats(value: Any) -> Iterator[Any]:
    """Yield all arrays of floats in a result."""
    if hasattr(value, "arrays"):
        # A deviation of which nothing is known is NaN.
        value = {name: array for name, array in value.arrays().items() if name != "alpha_std"}
    if isinstance(value, dict):
        value = tuple(value.values())
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if isinstance(value, tuple | list):
        for part in value:
            yield from _floats(part)
    elif np.asarray(value).dtype.kind in "fc":
        yield np.asarray(value)


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: Call) -> tuple[str, str]:
    """Make a call and return how it ended, and what is wrong with that: nothing, if it ended as it should."""
    fit = isinstance(call.subject, _UnlessFitted)
    subject = call.subject.subject if fit else call.subject
    before = digest(subject)
    with warnings.catch_warnings(record=True) as caught, _alarm(LONGEST_CALL):
        warnings.simplefilter("always")
        try:
            result, error = call.run(), None
        except Exception as raised:  # everything that is not documented is reported
            result, error = None, raised
    wrong = [
        f"warned {w.category.__name__}: {w.message}"
        for w in caught
        if not issubclass(w.category, DOCUMENTED_WARNINGS)
        and not any(phrase in str(w.message) for phrase in DOCUMENTED_PHRASES)
    ]
    if error is None:
        ended = "result"
        wrong += ["NaN or infinity in the result" for array in _floats(result) if not np.isfinite(array).all()][:1]
    else:
        ended = type(error).__name__
        if not isinstance(error, DOCUMENTED_OF.get(call.target, DOCUMENTED)):
            wrong.append(f"{ended}: {error}")
    if not (fit and error is None) and digest(subject) != before:
        wrong.append("the state changed")
    return ended, "; ".join(wrong)
