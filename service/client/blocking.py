"""The client for programs that wait: every call returns when it is answered."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import httpx
from tenacity import Retrying

from service.catalogue import OfferedModel, ServiceStatus
from service.client import asks
from service.client.asks import Ask, SampleFields
from service.client.errors import ClientError, JobFailed
from service.client.exchange import PATIENCE_SECONDS, Exchange
from service.client.following import Event, Following, Watch, watching
from service.client.images import Images
from service.job import Estimate, JobView, Status

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class Client:
    """Speaks to one service: that at `server`, or PFGMPP_SERVER, or on this machine; with `key`, or PFGMPP_KEY.

    What is lost on the way, refused for a limit (429) or for now (503) is asked again when the service says so, for
    `patience_seconds` at most; nothing is made twice. A service that never answered is not waited for.
    Every method raises ClientError: Unreachable, Refused with what was wrong, or JobFailed. Threads may share a client.
    """

    def __init__(
        self, server: str | None = None, key: str | None = None, *, patience_seconds: float = PATIENCE_SECONDS
    ):
        self._exchange = Exchange(server, key, patience_seconds)
        self.server = self._exchange.server
        with self._exchange.opening() as options:
            self._http = httpx.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections; they also end with it."""
        self._http.close()

    def sample(self, *, progress: Watch = False, **fields: Unpack[SampleFields]) -> Images:
        """The images of a request, when they are done. `progress` shows a bar, or is called with every event.

        When that is broken off, by Ctrl-C or an error of `progress`, the job is canceled: nobody knows its id.
        """
        job = self.submit(**fields)
        try:
            return job.result(progress)
        except ClientError:
            raise
        except BaseException:
            with suppress(ClientError):
                job.cancel()
            raise

    def submit(self, *, idempotency_key: str | None = None, **fields: Unpack[SampleFields]) -> "Submitted":
        """Make a job and do not wait for it. With a key of your own, the same call later finds the same job."""
        return Submitted(self, self.ask(asks.submission(fields, idempotency_key)))

    def map(self, requests: Iterable[SampleFields], *, in_flight: int = 4) -> Iterator[Images]:
        """The images of many requests, in their order, as they are done; so many jobs at a time are with the service.

        When one fails, or the iteration ends early, those that are not done are canceled.
        """
        jobs = deque[Submitted]()
        try:
            for request in requests:
                jobs.append(self.submit(**request))
                if len(jobs) >= in_flight:
                    images = jobs[0].result()
                    jobs.popleft()
                    yield images
            while jobs:
                images = jobs[0].result()
                jobs.popleft()
                yield images
        finally:
            for job in jobs:
                with suppress(ClientError):
                    job.cancel()

    def stream(self, *, per_job: int = 64, in_flight: int = 4, **fields: Unpack[SampleFields]) -> "Iterator[Image]":
        """Any number of images one by one, in order, as they are done: `count` is cut into jobs of `per_job`."""
        for images in self.map(asks.portions(fields, per_job), in_flight=in_flight):
            yield from images

    def job(self, job_id: str) -> "Submitted":
        """A job that was submitted before."""
        return Submitted(self, self.ask(asks.reading(job_id)))

    def jobs(self, status: Status | None = None, dataset: str | None = None, limit: int = 20) -> Iterator[JobView]:
        """The jobs of this caller, the last one first, `limit` at most."""
        cursor: str | None = ""
        while cursor is not None and limit > 0:
            page = self.ask(asks.listing(status, dataset, limit, cursor))
            yield from page.jobs
            cursor, limit = page.next, limit - len(page.jobs)

    def models(self) -> list[OfferedModel]:
        """What can be sampled."""
        return self.ask(asks.offered())

    def estimate(self, **fields: Unpack[SampleFields]) -> Estimate:
        """What a request would take, and whether it would be refused; nothing is queued."""
        return self.ask(asks.estimate(fields))

    def status(self) -> ServiceStatus:
        """What workers and queue are at."""
        return self.ask(asks.state())

    def ask(self, ask: Ask[T]) -> T:
        """The answer to what `service.client.asks` has, asked again within the patience."""
        answer: T = Retrying(**self._exchange.persistence())(self._once, ask)
        return answer

    def _once(self, ask: Ask[T]) -> T:
        with self._exchange.reaching():
            request = self._http.build_request(ask.method, ask.path, **ask.options)
            answer = self._http.send(request, stream=ask.is_stream)
            if not answer.is_success:
                answer.read()
                answer.close()
        return self._exchange.read(ask, answer)

    def follow(self, job: JobView) -> Iterator[Event]:
        """The events of a job until it has ended; lost connections are made again."""
        following = Following(job, self._exchange.patience_seconds)
        while not following.is_over:
            with following.surviving():
                if following.is_polling:
                    yield following.see(self.ask(following.poll()))
                    continue
                with closing(self.ask(following.ask())) as answer:
                    for chunk in answer.iter_bytes():
                        yield from following.take(chunk)
            time.sleep(following.pause_seconds)


class Submitted:
    """A job of the service."""

    def __init__(self, client: Client, job: JobView):
        self._client = client
        self.job = job
        """As it was when it was last heard of."""

    def __repr__(self) -> str:
        return f"<job {self.id}, {self.job.status}>"

    @property
    def id(self) -> str:
        """Its id, by which `Client.job` finds it."""
        return self.job.id

    def events(self) -> Iterator[Event]:
        """What happens to it, as it happens, until it has ended."""
        for event in self._client.follow(self.job):
            self.job = event.job
            yield event

    def wait(self, progress: Watch = False) -> JobView:
        """It when it has ended, well or not."""
        if self.job.finished_at is None:
            with watching(progress) as see:
                for event in self.events():
                    see(event)
        return self.job

    def result(self, progress: Watch = False) -> Images:
        """Its images, when they are done. Raises JobFailed when it ended otherwise."""
        if self.wait(progress).status != "succeeded":
            raise JobFailed(self.job)
        return Images.of(self.job, self.fetch("images.zip"), self.fetch("grid.png"))

    def fetch(self, name: str) -> bytes:
        """A file of it: `grid.png`, `images/0.png`, `images.npz`, `images.zip`, `trajectory.gif` or `.png`."""
        return self._client.ask(asks.file(self.id, name))

    def cancel(self) -> JobView:
        """End it; what was finished of it stays."""
        self.job = self._client.ask(asks.cancellation(self.id))
        return self.job

    def delete(self) -> None:
        """Erase it and its result."""
        self._client.ask(asks.deletion(self.id))
