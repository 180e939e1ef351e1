"""
A classifier behind the aligner
===============================

`AffineCanonicalizer` goes in front of a classifier that stays as it is. `CanonicalizedClassifier` reads all poses that
an image may have, and averages the answers.
"""

# %%
# The same classifier three times, fitted on 1,200 upright digits: alone, behind the canonicalizer, and reading all
# poses. One fitted aligner serves both: `FrozenEstimator` keeps it from being fitted again.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier, RobustnessCurveDisplay
from sk_avae.datasets import load_mnist_sample

X_train, y_train = (array[:1200] for array in load_mnist_sample("train"))
X_test, y_test = (array[:200] for array in load_mnist_sample("test"))
X_train, X_test = X_train / 255, X_test / 255

avae = FrozenEstimator(AVAEEstimator(max_epochs=25, batch_size=64, random_state=0).fit(X_train))
plain = LogisticRegression(C=0.05, max_iter=200)
models = {
    "alone": plain,
    "behind the canonicalizer": make_pipeline(AffineCanonicalizer(avae), plain),
    "all poses": CanonicalizedClassifier(plain, avae),
}

# %%
# `RobustnessCurveDisplay` scores each on the same digits, rotated by one angle after the other.

angles = np.deg2rad(np.arange(0, 181, 45))
figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, model in models.items():
    model.fit(X_train, y_train)
    display = RobustnessCurveDisplay.from_estimator(model, X_test, y_test, values=angles, name=name, ax=axis)
    print(f"{name:24}mean accuracy over all angles {display.scores.mean():.3f}")

# %%
# What to see: the classifier alone fails from 45 degrees on. Behind the canonicalizer the angle hardly matters.

plt.show()
