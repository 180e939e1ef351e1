"""
Scale, shear and shift as well
==============================

``family="affine"`` frees all six parameters of an affine transform: angle, two scales, shear and two shifts. The way
back works for all of them.
"""

# %%
# Digits turned by any angle, up to 1.5 times as large or small along either side, sheared and shifted.

import matplotlib.pyplot as plt

from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train = load_mnist_sample("train")[0][:1200]
X_test = load_mnist_sample("test")[0][:100]
X_perturbed, alpha = make_perturbed(X_test, family="affine", ranges={"tx": 0.2, "ty": 0.2}, random_state=0)

# %%
# The richer families choose better with four hypotheses refined per image rather than two.

avae = AVAEEstimator(family="affine", n_refine=4, max_epochs=25, batch_size=64, random_state=0).fit(X_train)
result = avae.align(X_perturbed)
print(f"loss as they come {-result.elbo_identity.mean():.0f} nats, aligned {-result.elbo.mean():.0f} nats")

# %%
# The result speaks of radians, logarithms and half sides; as a data frame of degrees, factors and pixels.

print(result.to_frame().head().round(2).to_string())

# %%
# `inverse_transform` puts canonical images back where they came from: of use for whatever was found in the canonical
# frame, a segmentation for one.

T = avae.transform(X_perturbed)
rows = {"as they come": X_perturbed, "canonical": T[:, :784], "the way back": avae.inverse_transform(T)}
figure, axes = plt.subplots(3, 10, figsize=(9, 2.8), layout="constrained")
for axis_row, (title, images) in zip(axes, rows.items(), strict=True):
    for axis, image in zip(axis_row, images[:10], strict=True):
        axis.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
plt.show()
