"""What the tests of hypotheses and of the critic share: a model that chooses by ELBO and prior alone."""

import pytest
from posed_digits import TYPICAL, avae_of

from sk_avae.search.proposer import PoseInitializer


@pytest.fixture(scope="session")
def model():
    """A small VAE of upright digits, with four parameters to find."""
    return avae_of("linear")


@pytest.fixture(scope="session")
def starts():
    """Where its searches start: moments and the table."""
    return PoseInitializer(TYPICAL)
