"""scikit-learn's callbacks (`set_callbacks`, progress bars), where scikit-learn has them: since 1.9.

The only file that knows of them. Under an older scikit-learn the estimators have no `set_callbacks`, and a `Task` tells
nobody.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self

from sklearn.frozen import FrozenEstimator

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupport
    from sklearn.callback import with_callbacks
except ImportError:

    class CallbackSupport:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is."""
        return method


__all__ = ["CallbackSupport", "Task", "with_callbacks"]


class Task:
    """A task of `fit`, of whose beginning and end callbacks are told.

    Parameters
    ----------
    estimator : estimator
        Being fitted.
    context : sklearn.callback.CallbackContext or None
        None tells nobody.
    X, y : array-like or None
        What it is fitted on.
    """

    def __init__(self, estimator: Any, context: Any, X: Any, y: Any) -> None:
        self.estimator = estimator
        self.context = context
        self.data = {"X": X, "y": y}

    @classmethod
    def of_fit(cls, estimator: Any, n_subtasks: int, X: Any, y: Any) -> Self:
        """Begin the task of a whole fit. Its method must be decorated by `with_callbacks`.

        Parameters
        ----------
        estimator : estimator
        n_subtasks : int
            At most.
        X, y : array-like or None
        """
        supports = isinstance(estimator, CallbackSupport) and hasattr(estimator, "_init_callback_context")
        context = estimator._init_callback_context(max_subtasks=n_subtasks) if supports else None
        return cls(estimator, context, X, y).begin()

    def subtask(self, name: str) -> Self:
        """Return a task within this one, the next of its kind, which has yet to begin."""
        context = None if self.context is None else self.context.subcontext(task_name=name)
        return type(self)(self.estimator, context, **self.data)

    def begin(self) -> Self:
        """Tell that it begins."""
        if self.context is not None:
            self.context.call_on_fit_task_begin(estimator=self.estimator, **self.data)
        return self

    def end(self, fitted: Callable[[], dict[str, Any]] | None = None) -> bool:
        """Tell that it ended, and return whether a callback asks to stop here.

        Parameters
        ----------
        fitted : callable or None, default=None
            Returns the attributes of the estimator as if `fit` ended now; called only if a callback wants to know.
        """
        if self.context is None:
            return False
        return bool(
            self.context.call_on_fit_task_end(estimator=self.estimator, reconstruction_attributes=fitted, **self.data)
        )

    def fit(self, name: str, sub_estimator: Any, *args: Any, **params: Any) -> Any:
        """Fit an estimator as a task within this one, with the callbacks lent to it, and return it fitted.

        Parameters
        ----------
        name : str
            Of the task.
        sub_estimator : estimator
            One that is frozen takes no callbacks: nothing is fitted.
        *args, **params
            Of its `fit`.
        """
        task = self.subtask(name)
        lends = task.context is not None and not isinstance(sub_estimator, FrozenEstimator)
        with task.context.propagate_callback_context(sub_estimator) if lends else nullcontext():
            task.begin()
            fitted = sub_estimator.fit(*args, **params)
            task.end()
        return fitted
