"""Nothing grows with the jobs that were done: the short version of `python -m tests.soak`."""

from tests.soak import run


def test_nothing_is_left_of_jobs_that_were_done() -> None:
    """So few jobs say little of memory, which grows while a process is young; what they leave in Redis, they leave."""
    said: list[str] = []
    assert run(jobs=100, growth=0.3, say=said.append) == []
    assert len(said) == 12
