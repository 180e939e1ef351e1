"""The search models: proposer, critic and density, learned from training images in known poses, and calibrated."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ..aligner import SearchModels
from ..model.affine import REFLECTED, parameters_of
from ..model.avae import AVAE, is_constant
from ..model.critic import Critic
from ..model.module_state import RandomStream
from ..model.moments import Moments, exact_moments
from ..model.shape_density import N_COMPONENTS, ShapeDensity, canonical_features
from ..progress import Progress
from ..search.certainty import typical_metric
from ..search.objective import Objective, has_more_than_one
from ..search.proposer import PoseInitializer, Proposer
from ..search.settings import SearchSettings
from ..search.starting_poses import reach_of
from .critic_training import train_critic
from .held_out import calibrated
from .hypotheses import propose_hypotheses
from .perturbation import perturb, random_places
from .proposer_training import train_proposer

# Images that calibrate: one in five, at most so many, and how few make no sense.
_N_HELD_OUT = 500
_PER_HELD_OUT = 5
_FEWEST_HELD_OUT = 16

# Images that the networks learn from, and their pixels.
_N_SHOWN = 60_000
_PIXELS_SHOWN = 2**27

# Few images are perturbed more than once: the critic learns from a new mistake as it does from a new image.
_N_MISTAKES = 12_000
_MOST_COPIES = 8

# Fewer images than that come mirrored, too, where the VAE takes those for as probable: their ELBO is not lower by so
# many standard errors.
_FEW = 3000
_LESS_PROBABLE = 2.0

# Dropout of the proposer: of 120 faces .3 finds 7 points more right poses, of 1,000 digits 2 points fewer.
_MOST_DROPOUT, _PER_DROPOUT = 0.3, 100.0

# Images whose curvature is measured.
_N_CURVED = 256

# Fewer images would not tell the shape of a component, nor pixels a smaller variance; EM takes a tenth of such steps.
_IMAGES_PER_COMPONENT = 50
_LEAST_VARIANCE = 1e-4
_EM_STEPS = 500

# The stages of learning, as progress calls them.
PROPOSING, CHOOSING, CALIBRATING = "learning where to start", "learning to choose", "calibrating"


def _n_shown(n_pixels: int) -> int:
    return min(_N_SHOWN, max(_FEWEST_HELD_OUT, _PIXELS_SHOWN // n_pixels))


def _n_copies(n_images: int, n_pixels: int) -> int:
    return max(1, min(_MOST_COPIES, _N_MISTAKES // n_images, _PIXELS_SHOWN // (n_images * n_pixels)))


def _dropout(n_images: int) -> float:
    """Return the dropout of a proposer that learns from so many images; none where these are many."""
    return min(_MOST_DROPOUT, _PER_DROPOUT / n_images) if n_images < _FEW else 0.0


def n_held_out(n_images: int) -> int:
    """Return how many of so many images calibrate; 0 if these are too few to learn anything from.

    Examples
    --------
    >>> [n_held_out(n) for n in (63, 64, 500, 60_000)]
    [0, 16, 100, 500]
    """
    if n_images < 4 * _FEWEST_HELD_OUT:
        return 0
    return min(_N_HELD_OUT, max(_FEWEST_HELD_OUT, n_images // _PER_HELD_OUT))


def n_looked_at(n_pixels: int) -> int:
    """Return how many images of so many pixels are looked at, at most."""
    return max(_N_HELD_OUT + _n_shown(n_pixels), 4 * _N_HELD_OUT)


class Wanted(NamedTuple):
    """Which search models there are to be.

    Attributes
    ----------
    proposer, critic : bool
        The critic comes with a density.
    max_epochs : int
        Of the proposer, at most.
    """

    proposer: bool
    critic: bool
    max_epochs: int


class CanonicalImages(NamedTuple):
    """What search models are learned from.

    Attributes
    ----------
    images : Tensor of shape (n, n_channels, height, width)
        Training images; constant ones are left out.
    typical : Moments or None
        See `starting_poses.starting_poses`.
    held_out : Tensor of int or None
        Numbers of images that the VAE has not seen; None, or too few, holds out images at random.
    """

    images: Tensor
    typical: Moments | None = None
    held_out: Tensor | None = None


class Recall(NamedTuple):
    """Where search models are kept that were trained before, and what tells one VAE from another.

    Attributes
    ----------
    memory : joblib.Memory
    identity : object
        What the VAE and the likelihood compute: recipes, weights and the versions of the code, all of which can be
        hashed.
    """

    memory: Any
    identity: Any


class Lesson(NamedTuple):
    """All that the networks of the search depend on; how the search is then set is no part of it."""

    identity: Any
    images: tuple[NDArray[Any], ...]
    typical: tuple[NDArray[Any], ...] | None
    family: str
    scale: tuple[float, ...]
    background: NDArray[Any]
    padding: str
    wanted: Wanted
    generator_state: NDArray[Any]
    device: str


class Taught(NamedTuple):
    """What was learned, before it is calibrated for a search.

    Attributes
    ----------
    proposer : Proposer or None
        Trained whenever there is something to learn: the critic learns from its mistakes, wanted or not.
    density : ShapeDensity or None
    critic : Critic or None
    generator_state : ndarray
        Of the random numbers, for what follows.
    """

    proposer: Proposer | None
    density: ShapeDensity | None
    critic: Critic | None
    generator_state: NDArray[Any]


def learn_search_models(
    model: AVAE,
    canonical: CanonicalImages,
    wanted: Wanted,
    search: SearchSettings,
    *,
    generator: torch.Generator,
    progress: Progress,
    recall: Recall | None = None,
) -> SearchModels | None:
    """Learn to propose poses and to choose between hypotheses from canonical images, perturbed by known poses.

    The critic learns from the modes of the proposer and poses near the truth; its scale, the temperature, the spread of
    poses and the gate are fitted to what the search finds for images that none of the networks has seen.

    Parameters
    ----------
    model : AVAE
        Without a density and a critic.
    canonical : CanonicalImages
    wanted : Wanted
    search : SearchSettings
        The one that the hypotheses will come from.
    generator : torch.Generator
        On the CPU: draws images, poses and the critic's training.
    progress : Progress
        Told of every epoch.
    recall : Recall or None, default=None
        Finds networks that were trained before from the same; None trains them.

    Returns
    -------
    models : SearchModels or None
        The spread of the poses in units of the frame, the gate such that 1 % of upright images exceed it. None if the
        images are too few to learn anything from.
    """
    typical = canonical.typical
    shown, unseen = _split(canonical, generator)
    if unseen is None:
        return None
    if len(shown) < _FEW and _are_mirrored_too(model, unseen):
        shown = torch.cat([shown, shown.flip(3)])
    taught = _taught(model, shown, unseen, typical, wanted, generator, progress, recall)
    generator.set_state(torch.from_numpy(np.array(taught.generator_state)))
    progress.stage(CALIBRATING)
    initializer = PoseInitializer(typical, taught.proposer if wanted.proposer else None)
    return calibrated(replace(model, density=taught.density), unseen, initializer, taught.critic, search, generator)


def _taught(
    model: AVAE,
    shown: Tensor,
    held_out: Tensor,
    typical: Moments | None,
    wanted: Wanted,
    generator: torch.Generator,
    progress: Progress,
    recall: Recall | None,
) -> Taught:
    """Train the networks, or find what was trained before from the same."""
    if recall is None:
        return teach(None, model, (shown, held_out), typical, wanted, generator, progress)
    lesson = Lesson(
        recall.identity,
        (shown.cpu().numpy(), held_out.cpu().numpy()),
        typical and tuple(moment.cpu().numpy() for moment in typical),
        model.family,
        model.scale,
        model.background.cpu().numpy(),
        model.padding,
        wanted,
        generator.get_state().numpy(),
        str(shown.device),
    )
    ignored = ["model", "images", "typical", "wanted", "generator", "progress"]
    remembered: Callable[..., Taught] = recall.memory.cache(teach, ignore=ignored)
    return remembered(lesson, model, (shown, held_out), typical, wanted, generator, progress)


def teach(
    lesson: Lesson | None,
    model: AVAE,
    images: tuple[Tensor, Tensor],
    typical: Moments | None,
    wanted: Wanted,
    generator: torch.Generator,
    progress: Progress,
) -> Taught:
    """Train the networks that a search is helped by.

    Parameters
    ----------
    lesson : Lesson or None
        What a memory knows the result by; the other arguments say the same.
    model : AVAE
    images : tuple of Tensor
        Those to learn from, and those held out.
    typical, wanted, generator, progress
        See `learn_search_models`.

    Returns
    -------
    taught : Taught
    """
    shown, held_out = images
    density, critic, proposer = None, None, None
    if wanted.critic:
        density = _fitted_density(model, shown, generator)
        model = replace(model, density=density)
    if wanted.proposer or wanted.critic:
        progress.stage(PROPOSING)
        proposer = _trained_proposer(model, shown, typical, wanted.max_epochs, generator=generator, progress=progress)
        proposer.metric.copy_(typical_metric(Objective(model, held_out[:_N_CURVED])))
    if wanted.critic and proposer is not None:
        progress.stage(CHOOSING)
        critic = _trained_critic(model, shown, proposer, typical, generator=generator, progress=progress)
    return Taught(proposer, density, critic, generator.get_state().numpy())


def _split(canonical: CanonicalImages, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Return images to learn from, and others to calibrate on, or None if they are too few."""
    images, held_out = canonical.images, canonical.held_out
    usable = ~is_constant(images)
    unseen = torch.zeros_like(usable)
    if held_out is not None:
        unseen[held_out.to(unseen.device)] = True
    kept, out = (usable & ~unseen).nonzero()[:, 0], (usable & unseen).nonzero()[:, 0]
    if len(out) < _FEWEST_HELD_OUT:
        kept = usable.nonzero()[:, 0]
        kept = kept[torch.randperm(len(kept), generator=generator).to(kept.device)]
        n_out = n_held_out(len(kept))
        out, kept = kept[:n_out], kept[n_out:]
    if len(out) < _FEWEST_HELD_OUT:
        return images, None
    kept, out = (some[torch.randperm(len(some), generator=generator).to(some.device)] for some in (kept, out))
    return images[kept[: _n_shown(images[0].numel())]], images[out[:_N_HELD_OUT]]


