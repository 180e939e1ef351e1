"""Settings that have no effect: nobody should believe that they do."""

import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from ._callers import users_level
from .aligner import Aligner


def warn_of_settings(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Warn of parameters of `AVAEEstimator` that others make pointless.

    Parameters
    ----------
    parameters, defaults : mapping from str to object
        As `get_params` returns them, those of `expert` among them.
    """
    told = [f"{name}={parameters[name]!r} ({why})" for name, why in _pointless(parameters, defaults)]
    if told:
        _warn(f"Without effect: {', '.join(told)}.")


def _pointless(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, str]]:
    def is_set(name: str) -> bool:
        value, default = parameters.get(name), defaults.get(name)
        return value is not default and not (type(value) is type(default) and value == default)

    found = []
    if is_set("hidden_layer_sizes") and parameters["module"] != "mlp":
        found.append(("hidden_layer_sizes", "the module is not 'mlp'"))
    if is_set("decoder_output") and parameters["likelihood"] == "gaussian":
        found.append(("decoder_output", "a Gaussian reads means"))
    if is_set("expert__n_iter_no_change") and not parameters["early_stopping"]:
        found.append(("expert__n_iter_no_change", "early_stopping is False"))
    if is_set("memory") and not isinstance(parameters["random_state"], Integral):
        found.append(("memory", "random_state is no int, so that no training can be repeated"))
    if is_set("memory") and parameters.get("expert__callbacks"):
        found.append(("memory", "callbacks are to be called"))
    return found


def warn_of_few_images(aligner: Aligner, n_images: int) -> None:
    """Warn if search models were wanted, and there were too few images to learn them from."""
    pose, models = aligner.pose, aligner.models
    wanted = {"proposer": pose.learned_starts, "critic": pose.critic}
    missing = [name for name in wanted if wanted[name] and getattr(models, name) is None]
    if missing and models.min_gain is None:
        who = f"the {' and the '.join(missing)} {'learns' if len(missing) == 1 else 'learn'}"
        _warn(
            f"X has {n_images} images, and {who} from 64 or more that are not constant: the search goes without, as "
            f"with learned_starts=False and critic=False."
        )


def warn_of_unlearned(aligner: Aligner, at_fit: Any) -> None:
    """Warn of search models that are wanted now, and were not learned, or for other poses.

    Parameters
    ----------
    aligner : Aligner
        With the settings of now.
    at_fit : PoseSettings
        Those that `fit` knew.
    """
    pose, models = aligner.pose, aligner.models
    if pose.learned_starts and not at_fit.learned_starts and models.proposer is None:
        _warn("learned_starts=True has no effect: `fit` learned no proposer. Fit again, with warm_start=True for one.")
    if pose.critic and not at_fit.critic and models.critic is None:
        _warn("critic=True has no effect: `fit` learned no critic. Fit again, with warm_start=True for one.")
    if pose.learned_starts and models.proposer is not None and aligner.proposer is None:
        _warn(
            f"The proposer was learned for other poses than family={pose.family!r} with the prior of now: the whole "
            f"table of starting poses is tried instead. Fit again, with warm_start=True for one."
        )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=users_level())
