"""
Rotated digits come back upright
================================

The main job, small: a model of 1,200 upright digits finds the angle of digits that it has never seen, and a classifier
that knows upright digits only reads them again.
"""

# %%
# Upright digits to learn from, and others to try on, rotated by any angle. ``alpha`` has the true angles.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from sk_avae import AlignmentDisplay, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train, y_train = (array[:1200] for array in load_mnist_sample("train"))
X_test, y_test = (array[:300] for array in load_mnist_sample("test"))
X_rotated, alpha = make_perturbed(X_test, random_state=0)

# %%
# `fit` learns what upright digits look like, without labels. `transform` returns upright pixels, then the angle.

avae = AVAEEstimator(max_epochs=25, batch_size=64, random_state=0).fit(X_train)
canonical = avae.transform(X_rotated)[:, :784]

classifier = LogisticRegression(C=0.05, max_iter=200).fit(X_train / 255, y_train)
print("accuracy")
for name, X in (("upright", X_test), ("rotated", X_rotated), ("rotated, canonical", canonical)):
    print(f"    {name:20}{classifier.score(X / 255, y_test):.3f}")

# %%
# How far off are the angles? A 6 is a 9 upside down, and a 0 or an 8 looks the same: hence the few errors near 180
# degrees. The slant that all training images share is no error, and is taken out.

result = avae.align(X_rotated)
error = np.rad2deg(result.alpha - alpha)[:, 0]
error = (error + 180) % 360 - 180
error -= np.median(error[np.abs(error) < 90])
error = np.abs((error + 180) % 360 - 180)
print(f"median error {np.median(error):.1f} degrees, {np.mean(error > 135):.1%} half a turn off")

# %%
# What to see: rotated digits, their canonical images, and what the model makes of them in the pose that they came in.

AlignmentDisplay.from_estimator(avae, X_rotated, n_images=7)
plt.show()
