"""
Scale, shear and shift as well
==============================

``family="affine"`` frees all six parameters of an affine transform: angle, two scales, shear and two shifts. Canonical
images can be put back where they came from.
"""

# %%
# Digits rotated by any angle, up to 1.5 times as large or small along either side, sheared and shifted.

import matplotlib.pyplot as plt

from sk_avae import AlignmentDisplay, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train = load_mnist_sample("train")[0][:1200]
X_test = load_mnist_sample("test")[0][:100]
X_perturbed, alpha = make_perturbed(X_test, family="affine", ranges={"tx": 0.2, "ty": 0.2}, random_state=0)

# %%
# With a richer family, refine four hypotheses per image instead of two.

avae = AVAEEstimator(family="affine", n_refine=4, max_epochs=25, batch_size=64, random_state=0).fit(X_train)
result = avae.align(X_perturbed)
print(f"loss as they come {-result.elbo_identity.mean():.0f} nats, aligned {-result.elbo.mean():.0f} nats")

# %%
# As a data frame, the poses are in degrees, factors and pixels.

print(result.to_frame().head().round(2).to_string())

# %%
# `inverse_transform` puts canonical images back: useful for whatever was found there, such as a segmentation.

T = avae.transform(X_perturbed)
back = avae.inverse_transform(T)
print(f"mean difference after the way there and back: {abs(back - X_perturbed).mean():.1f} of 255 grey levels")

# %%
# What to see: the digits of the first row differ in angle, size and slant, those of the second hardly.

AlignmentDisplay.from_estimator(avae, X_perturbed, n_images=7)
plt.show()
