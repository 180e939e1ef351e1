"""`ExpertSettings`, and the parameters that moved there."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sk_avae import AVAEEstimator, ExpertSettings, load, save
from sk_avae.expert import MOVED
from sk_avae.learning.fit import max_epochs_for
from sk_avae.model.affine import FAMILIES, with_reflection
from sk_avae.search.settings import default_effort

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 1, "n_restarts": 4, "random_state": 0}


@pytest.mark.filterwarnings("ignore:Without effect. expert__n_iter_no_change:UserWarning")
@pytest.mark.parametrize("name", MOVED)
def test_a_moved_parameter_still_works_and_warns(digits, name):
    values = {"max_iter": 3, "weight_decay": 0.1, "validation_fraction": 0.2, "n_iter_no_change": 2, "callbacks": []}
    value = values[name]
    old, new = AVAEEstimator(**SMALL, **{name: value}), AVAEEstimator(**SMALL, expert=ExpertSettings(**{name: value}))
    with pytest.warns(
        FutureWarning, match=rf"{name} moved to ExpertSettings .* expert=ExpertSettings\({name}=\.\.\.\)"
    ):
        old.fit(digits.X[:60])
    expected = new.fit(digits.X[:60]).transform(digits.X_test[:5])
    np.testing.assert_array_equal(old.transform(digits.X_test[:5]), expected)
    assert getattr(clone(old), name) == value


def test_what_is_set_at_the_old_place_wins(digits):
    model = AVAEEstimator(**SMALL, max_iter=2, expert=ExpertSettings(max_iter=50, weight_decay=0.5))
    with pytest.warns(FutureWarning):
        model.fit(digits.X[:60])
    assert model._aligner().search.max_iter == 2
    assert model._expert().weight_decay == 0.5
    assert model.expert.max_iter == 50


def test_nothing_warns_where_nothing_moved(digits):
    with warnings.catch_warnings(action="error", category=FutureWarning):
        AVAEEstimator(**SMALL, expert=ExpertSettings(max_iter=5)).fit(digits.X[:60]).transform(digits.X[:3])


def test_expert_settings_are_searched_and_cloned(digits):
    model = AVAEEstimator(**SMALL, expert=ExpertSettings())
    search = GridSearchCV(model, {"expert__max_iter": [0, 5]}, cv=2).fit(digits.X[:60])
    assert {setting["expert__max_iter"] for setting in search.cv_results_["params"]} == {0, 5}
    assert search.best_params_ == {"expert__max_iter": 5}  # refining gains by the search's own score
    assert clone(model).expert is not model.expert


def test_expert_settings_are_pickled_and_saved(digits, tmp_path):
    model = AVAEEstimator(**SMALL, expert=ExpertSettings(max_iter=7)).fit(digits.X[:60])
    save(model, tmp_path / "model.safetensors")
    for again in (pickle.loads(pickle.dumps(model)), load(tmp_path / "model.safetensors")):
        assert again.expert.get_params() == model.expert.get_params()
        np.testing.assert_array_equal(again.transform(digits.X_test[:5]), model.transform(digits.X_test[:5]))


# ---------------------------------------------------------------- what "auto" stands for
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reflects", [False, True])
def test_a_proposer_saves_restarts_and_reflections_change_nothing(family, reflects):
    name = with_reflection(family) if reflects else family
    with_one, without = (default_effort(name, has_proposer=has) for has in (True, False))
    assert with_one == default_effort(family, has_proposer=True)
    assert with_one == default_effort("rotation", has_proposer=False)
    assert (without > with_one) == (family != "rotation")


def test_auto_follows_the_family_and_the_proposer_that_there_is(digits, small_avae):
    model = small_avae(n_restarts="auto", n_refine="auto", max_epochs=1).fit(digits.X[:120])
    assert model._aligner().search.n_restarts == 16
    model.set_params(family="affine")  # which the proposer does not know
    search = model._aligner().search
    assert (search.n_restarts, search.n_refine) == default_effort("affine", has_proposer=False) == (64, 4)
    assert model.align(digits.X_test[:2]).hypotheses.shape[1] == 4
    model.set_params(n_restarts=8, n_refine=1)
    assert model.align(digits.X_test[:2]).hypotheses.shape[1] == 1


def test_auto_epochs_are_those_of_the_number_of_images(digits):
    model = AVAEEstimator(hidden_layer_sizes=(4,), latent_size=1, learned_starts=False, critic=False, random_state=0)
    assert model.fit(digits.X[:20]).n_iter_ == max_epochs_for(20)
