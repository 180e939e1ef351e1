"""Looking at what alignment does: displays, as scikit-learn has them, and scorers."""

from .alignment_display import AlignmentDisplay
from .alignment_report import AlignmentReportDisplay
from .elbo_profile import ELBOProfileDisplay
from .pose_histogram import PoseHistogramDisplay
from .robustness_curve import RobustnessCurveDisplay
from .training_curve import TrainingDisplay

__all__ = [
    "AlignmentDisplay",
    "AlignmentReportDisplay",
    "ELBOProfileDisplay",
    "PoseHistogramDisplay",
    "RobustnessCurveDisplay",
    "TrainingDisplay",
]
