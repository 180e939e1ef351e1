"""Scorers, and the rule of one standard error, as scikit-learn's searches use them."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler

from sk_avae import AffineCanonicalizer
from sk_avae.scoring import cheapest_within_one_se, elbo, neg_reconstruction_error

pytestmark = pytest.mark.usefixtures("global_random_state_unchanged")


# ---------------------------------------------------------------- scorers
def test_elbo_is_the_score_of_the_estimator(fitted, turned):
    assert elbo(fitted, turned.X[:50]) == fitted.score(turned.X[:50])


@pytest.mark.parametrize("unit", [1, 255])
def test_the_reconstruction_error_is_in_squared_units_of_the_input(small_avae, digits, unit):
    X = digits.X[:300] / unit
    model = small_avae(max_epochs=2, learned_starts=False).fit(X)
    expected = -np.mean((X[:40] - model.reconstruct(X[:40])) ** 2)
    assert_allclose(neg_reconstruction_error(model, X[:40]), expected, rtol=1e-6)
    assert -((255 / unit) ** 2) < expected < 0


def test_a_better_model_has_a_smaller_error(small_avae, fitted, digits):
    poor = small_avae(max_epochs=1, learned_starts=False).fit(digits.X[:200])
    for scorer in (elbo, neg_reconstruction_error):
        assert scorer(fitted, digits.X_test[:100]) > scorer(poor, digits.X_test[:100])


@pytest.mark.parametrize("scorer", [elbo, neg_reconstruction_error])
def test_stacks_and_lists_score_like_rows(fitted, digits, scorer):
    rows = digits.X_test[:20]
    assert scorer(fitted, rows.reshape(-1, 28, 28)) == scorer(fitted, rows)
    assert scorer(fitted, rows.reshape(-1, 28, 28).tolist()) == pytest.approx(scorer(fitted, rows))


@pytest.mark.parametrize("scorer", [elbo, neg_reconstruction_error])
def test_of_a_pipeline_the_last_step_is_scored(fitted, digits, scorer):
    X = digits.X_test[:20]
    expected = scorer(fitted, X)
    assert scorer(make_pipeline(FrozenEstimator(fitted)), X) == expected
    inverted = make_pipeline(FunctionTransformer(lambda X: 255 - X), FrozenEstimator(fitted)).fit(X)
    assert scorer(inverted, 255 - X) == expected


@pytest.mark.parametrize(("scorer", "method"), [(elbo, "score_samples"), (neg_reconstruction_error, "reconstruct")])
def test_what_cannot_be_scored_is_named(fitted, digits, scorer, method):
    canonicalizer = AffineCanonicalizer(FrozenEstimator(fitted)).fit(digits.X[:5])
    for model in (canonicalizer, make_pipeline(MaxAbsScaler(), canonicalizer).fit(digits.X[:5])):
        with pytest.raises(TypeError, match=f"`{method}`, got AffineCanonicalizer.*score its `estimator_`"):
            scorer(model, digits.X[:5])
    assert np.isfinite(scorer(canonicalizer.estimator_, digits.X[:5]))


def test_cross_validation_takes_both(small_avae, digits):
    scoring = {"elbo": elbo, "pixels": neg_reconstruction_error}
    model = small_avae(max_epochs=2, learned_starts=False)
    unit = FunctionTransformer(lambda X: X / 255)
    scores = cross_validate(make_pipeline(unit, model), digits.X[:200], cv=2, scoring=scoring)
    assert np.isfinite(scores["test_elbo"]).all()
    assert ((scores["test_pixels"] < 0) & (scores["test_pixels"] > -1)).all()


# ---------------------------------------------------------------- one standard error
def results(scores, metric="score", **values):
    """What a search finds: scores of shape (n_settings, n_splits), and the values of its parameters."""
    scores = np.array(scores, dtype=float)
    settings = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return {
        "params": settings,
        **{f"split{k}_test_{metric}": scores[:, k] for k in range(scores.shape[1])},
        f"mean_test_{metric}": scores.mean(axis=1),
    }


def test_the_cheapest_within_one_standard_error_of_the_best_is_taken():
    # The best's scores are 10 and 14: mean 12, standard deviation sqrt(8), of the mean 2.
    rule = cheapest_within_one_se("n_restarts")
    assert rule(results([[9.9, 10.1], [10, 10.1], [10, 14]], n_restarts=[4, 8, 16])) == 0
    assert rule(results([[9.8, 10.1], [10, 10.1], [10, 14]], n_restarts=[4, 8, 16])) == 1
    assert rule(results([[9, 10], [9, 10], [10, 14]], n_restarts=[4, 8, 16])) == 2


def test_parameters_count_in_their_order_then_the_score_then_the_place():
    found = results([[1, 1]] * 4, n_restarts=[8, 4, 4, 8], latent_size=[2, 8, 4, 1])
    assert cheapest_within_one_se("n_restarts", "latent_size")(found) == 2
    assert cheapest_within_one_se("latent_size", "n_restarts")(found) == 3
    assert cheapest_within_one_se("n_restarts")(found) == 1
    tied = results([[0, 2], [0, 2.5], [0, 2.5]], n_restarts=[4, 4, 4])
    assert cheapest_within_one_se("n_restarts")(tied) == 1


def test_a_single_split_has_no_standard_error():
    assert cheapest_within_one_se("k")(results([[1.0], [1.1], [1.1]], k=[1, 3, 2])) == 2


def test_failed_settings_are_passed_over():
    rule = cheapest_within_one_se("k")
    assert rule(results([[np.nan, 5], [1, 1], [np.nan, np.nan]], k=[1, 2, 3])) == 1
    with pytest.raises(ValueError, match="No setting has a finite score"):
        rule(results([[np.nan, 5]], k=[1]))


def test_one_of_several_metrics_decides():
    found = {**results([[1, 1], [3, 3]], "elbo", k=[1, 2]), **results([[9, 9], [9, 9]], "pixels", k=[1, 2])}
    assert cheapest_within_one_se("k", metric="elbo")(found) == 1
    assert cheapest_within_one_se("k", metric="pixels")(found) == 0
    with pytest.raises(ValueError, match=r"no score called 'score'. Say metric=..., one of \['elbo', 'pixels'\]"):
        cheapest_within_one_se("k")(found)


def test_parameters_that_are_none():
    with pytest.raises(ValueError, match="needs the name of a parameter"):
        cheapest_within_one_se()
    with pytest.raises(ValueError, match="no parameter 'n_restart'"):
        cheapest_within_one_se("n_restart")(results([[1, 1]], n_restarts=[4]))
    with pytest.raises(TypeError, match=r"values of \['module'\] have no order"):
        cheapest_within_one_se("module")(results([[1, 1], [1, 1]], module=["mlp", None]))


def test_a_search_refits_with_the_cheapest(small_avae, digits):
    grid = {"n_refine": [2, 1], "latent_size": [4, 12]}  # without iterations n_refine changes nothing
    rule = pickle.loads(pickle.dumps(cheapest_within_one_se("n_refine", "latent_size", metric="elbo")))
    search = GridSearchCV(
        small_avae(max_epochs=8, max_iter=0, learned_starts=False),
        grid,
        cv=3,
        scoring={"elbo": elbo, "pixels": neg_reconstruction_error},
        refit=rule,
    ).fit(digits.X[:300])
    means = search.cv_results_["mean_test_elbo"]
    best = int(means.argmax())
    error = np.std([search.cv_results_[f"split{k}_test_elbo"][best] for k in range(3)], ddof=1) / np.sqrt(3)
    costs = [(p["n_refine"], p["latent_size"]) for p in search.cv_results_["params"]]
    good = [cost for cost, mean in zip(costs, means, strict=True) if mean >= means[best] - error]
    assert len(good) > 1
    assert costs[search.best_index_] == min(good) < costs[best]
    assert search.best_estimator_.n_refine == search.best_params_["n_refine"] == 1
    assert search.best_estimator_.score(digits.X_test[:20]) < 0
