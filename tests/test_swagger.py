"""The page at /docs: all of it comes from here, and a browser shows every operation."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect

from bench.running import Service, running
from bench.stores import exact_checkpoint
from tests.browser import CHROMIUM, started


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(model_store=exact_checkpoint(tmp_path_factory.mktemp("points"), 2.0).parent, compile=False) as service:
        yield service


def test_its_files_are_a_closed_list(service: Service) -> None:
    page = service.client.get("/docs")
    assert "https://" not in page.text
    for name, kind in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        answer = service.client.get(f"/docs/{name}")
        assert answer.headers["content-type"].startswith(kind)
        assert len(answer.content) > 100_000
    for path in ("/docs/redoc.standalone.js", "/docs/..%2fcore.py", "/docs/core.py", "/redoc"):
        assert service.client.get(path).status_code == 404


def test_a_browser_without_internet_shows_every_operation(service: Service) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    document = service.client.get("/openapi.json").json()
    count = sum(map(len, document["paths"].values()))
    asked, said = list[str](), list[str]()
    with started() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{service.url}/docs")
        expect(page.locator("#swagger-ui .opblock-summary")).to_have_count(count + 1)  # and a webhook
        page.locator("#operations-models-models .opblock-summary-control").click()
        expect(page.locator("#operations-models-models .responses-wrapper")).to_contain_text('"dataset": "digits"')
    assert said == []
    assert {httpx.URL(url).host for url in asked if not url.startswith("data:")} == {"127.0.0.1"}
