"""
Wrap a VAE that you have already
================================

`AVAEEstimator.from_vae` takes a PyTorch module with ``encode`` and ``decode`` and finds poses with it. Its weights do
not change.
"""

# %%
# A VAE as tutorials write it, trained by a plain loop on upright digits.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from sk_avae import AlignmentDisplay, AVAEEstimator
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
# The estimator is fitted at once. ``X`` teaches proposer and critic what upright images look like. A decoder that ends
# in a sigmoid is recognised; one that returns rows works, too.

before = [weight.clone() for weight in vae.parameters()]
avae = AVAEEstimator.from_vae(vae, image_shape=(28, 28), X=X_train, random_state=0)
X_rotated, _ = make_perturbed(X_test, random_state=0)
canonical = avae.transform(X_rotated)[:, :784]

classifier = LogisticRegression(C=0.05, max_iter=200).fit(X_train, y_train)
for name, X in (("upright", X_test), ("rotated", X_rotated), ("rotated, canonical", canonical)):
    print(f"accuracy {name:20}{classifier.score(X, y_test):.3f}")
same = all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))
print(f"weights as they were: {same}")

# %%
# What to see: rotated digits, and the pose that this VAE gives them.

AlignmentDisplay.from_estimator(avae, X_rotated, n_images=6)
plt.show()
