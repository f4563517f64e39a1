"""The pictures of docs/page.md, of the page of a service with the shipped models: `python -m tests.screenshots`."""

from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from bench.running import running
from tests.browser import POCKET, compare, is_done, opened, sample, started

WIDE: ViewportSize = {"width": 1180, "height": 900}


def save(page: Page, path: Path, *, is_whole: bool = True) -> None:
    """Write what the page shows when all is quiet."""
    expect(page.locator("#status-words")).to_have_text("Idle")
    page.mouse.move(0, 0)
    with Image.open(BytesIO(page.screenshot(full_page=is_whole))) as picture:
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def desk(browser: Browser, url: str, folder: Path) -> None:
    """A finished job beside its form."""
    with opened(browser, f"{url}/#/sample?dataset=digits&D=2048&label=turn", viewport=WIDE) as page:
        sample(page, count="20", seed="7")
        is_done(page)
        save(page, folder / "page.png")


def comparison(browser: Browser, url: str, folder: Path) -> None:
    """The same seeds for every D, and how one image came about with each."""
    with opened(browser, f"{url}/#/compare?dataset=digits", viewport=WIDE) as page:
        compare(page, count="8", seed="7")
        save(page, folder / "page-compare.png")


def phone(browser: Browser, url: str, folder: Path) -> None:
    """A finished job on a phone."""
    with opened(browser, f"{url}/#/sample?dataset=digits&D=inf", **POCKET, reduced_motion="reduce") as page:
        sample(page, count="12", seed="3")
        is_done(page)
        save(page, folder / "page-phone.png", is_whole=False)


VIEWS = (desk, comparison, phone)


def draw(folder: Annotated[Path, typer.Option(help="Where the PNGs go.")] = Path("docs")) -> None:
    """Make all pictures of docs/page.md."""
    with running() as service, started() as browser:
        for view in VIEWS:
            view(browser, service.url, folder)


if __name__ == "__main__":
    typer.run(draw)
