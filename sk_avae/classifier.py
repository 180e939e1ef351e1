"""`CanonicalizedClassifier`: any classifier behind the aligner, which weighs the poses an image may have."""

from typing import Any, Self

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d
from sklearn.utils.metadata_routing import UNUSED, MetadataRouter, MethodMapping, process_routing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from ._inputs import as_images, check_names, check_rows
from ._lessons import Lessons, aligned_lessons, folds_to_judge
from ._links import LinkedToDocs
from ._meta import allows_gaps, missing_values_of, new_aligner, unfrozen
from ._validation import check_count, check_flag, seed_from, unchanged_on_error
from .callbacks import CallbackSupport, Task, with_callbacks
from .mixture import HypothesisMixture, joined, learned_mixture, read


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


class CanonicalizedClassifier(LinkedToDocs, CallbackSupport, ClassifierMixin, BaseEstimator):
    """A classifier that aligns images first and averages its predictions over the plausible poses.

    `fit` fits the aligner, aligns the training images and fits the classifier on them. The classifier also learns from
    an aligned copy of each image in another pose, since aligned rotated images are less clean than upright ones.

    `predict_proba` combines the classifier's answers to all poses that an image may have: a 6 that may be a 9 gets
    probabilities of both. How to combine them is learned from training images that the classifier was not shown: how
    far to trust the aligner, and how far the classifier. So probabilities are calibrated, also those of classifiers
    that have only decision values.

    Parameters
    ----------
    classifier : classifier or None, default=None
        Cloned and fitted on canonical images; None is ``LogisticRegression()``. Its probabilities are used, else its
        decision values, else its predictions.
    estimator : AVAEEstimator or None, default=None
        The aligner: cloned and fitted; None is ``AVAEEstimator()``. Pass one that is fitted already as
        ``sklearn.frozen.FrozenEstimator(avae)``.
    n_hypotheses : int or None, default=None
        Number of poses read per image, the most probable first; None reads all that the estimator refines (`n_refine`).
    n_copies : int, default=1
        Number of aligned copies of each training image in another pose (`AVAEEstimator.perturb`) that the classifier
        also learns from. Each takes as long as `transform`, and gives the classifier as many more images. 0 makes none.
        Sample weights hold for an image's copies, too.
    calibrate : bool, default=True
        Whether `fit` learns how to combine answers. For it the classifier is fitted once more, or up to five times
        with less than 5,000 images. If False, or with less than 50 images, answers are averaged by the poses' weights.
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
    mixture_ : HypothesisMixture
        How its answers to several poses are combined.
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
        n_copies: int = 1,
        calibrate: bool = True,
        random_state: Any = None,
    ) -> None:
        self.classifier = classifier
        self.estimator = estimator
        self.n_hypotheses = n_hypotheses
        self.n_copies = n_copies
        self.calibrate = calibrate
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
            folds = folds_to_judge(labels, seed_from(self._random(aligner))) if self.calibrate else []
            lessons = aligned_lessons(aligner, rows, self.n_copies, folds, self._random(aligner))
            self.mixture_ = self._learned_mixture(classifier, lessons, labels, routed)
            self.classifier_ = task.fit("fit-classifier", classifier, *lessons.of(labels), **lessons.params(routed))
            self.classes_ = self.classifier_.classes_
        task.end()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Version 0.1 averaged.
        super().__setstate__({"calibrate": False, **state})

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
        check_flag("calibrate", self.calibrate)
        if self.classifier is not None and not is_classifier(self.classifier):
            raise TypeError(f"classifier must be a classifier, got {type(self.classifier).__name__}.")

    def _random(self, aligner: Any) -> Any:
        """Return what draws poses and folds: the own random state, or that of the aligner."""
        return aligner.random_state if self.random_state is None else self.random_state

    def _learned_mixture(
        self, classifier: Any, lessons: Lessons, labels: NDArray[Any], params: dict[str, Any]
    ) -> HypothesisMixture:
        """Learn how to put answers together from images that a clone of the classifier was not shown."""
        if not lessons.folds:
            return HypothesisMixture()
        _, indices, counts = np.unique(labels, return_inverse=True, return_counts=True)
        readings = []
        for n, (known, _) in enumerate(lessons.folds):
            images, some = lessons.of(labels, known)
            fitted = clone(classifier).fit(images, some, **lessons.params(params, known))
            hypotheses, weights = lessons.judged(n)
            readings.append(read(fitted, hypotheses, weights[:, : self.n_hypotheses]))
        judged = np.concatenate([judged for _, judged in lessons.folds])
        return learned_mixture(joined(readings), indices[judged], counts / len(labels))

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Return class probabilities, of all hypotheses together.

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
        mixture = getattr(self, "mixture_", HypothesisMixture())
        readings = read(self.classifier_, images, weights, energy=mixture.evidence[0] != 0)
        return mixture.probabilities(readings).astype(weights.dtype)

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

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Return decision values: the higher, the more probable; the highest is what `predict` says.

        They are the logarithms of the probabilities, for two classes the log-odds of the second.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        decision : ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
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
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]  # type: ignore[no-any-return]
