"""Picture files: found in a folder, read by Pillow, brought to one size, depth and number of channels."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from ._callers import users_level
from ._sizes import as_shape, in_one_size

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
BACKGROUNDS = {"black": 0, "white": 255}
# From 8 to 16 bits: 255 becomes 65535.
_DEEPER = 257


def load_images(
    folder: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    as_gray: bool | str = "auto",
    background: str = "auto",
) -> Bunch:
    """Load a folder of pictures as one array of images.

    The pictures lie in the folder itself, or in one sub-folder per class. They are read in the order of their
    paths. Photographs are turned as their camera says (EXIF).

    Parameters
    ----------
    folder : path
        Folder with PNG, JPEG, TIFF, BMP, GIF, WebP or PNM files. Other files, and those whose name begins with a dot,
        are left out.
    size : int, (height, width) or None, default=None
        Size of the images that are returned, in pixels; an int is the side of a square. A picture of another size is
        scaled to fit, and its edge pixels fill what is left. None keeps the size if all pictures share one, and else
        takes their median height and width. Give test images the size of the training images:
        ``size=train.images.shape[1:3]``.
    as_gray : bool or "auto", default="auto"
        Whether to return gray images. "auto" does so if no picture has a colour.
    background : {"auto", "white", "black"}, default="auto"
        What lies behind transparent pixels. "auto" is white behind dark pictures, black behind bright ones.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the attributes

        images : ndarray of shape (n_samples, H, W) or (n_samples, H, W, 3)
            uint8, or uint16 if a file has 16 bits a pixel, or float32 if one has floats.
        data : ndarray of shape (n_samples, n_features)
            The same as rows of pixels, for pipelines. Unless they are gray squares, the aligner needs their shape:
            ``AVAEEstimator(image_shape=data.images.shape[1:])``.
        target : ndarray of shape (n_samples,) or None
            Number of each image's class in `target_names`; None if no picture lies in a sub-folder.
        target_names : list of str
            Names of the classes: the sub-folders.
        filenames : list of str
            Paths of the files, relative to the folder.

    Raises
    ------
    ImportError
        If Pillow is not installed.
    FileNotFoundError
        If there is no such folder, or no picture in it.
    ValueError
        If a file cannot be read as a picture, if some pictures lie in sub-folders and others do not, or if one is much
        longer or wider than the others.

    Warns
    -----
    UserWarning
        If a file holds several pictures: the first is read.

    See Also
    --------
    sklearn.datasets.load_files : The same layout of folders, for texts.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in ("bolt", "nut"):
    ...     (folder / name).mkdir()
    ...     Image.new("L", (40, 30)).save(folder / name / "1.png")
    >>> data = load_images(folder)
    >>> data.images.shape, data.target_names, data.target
    ((2, 30, 40), ['bolt', 'nut'], array([0, 1]))
    """
    if as_gray not in (True, False, "auto"):
        raise ValueError(f"as_gray must be True, False or 'auto', got {as_gray!r}.")
    if background not in (*BACKGROUNDS, "auto"):
        raise ValueError(f"background must be 'auto', 'white' or 'black', got {background!r}.")
    shape = None if size is None else _sides(size)
    root = Path(folder)
    paths = _picture_paths(root)
    names = [path.relative_to(root) for path in paths]
    target, target_names = _classes(root, names)
    pictures = _in_one_depth(_read_all(paths, shape))
    gray = as_gray is True or (as_gray == "auto" and not any(_is_coloured(picture) for picture in pictures))
    behind = _behind(pictures, background)
    images = _stacked([_flat(picture, gray, behind) for picture in pictures])
    return Bunch(
        images=images,
        data=images.reshape(len(images), -1),
        target=target,
        target_names=target_names,
        filenames=[name.as_posix() for name in names],
    )


def _sides(size: Any) -> tuple[int, ...]:
    try:
        return as_shape((size, size) if np.ndim(size) == 0 else size[:2])
    except (TypeError, ValueError) as error:
        raise ValueError(f"size must be an int, (height, width) or None, got {size!r}.") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Reading pictures needs Pillow, which is not here: pip install pillow.") from error
    return Image


def _picture_paths(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {str(root)!r}.")
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not paths:
        raise FileNotFoundError(f"{str(root)!r} has no picture: no file ends in {', '.join(SUFFIXES)}.")
    return paths


def _classes(root: Path, names: Sequence[Path]) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Return the class of each picture, its first sub-folder, and the names of all."""
    loose = [name for name in names if len(name.parts) == 1]
    if len(loose) == len(names):
        return None, []
    if loose:
        raise ValueError(
            f"{len(loose)} pictures lie in {str(root)!r} itself ({loose[0]} is one) and {len(names) - len(loose)} in "
            f"sub-folders. Put each into the sub-folder of its class, or all into one folder."
        )
    target_names, target = np.unique([name.parts[0] for name in names], return_inverse=True)
    return target.astype(np.int64), target_names.tolist()


