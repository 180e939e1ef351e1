"""Doctests train on few perturbed images: what they show are shapes, not accuracy."""

import pytest

FEWER = {
    "critic_training._IMAGES": 500,
    "critic_training._IMAGES_IN_COPIES": 500,
    "critic_training._EPOCHS_OF_COPIES": 2,
    "critic_training._EPOCHS": (2, 2),
    "search_models._N_MISTAKES": 400,
    "proposer_training._EPOCHS": (2, 2),
    "proposer_training._IMAGES": (500, 500),
}


@pytest.fixture
def few_lessons(monkeypatch):
    """Let critics and proposers learn from little: for tests to which it does not matter how good they are."""
    for name, value in FEWER.items():
        monkeypatch.setattr(f"sk_avae.learning.{name}", value)


@pytest.fixture(autouse=True)
def doctests_take_few_lessons(request):
    """Give them `few_lessons` without a word of it in what they show."""
    if type(request.node).__name__ == "DoctestItem":
        request.getfixturevalue("few_lessons")
