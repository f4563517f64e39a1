"""A trace from the client's request to the network calls for its images, as a collector receives it."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.running import Service, running, until
from bench.stores import exact_checkpoint
from service.embedded import die_with_parent
from service.settings import trace_exporter
from service.tracing import MOST_CALLS, Calls, NetworkCall

POINTS = {"dataset": "points", "D": 2}
CLIENT_SPAN = "00f067aa0ba902b7"


class Received(NamedTuple):
    """A span as it came in."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    status: int
    about: dict[str, object]


class Collector:
    """Takes spans by OTLP over HTTP, as any collector does."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Received] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _plain(resource.resource.attributes)["service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                times = (span.start_time_unix_nano, span.end_time_unix_nano)
                received = Received(str(service), span.name, *ids, *times, span.status.code, _plain(span.attributes))
                self.spans.append(received)

    def named(self, trace: str, name: str) -> list[Received]:
        """The spans of a trace of one name, in order."""
        return sorted((s for s in self.spans if (s.trace, s.name) == (trace, name)), key=lambda span: span.start)


def _plain(attributes: object) -> dict[str, object]:
    """Attributes as Python has them."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    Thread(target=collector.server.serve_forever, daemon=True).start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def service(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    store = exact_checkpoint(tmp_path_factory.mktemp("points"), 2.0).parent
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            service = stack.enter_context(running(model_store=store))
        yield service


def submit(service: Service, traceparent: str | None = None, **fields: object) -> str:
    """The id of a job that has ended."""
    headers = {"traceparent": traceparent} if traceparent else {}
    response = service.client.post("/v1/samples", json=POINTS | fields, headers=headers)
    assert response.status_code == httpx.codes.ACCEPTED, response.text
    return str(service.ended(response.json()["id"])["id"])


def test_a_trace_goes_from_the_request_to_the_network_calls(service: Service, collector: Collector) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    job = submit(service, f"00-{trace}-{CLIENT_SPAN}-01", count=3, steps=4)
    names = ("POST /v1/samples", "queue", "batch_wait", "sampling", "encoding")  # the first is sent by the API
    until(lambda: all(collector.named(trace, name) for name in names))
    [request], [queue], [batch_wait], [sampling], [encoding] = (collector.named(trace, name) for name in names)
    evaluations = collector.named(trace, "evaluation")
    assert (request.service, request.parent, request.about["http.response.status_code"]) == (
        "pfgmpp-api",
        CLIENT_SPAN,
        202,
    )
    stages = [queue, batch_wait, sampling, encoding]
    assert {span.parent for span in stages} == {request.id}
    assert {span.parent for span in evaluations} == {sampling.id}
    assert {span.service for span in (*stages, *evaluations)} == {"pfgmpp-worker"}
    assert len(evaluations) == 7
    assert {span.about["pfgmpp.job"] for span in (request, *stages)} == {job}
    assert {"pfgmpp.model": "points-d2", "pfgmpp.images": 3, "pfgmpp.evaluations": 7}.items() <= sampling.about.items()
    assert all(sampling.start <= span.start < span.end <= sampling.end for span in evaluations)
    assert all(before.start < after.start for before, after in pairwise(stages))
    # Redis keeps the time of the first three, and the worker that of the others; here it is one clock.
    assert queue.end == batch_wait.start
    assert abs(batch_wait.end - sampling.start) < 5e9
    assert sampling.end == encoding.start
    assert service.events("job accepted", job=job, trace=trace)


def test_clients_decide_whether_they_are_traced_and_others_have_traces_of_their_own(
    service: Service, collector: Collector
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    submit(service, f"00-{trace}-{CLIENT_SPAN}-00")
    job = submit(service, "nonsense")

    def roots() -> list[Received]:
        spans = list(collector.spans)
        return [s for s in spans if s.about.get("pfgmpp.job") == job and s.name == "POST /v1/samples"]

    [root] = until(roots)
    assert root.parent == ""
    until(lambda: collector.named(root.trace, "encoding"))
    assert not [span for span in collector.spans if span.trace == trace]


def test_refusals_are_traced_and_questions_are_not(service: Service, collector: Collector) -> None:
    trace = "1af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-{CLIENT_SPAN}-01"}
    assert service.client.get("/v1/models", headers=headers).status_code == httpx.codes.OK
    assert service.client.post("/v1/samples", json={}, headers=headers).status_code == 422
    until(lambda: collector.named(trace, "POST /v1/samples"))
    assert [span.about["http.response.status_code"] for span in collector.spans if span.trace == trace] == [422]


def test_a_job_that_fails_says_why_in_its_trace(service: Service, collector: Collector) -> None:
    """Its result cannot be stored, three times."""
    trace = "2af7651916cd43dd8448eb211c80319c"
    results = service.folder / "results" / "main"
    until(results.exists)
    results.rename(results.with_name("away"))
    results.touch()
    try:
        submit(service, f"00-{trace}-{CLIENT_SPAN}-01")
    finally:
        results.unlink()
        results.with_name("away").rename(results)
    failed = until(lambda: spans if len(spans := collector.named(trace, "sampling")) == 3 else None)
    assert {span.status for span in failed} == {2}


def test_a_process_whose_collector_is_away_serves_and_stops(redis_url: str, tmp_path: Path) -> None:
    environment = {
        **os.environ, "REDIS_URL": redis_url, "PFGMPP_DATA_DIR": str(tmp_path), "PFGMPP_LOG_FORMAT": "json",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50",
    }  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as door, (tmp_path / "log").open("w") as log:
        api = subprocess.Popen(
            [sys.executable, "-m", "service", "api", "--fd", str(door.fileno())],
            env=environment,
            stderr=log,
            pass_fds=[door.fileno()],
            preexec_fn=die_with_parent(),  # noqa: PLW1509
        )
        with api, httpx.Client(base_url=f"http://127.0.0.1:{door.getsockname()[1]}") as client:
            until(lambda: client.post("/v1/samples", json={}).status_code == 422)
            api.terminate()
            api.wait(10)
    lines = (tmp_path / "log").read_text().splitlines()
    assert all(json.loads(line)["level"] in {"warning", "error"} and "Traceback" not in line for line in lines), lines


def test_calls_are_thinned_evenly() -> None:
    calls = Calls("")
    for k in range(1000):
        calls.note(NetworkCall(float(k), k + 1.0, 1))
    assert calls.number == 1000
    assert MOST_CALLS / 2 <= len(calls.kept) <= MOST_CALLS
    steps = {after.began - before.began for before, after in pairwise(calls.kept)}
    assert steps == {float(calls.every)}
    assert calls.kept[-1].began > 1000 - 2 * calls.every


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_standard_variables_turn_it_on(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert trace_exporter() == expected


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "jaeger"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_what_there_is_not_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}={value}: must be"):
        trace_exporter()


def test_without_being_asked_for_none_of_it_is_imported() -> None:
    """But for what redis-py imports by itself where it finds it."""
    code = """
import sys
from service.api import create_app
from service.settings import Settings
app = create_app(Settings(redis_url="redis://unused"))
assert not {"opentelemetry.sdk.trace", "opentelemetry.exporter"} & sys.modules.keys()
assert "Traced" not in [each.cls.__name__ for each in app.user_middleware]
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
