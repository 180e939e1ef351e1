"""What lies outside the frame: photographs under `padding`, and colours, oblong frames and light backgrounds."""

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_sample_images

from sk_avae.datasets import make_perturbed
from sk_avae.model.affine import PADDINGS, compose, to_matrix
from sk_avae.model.likelihoods import Gaussian

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")

QUICK = {"max_epochs": 1, "n_restarts": 4, "hidden_layer_sizes": (32,), "latent_size": 4}


@pytest.fixture(scope="module")
def photographs():
    """600 patches of a photograph, of shape (600, 24, 24, 3): sky above roofs, no background anywhere."""
    photograph = load_sample_images().images[0][::4, ::4]
    random = np.random.default_rng(0)
    top, left = (random.integers(0, side - 24, 600) for side in photograph.shape[:2])
    patches = np.stack([photograph[y : y + 24, x : x + 24] for y, x in zip(top, left, strict=True)])
    patches.flags.writeable = False
    return patches


def turned_by(model, images, angle):
    """Turn images as the model would see them turned: filled in at the corners by its padding."""
    rows = images.reshape(len(images), -1).astype(float)
    return model.inverse_transform(np.hstack([rows, np.broadcast_to(angle, (len(rows), 1))]))


# ---------------------------------------------------------------- photographs


def test_turned_photographs_are_turned_back(small_avae, photographs):
    model = small_avae(padding="border", pad=4, batch_size=64, max_iter=100).fit(photographs[:540])
    assert model.image_shape_ == (24, 24, 3)
    assert isinstance(model.likelihood_, Gaussian)
    upright = photographs[540:].reshape(60, -1).astype(float)
    angle = np.random.default_rng(1).uniform(-np.pi, np.pi, size=(60, 1))
    result = model.align(turned_by(model, upright, angle))
    error = np.abs(np.angle(np.exp(1j * (result.alpha - model.align(upright).alpha - angle))))
    # By chance 14 % are within 25 degrees.
    assert np.mean(error < np.radians(25)) > 0.55
    assert result.elbo.mean() > result.elbo_identity.mean() + 50


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("padding", PADDINGS)
def test_what_a_shifted_photograph_shows_at_its_edge(small_avae, photographs, padding, pad):
    model = small_avae(family="rigid", padding=padding, pad=pad, **QUICK).fit(photographs[:60])
    X = photographs[:4].astype(float)
    # To the right by six pixels, as seen from the canonical image.
    alpha = np.broadcast_to([0.0, 6 * 2 / 24, 0.0], (4, 3))
    shifted = model.inverse_transform(np.hstack([X.reshape(4, -1), alpha])).reshape(X.shape)
    assert_allclose(shifted[:, :, 6:], X[:, :, :-6], atol=1e-3)
    outside = shifted[:, :, :6]
    if padding == "background":
        expected = np.broadcast_to(model.image_format_.background, outside.shape)
    elif padding == "border":
        expected = np.broadcast_to(X[:, :, :1], outside.shape)
    else:
        # The mirror stands at the outer edge, with and without a margin, at whose end there is another one.
        n_mirrored = pad or 6
        expected = X[:, :, :n_mirrored][:, :, ::-1]
        outside = outside[:, :, -n_mirrored:]
    assert_allclose(outside, expected, atol=1e-3)


@pytest.mark.parametrize("padding", ["border", "reflect"])
@pytest.mark.parametrize("pad", [0, 3])
def test_no_colour_is_invented_at_the_corners(small_avae, photographs, padding, pad):
    model = small_avae(padding=padding, pad=pad, **QUICK).fit(photographs[:60])
    X = photographs[100:120]
    turned = turned_by(model, X, 0.7).reshape(X.shape)
    low, high = (bound(X.reshape(20, -1, 3), axis=1) for bound in (np.min, np.max))
    assert (turned >= low[:, None, None] - 1e-4).all()  # single precision, as `fit` saw
    assert (turned <= high[:, None, None] + 1e-4).all()
    # The background of all photographs is not among the colours of each of them.
    filled = small_avae(padding="background", pad=pad, **QUICK).fit(photographs[:60])
    corner = turned_by(filled, X, 0.7).reshape(X.shape)[:, 0, 0]
    assert_allclose(corner, np.broadcast_to(filled.image_format_.background, corner.shape), atol=1e-6)
    assert np.abs(turned[:, 0, 0] - corner).mean() > 5


