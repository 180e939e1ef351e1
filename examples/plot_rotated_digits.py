"""
Turned digits come back upright
===============================

The main job, small: a model of 1,200 upright digits finds the angle of digits that it has never seen, and a classifier
that knows upright digits only reads them again.
"""

# %%
# Upright digits to learn from, others to try on; those are turned by any angle. ``alpha`` keeps the true angles.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train, y_train = (array[:1200] for array in load_mnist_sample("train"))
X_test, y_test = (array[:300] for array in load_mnist_sample("test"))
X_turned, alpha = make_perturbed(X_test, random_state=0)

# %%
# `fit` learns what upright digits look like, without labels. `transform` returns upright pixels, then the angle.

avae = AVAEEstimator(max_epochs=25, batch_size=64, random_state=0).fit(X_train)
canonical = avae.transform(X_turned)[:, :784]

classifier = LogisticRegression(C=0.05, max_iter=200).fit(X_train / 255, y_train)
print("accuracy")
for name, X in (("upright", X_test), ("turned", X_turned), ("turned, canonical", canonical)):
    print(f"    {name:20}{classifier.score(X / 255, y_test):.3f}")

# %%
# How far off are the angles? A 6 is a 9 half a turn on, a 0 or an 8 looks the same: hence the few errors near 180
# degrees. Whatever angle the training images have in common, the writers' slant, is no error, and taken out.

result = avae.align(X_turned)
error = np.rad2deg(result.alpha - alpha)[:, 0]
error = (error + 180) % 360 - 180
error -= np.median(error[np.abs(error) < 90])
error = np.abs((error + 180) % 360 - 180)
print(f"median error {np.median(error):.1f} degrees, {np.mean(error > 135):.1%} half a turn off")

# %%
# Turned digits, their canonical images, and what the model makes of them in the pose that they came in.

rows = {"turned": X_turned, "canonical": canonical, "reconstructed": avae.reconstruct(X_turned[:10])}
figure, axes = plt.subplots(3, 10, figsize=(9, 2.9), layout="constrained")
for axis_row, (title, images) in zip(axes, rows.items(), strict=True):
    for axis, image in zip(axis_row, images[:10], strict=True):
        axis.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
for axis, angle in zip(axes[0], np.rad2deg(result.alpha[:10, 0]), strict=True):
    axis.set_title(f"{angle:.0f}°", fontsize=9)
plt.show()
