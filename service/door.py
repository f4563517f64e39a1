"""Behind the routes: what becomes of a request, whatever protocol it came by."""

import asyncio
import re
import time
from contextlib import suppress

from pydantic import ValidationError
from redis.exceptions import OutOfMemoryError, RedisError

from service import metrics
from service.catalogue import Catalogue, OfferedModel
from service.events import Events, Patience
from service.job import Job
from service.kinds import KINDS
from service.logs import get_logger
from service.problems import (
    FieldError,
    NoResult,
    NoSuchModel,
    NotFinished,
    NotFound,
    NotReady,
    NoWorker,
    Problem,
    QueueFull,
    UnknownModel,
    invalid,
)
from service.queue import Order, Queue, new_id
from service.sample import Resolved, SampleRequest, resolve
from service.settings import Settings
from service.store import JOB_ID, LocalStore

CATALOGUE_SECONDS = 1.0
"""How old the catalogue may be that a request is checked against."""

NO_WORKER_RETRY_SECONDS = 5.0
"""About as long as a worker takes to start."""

DIMENSION = re.compile(r"[0-9]{1,15}(\.[0-9]{1,20})?")
"""A finite D as it stands in a path."""

UNKNOWN_RATE_RETRY_SECONDS = 10.0

log = get_logger()


