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
from ..model.affine import compose, parameters_of
from ..model.avae import AVAE, is_constant
from ..model.batches import image_slices
from ..model.critic import Critic
from ..model.module_state import RandomStream, freeze
from ..model.moments import Moments, exact_moments
from ..model.shape_density import N_COMPONENTS, ShapeDensity, canonical_features
from ..progress import Progress
from ..search.certainty import Confidence, chance_of_right, hypothesis_weights, is_near, pose_deviation, typical_metric
from ..search.objective import Objective, has_more_than_one
from ..search.proposer import PoseInitializer, Proposer
from ..search.screening import screen
from ..search.settings import SearchSettings
from ..search.starting_poses import reach_of
from .calibration import calibrate, calibrate_confidence, pose_spread
from .critic_training import critic_scores_in_batches, train_critic
from .hypotheses import Hypotheses, align_in_parts, find_hypotheses, propose_hypotheses
from .perturbation import perturb, random_places
from .proposer_training import train_proposer

# Training images that calibrate, that the critic learns from (and their pixels), and how few make no sense.
_N_HELD_OUT = 1000
_N_SHOWN = 60_000
_PIXELS_SHOWN = 2**27
_FEWEST_HELD_OUT = 25

# Few images are perturbed more than once: the critic learns from a new mistake as it does from a new image.
_N_MISTAKES = 12_000
_MOST_COPIES = 3

# Images whose curvature is measured.
_N_CURVED = 256

# Fewer images would not tell the shape of a component, nor pixels a smaller variance; EM takes a tenth of such steps.
_IMAGES_PER_COMPONENT = 50
_LEAST_VARIANCE = 1e-4
_EM_STEPS = 500

# Share of training images that score less at their proposals, and are given the whole table.
_UNSURE = 0.01

# Of those that calibrate so many tell the critic's first scale, and the gate.
_N_FEW = 500

# Share of upright training images that an "auto" gate lets move.
_FALSE_ALARMS = 0.01

# The stages of learning, as progress calls them.
PROPOSING, CHOOSING, CALIBRATING = "learning where to start", "learning to choose", "calibrating"


