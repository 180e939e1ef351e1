"""`CanonicalizedClassifier`: any classifier behind the aligner, averaged over the poses an image may have."""

import warnings
from typing import Any, Self

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.metadata_routing import UNUSED, MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from ._inputs import as_images, check_names, check_rows
from ._meta import aligned_copies, allows_gaps, missing_values_of, new_aligner, unfrozen
from ._validation import check_count, repeated, unchanged_on_error
from .callbacks import CallbackSupport, Task, with_callbacks


def _can(meta: "CanonicalizedClassifier", method: str) -> bool:
    classifier = getattr(meta, "classifier_", meta.classifier)
    return classifier is None or hasattr(classifier, method)


def _has_probabilities(meta: "CanonicalizedClassifier") -> bool:
    """Without probabilities of its own the classifier has none to average."""
    return _can(meta, "predict_proba")


def _has_decisions(meta: "CanonicalizedClassifier") -> bool:
    """Log-odds are made of probabilities; a classifier without has to have decision values of its own."""
    return _has_probabilities(meta) or _can(meta, "decision_function")


def _check_sample_weight(classifier: Any, sample_weight: ArrayLike, n: int) -> NDArray[Any]:
    """Return weights, one per sample, or raise where the classifier could not use them."""
    if not has_fit_parameter(classifier, "sample_weight") and not has_fit_parameter(classifier, "kwargs"):
        raise TypeError(
            f"{type(classifier).__name__}.fit takes no sample_weight. Leave it out, or take a classifier that does."
        )
    weights = check_array(as_images(sample_weight, "sample_weight"), ensure_2d=False, input_name="sample_weight")
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), one weight per image, got {weights.shape}.")
    return weights  # type: ignore[no-any-return]


