r"""The critic's training: it learns to pick a right one among hypotheses.

Training images are perturbed; of the hypotheses :math:`h` for an image, modes of the proposer and a pose near the truth
(see `hypotheses.propose_hypotheses`), the critic has to pick one that is right,

.. math:: p(h) \propto \exp( \text{critic}(A_h x) ).

What it is worth beside ELBO and log prior is fitted afterwards (`calibration`) on hypotheses that the search finds for
images that the critic was not trained on, so that the weights of hypotheses are calibrated.

References
----------
Gutmann & Hyvarinen (2010), "Noise-contrastive estimation" (learning a density by telling data from what is not).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..model.avae import AVAE
from ..model.batches import images_per_batch, in_batches
from ..model.critic import Critic
from ..model.module_state import RandomStream
from ..progress import Progress
from ..search.objective import has_more_than_one
from .epochs import EpochNet, one_cycle, run_epochs
from .hypotheses import Hypotheses

# Epochs over many images, for a family that only turns and for others, and over images that come in many copies; few
# images take more, but no more than so many.
_EPOCHS = 5, 6
_EPOCHS_OF_COPIES = 3
_MANY_COPIES = 4
_MOST_EPOCHS = 8
_IMAGES, _IMAGES_IN_COPIES = 24_000, 12_000  # in all epochs together, at least
_BATCH = 128
_PIXELS = 2**24  # in a batch, over all hypotheses
_LR = 1.2e-2


def critic_scores(model: AVAE, critic: nn.Module, hypotheses: Hypotheses) -> Tensor:
    """Return what a critic says of each hypothesis, of shape (n, k)."""
    n, k, n_params = hypotheses.alpha.shape
    images = hypotheses.images.repeat_interleave(k, dim=0)
    matrix = model.matrix(hypotheses.alpha.reshape(-1, n_params), images)
    return critic(model.canonical(images, matrix)).view(n, k)  # type: ignore[no-any-return]


def critic_scores_in_batches(model: AVAE, critic: nn.Module, hypotheses: Hypotheses) -> Tensor:
    """Return what a critic in evaluation mode says, of shape (n, k), in bounded memory and without a graph."""
    rows = torch.arange(len(hypotheses.images), device=hypotheses.images.device)

    def some(row: Tensor) -> Tensor:
        return critic_scores(model, critic, Hypotheses(*(tensor[row] for tensor in hypotheses)))

    return in_batches(some, images_per_batch(hypotheses.images, critic), rows)


def choice_loss(scores: Tensor, right: Tensor) -> Tensor:
    """Return the mean negative log-probability of choosing a right hypothesis.

    Parameters
    ----------
    scores : Tensor of shape (n, k)
    right : Tensor of bool of shape (n, k)
        At least one per row.
    """
    log_share = scores.log_softmax(dim=1).masked_fill(~right, -math.inf)
    return -log_share.logsumexp(dim=1).mean()


class _CriticNet(EpochNet):
    """A skorch net that learns to choose a right hypothesis.

    Parameters
    ----------
    model : AVAE
        Warps images by their hypotheses.
    *args, **kwargs
        Of `skorch.NeuralNet`.
    """

    advice = "Say critic=False"

    def __init__(self, *args: Any, model: AVAE, **kwargs: Any) -> None:
        self.model = model
        super().__init__(*args, **kwargs)

    def train_step_single(self, batch: tuple[tuple[Tensor, ...], None], **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a batch of hypotheses, and its gradient."""
        self._set_training(True)
        found = Hypotheses(*batch[0])
        repeats = found.log_joint == -math.inf
        scores = critic_scores(self.model, self.module_, found).masked_fill(repeats, -math.inf)
        loss = choice_loss(scores, found.right)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "y_pred": None}


def train_critic(
    critic: Critic,
    model: AVAE,
    hypotheses: Hypotheses,
    *,
    n_copies: int = 1,
    generator: torch.Generator,
    stream: RandomStream | None = None,
    progress: Progress,
) -> bool:
    """Train a critic in place to choose the right ones among hypotheses.

    AdamW with one cycle of the learning rate. Images without a right hypothesis, or with nothing else, teach nothing
    and are left out.

    Parameters
    ----------
    critic : Critic
        Trained in place, and left in training mode.
    model : AVAE
    hypotheses : Hypotheses
    n_copies : int, default=1
        How often each image is among them.
    generator : torch.Generator
        On the CPU: draws the order of the images.
    stream : RandomStream or None, default=None
        What dropout draws from; None is torch's global generator.
    progress : Progress
        Told of every epoch.

    Returns
    -------
    learned : bool
        Whether there was anything to learn from.

    Raises
    ------
    ValueError
        If the loss or a weight becomes infinite or not a number.
    """
    wrong = ~hypotheses.right & hypotheses.log_joint.isfinite()
    teaches = hypotheses.right.any(dim=1) & wrong.any(dim=1)
    if not bool(teaches.any()):
        return False
    dataset = TensorDataset(*(tensor[teaches] for tensor in hypotheses))
    pixels_per_image = hypotheses.images[0].numel() * hypotheses.alpha.shape[1]
    in_copies = n_copies >= _MANY_COPIES
    fewest = _EPOCHS_OF_COPIES if in_copies else _EPOCHS[has_more_than_one(model, hypotheses.alpha)]
    wanted = _IMAGES_IN_COPIES if in_copies else _IMAGES
    net = _CriticNet(
        critic,
        nn.Identity,  # the loss is computed in the step
        model=model,
        stream=stream,
        **one_cycle(
            n_images=len(dataset),
            batch_size=max(8, min(_BATCH, _PIXELS // pixels_per_image)),
            max_epochs=min(_MOST_EPOCHS, max(fewest, wanted // len(dataset))),
            lr=_LR,
            progress=progress,
        ),
        iterator_train__generator=generator,
        device=hypotheses.images.device,
    )
    # Channels last takes a third less time; back, for a critic that was loaded rounds as one in the usual format.
    critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run_epochs(net, dataset, critic.parameters())
    critic.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return True
