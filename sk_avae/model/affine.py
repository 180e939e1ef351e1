r"""Affine transforms of images: families, matrix and alpha, and the warp.

The one convention of the package. Coordinates are normalised, ``x`` to the right and ``y`` *down*, both
running from -1 to 1 between the outer edges of the image (torch's ``align_corners=False``). A transform is
a ``(2, 3)`` matrix that maps canonical coordinates to input coordinates,

.. math:: p_\text{input} = L \, p_\text{canonical} + t,
          \qquad L = R(\text{angle}) \cdot K(\text{shear}) \cdot S(\text{scale}),

so that ``warp(inputs, matrix)`` gives the canonical images and ``warp(canonical, invert(matrix))`` the way
back. Its parameters ``alpha`` say how the input differs from its canonical image: an input rotated by
``angle`` counter-clockwise (as seen on the screen), enlarged by ``exp(log_scale)``, shifted by ``tx`` to the
right and ``ty`` down.

Rotation, shear and scale act on pixels, not on normalised units, so that a turn stays rigid on an image that
is not square; ``aspect`` (width over height) carries that into the matrix. The zero vector is the identity
of every family, and every alpha is invertible.

``with_reflection(family)`` names a family's larger half-brother, in which the canonical image may have been mirrored
(left to right) first: its last parameter, ``reflected``, is 0 or 1.

References
----------
Bidart & Wong (2019), "Affine Variational Autoencoders", section 3.1; Jaderberg et al. (2015), "Spatial
Transformer Networks", equation 1 (the sampling grid).
"""

import math
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import Tensor

AFFINE_PARAMETERS = ("angle", "log_scale_x", "log_scale_y", "shear", "tx", "ty")

FAMILIES: dict[str, tuple[str, ...]] = {
    "rotation": ("angle",),
    "rigid": ("angle", "tx", "ty"),
    "similarity": ("angle", "log_scale", "tx", "ty"),
    "linear": ("angle", "log_scale_x", "log_scale_y", "shear"),
    "affine": AFFINE_PARAMETERS,
}

# The affine parameters that each parameter of a family drives (itself, unless named here).
_DRIVES = {"log_scale": ("log_scale_x", "log_scale_y")}

# What the name of a family with mirrored images ends in, and the parameter that it has more.
_WITH_REFLECTION = "+reflection"
REFLECTED = "reflected"

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")

# What lies outside the frame, by the names that sampling has for it.
PADDINGS = {"background": "zeros", "border": "border", "reflect": "reflection"}

_SMALLEST_DETERMINANT = 1e-30


def parameters_of(family: str) -> tuple[str, ...]:
    """Return the names of a family's parameters, in the order of alpha's columns.

    Parameters
    ----------
    family : str
        A key of `FAMILIES`.

    Returns
    -------
    parameters : tuple of str

    Raises
    ------
    ValueError
        If `family` is unknown; the message suggests the nearest name.

    Examples
    --------
    >>> parameters_of("rigid")
    ('angle', 'tx', 'ty')
    """
    name = without_reflection(family) if isinstance(family, str) else family
    check_family(name)
    return FAMILIES[name] if name == family else (*FAMILIES[name], REFLECTED)


def check_family(family: str) -> None:
    """Raise ValueError, with the nearest name, unless `family` is a key of `FAMILIES`."""
    if not isinstance(family, str) or family not in FAMILIES:
        near = get_close_matches(str(family), FAMILIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"family must be one of {sorted(FAMILIES)}, got {family!r}.{hint}")


def with_reflection(family: str) -> str:
    """Return the name of a family that holds the mirrored images too.

    Examples
    --------
    >>> parameters_of(with_reflection("rigid"))
    ('angle', 'tx', 'ty', 'reflected')
    """
    return without_reflection(family) + _WITH_REFLECTION


def without_reflection(family: str) -> str:
    """Return the name of a family without its mirrored images."""
    return family.removesuffix(_WITH_REFLECTION)


def _driving_matrix(family: str, like: Tensor) -> Tensor:
    """Return the 0/1 matrix of shape (n_params, 6) that turns a family's alpha into the affine one."""
    parameters = parameters_of(family)
    driving = like.new_zeros(len(parameters), len(AFFINE_PARAMETERS))
    for row, name in enumerate(parameters):
        if name == REFLECTED:
            continue
        for target in _DRIVES.get(name, (name,)):
            driving[row, AFFINE_PARAMETERS.index(target)] = 1.0
    return driving