class Door:
    """What the API does, for one process."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.queue = Queue.open(settings)
        self.events = Events(self.queue)
        self.store = LocalStore(settings.results_dir / settings.queue)
        self._catalogue = Catalogue([])
        self._catalogue_read = -CATALOGUE_SECONDS

    async def submit(self, body: bytes, patience: Patience) -> Job:
        """The job that a body of `POST /v1/samples` makes, as it is when the patience is answered or over.

        Raises InvalidRequest, UnknownModel, NoWorker or QueueFull; then nothing is queued.
        """
        try:
            request = parse(body)
            settings = self.settings
            model = await self._model_for(request)
            resolved = resolve(request, model, settings.precision, settings.max_count, settings.max_pixels)
            job_id = new_id()
            return _found(job_id, await self.events.follow(job_id, self._accept(job_id, resolved), patience))
        except Problem as problem:
            metrics.jobs_rejected.labels(problem.code).inc()
            raise

    async def _accept(self, job_id: str, request: Resolved) -> Job:
        kind = KINDS["sample"]
        lane, evaluations = kind.lane(request), kind.evaluations(request)
        text = request.model_dump_json()
        job = None
        with suppress(OutOfMemoryError):
            job = await self.queue.submit(job_id, kind.name, lane, request.count, evaluations, text)
        if job is None:
            raise await self._queue_full(request.count * evaluations)
        metrics.jobs_submitted.labels(request.model).inc()
        log.info("job accepted", job=job_id, lane=lane, images=request.count)
        return job

    async def _model_for(self, request: SampleRequest) -> OfferedModel:
        """The model a request is for, from a catalogue that is fresh when it seems to be missing."""
        model = (await self.catalogue()).find(request.dataset, request.D)
        if model:
            return model
        catalogue = await self.catalogue(is_fresh=True)
        model = catalogue.find(request.dataset, request.D)
        if model:
            return model
        asked = f"dataset {request.dataset!r} with D = {request.D}"
        if catalogue.remembers(request.dataset, request.D) or not catalogue.workers:
            raise NoWorker(f"no worker holds {asked} at present", retry_after_seconds=NO_WORKER_RETRY_SECONDS)
        is_dataset_known = any(offered.dataset == request.dataset for offered in catalogue.models.values())
        detail = f"there is no {asked}; there is: {catalogue.describe()}"
        raise UnknownModel(detail, [FieldError(field="D" if is_dataset_known else "dataset", message=detail)])

    async def _queue_full(self, evaluations: int) -> QueueFull:
        """The refusal of more work, with the time after which so much will have been done."""
        waiting = (await self.queue.census([])).evaluations
        rate = (await self.catalogue()).evaluations_per_second
        too_many = waiting + evaluations - self.settings.max_queued_evaluations
        seconds = max(1.0, too_many / rate) if rate else UNKNOWN_RATE_RETRY_SECONDS
        limit = self.settings.max_queued_evaluations
        return QueueFull(
            f"{waiting:,} network evaluations wait and this request adds {evaluations:,}; the limit is {limit:,}",
            retry_after_seconds=seconds,
        )

    async def job(self, job_id: str, patience: Patience) -> Job:
        """A job as it is when the patience is answered or over. Raises NotFound."""
        is_id = JOB_ID.fullmatch(job_id)
        return _found(job_id, await self.events.follow(job_id, self.queue.read(job_id), patience) if is_id else None)

    async def lack(self, job: Job) -> str | None:
        """What a job of which images are queued waits for beside its turn, in words: a worker that serves its model."""
        if not job.fields.get("queued") or job.request["model"] in (await self.catalogue()).models:
            return None
        return f"a worker that serves {job.request['model']}; there is none at present"

    async def finished(self, job_id: str) -> Job:
        """A job that has a result. Raises NotFound, NotFinished or NoResult."""
        return with_result(await self.job(job_id, Patience()))

    async def catalogue(self, is_fresh: bool = False) -> Catalogue:
        """What is on offer, at most a second old, or just read."""
        if is_fresh or time.monotonic() - self._catalogue_read > CATALOGUE_SECONDS:
            self._catalogue = await self.queue.catalogue()
            self._catalogue_read = time.monotonic()
        return self._catalogue

    async def model(self, dataset: str, D: str) -> OfferedModel:
        """One model of the catalogue. Raises NoSuchModel."""
        catalogue = await self.catalogue(is_fresh=True)
        model = catalogue.find(dataset, D) if D == "inf" or DIMENSION.fullmatch(D) else None
        if model is None:
            raise NoSuchModel(
                f"there is no dataset {dataset[:64]!r} with D = {D[:32]}; there is: {catalogue.describe()}"
            )
        return model

    async def order(self, dataset: str, D: str, is_to_load: bool) -> OfferedModel:
        """Have all workers that serve a model load or unload it. Raises NoSuchModel or NoWorker."""
        model = await self.model(dataset, D)
        if not await self.queue.order(Order(is_to_load, model.name)):
            raise NoWorker(f"no worker listens that serves {model.name}", retry_after_seconds=NO_WORKER_RETRY_SECONDS)
        return model

    async def check_ready(self) -> Catalogue:
        """The catalogue, when Redis answers and a live worker holds a model. Raises NotReady."""
        try:
            catalogue = await self.catalogue(is_fresh=True)
        except RedisError as error:
            raise NotReady("Redis does not answer", retry_after_seconds=2) from error
        if not catalogue.is_warm:
            raise NotReady("no live worker holds a model yet", retry_after_seconds=NO_WORKER_RETRY_SECONDS)
        return catalogue

    async def exposition(self) -> bytes:
        """The metrics, with the queue's gauges as they are now."""
        catalogue = await self.catalogue(is_fresh=True)
        names = sorted(catalogue.models.keys() | {model.name for model in catalogue.remembered})
        return metrics.exposition(await self.queue.census(names), catalogue)

    async def reap(self) -> None:
        """Give back the batches of lost workers, for ever."""
        while True:
            await asyncio.sleep(self.settings.reap_seconds)
            try:
                for job in await self.queue.reap():
                    metrics.count_given_back(job)
            except RedisError as error:
                log.warning("queue unreachable", reason=str(error))


def _found(job_id: str, job: Job | None) -> Job:
    if job is None:
        raise NotFound(f"there is no job {job_id[:64]!r}, or its retention time is over")
    return job


def with_result(job: Job) -> Job:
    """The job, which has a result. Raises NotFinished or NoResult."""
    if not job.is_finished:
        raise NotFinished(f"job {job.id} is {job.status}; follow it at /v1/jobs/{job.id}?wait=30")
    if job.status != "succeeded":
        raise NoResult(f"job {job.id} {job.status}" + (f": {job.error.detail}" if job.error else ""))
    return job


def parse(body: bytes) -> SampleRequest:
    """The request in a body. Raises InvalidRequest naming each field that is wrong."""
    try:
        return SampleRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_context=False)) from error
