"""Does anything a client may send break the service? `python -m tests.fuzz`, against a service that it starts.

First schemathesis: thousands of requests made from the OpenAPI document, every answer checked against it. Then raw
sockets: half requests, slow bodies, headers that are none, connections that say nothing. The tests do less of both.
"""

import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import typer

from bench.running import Service, running
from bench.stores import exact_checkpoint
from service.connection import HEAD_SECONDS, MOST_HEAD_BYTES, allow_many, most_connections
from service.wire import BODY_SECONDS

CONFIG = """
[checks.positive_data_acceptance]
# What fits the schema may still not fit the model, or what else is asked for.
expected-statuses = ["2xx", 304, 400, 401, 403, 404, 409, 410, 422, 429, 503]
"""

OFFERED = {"dataset": "points", "D": 2}
MODEL = "points-d2"
"""What the service has, and its name."""

PLAIN = {
    **{name: {"enum": [value]} for name, value in OFFERED.items()},
    "steps": {"type": "integer", "minimum": 2, "maximum": 8},
    "count": {"type": "integer", "minimum": 1, "maximum": 4},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 5},
    "trajectory": {"type": "boolean"},
    "scale": {"type": "integer", "minimum": 1, "maximum": 16},
    "priority": {"type": "integer", "minimum": 0, "maximum": 9},
}
"""Fields of a request that is accepted."""

SAMPLING = {name: PLAIN[name] for name in ("steps", "trajectory", "priority")}
FEW = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**40}, "minItems": 2, "maxItems": 2}
SHIMS = {
    "ImagesRequest": {
        **{name: {"enum": [value]} for name, value in {"model": MODEL, "prompt": "any"}.items()},
        **SAMPLING,
        "n": PLAIN["count"],
        "seed": PLAIN["seed"],
        "size": {"enum": ["auto"]},
        "response_format": {"enum": ["b64_json", "url"]},
    },
    "InputTensor": {
        **{name: {"enum": [value]} for name, value in {"name": "seed", "shape": [2], "datatype": "INT64"}.items()},
        "data": FEW,
    },
    "InferParameters": {**SAMPLING, "binary_data_output": {"type": "boolean"}},
    "InferRequest": {
        "id": {"type": "string"},
        "inputs": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/InputTensor"},
            "minItems": 1,
            "maxItems": 1,
        },
        "parameters": {"$ref": "#/components/schemas/InferParameters"},
    },
}
"""The same in the words of other protocols."""

REQUIRED = {"ImagesRequest": ["model", "prompt"], "InputTensor": ["name", "shape", "datatype", "data"]}

ALIVE_SECONDS = 5.0
"""Within which the service must answer, whatever else is sent to it."""

SLACK_SECONDS = 10.0
"""That a limit in time may be late."""

BAD_HEADS = {
    "no HTTP": b"hello\r\n\r\n",
    "an unknown version": b"GET /livez HTTP/9.9\r\nHost: [::1]\r\n\r\n",
    "a space in the path": b"GET /live z HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "a null byte in a header": b"GET /livez HTTP/1.1\r\nHost: a\0b\r\n\r\n",
    "a header without a name": b"GET /livez HTTP/1.1\r\n: a\r\n\r\n",
    "a negative length": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Length: -1\r\n\r\n",
    "two lengths": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length beside chunks": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is none": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
    "a length of many digits": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
    b"Content-Length: " + b"9" * 400 + b"\r\n\r\n",
    "a body that is larger than may be": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\n"
    b"Content-Type: application/json\r\nContent-Length: 999999999\r\n\r\n",
    "a key that is no text": b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
    b"Idempotency-Key: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    "a path that is no text": b"GET /v1/jobs/%ff%00%2e%2e%2f HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "a way up": b"GET /v1/jobs/../../etc/passwd HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "a socket of the web": b"GET /livez HTTP/1.1\r\nHost: [::1]\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
}
"""Each must be answered with what is no error of the service, or with the end of the connection."""

SLOW_BODY = (
    b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)
WAITING = b"GET /v1/jobs?wait=60 HTTP/1.1\r\nHost: [::1]\r\n\r\n"


