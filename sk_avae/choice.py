"""What `fit` learns for choosing between hypotheses: the critic, the temperature and the spread of poses."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .alignment import AVAE
from .critic import Critic, Search, calibrate, find_hypotheses, judge_all, pose_spread
from .net import train_critic
from .starts import Moments, random_poses

# Training images that calibrate, that the critic learns from (and their pixels), and how few make no sense.
_N_HELD_OUT = 1000
_N_SHOWN = 30_000
_PIXELS_SHOWN = 2**28
_FEWEST_HELD_OUT = 25

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
    held_out : Tensor of shape (n_held_out, n_channels, height, width)
        Training images that the critic has not seen.
    """

    critic: Critic | None
    temperature: float
    spread: Tensor
    held_out: Tensor


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

    The critic learns from the hypotheses of a quick search in which the truth takes part; its scale, the temperature
    and the spread of poses are fitted to those of the real search, on images that the critic has not seen.

    Parameters
    ----------
    model : AVAE
        Without a critic.
    images : Tensor of shape (n, n_channels, height, width)
        Training images, none of them constant.
    typical : Moments or None
        See `starts.starting_poses`.
    with_critic : bool
        Whether there is to be a critic.
    search : Search
        The one that the hypotheses will come from.
    generator : torch.Generator
        On the CPU: draws images, poses and the critic's training. Its first weights and its dropout come from torch's
        global generator, which the caller lends.
    verbose : int
        Prints a line per epoch of the critic if positive.

    Returns
    -------
    choice : Choice or None
        None if the images are too few to learn anything from.
    """
    n_held_out = min(_N_HELD_OUT, len(images) // 4)
    if n_held_out < _FEWEST_HELD_OUT:
        return None
    device, frame = images.device, images.shape[1:]
    order = torch.randperm(len(images), generator=generator).to(device)
    held_out = images[order[:n_held_out]]
    critic = None
    if with_critic:
        critic = Critic((frame[0], frame[1], frame[2])).to(device)
        n_shown = min(_N_SHOWN, max(_FEWEST_HELD_OUT, _PIXELS_SHOWN // frame.numel()))
        rest = images[order[n_held_out : n_held_out + n_shown]]
        true = random_poses(len(rest), model.family, model.scale, generator).to(device)
        shown = find_hypotheses(model, rest, typical, _QUICK_SEARCH, true=true, show_truth=True)
        train_critic(critic, model, shown, generator=generator, device=device, verbose=verbose)
    true = random_poses(n_held_out, model.family, model.scale, generator).to(device)
    found = find_hypotheses(model, held_out, typical, search, true=true, show_truth=False)
    if critic is None:
        scores = torch.zeros_like(found.energy)
        temperature, _ = calibrate(scores, found.energy, found.right)
    else:
        critic.eval().scale.fill_(calibrate(judge_all(model, critic, found), found.energy, found.right)[1])
        # Again with the critic's say in the search itself.
        found = find_hypotheses(replace(model, critic=critic), held_out, typical, search, true=true, show_truth=False)
        scores = judge_all(model, critic, found)
        temperature, weight = calibrate(scores, found.energy, found.right)
        critic.scale.mul_(weight)
        scores = scores * weight
    best = (found.energy + scores).argmax(dim=1)
    return Choice(critic, temperature, pose_spread(model, found, best, true), held_out)
