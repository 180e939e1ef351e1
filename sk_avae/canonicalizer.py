"""`AffineCanonicalizer`: the front-end to put before a classifier."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ._inputs import check_names, check_rows, stacked_shape
from ._links import LinkedToDocs
from ._meta import allows_gaps, missing_values_of, new_aligner, unfrozen
from ._validation import feature_names, wants_container
from .callbacks import CallbackSupport, Task, with_callbacks
from .result import AlignmentResult


def _appends_alpha(canonicalizer: "AffineCanonicalizer") -> bool:
    """Without the pose there is no way back."""
    return canonicalizer.append_alpha


class AffineCanonicalizer(LinkedToDocs, CallbackSupport, TransformerMixin, BaseEstimator):
    """A transformer that brings images back to the pose of the training images; as many columns out as in.

    Parameters
    ----------
    estimator : AVAEEstimator or None, default=None
        Cloned and fitted; None is ``AVAEEstimator()``. Pass one that is fitted already as
        ``sklearn.frozen.FrozenEstimator(avae)``: it is used as it is.
    append_alpha : bool, default=False
        Whether the pose is appended to the pixels.
    random_state : int, RandomState instance or None, default=None
        Passed to the clone of `estimator`; None leaves the clone's own. A frozen aligner draws nothing.

    Attributes
    ----------
    estimator_ : AVAEEstimator
        The fitted aligner.
    n_features_in_ : int
        Pixels per image.
    feature_names_in_ : ndarray of str
        Names of the input columns, if it has any.

    References
    ----------
    Bidart & Wong (2019), "Affine Variational Autoencoders", section 3.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sk_avae import AffineCanonicalizer, AVAEEstimator
    >>> from sk_avae.datasets import load_mnist_sample
    >>> X, y = load_mnist_sample("train")
    >>> canonicalizer = AffineCanonicalizer(AVAEEstimator(max_epochs=1), random_state=0)
    >>> pipeline = make_pipeline(canonicalizer, LogisticRegression(max_iter=20, tol=0.1))
    >>> pipeline.fit(X[:500] / 255.0, y[:500]).predict(X[:3] / 255.0).shape
    (3,)
    """

    def __init__(self, estimator: Any = None, *, append_alpha: bool = False, random_state: Any = None) -> None:
        self.estimator = estimator
        self.append_alpha = append_alpha
        self.random_state = random_state

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Fit a clone of `estimator`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in their canonical pose.
        y : None
            Ignored.

        Returns
        -------
        self : AffineCanonicalizer

        Raises
        ------
        TypeError
            If `estimator` cannot align images.
        """
        task = Task.of_fit(self, 1, X, y)
        estimator = task.fit("fit-estimator", new_aligner(self.estimator, self.random_state), X, y)
        if unfrozen(estimator) is not estimator:  # which has looked at nothing
            gaps = missing_values_of(estimator)
            check_rows(estimator, X, image_shape=estimator.image_shape_, missing_values=gaps)
        self.estimator_ = estimator
        self.n_features_in_ = estimator.n_features_in_
        if hasattr(estimator, "feature_names_in_"):
            self.feature_names_in_ = estimator.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        check_names(self, X, reset=True)
        task.end()
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return canonical images.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)
            Images in any pose.

        Returns
        -------
        X_canonical : ndarray
            Of the shape of X (a stack stays a stack, unless `set_output` asks for data frames), or rows with the
            pose behind the pixels if `append_alpha`.
        """
        check_is_fitted(self)
        check_names(self, X)
        canonical = np.asarray(self.estimator_.transform(X))
        if self.append_alpha:
            return canonical
        pixels = canonical[:, : self.n_features_in_]
        shape = stacked_shape(X, unfrozen(self.estimator_).image_shape_)
        return pixels if shape is None or wants_container(self) else pixels.reshape(shape)

    @available_if(_appends_alpha)  # type: ignore[untyped-decorator]
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """Turn canonical images with their pose back into input pixels; needs ``append_alpha=True``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features + n_params)
            What `transform` returns with ``append_alpha=True``.

        Returns
        -------
        X_original : ndarray of shape (n_samples, n_features)
        """
        check_is_fitted(self)
        return self.estimator_.inverse_transform(X)

    def align(self, X: ArrayLike) -> AlignmentResult:
        """Return the pose of each image; see `AVAEEstimator.align`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, H, W) or (n_samples, H, W, C)

        Returns
        -------
        result : AlignmentResult
        """
        check_is_fitted(self)
        check_names(self, X)
        return self.estimator_.align(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Return the names of the output columns: those of the input, with the pose's if `append_alpha`.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the pixels; None takes those seen in `fit`, else ``x0``, ``x1``, ...

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        if self.append_alpha:
            return self.estimator_.get_feature_names_out(input_features)
        return feature_names(self, input_features)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.input_tags.allow_nan = allows_gaps(self.estimator)
        return tags
