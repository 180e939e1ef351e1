"""The model's frame: which sides it has, where it lies on an image, and what pixels become in it."""

import pytest
import torch

from sk_avae.model.frame import SMALLEST_FRAME, Frame, frame_sides, resized


def blob(sides, x, y, width=0.2):
    """Return a round spot at (x, y), in half heights of the middle, on an image of such sides."""
    height, across = sides
    rows = (torch.arange(height) + 0.5) * 2 / height - 1
    columns = ((torch.arange(across) + 0.5) * 2 / across - 1) * across / height
    return torch.exp(-((rows[:, None] - y) ** 2 + (columns - x) ** 2) / (2 * width**2))[None, None].double()


def centre_of(image):
    """Return where the mass of an image lies, in pixels from the middle, (x, y)."""
    mass = image[0, 0] / image.sum()
    height, width = mass.shape
    x = ((torch.arange(width) - (width - 1) / 2) * mass.sum(dim=0)).sum()
    y = ((torch.arange(height) - (height - 1) / 2) * mass.sum(dim=1)).sum()
    return float(x), float(y)


@pytest.mark.parametrize(
    ("image", "pad", "resolution", "multiple", "sides"),
    [
        ((28, 28), 0, "auto", 1, None),
        ((40, 40), 5, "auto", 1, None),
        ((64, 64), 0, "auto", 1, (34, 34)),
        ((480, 640), 0, "auto", 1, (26, 34)),
        ((100, 37), 0, 36, 1, (36, 14)),
        ((100, 37), 0, 36, 4, (36, 16)),
        ((512, 512), 0, None, 1, None),
        ((64, 64), 8, 32, 1, (40, 40)),
        ((30, 30), 0, 64, 1, None),
        # No side gets too short, and signals are as long as they are.
        ((512, 20), 0, "auto", 1, (205, SMALLEST_FRAME)),
        ((1, 500), 0, "auto", 1, None),
        ((1, 500), 0, 50, 1, (1, 50)),
        ((9, 300), 0, 32, 1, (8, 267)),
    ],
)
def test_sides(image, pad, resolution, multiple, sides):
    assert frame_sides(image, pad, resolution, multiple) == sides


@pytest.mark.parametrize(("image", "pad", "sides"), [((10, 7), 0, None), ((10, 7), 3, None), ((64, 48), 0, (32, 24))])
def test_margins_are_the_pad_where_the_proportions_agree(image, pad, sides):
    frame = Frame(image, pad, sides)
    assert frame.margins == (pad, pad)
    assert frame.padded == tuple(side + 2 * pad for side in image)
    assert frame.shape == (sides or frame.padded)


@pytest.mark.parametrize(("image", "multiple"), [((100, 37), 1), ((37, 100), 4), ((83, 90), 4), ((101, 64), 1)])
@pytest.mark.parametrize("pad", [0, 5])
def test_the_frame_is_centred_and_its_pixels_are_square(image, multiple, pad):
    frame = Frame(image, pad, frame_sides(image, pad, 36, multiple))
    steps = [whole / seen for whole, seen in zip(frame.padded, frame.shape, strict=True)]
    assert steps[0] == pytest.approx(steps[1], rel=0.03)
    spot = blob(image, 0.1, -0.2)
    rows, columns = frame.margins
    padded = torch.nn.functional.pad(spot, (columns, columns, rows, rows))
    for found, true, step in zip(centre_of(frame.reduced(padded)), centre_of(spot), steps[::-1], strict=True):
        assert found * step == pytest.approx(true, abs=0.02 * image[0])


def test_margins_are_cut_off_again():
    frame = Frame((83, 90), 5, frame_sides((83, 90), 5, 36, 4))
    ones = torch.ones(2, 1, 83, 90)
    rows, columns = frame.margins
    padded = torch.nn.functional.pad(ones, (columns, columns, rows, rows))
    assert torch.equal(frame.cropped(padded), ones)
    # What is cropped of the frame holds nothing of the margin, up to one pixel's blur.
    inner = frame.cropped(frame.reduced(padded))
    assert (inner > 0.4).all()
    assert inner[:, :, 1:-1, 1:-1].min() == pytest.approx(1.0, abs=1e-3)
    assert frame.cropped(torch.ones(2, 1, *frame.shape)).shape == inner.shape


def test_margins_are_of_the_image_s_own_background():
    frame = Frame((83, 90), 5, frame_sides((83, 90), 5, 36, 4))
    background = torch.tensor([[0.25], [0.5]])
    for sides in (frame.padded, frame.shape):
        found = frame.with_margins(torch.ones(2, 1, *sides), background)
        assert (frame.cropped(found) == 1).all()
        assert (found[:, 0, 0, 0] == background[:, 0]).all()
        assert (found == 1).sum() == frame.cropped(found).numel()
    bare = torch.ones(1, 1, 5, 5)
    assert Frame((5, 5)).with_margins(bare, background) is bare


def test_a_smooth_image_survives_the_way_there_and_back():
    frame = Frame((96, 80), 0, frame_sides((96, 80), 0, 32))
    smooth = blob((96, 80), 0.0, 0.1, width=0.35)
    assert (frame.enlarged(frame.reduced(smooth)) - smooth).abs().max() < 0.03
    own = Frame((96, 80))
    assert own.reduced(smooth) is smooth
    assert own.enlarged(smooth) is smooth


def test_what_shrinks_has_no_aliasing():
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    small = resized(board[None, None].double(), (16, 16))
    assert (small - 0.5).abs().max() < 0.07
    assert resized(board[None, None].double(), (64, 64)).shape == (1, 1, 64, 64)


def test_unknown_pixels_have_no_part_in_those_of_the_frame():
    frame = Frame((64, 64), 0, (16, 16))
    image = torch.full((1, 1, 64, 64), 0.25)
    image[:, :, ::7, ::5] = torch.nan
    image[:, :, 20:40, 20:40] = torch.nan
    found = frame.reduced(image)
    assert found[:, :, 6:9, 6:9].isnan().all()
    known = ~found.isnan()
    assert known.float().mean() > 0.85
    torch.testing.assert_close(found[known], torch.full_like(found[known], 0.25))


@pytest.mark.parametrize("n", [1, 3])
def test_an_image_is_reduced_alone_as_among_others(n):
    frame = Frame((50, 70), 0, frame_sides((50, 70), 0, 32))
    rows, columns = frame.margins
    images = torch.rand(n, 3, 50 + 2 * rows, 70 + 2 * columns, generator=torch.Generator().manual_seed(0))
    together = frame.reduced(images)
    for k in range(n):
        assert torch.equal(frame.reduced(images[k : k + 1])[0], together[k])
