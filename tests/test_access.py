"""Access: keys in a file, and what each caller may do on every route."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.access import AccessError, Caller, Keys, is_loopback
from service.api import create_app
from service.cli import app as commands
from service.queue import Queue
from service.settings import Settings
from tests.helpers import eventually, facts, next_batch, worker_state
from tests.test_api import GOOD, problem
from tests.test_queue import ended

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


def test_a_key_is_known_until_it_is_revoked(keys: Keys) -> None:
    """By another reader of the file, without a restart; nothing in the file is the key."""
    alice = keys.add(Caller(name="alice"))
    reader = Keys(keys.path)
    known = reader.caller(alice)
    assert known
    assert (known.name, known.is_admin, known.owner) == ("alice", False, "alice")
    bob = keys.add(Caller(name="bob", is_admin=True, open_jobs=3))
    assert alice not in keys.path.read_text()
    assert bob.removeprefix("pfgmpp_") not in keys.path.read_text()
    assert len({alice, bob}) == 2
    found = reader.caller(bob)
    assert found
    assert (found.is_admin, found.open_jobs) == (True, 3)
    keys.revoke("alice")
    assert reader.caller(alice) is None
    assert reader.caller(bob)
    for wrong in ("", "pfgmpp_", bob[:-1], bob + "x", bob.upper(), "é"):
        assert reader.caller(wrong) is None
    assert keys.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "[]", '{"keys": [{"name": "a"}]}', '{"keys": "all"}', None])
def test_nobody_is_let_in_while_the_file_cannot_be_read(keys: Keys, content: str | None) -> None:
    key = keys.add(Caller(name="alice"))
    good = keys.path.read_text()
    assert keys.caller(key)
    if content is None:
        keys.path.unlink()
    else:
        keys.path.write_text(content)
    assert keys.caller(key) is None
    assert not keys.is_readable
    with pytest.raises(AccessError, match=re.escape(str(keys.path))) as failure:
        keys.read()
    assert ": :" not in str(failure.value)
    keys.path.write_text(good)
    assert keys.is_readable
    assert keys.caller(key)


def test_who_may_read_the_file_stays_so(keys: Keys) -> None:
    """A service goes on reading its file when another user, such as root, has changed it."""
    keys.add(Caller(name="alice"))
    is_root = os.geteuid() == 0
    owner = (10001, 10002) if is_root else (os.geteuid(), os.getegid())
    os.chown(keys.path, *owner)
    keys.path.chmod(0o640)
    for change in (lambda: keys.add(Caller(name="bob")), lambda: keys.revoke("alice")):
        change()
        status = keys.path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*owner, 0o640)


def test_names_are_different(keys: Keys) -> None:
    keys.add(Caller(name="alice"))
    with pytest.raises(AccessError, match="alice has a key; revoke it first"):
        keys.add(Caller(name="alice"))
    with pytest.raises(AccessError, match="bob has no key"):
        keys.revoke("bob")


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_is_a_loopback_address(host: str, is_own: bool) -> None:
    assert is_loopback(host) == is_own


@pytest.fixture
async def guarded(settings: Settings, queue: Queue, keys: Keys) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """Clients of one service: of its jobs' owner, of another, of an administrator, and of those with no valid key."""
    names = {"owner": False, "other": False, "admin": True, "revoked": False}
    secrets = {name: keys.add(Caller(name=name, is_admin=is_admin)) for name, is_admin in names.items()}
    keys.revoke("revoked")
    await queue.announce(worker_state(facts()))
    app = create_app(settings.model_copy(update={"keys_file": keys.path}))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {name: {"Authorization": f"Bearer {key}"} for name, key in secrets.items()}
    headers |= {"nobody": {}, "wrong": {"Authorization": "Bearer pfgmpp_x"}, "basic": {"Authorization": "Basic eDp5"}}
    async with app.router.lifespan_context(app):
        yield {
            name: httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=each)
            for name, each in headers.items()
        }


STRANGERS = ("nobody", "wrong", "basic", "revoked")
OPEN = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
ADMINS = {"/metrics", "/v1/models/{dataset}/{D}/load", "/v1/models/{dataset}/{D}/unload"}
OWN = {200, 202, 204, 400, 409, 415, 503}
"""What whoever may ask may be answered: that there is no result yet, or no body, is no refusal."""


