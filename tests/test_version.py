"""The warning that a model was saved by another version."""

import pytest

import sk_avae
from sk_avae._version import warn_on_version


@pytest.mark.parametrize("saved", ["0.0.1", None])
def test_another_version_warns(saved):
    expected = rf"This Thing was saved by sk_avae {saved}, and this is sk_avae {sk_avae.__version__}"
    with pytest.warns(UserWarning, match=expected):
        warn_on_version(saved, "Thing")


def test_the_same_version_does_not_warn():
    # Warnings are errors.
    assert warn_on_version(sk_avae.__version__, "Thing") is None
