"""
More images than one machine reads: dask
========================================

A fitted aligner answers for each image alone, so that it can be mapped over blocks of images, and the result is that of
one call. Here the cluster is two threads; on yours give the scheduler's address to ``Client``.
"""

# %%
# One fit, where the training images are.

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
from distributed import Client

from sk_avae import AffineCanonicalizer, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train = load_mnist_sample("train")[0][:1000]
X_turned, _ = make_perturbed(load_mnist_sample("test")[0], random_state=0)
avae = AVAEEstimator(critic=False, max_epochs=20, batch_size=64, random_state=0)
canonicalizer = AffineCanonicalizer(avae).fit(X_train)

# %%
# The images are blocks of whole rows; a stored array is read by ``da.from_zarr``. The model travels with the graph.

with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None):
    X = da.from_array(X_turned, chunks=(250, 784))
    canonical = X.map_blocks(canonicalizer.transform, dtype=np.float32).compute()

print(f"{len(canonical):,} images in {X.numblocks[0]} blocks")
difference = np.abs(canonical - canonicalizer.transform(X_turned))
print(f"{np.mean(difference.max(axis=1) < 1):.1%} of the images are as in one call, to a grey level of 255")

# %%
# A few of them.

figure, axes = plt.subplots(2, 10, figsize=(9, 2), layout="constrained")
for axis_row, (title, images) in zip(axes, {"turned": X_turned, "canonical": canonical}.items(), strict=True):
    for axis, image in zip(axis_row, images[:10], strict=True):
        axis.imshow(image.reshape(28, 28), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
plt.show()
