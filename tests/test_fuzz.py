"""Whatever is sent, the service goes on: the short version of `python -m tests.fuzz`."""

from tests.fuzz import run


def test_whatever_is_sent_it_goes_on() -> None:
    said: list[str] = []
    assert run(examples=3, sequences=5, count=500, is_thorough=False, say=said.append) == []
    assert any("silent connections" in each for each in said)