class Fuzzed(NamedTuple):
    """What schemathesis says."""

    cases: int
    said: str
    is_clean: bool


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document of requests that are accepted, so that what lies behind them is reached."""
    schemas = document["components"]["schemas"]
    schemas["SampleRequest"] |= {"properties": PLAIN, "required": list(OFFERED)}
    for name, properties in SHIMS.items():
        schemas[name]["properties"] = properties
        schemas[name]["required"] = REQUIRED.get(name, schemas[name].get("required", []))
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                if path.startswith("/v1/models/") and parameter["name"] in OFFERED:
                    parameter["schema"] = {"enum": [str(OFFERED[parameter["name"]])]}
                if parameter["name"] == "model_name":
                    parameter["schema"] = {"enum": [MODEL]}
    return document


def fuzz_by_schema(service: Service, phases: str, examples: int, is_narrow: bool, seed: int = 1) -> Fuzzed:
    """Requests made from the served document, so many of each operation or sequence, every answer checked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document = service.client.get("/openapi.json").json()
        (folder / "openapi.json").write_text(json.dumps(narrowed(document) if is_narrow else document))
        (folder / "schemathesis.toml").write_text(CONFIG)
        options = {"phases": phases, "checks": "all", "max-examples": examples, "seed": seed}
        options |= {"mode": "positive"} if is_narrow else {}
        command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", "schemathesis.toml", "run"]
        command += ["openapi.json", "--url", service.url, "--continue-on-failure", "--no-color"]
        command += [f"--{option}={value}" for option, value in options.items()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    counted = re.search(r"([\d,]+) generated", done.stdout)
    return Fuzzed(int(counted[1].replace(",", "")) if counted else 0, done.stdout + done.stderr, done.returncode == 0)


class Target:
    """The service as raw sockets see it."""

    def __init__(self, service: Service):
        self.service = service
        self.address = (httpx.URL(service.url).host, httpx.URL(service.url).port)

    def connected(self, seconds: float = ALIVE_SECONDS) -> socket.socket:
        """A connection, on which nothing takes longer than so many seconds."""
        return socket.create_connection(self.address, seconds)

    def answer(self, sent: bytes, seconds: float = ALIVE_SECONDS) -> bytes:
        """The beginning of what comes back; nothing if the connection ends."""
        with closing(self.connected(seconds)) as connection, suppress(ConnectionError):
            connection.sendall(sent)
            return connection.recv(4096)
        return b""

    @contextmanager
    def open(self, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
        """So many connections on which no more than that is sent."""
        connections = [self.connected() for _ in range(count)]
        try:
            for each in connections:
                each.sendall(sent)
            yield connections
        finally:
            for each in connections:
                each.close()

    def complaints(self, what: str) -> list[str]:
        """Why it does not serve as if nothing were; none if it does."""
        began = time.monotonic()
        try:
            self.service.client.get("/readyz", timeout=ALIVE_SECONDS).raise_for_status()
            job = self.service.submit(**OFFERED, steps=2)
            if self.service.ended(job["id"])["status"] == "succeeded" and time.monotonic() - began < 2 * ALIVE_SECONDS:
                return []
            return [f"{what}: a job took {time.monotonic() - began:.1f} s"]
        except (httpx.HTTPError, AssertionError) as error:
            return [f"{what}: {error!r}"]


def fuzz_by_sockets(service: Service, count: int, is_thorough: bool, say: Callable[[str], object]) -> list[str]:
    """What is wrong after all that sockets do, `count` at once at most; only the thorough wait for limits in time."""
    allow_many()
    target, found = Target(service), list[str]()
    for act in (_bad_heads, _noise, _endless_head, _vanished):
        found += act(target)
        say(f"{act.__name__.strip('_').replace('_', ' ')}: done")
    count = min(count, most_connections())
    with target.open(count) as silent:
        found += target.complaints(f"{count} silent connections")
        say(f"{count:,} silent connections: served")
        found += _all_closed("silent connections", silent, HEAD_SECONDS + SLACK_SECONDS) if is_thorough else []
    with target.open(count // 10, b"GET /livez HTTP/1.1\r\nHo") as half:
        found += target.complaints("half heads")
        say(f"{len(half):,} half heads: served")
        found += _all_closed("half heads", half, HEAD_SECONDS + SLACK_SECONDS) if is_thorough else []
    with target.open(count // 10, SLOW_BODY) as slow:
        found += target.complaints("slow bodies")
        say(f"{len(slow):,} bodies that do not come: served")
        found += _all_closed("slow bodies", slow, BODY_SECONDS + SLACK_SECONDS) if is_thorough else []
    return found + target.complaints("afterwards") + _bugs(service)


def _bad_heads(target: Target) -> list[str]:
    """Heads that are none: each must be refused, or the connection ended."""
    found = []
    for name, head in BAD_HEADS.items():
        status = target.answer(head).partition(b"\r\n")[0]
        if status and not re.fullmatch(rb"HTTP/1\.1 [24]\d\d .*", status):
            found.append(f"{name}: {status!r}")
    return found + target.complaints("bad heads")


def _noise(target: Target, count: int = 200) -> list[str]:
    """Bytes drawn at random, some of them behind a good beginning."""
    rng = random.Random(1)
    for k in range(count):
        good = b"POST /v1/samples HTTP/1.1\r\nHost: [::1]\r\n"[: rng.randrange(40)] if k % 2 else b""
        with closing(target.connected()) as connection, suppress(ConnectionError):
            connection.sendall(good + rng.randbytes(rng.randrange(1, 2000)))
    return target.complaints("noise")


def _endless_head(target: Target) -> list[str]:
    """Headers without an end: the connection must be."""
    line, sent = b"X-Filler: " + b"a" * 1000 + b"\r\n", 0
    with closing(target.connected()) as connection, suppress(ConnectionError):
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        while sent < 1000 * MOST_HEAD_BYTES:
            connection.sendall(line)
            sent += len(line)
        return [f"a head of {sent:,} bytes was not refused"]
    return target.complaints("an endless head")


def _vanished(target: Target, count: int = 200) -> list[str]:
    """Clients that ask, and reset the connection before the answer."""
    for k in range(count):
        with closing(target.connected()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(WAITING if k % 2 else SLOW_BODY)
    return target.complaints("clients that vanish")


def _all_closed(what: str, connections: list[socket.socket], seconds: float) -> list[str]:
    """Complain unless the service ends all of them within so many seconds."""
    deadline, left = time.monotonic() + seconds, 0
    for each in connections:
        each.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            with suppress(ConnectionError):
                while each.recv(4096):
                    pass
        except TimeoutError:
            left += 1
    return [f"{left} {what} were still open after {seconds:g} s"] if left else []


def _bugs(service: Service) -> list[str]:
    """Errors that the service itself noticed."""
    codes = re.findall(
        r'http_request_duration_seconds_count\{.*code="(500)".*\} (\S+)', service.client.get("/metrics").text
    )
    traces = [line for line in service.log.read_text().splitlines() if "Traceback" in line]
    again = [each["child"] for each in service.events("child started")]
    return [
        *([f"answers with 500: {codes}"] if codes else []),
        *(f"logged: {line[:2000]}" for line in traces),
        *([f"started anew: {again}"] if len(again) != len(set(again)) else []),
    ]


def run(examples: int, sequences: int, count: int, is_thorough: bool, say: Callable[[str], object]) -> list[str]:
    """Complaints about a service of its own after all of it."""
    with tempfile.TemporaryDirectory() as store:
        exact_checkpoint(Path(store), 2.0)
        with running(model_store=store, max_count=16, compile=False) as service:
            cases, found = 0, list[str]()
            for phases, number, is_narrow in (
                ("examples,coverage,fuzzing" if is_thorough else "examples,fuzzing", examples, False),
                ("fuzzing", examples, True),
                ("stateful", sequences, True),
            ):
                fuzzed = fuzz_by_schema(service, phases, number, is_narrow)
                cases += fuzzed.cases
                found += [] if fuzzed.is_clean else [fuzzed.said]
                say(f"{phases}{' of accepted requests' * is_narrow}: {fuzzed.cases:,} cases")
            say(f"{cases:,} cases from the OpenAPI document")
            return found + fuzz_by_sockets(service, count, is_thorough, say)


def main(
    examples: Annotated[int, typer.Option(help="Requests drawn for each operation.", min=1)] = 150,
    sequences: Annotated[int, typer.Option(help="Sequences of requests.", min=1)] = 150,
    count: Annotated[int, typer.Option(help="Connections at once.", min=10)] = 10_000,
) -> None:
    """Send all of it, and print what is wrong."""
    found = run(examples, sequences, count, is_thorough=True, say=typer.echo)
    for each in found:
        typer.echo(each, err=True)
    typer.echo("nothing is wrong" if not found else f"{len(found)} things are wrong")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    typer.run(main)
