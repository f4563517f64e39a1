"""Logs: one designed line per event, to read in a terminal or to parse as JSON.

What happens to a job carries its id as `job`; what happens to several at once, theirs as `jobs`.
"""

import logging
import sys
import threading
from contextlib import suppress
from typing import Literal

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger


def get_logger() -> FilteringBoundLogger:
    """A logger of events; their details are keyword arguments."""
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


class _WriteWhatFits(structlog.WriteLogger):
    """Writes lines, and loses those for which there is no room: a full disk stops no job by its log."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure(process: str, log_format: Literal["text", "json"]) -> None:
    """Send the events of this process to standard error under its name, warnings of libraries and its own end included.

    As text, `03:12:45 [info] worker-1  job succeeded   images=64 seconds=2.1`; as JSON, one object per line, which
    begins with `timestamp`, `level`, `process` and `event`, and has tracebacks in one field, `exception`.
    """

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        text = str(event["event"]).rstrip()
        if log_format == "json":
            return {**event, "process": process, "event": text}
        return {**event, "event": f"{process:<10} {text}"}

    if log_format == "json":
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        in_json = structlog.processors.JSONRenderer()
        render: list[Processor] = [structlog.processors.format_exc_info, _in_order, in_json]
    else:
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        # Plain tracebacks: the decorated ones print the values of variables, secrets included.
        plain = structlog.dev.plain_traceback
        colors = sys.stderr.isatty()
        render = [structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=32, exception_formatter=plain)]
    shared: list[Processor] = [name_process, structlog.processors.add_log_level, stamp]
    structlog.configure(
        processors=[*shared, *render],
        # Straight to the stream: by way of the standard library a line costs twice as much.
        logger_factory=lambda *_: _WriteWhatFits(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = lambda _kind, error, _traceback: _log_crash(error)
    threading.excepthook = lambda end: _log_crash(end.exc_value)


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The fields that every event has come first."""
    return {name: event.pop(name) for name in ("timestamp", "level", "process", "event")} | dict(event)


def _log_crash(error: BaseException | None) -> None:
    """Say what Python would print: that nobody caught an exception."""
    if isinstance(error, Exception):
        get_logger().critical("crashed", exc_info=error)
