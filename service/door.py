"""Behind the routes: what becomes of a request, whatever protocol it came by."""

import asyncio
import json
import re
import time
from contextlib import suppress
from hashlib import sha256
from ipaddress import ip_address

from redis.exceptions import OutOfMemoryError, RedisError

from service import metrics, results, sample, tracing
from service.access import Caller
from service.addresses import is_callable
from service.catalogue import Catalogue, OfferedModel
from service.events import Events, Patience
from service.forecast import Forecast
from service.job import Estimate, Eta, Job, Webhook
from service.logs import get_logger
from service.messages import Ahead, Census, KeyReused, LimitReached, Limits, Order, Submission, UnfitServer
from service.problems import (
    Draining,
    FieldError,
    Gone,
    InvalidRequest,
    KeyConflict,
    Lost,
    NoSuchModel,
    NotFound,
    NotReady,
    NoWorker,
    OverQuota,
    Problem,
    QueueFull,
    QueueUnavailable,
    TooMany,
    UnknownModel,
    parsed,
    refused,
)
from service.queue import Queue, new_id
from service.request import Resolved, SampleRequest, resolve
from service.settings import Settings
from service.store import JOB_ID, ResultStore

CATALOGUE_SECONDS = 1.0
"""How old the catalogue may be that a request is checked against."""

NO_WORKER_RETRY_SECONDS = 5.0
"""About as long as a worker takes to start."""

DIMENSION = re.compile(r"[0-9]{1,15}(\.[0-9]{1,20})?")
"""A finite D as it stands in a path."""

REFUSALS = (
    Draining,
    InvalidRequest,
    UnknownModel,
    NoWorker,
    KeyConflict,
    TooMany,
    OverQuota,
    QueueFull,
    QueueUnavailable,
)
"""Why a submission may be refused."""

UNKNOWN_RATE_RETRY_SECONDS = 10.0

DRAINING_RETRY_SECONDS = 1.0
"""Another server is asked then, or the next one on this port."""

log = get_logger()


