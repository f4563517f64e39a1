"""Logs: one designed line per event, to read in a terminal or to parse as JSON."""

import logging
import sys
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
    """Send the events of this process, and warnings of libraries, to standard error under the process's name.

    As text, `03:12:45.123 worker-1  job succeeded   images=64 seconds=2.1`; as JSON, one object per line.
    """

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if log_format == "json":
            return {"process": process, **event}
        return {**event, "event": f"{process:<10} {event['event']}"}

    if log_format == "json":
        stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
        render: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
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
