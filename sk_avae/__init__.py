"""Affine variational autoencoders for scikit-learn: images back in the pose that your model was trained on."""

from ._version import __version__ as __version__
from ._versions import show_versions
from .canonicalizer import AffineCanonicalizer
from .classifier import CanonicalizedClassifier
from .estimator import AVAEEstimator
from .expert import ExpertSettings
from .inspection import (
    AlignmentDisplay,
    AlignmentReportDisplay,
    ELBOProfileDisplay,
    PoseHistogramDisplay,
    RobustnessCurveDisplay,
    TrainingDisplay,
)
from .persistence import load, save
from .report import AlignmentReport
from .result import AlignmentResult

__all__ = [
    "AVAEEstimator",
    "AffineCanonicalizer",
    "AlignmentDisplay",
    "AlignmentReport",
    "AlignmentReportDisplay",
    "AlignmentResult",
    "CanonicalizedClassifier",
    "ELBOProfileDisplay",
    "ExpertSettings",
    "PoseHistogramDisplay",
    "RobustnessCurveDisplay",
    "TrainingDisplay",
    "load",
    "save",
    "show_versions",
]