def _n_shown(n_pixels: int) -> int:
    return min(_N_SHOWN, max(_FEWEST_HELD_OUT, _PIXELS_SHOWN // n_pixels))


def _n_copies(n_images: int, n_pixels: int) -> int:
    return max(1, min(_MOST_COPIES, _N_MISTAKES // n_images, _PIXELS_SHOWN // (n_images * n_pixels)))


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
    images: NDArray[Any]
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
    images: Tensor,
    typical: Moments | None,
    wanted: Wanted,
    search: SearchSettings,
    *,
    generator: torch.Generator,
    progress: Progress,
    recall: Recall | None = None,
) -> SearchModels | None:
    """Learn to propose poses and to choose between hypotheses from canonical images, perturbed by known poses.

    The critic learns from the modes of the proposer and poses near the truth; its scale, the temperature, the spread of
    poses and the gate are fitted to what the search finds for images that the critic has not seen (the VAE has).

    Parameters
    ----------
    model : AVAE
        Without a density and a critic.
    images : Tensor of shape (n, n_channels, height, width)
        Training images; constant ones are left out.
    typical : Moments or None
        See `starting_poses.starting_poses`.
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
    shown, held_out = _split(images, generator)
    if held_out is None:
        return None
    taught = _taught(model, shown, held_out, typical, wanted, generator, progress, recall)
    generator.set_state(torch.from_numpy(np.array(taught.generator_state)))
    progress.stage(CALIBRATING)
    return _calibrated(model, held_out, typical, wanted, taught, search, generator)


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
        torch.cat([shown, held_out]).cpu().numpy(),
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


def _calibrated(
    model: AVAE,
    held_out: Tensor,
    typical: Moments | None,
    wanted: Wanted,
    taught: Taught,
    search: SearchSettings,
    generator: torch.Generator,
) -> SearchModels:
    """Calibrate what was taught on held-out images, which the search finds again."""
    proposer = taught.proposer if wanted.proposer else None
    initializer, critic = PoseInitializer(typical, proposer), taught.critic
    model = replace(model, density=taught.density)
    true, offset = random_places(model, held_out, generator)
    if proposer is not None and search.n_restarts > 1:
        perturbed = perturb(model, held_out, compose(model.matrix(true, held_out), offset))
        proposer.floor.copy_(_first_scores(model, perturbed, initializer, search.n_restarts).quantile(_UNSURE))

    def found_by(model: AVAE, some: slice) -> Hypotheses:
        # One hypothesis is no choice to learn from.
        several = replace(search, n_refine=max(2, search.n_refine))
        return find_hypotheses(model, held_out[some], initializer, several, true=true[some], offset=offset[some])

    if critic is not None:
        few = found_by(model, slice(_N_FEW))
        critic.scale.fill_(calibrate(critic_scores_in_batches(model, critic, few), few.log_joint, few.right)[1])
        # Now the critic has its say in the search itself.
        model = replace(model, critic=critic)
    found = found_by(model, slice(None))
    scores = torch.zeros_like(found.log_joint) if critic is None else critic_scores_in_batches(model, critic, found)
    temperature, weight = calibrate(scores, found.log_joint, found.right)
    if critic is not None:
        critic.scale.mul_(weight)
    spread, confidence = _certainty(model, found, weight * scores, temperature, true, initializer)
    gate = _gate(model, held_out[:_N_FEW], initializer, replace(search, temperature=temperature))
    return SearchModels(
        proposer=proposer and freeze(proposer, held_out.device),
        density=taught.density and freeze(taught.density, held_out.device),
        critic=critic and freeze(critic, held_out.device),
        temperature=temperature,
        pose_spread=dict(zip(parameters_of(model.family), spread.tolist(), strict=True)),
        min_gain=gate,
        confidence=confidence,
    )


def _certainty(
    model: AVAE,
    found: Hypotheses,
    said: Tensor,
    temperature: float,
    true: Tensor,
    initializer: PoseInitializer,
) -> tuple[Tensor, Confidence]:
    """Return the spread of poses, and how probably one is right, from hypotheses of which the critic said so much."""
    score, order = (found.log_joint + said).sort(dim=1, descending=True, stable=True)
    alpha = found.alpha.gather(1, order[:, :, None].expand_as(found.alpha))
    weight = hypothesis_weights(score / temperature, score == -math.inf)
    deviation = pose_deviation(Objective(model, found.images), alpha[:, 0])
    right = found.right.gather(1, order[:, :1])[:, 0]
    spread = pose_spread(alpha[right, 0], true[right], deviation[right], model.family)
    deviation = torch.where(deviation == 0, deviation, deviation.hypot(spread.to(deviation)))
    return spread, calibrate_confidence(
        chance_of_right(alpha, weight, deviation, model.family),
        initializer.agreement(model, found.images, alpha[:, 0]),
        is_near(alpha[:, 0], true, model.family),
    )


def _split(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Return images to learn from, and others to calibrate on, or None if they are too few."""
    usable = (~is_constant(images)).nonzero()[:, 0]
    n_held_out = min(_N_HELD_OUT, len(usable) // 4)
    if n_held_out < _FEWEST_HELD_OUT:
        return images, None
    usable = usable[torch.randperm(len(usable), generator=generator).to(usable.device)]
    held_out = images[usable[:n_held_out]]
    return images[usable[n_held_out : n_held_out + _n_shown(held_out[0].numel())]], held_out


def _gate(model: AVAE, upright: Tensor, initializer: PoseInitializer, search: SearchSettings) -> float:
    """Return the gain of the score, in nats, that 1 % of upright images exceed."""
    gains = torch.cat([part.gain for part in align_in_parts(model, upright, initializer, search)])
    return max(0.0, float(gains.quantile(1 - _FALSE_ALARMS)))


def _first_scores(model: AVAE, images: Tensor, initializer: PoseInitializer, n_restarts: int) -> Tensor:
    """Return the best score of each image at the restarts that are screened first, of shape (n,)."""
    best = []
    for rows in image_slices(images):
        candidates = initializer.candidates(model, images[rows], n_restarts).without_identity()
        best.append(screen(Objective(model, images[rows]), candidates.alpha, candidates.first).amax(dim=1))
    return torch.cat(best)


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
        proposer = Proposer((images.shape[1], images.shape[2], images.shape[3]), model.family).to(images.device)
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
    true, offset = random_places(model, images, generator)
    matrix = model.matrix(true, images)
    moments = exact_moments(perturb(model, images, compose(matrix, offset)), model.background)
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
    images = images.repeat(_n_copies(len(images), images[0].numel()), 1, 1, 1)
    true, offset = random_places(model, images, generator)
    shown = propose_hypotheses(model, images, proposer, typical, true=true, offset=offset, generator=generator)
    stream = _stream(generator, images.device)
    with stream.lent():
        # A wrong scale or shear shows in less than a wrong angle does.
        pooled = not has_more_than_one(model, images)
        critic = Critic((images.shape[1], images.shape[2], images.shape[3]), pooled=pooled).to(images.device)
    learned = train_critic(critic, model, shown, generator=generator, stream=stream, progress=progress)
    return critic.eval() if learned else None
