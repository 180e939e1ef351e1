"""The search models: proposer, critic and density, learned from training images in known poses, and calibrated."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
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
from ..search.objective import Objective
from ..search.proposer import PoseInitializer, Proposer
from ..search.screening import screen
from ..search.settings import SearchSettings
from ..search.starting_poses import reach_of
from .calibration import calibrate, calibrate_confidence, pose_spread
from .critic_training import critic_scores_in_batches, train_critic
from .hypotheses import Hypotheses, align_in_parts, find_hypotheses
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

# Share of upright training images that an "auto" gate lets move.
_FALSE_ALARMS = 0.01

# The critic meets hypotheses near their optima, not at them: that takes a fifth of the time.
_QUICK_SEARCH = SearchSettings(n_restarts=16, n_refine=4, max_iter=4, tol=1e-2)


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


def learn_search_models(
    model: AVAE,
    images: Tensor,
    typical: Moments | None,
    wanted: Wanted,
    search: SearchSettings,
    *,
    generator: torch.Generator,
    progress: Progress,
) -> SearchModels | None:
    """Learn to propose poses and to choose between hypotheses from canonical images, perturbed by known poses.

    The critic learns from the hypotheses of a quick search in which the truth takes part; its scale, the temperature,
    the spread of poses and the gate are fitted to what the real search finds for images that the critic has not seen
    (the VAE has).

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

    Returns
    -------
    models : SearchModels or None
        The spread of the poses in units of the frame, the gate such that 1 % of upright images exceed it. None if the
        images are too few to learn anything from.
    """
    shown, held_out = _split(images, generator)
    if held_out is None:
        return None
    initializer, density, critic, proposer = PoseInitializer(typical), None, None, None
    if wanted.critic:
        density = _fitted_density(model, shown, generator)
        model = replace(model, density=density)
    if wanted.proposer:
        progress.stage(PROPOSING)
        proposer = _trained_proposer(model, shown, typical, wanted.max_epochs, generator=generator, progress=progress)
        proposer.metric.copy_(typical_metric(Objective(model, held_out[:_N_CURVED])))
        initializer = PoseInitializer(typical, proposer)
    if wanted.critic:
        progress.stage(CHOOSING)
        critic = _trained_critic(model, shown, initializer, generator=generator, progress=progress)
    progress.stage(CALIBRATING)
    true, offset = random_places(model, held_out, generator)

    def found_by(model: AVAE) -> Hypotheses:
        # One hypothesis is no choice to learn from.
        several = replace(search, n_refine=max(2, search.n_refine))
        return find_hypotheses(model, held_out, initializer, several, true=true, offset=offset)

    found = found_by(model)
    if proposer is not None and search.n_restarts > 1:
        proposer.floor.copy_(_first_scores(model, found.images, initializer, search.n_restarts).quantile(_UNSURE))
    if critic is not None:
        critic.scale.fill_(calibrate(critic_scores_in_batches(model, critic, found), found.log_joint, found.right)[1])
        # Again with the critic's say in the search itself.
        model = replace(model, critic=critic)
        found = found_by(model)
    scores = torch.zeros_like(found.log_joint) if critic is None else critic_scores_in_batches(model, critic, found)
    temperature, weight = calibrate(scores, found.log_joint, found.right)
    if critic is not None:
        critic.scale.mul_(weight)
    best = (found.log_joint + weight * scores).argmax(dim=1)
    spread = pose_spread(model, found, best, true)
    confidence = _confidence(model, found, weight * scores, temperature, spread, true, initializer)
    gate = _gate(model, held_out, initializer, replace(search, temperature=temperature))
    return SearchModels(
        proposer=proposer and freeze(proposer, images.device),
        density=density and freeze(density, images.device),
        critic=critic and freeze(critic, images.device),
        temperature=temperature,
        pose_spread=dict(zip(parameters_of(model.family), spread.tolist(), strict=True)),
        min_gain=gate,
        confidence=confidence,
    )


def _confidence(
    model: AVAE,
    found: Hypotheses,
    said: Tensor,
    temperature: float,
    spread: Tensor,
    true: Tensor,
    initializer: PoseInitializer,
) -> Confidence:
    """Calibrate the probability that a pose is right, on hypotheses of which the critic said so many nats."""
    score, order = (found.log_joint + said).sort(dim=1, descending=True, stable=True)
    alpha = found.alpha.gather(1, order[:, :, None].expand_as(found.alpha))
    weight = hypothesis_weights(score / temperature, score == -math.inf)
    deviation = pose_deviation(Objective(model, found.images), alpha[:, 0])
    deviation = torch.where(deviation == 0, deviation, deviation.hypot(spread.to(deviation)))
    return calibrate_confidence(
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
    model: AVAE, images: Tensor, initializer: PoseInitializer, *, generator: torch.Generator, progress: Progress
) -> Critic | None:
    """Train a critic; None if the images teach nothing."""
    images = images.repeat(_n_copies(len(images), images[0].numel()), 1, 1, 1)
    true, offset = random_places(model, images, generator)
    shown = find_hypotheses(model, images, initializer, _QUICK_SEARCH, true=true, offset=offset, show_truth=True)
    stream = _stream(generator, images.device)
    with stream.lent():
        critic = Critic((images.shape[1], images.shape[2], images.shape[3])).to(images.device)
    learned = train_critic(critic, model, shown, generator=generator, stream=stream, progress=progress)
    return critic.eval() if learned else None