def _are_mirrored_too(model: AVAE, unseen: Tensor) -> bool:
    """Tell whether mirrored images are as probable as images that the VAE has not seen; letters are not, plants are."""
    if parameters_of(model.family)[-1] == REFLECTED:
        return False
    elbo, of_mirrored = (Objective(model, some).elbo_identity().double() for some in (unseen, unseen.flip(3)))
    lost = elbo - of_mirrored
    return bool(lost.mean() < _LESS_PROBABLE * lost.std() / math.sqrt(len(lost)))


def _stream(generator: torch.Generator, device: torch.device) -> RandomStream:
    """Return what first weights and dropout of a network draw from."""
    return RandomStream(int(torch.randint(2**31, (), generator=generator)), device)


def _trained_proposer(
    model: AVAE,
    images: Tensor,
    typical: Moments | None,
    max_epochs: int,
    *,
    generator: torch.Generator,
    progress: Progress,
) -> Proposer:
    stream = _stream(generator, images.device)
    with stream.lent():
        shape = images.shape[1], images.shape[2], images.shape[3]
        proposer = Proposer(shape, model.family, dropout=_dropout(len(images))).to(images.device)
    train_proposer(
        proposer,
        model,
        images,
        typical,
        max_epochs=max_epochs,
        generator=generator,
        stream=stream,
        progress=progress,
    )
    proposer.reach.copy_(torch.tensor(reach_of(model.family, model.scale), dtype=torch.float32))
    return proposer.eval()


