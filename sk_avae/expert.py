"""`ExpertSettings`: the details of training and search that hardly anybody sets."""

from collections.abc import Mapping
from typing import Any

from sklearn.base import BaseEstimator

from ._links import LinkedToDocs

# What they were as parameters of `AVAEEstimator` until version 0.2.
MOVED = ("max_iter", "weight_decay", "validation_fraction", "n_iter_no_change", "callbacks")
DEPRECATED = "deprecated"


class ExpertSettings(LinkedToDocs, BaseEstimator):
    """Details of training and search, for `AVAEEstimator`'s parameter `expert`.

    It can be cloned, and searched: ``GridSearchCV(avae, {"expert__weight_decay": [0, 1e-4]})``.

    Parameters
    ----------
    max_iter : int, default=100
        Evaluations per refined restart; 0 screens only.
    weight_decay : float, default=0.0
        Adam's weight decay.
    validation_fraction : float or None, default=None
        Share of the training images held out to report, and with `early_stopping` to decide; they calibrate the search,
        too. None is a tenth with `early_stopping`; else `fit` holds out what calibrates, and reports no loss of it.
    n_iter_no_change : int, default=5
        With `early_stopping`, epochs without a better held-out loss after which training stops.
    callbacks : list or None, default=None
        Further skorch callbacks; they are copied. To stop early use `early_stopping`: skorch's own callback
        signals by KeyboardInterrupt, which `fit` lets through. scikit-learn's callbacks (1.9 and later) go in by
        `AVAEEstimator.set_callbacks`.

    Examples
    --------
    >>> from sk_avae import AVAEEstimator, ExpertSettings
    >>> AVAEEstimator(expert=ExpertSettings(max_iter=200)).get_params()["expert__max_iter"]
    200
    """

    def __init__(
        self,
        *,
        max_iter: int = 100,
        weight_decay: float = 0.0,
        validation_fraction: float | None = None,
        n_iter_no_change: int = 5,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.max_iter = max_iter
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.callbacks = callbacks


# Parameters that version 0.1 did not have, at what it did.
_AS_BEFORE = {"decoder_output": "auto", "resolution": None, "missing_values": "error", "interpolation": "bilinear"}


def is_deprecated(value: Any) -> bool:
    """Tell whether a parameter that has moved was left alone."""
    return isinstance(value, str) and value == DEPRECATED


def upgraded(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of an estimator that version 0.1 may have saved, as those of this version."""
    state = {**_AS_BEFORE, **state}
    if "expert" in state or not set(MOVED) & set(state):
        return state
    defaults = ExpertSettings().get_params(deep=False)
    moved = {name: state.get(name, defaults[name]) for name in MOVED}
    state["expert"] = None if moved == defaults else ExpertSettings(**moved)
    return state | dict.fromkeys(MOVED, DEPRECATED)