class Door:
    """What the API does, for one process."""

    def __init__(self, settings: Settings, store: ResultStore):
        self.settings = settings
        self.queue = Queue.open(settings)
        self.forecast = Forecast()
        self.events = Events(self.queue, self.forecast.ended)
        self.store = store
        self._catalogue = Catalogue([])
        self._catalogue_read = -CATALOGUE_SECONDS
        self._is_draining = False
        self._epoch = ""
        """That of Redis when this process first reached it; "" before."""
        metrics.introduce_reasons(problem.code for problem in REFUSALS)

    async def submit(self, body: bytes, patience: Patience, caller: Caller, idempotency_key: str = "") -> Job:
        """The job that a body of `POST /v1/samples` makes, as it is when the patience is answered or over.

        Raises Draining, InvalidRequest, UnknownModel, NoWorker, KeyConflict, TooMany, OverQuota or QueueFull; then
        nothing is queued.
        """
        try:
            submission = self._submission(await self._resolved(body), caller, body, idempotency_key)
            job = await self.events.follow(submission.id, self._accept(submission), patience)
        except Problem as problem:
            metrics.jobs_rejected.labels(problem.code).inc()
            raise
        except RedisError:
            metrics.jobs_rejected.labels(QueueUnavailable.code).inc()
            raise
        return await self._found(submission.id, job, caller)

    async def _resolved(self, body: bytes) -> Resolved:
        """The request in a body, with everything decided. Raises Draining, InvalidRequest, UnknownModel or NoWorker."""
        self.check_open()
        request, settings = parsed(SampleRequest, body), self.settings
        if request.webhook:
            check(request.webhook, settings)
        model = await self._model_for(request)
        return resolve(request, model, settings.precision, settings.max_count, settings.max_pixels)

    def _submission(self, request: Resolved, caller: Caller, body: bytes, idempotency_key: str) -> Submission:
        rate = self._catalogue.evaluations_per_second
        return Submission(
            id=new_id(),
            kind=sample.KIND,
            lane=sample.lane(request),
            count=request.count,
            evaluations=request.evaluations,
            request=request.model_dump_json(),
            owner=caller.owner,
            limits=Limits(caller.submissions_per_minute or 0, caller.queued_evaluations or 0, caller.open_jobs or 0),
            evaluation_us=int(1e6 / rate) if rate else 0,
            priority=request.priority,
            deadline_seconds=request.deadline_seconds,
            idempotency_key=sha256(idempotency_key.encode()).hexdigest() if idempotency_key else "",
            webhook=request.webhook.model_dump_json() if request.webhook else "",
            traceparent=tracing.traceparent(),
            body_hash=_hash(body) if idempotency_key else "",
        )

    async def _accept(self, submission: Submission) -> Job:
        try:
            job = await self.queue.submit(submission)
        except KeyReused as error:
            detail = "this Idempotency-Key came with another body before; take a new one for another request"
            raise KeyConflict(detail) from error
        except LimitReached as reached:
            raise await self._over_limit(submission, reached) from reached
        except OutOfMemoryError as error:
            detail = (
                "Redis holds as much as it may (its maxmemory); there is room again when jobs are done and forgotten"
            )
            raise QueueFull(detail, retry_after_seconds=UNKNOWN_RATE_RETRY_SECONDS) from error
        if job is None:
            raise await self._queue_full(submission.count * submission.evaluations)
        if job.id == submission.id:
            metrics.jobs_submitted.labels(job.request["model"]).inc()
            trace = tracing.note_job(job)
            log.info("job accepted", job=job.id, lane=submission.lane, images=job.count, **trace)
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
            raise NoWorker(f"no worker serves {asked} at present", retry_after_seconds=NO_WORKER_RETRY_SECONDS)
        is_dataset_known = any(offered.dataset == request.dataset for offered in catalogue.models.values())
        detail = f"there is no {asked}; there is: {catalogue.describe()}"
        raise UnknownModel(detail, [FieldError(field="D" if is_dataset_known else "dataset", message=detail)])

    async def named(self, name: str) -> OfferedModel:
        """The model of a name such as `digits-d2048`, as `_model_for` finds it. Raises NoSuchModel or NoWorker."""
        for is_fresh in (False, True):
            catalogue = await self.catalogue(is_fresh)
            if model := catalogue.models.get(name):
                return model
        if not catalogue.workers or any(model.name == name for model in catalogue.remembered):
            raise NoWorker(
                f"no worker serves a model {name[:128]!r} at present", retry_after_seconds=NO_WORKER_RETRY_SECONDS
            )
        raise NoSuchModel(
            f"there is no model {name[:128]!r}; there is: {', '.join(catalogue.models)}",
            [FieldError(field="model", message=f"must be one of: {', '.join(catalogue.models)}")],
        )

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

    async def _over_limit(self, submission: Submission, reached: LimitReached) -> Problem:
        """The refusal of more than a caller may have, with the time after which it may have room."""
        if reached.limit == "per_minute":
            detail = f"this key may submit {submission.limits.per_minute} jobs a minute"
            return TooMany(detail, retry_after_seconds=reached.number / 1000)
        rate = (await self.catalogue()).evaluations_per_second
        if reached.limit == "jobs":
            detail = (
                f"this key may have {submission.limits.jobs:,} jobs that have not ended, and has {reached.number:,}"
            )
            return OverQuota(detail, retry_after_seconds=UNKNOWN_RATE_RETRY_SECONDS)
        cost, most = submission.count * submission.evaluations, submission.limits.evaluations
        too_many = reached.number + cost - most
        if cost > most:
            return OverQuota(f"this key may never have more than {most:,} network evaluations; this takes {cost:,}")
        return OverQuota(
            f"this key may have {most:,} network evaluations waiting, has {reached.number:,}, and this adds {cost:,}",
            retry_after_seconds=too_many / rate if rate else UNKNOWN_RATE_RETRY_SECONDS,
        )

    async def job(self, job_id: str, caller: Caller, patience: Patience | None = None) -> Job:
        """A job as it is when the patience is answered or over. Raises NotFound or Gone."""
        job = None
        if JOB_ID.fullmatch(job_id):
            job = await self.events.follow(job_id, self.queue.read(job_id), patience or Patience())
        return await self._found(job_id, job, caller)

    async def _found(self, job_id: str, job: Job | None, caller: Caller) -> Job:
        """The job, if there is one for the caller. Raises NotFound, Gone after its retention time, or Lost."""
        if job and caller.may_see(job.owner):
            return job
        if job is None and JOB_ID.fullmatch(job_id):
            owner = await self.queue.owner_of_gone(job_id)
            if owner is not None and caller.may_see(owner):
                retention = f"{self.settings.retention_seconds:g} s"
                raise Gone(f"job {job_id} ended more than {retention} ago, and is no longer kept")
            if self._epoch and await self.queue.epoch() != self._epoch:
                raise Lost(f"Redis has lost its data, and job {job_id} with them if it was there; submit it again")
        raise NotFound(f"there is no job {job_id[:64]!r}")

    async def cancel(self, job_id: str, caller: Caller) -> tuple[Job, bool]:
        """End a job, and whether it had not ended before. Raises NotFound or Gone."""
        job = await self.job(job_id, caller)
        job, is_now = await self.queue.cancel(job_id) or (job, False)
        if is_now:
            metrics.jobs_finished.labels(job.request["model"], "canceled").inc()
            log.info("job canceled", job=job_id)
        return job, is_now

    async def delete(self, job_id: str, caller: Caller) -> None:
        """Erase a job and its result; one that has not ended is canceled. Raises NotFound or Gone."""
        await self.cancel(job_id, caller)
        await self.queue.delete(job_id)
        try:
            await asyncio.to_thread(self.store.remove, [job_id])
        except OSError as error:  # the workers sweep it
            metrics.store_errors.labels("remove").inc()
            log.warning("result not removed", job=job_id, reason=error.strerror)
        log.info("job deleted", job=job_id)

    async def lack(self, job: Job) -> str | None:
        """What a job of which images are queued waits for beside its turn, in words: a worker that serves its model."""
        if not job.fields.get("queued") or job.request["model"] in (await self.catalogue()).models:
            return None
        return f"a worker that serves {job.request['model']}; there is none at present"

    async def with_result(self, job_id: str, caller: Caller) -> Job:
        """A job that has a result. Raises NotFound, Gone, NotFinished or NoResult."""
        return results.with_result(await self.job(job_id, caller))

    async def with_images(self, job_id: str, caller: Caller) -> Job:
        """A job that has images, all or some. Raises as `with_result`."""
        return results.with_images(await self.job(job_id, caller))

    async def estimate(self, body: bytes, caller: Caller) -> Estimate:
        """What a body of `POST /v1/samples` would take. Raises Draining, InvalidRequest, UnknownModel or NoWorker."""
        request, catalogue = await self._resolved(body), await self.catalogue()
        job = self._submission(request, caller, body, "")
        ahead = await self.queue.ahead(job.evaluations, job.priority, job.owner, list(catalogue.models))
        wait_seconds = catalogue.seconds_for(ahead.before)
        run_seconds = catalogue.seconds_to_run(request.model, job.count, job.evaluations)
        seconds = catalogue.seconds_until(
            request.model, job.evaluations, ahead.with_own(request.model, job.count * job.evaluations)
        )
        refusal = await self._refusal(job, ahead)
        return Estimate(
            images=job.count,
            evaluations=job.count * job.evaluations,
            wait_seconds=None if wait_seconds is None else round(wait_seconds, 3),
            run_seconds=None if run_seconds is None else round(run_seconds, 3),
            eta_seconds=None if seconds is None else self.forecast.eta(seconds),
            refusal=refusal.document("/v1/samples") if refusal else None,
        )

    async def eta(self, job: Job) -> Eta | None:
        """When a job that has not ended should have; None for others, and while nothing is known."""
        if job.is_finished:
            return None
        model, progress = job.request["model"], job.progress()
        try:
            catalogue = await self.catalogue()
            ahead = await self.queue.left(job.id, list(catalogue.models))
        except RedisError:  # the job is there all the same
            return None
        each = (progress.evaluations_total - progress.evaluations_done) / job.count
        seconds = catalogue.seconds_until(model, each, ahead)
        return None if seconds is None else self.forecast.promise(job.id, job.status, model, seconds)

    async def _refusal(self, job: Submission, ahead: Ahead) -> Problem | None:
        """As what a job would be refused now, but for the pace of its caller; None if it would not."""
        cost, limits = job.count * job.evaluations, job.limits
        if limits.jobs and ahead.jobs >= limits.jobs:
            return await self._over_limit(job, LimitReached("jobs", ahead.jobs))
        if limits.evaluations and ahead.owned + cost > limits.evaluations:
            return await self._over_limit(job, LimitReached("evaluations", ahead.owned))
        if ahead.accepted + cost > self.settings.max_queued_evaluations:
            return await self._queue_full(cost)
        return None

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
        if not await self.queue.order(Order("load" if is_to_load else "unload", model.name)):
            raise NoWorker(f"no worker listens that serves {model.name}", retry_after_seconds=NO_WORKER_RETRY_SECONDS)
        return model

    def drain(self) -> None:
        """Take no more jobs, and have nobody wait for one any longer: this process will end."""
        self._is_draining = True
        self.events.end_all()

    @property
    def is_draining(self) -> bool:
        """Whether this process will end soon."""
        return self._is_draining

    def check_open(self) -> None:
        """Raise Draining when this process will end."""
        if self._is_draining:
            raise Draining("this server is about to stop", retry_after_seconds=DRAINING_RETRY_SECONDS)

    async def check_ready(self) -> Catalogue:
        """The catalogue, when Redis answers and a live worker serves a model. Raises Draining or NotReady."""
        self.check_open()
        try:
            catalogue = await self.catalogue(is_fresh=True)
        except RedisError as error:
            raise NotReady("Redis does not answer", retry_after_seconds=2) from error
        if not catalogue.can_serve:
            raise NotReady("no live worker serves a model yet", retry_after_seconds=NO_WORKER_RETRY_SECONDS)
        return catalogue

    async def census(self) -> tuple[Catalogue, Census]:
        """What workers and queue are at now."""
        catalogue = await self.catalogue(is_fresh=True)
        names = sorted(catalogue.models.keys() | {model.name for model in catalogue.remembered})
        return catalogue, await self.queue.census(names)

    async def exposition(self) -> bytes:
        """The metrics, with the queue's gauges as they are now; without these while Redis does not answer."""
        catalogue, census = Catalogue([]), None
        with suppress(RedisError):
            catalogue, census = await self.census()
        return await asyncio.to_thread(metrics.exposition, census, catalogue)

    async def _first_contact(self) -> str:
        """The epoch of Redis; says loudly in what it is not fit for jobs, which workers refuse."""
        try:
            for shortcoming in await self.queue.shortcomings():
                log.warning(shortcoming)
        except UnfitServer as error:
            log.error(str(error))
        return await self.queue.epoch()

    async def reap(self) -> None:
        """Give back the batches of lost workers, for ever."""
        while True:
            await asyncio.sleep(self.settings.reap_seconds)
            try:
                self._epoch = self._epoch or await self._first_contact()
                for job in await self.queue.reap():
                    metrics.count_given_back(job)
            except RedisError as error:
                log.warning("queue unreachable", reason=str(error))


def _hash(body: bytes) -> str:
    """Of what a JSON body says, however it is written."""
    return sha256(json.dumps(json.loads(body), sort_keys=True).encode()).hexdigest()


def check(webhook: Webhook, settings: Settings) -> None:
    """Raise InvalidRequest for a webhook that cannot be called; what its host's name stands for is seen at the call."""
    if settings.webhook_secret is None:
        message = "this service signs no webhooks, for it has no secret: PFGMPP_WEBHOOK_SECRET is not set"
        raise refused([FieldError(field="webhook", message=message)])
    with suppress(ValueError):  # a name
        if not is_callable(ip_address(webhook.host), settings.webhook_networks):
            message = "must be a public address, or in a network of PFGMPP_WEBHOOK_ALLOW"
            raise refused([FieldError(field="webhook.url", message=message)])
