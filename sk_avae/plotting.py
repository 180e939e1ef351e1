"""The displays; see `sk_avae.inspection`."""

from .inspection import (
    AlignmentDisplay,
    AlignmentReportDisplay,
    ELBOProfileDisplay,
    PoseHistogramDisplay,
    RobustnessCurveDisplay,
    TrainingDisplay,
)

__all__ = [
    "AlignmentDisplay",
    "AlignmentReportDisplay",
    "ELBOProfileDisplay",
    "PoseHistogramDisplay",
    "RobustnessCurveDisplay",
    "TrainingDisplay",
]
