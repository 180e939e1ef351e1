"""Scaling out: the recipes of docs/scaling.md on a real cluster, against serial results."""

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from sk_avae import AffineCanonicalizer

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")


@pytest.fixture(scope="module")
def client():
    """Two workers, processes of one thread each."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def canonicalizer(fitted, digits):
    return AffineCanonicalizer(FrozenEstimator(fitted)).fit(digits.X[:10])


def test_a_dask_array_is_canonicalised_block_by_block(client, canonicalizer, turned):
    X = da.from_array(turned.X[:240], chunks=(50, 784))
    canonical = X.map_blocks(canonicalizer.transform, dtype=np.float32)
    assert_array_equal(canonical.compute(), canonicalizer.transform(turned.X[:240]))


def test_poses_come_from_a_dask_array_too(client, fitted, turned):
    X = da.from_array(turned.X[:120], chunks=(50, 784))
    both = X.map_blocks(fitted.transform, dtype=np.float32, chunks=(X.chunks[0], (785,)))
    assert_array_equal(both.compute(), fitted.transform(turned.X[:120]))


def test_the_blocks_change_nothing(client, canonicalizer, turned):
    def canonical(chunk):
        return da.from_array(turned.X[:90], chunks=(chunk, 784)).map_blocks(canonicalizer.transform, dtype=np.float32)

    assert_array_equal(canonical(7).compute(), canonical(90).compute())


def test_ray_maps_over_batches(canonicalizer, turned):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        ray.data.DataContext.get_current().execution_options.preserve_order = True

        def canonical(batch):
            return {"data": canonicalizer.transform(batch["data"])}

        images = ray.data.from_numpy(turned.X[:120])
        rows = images.map_batches(canonical, batch_size=50, batch_format="numpy").take_all()
    finally:
        ray.shutdown()
    assert_array_equal([row["data"] for row in rows], canonicalizer.transform(turned.X[:120]))


def test_joblib_spreads_chunks_over_the_cluster(client, canonicalizer, turned):
    parts = np.array_split(turned.X[:120], 4)
    with joblib.parallel_config(backend="dask"):
        done = joblib.Parallel()(joblib.delayed(canonicalizer.transform)(part) for part in parts)
    assert_array_equal(np.concatenate(done), canonicalizer.transform(turned.X[:120]))


@pytest.mark.parametrize("may_lose_a_worker", [False, True])
def test_a_grid_search_on_the_cluster_gives_the_local_scores(client, small_avae, digits, may_lose_a_worker):
    avae = small_avae(max_epochs=2, n_restarts=4, n_refine=1, max_iter=0)
    pipeline = make_pipeline(AffineCanonicalizer(avae), LogisticRegression(max_iter=20, tol=0.1))
    grid = {"affinecanonicalizer__estimator__latent_size": [2, 6]}
    X, y = digits.X[:160] / np.float32(255), digits.y[:160]
    folds = [(train.tolist(), test.tolist()) for train, test in StratifiedKFold(2).split(X, y)]
    # One thread everywhere: a sum over two threads rounds differently.
    local = GridSearchCV(clone(pipeline), grid, cv=folds if may_lose_a_worker else 2, n_jobs=2, refit=False)
    remote = clone(local)
    local.fit(X, y)
    with joblib.parallel_config(backend="dask", scatter=[X, y] if may_lose_a_worker else None):
        remote.fit(X, y)
    assert_array_equal(local.cv_results_["mean_test_score"], remote.cv_results_["mean_test_score"])
