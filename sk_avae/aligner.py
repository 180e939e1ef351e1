"""`Aligner`: all that `fit` learned, as one frozen value. Rows of pixels in, poses out.

The estimator makes one, files hold one, `from_vae` wraps one, threads share one. Rows come in checked; how they become
tensors is the business of `ImageFormat`, how poses are found that of `search`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ._searched import Searched, Told, Warping
from .images import ImageFormat, SeenImages, to_tensor
from .model.affine import parameters_of, to_matrix
from .model.avae import AVAE, is_constant
from .model.batches import device_batch_factor, images_per_batch, in_batches
from .model.contexts import methods_in_plain_torch
from .model.module_state import Network
from .model.moments import Moments
from .model.vae import as_contracted, fused
from .progress import counting
from .report import AlignmentReport
from .result import AlignmentResult
from .search.certainty import Confidence, chance_of_right
from .search.find import find_poses
from .search.objective import Objective
from .search.proposer import PoseInitializer, Proposer
from .search.screening import screen_staged
from .search.settings import PoseSettings, SearchSettings


@dataclass(frozen=True)
class SearchModels:
    """What `fit` learned for the search; by default nothing: ELBO and prior alone choose.

    Attributes
    ----------
    proposer : Proposer or None
        Proposes starting poses; holds the metric that refinement begins with, and the score that proposals reach.
    density : ShapeDensity or None
        Of the moments of canonical images.
    critic : Critic or None
        Tells right poses from wrong ones.
    temperature : float
        Of the hypotheses' weights, in nats.
    pose_spread : mapping from str to float
        Per parameter, the standard deviation of the training images' own poses, in units of the image.
    min_gain : float or None
        The identity gate, in nats; None if it was not learned.
    confidence : Confidence
        Says how probably a pose is right.
    proposer_weight : float
        Nats of the score that one nat of the proposer's own posterior is worth.
    none_right : float
        Log-odds, against the best hypothesis, that none is right; minus infinity is never.
    report : AlignmentReport or None
        What came of held-out images, see `AVAEEstimator.alignment_report_`.
    """

    proposer: Proposer | None = None
    density: nn.Module | None = None
    critic: nn.Module | None = None
    temperature: float = 1.0
    pose_spread: Mapping[str, float] = field(default_factory=dict)
    min_gain: float | None = None
    confidence: Confidence = field(default_factory=Confidence)
    proposer_weight: float = 0.0
    none_right: float = -math.inf
    report: AlignmentReport | None = None

    def settings(self, search: SearchSettings, min_gain: float) -> SearchSettings:
        """Return how a search reads what it finds."""
        return replace(search, min_gain=min_gain, temperature=self.temperature, none_right=self.none_right)


@methods_in_plain_torch
@dataclass(frozen=True)
class Aligner:
    """A VAE, what its images look like, and what helps to find their poses.

    Parameters
    ----------
    vae, likelihood : Network
        Modules in evaluation mode, with the recipes that build them.
    image_format : ImageFormat
        How rows become what the VAE sees.
    moments : tuple of ndarray or None
        Mean centroid and covariance of the training images' ink.
    models : SearchModels
    pose : PoseSettings
        Which poses are searched for.
    search : SearchSettings
        How hard.
    interpolation : {"bilinear", "bicubic"}, default="bilinear"
        Of canonical images.
    keeps_gaps : bool, default=False
        Whether missing pixels stay NaN in canonical images. Else the reconstruction fills them.
    evaluated : nn.Module or None, default=None
        The VAE as it is evaluated, see `vae.fused`; None makes it.
    """

    vae: Network
    likelihood: Network
    image_format: ImageFormat
    moments: tuple[NDArray[Any], ...] | None
    models: SearchModels
    pose: PoseSettings
    search: SearchSettings
    interpolation: str = "bilinear"
    keeps_gaps: bool = False
    evaluated: nn.Module | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.evaluated is None:
            seen_as = self.image_format.frame_shape, self.vae.recipe.get("decoder_output")
            evaluated = as_contracted(fused(self.vae.module), *seen_as)
            object.__setattr__(self, "evaluated", evaluated)

    @property
    def device(self) -> torch.device:
        """Where the weights are: a model may have been loaded on another device than it was fitted on."""
        return next((t.device for t in self.vae.module.state_dict().values()), torch.device("cpu"))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the columns of alpha."""
        return parameters_of(self.pose.family)

    @property
    def latent_size(self) -> int:
        """Number of latent variables."""
        return int(self.vae.recipe["arguments"]["latent_size"])

    @property
    def proposer(self) -> Proposer | None:
        """The proposer, if it is wanted and knows the family and the prior that are set now."""
        proposer, scale = self.models.proposer, self.frame_prior
        wanted = self.pose.learned_starts and proposer is not None and proposer.knows(self.pose.family, scale)
        return proposer if wanted else None

    @property
    def frame_prior(self) -> tuple[float, ...]:
        """The prior's standard deviations in units of the frame."""
        return self.image_format.frame_prior(self.pose.family, self.pose.scale)

    @property
    def model(self) -> AVAE:
        """The model that is searched."""
        assert self.evaluated is not None
        return AVAE(
            self.evaluated,
            self.likelihood.module,
            self.pose.family,
            self.image_format.model_background(self.device),
            scale=self.frame_prior,
            padding=self.image_format.padding,
            critic=self.models.critic if self.pose.critic else None,
            density=self.models.density if self.pose.critic else None,
        )

    @property
    def initializer(self) -> PoseInitializer:
        """Where searches start."""
        typical = None
        if self.moments is not None:
            typical = Moments(*(to_tensor(moment, self.device) for moment in self.moments))
        return PoseInitializer(typical, self.proposer, self.models.proposer_weight)

    def gate(self) -> float:
        """Return the gain that an image has to exceed: what is set, or what was learned.

        Raises
        ------
        ValueError
            If it was to be learned, and was not.
        """
        if not self.pose.learned_gate:
            return self.search.min_gain
        if self.models.min_gain is None:
            raise ValueError(
                "min_gain='auto' is learned from at least 64 images in the canonical pose that are not constant, but "
                "there were fewer, or the weights have changed since. Give more of them (to `from_vae` as X), `fit` "
                "with warm_start=True, or say min_gain in nats."
            )
        return self.models.min_gain

    def search_rows(self, rows: NDArray[Any], *, certainty: bool = False, verbose: int = 0) -> Iterator[Searched]:
        """Find the poses of rows, a slice at a time; warn at the end if refinements stopped early.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features)
        certainty : bool, default=False
            Whether `alpha_std` is wanted, too.
        verbose : int, default=0
            Shows progress if positive.

        Yields
        ------
        searched : Searched
        """
        model, initializer, seen = self.model, self.initializer, Told()
        settings = self.models.settings(self.search, self.gate())
        with counting(len(rows), verbose) as more:
            for part in self.image_format.slices(len(rows), device_batch_factor(self.device)):
                padded = self.image_format.to_padded_images(rows[part])
                images = self._seen(padded)
                movable = ~is_constant(self.image_format.crop(images.images))
                filled, tensors = find_poses(model, initializer, settings, images, movable=movable, certainty=certainty)
                images = images._replace(images=filled)
                arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
                seen.note(images)
                seen.n_missed += int((~tensors["converged"]).sum())
                yield Searched(part, padded, images, self._in_input_units(arrays, images))
                more(len(padded))
        seen.warn(len(rows), settings)

    def align(self, rows: NDArray[Any], *, certainty: bool = False, verbose: int = 0) -> AlignmentResult:
        """Find the poses of rows; see `search_rows`."""
        parts = [searched.arrays for searched in self.search_rows(rows, certainty=certainty, verbose=verbose)]
        return self._result(parts, rows.dtype)

    def _result(self, parts: list[dict[str, NDArray[Any]]], dtype: np.dtype[Any]) -> AlignmentResult:
        """Put slices together, with the matrices of their poses; floats are as precise as the rows were."""
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        arrays["matrix"] = self.image_format.matrix(arrays["alpha"], self.pose.family)
        precision = self.image_format.floats(dtype)
        arrays = {name: a.astype(precision) if a.dtype.kind == "f" else a for name, a in arrays.items()}
        height, width = self.image_format.image_shape[:2]
        return AlignmentResult(**arrays, parameters=self.parameters, image_shape=(height, width))

    def tried_starts(self, row: NDArray[Any]) -> NDArray[Any]:
        """Return the starting poses at which one image, of shape (1, n_features), is tried: (n_tried, n_params)."""
        model, image = self.model, self.to_model(row)
        candidates = self.initializer.candidates(model, image, self.search.n_restarts)
        tried = screen_staged(Objective(model, image), candidates)[0] > -math.inf
        return candidates.alpha[0, tried].cpu().numpy() * self.image_format.frame_to_image_scale(self.parameters)

    def _in_input_units(self, arrays: dict[str, NDArray[Any]], seen: SeenImages) -> dict[str, NDArray[Any]]:
        """Give poses the units of the image (not of the padded frame), ELBOs those of the input."""
        units = self.image_format.frame_to_image_scale(self.parameters)
        for name in ("alpha", "hypotheses", "alpha_std"):
            if name in arrays:
                arrays[name] = arrays[name] * units
        if "alpha_std" in arrays:
            spread = np.array([self.models.pose_spread.get(name, 0.0) for name in self.parameters])
            free = arrays["alpha_std"] != 0  # NaN stays what it is
            arrays["alpha_std"] = np.where(free, np.hypot(arrays["alpha_std"], spread), 0.0)
            arrays["confidence"] = _confidence_of(arrays, self.pose.family, self.models.confidence)
        for name in ("elbo", "elbo_identity", "hypothesis_elbo"):
            arrays[name] = (arrays[name].T + self._log_jacobian(seen)).T
        return arrays

    def transform(self, rows: NDArray[Any], out: NDArray[Any], *, verbose: int = 0) -> None:
        """Write canonical rows, in their own pixels, with alpha behind them, into `out`.

        A slice at a time to its end: nothing is kept of an image but its row.
        """
        n_features = rows.shape[1]
        for searched in self.search_rows(rows, verbose=verbose):
            alpha = searched.arrays["alpha"].astype(self.image_format.floats(rows.dtype))
            out[searched.rows, n_features:] = alpha
            out[searched.rows, :n_features] = self._canonical(searched, rows, alpha)

    def transform_hypotheses(self, rows: NDArray[Any], *, verbose: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return canonical rows of all hypotheses, of shape (n, n_hypotheses, n_features), and their weights."""
        precision, images, weights = self.image_format.floats(rows.dtype), [], []
        for searched in self.search_rows(rows, verbose=verbose):
            hypotheses = searched.arrays["hypotheses"].astype(precision).swapaxes(0, 1)
            warped = [self._canonical(searched, rows, np.ascontiguousarray(alpha)) for alpha in hypotheses]
            images.append(np.stack(warped, axis=1))
            weight = searched.arrays["hypothesis_weight"]
            weights.append((weight / weight.sum(axis=1, keepdims=True)).astype(precision))
        return np.concatenate(images), np.concatenate(weights)

    def look(self, rows: NDArray[Any], *, verbose: int = 0) -> tuple[AlignmentResult, NDArray[Any], NDArray[Any]]:
        """Return what was found for rows, with certainty, their canonical rows and their reconstructions.

        What `align`, `transform` and `decode` of `encode` give, by one search.
        """
        precision = self.image_format.floats(rows.dtype)
        parts, canonical, reconstructed = [], [], []
        for searched in self.search_rows(rows, certainty=True, verbose=verbose):
            alpha = searched.arrays["alpha"].astype(precision)
            canonical.append(self._canonical(searched, rows, alpha))
            latent = self._posterior_means(searched, alpha).astype(precision)
            reconstructed.append(self.decode(latent, alpha).astype(precision, copy=False))
            parts.append(searched.arrays)
        return self._result(parts, rows.dtype), np.concatenate(canonical), np.concatenate(reconstructed)

    def encode(self, rows: NDArray[Any], *, verbose: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the posterior means of the canonical images, of shape (n, latent_size), and the poses."""
        means, poses = [], []
        for searched in self.search_rows(rows, verbose=verbose):
            alpha = searched.arrays["alpha"].astype(self.image_format.floats(rows.dtype))
            means.append(self._posterior_means(searched, alpha))
            poses.append(alpha)
        alpha = np.concatenate(poses)
        return np.concatenate(means).astype(alpha.dtype), alpha

    def _posterior_means(self, searched: Searched, alpha: NDArray[Any]) -> NDArray[Any]:
        model = self.model

        def posterior_mean(images: Tensor, pose: Tensor) -> Tensor:
            return model.encode(images, model.matrix(pose, images))[0]

        return self._in_batches(posterior_mean, searched.seen.images, self.pose_to_model(alpha))

    def _canonical(self, searched: Searched, rows: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        """Return a slice of rows without their poses, in their own pixels."""
        how = Warping(self.pose.family, self.interpolation, self.keeps_gaps)
        return searched.canonical(self.image_format, rows[searched.rows], alpha, how)

    def warp(self, rows: NDArray[Any], alpha: NDArray[Any], *, inverse: bool = False) -> NDArray[Any]:
        """Warp rows by poses to the canonical frame, or from it; see `ImageFormat.warp_rows`."""
        parts = [
            self.image_format.warp_rows(rows[part], alpha[part], self.pose.family, inverse=inverse)
            for part in self.image_format.slices(len(rows))
        ]
        return np.concatenate(parts)

    def elbo(self, rows: NDArray[Any], alpha: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the ELBO of rows at poses, or without warps for None, in nats, of shape (n,).

        One row may have any number of poses.
        """
        model, parts = self.model, []
        if alpha is None:
            for part in self.image_format.slices(len(rows)):
                seen = self._seen(self.image_format.to_padded_images(rows[part]))
                known = () if seen.observed is None else (seen.observed,)
                elbo = self._in_batches(lambda some, *known: model.elbo(some, None, None, *known), seen.own, *known)
                parts.append(elbo + self._log_jacobian(seen))
            return np.concatenate(parts)
        seen, poses = self._seen(self.image_format.to_padded_images(rows)), self.pose_to_model(alpha)

        def elbo_at(pose: Tensor) -> Tensor:
            known = None if seen.observed is None else seen.observed.expand(len(pose), -1, -1, -1)
            return model.elbo(seen.own.expand(len(pose), -1, -1, -1), pose, observed=known)

        return self._in_batches(elbo_at, poses) + self._log_jacobian(seen)

    def decode(self, latent: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
        """Return the expected images of latent variables and poses, as rows in the input's units, float32."""
        parts, image_format = [], self.image_format
        for part in image_format.slices(len(latent)):
            z, pose = to_tensor(latent[part], self.device), self.pose_to_model(alpha[part])
            images = torch.from_numpy(self._in_batches(self._expected_images, z, pose))
            parts.append(image_format.to_rows(image_format.frame.enlarged(image_format.from_model(images))))
        return np.concatenate(parts)

    def _expected_images(self, z: Tensor, pose: Tensor) -> Tensor:
        """Return the expected images of latent variables and poses, as the model sees them."""
        _, height, width = self.image_format.frame_shape
        matrix = to_matrix(pose, self.pose.family, aspect=width / height)
        expected: Tensor = self.likelihood.module.mean(self.model.decode(z, matrix))  # type: ignore[operator]
        lost = ~matrix.isfinite().flatten(1).all(dim=1)
        return expected.masked_fill(lost.view(-1, 1, 1, 1), torch.nan)

    def _log_jacobian(self, seen: SeenImages) -> NDArray[Any]:
        """Return what turns a density of what the model sees into one of the input's units, in nats, of shape (n,)."""
        return self.likelihood.module.is_density * self.image_format.log_jacobian(seen)

    def to_model(self, rows: NDArray[Any]) -> Tensor:
        """Return rows as what the model sees."""
        return self._seen(self.image_format.to_padded_images(rows)).images

    def _seen(self, padded: Tensor) -> SeenImages:
        return self.image_format.seen(padded, self.likelihood.module.support, self.device)

    def pose_to_model(self, alpha: NDArray[Any]) -> Tensor:
        """Return poses in units of the image as the model's, in units of the frame, float32."""
        return self.image_format.pose_to_model(alpha, self.pose.family, self.device)

    def _in_batches(self, function: Any, *rows: Tensor) -> NDArray[Any]:
        blank = torch.empty(1, *self.image_format.frame_shape, device=self.device, dtype=torch.float32)
        return in_batches(function, images_per_batch(blank, self.vae.module), *rows).cpu().numpy()


def _confidence_of(arrays: dict[str, NDArray[Any]], family: str, confidence: Confidence) -> NDArray[Any]:
    """Return the probability that the pose of each image is right, of shape (n,)."""
    names = ("hypotheses", "hypothesis_weight", "alpha_std")
    hypotheses, weight, deviation = (torch.from_numpy(arrays[name]) for name in names)
    chance = chance_of_right(hypotheses, weight, deviation, family)
    # A constant image, of which agreement makes no sense, has no pose that could be right.
    return confidence.of(chance, torch.from_numpy(arrays.pop("agreement"))).nan_to_num(nan=0.0).numpy()
