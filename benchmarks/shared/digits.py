"""The digits that benchmarks read: MNIST, or the bundled sample of it."""

import hashlib
import math

import numpy as np

from sk_avae.datasets import fetch_mnist, load_mnist_sample


def load_digits(folder, *, side=28, n_train=None, n_test=None):
    """Read digits on a canvas of side x side; "train" and "test" are (X, y), "key" is a digest of all.

    Without a folder they are those of the bundled sample.
    """
    load = load_mnist_sample if folder is None else lambda subset: fetch_mnist(folder, subset=subset)
    digits = {}
    for subset, n in (("train", n_train), ("test", n_test)):
        X, y = load(subset)
        margin = (side - math.isqrt(X.shape[1])) // 2
        stack = X[:n].reshape(-1, side - 2 * margin, side - 2 * margin)
        padded = np.pad(stack, ((0, 0), (margin, margin), (margin, margin)))
        digits[subset] = padded.reshape(len(padded), -1), y[:n]
    content = b"".join(array.tobytes() for arrays in digits.values() for array in arrays)
    return digits | {"key": hashlib.sha256(content).hexdigest()}
