"""One event, one line: whatever a process says, and however it ends."""

import json
import subprocess
import sys

import pytest

SAYS = """
import logging, sys, threading, warnings
from service.logs import configure, get_logger

configure("api", sys.argv[1])
try:
    1 / 0
except ArithmeticError as error:
    get_logger().exception("result not stored", job="0123")
    logging.getLogger("uvicorn.error").error("Exception in %s\\n", "ASGI application", exc_info=error)
warnings.warn("a feature\\nis old")
thread = threading.Thread(target=lambda: [].pop())
thread.start()
thread.join()
raise RuntimeError("nobody caught this")
"""


def said(log_format: str) -> str:
    """The log of a process that says a few things, and comes to a bad end."""
    command = [sys.executable, "-c", SAYS, log_format]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_every_line_is_an_object_that_begins_alike() -> None:
    events = [json.loads(line) for line in said("json").splitlines()]
    assert {tuple(event)[:4] for event in events} == {("timestamp", "level", "process", "event")}
    assert [(event["level"], event["event"].split(":")[0]) for event in events[:2]] == [
        ("error", "result not stored"),
        ("error", "Exception in ASGI application"),
    ]
    assert events[0]["job"] == "0123"
    assert "a feature\nis old" in events[2]["event"]
    assert [event["event"] for event in events[3:]] == ["crashed", "crashed"]
    last = [event["exception"].splitlines()[-1] for event in events if "exception" in event]
    assert last == [
        *["ZeroDivisionError: division by zero"] * 2,
        "IndexError: pop from empty list",
        "RuntimeError: nobody caught this",
    ]


@pytest.mark.parametrize("word", ["job=0123", "api        result not stored", "RuntimeError: nobody caught this"])
def test_text_is_to_be_read(word: str) -> None:
    assert word in said("text")