async def test_every_route_asks_who_it_is(guarded: dict[str, httpx.AsyncClient]) -> None:
    """The access matrix: every route of the served document, by everyone."""
    document = (await guarded["owner"].get("/openapi.json")).json()
    routes = [(path, method) for path, methods in document["paths"].items() for method in methods]
    assert len(routes) > 15
    for path, method in routes:
        for name, client in guarded.items():
            job = (await guarded["owner"].post("/v1/samples", json=GOOD)).json()["id"]
            url = path.format(job_id=job, k=0, dataset="digits", D=2048, model_name="digits-d2048", version="0" * 12)
            body = {"json": GOOD} if path in {"/v1/samples", "/v1/estimates"} else {}
            # The head alone of what would tell of the job until its end.
            verb = "HEAD" if path.endswith("/events") else method.upper()
            params = {"job": job} if path == "/v1/events" else {}
            status = (await client.request(verb, url, params=params, **body)).status_code  # type: ignore[arg-type]
            case = f"{method} {path} by {name}: {status}"
            if path in OPEN:
                assert status == 200, case
            elif name in STRANGERS:
                assert status == 401, case
            elif path in ADMINS:
                assert status == (403 if name != "admin" else 200 if path == "/metrics" else 503), case
            elif ("{job_id}" in path or path == "/v1/events") and name == "other":
                assert status == 404, case
            else:
                assert status in OWN, case


async def test_a_refusal_says_what_is_missing(guarded: dict[str, httpx.AsyncClient]) -> None:
    refused = await guarded["nobody"].get("/v1/models")
    assert "Authorization: Bearer" in problem(refused, 401, "unauthorized").detail
    assert refused.headers["www-authenticate"] == "Bearer"
    problem(await guarded["owner"].get("/metrics"), 403, "forbidden")
    problem(await guarded["nobody"].get("/nowhere"), 401, "unauthorized")
    problem(await guarded["owner"].get("/nowhere"), 404, "not-found")


async def test_everyone_sees_their_own_jobs(guarded: dict[str, httpx.AsyncClient], queue: Queue) -> None:
    mine = (await guarded["owner"].post("/v1/samples", json=GOOD)).json()
    yours = (await guarded["other"].post("/v1/samples", json=GOOD)).json()
    for name, expected in (("owner", [mine["id"]]), ("other", [yours["id"]]), ("admin", [])):
        assert [job["id"] for job in (await guarded[name].get("/v1/jobs")).json()["jobs"]] == expected
    assert (await guarded["admin"].get(mine["links"]["self"])).status_code == 200
    batch = await eventually(lambda: next_batch(queue))
    await ended(queue, batch, *batch.requests)
    assert (await guarded["other"].delete(mine["links"]["self"])).status_code == 404
    assert (await guarded["owner"].get(mine["links"]["self"])).json()["status"] == "succeeded"


async def test_an_administrator_lists_the_jobs_of_others(guarded: dict[str, httpx.AsyncClient]) -> None:
    mine = (await guarded["owner"].post("/v1/samples", json=GOOD)).json()
    assert mine["owner"] == "owner"
    for name, query, expected in (
        ("owner", "", [mine["id"]]),
        ("owner", "?owner=owner", [mine["id"]]),
        ("admin", "", []),
        ("admin", "?owner=owner", [mine["id"]]),
        ("admin", "?owner=nobody", []),
    ):
        listed = (await guarded[name].get(f"/v1/jobs{query}")).json()["jobs"]
        assert [job["id"] for job in listed] == expected
    problem(await guarded["other"].get("/v1/jobs?owner=owner"), 403, "forbidden")


async def test_it_is_not_ready_when_nobody_is_known(guarded: dict[str, httpx.AsyncClient], keys: Keys) -> None:
    assert (await guarded["nobody"].get("/readyz")).status_code == 200
    keys.path.write_text("nothing")
    response = await guarded["nobody"].get("/readyz")
    assert ("keys" in problem(response, 503, "not-ready").detail, response.headers["retry-after"]) == (True, "30")
    assert (await guarded["nobody"].get("/v2/health/ready")).status_code == 503


