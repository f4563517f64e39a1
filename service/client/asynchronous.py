"""The client for asyncio: the calls of `blocking`, awaited."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import httpx
from tenacity import AsyncRetrying

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


class AsyncClient:
    """Speaks to one service, as `Client` does; any number of calls at a time."""

    def __init__(
        self, server: str | None = None, key: str | None = None, *, patience_seconds: float = PATIENCE_SECONDS
    ):
        self._exchange = Exchange(server, key, patience_seconds)
        self.server = self._exchange.server
        with self._exchange.opening() as options:
            self._http = httpx.AsyncClient(**options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def sample(self, *, progress: Watch = False, **fields: Unpack[SampleFields]) -> Images:
        """The images of a request, when they are done. `progress` shows a bar, or is called with every event.

        When that is broken off, by Ctrl-C or cancellation, the job is canceled: nobody knows its id.
        """
        job = await self.submit(**fields)
        try:
            return await job.result(progress)
        except ClientError:
            raise
        except BaseException:
            with suppress(ClientError):
                await job.cancel()
            raise

    async def submit(self, *, idempotency_key: str | None = None, **fields: Unpack[SampleFields]) -> "AsyncSubmitted":
        """Make a job and do not wait for it. With a key of your own, the same call later finds the same job."""
        return AsyncSubmitted(self, await self.ask(asks.submission(fields, idempotency_key)))

    async def map(self, requests: Iterable[SampleFields], *, in_flight: int = 4) -> AsyncGenerator[Images, None]:
        """The images of many requests, in their order, as they are done; so many jobs at a time are with the service.

        When one fails, or the iteration is closed early, those that are not done are canceled.
        """
        jobs = deque[AsyncSubmitted]()
        try:
            for request in requests:
                jobs.append(await self.submit(**request))
                if len(jobs) >= in_flight:
                    images = await jobs[0].result()
                    jobs.popleft()
                    yield images
            while jobs:
                images = await jobs[0].result()
                jobs.popleft()
                yield images
        finally:
            for job in jobs:
                with suppress(ClientError):
                    await job.cancel()

    async def stream(
        self, *, per_job: int = 64, in_flight: int = 4, **fields: Unpack[SampleFields]
    ) -> "AsyncGenerator[Image, None]":
        """Any number of images one by one, in order, as they are done: `count` is cut into jobs of `per_job`."""
        async with aclosing(self.map(asks.portions(fields, per_job), in_flight=in_flight)) as done:
            async for images in done:
                for image in images:
                    yield image

    async def job(self, job_id: str) -> "AsyncSubmitted":
        """A job that was submitted before."""
        return AsyncSubmitted(self, await self.ask(asks.reading(job_id)))

    async def jobs(
        self, status: Status | None = None, dataset: str | None = None, limit: int = 20
    ) -> AsyncGenerator[JobView, None]:
        """The jobs of this caller, the last one first, `limit` at most."""
        cursor: str | None = ""
        while cursor is not None and limit > 0:
            page = await self.ask(asks.listing(status, dataset, limit, cursor))
            for job in page.jobs:
                yield job
            cursor, limit = page.next, limit - len(page.jobs)

    async def models(self) -> list[OfferedModel]:
        """What can be sampled."""
        return await self.ask(asks.offered())

    async def estimate(self, **fields: Unpack[SampleFields]) -> Estimate:
        """What a request would take, and whether it would be refused; nothing is queued."""
        return await self.ask(asks.estimate(fields))

    async def status(self) -> ServiceStatus:
        """What workers and queue are at."""
        return await self.ask(asks.state())

    async def ask(self, ask: Ask[T]) -> T:
        """The answer to what `service.client.asks` has, asked again within the patience."""
        return await AsyncRetrying(**self._exchange.persistence())(self._once, ask)

    async def _once(self, ask: Ask[T]) -> T:
        with self._exchange.reaching():
            request = self._http.build_request(ask.method, ask.path, **ask.options)
            answer = await self._http.send(request, stream=ask.is_stream)
            if not answer.is_success:
                await answer.aread()
                await answer.aclose()
        return self._exchange.read(ask, answer)

    async def follow(self, job: JobView) -> AsyncGenerator[Event, None]:
        """The events of a job until it has ended; lost connections are made again."""
        following = Following(job, self._exchange.patience_seconds)
        while not following.is_over:
            with following.surviving():
                if following.is_polling:
                    yield following.see(await self.ask(following.poll()))
                    continue
                async with aclosing(await self.ask(following.ask())) as answer:
                    async for chunk in answer.aiter_bytes():
                        for event in following.take(chunk):
                            yield event
            await asyncio.sleep(following.pause_seconds)


class AsyncSubmitted:
    """A job of the service."""

    def __init__(self, client: AsyncClient, job: JobView):
        self._client = client
        self.job = job
        """As it was when it was last heard of."""

    def __repr__(self) -> str:
        return f"<job {self.id}, {self.job.status}>"

    @property
    def id(self) -> str:
        """Its id, by which `AsyncClient.job` finds it."""
        return self.job.id

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens to it, as it happens, until it has ended."""
        async with aclosing(self._client.follow(self.job)) as events:
            async for event in events:
                self.job = event.job
                yield event

    async def wait(self, progress: Watch = False) -> JobView:
        """It when it has ended, well or not."""
        if self.job.finished_at is None:
            with watching(progress) as see:
                async with aclosing(self.events()) as events:
                    async for event in events:
                        see(event)
        return self.job

    async def result(self, progress: Watch = False) -> Images:
        """Its images, when they are done. Raises JobFailed when it ended otherwise."""
        if (await self.wait(progress)).status != "succeeded":
            raise JobFailed(self.job)
        return Images.of(self.job, await self.fetch("images.zip"), await self.fetch("grid.png"))

    async def fetch(self, name: str) -> bytes:
        """A file of it: `grid.png`, `images/0.png`, `images.npz`, `images.zip`, `trajectory.gif` or `.png`."""
        return await self._client.ask(asks.file(self.id, name))

    async def cancel(self) -> JobView:
        """End it; what was finished of it stays."""
        self.job = await self._client.ask(asks.cancellation(self.id))
        return self.job

    async def delete(self) -> None:
        """Erase it and its result."""
        await self._client.ask(asks.deletion(self.id))
