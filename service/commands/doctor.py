"""The command `pfgmpp doctor`: what is wrong with a service, as seen from here, and what to do about it."""

import json
import os
import platform
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service import DEFAULT_SERVER
from service.commands.terminal import EXIT_FAILED, print_json

if TYPE_CHECKING:
    from service.catalogue import WorkerState
    from service.queue import Queue
    from service.settings import Settings

PACKAGES = ("torch", "numpy", "fastapi", "uvicorn", "pydantic", "redis", "httpx", "safetensors", "obstore")
"""Whose versions matter; those that belong to an extra may be missing."""

LEAST_REDIS, LEAST_VALKEY = (7, 0), (7, 2)

MOST_SKEW_SECONDS = 1.0
"""Between the clocks of two machines: beyond it the stages of a job's latency no longer make sense."""

LEAST_FREE_BYTES = 2**30

API_SECONDS = 5.0

MOST_HEADER_BYTES = 100_000_000
"""What the format of safetensors allows."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    level: Literal["ok", "warn", "FAIL"]
    about: str
    found: str
    advice: str = ""
    """What to do."""


def doctor(
    server: Annotated[str, typer.Option(envvar="PFGMPP_SERVER", help="The service whose API to ask.")] = DEFAULT_SERVER,
    key: Annotated[
        str | None, typer.Option(envvar="PFGMPP_KEY", help="An API key, where one is needed.", show_default=False)
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON and nothing else.")] = False,
) -> None:
    """Find out what is wrong, and what to do about it.

    Looks at settings, keys, Redis, workers, stores, versions and the API. Run it where `pfgmpp serve`, `api` or
    `worker` runs, with the same variables and in the same directory. The status is 1 if something failed.

    \b
    Example:
      pfgmpp doctor
    """
    import asyncio

    async def examine() -> list[Finding]:
        findings = list[Finding]()
        async for finding in _findings(server, key):
            findings.append(finding)
            if not is_json:
                _show(finding)
        return findings

    findings = asyncio.run(examine())
    failed = sum(finding.level == "FAIL" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    if is_json:
        print_json({"is_healthy": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        words = [f"{failed} failed"] * bool(failed) + [f"{warned} to look at"] * bool(warned)
        typer.echo(f"\n{', '.join(words) or 'all is well'}")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _show(finding: Finding) -> None:
    colour = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "FAIL": typer.colors.RED}[finding.level]
    line = f"{typer.style(f'{finding.level:<4}', fg=colour)}  {finding.about}: {finding.found}"
    typer.echo(line, color=False if "NO_COLOR" in os.environ else None)
    if finding.advice:
        typer.echo(f"      -> {finding.advice}")


async def _findings(server: str, key: str | None) -> AsyncIterator[Finding]:
    """Everything that is looked at, in the order in which things depend on each other."""
    from pydantic import ValidationError

    from service.settings import Settings, faults

    for finding in _versions():
        yield finding
    for variable, meant in Settings.unknown_variables():
        advice = f"is {meant} meant? Otherwise unset it" if meant else "unset it, or see the list in docs/settings.md"
        yield Finding("warn", "settings", f"there is no setting {variable}", advice)
    works = False
    try:
        settings = Settings()
    except ValidationError as error:
        for wrong in faults(error):
            yield Finding("FAIL", "settings", wrong, "mend the variable PFGMPP_<NAME> (or REDIS_URL) of that name")
    else:
        yield Finding("ok", "settings", "all can be read")
        async for finding in _parts(settings):
            works = works or (finding.about, finding.level) == ("workers", "ok")
            yield finding
    async for finding in _api(server, key, works):
        yield finding


async def _parts(settings: "Settings") -> AsyncIterator[Finding]:
    """What the settings name."""
    for finding in _keys(settings):
        yield finding
    async for finding in _queue(settings):
        yield finding
    for finding in (*_results(settings), *_models(settings)):
        yield finding


def _versions() -> Iterator[Finding]:
    """What is installed here."""
    from service import __version__

    installed = list[str]()
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed.append(f"{package} {version(package)}")
    yield Finding("ok", "versions", f"pfgmpp {__version__}, Python {platform.python_version()}, {', '.join(installed)}")


def _keys(settings: "Settings") -> Iterator[Finding]:
    """Who is let in."""
    from service.access import AccessError, Keys, is_loopback

    if settings.keys_file:
        try:
            known = Keys(settings.keys_file).read()
        except AccessError as error:
            yield Finding("FAIL", "keys", str(error), "make a key: pfgmpp keys add NAME --file FILE")
            return
        yield Finding("ok" if known else "warn", "keys", f"{len(known)} in {settings.keys_file}")
    elif not is_loopback(settings.host) and settings.allow_anyone:
        yield Finding(
            "warn", "keys", f"anyone who reaches {settings.host} is let in", "set PFGMPP_KEYS_FILE unless that is meant"
        )


async def _queue(settings: "Settings") -> AsyncIterator[Finding]:
    """Redis, and the workers that it knows."""
    from redis.exceptions import RedisError

    from service.embedded import find_socket
    from service.queue import Queue

    socket = None if settings.redis_url else find_socket(settings.data_dir)
    if not settings.redis_url and socket is None:
        yield Finding(
            "warn",
            "redis",
            f"REDIS_URL is not set, and no `pfgmpp serve` uses {settings.data_dir.resolve()}",
            "start `pfgmpp serve`, or run this where it runs; to look at a service elsewhere, see the API below",
        )
        return
    try:
        queue = Queue.open(settings.model_copy(update={"redis_url": settings.redis_url or f"unix://{socket}"}))
    except ValueError as error:
        yield Finding("FAIL", "redis", str(error), "mend REDIS_URL")
        return
    where = "REDIS_URL" if settings.redis_url else str(socket)
    try:
        async for finding in _redis(queue, where):
            yield finding
        for finding in _workers((await queue.catalogue()).workers):
            yield finding
    except (RedisError, OSError, UnicodeError) as error:
        yield Finding("FAIL", "redis", f"{where} does not answer ({error})", "start it, or mend REDIS_URL")
    finally:
        await queue.close()


async def _redis(queue: "Queue", where: str) -> AsyncIterator[Finding]:
    """The server: its version, how it is set up, its memory and its clock."""
    from redis.exceptions import ResponseError

    from service.messages import UnfitServer

    began = time.time()
    seconds, microseconds = await queue.redis.time()
    took, here = time.time() - began, time.time()
    about: Any = await queue.redis.info("server")
    valkey = about.get("valkey_version")
    name, number = ("Valkey", valkey) if valkey else ("Redis", str(about.get("redis_version", "0")))
    least = LEAST_VALKEY if valkey else LEAST_REDIS
    is_new = tuple(int(part) for part in str(number).split(".")[:2] if part.isdecimal()) >= least
    advice = "" if is_new else f"take Redis {LEAST_REDIS[0]} or Valkey {'.'.join(map(str, LEAST_VALKEY))}, or newer"
    yield Finding("ok" if is_new else "FAIL", "redis", f"{name} {number} at {where}, {1000 * took:.1f} ms away", advice)
    try:
        for shortcoming in await queue.shortcomings():
            yield Finding("warn", "redis", shortcoming, "set it in Redis's configuration, and by CONFIG SET for now")
    except UnfitServer as error:
        yield Finding("FAIL", "redis", str(error), "CONFIG SET maxmemory-policy noeviction")
    with suppress(ResponseError):
        persistence: Any = await queue.redis.info("persistence")
        if "err" in {persistence.get("aof_last_write_status"), persistence.get("rdb_last_bgsave_status")}:
            found = "it takes nothing new, for it could not write to its disk"
            yield Finding("FAIL", "redis", found, "make room where it keeps its files; it goes on by itself")
        memory: Any = await queue.redis.info("memory")
        used, most = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
        if most and used > 0.9 * most:
            found = f"{used / 2**20:,.0f} MiB of {most / 2**20:,.0f} MiB are used; new jobs are refused when it is full"
            yield Finding("warn", "redis", found, "raise maxmemory, or lower PFGMPP_RETENTION_SECONDS")
    skew = int(seconds) + int(microseconds) / 1e6 - here
    if abs(skew) > MOST_SKEW_SECONDS + took:
        found = f"that of Redis is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the one here"
        yield Finding("warn", "clock", found, "let both machines keep time (chrony, systemd-timesyncd)")


def _workers(workers: "tuple[WorkerState, ...]") -> Iterator[Finding]:
    """Who computes, and whether they agree on what."""
    from service import __version__

    alive = [worker for worker in workers if worker.state != "lost"]
    if not alive:
        yield Finding("FAIL", "workers", "none lives", "start `pfgmpp worker` (or `pfgmpp serve`), and read its log")
    checkpoints = dict[str, dict[str, list[str]]]()
    for worker in workers:
        models = ", ".join(model.name for model in worker.models) or "no models"
        is_bad = worker.state == "lost" or not worker.models
        advice = "read its log: it has died, or found no checkpoint" if is_bad else ""
        found = f"{worker.name} is {worker.state}, on {worker.device}, with {models}"
        yield Finding("warn" if is_bad else "ok", "workers", found, advice)
        if worker.version not in {"", __version__}:
            found = f"{worker.name} runs version {worker.version}, here is {__version__}"
            yield Finding("warn", "versions", found, "bring all hosts to one version")
        for model in worker.models:
            checkpoints.setdefault(model.name, {}).setdefault(model.checkpoint_sha256, []).append(worker.name)
    for model_name, holders in checkpoints.items():
        if len(holders) > 1:
            shown = "; ".join(f"{sha256[:12]} on {', '.join(names)}" for sha256, names in holders.items())
            advice = "give all workers the same file, so that a request makes the same image everywhere"
            yield Finding("warn", "models", f"workers hold different checkpoints of {model_name}: {shown}", advice)


def _results(settings: "Settings") -> Iterator[Finding]:
    """The result store: whether a file can be written there, listed, read and erased."""
    from service.queue import new_id
    from service.store import LocalStore, open_store

    about, where = "results", settings.results_url or str((settings.results_dir / settings.queue).resolve())
    advice = "let this user write there, or set PFGMPP_RESULTS_DIR or PFGMPP_RESULTS_URL"
    try:
        store = open_store(settings)
        if isinstance(store, LocalStore) and not store.root.is_dir():
            yield Finding(
                "warn", about, f"{where} is not there yet", "the first worker makes it; is it the right place?"
            )
            return
        store.prepare()
        probe = new_id()
        try:
            store.write(probe, "probe", b"doctor")
            is_kept = "probe" in store.names(probe) and store.read(probe, "probe") == b"doctor"
        finally:
            store.remove([probe])
    except ModuleNotFoundError as error:
        yield Finding("FAIL", about, f"{where} needs {error.name}", "pip install -c constraints.txt '.[s3]'")
        return
    except (OSError, ValueError) as error:
        yield Finding("FAIL", about, f"{where} cannot be used ({error})", advice)
        return
    if not is_kept:
        yield Finding("FAIL", about, f"{where} does not hold what was just written", advice)
        return
    yield Finding("ok", about, f"{where} can be written, listed, read and erased")
    if isinstance(store, LocalStore) and (free := shutil.disk_usage(store.root).free) < LEAST_FREE_BYTES:
        found = f"{free / 2**20:,.0f} MiB are free on the disk of {where}"
        yield Finding("warn", about, found, "make room, or lower PFGMPP_RETENTION_SECONDS")


def _models(settings: "Settings") -> Iterator[Finding]:
    """The model store: whether each file is a checkpoint, by its header."""
    about, folder = "models", settings.model_store or _shipped()
    advice = "set PFGMPP_MODEL_STORE to a folder of .safetensors files that this user can read"
    if folder is None or not folder.is_dir():
        yield Finding("FAIL", about, f"there is no folder {folder or 'of shipped models'}", advice)
        return
    files = sorted(folder.glob("*.safetensors"))
    good = 0
    for file in files:
        try:
            name = _model_in(file)
        except (OSError, ValueError) as error:
            yield Finding(
                "FAIL", about, f"{file}: is no checkpoint ({error})", "take it out of the folder, or copy it anew"
            )
        else:
            good += bool(name)
    if good:
        yield Finding("ok", about, f"{good} checkpoints in {folder}")
    elif not files:
        yield Finding("FAIL", about, f"{folder} holds no .safetensors file", advice)


def _shipped() -> Path | None:
    """The models that come with the package, without importing any of it."""
    package = find_spec("models")
    places = package.submodule_search_locations if package else None
    return Path(next(iter(places))) / "checkpoints" if places else None


def _model_in(file: Path) -> str:
    """The name that a checkpoint gives itself in its header. Raises ValueError when it is none, OSError."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 2 <= length <= MOST_HEADER_BYTES:
            raise ValueError("it has no header of safetensors")
        header = json.loads(content.read(length))
    card = header.get("__metadata__", {}).get("pfgmpp") if isinstance(header, dict) else None
    if card is None:
        raise ValueError("its metadata hold no model of PFGM++ Serve")
    return str(json.loads(card).get("dataset", file.stem))


