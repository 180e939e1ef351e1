"""torch's contexts: left for a block, and the caller's again afterwards."""

import pytest
import torch

from sk_avae.model.contexts import in_plain_torch, methods_in_plain_torch, plain_torch


def state():
    default = torch.get_default_device().type
    return torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), default


PLAIN = (False, False, "cpu")
CONTEXTS = {
    "inference_mode": (torch.inference_mode, (True, False, "cpu")),
    "autocast": (lambda: torch.autocast("cpu"), (False, True, "cpu")),
    "device": (lambda: torch.device("meta"), (False, False, "meta")),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_are_left_and_come_back(name):
    context, within = CONTEXTS[name]
    with context():
        assert state() == within
        with plain_torch():
            assert state() == PLAIN
        assert state() == within
        assert in_plain_torch(state)() == PLAIN
        with pytest.raises(KeyError), plain_torch():
            raise KeyError
        assert state() == within
    assert state() == PLAIN


def test_public_methods_of_a_class_leave_them_and_keep_their_names():
    @methods_in_plain_torch
    class Example:
        def public(self, x=1):
            """Say it."""
            return state(), x

        def _private(self):
            return state()

        def generates(self):
            yield state()

    with torch.inference_mode():
        assert Example().public(x=2) == (PLAIN, 2)
        assert Example()._private() == (True, False, "cpu")
        assert list(Example().generates()) == [(True, False, "cpu")]
    assert Example.public.__doc__ == "Say it."
