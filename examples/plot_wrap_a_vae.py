"""
Around a VAE that you have already
==================================

`AVAEEstimator.from_vae` takes a PyTorch module with ``encode`` and ``decode`` as it is and finds poses under it; not a
weight of it changes.
"""

# %%
# A VAE as tutorials write it, trained by a plain loop on upright digits.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from sk_avae import AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed


class PlainVAE(nn.Module):
    """Two hidden layers; `encode` and `decode` are all that is asked of a module."""

    def __init__(self, latent_size=12, width=256):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 2 * latent_size))
        self.decoder = nn.Sequential(nn.Linear(latent_size, width), nn.ReLU(), nn.Linear(width, 784))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)

    def decode(self, z):
        return self.decoder(z).view(-1, 1, 28, 28)


X_train, y_train = (array[:1000] for array in load_mnist_sample("train"))
X_test, y_test = (array[:300] for array in load_mnist_sample("test"))
X_train, X_test = X_train / 255, X_test / 255
images = torch.tensor(X_train, dtype=torch.float32).view(-1, 1, 28, 28)

torch.manual_seed(0)
max_epochs = 50
vae = PlainVAE()
optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
for _ in range(max_epochs):
    for x in images[torch.randperm(len(images))].split(50):
        mean, log_var = vae.encode(x)
        logits = vae.decode(mean + torch.exp(log_var / 2) * torch.randn_like(mean))
        divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum()
        loss = (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + divergence) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# The estimator around it is fitted at once. ``X`` is only read: it teaches starting poses and critic what upright
# images look like. A decoder that ends in a sigmoid is recognised, and one of rows is taken, too.

before = [weight.clone() for weight in vae.parameters()]
avae = AVAEEstimator.from_vae(vae, image_shape=(28, 28), X=X_train, random_state=0)
X_turned, _ = make_perturbed(X_test, random_state=0)
canonical = avae.transform(X_turned)[:, :784]

classifier = LogisticRegression(C=0.05, max_iter=200).fit(X_train, y_train)
for name, X in (("upright", X_test), ("turned", X_turned), ("turned, canonical", canonical)):
    print(f"accuracy {name:20}{classifier.score(X, y_test):.3f}")
same = all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))
print(f"weights as they were: {same}")

# %%
# Turned digits, and the pose that this VAE gives them.

figure, axes = plt.subplots(2, 10, figsize=(9, 2), layout="constrained")
for axis_row, (title, rows) in zip(axes, {"turned": X_turned, "canonical": canonical}.items(), strict=True):
    for axis, image in zip(axis_row, rows[:10], strict=True):
        axis.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
plt.show()