async def _api(server: str, key: str | None, works: bool) -> AsyncIterator[Finding]:
    """The API, as a client sees it; where workers live there should be one."""
    import httpx

    from service import __version__

    headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
    try:
        async with httpx.AsyncClient(base_url=server, headers=headers, timeout=API_SECONDS) as client:
            (await client.get("/livez")).raise_for_status()
            yield Finding("ok", "API", f"{server} answers")
            ready = await client.get("/readyz")
            if ready.is_success:
                yield Finding("ok", "API", "it is ready: requests are served")
            else:
                yield Finding(
                    "FAIL", "API", f"it is not ready: {_detail(ready)}", "see the findings above, and its log"
                )
            there = (await client.get("/openapi.json")).raise_for_status().json()["info"]["version"]
            if there != __version__:
                found = f"it is version {there}, here is {__version__}"
                yield Finding("warn", "versions", found, "bring both to one version")
            offered = await client.get("/v1/models")
            if offered.status_code in {401, 403}:
                advice = "set PFGMPP_KEY (or --key) to a key: pfgmpp keys add NAME --file FILE makes one"
                yield Finding("FAIL", "API", f"it does not let you in: {_detail(offered)}", advice)
            elif offered.is_success:
                names = ", ".join(model["name"] for model in offered.json())
                if names:
                    yield Finding("ok", "API", f"it offers {names}")
                else:
                    yield Finding("warn", "API", "it offers nothing", "see the workers above, and the models they have")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, KeyError, TypeError, ValueError) as error:
        if "://" not in server:
            advice = f"write http://{server}, in --server or PFGMPP_SERVER"
        elif works:
            advice = (
                "workers live, so it may have another port: name its URL with --server or PFGMPP_SERVER, such as "
                "http://127.0.0.1:8080 (it logged `ready` with it); else start `pfgmpp api`"
            )
        else:
            advice = "start `pfgmpp serve` (or `api`), or name another place with --server or PFGMPP_SERVER"
        yield Finding(
            "FAIL", "API", f"{server} does not answer as it should ({str(error) or type(error).__name__})", advice
        )


def _detail(answer: Any) -> str:
    """What a problem document says, or the status of an answer that is none."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
