"""
A pipeline before and after
===========================

`AffineCanonicalizer` goes in front of a classifier that stays as it is. `CanonicalizedClassifier` reads all poses that
an image may have, and puts the answers together.
"""

# %%
# Three classifiers, fitted on the same 1,200 upright digits: alone, behind the canonicalizer, and reading all
# hypotheses. One fitted aligner serves the two: `FrozenEstimator` keeps it from being fitted again.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_avae import AffineCanonicalizer, AVAEEstimator, CanonicalizedClassifier
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train, y_train = (array[:1200] for array in load_mnist_sample("train"))
X_test, y_test = (array[:200] for array in load_mnist_sample("test"))
X_train, X_test = X_train / 255, X_test / 255

avae = FrozenEstimator(AVAEEstimator(max_epochs=25, batch_size=64, random_state=0).fit(X_train))
plain = LogisticRegression(C=0.05, max_iter=200)
models = {
    "before": plain,
    "with the canonicalizer": make_pipeline(AffineCanonicalizer(avae), plain),
    "all hypotheses": CanonicalizedClassifier(plain, avae),
}

# %%
# All are read off the same digits, turned by one angle after the other.

angles = range(0, 181, 45)
accuracy = {}
for name, model in models.items():
    model.fit(X_train, y_train)
    accuracy[name] = [
        model.score(make_perturbed(X_test, ranges={"angle": (angle, angle)}, random_state=0)[0], y_test)
        for angle in np.deg2rad(angles)
    ]
    print(f"{name:24}mean accuracy over all angles {np.mean(accuracy[name]):.3f}")

# %%
# The classifier alone falls over at 45 degrees; behind the canonicalizer the angle hardly matters.

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (name, values), colour, marker in zip(accuracy.items(), ("#D55E00", "#0072B2", "#009E73"), "so^", strict=True):
    axis.plot(angles, values, marker=marker, color=colour, label=name)
axis.set(xlabel="angle of the digits (degrees)", ylabel="accuracy", ylim=(0, 1), xticks=angles)
axis.grid(alpha=0.3)
axis.legend(frameon=False)
plt.show()
