"""Webhooks: who wants to know how a job goes is told, signed, and again and again until it has heard."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from weakref import WeakValueDictionary

import httpcore
from pydantic import SecretStr
from redis.exceptions import RedisError
from standardwebhooks import Webhook as Signer

from service import __version__, metrics
from service.job import Call, Job, Message, Webhook
from service.logs import get_logger
from service.messages import Notice
from service.outgoing import Checked, NotAllowed, Outgoing
from service.queue import Queue
from service.redis_client import cancel
from service.settings import Settings

CALL_SECONDS = 10.0
"""The longest that a call may take, from the look-up of the host to the status of the answer."""

LEASE_SECONDS = 30.0
"""After which another process calls for one that has died."""

SPARE_SECONDS = 5.0
"""Of the lease, for what is read before a call and noted after it."""

MOST_CALLS_OF_HOST = 8
"""At a time: a host that takes long to answer keeps no other one waiting."""

MOST_HELD_OF_HOST = 256
MOST_HELD = 1024
"""Under way, or waiting for their turn at their host."""

FIRST_WAIT_SECONDS = 5.0

NETWORK_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)

log = get_logger()


class Refused(Exception):
    """An answer that is not the one hoped for."""


class Webhooks:
    """Tells webhooks what they are to be told, for one process; several share the notices by their leases.

    due --notices--> under lease --2xx--> gone
     ^                    |
     +--failed, lease over+--tries used up, address not allowed, job no longer kept--> given up
    """

    def __init__(self, queue: Queue, settings: Settings, secret: SecretStr, network: Checked | None = None):
        self.queue = queue
        self.settings = settings
        self._signer = Signer(secret.get_secret_value())
        self._outgoing = Outgoing(network or Checked(settings.webhook_networks))
        self._held = dict[asyncio.Task[None], str]()
        """What is under way or waits for its turn at a host, which is the value."""
        self._turns = WeakValueDictionary[str, asyncio.Semaphore]()

    async def run(self) -> None:
        """Tell what is due, until cancelled; what is then in hand is told after its lease, by whoever runs."""
        try:
            while True:
                if not await self._take():
                    await asyncio.sleep(self.settings.reap_seconds)
        finally:
            await cancel(list(self._held))
            await self._outgoing.close()

    async def _take(self) -> bool:
        """Begin with what is due, as far as there is room; whether more may be due."""
        room = MOST_HELD - len(self._held)
        try:
            notices = await self.queue.notices(room, LEASE_SECONDS) if room else []
        except RedisError as error:
            log.warning("queue unreachable", reason=str(error))
            return False
        busy = Counter(self._held.values())
        for notice in notices:
            if notice.webhook is None:
                _count(notice, Call(outcome="given_up", tries=0, reason="its job is no longer kept"))
            elif busy[notice.webhook.host] < MOST_HELD_OF_HOST:  # the others are due again when their lease ends
                busy[notice.webhook.host] += 1
                self._begin(notice, notice.webhook)
        return 0 < room == len(notices)

    def _begin(self, notice: Notice, webhook: Webhook) -> None:
        turns = self._turns.setdefault(webhook.host, asyncio.Semaphore(MOST_CALLS_OF_HOST))
        telling = asyncio.create_task(self._tell_in_turn(notice, webhook, turns))
        self._held[telling] = webhook.host
        telling.add_done_callback(self._ended)

    def _ended(self, telling: asyncio.Task[None]) -> None:
        host = self._held.pop(telling)
        if not telling.cancelled() and (error := telling.exception()):
            log.error("webhook not called", host=host, exc_info=error)

    async def _tell_in_turn(self, notice: Notice, webhook: Webhook, turns: asyncio.Semaphore) -> None:
        """Tell a webhook when its host has answered others, unless the lease would end before that."""
        with suppress(TimeoutError, RedisError):  # then it is due again
            async with asyncio.timeout(LEASE_SECONDS - CALL_SECONDS - SPARE_SECONDS):
                await turns.acquire()
            try:
                await self._tell(notice, webhook)
            finally:
                turns.release()

    async def _tell(self, notice: Notice, webhook: Webhook) -> None:
        """Call a webhook once, and note how it went. Raises RedisError."""
        job = await self.queue.read(notice.job_id)
        if job is None or job.webhook is None:  # deleted since
            return
        before = job.webhook.calls.get(notice.event)
        call, wait_seconds = await self._call(notice, job, webhook, before.tries + 1 if before else 1)
        _count(notice, call)
        await self.queue.told(notice, call, wait_seconds)

    async def _call(self, notice: Notice, job: Job, webhook: Webhook, tries: int) -> tuple[Call, float | None]:
        """How a call went, and in how many seconds it is to be tried again."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._post(notice, job, webhook)
        except NotAllowed as error:
            log.error("webhook not allowed", job=job.id, reason=str(error))
            reason = "its address is not public, and not allowed by PFGMPP_WEBHOOK_ALLOW"
            return Call(outcome="given_up", tries=tries, reason=reason), None
        except (Refused, TimeoutError, *NETWORK_ERRORS) as error:
            if tries < self.settings.webhook_tries:
                return Call(outcome="retried", tries=tries, reason=_reason(error)), wait_after(tries)
            return Call(outcome="given_up", tries=tries, reason=_reason(error)), None
        return Call(outcome="delivered", tries=tries), None

    async def _post(self, notice: Notice, job: Job, webhook: Webhook) -> None:
        """Send the job as it is now. Raises Refused for an answer other than 2xx, and what `Outgoing.post` raises."""
        message_id, now = f"{job.id}-{notice.event}", datetime.now(UTC)
        message = Message(type=f"job.{notice.event}", timestamp=now, data=job.view())
        body = message.model_dump_json(exclude={"data": {"webhook"}})
        headers: dict[str | bytes, str | bytes] = {
            "Content-Type": "application/json",
            "User-Agent": f"pfgmpp-serve/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(message_id, now, body),
        }
        status = await self._outgoing.post(str(webhook.url), body.encode(), headers)
        if not 200 <= status < 300:
            raise Refused(f"it answered {status}")


def wait_after(tries: int) -> float:
    """Seconds until the next try: 5 after the first one, then twice as many each time, give or take a fifth."""
    return FIRST_WAIT_SECONDS * 2.0 ** (tries - 1) * random.uniform(0.8, 1.2)  # noqa: S311


def _reason(error: Exception) -> str:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, TimeoutError | httpcore.TimeoutException):
        return "it did not answer in time"
    return f"it could not be reached: {error}"[:200]


def _count(notice: Notice, call: Call) -> None:
    """Record, and log, how a call went. Of the URL only the host is shown: the rest may be secret."""
    metrics.webhooks.labels(call.outcome).inc()
    known = {"job": notice.job_id, "of": notice.event, "tries": call.tries}
    known |= {"host": notice.webhook.host} if notice.webhook else {}
    known |= {"reason": call.reason} if call.reason else {}
    say = {"delivered": log.info, "retried": log.warning, "given_up": log.error}[call.outcome]
    say(f"webhook {call.outcome.replace('_', ' ')}", **known)
