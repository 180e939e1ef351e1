"""The documented attributes of a fitted estimator, read from its `aligner_`."""

from typing import Any

from numpy.typing import NDArray
from sklearn.utils import estimator_html_repr
from torch import nn

from .aligner import Aligner
from .images import ImageFormat
from .report import AlignmentReport


class LearnedAttributes:
    """Reads what was learned from `aligner_`; what is not there yet is an AttributeError."""

    aligner_: Aligner

    def _html_repr(self) -> str:
        """Return what notebooks show: the parameters, and after `fit` how far poses are to be trusted."""
        report = self.alignment_report_ if "aligner_" in vars(self) else None
        html: str = estimator_html_repr(self)
        return html if report is None else html + report._repr_html_()

    @property
    def module_(self) -> Any:
        """The trained VAE, in evaluation mode."""
        return self.aligner_.vae.module

    @property
    def likelihood_(self) -> Any:
        """The likelihood, with its learned scale."""
        return self.aligner_.likelihood.module

    @property
    def image_format_(self) -> ImageFormat:
        """Learned scaling and background."""
        return self.aligner_.image_format

    @property
    def image_shape_(self) -> tuple[int, ...]:
        """Shape of an image."""
        return self.aligner_.image_format.image_shape

    @property
    def moments_(self) -> tuple[NDArray[Any], ...] | None:
        """Mean centroid and covariance of the training images' ink."""
        return self.aligner_.moments

    @property
    def proposer_(self) -> Any:
        """The network that proposes starting poses."""
        return self.aligner_.models.proposer

    @property
    def density_(self) -> nn.Module | None:
        """The density of the moments of canonical images."""
        return self.aligner_.models.density

    @property
    def critic_(self) -> nn.Module | None:
        """The trained critic."""
        return self.aligner_.models.critic

    @property
    def temperature_(self) -> float:
        """Temperature of the hypotheses' weights, in nats."""
        return self.aligner_.models.temperature

    @property
    def pose_spread_(self) -> dict[str, float]:
        """Per parameter, the standard deviation of the training images' own poses."""
        return dict(self.aligner_.models.pose_spread)

    @property
    def alignment_report_(self) -> AlignmentReport | None:
        """What came of held-out images; None if nothing was learned for the search."""
        return self.aligner_.models.report

    @property
    def min_gain_(self) -> float | None:
        """What ``min_gain="auto"`` stands for."""
        return self.aligner_.models.min_gain
