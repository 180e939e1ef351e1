"""How hard the search works where nobody says."""

from dataclasses import FrozenInstanceError

import pytest

from sk_avae import AVAEEstimator, ExpertSettings
from sk_avae.model.affine import FAMILIES, with_reflection
from sk_avae.search.settings import PoseSettings, SearchSettings, default_effort


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_proposer_all_but_an_angle_needs_more_restarts_and_refinements(family):
    for some in (family, with_reflection(family)):
        assert default_effort(some, has_proposer=True) == (16, 2)
        assert default_effort(some, has_proposer=False) == ((16, 2) if family == "rotation" else (64, 4))


def test_the_settings_of_the_search_are_the_estimator_s_where_nobody_says_and_never_change():
    settings, estimator = SearchSettings(), AVAEEstimator()
    assert (settings.tol, settings.min_gain) == (estimator.tol, estimator.min_gain)
    assert settings.max_iter == ExpertSettings().max_iter
    # The least effort of any family.
    assert (settings.n_restarts, settings.n_refine) == default_effort("rotation", has_proposer=False)
    assert settings.temperature == 1.0
    pose = PoseSettings("rotation", (1.0,))
    assert (pose.learned_starts, pose.critic, pose.learned_gate) == (True, True, False)
    for frozen in (settings, pose):
        with pytest.raises(FrozenInstanceError):
            frozen.tol = frozen.family = 1