def _read_all(paths: Sequence[Path], shape: tuple[int, ...] | None) -> list[NDArray[Any]]:
    """Return pictures of shape (H, W, channels): gray, gray and alpha, RGB, or RGB and alpha."""
    several, pictures = [], []
    for path in paths:
        picture, n_pictures = _read(path)
        if n_pictures > 1:
            several.append(path.name)
        # Shrunk at once where the size is known: thousands of photographs do not fit in memory.
        if shape is not None and picture.shape[:2] != shape:
            picture = _as_type(in_one_size([picture], (*shape, picture.shape[2])), picture.dtype)[0]
        pictures.append(picture)
    if several:
        warnings.warn(
            f"{len(several)} of {len(paths)} files hold several pictures ({several[0]} is one); the first of each was "
            f"read. Save the pages as files of their own to read them all.",
            UserWarning,
            stacklevel=users_level(),
        )
    return pictures


def _read(path: Path) -> tuple[NDArray[Any], int]:
    """Return one picture, and how many its file holds."""
    image_module = _pillow()
    from PIL import ImageOps

    try:
        with image_module.open(path) as file:
            n_pictures = int(getattr(file, "n_frames", 1))
            image = ImageOps.exif_transpose(file)
            mode = image.mode
            if mode.startswith("I"):
                pixels = _as_uint16(np.asarray(image), path)
            elif mode == "F":
                pixels = np.asarray(image, dtype=np.float32)
            else:
                transparent = "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
                gray = mode in ("1", "L", "LA", "La")
                pixels = np.asarray(image.convert(("L" if gray else "RGB") + ("A" if transparent else "")))
    except (OSError, SyntaxError, image_module.DecompressionBombError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a picture: {error}. Remove it or save it anew.") from error
    return pixels.reshape(*pixels.shape[:2], -1), n_pictures


def _as_uint16(pixels: NDArray[Any], path: Path) -> NDArray[np.uint16]:
    if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"{str(path)!r} has pixels from {pixels.min()} to {pixels.max()}, more than 16 bits. Scale it first."
        )
    return pixels.astype(np.uint16)


def _in_one_depth(pictures: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return pictures of one type: 8 bits become 16 where some have 16. Floats and integers do not mix."""
    types = {picture.dtype for picture in pictures}
    if len(types) == 1:
        return pictures
    if np.dtype(np.float32) in types:
        raise ValueError("Some pictures have floats for pixels and others integers. Save all in one form.")
    return [p.astype(np.uint16) * _DEEPER if p.dtype == np.uint8 else p for p in pictures]


def _top(picture: NDArray[Any]) -> float:
    return 1.0 if picture.dtype.kind == "f" else float(np.iinfo(picture.dtype).max)


def _is_coloured(picture: NDArray[Any]) -> bool:
    return picture.shape[2] > 2 and bool((picture[..., :1] != picture[..., :3]).any())


def _has_alpha(picture: NDArray[Any]) -> bool:
    return picture.shape[2] in (2, 4)


def _behind(pictures: list[NDArray[Any]], background: str) -> float:
    """Return the grey level behind transparent pixels, between 0 and 1."""
    if background != "auto":
        return BACKGROUNDS[background] / 255
    seen = [picture for picture in pictures if _has_alpha(picture)]
    light = sum(float((p[..., :-1].mean(axis=2) / _top(p) * (p[..., -1] / _top(p))).sum()) for p in seen)
    opaque = sum(float((p[..., -1] / _top(p)).sum()) for p in seen)
    return 1.0 if light <= 0.5 * opaque else 0.0


def _flat(picture: NDArray[Any], gray: bool, behind: float) -> NDArray[Any]:
    """Return a picture without transparency, of shape (H, W) or (H, W, 3)."""
    pixels = picture
    if _has_alpha(picture):
        opacity = picture[..., -1:] / _top(picture)
        pixels = _as_type(picture[..., :-1] * opacity + behind * _top(picture) * (1 - opacity), picture.dtype)
    if gray:
        # Luma of ITU-R BT.601, as Pillow and JPEG have it.
        return _as_type(pixels @ [0.299, 0.587, 0.114], picture.dtype) if pixels.shape[2] == 3 else pixels[..., 0]
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _as_type(pixels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return pixels.astype(dtype)
    return np.rint(pixels).clip(0, np.iinfo(dtype).max).astype(dtype)


def _stacked(images: list[NDArray[Any]]) -> NDArray[Any]:
    if len({image.shape for image in images}) == 1:
        return np.stack(images)
    return _as_type(in_one_size(images, None), images[0].dtype)
