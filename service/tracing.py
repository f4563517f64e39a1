"""OpenTelemetry traces, from a request to the network calls for its images; off unless OTEL_* variables ask for them.

    POST /v1/samples            the API; within the trace of the client's `traceparent`, if it sends one
        queue, batch_wait       of the job, told by the worker that ends it
        sampling                of the images that one worker has claimed of it
            evaluation ...      network calls that carried them
        encoding                until they are written and told to the queue

The trace travels with the job, through Redis. While tracing is off, nothing of it is imported here.
"""

import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.job import Job, JobError
from service.settings import trace_exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from service.inflight import Share

MOST_CALLS = 64
"""Network calls of a share that have spans."""

FLUSH_SECONDS = 2.0
"""How long an ending process tries to send what it has not sent."""

NANO = 1_000_000_000

_provider: "TracerProvider | None" = None
_request = ContextVar["Span | None"]("request", default=None)


class NetworkCall(NamedTuple):
    """A network call, in seconds of time.monotonic."""

    began: float
    ended: float
    images: int


@dataclass
class Calls:
    """The network calls of a share: all, or when they are many, every second, fourth, ... one."""

    traceparent: str
    kept: list[NetworkCall] = field(default_factory=list)
    number: int = 0
    every: int = 1

    def note(self, call: NetworkCall) -> None:
        """Keep a call if it is its turn."""
        if self.number % self.every == 0:
            self.kept.append(call)
        self.number += 1
        if len(self.kept) > MOST_CALLS:
            self.kept = self.kept[::2]
            self.every *= 2


def begin(process: str, instance: str) -> None:
    """Trace this process, if the environment asks for it.

    Raises ValueError for a variable that is wrong, ModuleNotFoundError without the packages of the extra `otel`.
    """
    global _provider  # noqa: PLW0603
    exporter = trace_exporter()
    if exporter is None or _provider:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    own = {"service.name": f"pfgmpp-{process}", "service.version": __version__, "service.instance.id": instance}
    resource = Resource(own).merge(OTELResourceDetector().detect())
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    sends = OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()
    _provider.add_span_processor(BatchSpanProcessor(sends))


def is_on() -> bool:
    """Whether this process is traced."""
    return _provider is not None


def end() -> None:
    """Send what has not been sent, for so long and no longer; for a thread."""
    global _provider
    provider, _provider = _provider, None
    if provider:
        # In a thread that ends with the process: the SDK would try for half a minute.
        sending = threading.Thread(target=provider.shutdown, daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)


def traceparent() -> str:
    """By which others join the trace of the request that is answered here; "" without one."""
    span = _request.get()
    if span is None:
        return ""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def note_job(job: Job) -> dict[str, str]:
    """Say in the span of a request which job it made; the id of the trace, for the log."""
    span = _request.get()
    if span is None:
        return {}
    span.set_attributes(_about(job.id, job.request["model"], job.count, job.evaluations))
    return {"trace": f"{span.get_span_context().trace_id:032x}"}


def calls_of(traceparent: str) -> Calls | None:
    """Where the network calls of a job are noted whose trace is kept; None for others."""
    return Calls(traceparent) if _provider and _is_kept(traceparent) else None


def trace_share(share: "Share", error: JobError | None = None) -> None:
    """Tell what became of a share, now that it is delivered or given up."""
    calls = share.calls
    if not calls or not _provider:
        return
    tracer, parent = _provider.get_tracer("pfgmpp", __version__), _parent(calls.traceparent)
    about = _about(share.job_id, share.batch.model, share.images, share.evaluations)
    about |= {"pfgmpp.batch": share.batch.id, "pfgmpp.batch_images": share.widest, "pfgmpp.calls": calls.number}
    about |= {"pfgmpp.arithmetic": share.arithmetic} if share.arithmetic else {}
    now, behind = time.monotonic(), time.time() - time.monotonic()
    sampled = share.sampled or now
    times = (behind + (share.started or sampled), behind + sampled)
    sampling = _span(tracer, "sampling", parent, *times, about, error)
    for call in calls.kept:
        own = {"pfgmpp.batch_images": call.images}
        _span(tracer, "evaluation", _within(sampling), behind + call.began, behind + call.ended, own)
    if share.sampled and not error:
        _span(tracer, "encoding", parent, behind + sampled, behind + now, {"pfgmpp.job": share.job_id})


def trace_wait(job: Job) -> None:
    """Tell for how long a job that has ended waited, by the record that the queue keeps of it."""
    traceparent, began = job.fields.get("traceparent", ""), job.fields.get("began_ms")
    if not _provider or not _is_kept(traceparent) or job.started_ms is None or began is None:
        return
    tracer, parent = _provider.get_tracer("pfgmpp", __version__), _parent(traceparent)
    about = {"pfgmpp.job": job.id}
    submitted, started, began_at = (ms / 1000 for ms in (job.submitted_ms, job.started_ms, float(began)))
    _span(tracer, "queue", parent, submitted, started, about)
    _span(tracer, "batch_wait", parent, started, began_at, about)


def _about(job_id: str, model: str, images: int, evaluations: int) -> dict[str, str | int]:
    return {
        "pfgmpp.job": job_id,
        "pfgmpp.model": model,
        "pfgmpp.images": images,
        "pfgmpp.evaluations": evaluations,
    }


def _is_kept(traceparent: str) -> bool:
    """Whether a trace is sampled, which is for whoever began it to decide."""
    return bool(int(traceparent[-2:] or "0", 16) & 1)


def _parent(traceparent: str) -> Any:
    """The context in which a `traceparent` puts spans."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _within(span: "Span") -> Any:
    """The context of the children of a span."""
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _span(
    tracer: "Tracer",
    name: str,
    context: Any,
    began: float,
    ended: float,
    about: Mapping[str, str | int],
    error: JobError | None = None,
) -> "Span":
    """A span of the past, between two moments of time.time."""
    from opentelemetry.trace import Status, StatusCode

    span = tracer.start_span(name, context, attributes=dict(about), start_time=int(began * NANO))
    if error:
        span.set_status(Status(StatusCode.ERROR, error.detail))
    span.end(int(ended * NANO))
    return span


class Traced:
    """A span for every POST, named by its route, in the trace of the client's `traceparent` if it sends one."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _provider or scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        sent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
        about = {"http.request.method": "POST", "url.path": scope["path"]}
        tracer, context = _provider.get_tracer("pfgmpp", __version__), _parent(sent.decode("latin-1"))
        span, status = tracer.start_span("POST", context, SpanKind.SERVER, about), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = _request.set(span)
        try:
            await self.app(scope, receive, watch)
        finally:
            _request.reset(token)
            if route := getattr(scope.get("route"), "path", None):
                span.update_name(f"POST {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            span.end()
