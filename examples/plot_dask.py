"""
More images than one machine reads: dask
========================================

A fitted aligner answers for each image alone. So it can be mapped over blocks of images, with the same result as one
call. Here the cluster is two threads; on yours, give the scheduler's address to ``Client``.
"""

# %%
# One fit, where the training images are.

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
from distributed import Client

from sk_avae import AffineCanonicalizer, AlignmentDisplay, AVAEEstimator
from sk_avae.datasets import load_mnist_sample, make_perturbed

X_train = load_mnist_sample("train")[0][:1000]
X_rotated, _ = make_perturbed(load_mnist_sample("test")[0], random_state=0)
avae = AVAEEstimator(critic=False, max_epochs=20, batch_size=64, random_state=0)
canonicalizer = AffineCanonicalizer(avae).fit(X_train)

# %%
# The images are blocks of whole rows; a stored array is read by ``da.from_zarr``. The model travels with the graph.

with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None):
    X = da.from_array(X_rotated, chunks=(250, 784))
    canonical = X.map_blocks(canonicalizer.transform, dtype=np.float32).compute()

print(f"{len(canonical):,} images in {X.numblocks[0]} blocks")
difference = np.abs(canonical - canonicalizer.transform(X_rotated))
print(f"{np.mean(difference.max(axis=1) < 1):.1%} of the images are as in one call, to a grey level of 255")

# %%
# What to see: a few of the images, as they came and aligned.

AlignmentDisplay.from_estimator(canonicalizer, X_rotated, n_images=6)
plt.show()
