"""Images as they come: of any size and brightness, with noise and gaps, in lists, and what is carried along."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sk_avae import (
    AffineCanonicalizer,
    AlignmentDisplay,
    AVAEEstimator,
    CanonicalizedClassifier,
    ELBOProfileDisplay,
    load,
    save,
)
from sk_avae.datasets import load_mnist_sample, make_perturbed
from sk_avae.scoring import neg_reconstruction_error
from sk_avae.vae import MLPVAE

N = 60


def misses(alpha, true):
    return np.abs(np.angle(np.exp(1j * (alpha[:, 0] - true[:, 0]))))


def share_alike(alpha, true):
    """Return the share of poses within 20 degrees of others."""
    return float((misses(alpha, true) < np.radians(20)).mean())


def enlarged(X, factor=3):
    """Return digits as a stack of larger images of floats, smooth as photographs are."""
    stack = torch.from_numpy(X.reshape(-1, 1, 28, 28).astype(np.float32))
    return torch.nn.functional.interpolate(stack, scale_factor=factor, mode="bilinear")[:, 0].numpy()


@pytest.fixture(scope="module")
def large(small_avae, digits):
    """A model fitted on digits of 84 x 84 pixels."""
    return small_avae().fit(enlarged(digits.X[:1000]))


@pytest.fixture(scope="module")
def large_turned(digits):
    return make_perturbed(enlarged(digits.X_test[:N]), random_state=0)


# ---------------------------------------------------------------- resolution
def test_a_large_image_is_seen_small_and_answered_at_its_full_size(large, large_turned):
    X, true = large_turned
    assert large.image_format_.frame_shape == (1, 34, 34)
    assert large.image_shape_ == (84, 84)
    T = large.transform(X)
    assert T.shape == (N, 84 * 84 + 1)
    assert share_alike(T[:, -1:], true) > 0.65
    # The canonical images are warped from the images' own pixels: as sharp as these are.
    again = large.warp(X, T[:, -1:])
    inside = (slice(None), slice(2, -2), slice(2, -2))
    assert_allclose(T[:, :-1].reshape(X.shape)[inside], again[inside], atol=1e-2)
    for method, shape in (("encode", (N, 13)), ("reconstruct", (N, 84 * 84)), ("score_samples", (N,))):
        assert getattr(large, method)(X).shape == shape
    assert large.decode(large.encode(X)).shape == (N, 84 * 84)
    assert large.sample(2).shape == (2, 84 * 84)
    assert large.transform_hypotheses(X[:3])[0].shape == (3, 2, 84 * 84)


def test_the_way_back_is_at_full_size(large, large_turned):
    X, _ = large_turned
    back = large.inverse_transform(large.transform(X)).reshape(X.shape)
    assert np.abs(back - X)[:, 20:-20, 20:-20].mean() < 6


def test_a_reconstruction_looks_like_the_image(large, large_turned):
    X, _ = large_turned
    reconstructed = large.reconstruct(X).reshape(X.shape)
    assert np.square(reconstructed - X).mean() < 0.5 * np.square(X).mean()


def test_the_same_poses_as_of_small_images(large, fitted, digits, turned):
    small = fitted.align(turned.X[:N]).alpha
    found = large.align(enlarged(turned.X[:N])).alpha
    assert share_alike(found, small) > 0.75


@pytest.mark.parametrize(
    ("resolution", "frame"), [("auto", (34, 34)), (20, (20, 20)), (None, (84, 84)), (200, (84, 84))]
)
def test_resolution_says_what_the_model_sees(small_avae, digits, resolution, frame):
    model = small_avae(resolution=resolution, max_epochs=1, learned_starts=False).fit(enlarged(digits.X[:40]))
    assert model.image_format_.frame_shape[1:] == frame
    assert model.transform(enlarged(digits.X[:3])).shape == (3, 84 * 84 + 1)


@pytest.mark.parametrize(
    ("shape", "pad", "module", "family"),
    [
        ((60, 84), 0, "mlp", "affine"),
        ((60, 84, 3), 4, "mlp", "rotation"),
        ((61, 85), 3, "conv", "rigid"),
        ((50, 50, 2), 0, "conv", "similarity"),
    ],
)
def test_shapes_margins_and_convolutions(small_avae, digits, shape, pad, module, family):
    big = enlarged(digits.X[:40])[:, : shape[0], : shape[1]]
    X = np.pad(big, ((0, 0), (0, shape[0] - big.shape[1]), (0, shape[1] - big.shape[2])))
    X = np.repeat(X[..., None], shape[2], axis=3) if len(shape) == 3 else X
    how = {"pad": pad, "module": module, "family": family, "learned_starts": False, "max_epochs": 1, "tol": 1e6}
    model = small_avae(**how).fit(X)
    assert max(model.image_format_.frame_shape[1:]) <= 40
    T = model.transform(X[:4])
    n = int(np.prod(shape))
    assert T.shape == (4, n + model.align(X[:1]).alpha.shape[1])
    assert np.isfinite(T).all()
    # Shifts are in half sides of the image, whatever frame it is seen in.
    alpha = np.zeros((4, T.shape[1] - n))
    if family != "rotation":
        alpha[:, model.align(X[:1]).parameters.index("tx")] = 0.5
        moved = model.inverse_transform(np.hstack([X[:4].reshape(4, -1), alpha])).reshape(4, *shape)
        by = shape[1] // 4
        if shape[1] % 4 == 0:
            assert_allclose(moved[:, :, by:], X[:4, :, :-by], atol=0.1)


def test_of_a_module_of_ones_own_the_size_is_its_own(digits):
    module = MLPVAE((1, 84, 84), 2, hidden_layer_sizes=(8,))
    model = AVAEEstimator(2, module=module, max_epochs=1, random_state=0, learned_starts=False, critic=False)
    assert model.fit(enlarged(digits.X[:40])).image_format_.sides is None
    said = AVAEEstimator(2, module=MLPVAE((1, 28, 28), 2), resolution=28, max_epochs=1, random_state=0)
    said.set_params(learned_starts=False, critic=False)
    assert said.fit(enlarged(digits.X[:40])).transform(enlarged(digits.X[:2])).shape == (2, 84 * 84 + 1)


def test_a_vae_from_elsewhere_wraps_images_of_any_size(fitted, digits, turned):
    vae = copy.deepcopy(fitted.module_)
    small = AVAEEstimator.from_vae(vae, image_shape=(28, 28), scale=255.0)
    big = AVAEEstimator.from_vae(vae, image_shape=(84, 84), resolution=28, scale=255.0)
    X = enlarged(turned.X[:30])
    assert share_alike(big.align(X).alpha, small.align(turned.X[:30]).alpha) > 0.8
    assert big.transform(X).shape == (30, 84 * 84 + 1)
    with pytest.raises(ValueError, match=r"MLPVAE.encode takes no input of shape .* say resolution="):
        AVAEEstimator.from_vae(vae, image_shape=(84, 84), scale=255.0)


def test_it_goes_on_is_copied_and_saved(large, large_turned, digits, tmp_path):
    X, _ = large_turned
    expected = large.transform(X[:10])
    assert_array_equal(pickle.loads(pickle.dumps(large)).transform(X[:10]), expected)
    save(large, tmp_path / "large")
    assert_array_equal(load(tmp_path / "large").transform(X[:10]), expected)
    on = copy.deepcopy(large).set_params(warm_start=True, max_epochs=1).fit(enlarged(digits.X[:200]))
    assert on.n_iter_ == large.n_iter_ + 1
    on.partial_fit(enlarged(digits.X[:50]))
    with pytest.raises(ValueError, match=r"resolution=20 \(was 34\)"):
        copy.deepcopy(large).set_params(warm_start=True, resolution=20).fit(enlarged(digits.X[:200]))


def test_an_answer_does_not_depend_on_the_batch(large, large_turned):
    X, _ = large_turned
    together = large.transform(X)
    assert_array_equal(np.concatenate([large.transform(X[k : k + 1]) for k in range(5)]), together[:5])


@pytest.mark.parametrize("resolution", ["large", 0, 3, 2.5, True])
def test_a_resolution_that_is_none(digits, resolution):
    with pytest.raises((TypeError, ValueError), match="resolution"):
        AVAEEstimator(resolution=resolution).fit(digits.X[:20])


# ---------------------------------------------------------------- brightness and noise
DRIFTS = {
    "a raised background": (1.0, 40.0),
    "half the gain, and brighter": (0.5, 60.0),
    "a quarter of the gain": (0.25, 0.0),
    "other units": (1 / 255, 0.0),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_another_exposure_changes_no_pose(fitted, turned, drift):
    gain, offset = DRIFTS[drift]
    X = turned.X[:N].astype(float)
    with warnings.catch_warnings(action="ignore"):  # of other units
        found = fitted.align(gain * X + offset)
    assert share_alike(found.alpha, fitted.align(turned.X[:N]).alpha) > 0.9


@pytest.mark.filterwarnings("ignore:The contrast of")
@pytest.mark.parametrize("drift", [(0.5, 60.0), (-1.0, 255.0)])
@pytest.mark.parametrize("how", [{"pad": 4}, {"pad": 3, "resolution": 20}])
def test_margins_are_as_bright_as_the_image(small_avae, digits, turned, drift, how):
    gain, offset = drift
    model = small_avae(max_epochs=8, **how).fit(digits.X[:600])
    X = turned.X[:N].astype(float)
    T, plain = model.transform(gain * X + offset), model.transform(X)
    assert share_alike(T[:, -1:], plain[:, -1:]) > 0.85
    same = misses(T[:, -1:], plain[:, -1:]) < 1e-4
    assert_allclose(T[same, :-1], gain * plain[same, :-1] + offset, atol=0.5)


def test_canonical_images_keep_their_own_pixels_and_background(fitted, turned):
    X = 0.5 * turned.X[:N].astype(float) + 60
    T = fitted.transform(X)
    plain = fitted.warp(turned.X[:N].reshape(-1, 28, 28), T[:, -1:]).reshape(N, -1)
    assert_allclose(T[:, :-1], 0.5 * plain + 60, atol=0.05)


def test_inverted_contrast_is_found_and_named(fitted, turned):
    with pytest.warns(UserWarning, match="The contrast of 60 of 60 images is inverted"):
        found = fitted.align(255 - turned.X[:N])
    assert share_alike(found.alpha, fitted.align(turned.X[:N]).alpha) > 0.95


def test_where_images_are_not_rescaled_by_themselves_brightness_counts(small_avae, digits, turned):
    model = small_avae(rescale=True, max_epochs=5).fit(digits.X[:500])
    assert model.image_format_.exposure is None
    darker = 0.3 * turned.X[:N].astype(float) + 100
    assert share_alike(model.align(darker).alpha, model.align(turned.X[:N]).alpha) < 0.9


def test_clean_images_cost_nothing(small_avae, digits, turned):
    """The default changes no weight, and hardly an image that looks as training images do."""
    model = small_avae(max_epochs=2).fit(digits.X[:500])
    plain = small_avae(max_epochs=2, rescale=True).fit(digits.X[:500])
    for name, tensor in plain.module_.state_dict().items():
        assert torch.equal(model.module_.state_dict()[name], tensor), name
    same = (model.align(turned.X[:200]).alpha == plain.align(turned.X[:200]).alpha).all(axis=1)
    assert same.mean() > 0.95


def test_an_image_is_seen_alone_as_among_noisy_ones(fitted, turned):
    X = turned.X[:30].astype(float)
    X[::3] = np.clip(X[::3] + np.random.default_rng(0).normal(0, 40, X[::3].shape), 0, 255)
    X[1::3] = 0.3 * X[1::3] + 60
    together = fitted.transform(X)
    assert_array_equal(np.concatenate([fitted.transform(X[k : k + 1]) for k in range(12)]), together[:12])
    assert_array_equal(fitted.transform(X[2::3]), together[2::3])


@pytest.mark.parametrize("what", ["noise", "salt"])
def test_noise_costs_few_poses(fitted, turned, what):
    random = np.random.default_rng(0)
    X = turned.X[:200].astype(float)
    if what == "noise":
        spoiled = np.clip(X + random.normal(0, 40, X.shape), 0, 255)
    else:
        spoiled = np.where(random.random(X.shape) < 0.05, 255.0, X)
    clean = fitted.align(turned.X[:200]).alpha
    found = fitted.align(spoiled)
    assert share_alike(found.alpha, clean) > 0.75
    assert np.isfinite(found.elbo).all()
    # The ELBO is that of the image with its noise.
    assert found.elbo.mean() < fitted.align(turned.X[:200]).elbo.mean() - 20


def test_a_density_follows_the_correction(small_avae, digits, turned):
    """Densities are per unit of the pixels as they came: half the contrast is log 2 more per pixel."""
    model = small_avae(likelihood="gaussian", max_epochs=3).fit(digits.X[:300])
    X = turned.X[:20].astype(float)
    whole, tenth = model.score_samples(X), model.score_samples(0.1 * X)
    gain = model.image_format_.exposure[2][0]
    assert 784 * np.log(10 * gain) * 0.8 < (tenth - whole).mean() < 784 * np.log(10) * 1.05


# ---------------------------------------------------------------- gaps
def with_gaps(X, share=0.05, seed=0):
    X = X.astype(float).reshape(len(X), -1)
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


@pytest.fixture
def ignoring(avae):
    return avae.set_params(missing_values="ignore")


def without_corner(X):
    X = X.astype(float).reshape(-1, 28, 28)
    X[:, :14, :14] = np.nan
    return X


@pytest.mark.parametrize(("spoil", "share"), [(with_gaps, 0.9), (without_corner, 0.65)])
def test_unknown_pixels_cost_few_poses_and_are_filled(ignoring, turned, spoil, share):
    X, whole = turned.X[:N], ignoring.align(turned.X[:N])
    found = ignoring.align(spoil(X))
    assert share_alike(found.alpha, whole.alpha) > share
    T = ignoring.transform(spoil(X))
    assert np.isfinite(T).all()
    # What fills the gaps is nearer to what was there than nothing is.
    own = ignoring.warp(X.reshape(-1, 28, 28), T[:, -1:]).reshape(N, -1)
    empty = ignoring.warp(np.nan_to_num(spoil(X)).reshape(-1, 28, 28), T[:, -1:]).reshape(N, -1)
    assert np.square(T[:, :-1] - own).mean() < np.square(empty - own).mean()


def test_unknown_pixels_stay_unknown_where_asked(ignoring, turned):
    X = without_corner(turned.X[:N])
    kept = ignoring.set_params(missing_values="keep").transform(X)
    filled = ignoring.set_params(missing_values="ignore").transform(X)
    unknown = np.isnan(kept)
    assert 0.1 < unknown[:, :-1].mean() < 0.3
    assert not unknown[:, -1].any()
    assert_array_equal(kept[~unknown], filled[~unknown])
    assert ignoring.set_params(missing_values="keep").inverse_transform(kept).shape == (N, 784)


def test_gaps_are_refused_by_default_and_the_message_says_what_to_say(fitted, turned):
    with pytest.raises(ValueError, match="missing_values='ignore'"):
        fitted.transform(with_gaps(turned.X[:5]))


def test_masked_arrays_have_gaps(ignoring, turned):
    X = with_gaps(turned.X[:10])
    masked = np.ma.masked_array(np.nan_to_num(X), mask=np.isnan(X))
    assert_array_equal(ignoring.transform(masked), ignoring.transform(X))


def test_an_image_without_a_known_pixel_is_refused(ignoring, turned):
    X = turned.X[:5].astype(float)
    X[3] = np.nan
    with pytest.raises(ValueError, match="Row 3 of X has no pixel that is known"):
        ignoring.align(X)


def test_images_without_gaps_are_answered_as_if_there_were_none(ignoring, turned):
    X = turned.X[:20].astype(float)
    mixed = np.vstack([X[:10], with_gaps(turned.X[10:20])])
    together, alone = ignoring.align(mixed).arrays(), ignoring.align(X[:10]).arrays()
    for name, array in alone.items():
        assert_array_equal(together[name][:10], array, err_msg=name)
    still = ignoring.negative_elbo(mixed, align=False)[:10]
    assert_array_equal(still, ignoring.negative_elbo(X[:10], align=False))
    alone = [ignoring.transform(mixed[k : k + 1]) for k in (0, 12)]
    assert_array_equal(np.concatenate(alone), ignoring.transform(mixed)[[0, 12]])


@pytest.mark.parametrize("how", [{}, {"early_stopping": True}, {"align_training": True, "max_epochs": 2}])
def test_training_images_may_have_gaps(small_avae, digits, turned, how):
    X = with_gaps(digits.X[:400])
    X[:, 28 * 13 : 28 * 13 + 28] = np.nan  # a dead row
    model = small_avae(missing_values="ignore", **{"max_epochs": 10, **how}).fit(X)
    spoiled = turned.X[:N].astype(float)
    spoiled[:, 28 * 13 : 28 * 13 + 28] = np.nan
    assert np.isfinite(model.transform(spoiled)).all()
    assert np.isfinite(model.history_[-1]["train_loss"])
    if not how:
        assert share_alike(model.align(spoiled).alpha, turned.alpha[:N]) > 0.4


def test_gaps_at_full_size(large, large_turned):
    X = large_turned[0].copy()
    X[:, 30:50, 10:30] = np.nan
    X[:, 7] = np.nan  # a row too thin to be a gap of the frame
    model = copy.deepcopy(large).set_params(missing_values="ignore")
    T = model.transform(X)
    assert np.isfinite(T).all()
    assert share_alike(T[:, -1:], large.transform(large_turned[0])[:, -1:]) > 0.6


def test_a_pipeline_and_its_search_take_gaps(small_avae, digits):
    X, y = with_gaps(digits.X[:120]), digits.y[:120]
    aligner = small_avae(missing_values="ignore", max_epochs=2, learned_starts=False)
    pipeline = make_pipeline(AffineCanonicalizer(aligner), LogisticRegression(max_iter=50, tol=0.1))
    search = GridSearchCV(pipeline, {"affinecanonicalizer__estimator__n_restarts": [4]}, cv=2).fit(X, y)
    assert search.predict(X[:5]).shape == (5,)
    model = CanonicalizedClassifier(LogisticRegression(max_iter=50, tol=0.1), aligner, n_copies=1).fit(X, y)
    assert model.predict(X[:5]).shape == (5,)


# ---------------------------------------------------------------- padding and interpolation
def test_padding_is_chosen_by_the_edges(small_avae, digits):
    ink = small_avae(max_epochs=1, learned_starts=False).fit(digits.X[:40])
    assert ink.image_format_.padding == "background"
    varied = np.random.default_rng(0).integers(0, 256, (40, 12, 12)).astype(np.uint8)
    photographs = small_avae(max_epochs=1, learned_starts=False).fit(varied)
    assert photographs.image_format_.padding == PADDING_OF_PHOTOGRAPHS
    said = small_avae(max_epochs=1, learned_starts=False, padding="background").fit(varied)
    assert said.image_format_.padding == "background"


PADDING_OF_PHOTOGRAPHS = "reflect"


def test_bicubic_canonical_images_are_sharper(avae, turned):
    plain = avae.transform(turned.X[:N])
    sharp = avae.set_params(interpolation="bicubic").transform(turned.X[:N])
    assert_array_equal(plain[:, -1], sharp[:, -1])
    moved = plain[:, -1] != 0
    assert sharp[moved, :-1].std(axis=1).mean() > plain[moved, :-1].std(axis=1).mean()


# ---------------------------------------------------------------- images of unequal sizes
def unequal(X, seed=0):
    """Return digits as a list of images of sizes from 28 to 56."""
    random, images = np.random.default_rng(seed), []
    for image in X.reshape(-1, 1, 1, 28, 28):
        sides = tuple(random.integers(28, 57, 1).repeat(2).tolist())
        pixels = torch.from_numpy(image[0].astype(np.float32))[None]
        images.append(torch.nn.functional.interpolate(pixels, size=sides, mode="bilinear")[0, 0].numpy())
    return images


def test_a_list_of_images_goes_in_and_a_stack_comes_out(fitted, turned, digits, small_avae):
    images = unequal(turned.X[:N].reshape(-1, 1, 28, 28))
    found = fitted.align(images)
    assert share_alike(found.alpha, fitted.align(turned.X[:N]).alpha) > 0.85
    assert fitted.transform(images).shape == (N, 785)
    canonicalizer = AffineCanonicalizer(small_avae(max_epochs=1, learned_starts=False))
    many = unequal(digits.X[:50].reshape(-1, 1, 28, 28))
    shape = canonicalizer.fit(many).estimator_.image_shape_
    assert shape[0] == shape[1] == round(np.median([image.shape[0] for image in many]))
    assert canonicalizer.transform(many).shape == (50, *shape)
    assert canonicalizer.transform(images[:2]).shape == (2, *shape)
    model = CanonicalizedClassifier(LogisticRegression(max_iter=20, tol=0.1), small_avae(max_epochs=1))
    assert model.fit(many, digits.y[:50]).predict(images[:3]).shape == (3,)


def test_one_image_of_another_size_is_brought_to_the_model_s(fitted, turned):
    image = enlarged(turned.X[:1], 2)[0]
    assert share_alike(fitted.align([image]).alpha, fitted.align(turned.X[:1]).alpha) == 1


def test_proportions_stay_and_edges_fill_the_rest(fitted):
    from sk_avae._sizes import in_one_size

    tall = np.pad(np.full((20, 6), 7.0), 1, constant_values=2.0)
    (found,) = in_one_size([tall], (28, 28))
    assert (found[:, :8] == 2).all()
    assert (found[:, -8:] == 2).all()
    assert (found[5:-5, 12:16] > 6.5).all()


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([np.zeros((28, 28)), np.zeros((30, 30, 3))], r"X\[1\] has 3 channels, and 1 are expected"),
        ([np.zeros((28, 28)), np.zeros((2, 300))], r"X\[1\] is an image of 2 x 300 pixels, of quite another"),
        ([np.zeros((28, 28)), np.zeros((0, 5))], r"X\[1\] is an image without pixels"),
    ],
)
def test_a_list_that_is_none_of_images(fitted, images, match):
    with pytest.raises(ValueError, match=match):
        fitted.transform(images)


# ---------------------------------------------------------------- carried along
def test_points_go_there_and_back(small_avae, stretched):
    X, _ = load_mnist_sample("train")
    result = small_avae(family="affine", max_epochs=3, tol=1.0).fit(X[:300]).align(stretched.X[:20])
    points = np.random.default_rng(0).uniform(-5, 40, (20, 7, 2))
    there = result.transform_points(points)
    assert_allclose(result.inverse_transform_points(there), points, atol=1e-3)
    same = result.transform_points(points[0])
    assert same.shape == (20, 7, 2)
    assert_allclose(same[0], there[0], atol=1e-9)
    assert np.isnan(result.transform_points(np.full((20, 1, 2), np.nan))).all()
    for wrong in (points[:3], points[..., :1], np.zeros(2)):
        with pytest.raises(ValueError, match="points must have shape"):
            result.transform_points(wrong)


@pytest.mark.parametrize("shape", [(48, 48), (40, 64)])
def test_a_point_lands_where_its_pixels_do(small_avae, shape):
    """A spot in an image and the point at its middle arrive at the same place, to a hundredth of a pixel."""
    height, width = shape
    x0, y0 = 0.58 * width, 0.45 * height
    y, x = np.mgrid[:height, :width]
    spot = np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * 1.5**2))[None]
    model = small_avae(family="affine", max_epochs=1, learned_starts=False, image_shape=shape)
    model.fit(np.concatenate([np.random.default_rng(0).random((40, *shape)), spot]))
    alpha = np.array([[0.4, 0.1, -0.1, 0.2, 0.1, -0.15]])
    canonical = model.warp(spot, alpha, interpolation="bicubic")[0]
    result = model.align(spot)
    matrix = model.image_format_.matrix(alpha, "affine")
    point = type(result)(**{**result.__dict__, "matrix": matrix}).transform_points([[[x0, y0]]])[0, 0]
    found = (canonical * x).sum() / canonical.sum(), (canonical * y).sum() / canonical.sum()
    assert_allclose(found, point, atol=0.01)


def test_the_pixel_matrix_is_what_scikit_image_takes(fitted, turned):
    transform = pytest.importorskip("skimage.transform")
    result = fitted.align(turned.X[:5])
    for image, canonical, matrix in zip(turned.X[:5], fitted.transform(turned.X[:5]), result.pixel_matrix, strict=True):
        warped = transform.warp(
            image.reshape(28, 28).astype(float), transform.AffineTransform(matrix=matrix), order=1, preserve_range=True
        )
        inside = (slice(2, -2), slice(2, -2))
        assert_allclose(warped[inside], canonical[:-1].reshape(28, 28)[inside], atol=0.1)


def test_label_masks_keep_their_labels_and_type(fitted, turned):
    result = fitted.align(turned.X[:10])
    for dtype in (np.int64, np.uint8, bool):
        masks = (turned.X[:10].reshape(-1, 28, 28) > 100).astype(dtype) * dtype(1)
        found = fitted.warp(masks, result, interpolation="nearest")
        assert found.dtype == masks.dtype
        assert set(np.unique(found)) <= set(np.unique(masks))
    huge = np.full((10, 28, 28), 2**40 + 1, dtype=np.int64)
    assert set(np.unique(fitted.warp(huge, result, interpolation="nearest"))) <= {0, 2**40 + 1}


def test_other_channels_and_resolutions_are_carried_along(fitted, turned):
    result = fitted.align(turned.X[:5])
    stack = turned.X[:5].reshape(-1, 28, 28)
    canonical = fitted.transform(turned.X[:5])[:, :-1].reshape(-1, 28, 28)
    assert_allclose(fitted.warp(stack, result), canonical, atol=1e-3)
    colour = np.repeat(stack[..., None], 5, axis=3)
    assert_allclose(fitted.warp(colour, result.alpha)[..., 4], canonical, atol=1e-3)
    fine = fitted.warp(enlarged(turned.X[:5]), result)
    assert fine.shape == (5, 84, 84)
    assert np.abs(fine[:, 1::3, 1::3] - canonical).mean() < 6
    back = fitted.warp(fitted.warp(enlarged(turned.X[:5]), result), result, inverse=True)
    assert np.abs(back - enlarged(turned.X[:5]))[:, 20:-20, 20:-20].mean() < 5
    assert_allclose(fitted.warp(stack, np.zeros((5, 1))), stack, atol=1e-3)


@pytest.mark.parametrize(
    ("X", "alpha", "match"),
    [
        (np.zeros((2, 784)), np.zeros((2, 1)), "X must be images of shape"),
        (np.zeros((2, 28, 40)), np.zeros((2, 1)), "not in the proportion"),
        (np.zeros((2, 28, 28)), np.zeros((3, 1)), "alpha must be finite numbers of shape"),
        (np.zeros((2, 28, 28)), np.full((2, 1), np.nan), "alpha must be finite numbers of shape"),
        (np.full((2, 28, 28), "a"), np.zeros((2, 1)), "X must hold numbers"),
    ],
)
def test_what_cannot_be_warped_is_named(fitted, X, alpha, match):
    with pytest.raises(ValueError, match=match):
        fitted.warp(X, alpha)


# ---------------------------------------------------------------- displays, scorers
def test_displays_draw_large_images_and_gaps(large, large_turned, ignoring, turned):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    display = AlignmentDisplay.from_estimator(large, large_turned[0], n_images=3)
    assert display.canonical.shape == display.reconstructed.shape == (3, 84, 84)
    gaps = AlignmentDisplay.from_estimator(ignoring, without_corner(turned.X[:3]))
    assert np.isnan(gaps.inputs).any()
    assert np.isfinite(gaps.canonical).all()
    assert ELBOProfileDisplay.from_estimator(large, large_turned[0], n_angles=7).elbo.shape == (7,)
    assert np.isfinite(ELBOProfileDisplay.from_estimator(ignoring, without_corner(turned.X[:3]), n_angles=7).elbo).all()
    pyplot.close("all")


def test_scores_of_images_with_gaps(ignoring, turned):
    X = without_corner(turned.X[:20])
    for score in (ignoring.score(X), neg_reconstruction_error(ignoring, X.reshape(20, -1))):
        assert np.isfinite(score)
    assert np.isfinite(ignoring.negative_elbo(X, align=False)).all()
    assert np.isfinite(ignoring.transform_hypotheses(X)[0]).all()


def test_fit_says_what_it_chose(small_avae, digits, capsys):
    small_avae(max_epochs=1, learned_starts=False, verbose=1).fit(enlarged(digits.X[:40]))
    out = capsys.readouterr().out
    expected = (
        "40 images of 84 x 84 pixels, seen as 34 x 34; likelihood Bernoulli; outside an image lies its background"
    )
    assert expected in out.splitlines()[0]