@pytest.mark.parametrize("padding", ["border", "reflect"])
def test_the_margin_continues_the_photograph(small_avae, photographs, padding):
    model = small_avae(padding=padding, pad=3, **QUICK).fit(photographs[:60])
    frame = model.image_format_.to_padded_images(photographs[:5].reshape(5, -1)).numpy()
    assert frame.shape == (5, 3, 30, 30)
    mode = {"border": "edge", "reflect": "symmetric"}[padding]
    expected = np.pad(photographs[:5], ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)
    assert_array_equal(frame, expected.transpose(0, 3, 1, 2))
    rows = photographs[:5].reshape(5, -1)
    assert_array_equal(model.image_format_.to_rows(torch.from_numpy(frame)), rows)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_model_under_padding_is_whole(small_avae, photographs, padding):
    model = small_avae(padding=padding, pad=2, tol=1.0, **QUICK).fit(photographs[:60])
    again = small_avae(padding=padding, pad=2, tol=1.0, **QUICK).fit(photographs[:60])
    assert joblib.hash(model) == joblib.hash(again)
    X = photographs[200:206]
    T = model.transform(X)
    assert T.shape == (6, 24 * 24 * 3 + 1)
    assert np.isfinite(model.reconstruct(X)).all()
    for row in (0, 5):
        assert_array_equal(model.transform(X[row : row + 1])[0], T[row])
    blank = np.full((1, 24, 24, 3), 120)
    assert not model.align(blank).alpha.any()


def test_padding_changes_the_model_only_where_there_is_a_margin(small_avae, photographs):
    def weights(**parameters):
        return joblib.hash(small_avae(**QUICK, **parameters).fit(photographs[:60]).__getstate__()["module_"])

    assert len({weights(padding=padding) for padding in PADDINGS}) == 1
    assert len({weights(padding=padding, pad=2) for padding in PADDINGS}) == 3


def test_padding_after_fit_changes_nothing(small_avae, photographs):
    model = small_avae(padding="border", **QUICK).fit(photographs[:60])
    before = model.transform(photographs[:3])
    assert_array_equal(model.set_params(padding="background").transform(photographs[:3]), before)


@pytest.mark.parametrize("padding", ["border", "reflect"])
def test_a_margin_may_be_wider_than_the_image(small_avae, photographs, padding):
    model = small_avae(padding=padding, pad=30, **QUICK).fit(photographs[:20])
    frame = model.image_format_.to_padded_images(photographs[:1].reshape(1, -1)).numpy()
    assert frame.shape == (1, 3, 84, 84)
    assert set(np.unique(frame)) == set(np.unique(photographs[0]))
    assert model.transform(photographs[:2]).shape == (2, 24 * 24 * 3 + 1)


# ---------------------------------------------------------------- colour, oblong frames, light backgrounds


def on_paper(X, random):
    """Digits in coloured ink on white paper, 28 pixels high and 36 wide."""
    grey = np.pad(X.reshape(-1, 28, 28), ((0, 0), (0, 0), (4, 4)))[..., None] / 255
    ink = random.integers(0, 120, size=(len(X), 1, 1, 3))
    return (255 + (ink - 255) * grey).round().astype(np.uint8)


@pytest.mark.parametrize("family", ["rotation", "similarity"])
def test_poses_of_coloured_digits_on_oblong_white_paper_are_recovered(small_avae, digits, family):
    random = np.random.default_rng(0)
    train, upright = on_paper(digits.X[:1000], random), on_paper(digits.X_test[:50], random)
    ranges = None if family == "rotation" else {"tx": 0.15, "ty": 0.15, "log_scale": 0.25}
    X, alpha = make_perturbed(upright, family=family, ranges=ranges, random_state=0)
    model = small_avae(
        family=family, n_restarts=16 if family == "rotation" else 32, max_epochs=15, max_iter=200, tol=0.1
    )
    model.fit(train)
    assert model.image_shape_ == (28, 36, 3)
    assert model.image_format_.background == (255.0, 255.0, 255.0)
    own, found = (torch.tensor(model.align(images).matrix).double() for images in (upright, X))
    expected = compose(to_matrix(torch.tensor(alpha), family, aspect=36 / 28), own)
    error = (found - expected).flatten(1).norm(dim=1)
    before = (own - expected).flatten(1).norm(dim=1)
    assert error.median() < 0.15
    assert before.median() > 1
    assert (error < 0.6).double().mean() > 0.7
    canonical = model.transform(X)[:, : 28 * 36 * 3].reshape(-1, 28, 36, 3)
    assert_allclose(canonical[:, [0, 0, -1, -1], [0, -1, 0, -1]], 255, atol=1e-2)
