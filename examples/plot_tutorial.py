"""
Tutorial: from a folder of pictures to a classifier
===================================================

Letters on paper, scanned in any orientation. In 15 minutes you bring them upright, see how sure each pose is, put the
aligner in front of a classifier, and save it.
"""

# %%
# A folder of pictures
# --------------------
#
# If you have pictures of your own, skip this cell. It writes PNG files: a sub-folder per letter, training pictures
# upright, test pictures rotated by any angle and in fonts that the training pictures do not have.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmtt10")
FONTS = sorted((Path(plt.matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"))
FONTS = [font for font in FONTS if font.stem.startswith(FAMILIES) and "Display" not in font.stem]
TRAIN_FONTS, TEST_FONTS = [font for k, font in enumerate(FONTS) if k % 4], FONTS[::4]
random = np.random.default_rng(0)


def write_letters(folder, fonts, n_pictures, reach):
    """Write pictures of letters, rotated by up to `reach` degrees; return the angle of each file."""
    angles = {}
    for k in range(n_pictures):
        letter = "AEFGJKLPRT"[k % 10]
        font = ImageFont.truetype(fonts[random.integers(len(fonts))], int(random.integers(34, 40)))
        paper, ink = (int(level) for level in (random.integers(200, 240), random.integers(20, 90)))
        picture = Image.new("L", (64, 64), paper)
        ImageDraw.Draw(picture).text((32, 32), letter, fill=ink, font=font, anchor="mm")
        name = f"{letter}/{k:04}.png"
        angles[name] = random.uniform(-reach, reach)
        picture = picture.rotate(angles[name], resample=Image.Resampling.BICUBIC, fillcolor=paper)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return angles


folder = Path(tempfile.mkdtemp())
write_letters(folder / "train", TRAIN_FONTS, 800, reach=3)
true_angles = write_letters(folder / "test", TEST_FONTS, 300, reach=180)

# %%
# Load it
# -------
#
# `load_images` reads the folder: one array of images, and the sub-folders as classes. It makes sizes equal, lays
# transparent pictures on paper, and keeps 16 bits.

from sk_avae.datasets import load_images

train = load_images(folder / "train")
test = load_images(folder / "test", size=train.images.shape[1:3])
assert test.target_names == train.target_names
print(train.images.shape, train.images.dtype, train.target_names)

# %%
# Fit
# ---
#
# `fit` learns what upright letters look like. It needs no classes. One image in five is held out, rotated and aligned:
# the report says how many came back. Read it first. If most poses are wrong here, they will be wrong on new images.

from sk_avae import AlignmentDisplay, AVAEEstimator

avae = AVAEEstimator(max_epochs=30, random_state=0).fit(train.images)
print(avae.alignment_report_)

# %%
# Align new pictures
# ------------------
#
# `align` finds the pose of each image, `transform` returns the images in the canonical pose. For images of
# shape (height, width), `AffineCanonicalizer` does the same and keeps that shape.

result = avae.align(test.images)
print(result.to_frame().head().round(2).to_string())

# %%
# What to see: the first row is rotated, the second upright. Below are the reconstruction, the angle with its standard
# deviation, and the confidence.

AlignmentDisplay.from_estimator(avae, test.images[::37], n_images=8)
plt.show()

# %%
# How sure is a pose?
# -------------------
#
# `confidence` is the probability that the pose is right, on images like the training images. `reject` tells which to
# look at. Here the true angles are known, so we can check. The fonts are new, so confidence is too high for some.

true = np.array([true_angles[name] for name in test.filenames])
error = np.abs((np.rad2deg(result.alpha[:, 0]) - true + 180) % 360 - 180)
unsure = result.reject(threshold=0.8)
print(f"right within 20 degrees: {np.mean(error < 20):.2f} of all, {np.mean(error[~unsure] < 20):.2f} of the sure ones")
print(f"unsure: {unsure.sum()} of {len(unsure)}")

# %%
# A classifier behind it
# ----------------------
#
# `AffineCanonicalizer` is a transformer. `FrozenEstimator` says that the aligner is fitted already. A classifier takes
# rows of pixels: `data` has them. ``C`` is small because pixels go up to 255.

from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_avae import AffineCanonicalizer

classifier = LogisticRegression(C=1e-6, max_iter=1000)
pipeline = make_pipeline(AffineCanonicalizer(FrozenEstimator(avae)), classifier)
alone = classifier.fit(train.data, train.target).score(test.data, test.target)
behind = pipeline.fit(train.data, train.target).score(test.data, test.target)
print(f"accuracy on rotated letters: {alone:.2f} alone, {behind:.2f} behind the canonicalizer")

# %%
# Write the canonical pictures back
# ---------------------------------
#
# Under their own names, in another folder.

canonical = AffineCanonicalizer(FrozenEstimator(avae)).fit(train.images).transform(test.images)
for name, image in zip(test.filenames, canonical, strict=True):
    path = folder / "canonical" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.round().astype(test.images.dtype)).save(path)
print(sorted(path.name for path in (folder / "canonical").iterdir()))

# %%
# Save the aligner
# ----------------
#
# A safe file holds numbers only; loading it runs no code. `joblib` works, too.

import sk_avae

sk_avae.save(avae, folder / "letters.safetensors")
again = sk_avae.load(folder / "letters.safetensors")
print((again.align(test.images[:5]).alpha == result.alpha[:5]).all())

# %%
# Where to go from here
# ---------------------
#
# - Pictures that are shifted or of other sizes: set ``family``, see :doc:`/how_to_family`.
# - Training pictures in any orientation: :doc:`/how_to_any_orientation`.
# - Unsure poses, and a classifier that reads all of them: :doc:`/how_to_sure`.
# - Settings chosen by a grid search: :doc:`/how_to_tune`.
