"""What is delivered while Redis cannot be reached."""

import pytest
from redis.exceptions import ConnectionError as Unreachable

from service.delivery import insist


@pytest.mark.anyio
@pytest.mark.parametrize("times", [0, 1, 3])
async def test_the_queue_is_asked_until_it_answers(times: int) -> None:
    """Whoever asks may be a coroutine function, or what merely returns its coroutine."""
    asked: list[int] = []

    async def ask(what: int) -> int:
        asked.append(what)
        if len(asked) <= times:
            raise Unreachable
        return what

    assert await insist(lambda: ask(7)) == 7
    assert len(asked) == times + 1
