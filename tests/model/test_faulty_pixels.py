"""Faulty pixels: which they are, and what the search sees instead."""

import pytest
import torch

from sk_avae.model.faults import has_few, is_faulty, reach_of_pixels, repaired

LIMITS = (0.0, 1.0)


def images(n=3, side=10):
    return torch.rand(n, 2, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("limits", [(0.0, 1.0), (-3.0, 5.0)])
def test_pixels_are_faulty_a_whole_range_outside(limits):
    low, high = limits
    lowest, highest = reach_of_pixels(limits)
    assert (lowest, highest) == (low - (high - low), high + (high - low))
    row = torch.tensor([lowest, lowest - 1e-3, low, high, highest, highest + 1e-3]).view(1, 1, 1, 6)
    assert is_faulty(row, limits).flatten().tolist() == [False, True, False, False, False, True]


def test_sound_images_keep_their_bits():
    assert torch.equal(repaired(images(), LIMITS), images())


def test_a_faulty_pixel_becomes_the_median_of_its_sound_neighbours():
    spoiled = images()
    spoiled[1, 1, 4, 6] = 50.0
    spoiled[1, 1, 4, 7] = -50.0
    spoiled[2, 0, 0, 0] = 50.0
    found = repaired(spoiled, LIMITS)
    sound = [spoiled[1, 1, i, j] for i in (3, 4, 5) for j in (5, 6, 7) if (i, j) not in ((4, 6), (4, 7))]
    assert found[1, 1, 4, 6] == torch.stack(sound).median()
    assert found[2, 0, 0, 0] == torch.stack([spoiled[2, 0, 0, 1], spoiled[2, 0, 1, 0], spoiled[2, 0, 1, 1]]).median()
    same = torch.ones_like(found, dtype=torch.bool)
    same[1, 1, 4, 6:8] = same[2, 0, 0, 0] = False
    assert torch.equal(found[same], spoiled[same])
    assert not is_faulty(found, LIMITS).any()


def test_another_exposure_is_bounded_and_not_repaired():
    bright = images() * 5
    assert not has_few(is_faulty(bright, LIMITS)).any()
    assert torch.equal(repaired(bright, LIMITS), bright.clamp(max=2.0))


def test_a_block_without_a_sound_neighbour_is_bounded():
    spoiled = images(side=30)
    spoiled[0, 0, 10:13, 10:13] = 50.0
    found = repaired(spoiled, LIMITS)
    assert found[0, 0, 11, 11] == 2.0
    assert found[0, 0, 10, 10] <= 1.0


def test_an_image_is_repaired_alike_alone_and_among_others():
    spoiled = images()
    spoiled[:, 0, 4, 4] = 9.0
    assert torch.equal(repaired(spoiled, LIMITS)[1:2], repaired(spoiled[1:2], LIMITS))
