"""A flood is refused and drowns nobody: the short version of `python -m tests.flood`."""

import pytest

from tests.flood import run


@pytest.mark.timeout(300)
def test_a_flood_is_refused_and_drowns_nobody() -> None:
    """Whoever asks for little is served meanwhile; how quickly is no matter of a short test."""
    said: list[str] = []
    assert run(seconds=4, pollers=50, say=said.append, growth=0.3, served=10) == []
    assert any("flood: " in each for each in said)
