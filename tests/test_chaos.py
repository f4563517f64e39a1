"""Nothing is lost when processes are killed: the short version of `python -m tests.chaos`."""

from tests.chaos import run


def test_nothing_is_lost_when_processes_are_killed() -> None:
    """How soon what was held is given back is no matter of so few kills."""
    said: list[str] = []
    assert run(jobs=40, kills=2, stalls=1, redis_kills=1, seed=1, say=said.append, seen_seconds=30) == []
    assert any("jobs succeeded" in each for each in said)
