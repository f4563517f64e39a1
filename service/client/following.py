"""A job as it is watched: its events as the service sends them, over losses of the connection."""

import json
import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import httpx

from service.client.asks import Ask, events, reading
from service.client.errors import ClientError, Refused, Unreachable
from service.job import JobView
from service.stream import Kind

if TYPE_CHECKING:
    from PIL.Image import Image

POLL_SECONDS = 0.25
"""How often a job is asked for where events cannot be had."""

LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
"""A carriage return at the end of a chunk may be half of one."""

log = getLogger("pfgmpp.client")


@dataclass(frozen=True)
class Preview:
    """The images of a job as they are guessed to become, on the way."""

    evaluation: int
    evaluations: int
    sigma: float
    """The noise level of the estimate."""
    png: bytes = field(repr=False)

    @property
    def image(self) -> "Image":
        """The picture of all of them."""
        from PIL import Image

        return Image.open(BytesIO(self.png))


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    kind: Kind
    job: JobView
    """The job as it is then, as far as is known."""
    preview: Preview | None = None
    """Of events of the kind `preview`, which come when a request asks for them."""


Watch = bool | Callable[[Event], object]
"""How a job is watched: with a bar, by a function that is called with every event, or not at all."""


class Message(NamedTuple):
    """A server-sent event."""

    kind: str
    data: str


class MessageParser:
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) in bytes as they come.

    Not by the lines of `str.splitlines`, which ends some within JSON.
    """

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_seconds = 1.0
        self._rest, self._id = b"", ""
        self._kind, self._data = "", list[str]()

    def restart(self) -> None:
        """Forget what was begun: the connection is another."""
        self._rest, self._id, self._kind, self._data = b"", self.last_id, "", []

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that are whole with these bytes."""
        *lines, self._rest = LINE_END.split(self._rest + chunk)
        for line in lines:
            if line:
                self._take(*line.decode(errors="replace").partition(":"))
                continue
            self.last_id = self._id
            if self._data:
                yield Message(self._kind or "message", "\n".join(self._data))
            self._kind, self._data = "", []

    def _take(self, name: str, _colon: str, value: str) -> None:
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value  # it counts when the message is whole
        elif name == "retry" and value.isascii() and value.isdecimal():
            self.retry_seconds = int(value) / 1000


class Following:
    """One who follows a job to its end, and goes on where the connection was lost.

    A service that has no events is asked again and again instead, which is said.
    """

    def __init__(self, job: JobView, patience_seconds: float):
        self.job = job
        self.is_over = False
        self.is_polling = False
        self._patience_seconds = patience_seconds
        self._messages = MessageParser()
        self._heard = time.monotonic()
        self._has_said = False

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next request."""
        return 0.0 if self.is_over or self.is_polling else self._messages.retry_seconds

    def ask(self) -> Ask[httpx.Response]:
        """For the events that were not seen yet."""
        self._messages.restart()
        return events(self.job.id, self._messages.last_id)

    def poll(self) -> Ask[JobView]:
        """For the job, where events cannot be had."""
        return reading(self.job.id, POLL_SECONDS)

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """Get over the loss of the connection, and over a service that has no events.

        Raises Unreachable when nothing was heard for as long as the patience lasts.
        """
        try:
            yield
        except httpx.TransportError as loss:
            if time.monotonic() - self._heard > self._patience_seconds:
                why = str(loss) or type(loss).__name__
                raise Unreachable(f"the events of job {self.job.id} broke off ({why}); the job goes on") from loss
            log.warning("the events of job %s broke off (%s); asking again", self.job.id, loss or type(loss).__name__)
        except Refused as refused:
            if refused.status != 404 or self.is_polling:
                raise
            self.is_polling = True  # if it is the job that is not there, that is told then

    def take(self, chunk: bytes) -> Iterator[Event]:
        """The events in a piece of the stream. Raises ClientError for what cannot be understood."""
        self._heard = time.monotonic()
        for message in self._messages.feed(chunk):
            if message.kind in get_args(Kind):
                try:
                    yield self._event(message.kind, json.loads(message.data))  # type: ignore[arg-type]
                except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
                    raise ClientError(f"an event of job {self.job.id} cannot be understood ({error})") from error

    def _event(self, kind: Kind, data: dict[str, Any]) -> Event:
        if kind == "preview":
            png = b64decode(data["png"])
            return Event(kind, self.job, Preview(data["evaluation"], data["evaluations"], data["sigma"], png))
        if kind == "progress":
            self.job = JobView.model_validate(self.job.model_dump() | data)
        else:
            self.job = JobView.model_validate(data)
            self.is_over = kind == "finished"
        return Event(kind, self.job)

    def see(self, job: JobView) -> Event:
        """The event that an answer to `poll` amounts to."""
        if not self._has_said:
            log.warning("this service has no events of jobs; asking for job %s again and again instead", job.id)
            self._has_said = True
        before, self.job = self.job, job
        self.is_over = job.finished_at is not None
        if self.is_over:
            return Event("finished", job)
        return Event("progress" if job.status == before.status else "started", job)


@contextmanager
def watching(watch: Watch) -> Iterator[Callable[[Event], object]]:
    """What is called with every event."""
    if callable(watch):
        yield watch
    elif watch:
        from service.client.bar import Bar

        with Bar() as bar:
            yield bar
    else:
        yield lambda event: None
