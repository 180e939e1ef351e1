"""Affine variational autoencoders for scikit-learn: images back in the pose that your model was trained on."""

__version__ = "0.1.0"

from .alignment import AlignmentResult
from .canonicalizer import AffineCanonicalizer
from .classifier import CanonicalizedClassifier
from .estimator import AVAEEstimator
from .files import load, save
from .plotting import (
    AlignmentDisplay,
    ELBOProfileDisplay,
    PoseHistogramDisplay,
    RobustnessCurveDisplay,
    TrainingDisplay,
)

__all__ = [
    "AVAEEstimator",
    "AffineCanonicalizer",
    "AlignmentDisplay",
    "AlignmentResult",
    "CanonicalizedClassifier",
    "ELBOProfileDisplay",
    "PoseHistogramDisplay",
    "RobustnessCurveDisplay",
    "TrainingDisplay",
    "load",
    "save",
]