def to_matrix(alpha: Tensor, family: str = "affine", *, aspect: float = 1.0) -> Tensor:
    """Build the matrices of given pose parameters.

    Parameters
    ----------
    alpha : Tensor of shape (n, n_params)
        Angles in radians counter-clockwise, natural logarithms of scales, shear as a slope, translations in
        half sides of the image.
    family : str, default="affine"
        Which parameters the columns of `alpha` are.
    aspect : float, default=1.0
        Width of the image over its height, in pixels.

    Returns
    -------
    matrix : Tensor of shape (n, 2, 3)
        Maps canonical to input coordinates; torch's ``theta``.

    Raises
    ------
    ValueError
        If the number of columns is not the family's number of parameters.

    Examples
    --------
    >>> to_matrix(torch.zeros(1, 1), "rotation") + 0.0
    tensor([[[1., 0., 0.],
             [0., 1., 0.]]])
    """
    parameters = parameters_of(family)
    if alpha.ndim != 2 or alpha.shape[1] != len(parameters):
        raise ValueError(
            f"alpha of the family {family!r} needs shape (n, {len(parameters)}) for {parameters}, "
            f"got {tuple(alpha.shape)}."
        )
    angle, log_x, log_y, shear, tx, ty = (alpha @ _driving_matrix(family, alpha)).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    scale_x, scale_y = log_x.exp(), log_y.exp()
    if parameters[-1] == REFLECTED:
        scale_x = torch.where(alpha[:, -1] > 0.5, -scale_x, scale_x)
    slope = shear * scale_y
    row_x = torch.stack([cos * scale_x, (cos * slope + sin * scale_y) / aspect, tx], dim=1)
    row_y = torch.stack([-sin * scale_x * aspect, cos * scale_y - sin * slope, ty], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def from_matrix(matrix: Tensor, family: str = "affine", *, aspect: float = 1.0) -> Tensor:
    """Read the pose parameters off matrices; the inverse of `to_matrix`.

    What the family has no parameter for is left out; the single scale of ``"similarity"`` is the geometric
    mean of both.

    Parameters
    ----------
    matrix : Tensor of shape (n, 2, 3)
        Maps canonical to input coordinates.
    family : str, default="affine"
        Which parameters to read.
    aspect : float, default=1.0
        Width of the image over its height, in pixels.

    Returns
    -------
    alpha : Tensor of shape (n, n_params)
        Angles in [-pi, pi].

    Raises
    ------
    ValueError
        If a matrix is singular or a reflection: no alpha has that matrix.

    Examples
    --------
    >>> alpha = torch.tensor([[0.5, 0.1, -0.2]])
    >>> torch.allclose(from_matrix(to_matrix(alpha, "rigid"), "rigid"), alpha)
    True
    """
    a, b = matrix[:, 0, 0], matrix[:, 0, 1] * aspect
    c, d = matrix[:, 1, 0] / aspect, matrix[:, 1, 1]
    determinant = a * d - b * c
    mirrored = parameters_of(family)[-1] == REFLECTED
    if mirrored:
        sign = determinant.sign()
        a, c, determinant = a * sign, c * sign, determinant * sign
    if not bool((determinant > _SMALLEST_DETERMINANT).all()):
        raise ValueError(
            f"matrix needs a positive determinant (no reflection, not singular); the smallest is "
            f"{float(determinant.min()):.3g}."
        )
    scale_x = torch.hypot(a, c)
    scale_y = determinant / scale_x
    shear = (a * b + c * d) / determinant
    full = torch.stack(
        [torch.atan2(-c, a), scale_x.log(), scale_y.log(), shear, matrix[:, 0, 2], matrix[:, 1, 2]], dim=1
    )
    driving = _driving_matrix(without_reflection(family), full)
    alpha = full @ (driving / driving.sum(dim=1, keepdim=True)).T
    return torch.cat([alpha, (sign < 0).to(alpha)[:, None]], dim=1) if mirrored else alpha


def identity_matrix(n: int, like: Tensor) -> Tensor:
    """Return `n` identity matrices of shape (n, 2, 3) with the dtype and device of `like`."""
    return torch.eye(2, 3, dtype=like.dtype, device=like.device).expand(n, 2, 3)


def invert(matrix: Tensor) -> Tensor:
    """Invert affine matrices of shape (n, 2, 3) in closed form.

    Examples
    --------
    >>> matrix = to_matrix(torch.tensor([[0.3, 0.1, 0.2, 0.4, -0.1, 0.2]]))
    >>> torch.allclose(compose(matrix, invert(matrix)), identity_matrix(1, matrix), atol=1e-6)
    True
    """
    a, b, c, d = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1]
    inverse = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    return torch.cat([inverse, -inverse @ matrix[:, :, 2:]], dim=2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Compose affine matrices of shape (n, 2, 3): apply `inner` to a point first, then `outer`.

    ``warp(warp(x, outer), inner)`` equals ``warp(x, compose(outer, inner))`` up to interpolation.
    """
    linear = outer[:, :, :2] @ inner[:, :, :2]
    shift = outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]
    return torch.cat([linear, shift], dim=2)


def wrap_angle(alpha: Tensor, family: str) -> Tensor:
    """Bring the angles in `alpha` of shape (n, n_params) into [-pi, pi)."""
    angles = torch.tensor([name == "angle" for name in parameters_of(family)], device=alpha.device)
    wrapped = torch.remainder(alpha + math.pi, 2 * math.pi) - math.pi
    # Angles inside the range keep their bits: the remainder would round them.
    outside = (alpha < -math.pi) | (alpha >= math.pi)
    return torch.where(angles & outside, wrapped, alpha)


def edge_pixels(images: Tensor) -> Tensor:
    """Return the pixels along the edges of images of shape (n, n_channels, height, width): (n, n_channels, n_edge)."""
    height, width = images.shape[2:]
    inner = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    # A single row (or column) has its edge at its two ends.
    inner[slice(1, -1) if height > 1 else slice(None), slice(1, -1) if width > 1 else slice(None)] = True
    if height == width == 1:
        inner[:] = False
    return images[:, :, ~inner]


def edge_median(images: Tensor) -> Tensor:
    """Return the median pixel along the edges of images of shape (n, n_channels, height, width), per channel.

    What lies outside the frame, as far as the images tell; NaN, of which nothing is known, does not count.
    """
    return edge_pixels(images).transpose(0, 1).flatten(1).nanmedian(dim=1).values.nan_to_num()


def _grid(matrix: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return where each output pixel is read, of shape (n, height, width, 2).

    What `torch.nn.functional.affine_grid` returns, as sums of a row and a column: a third of the time.
    """
    height, width = sides
    x = torch.arange(1 - width, width, 2, device=matrix.device).to(matrix) / width
    y = torch.arange(1 - height, height, 2, device=matrix.device).to(matrix) / height
    along_x = matrix[:, :, 0, None] * x
    along_y = matrix[:, :, 1, None] * y + matrix[:, :, 2, None]
    return (along_x[:, :, None, :] + along_y[:, :, :, None]).permute(0, 2, 3, 1)


def beyond_centres(matrix: Tensor, sides: tuple[int, int]) -> Tensor:
    """Tell which output pixels are read beyond the centres of the outermost pixels, of shape (n, height, width).

    `warp` fades to the background there; other libraries cut images off.

    Examples
    --------
    >>> beyond_centres(1.3 * torch.eye(2, 3)[None], (2, 2)).all()
    tensor(True)
    """
    height, width = sides
    grid = _grid(matrix, sides).abs()
    return (grid[..., 0] > 1 - 1 / width) | (grid[..., 1] > 1 - 1 / height)


def warp(
    images: Tensor,
    matrix: Tensor,
    *,
    background: float | Tensor = 0.0,
    interpolation: str = "bilinear",
    padding: str = "background",
    sides: tuple[int, int] | None = None,
) -> Tensor:
    """Sample images at transformed coordinates: ``output(p) = images(matrix @ p)``.

    Parameters
    ----------
    images : Tensor of shape (n, n_channels, height, width)
        One image per matrix.
    matrix : Tensor of shape (n, 2, 3)
        Maps output to input coordinates.
    background : float or Tensor of shape (n_channels,) or (n, n_channels), default=0.0
        Value outside the frame, in the units of `images`.
    interpolation : {"nearest", "bilinear", "bicubic"}, default="bilinear"
        How pixels are interpolated.
    padding : {"background", "border", "reflect"}, default="background"
        What lies outside the frame: the background, the nearest edge pixel or the mirror image.
    sides : tuple of int or None, default=None
        (height, width) of the output, which shows the same frame in more or fewer pixels; None is that of `images`.

    Returns
    -------
    warped : Tensor of shape (n, n_channels, height, width)

    Raises
    ------
    ValueError
        If `interpolation` or `padding` is unknown.

    References
    ----------
    Jaderberg et al. (2015), "Spatial Transformer Networks", equations 1 and 5.

    Examples
    --------
    >>> right = torch.tensor([[[[0.0, 1.0, 0.0]]]])
    >>> warp(right, torch.tensor([[[1.0, 0.0, 2 / 3], [0.0, 1.0, 0.0]]]))[0, 0, 0].round()
    tensor([1., 0., 0.])
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {list(INTERPOLATIONS)}, got {interpolation!r}.")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be one of {list(PADDINGS)}, got {padding!r}.")
    if isinstance(background, Tensor):
        background = background.view(-1, images.shape[1], 1, 1)
    grid = _grid(matrix, sides or (images.shape[2], images.shape[3]))
    # grid_sample only fills with zeros, so the background is moved there and back.
    fills = padding == "background"
    sampled = F.grid_sample(
        images - background if fills else images,
        grid,
        mode=interpolation,
        padding_mode=PADDINGS[padding],
        align_corners=False,
    )
    return sampled + background if fills else sampled
