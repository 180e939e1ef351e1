"""What `fit` learns for choosing between hypotheses: critic, temperature, spread of poses and gate."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .alignment import AVAE, is_constant
from .critic import Critic, Search, align_in_parts, calibrate, critic_scores_in_blocks, find_hypotheses, pose_spread
from .net import train_critic
from .persistence import global_generator
from .starts import Moments, random_poses

# Training images that calibrate, that the critic learns from (and their pixels), and how few make no sense.
_N_HELD_OUT = 1000
_N_SHOWN = 30_000
_PIXELS_SHOWN = 2**27
_FEWEST_HELD_OUT = 25

# Share of upright training images that an "auto" gate lets move.
_FALSE_ALARMS = 0.01

# The critic meets hypotheses near their optima, not at them: that takes a fifth of the time.
_QUICK_SEARCH = Search(n_restarts=16, n_refine=4, max_iter=4, tol=1e-2)


class Choice(NamedTuple):
    """What helps to choose between hypotheses, learned on training images in known poses.

    Attributes
    ----------
    critic : Critic or None
        Trained, and scaled to nats; None if there was to be none.
    temperature : float
        Of the hypotheses' weights, in nats.
    spread : Tensor of shape (n_params,)
        Standard deviation of the training images' own poses, in units of the frame.
    gate : float
        Gain of the score, in nats, that 1 % of upright images exceed.
    """

    critic: Critic | None
    temperature: float
    spread: Tensor
    gate: float


def learn_to_choose(
    model: AVAE,
    images: Tensor,
    typical: Moments | None,
    *,
    with_critic: bool,
    search: Search,
    generator: torch.Generator,
    verbose: int,
) -> Choice | None:
    """Learn to choose between hypotheses from canonical images that are perturbed by known poses.

    The critic learns from the hypotheses of a quick search in which the truth takes part; its scale, the temperature,
    the spread of poses and the gate are fitted to what the real search finds for images that the critic has not seen
    (the VAE has).

    Parameters
    ----------
    model : AVAE
        Without a critic.
    images : Tensor of shape (n, n_channels, height, width)
        Training images; constant ones are left out.
    typical : Moments or None
        See `starts.starting_poses`.
    with_critic : bool
        Whether there is to be a critic.
    search : Search
        The one that the hypotheses will come from.
    generator : torch.Generator
        On the CPU: draws images, poses and the critic's training.
    verbose : int
        Prints a line per epoch of the critic if positive.

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
    critic = None
    if with_critic:
        n_shown = min(_N_SHOWN, max(_FEWEST_HELD_OUT, _PIXELS_SHOWN // held_out[0].numel()))
        shown = images[usable[n_held_out : n_held_out + n_shown]]
        critic = _trained_critic(model, shown, typical, generator=generator, verbose=verbose)
    true = random_poses(n_held_out, model.family, model.scale, generator).to(images.device)
    # One hypothesis is no choice to learn from.
    several = search._replace(n_refine=max(2, search.n_refine))
    found = find_hypotheses(model, held_out, typical, several, true=true)
    if critic is not None:
        critic.scale.fill_(calibrate(critic_scores_in_blocks(model, critic, found), found.log_joint, found.right)[1])
        # Again with the critic's say in the search itself.
        model = replace(model, critic=critic)
        found = find_hypotheses(model, held_out, typical, several, true=true)
    scores = torch.zeros_like(found.log_joint) if critic is None else critic_scores_in_blocks(model, critic, found)
    temperature, weight = calibrate(scores, found.log_joint, found.right)
    if critic is not None:
        critic.scale.mul_(weight)
    best = (found.log_joint + weight * scores).argmax(dim=1)
    gains = torch.cat([part.gain for part in align_in_parts(model, held_out, typical, search)])
    return Choice(
        critic=critic,
        temperature=temperature,
        spread=pose_spread(model, found, best, true),
        gate=max(0.0, float(gains.quantile(1 - _FALSE_ALARMS))),
    )


def _trained_critic(
    model: AVAE, images: Tensor, typical: Moments | None, *, generator: torch.Generator, verbose: int
) -> Critic | None:
    """Train a critic; None if the images teach nothing."""
    true = random_poses(len(images), model.family, model.scale, generator).to(images.device)
    shown = find_hypotheses(model, images, typical, _QUICK_SEARCH, true=true, show_truth=True)
    seed = int(torch.randint(2**31, (), generator=generator))
    # First weights and dropout draw from torch's global generator.
    with global_generator(seed, images.device):
        critic = Critic((images.shape[1], images.shape[2], images.shape[3])).to(images.device)
        learned = train_critic(critic, model, shown, generator=generator, device=images.device, verbose=verbose)
    return critic.eval() if learned else None
