"""Models for the tests, loaded once."""

import pytest

from models import checkpoint
from models.card import SHIPPED
from models.checkpoint import Model
from tests.models.helpers import card, random_tensors


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small conditional network with random weights, saved and loaded."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint.save(path, card(), random_tensors(card()))
    return checkpoint.load(path)


@pytest.fixture(scope="session")
def digits() -> Model:
    """The shipped model of the digits for D = 2048."""
    return checkpoint.load(SHIPPED / "digits-d2048.safetensors")
