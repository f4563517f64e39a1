"""A real Chromium, and pages in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

PHONE: ViewportSize = {"width": 360, "height": 740}
POCKET: dict[str, Any] = {"viewport": PHONE, "is_mobile": True, "has_touch": True}
"""A phone that is touched, not only as narrow as one."""
DESK: ViewportSize = {"width": 1280, "height": 800}
PATIENCE_MS = 20_000

CHROMIUM = shutil.which("chromium")
"""The program; None where it is not installed (apt-get install chromium)."""

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def started() -> Iterator[Browser]:
    """The browser; what is expected of its pages may take PATIENCE_MS."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """A page in a browser that knows nothing yet; it may have nothing to complain about in the end."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    page, complaints = context.new_page(), list[str]()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
    page.goto(url)
    yield page
    context.close()
    # Refusals and lost connections are logged by the browser itself.
    assert not [text for text in complaints if not text.startswith("Failed to load resource")]


def fill(page: Page, form: str = "sample", **fields: str) -> None:
    """Write into fields of a form of the page at `/`."""
    for name, value in fields.items():
        page.fill(f"#{form}-{name}", value)


def sample(page: Page, **fields: str) -> None:
    """Ask for images, as in the form."""
    fill(page, **fields)
    page.click("#sample button[type=submit]")


def is_done(page: Page) -> None:
    """Wait for the picture of the job that is shown."""
    expect(page.locator(".job[data-picture=whole]")).to_be_visible()


def compare(page: Page, **fields: str) -> None:
    """Compare, as in the form, and wait for all pictures."""
    fill(page, "compare", **fields)
    page.click("#compare button[type=submit]")
    expect(page.locator(".comparison[data-done]")).to_be_visible()
