"""What `fit` learns for the search: where to start, and how to choose between what was found."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from .affine import compose
from .alignment import AVAE, is_constant, screen, typical_metric
from .critic import (
    Critic,
    Search,
    align_in_parts,
    calibrate,
    critic_scores_in_blocks,
    find_hypotheses,
    perturb,
    pose_spread,
    random_places,
)
from .density import N_COMPONENTS, ShapeDensity, canonical_features
from .net import train_critic, train_proposer
from .persistence import global_generator
from .proposer import Proposer, Starts
from .starts import Moments, exact_moments, reach_of

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

_N_AT_ONCE = 256

# Fewer images would not tell the shape of a component, nor pixels a smaller variance; EM takes a tenth of such steps.
_IMAGES_PER_COMPONENT = 50
_LEAST_VARIANCE = 1e-4
_EM_STEPS = 500

# Share of training images that score less at their proposals, and are given the whole table.
_UNSURE = 0.01

# Share of upright training images that an "auto" gate lets move.
_FALSE_ALARMS = 0.01

# The critic meets hypotheses near their optima, not at them: that takes a fifth of the time.
_QUICK_SEARCH = Search(n_restarts=16, n_refine=4, max_iter=4, tol=1e-2)


def _n_shown(n_pixels: int) -> int:
    return min(_N_SHOWN, max(_FEWEST_HELD_OUT, _PIXELS_SHOWN // n_pixels))


def _n_copies(n_images: int, n_pixels: int) -> int:
    return max(1, min(_MOST_COPIES, _N_MISTAKES // n_images, _PIXELS_SHOWN // (n_images * n_pixels)))


def n_looked_at(n_pixels: int) -> int:
    """Return how many images of so many pixels are looked at, at most."""
    return max(_N_HELD_OUT + _n_shown(n_pixels), 4 * _N_HELD_OUT)


class Choice(NamedTuple):
    """What helps the search, learned on training images in known poses.

    Attributes
    ----------
    proposer : Proposer or None
        Trained; None if there was to be none.
    density : ShapeDensity or None
        Of canonical images; None if there was to be no critic.
    critic : Critic or None
        Trained, and scaled to nats; None if there was to be none.
    temperature : float
        Of the hypotheses' weights, in nats.
    spread : Tensor of shape (n_params,)
        Standard deviation of the training images' own poses, in units of the frame.
    gate : float
        Gain of the score, in nats, that 1 % of upright images exceed.
    """

    proposer: Proposer | None
    density: ShapeDensity | None
    critic: Critic | None
    temperature: float
    spread: Tensor
    gate: float


def learn_to_choose(
    model: AVAE,
    images: Tensor,
    typical: Moments | None,
    *,
    with_proposer: bool,
    with_critic: bool,
    search: Search,
    max_epochs: int,
    generator: torch.Generator,
    verbose: int,
) -> Choice | None:
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
        See `starts.starting_poses`.
    with_proposer, with_critic : bool
        Whether there is to be a proposer; a density and a critic.
    search : Search
        The one that the hypotheses will come from.
    max_epochs : int
        Of the proposer, at most.
    generator : torch.Generator
        On the CPU: draws images, poses and the critic's training.
    verbose : int
        Prints a line per epoch of proposer and critic if positive.

    Returns
    -------
    choice : Choice or None
        None if the images are too few to learn anything from.
    """
    usable = (~is_constant(images)).nonzero()[:, 0]
    n_held_out = min(_N_HELD_OUT, len(usable) // 4)
    if n_held_out < _FEWEST_HELD_OUT:
        return None
    usable = usable[torch.randperm(len(usable), generator=generator).to(usable.device)]
    held_out = images[usable[:n_held_out]]
    shown = images[usable[n_held_out : n_held_out + _n_shown(held_out[0].numel())]]
    starts, density, critic, proposer = Starts(typical), None, None, None
    if with_critic:
        density = _fitted_density(model, shown, generator)
        model = replace(model, density=density)
    if with_proposer:
        proposer = _trained_proposer(model, shown, typical, max_epochs, generator=generator, verbose=verbose)
        proposer.metric.copy_(typical_metric(model, held_out[:_N_CURVED]))
        model, starts = replace(model, metric=proposer.metric), Starts(typical, proposer)
    if with_critic:
        critic = _trained_critic(model, shown, starts, generator=generator, verbose=verbose)
    true, offset = random_places(model, held_out, generator)
    # One hypothesis is no choice to learn from.
    several = search._replace(n_refine=max(2, search.n_refine))
    found = find_hypotheses(model, held_out, starts, several, true=true, offset=offset)
    if proposer is not None and search.n_restarts > 1:
        proposer.floor.copy_(_first_scores(model, found.images, starts, search.n_restarts).quantile(_UNSURE))
    if critic is not None:
        critic.scale.fill_(calibrate(critic_scores_in_blocks(model, critic, found), found.log_joint, found.right)[1])
        # Again with the critic's say in the search itself.
        model = replace(model, critic=critic)
        found = find_hypotheses(model, held_out, starts, several, true=true, offset=offset)
    scores = torch.zeros_like(found.log_joint) if critic is None else critic_scores_in_blocks(model, critic, found)
    temperature, weight = calibrate(scores, found.log_joint, found.right)
    if critic is not None:
        critic.scale.mul_(weight)
    best = (found.log_joint + weight * scores).argmax(dim=1)
    upright = align_in_parts(model, held_out, starts, search, temperature=temperature)
    gains = torch.cat([part.gain for part in upright])
    return Choice(
        proposer=proposer,
        density=density,
        critic=critic,
        temperature=temperature,
        spread=pose_spread(model, found, best, true),
        gate=max(0.0, float(gains.quantile(1 - _FALSE_ALARMS))),
    )


def _first_scores(model: AVAE, images: Tensor, starts: Starts, n_restarts: int) -> Tensor:
    """Return the best score of each image at the restarts that are screened first, of shape (n,)."""
    best = []
    for some in images.split(_N_AT_ONCE):  # type: ignore[no-untyped-call]
        restarts = starts.of(model, some, n_restarts).without_identity()
        best.append(screen(model, some, restarts.alpha, restarts.first).amax(dim=1))
    return torch.cat(best)


def _seeded(generator: torch.Generator, device: torch.device) -> AbstractContextManager[None]:
    """First weights and dropout draw from torch's global generator: seed it for a while."""
    return global_generator(int(torch.randint(2**31, (), generator=generator)), device)


def _trained_proposer(
    model: AVAE, images: Tensor, typical: Moments | None, max_epochs: int, *, generator: torch.Generator, verbose: int
) -> Proposer:
    with _seeded(generator, images.device):
        proposer = Proposer((images.shape[1], images.shape[2], images.shape[3]), model.family).to(images.device)
        train_proposer(
            proposer,
            model,
            images,
            typical,
            max_epochs=max_epochs,
            generator=generator,
            device=images.device,
            verbose=verbose,
        )
    proposer.reach.copy_(torch.tensor(reach_of(model.family, model.scale)))
    return proposer.eval()


def _fitted_density(model: AVAE, images: Tensor, generator: torch.Generator) -> ShapeDensity:
    """Learn what moments say of canonical images when these are perturbed, cut off by the frame and put right again."""
    true, offset = random_places(model, images, generator)
    matrix = model.matrix(true, images)
    ink = exact_moments(perturb(model, images, compose(matrix, offset)), model.background)
    features = canonical_features(ink, matrix, images.shape[3] / images.shape[2]).cpu().numpy()
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
    model: AVAE, images: Tensor, starts: Starts, *, generator: torch.Generator, verbose: int
) -> Critic | None:
    """Train a critic; None if the images teach nothing."""
    images = images.repeat(_n_copies(len(images), images[0].numel()), 1, 1, 1)
    true, offset = random_places(model, images, generator)
    shown = find_hypotheses(model, images, starts, _QUICK_SEARCH, true=true, offset=offset, show_truth=True)
    with _seeded(generator, images.device):
        critic = Critic((images.shape[1], images.shape[2], images.shape[3])).to(images.device)
        learned = train_critic(critic, model, shown, generator=generator, device=images.device, verbose=verbose)
    return critic.eval() if learned else None
