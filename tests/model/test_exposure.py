"""Exposure: images as bright as training images stay, others are brought to their levels."""

import pytest
import torch

from sk_avae.model.exposure import correction, levels, usual_exposure


def ink(n=40, channels=1, side=12, dtype=torch.double):
    """Return images with a bright shape on black, of contrasts from .8 to 1."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(n, channels, side, side, dtype=dtype)
    images[:, :, 3:9, 4:8] = torch.rand(n, channels, 6, 4, generator=generator, dtype=torch.double).to(dtype) * 0.5
    images[:, :, 4:8, 5:7] = torch.linspace(0.8, 1.0, n, dtype=torch.double).to(dtype).view(-1, 1, 1, 1)
    return images


def photographs(n=40):
    return torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)


@pytest.mark.parametrize("from_edges", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_images_as_in_training_keep_their_bits(from_edges, dtype):
    images = ink(dtype=dtype) if from_edges else photographs().to(dtype)
    usual = usual_exposure(images, from_edges=from_edges)
    found = correction(images, usual)
    assert torch.equal(found.of(images), images)
    assert not found.changes.any()
    assert not found.inverts.any()


@pytest.mark.parametrize(
    ("gain", "offset"), [(1.0, 0.3), (0.3, 0.0), (0.2, 0.5), (20.0, -3.0), (-1.0, 1.0), (-0.2, 0.9)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_drift_is_undone(gain, offset, channels):
    images = ink(channels=channels)
    usual = usual_exposure(images, from_edges=True)
    found = correction(gain * images + offset, usual)
    corrected = found.of(gain * images + offset)
    # To the nearest usual contrast.
    ground, contrast = levels(corrected, from_edges=True)
    assert ground.abs().max() < 1e-9
    assert ((contrast >= usual.ink[0] / 1.25 - 1e-9) & (contrast <= usual.ink[1] * 1.25 + 1e-9)).all()
    if abs(gain) < 0.6:
        assert ((contrast >= usual.ink[0] - 1e-9) & (contrast <= usual.ink[1] + 1e-9)).all()
    shape = corrected / contrast.view(-1, 1, 1, 1)
    torch.testing.assert_close(shape, images / levels(images, from_edges=True)[1].view(-1, 1, 1, 1), atol=1e-9, rtol=0)
    assert found.inverts.all() == (gain < 0)
    torch.testing.assert_close(found.undone(corrected), gain * images + offset, atol=1e-9, rtol=0)


def test_photographs_are_brought_to_a_usual_range_by_their_darkest_and_brightest():
    images = photographs()
    usual = usual_exposure(images, from_edges=False)
    dark = 0.1 * images + 0.7
    corrected = correction(dark, usual).of(dark)
    ground, contrast = levels(corrected, from_edges=False)
    assert ((ground >= usual.ground[0] - 1e-9) & (ground <= usual.ground[1] + 1e-9)).all()
    assert (contrast >= usual.ink[0] - 1e-9).all()


def test_a_few_hot_or_dead_pixels_decide_nothing():
    images = ink()
    usual = usual_exposure(images, from_edges=True)
    spoiled = images.clone()
    spoiled[:, 0, 2, 2], spoiled[:, 0, 10, 10], spoiled[:, 0, 0, 0] = 50.0, -50.0, 1e6
    assert not correction(spoiled, usual).changes.any()


def test_unknown_pixels_have_no_part():
    images = ink()
    usual = usual_exposure(images, from_edges=True)
    gaps = 0.5 * images + 0.25
    gaps[:, :, :, 10:] = torch.nan
    gaps[:, :, 5, 5] = torch.nan
    found = correction(gaps, usual)
    known = ~gaps.isnan()
    contrast = levels(found.of(gaps), from_edges=True)[1]
    assert (found.of(gaps)[known].isfinite()).all()
    assert (contrast > 0.6).all()
    lost = torch.full((1, 1, 12, 12), torch.nan, dtype=torch.double)
    assert not correction(lost, usual).changes.any()


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0, -7.0])
def test_a_constant_image_stays_constant(level):
    usual = usual_exposure(ink(), from_edges=True)
    flat = torch.full((2, 1, 12, 12), level, dtype=torch.double)
    corrected = correction(flat, usual).of(flat)
    assert corrected.isfinite().all()
    assert (corrected == corrected[:, :, :1, :1]).all()


def test_constant_training_images_tell_nothing():
    assert usual_exposure(torch.ones(5, 1, 8, 8), from_edges=True) is None


def test_it_takes_a_clear_case_to_be_inverted():
    usual = usual_exposure(ink(), from_edges=True)
    both = torch.full((1, 1, 12, 12), 0.5, dtype=torch.double)
    both[:, :, 3:9, 3:6], both[:, :, 3:9, 6:9] = 0.9, 0.0
    assert not correction(both, usual).inverts.any()
    both[:, :, 3:9, 3:6] = 0.6
    assert correction(both, usual).inverts.all()


def test_an_object_that_covers_most_edges_is_no_ground():
    usual = usual_exposure(ink(), from_edges=True)
    covered = torch.zeros(1, 1, 12, 12, dtype=torch.double)
    covered[:, :, :, :9] = 0.9
    assert not correction(covered, usual).changes.any()
    # Unless nothing of the edges is as the ground was.
    assert correction(covered + 0.3, usual).changes.all()


def test_an_image_is_corrected_alone_as_among_others():
    images = torch.cat([0.3 * ink(8) + 0.2, ink(8), 1 - ink(8)])
    usual = usual_exposure(ink(), from_edges=True)
    together = correction(images, usual).of(images)
    for k in range(len(images)):
        assert torch.equal(correction(images[k : k + 1], usual).of(images[k : k + 1])[0], together[k])


def test_levels_are_the_fourth_pixel_from_either_end_and_the_edges_median():
    image = torch.full((1, 1, 6, 6), 0.5, dtype=torch.double)
    image[0, 0, 1:5, 1:5] = torch.linspace(0.1, 0.85, 16, dtype=torch.double).view(4, 4)
    inner = image[0, 0, 1:5, 1:5].flatten()
    ground, contrast = levels(image, from_edges=True)
    assert ground == 0.5
    # Ink on both sides of the ground: at least three quarters of the whole range count.
    whole = inner[-4] - inner[3]
    assert contrast == pytest.approx(max(float(inner[-4] - 0.5), 0.75 * float(whole)))
    darkest, between = levels(image, from_edges=False)
    assert darkest == inner[3]
    assert between == pytest.approx(float(whole))
    # The brightest four become unknown: the four before them tell.
    image[0, 0, 4, 1:5] = torch.nan
    assert levels(image, from_edges=False)[1] == pytest.approx(float(inner[-8] - inner[3]))


@pytest.mark.parametrize(("n_known", "place"), [(1, 0), (2, 0), (3, 1), (7, 3), (20, 3)])
def test_where_few_pixels_are_known_fewer_count_as_outlying(n_known, place):
    image = torch.full((1, 1, 5, 5), torch.nan, dtype=torch.double)
    image.view(-1)[:n_known] = torch.arange(n_known, dtype=torch.double)
    low, between = levels(image, from_edges=False)
    assert low == place
    assert low + between == n_known - 1 - place


def test_so_many_pixels_of_a_large_image_are_outlying():
    image = torch.arange(2000, dtype=torch.double).view(1, 2, 20, 50)
    low, between = levels(image, from_edges=False)
    assert (low, low + between) == (10, 1989)


def test_contrast_a_little_out_of_the_usual_stays_and_more_is_brought_to_the_nearest():
    images = ink()
    usual = usual_exposure(images, from_edges=True)
    low, high = usual.ink
    for level, expected in ((low / 1.2, low / 1.2), (low / 1.3, low), (high * 1.2, high * 1.2), (high * 1.3, high)):
        one = torch.zeros(1, 1, 12, 12, dtype=torch.double)
        one[:, :, 4:8, 5:7] = level
        assert levels(correction(one, usual).of(one), from_edges=True)[1] == pytest.approx(expected)