def _fitted_density(model: AVAE, images: Tensor, generator: torch.Generator) -> ShapeDensity:
    """Learn what moments say of canonical images when these are perturbed, cut off by the frame and aligned again."""
    perturbed, matrix = perturb(model, images, random_places(model, images, generator))
    moments = exact_moments(perturbed, model.background)
    features = canonical_features(moments, matrix, images.shape[3] / images.shape[2]).cpu().numpy()
    mixture = GaussianMixture(
        max(1, min(N_COMPONENTS, len(features) // _IMAGES_PER_COMPONENT)),
        reg_covar=_LEAST_VARIANCE,
        max_iter=_EM_STEPS,
        init_params="k-means++",
        random_state=int(torch.randint(2**31, (), generator=generator)),
    ).fit(features)
    found = mixture.weights_, mixture.means_, mixture.precisions_cholesky_
    density = ShapeDensity()
    density.set_mixture(*map(torch.from_numpy, found))
    return density.to(images.device)


def _trained_critic(
    model: AVAE,
    images: Tensor,
    proposer: Proposer,
    typical: Moments | None,
    *,
    generator: torch.Generator,
    progress: Progress,
) -> Critic | None:
    """Train a critic; None if the images teach nothing."""
    images = images[:_N_MISTAKES]
    n_copies = _n_copies(len(images), images[0].numel())
    images = images.repeat(n_copies, 1, 1, 1)
    places = random_places(model, images, generator)
    shown = propose_hypotheses(model, images, proposer, typical, places=places, generator=generator)
    stream = _stream(generator, images.device)
    with stream.lent():
        # A wrong scale or shear shows in less than a wrong angle does.
        pooled = not has_more_than_one(model, images)
        critic = Critic((images.shape[1], images.shape[2], images.shape[3]), pooled=pooled).to(images.device)
    learned = train_critic(
        critic, model, shown, n_copies=n_copies, generator=generator, stream=stream, progress=progress
    )
    return critic.eval() if learned else None
