"""The proposer's training: images in poses at random, of which it has to tell the pose."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..model.avae import AVAE
from ..model.module_state import RandomStream
from ..model.moments import Moments
from ..progress import Progress
from ..search.objective import has_more_than_one
from ..search.proposer import Proposer, bin_centres, moment_pose, output_units, residual_pose, without_moments
from .epochs import EpochNet, one_cycle, run_epochs
from .perturbation import perturb, random_places

_BATCH = 64, 256  # the fewer images there are, the smaller, for more steps
_STEPS = 300
_PIXELS = 2**22  # in a batch
# Epochs over many images, for a family that only turns and for others; and how many images, shown again, few make up.
_EPOCHS = 7, 24
_IMAGES = 20_000, 40_000
_LR = 1e-2


def proposal_loss(proposer: Proposer, model: AVAE, images: Tensor, rest: Tensor) -> Tensor:
    """Return the mean loss of predictions: cross-entropy of the angle, and distance of the rest at the true angle.

    Parameters
    ----------
    proposer : Proposer
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
        Without the pose of their moments.
    rest : Tensor of shape (n, n_params)
        What is left to find.
    """
    logits, found = proposer(images)
    n_angles = proposer.n_angles
    angle = ((rest[:, 0] + math.pi) * (n_angles / (2 * math.pi))).long().clamp(0, n_angles - 1)
    bins = angle + n_angles * (rest[:, -1] > 0.5) if proposer.n_bins > n_angles else angle
    units = output_units(model, rest, n_angles)
    distance = (rest - bin_centres(proposer, rest)[bins]) / units.clamp(min=1e-6)
    # What the moments got altogether wrong teaches no more than that.
    wanted = (distance * (units > 0)).clamp(-10, 10)
    found = found[torch.arange(len(bins), device=bins.device), bins]
    miss = F.smooth_l1_loss(found * (units > 0), wanted, reduction="none").sum(dim=1)
    return F.cross_entropy(logits, bins) + 0.5 * miss.mean()


class _ProposerNet(EpochNet):
    """A skorch net that learns to propose poses of images that it perturbs itself.

    Parameters
    ----------
    model : AVAE
        Warps images.
    typical : Moments or None
        See `proposer.moment_pose`.
    draws : torch.Generator
        On the CPU: draws the poses.
    *args, **kwargs
        Of `skorch.NeuralNet`.
    """

    advice = "Say learned_starts=False"

    def __init__(self, *args: Any, model: AVAE, typical: Moments | None, draws: torch.Generator, **kwargs: Any) -> None:
        self.model = model
        self.typical = typical
        self.draws = draws
        super().__init__(*args, **kwargs)

    def train_step_single(self, batch: tuple[tuple[Tensor], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a batch in new poses, and its gradient."""
        self._set_training(True)
        ((images,), _), model = batch, self.model
        with torch.no_grad():
            places = random_places(model, images, self.draws)
            perturbed, _ = perturb(model, images, places)
            base = moment_pose(model, perturbed, self.typical)
            rest = residual_pose(model, perturbed, base, places.alpha)
            seen = without_moments(model, perturbed, base)
        loss = proposal_loss(self.module_, model, seen, rest)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "y_pred": None}


def train_proposer(
    proposer: Proposer,
    model: AVAE,
    images: Tensor,
    typical: Moments | None,
    *,
    max_epochs: int,
    generator: torch.Generator,
    stream: RandomStream | None = None,
    progress: Progress,
) -> None:
    """Train a proposer in place on images in their canonical pose, each perturbed anew in every epoch.

    AdamW with one cycle of the learning rate.

    Parameters
    ----------
    proposer : Proposer
        Trained in place, and left in training mode.
    model : AVAE
    images : Tensor of shape (n, n_channels, height, width)
    typical : Moments or None
        See `proposer.moment_pose`.
    max_epochs : int
        Passes over the images at most; many images take fewer.
    generator : torch.Generator
        On the CPU: draws order and poses.
    stream : RandomStream or None, default=None
        What dropout draws from; None is torch's global generator.
    progress : Progress
        Told of every epoch.

    Raises
    ------
    ValueError
        If the loss or a weight becomes infinite or not a number.
    """
    harder = has_more_than_one(model, images)
    max_epochs = max(1, min(max_epochs, max(_EPOCHS[harder], _IMAGES[harder] // len(images))))
    smallest, largest = _BATCH
    batch_size = min(largest, max(smallest, len(images) * max_epochs // _STEPS))
    net = _ProposerNet(
        proposer,
        nn.Identity,
        model=model,
        stream=stream,
        typical=typical,
        draws=generator,
        **one_cycle(
            n_images=len(images),
            batch_size=max(8, min(batch_size, _PIXELS // images[0].numel())),
            max_epochs=max_epochs,
            lr=_LR,
            progress=progress,
        ),
        iterator_train__generator=generator,
        device=images.device,
    )
    run_epochs(net, TensorDataset(images), proposer.parameters())
