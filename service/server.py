"""The HTTP server, which says that it will go before it goes."""

import time

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Asked to stop, it first has what is behind the app's routes drain, and closes its doors so many seconds later.

    Load balancers have that long to see that it is no longer ready. Asked twice by Ctrl-C it goes at once.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float):
        super().__init__(config)
        self._app, self._drain_seconds = app, drain_seconds
        self._closes_at: float | None = None

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to close; asked ten times a second."""
        is_to_stop = await super().on_tick(counter)
        if is_to_stop and self._closes_at is None:
            self._closes_at = time.monotonic() + self._drain_seconds
            self._app.state.door.drain()
        closes = is_to_stop and (self.force_exit or time.monotonic() >= (self._closes_at or 0))
        if closes:  # for those who have begun to wait in the meantime
            self._app.state.door.events.end_all()
        return closes
