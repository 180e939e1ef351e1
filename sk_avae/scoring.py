"""What scikit-learn's searches want: scorers, and a rule that prefers what is cheap."""

from .inspection.perturbed_scorer import perturbed
from .inspection.scorers import cheapest_within_one_se, elbo, neg_reconstruction_error

__all__ = ["cheapest_within_one_se", "elbo", "neg_reconstruction_error", "perturbed"]
