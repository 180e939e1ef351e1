"""
Training images without a common pose
=====================================

With ``align_training=True`` the training images may be rotated, too: a common pose is found while the network is
trained. That pose is arbitrary.
"""

# %%
# 600 fours and sevens, rotated by any angle. The model is not told which way up they belong.

import matplotlib.pyplot as plt
import numpy as np

from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X, y = load_mnist_sample("train")
some = np.flatnonzero(np.isin(y, (4, 7)))[:600]
X, y = make_perturbed(X[some], random_state=0)[0], y[some]

# %%
# Poses are remembered per training image and improved in every epoch. ``history_`` says how many still changed to
# another optimum.

avae = AVAEEstimator(align_training=True, critic=False, max_epochs=25, batch_size=40, random_state=0).fit(X)
print("epoch   loss, nats   moved")
for row in avae.history_[::4]:
    print(f"{row['epoch']:5.0f}{row['train_loss']:13.1f}{row['moved']:8.0%}")

# %%
# What to see: the mean of each digit, on the right, is a blur before alignment and a digit afterwards. ``alpha_`` has
# the poses of the training images; `transform` gives the images.

canonical = avae.transform(X)[:, :784]
figure, axes = plt.subplots(2, 7, figsize=(9, 2.9), layout="constrained")
for axis_row, (title, images) in zip(axes, {"as they come": X, "canonical": canonical}.items(), strict=True):
    means = [images[y == digit].mean(axis=0) for digit in (4, 7)]
    for axis, image in zip(axis_row, [*images[:5], *means], strict=True):
        axis.imshow(image.reshape(28, 28), cmap="gray", vmin=0)
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
for axis, digit in zip(axes[0, 5:], (4, 7), strict=True):
    axis.set_title(f"mean {digit}", fontsize=9)
plt.show()