async def test_an_answer_tells_browsers_to_be_careful(guarded: dict[str, httpx.AsyncClient]) -> None:
    for client, path in (
        ("owner", "/v1/models"),
        ("nobody", "/v1/models"),
        ("owner", "/nowhere"),
        ("nobody", "/livez"),
    ):
        headers = (await guarded[client].get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    page = await guarded["nobody"].get("/docs")
    assert page.headers.get_list("content-security-policy") == [page.headers["content-security-policy"]]
    assert "script-src 'self' 'sha256-" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("limits", "body", "code", "words"),
    [
        ({"submissions_per_minute": 2}, GOOD, "too-many-requests", "2 jobs a minute"),
        ({"open_jobs": 2}, GOOD, "quota-exceeded", "2 jobs that have not ended, and has 2"),
        (
            {"queued_evaluations": 100},
            GOOD,
            "quota-exceeded",
            "100 network evaluations waiting, has 70, and this adds 35",
        ),
    ],
)
async def test_a_key_has_limits_of_its_own(
    settings: Settings,
    queue: Queue,
    keys: Keys,
    limits: dict[str, int],
    body: dict[str, object],
    code: str,
    words: str,
) -> None:
    """The third of three is refused, and says when to come again; another key is not concerned."""
    limited = keys.add(Caller.model_validate({"name": "limited"} | limits))
    free = keys.add(Caller(name="free"))
    await queue.announce(worker_state(facts(), evaluations_per_second=7.0))
    app = create_app(settings.model_copy(update={"keys_file": keys.path}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):

        async def submit(key: str) -> httpx.Response:
            return await client.post("/v1/samples", json=body, headers={"Authorization": f"Bearer {key}"})

        assert [(await submit(limited)).status_code for _ in range(2)] == [202, 202]
        refused = await submit(limited)
        assert words in problem(refused, 429, code).detail
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert (await submit(free)).status_code == 202
        for key, expected in ((limited, code if code == "quota-exceeded" else None), (free, None)):
            asked = await client.post("/v1/estimates", json=body, headers={"Authorization": f"Bearer {key}"})
            assert (asked.json()["refusal"] or {}).get("code") == expected


async def test_a_flood_of_one_caller_does_not_hold_up_another(queue: Queue, settings: Settings, keys: Keys) -> None:
    """A hundred jobs of one, then one of another: it is among the first that are claimed."""
    secrets = [keys.add(Caller(name=name)) for name in ("flood", "few")]
    await queue.announce(worker_state(facts(), evaluations_per_second=10.0))
    app = create_app(settings.model_copy(update={"keys_file": keys.path}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        for key, count in zip(secrets, (100, 1), strict=True):
            for _ in range(count):
                last = await client.post("/v1/samples", json=GOOD, headers={"Authorization": f"Bearer {key}"})
        job = last.json()
    assert job["queue_position"] < 30
    claimed = [await eventually(lambda: next_batch(queue)) for _ in range(8)]
    assert any(job["id"] in batch.requests for batch in claimed)


def test_keys_are_made_listed_and_revoked_by_command(tmp_path: Path) -> None:
    file = ["--file", str(tmp_path / "keys.json")]

    def run(*arguments: str, status: int = 0) -> str:
        done = CliRunner().invoke(commands, ["keys", *arguments, *file])
        assert done.exit_code == status, done.output
        return done.output

    key = run("add", "alice", "--per-minute", "60").strip()
    run("add", "ops", "--admin")
    assert Keys(tmp_path / "keys.json").caller(key)
    listed = run("list")
    assert re.search(r"alice .* 60 ", listed)
    assert re.search(r"ops .* yes ", listed)
    assert key not in listed
    assert "revoked alice" in run("revoke", "alice")
    assert "alice has no key" in run("revoke", "alice", status=2)
    assert "must be 1 to 64 letters" in run("add", "a b", status=2)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PFGMPP_HOST": "0.0.0.0"}, "there are no keys"),
        (
            {"PFGMPP_HOST": "0.0.0.0", "PFGMPP_KEY_FILE": "k"},
            "there is no setting PFGMPP_KEY_FILE; is PFGMPP_KEYS_FILE",
        ),
        ({"PFGMPP_KEYS_FILE": "none.json"}, "none.json: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "api"])
def test_strangers_are_not_served_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, environment: dict[str, str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in ({"REDIS_URL": "redis://nowhere"} | environment).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(commands, [command])
    assert done.exit_code == 2
    assert reason in done.output


async def test_a_request_names_one_host(client: httpx.AsyncClient) -> None:
    response = await client.get("/livez", headers=[("Host", "localhost"), ("Host", "evil.example")])
    problem(response, 421, "unknown-host")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "10.1.2.3", "a.localhost"]
)
async def test_a_local_service_answers_to_names_of_its_machine(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/livez", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "", "[", "a:b"]
)
async def test_a_local_service_answers_to_no_other_name(client: httpx.AsyncClient, host: str) -> None:
    """As a page would have it whose own name was made to stand for this machine."""
    refused = await client.get("/v1/jobs", headers={"Host": host, "Origin": f"http://{host}"})
    assert "PFGMPP_ALLOW_ANYONE" in problem(refused, 421, "unknown-host").detail


async def test_names_are_of_no_account_where_anyone_may_ask(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"allow_anyone": True}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gpu-7") as near,
    ):
        assert (await near.get("/livez")).status_code == 200
        problem(await near.post("/v1/samples", json=GOOD, headers={"Origin": "http://gpu-8"}), 403, "cross-site")


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://localhost"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://localhost:9999"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
    ],
    ids=str,
)
async def test_pages_of_other_sites_change_nothing(
    client: httpx.AsyncClient, headers: dict[str, str], is_ours: bool
) -> None:
    for path in ("/v1/models/digits/2048/unload", "/v1/samples"):
        response = await client.post(path, json=GOOD, headers=headers)
        assert (response.status_code == 202) is is_ours or response.json()["code"] == "no-worker"
        if not is_ours:
            problem(response, 403, "cross-site")
    assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_a_key_that_is_not_known_is_told_from_none(guarded: dict[str, httpx.AsyncClient]) -> None:
    nobody = guarded["nobody"]
    assert "a key is needed" in problem(await nobody.get("/v1/models"), 401, "unauthorized").detail
    wrong = await nobody.get("/v1/models", headers={"Authorization": "Bearer pfgmpp_wrong"})
    assert "not known" in problem(wrong, 401, "unauthorized").detail
