"""Folders of pictures become one array, whatever form each file has."""

import sys

import numpy as np
import pytest

from sk_avae.datasets import load_images

Image = pytest.importorskip("PIL.Image")
RAMP = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))  # 20 x 30


def save(folder, name, pixels, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def test_sub_folders_are_classes_and_files_come_in_the_order_of_their_paths(tmp_path):
    for name in ("nut/2.png", "nut/1.tif", "bolt/deep/er/3.bmp"):
        save(tmp_path, name, RAMP)
    (tmp_path / "nut" / "notes.txt").write_text("no picture")
    (tmp_path / "nut" / ".hidden.png").write_text("no picture either")
    data = load_images(tmp_path)
    assert data.filenames == ["bolt/deep/er/3.bmp", "nut/1.tif", "nut/2.png"]
    assert data.target_names == ["bolt", "nut"]
    assert data.target.tolist() == [0, 1, 1]
    assert data.images.dtype == np.uint8
    np.testing.assert_array_equal(data.data, data.images.reshape(3, -1))
    np.testing.assert_array_equal(data.images, np.stack(3 * [RAMP]))


def test_a_flat_folder_has_no_classes(tmp_path):
    save(tmp_path, "a.png", RAMP)
    data = load_images(str(tmp_path))
    assert data.target is None
    assert data.target_names == []


def test_gray_unless_a_picture_has_a_colour(tmp_path):
    save(tmp_path, "gray.png", RAMP)
    save(tmp_path, "gray_as_rgb.png", np.stack(3 * [RAMP], axis=2))
    assert load_images(tmp_path).images.shape == (2, 20, 30)
    np.testing.assert_array_equal(*load_images(tmp_path).images)
    red = np.stack([RAMP, 0 * RAMP, 0 * RAMP], axis=2)
    save(tmp_path, "red.png", red)
    images = load_images(tmp_path).images
    assert images.shape == (3, 20, 30, 3)
    np.testing.assert_array_equal(images[2], red)
    np.testing.assert_array_equal(images[0], np.stack(3 * [RAMP], axis=2))
    gray = load_images(tmp_path, as_gray=True).images
    np.testing.assert_array_equal(gray[2], np.asarray(Image.fromarray(red).convert("L")))
    assert load_images(tmp_path, as_gray=False, size=8).images.shape == (3, 8, 8, 3)


@pytest.mark.parametrize(("ink", "behind"), [(0, 255), (255, 0)])
@pytest.mark.parametrize("n_channels", [2, 4])
def test_behind_transparent_pixels_lies_what_tells_the_ink_apart(tmp_path, ink, behind, n_channels):
    pixels = np.full((10, 10, n_channels), 77, dtype=np.uint8)
    pixels[..., -1] = 0
    pixels[3:7, 3:7] = (*[ink] * (n_channels - 1), 255)
    save(tmp_path, "a.png", pixels)
    images = load_images(tmp_path).images
    assert images.shape == (1, 10, 10)
    assert images[0, 0, 0] == behind
    assert images[0, 5, 5] == ink
    assert load_images(tmp_path, background="black").images[0, 0, 0] == 0
    assert load_images(tmp_path, background="white").images[0, 0, 0] == 255


def test_palettes_and_bits(tmp_path):
    Image.fromarray(np.stack([RAMP, RAMP, 255 - RAMP], axis=2)).quantize(16).save(tmp_path / "palette.png")
    Image.fromarray(RAMP > 100).save(tmp_path / "bits.png")
    images = load_images(tmp_path).images
    assert images.shape == (2, 20, 30, 3)
    assert set(np.unique(images[0])) == {0, 255}


def test_sixteen_bits_stay_sixteen_bits_and_eight_are_brought_there(tmp_path):
    deep = RAMP.astype(np.uint16) * 200 + 3
    save(tmp_path, "deep.png", deep)
    save(tmp_path, "deep.tif", deep)
    images = load_images(tmp_path).images
    assert images.dtype == np.uint16
    np.testing.assert_array_equal(images, np.stack(2 * [deep]))
    save(tmp_path, "shallow.png", RAMP)
    np.testing.assert_array_equal(load_images(tmp_path).images[2], RAMP.astype(np.uint16) * 257)


def test_floats_stay_floats_and_do_not_mix_with_integers(tmp_path):
    save(tmp_path, "a.tif", RAMP.astype(np.float32) / 7)
    images = load_images(tmp_path).images
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[0], RAMP.astype(np.float32) / 7)
    save(tmp_path, "b.png", RAMP)
    with pytest.raises(ValueError, match="floats for pixels and others integers"):
        load_images(tmp_path)


def test_sizes_are_made_equal_without_stretching(tmp_path):
    square = np.full((40, 40), 200, dtype=np.uint8)
    square[10:30, 10:30] = 20
    for k, shape in enumerate([(40, 40), (40, 40), (60, 40)]):
        save(tmp_path, f"{k}.png", np.resize(square, shape))
    assert load_images(tmp_path).images.shape == (3, 40, 40)
    images = load_images(tmp_path, size=(20, 30)).images
    assert images.shape == (3, 20, 30)
    assert images.dtype == np.uint8
    dark = images[0] < 110
    assert np.ptp(np.flatnonzero(dark.any(axis=0))) == np.ptp(np.flatnonzero(dark.any(axis=1)))  # still a square
    assert (images[0, :, :5] == 200).all()  # edge pixels fill what is left


def test_a_photograph_is_turned_as_its_camera_says(tmp_path):
    image = Image.fromarray(RAMP)
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_images(tmp_path).images[0], np.rot90(RAMP, -1))


def test_a_file_of_several_pictures_gives_its_first_and_a_warning(tmp_path):
    pages = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    save(tmp_path, "one.png", RAMP)
    with pytest.warns(UserWarning, match=r"1 of 2 files hold several pictures \(pages.tif"):
        images = load_images(tmp_path).images
    np.testing.assert_array_equal(images[1], RAMP)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_images(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="has no picture"):
        load_images(tmp_path)
    save(tmp_path, "cut/a.png", RAMP)
    whole = (tmp_path / "cut" / "a.png").read_bytes()
    (tmp_path / "cut" / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a.png' cannot be read as a picture"):
        load_images(tmp_path)
    (tmp_path / "cut" / "a.png").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"a.png' cannot be read as a picture"):
        load_images(tmp_path)
    (tmp_path / "cut" / "a.png").write_bytes(whole)
    save(tmp_path, "loose.png", RAMP)
    with pytest.raises(ValueError, match=r"1 pictures lie in .* and 1 in sub-folders"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"as_gray": "yes"}, "as_gray"),
        ({"background": "red"}, "background"),
        ({"size": (3,)}, "size must be"),
        ({"size": 0.5}, "size must be"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, options, message):
    save(tmp_path, "a.png", RAMP)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, **options)


def test_pillow_is_asked_for_when_it_is_missing(tmp_path, monkeypatch):
    save(tmp_path, "a.png", RAMP)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        load_images(tmp_path)