class CanonicalizedClassifier(CallbackSupport, ClassifierMixin, BaseEstimator):
    """A classifier that aligns images first and averages its predictions over the plausible poses.

    `fit` fits the aligner, brings the training images into the canonical pose and fits the classifier on them.
    `predict_proba` averages the classifier's probabilities over the hypotheses that alignment finds for an image, with
    their weights: a 6 that may be a 9 comes out as both. With `n_copies` the classifier is also fitted on training
    images that were perturbed and then aligned, since aligned upright images are cleaner than aligned rotated ones.

    Parameters
    ----------
    classifier : classifier or None, default=None
        Cloned and fitted on canonical images; None is ``LogisticRegression()``. One without `predict_proba` sees
        the best hypothesis only.
    estimator : AVAEEstimator or None, default=None
        The aligner: cloned and fitted; None is ``AVAEEstimator()``. One that is fitted already goes in as
        ``sklearn.frozen.FrozenEstimator(avae)``.
    n_hypotheses : int or None, default=None
        Average over this many of the best hypotheses; None takes all that the estimator refines (`n_refine`).
    n_copies : int, default=0
        How many times the classifier also sees each training image in another pose (`AVAEEstimator.perturb`), aligned.
        Each takes as long as `transform`. What `fit` passes on per sample (weights) holds for an image's copies, too.
    random_state : int, RandomState instance or None, default=None
        Passed to the clone of `estimator`; None leaves the clone's own. It also draws the copies' poses.

    Attributes
    ----------
    estimator_ : AVAEEstimator
        The fitted aligner.
    classifier_ : classifier
        The fitted classifier.
    classes_ : ndarray of shape (n_classes,)
        Its classes.
    n_features_in_ : int
        Pixels per image.
    feature_names_in_ : ndarray of str
        Names of the input columns, if it has any.

    Examples
    --------
    >>> from sk_avae import AVAEEstimator, CanonicalizedClassifier
    >>> from sk_avae.datasets import load_mnist_sample
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> X, y = load_mnist_sample("train")
    >>> model = CanonicalizedClassifier(KNeighborsClassifier(3), AVAEEstimator(max_epochs=1), random_state=0)
    >>> model.fit(X[:300], y[:300]).predict_proba(X[:2]).shape
    (2, 10)
    """

    # A search hands weights through to the classifier, which has to request them itself.
    __metadata_request__fit = {"sample_weight": UNUSED}  # noqa: RUF012

    def __init__(
        self,
        classifier: Any = None,
        estimator: Any = None,
        *,
        n_hypotheses: int | None = None,
        n_copies: int = 0,
        random_state: Any = None,
    ) -> None:
        self.classifier = classifier
        self.estimator = estimator
        self.n_hypotheses = n_hypotheses
        self.n_copies = n_copies
        self.random_state = random_state

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: Any) -> Self:
        """Fit the aligner on images, and the classifier on what it makes of them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in their canonical pose.
        y : array-like of shape (n_samples,)
            Classes.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            For the classifier's `fit`; the aligner has no use for weights.
        **params
            Further arguments of the classifier's `fit`; with metadata routing enabled those that it requests.

        Returns
        -------
        self : CanonicalizedClassifier

        Raises
        ------
        TypeError
            If `estimator` cannot align images, `classifier` is none, or its `fit` takes no weights but gets some.
        ValueError
            If X or y is not as documented.
        """
        self._check_parameters()
        self._warn_of_no_effect()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        labels: NDArray[Any] = column_or_1d(as_images(y, "y"), warn=True)
        if labels.dtype.kind == "f":
            assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        estimator = new_aligner(self.estimator, self.random_state)
        classifier = self._new_classifier()
        if sample_weight is not None:
            params["sample_weight"] = _check_sample_weight(classifier, sample_weight, len(labels))
        routed = self._for_classifier(params)
        task = Task.of_fit(self, 2, X, labels)
        with unchanged_on_error(self):
            shape = getattr(unfrozen(estimator), "image_shape_", None) or getattr(estimator, "image_shape", None)
            gaps = missing_values_of(estimator)
            rows, _ = check_rows(self, X, image_shape=shape, reset=True, missing_values=gaps)
            check_consistent_length(rows, labels)
            self.estimator_ = task.fit("fit-estimator", estimator, X, labels)
            aligner = unfrozen(self.estimator_)
            if aligner is not self.estimator_:  # which has looked at nothing
                check_rows(aligner, X, image_shape=aligner.image_shape_, missing_values=gaps)
            images = aligner._transformed(rows)[:, : rows.shape[1]]
            if self.n_copies:
                copies = aligned_copies(aligner, rows, self.n_copies, self.random_state)
                images = np.concatenate([images, *copies])
                routed = repeated(routed, len(labels), 1 + self.n_copies)
                labels = np.tile(labels, 1 + self.n_copies)
            self.classifier_ = task.fit("fit-classifier", classifier, images, labels, **routed)
            self.classes_ = self.classifier_.classes_
        task.end()
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = allows_gaps(self.estimator)
        return tags

    def _new_classifier(self) -> Any:
        if self.classifier is not None:
            return clone(self.classifier)
        from sklearn.linear_model import LogisticRegression  # a tenth of a second that `import sk_avae` need not take

        return LogisticRegression()

    def _for_classifier(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return what of `fit`'s further arguments goes to the classifier."""
        if not sklearn.get_config()["enable_metadata_routing"]:
            return params
        return dict(process_routing(self, "fit", **params).classifier.fit)

    def get_metadata_routing(self) -> MetadataRouter:
        """Return how metadata is routed: `fit`'s to the classifier, which has to request it; the aligner takes none.

        Returns
        -------
        routing : sklearn.utils.metadata_routing.MetadataRouter
        """
        fitting = MethodMapping().add(caller="fit", callee="fit")
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(classifier=self._new_classifier(), method_mapping=fitting)

    def _check_parameters(self) -> None:
        if self.n_hypotheses is not None:
            check_count("n_hypotheses", self.n_hypotheses)
        check_count("n_copies", self.n_copies, minimum=0)
        if self.classifier is not None and not is_classifier(self.classifier):
            raise TypeError(f"classifier must be a classifier, got {type(self.classifier).__name__}.")

    def _warn_of_no_effect(self) -> None:
        if self.n_hypotheses is not None and not _has_probabilities(self):
            warnings.warn(
                f"n_hypotheses={self.n_hypotheses} has no effect: {type(self.classifier).__name__} has no "
                f"predict_proba to average, and sees the best hypothesis only.",
                UserWarning,
                stacklevel=4,
            )

    def _best(self, X: ArrayLike) -> NDArray[Any]:
        """Return the canonical images, without the pose, whatever container the estimator is set to."""
        return np.asarray(self.estimator_.transform(X))[:, : self.n_features_in_]

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return class probabilities, averaged over the hypotheses.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        self._check_parameters()
        check_names(self, X)
        images, weights = self.estimator_.transform_hypotheses(X)
        weights = weights[:, : self.n_hypotheses]
        probabilities = np.zeros((len(weights), len(self.classes_)), dtype=weights.dtype)
        for image, weight in zip(images.swapaxes(0, 1), weights.T, strict=False):
            counts = weight > 0
            if counts.any():
                probabilities[counts] += weight[counts, None] * self.classifier_.predict_proba(image[counts])
        return probabilities / weights.sum(axis=1, keepdims=True)

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]
    def predict_log_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return the logarithms of `predict_proba`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))  # type: ignore[no-any-return]

    @available_if(_has_decisions)  # type: ignore[untyped-decorator]
    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Return decision values: the higher, the more probable; the highest is what `predict` says.

        Where the classifier has probabilities these are their averages' logarithms, for two classes the log-odds of the
        second. Else they are the classifier's own, for the best hypothesis.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        decision : ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
        check_is_fitted(self)
        check_names(self, X)
        if not _has_probabilities(self):
            return self.classifier_.decision_function(self._best(X))  # type: ignore[no-any-return]
        probabilities = self.predict_proba(X)
        log = np.log(np.maximum(probabilities, np.finfo(probabilities.dtype).tiny))
        return log[:, 1] - log[:, 0] if log.shape[1] == 2 else log  # type: ignore[no-any-return]

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable class of each image.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        check_names(self, X)
        if not _has_probabilities(self):
            return self.classifier_.predict(self._best(X))  # type: ignore[no-any-return]
        return self.classes_[self.predict_proba(X).argmax(axis=1)]  # type: ignore[no-any-return]
