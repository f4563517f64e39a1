"""Webhooks, told to a real receiver by the application: signed, again after failures, and to nobody private."""

import asyncio
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any

import httpcore
import httpx
import pytest
import typer
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook as Signer

from service import metrics
from service.addresses import is_callable, networks
from service.api import create_app
from service.cli import read_settings
from service.job import JobView
from service.outgoing import Checked, NotAllowed, Outgoing
from service.queue import Queue
from service.redis_client import cancel
from service.settings import Settings
from service.webhooks import LEASE_SECONDS, MOST_CALLS_OF_HOST, Webhooks, wait_after
from tests.helpers import eventually, worker_state
from tests.test_api import GOOD, problem
from tests.test_queue import claim, ended

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + "c2VjcmV0" * 4


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent, and answers with the statuses it is given, then with 204."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0):
        super().__init__((host, port), _Handler)
        self.answers: list[int] = []
        self.location = ""
        self.received: list[tuple[dict[str, str], bytes]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, host: str = "127.0.0.1", path: str = "/hook?token=t0p") -> str:
        return f"http://{host}:{self.port}{path}"

    async def heard(self, count: int = 1) -> list[tuple[dict[str, str], bytes]]:
        """All it has received, once that is as much."""

        async def is_there() -> bool:
            return len(self.received) >= count

        await eventually(is_there)
        return self.received


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(({**dict(self.headers), ":path": self.path}, body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def receiving(host: str = "127.0.0.1", port: int = 0) -> Iterator[Receiver]:
    with Receiver(host, port) as receiver:
        Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield receiver
        receiver.shutdown()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as open_:
        yield open_


@pytest.fixture
def signing(settings: Settings) -> Settings:
    """Settings with a secret, by which receivers on this machine may be called."""
    return settings.model_copy(update={"webhook_secret": SecretStr(SECRET), "webhook_allow": "127.0.0.1, 127.0.0.3"})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose lifespan runs."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as open_,
    ):
        yield open_


@asynccontextmanager
async def telling(queue: Queue, settings: Settings, network: Checked | None = None) -> AsyncIterator[None]:
    """What an API process does about webhooks, alone."""
    task = asyncio.create_task(Webhooks(queue, settings, SecretStr(SECRET), network).run())
    yield
    await cancel([task], again_seconds=1)


@pytest.fixture
async def client(signing: Settings, queue: Queue) -> AsyncIterator[httpx.AsyncClient]:
    await queue.announce(worker_state())
    async with serving(signing) as open_:
        yield open_


async def submitted(client: httpx.AsyncClient, url: str, *events: str) -> str:
    """The id of a job that tells a webhook of these events, or of its end."""
    webhook = {"url": url} | ({"events": events} if events else {})
    response = await client.post("/v1/samples", json=GOOD | {"webhook": webhook})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def call_of(client: httpx.AsyncClient, job_id: str, event: str = "succeeded", outcome: str = "") -> Any:
    """What a job shows of how it went to tell of an event, once it is there and as it is wanted."""

    async def found() -> Any:
        call = (await client.get(f"/v1/jobs/{job_id}")).json()["webhook"]["calls"].get(event)
        return call if call and outcome in {"", call["outcome"]} else None

    return await eventually(found)


async def notices(queue: Queue) -> "dict[str, float]":
    """What is to be told, and when [ms]."""
    found: Any = await queue.redis.zrange(f"{queue.prefix}notices", 0, -1, withscores=True)
    return {name: float(score) for name, score in found}


async def are_gone(queue: Queue) -> bool:
    return not await notices(queue)


async def now_ms(queue: Queue) -> float:
    seconds, us = await queue.redis.time()
    return float(seconds * 1000 + us / 1000)


async def make_due(queue: Queue) -> None:
    """Let the time pass until all notices are due."""
    await queue.redis.zadd(f"{queue.prefix}notices", dict.fromkeys(await notices(queue), 0.0))


async def succeed(queue: Queue, *job_ids: str) -> None:
    assert set(await ended(queue, await claim(queue), *job_ids)) == set(job_ids)


def counted(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("pfgmpp_webhooks_total", {"outcome": outcome}) or 0


async def test_the_end_of_a_job_is_told_and_the_signature_holds(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver
) -> None:
    before = counted("delivered")
    job_id = await submitted(client, receiver.url())
    await succeed(queue, job_id)
    ((headers, body),) = await receiver.heard()
    message = Signer(SECRET).verify(body, headers)
    assert (message["type"], message["data"]["id"], message["data"]["status"]) == ("job.succeeded", job_id, "succeeded")
    assert headers["webhook-id"] == f"{job_id}-succeeded"
    assert (headers[":path"], headers["Host"]) == ("/hook?token=t0p", f"127.0.0.1:{receiver.port}")
    assert await call_of(client, job_id) == {"outcome": "delivered", "tries": 1, "reason": None}
    shown = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert message["data"] == {name: value for name, value in shown.items() if name != "webhook"}
    assert JobView.model_validate(message["data"]).webhook is None
    assert shown["webhook"]["url"] == receiver.url()
    assert "webhook" not in shown["request"]
    assert await are_gone(queue)
    assert counted("delivered") == before + 1


async def test_only_the_events_that_are_wanted_are_told(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver
) -> None:
    wanted = {"started": await submitted(client, receiver.url(), "started", "expired")}
    silent = await submitted(client, receiver.url(), "failed")
    await succeed(queue, wanted["started"], silent)
    wanted["canceled"] = await submitted(client, receiver.url())
    await client.post(f"/v1/jobs/{wanted['canceled']}/cancel")
    body = GOOD | {"webhook": {"url": receiver.url()}, "deadline_seconds": 0.001}
    wanted["expired"] = (await client.post("/v1/samples", json=body)).json()["id"]
    await receiver.heard(3)
    await eventually(lambda: are_gone(queue))
    ids = {headers["webhook-id"] for headers, _ in receiver.received}
    assert ids == {f"{job_id}-{event}" for event, job_id in wanted.items()}
    assert len(receiver.received) == 3


async def test_a_call_that_fails_is_tried_again_later_each_time(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver
) -> None:
    receiver.answers = [500, 404]
    job_id = await submitted(client, receiver.url())
    before = await now_ms(queue)
    await succeed(queue, job_id)
    for tries, status, wait in ((1, 500, 5), (2, 404, 10)):
        await receiver.heard(tries)

        async def is_noted(tries: int = tries) -> bool:
            return bool((await call_of(client, job_id))["tries"] == tries)

        await eventually(is_noted)
        assert await call_of(client, job_id) == {
            "outcome": "retried",
            "tries": tries,
            "reason": f"it answered {status}",
        }
        (due,) = (await notices(queue)).values()
        assert due - before > 750 * wait
        assert due - (before := await now_ms(queue)) < 1250 * wait
        await make_due(queue)
    assert await call_of(client, job_id, outcome="delivered") == {"outcome": "delivered", "tries": 3, "reason": None}
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    for headers, body in receiver.received:
        Signer(SECRET).verify(body, headers)
    assert await are_gone(queue)


def test_waits_double_and_last_less_than_the_retention_time(settings: Settings) -> None:
    for tries in (1, 2, 8):
        assert 0.8 <= wait_after(tries) / (5 * 2 ** (tries - 1)) <= 1.2
    assert 1.2 * sum(5 * 2**k for k in range(settings.webhook_tries - 1)) < settings.retention_seconds


async def test_after_the_last_try_a_webhook_is_given_up(signing: Settings, queue: Queue, receiver: Receiver) -> None:
    receiver.answers = [503]
    await queue.announce(worker_state())
    before = counted("given_up")
    async with serving(signing.model_copy(update={"webhook_tries": 1})) as client:
        job_id = await submitted(client, receiver.url())
        await succeed(queue, job_id)
        call = await call_of(client, job_id)
    assert call == {"outcome": "given_up", "tries": 1, "reason": "it answered 503"}
    assert await are_gone(queue)
    assert counted("given_up") == before + 1


async def test_a_redirect_is_a_failure_and_not_followed(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver
) -> None:
    with receiving() as private:
        receiver.answers, receiver.location = [307], private.url()
        job_id = await submitted(client, receiver.url())
        await succeed(queue, job_id)
        assert (await call_of(client, job_id))["reason"] == "it answered 307"
        assert private.received == []


async def test_a_receiver_that_is_not_there_is_tried_again(client: httpx.AsyncClient, queue: Queue) -> None:
    with receiving() as brief:
        url = brief.url()
    job_id = await submitted(client, url)
    await succeed(queue, job_id)
    call = await call_of(client, job_id)
    assert call["outcome"] == "retried"
    assert call["reason"].startswith("it could not be reached: ")


async def test_a_name_for_a_private_address_is_given_up_at_once(
    signing: Settings, queue: Queue, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    await queue.announce(worker_state())
    async with serving(signing.model_copy(update={"webhook_allow": None})) as client:
        job_id = await submitted(client, receiver.url("localhost"))
        await succeed(queue, job_id)
        call = await call_of(client, job_id)
    assert call["outcome"] == "given_up"
    assert "not public" in call["reason"]
    assert receiver.received == []
    assert await are_gone(queue)
    log = "".join(capsys.readouterr())
    assert "webhook not allowed" in log
    assert "t0p" not in log
    assert SECRET not in log


async def test_what_a_process_that_died_was_to_tell_is_told_by_another(
    signing: Settings, queue: Queue, receiver: Receiver
) -> None:
    await queue.announce(worker_state())
    async with serving(signing.model_copy(update={"reap_seconds": 3600.0})) as client:
        job_id = await submitted(client, receiver.url())
        await succeed(queue, job_id)
        assert [notice.job_id for notice in await queue.notices(10, LEASE_SECONDS)] == [job_id]  # the one that dies
        assert await queue.notices(10, LEASE_SECONDS) == []
        async with telling(queue, signing):
            await make_due(queue)
            await receiver.heard()
            await call_of(client, job_id, outcome="delivered")


async def test_what_only_a_newer_version_understands_is_left_to_it(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver
) -> None:
    newer, own = await submitted(client, receiver.url()), await submitted(client, receiver.url())
    webhook = json.dumps({"url": receiver.url(), "events": ["succeeded"], "secret_of": "version 9"})
    await queue.redis.hset(f"{queue.prefix}job:{newer}", "webhook", webhook)
    await succeed(queue, newer, own)
    await call_of(client, own, outcome="delivered")
    assert list(await notices(queue)) == [f"{newer}:succeeded"]
    assert len(receiver.received) == 1


async def test_two_processes_tell_everything_once(signing: Settings, queue: Queue, receiver: Receiver) -> None:
    await queue.announce(worker_state())
    async with serving(signing) as client, serving(signing):
        jobs = [await submitted(client, receiver.url()) for _ in range(8)]
        await succeed(queue, *jobs)
        await eventually(lambda: are_gone(queue))
    assert sorted(headers["webhook-id"] for headers, _ in receiver.received) == sorted(
        f"{job}-succeeded" for job in jobs
    )


async def test_nothing_is_told_of_a_deleted_job(signing: Settings, queue: Queue, receiver: Receiver) -> None:
    """Neither what had happened to it before, nor that it was canceled by that."""
    await queue.announce(worker_state())
    async with serving(signing.model_copy(update={"reap_seconds": 3600.0})) as client:
        jobs = [await submitted(client, receiver.url()) for _ in range(2)]
        await ended(queue, await claim(queue, room=1), jobs[0])
        for job_id in jobs:
            await client.delete(f"/v1/jobs/{job_id}")
    async with telling(queue, signing):
        await eventually(lambda: are_gone(queue))
    assert receiver.received == []


async def test_of_a_job_that_is_no_longer_kept_it_is_said_that_nobody_was_told(signing: Settings, queue: Queue) -> None:
    brief = signing.model_copy(update={"retention_seconds": 0.01})
    await queue.announce(worker_state())
    before = counted("given_up")
    async with serving(brief.model_copy(update={"reap_seconds": 3600.0})) as client:
        job_id = await submitted(client, "http://127.0.0.1:9/")
        await client.post(f"/v1/jobs/{job_id}/cancel")

        async def is_forgotten() -> bool:
            return await queue.read(job_id) is None

        await eventually(is_forgotten)
    async with telling(queue, brief):
        await eventually(lambda: are_gone(queue))

        async def is_counted() -> bool:
            return counted("given_up") == before + 1

        await eventually(is_counted)


async def test_a_silent_receiver_keeps_no_other_waiting(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver
) -> None:
    """However many calls it holds; and the application stops while they are under way."""
    held = list[asyncio.StreamWriter]()
    silent = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.3", 0)
    port = silent.sockets[0].getsockname()[1]
    for k in range(12):
        await submitted(client, f"http://127.0.0.3:{port}/{k}")
    last = await submitted(client, receiver.url(path="/"))
    for _ in range(2):
        batch = await claim(queue)
        await ended(queue, batch, *batch.requests)
    await call_of(client, last, outcome="delivered")
    assert len(receiver.received) == 1

    async def are_held() -> bool:
        return len(held) == MOST_CALLS_OF_HOST

    await eventually(are_held)
    for writer in held:
        writer.close()
    silent.close()


WRONG: list[tuple[object, str]] = [
    ("http://example.com/", "webhook"),
    ({}, "webhook.url"),
    ({"url": "ftp://example.com/"}, "webhook.url"),
    ({"url": "example.com"}, "webhook.url"),
    ({"url": "http://"}, "webhook.url"),
    ({"url": "http://user:t0p@example.com/"}, "webhook.url"),
    ({"url": "http://example.com/" + "a" * 3000}, "webhook.url"),
    ({"url": "http://10.1.2.3/?token=t0p"}, "webhook.url"),
    ({"url": "http://127.0.0.2/"}, "webhook.url"),
    ({"url": "http://2130706434/"}, "webhook.url"),
    ({"url": "http://0x7f.2/"}, "webhook.url"),
    ({"url": "http://[::1]/"}, "webhook.url"),
    ({"url": "http://[::ffff:169.254.169.254]/"}, "webhook.url"),
    ({"url": "http://169.254.169.254/latest/meta-data"}, "webhook.url"),
    ({"url": "http://example.com/", "events": []}, "webhook.events"),
    ({"url": "http://example.com/", "events": ["born"]}, "webhook.events.0"),
    ({"url": "http://example.com/", "secret": "t0p"}, "webhook.secret"),
]


@pytest.mark.parametrize(("webhook", "field"), WRONG, ids=[json.dumps(webhook)[:40] for webhook, _ in WRONG])
async def test_a_wrong_webhook_is_named_and_its_url_is_not_repeated(
    client: httpx.AsyncClient, queue: Queue, webhook: object, field: str
) -> None:
    response = await client.post("/v1/samples", json=GOOD | {"webhook": webhook})
    assert {error.field for error in problem(response, 422, "invalid-request").errors} == {field}
    assert "t0p" not in response.text
    assert (await queue.census([])).evaluations == 0


async def test_without_a_secret_webhooks_are_refused(settings: Settings, queue: Queue) -> None:
    await queue.announce(worker_state())
    async with serving(settings) as client:
        for path in ("/v1/samples", "/v1/estimates"):
            response = await client.post(path, json=GOOD | {"webhook": {"url": "https://example.com/"}})
            assert "PFGMPP_WEBHOOK_SECRET" in problem(response, 422, "invalid-request").detail


CALLABLE = "8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 10.1.2.3 ::ffff:10.1.2.3 fd12::1"
PRIVATE = (
    "127.0.0.1 127.9.9.9 0.0.0.0 10.2.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.192 224.0.0.1 "
    "240.0.0.1 255.255.255.255 168.63.129.16 ::1 :: ::7f00:1 ::ffff:127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::808:808 "
    "2002:7f00:1:: 2002:808:808:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 fe80::1 fec0::1 fd00::1 ff02::1 ff0e::1 "
    "2001:db8::1 100::1"
)


@pytest.mark.parametrize("address", [*CALLABLE.split(), *PRIVATE.split()])
def test_addresses_that_may_be_called_are_public_or_allowed(address: str) -> None:
    allowed = networks("10.1.0.0/16, fd12::/16")
    assert is_callable(ip_address(address), allowed) == (address in CALLABLE.split())


class Names:
    """Name servers that give one answer after the other, of loopback addresses of which one is allowed."""

    def __init__(self, *answers: Sequence[str]):
        self.answers = list(answers)
        self.network = Checked(networks("127.0.0.2/32"), self.look_up)

    def look_up(self, host: str, port: int) -> list[str]:
        return list(self.answers.pop(0))


async def test_the_address_that_was_checked_is_the_one_that_is_called(receiver: Receiver) -> None:
    """A name that is public when it is looked up first, and private from then on."""
    names = Names(["127.0.0.2"], ["127.0.0.1"])
    out = Outgoing(names.network)
    with receiving("127.0.0.2", receiver.port) as public:
        assert await out.post(receiver.url("rebinding.example"), b"{}", {}) == 204
        assert len(public.received) == 1
        assert public.received[0][0]["Host"] == f"rebinding.example:{receiver.port}"
        with pytest.raises(NotAllowed, match=r"rebinding\.example is 127\.0\.0\.1"):
            await out.post(receiver.url("rebinding.example"), b"{}", {})
    assert receiver.received == []
    await out.close()


async def test_a_name_with_a_private_address_beside_a_public_one_is_not_called(receiver: Receiver) -> None:
    names = Names(["127.0.0.2", "127.0.0.1"])
    out = Outgoing(names.network)
    with receiving("127.0.0.2", receiver.port) as public, pytest.raises(NotAllowed):
        await out.post(receiver.url("both.example"), b"{}", {})
    assert public.received + receiver.received == []
    await out.close()


async def test_proxies_of_the_environment_are_not_heeded(
    client: httpx.AsyncClient, queue: Queue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(path=""))
        job_id = await submitted(client, receiver.url())
        await succeed(queue, job_id)
        await receiver.heard()
        assert proxy.received == []


@pytest.mark.parametrize(
    "wrong", [{"webhook_secret": "t0p"}, {"webhook_secret": "whsec_short"}, {"webhook_allow": "10.0.0.1/8"}], ids=str
)
def test_wrong_settings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(wrong)


def test_a_wrong_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PFGMPP_WEBHOOK_SECRET", "t0p")
    with pytest.raises(typer.Exit):
        read_settings()
    shown = capsys.readouterr().err
    assert "webhook_secret: " in shown
    assert "t0p" not in shown


def certified(folder: Path, host: str) -> tuple[Path, Path]:
    """A key and a certificate for a host, which it has signed itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
async def test_certificates_are_checked_with_the_name_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """A name with a certificate is called, also when a look-up stands between; another name of the address is not."""
    key, certificate = certified(tmp_path, "hook.example")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    receiver.socket = context.wrap_socket(receiver.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    out = Outgoing(Checked(networks("127.0.0.1"), lambda host, port: ["127.0.0.1"]))
    assert await out.post(f"https://hook.example:{receiver.port}/", b"{}", {}) == 204
    with pytest.raises(httpcore.ConnectError, match="Hostname mismatch"):
        await out.post(f"https://other.example:{receiver.port}/", b"{}", {})
    await out.close()


def test_the_secret_reaches_child_processes_and_no_log(signing: Settings) -> None:
    assert signing.environment()["PFGMPP_WEBHOOK_SECRET"] == SECRET
    assert SECRET not in repr(signing)
