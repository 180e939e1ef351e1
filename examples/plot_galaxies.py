"""
Galaxies have no upright pose
=============================

Real images without an upright pose: galaxies of the Hubble Deep Field, each as it happens to lie in the sky. Training
finds a common pose by itself. The picture comes with scikit-image (NASA, public domain).
"""

# %%
# Sources stand out of the night sky by five standard deviations. Each is cut out around its centroid, in a frame five
# times as wide as the source. So all have one size. Neighbours fade out towards the edge.

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from skimage import data, measure

from sk_avae import AVAEEstimator

SIDE = 28
sky = ndimage.gaussian_filter(data.hubble_deep_field().mean(axis=2), 1)
night = np.median(sky)
noise = 1.4826 * np.median(np.abs(sky - night))
sources = measure.regionprops(measure.label(sky > night + 5 * noise), intensity_image=sky - night)
sources = [source for source in sources if 40 <= source.area <= 1500]


def stamp(source):
    """Return a source in the middle of an image, at one size, as a row of bytes."""
    grid = 2.5 * np.sqrt(source.area / np.pi) * np.linspace(-1, 1, SIDE)
    row, column = source.centroid_weighted
    places = np.meshgrid(row + grid, column + grid, indexing="ij")
    light = ndimage.map_coordinates(sky - night, places, mode="nearest").clip(0)
    radius = np.hypot(*np.meshgrid(*2 * [np.linspace(-1, 1, SIDE)]))
    light = np.arcsinh(light / (3 * noise)) * np.exp(-(radius**8))
    return (255 * light / light.max()).ravel().astype(np.uint8)


X = np.array([stamp(source) for source in sources])
print(f"{len(X)} sources")

# %%
# With ``align_training=True`` a common pose is found while the VAE is trained.

avae = AVAEEstimator(
    latent_size=8,
    hidden_layer_sizes=(128,),
    align_training=True,
    critic=False,
    max_epochs=60,
    batch_size=32,
    random_state=0,
).fit(X)
canonical = avae.transform(X)[:, : SIDE * SIDE]

# %%
# The model knows nothing of axes. Yet the longer a galaxy is, the better its angle agrees with the direction of its
# long axis, as second moments have it. Angles are compared up to half a turn, and up to the common pose.

elongation = np.array([source.axis_major_length / source.axis_minor_length for source in sources])
direction = np.array([source.orientation for source in sources])
double = np.exp(2j * (avae.alpha_[:, 0] - direction))
off = np.abs(np.rad2deg(np.angle(double / double[elongation > 1.5].mean()))) / 2
for low, high in ((1, 1.2), (1.2, 1.5), (1.5, 2), (2, 9)):
    some = (elongation >= low) & (elongation < high)
    print(f"long axis {low} to {high} short ones: {some.sum():3} galaxies, {np.median(off[some]):2.0f}° off (median)")

# %%
# What to see: long galaxies lie in all directions as they come, and along one direction when aligned. The mean of all
# long galaxies, on the right, is round before and long afterwards.

long = np.flatnonzero(elongation > 1.5)
shown = np.random.default_rng(1).choice(long, 6, replace=False)
figure, axes = plt.subplots(2, 7, figsize=(9, 2.8), layout="constrained")
for axis_row, (title, images) in zip(axes, {"as they lie": X, "canonical": canonical}.items(), strict=True):
    for axis, image in zip(axis_row, [*images[shown], images[long].mean(axis=0)], strict=True):
        axis.imshow(image.reshape(SIDE, SIDE), cmap="gray", vmin=0)
        axis.set(xticks=[], yticks=[])
    axis_row[0].set_ylabel(title, rotation=0, ha="right", va="center")
axes[0, -1].set_title("mean", fontsize=9)
plt.show()
