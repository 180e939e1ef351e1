"""The displays; see `sk_avae.inspection`."""

from .inspection import (
    AlignmentDisplay,
    ELBOProfileDisplay,
    PoseHistogramDisplay,
    RobustnessCurveDisplay,
    TrainingDisplay,
)

__all__ = [
    "AlignmentDisplay",
    "ELBOProfileDisplay",
    "PoseHistogramDisplay",
    "RobustnessCurveDisplay",
    "TrainingDisplay",
]
