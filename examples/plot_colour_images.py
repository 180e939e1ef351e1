"""
Colour, oblong frames, light paper
==================================

Images with channels go in as a stack ``(n, height, width, channels)`` and need not be square. The background, which
fills the corners of a rotated image, is learned from the edges of the training images: here it is white.
"""

# %%
# Digits in coloured ink on white paper, 28 pixels high and 36 wide.

import matplotlib.pyplot as plt
import numpy as np

from sk_avae import AffineCanonicalizer, AlignmentDisplay, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

random = np.random.default_rng(0)


def on_paper(X):
    """Return digits as colour images, uint8, of shape (n, 28, 36, 3)."""
    grey = np.pad(X.reshape(-1, 28, 28), ((0, 0), (0, 0), (4, 4)))[..., None] / 255
    ink = random.integers(0, 160, size=(len(X), 1, 1, 3))
    return (255 + (ink - 255) * grey).round().astype(np.uint8)


train = on_paper(load_mnist_sample("train")[0][:1000])
perturbed, alpha = make_perturbed(
    on_paper(load_mnist_sample("test")[0][:40]), family="similarity", ranges={"tx": 0.15, "ty": 0.15}, random_state=0
)

# %%
# ``family="similarity"`` is angle, one scale and two shifts. A stack stays a stack.

avae = AVAEEstimator(
    family="similarity",
    hidden_layer_sizes=(256,),
    learned_starts=False,  # saves time here, where few images are aligned
    critic=False,
    n_restarts=48,
    max_epochs=20,
    batch_size=50,
    random_state=0,
)
canonicalizer = AffineCanonicalizer(avae).fit(train)
canonical = canonicalizer.transform(perturbed)
fitted = canonicalizer.estimator_
print(f"image_shape_ {fitted.image_shape_}, background {fitted.image_format_.background}")
result = canonicalizer.align(perturbed)
print(f"loss as they come {-result.elbo_identity.mean():.0f} nats, aligned {-result.elbo.mean():.0f} nats")

# %%
# What to see: the corners of the canonical images are white again, and the ink keeps its colour.

AlignmentDisplay.from_estimator(canonicalizer, perturbed, n_images=6)
plt.show()
