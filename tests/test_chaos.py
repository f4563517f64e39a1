"""Nothing is lost when processes are killed: the short version of `python -m tests.chaos`."""

from tests.chaos import run


def test_nothing_is_lost_when_processes_are_killed() -> None:
    said: list[str] = []
    assert run(jobs=40, kills=2, stalls=1, redis_kills=1, seed=1, say=said.append) == []
    assert any("jobs succeeded" in each for each in said)
