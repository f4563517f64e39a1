"""The page at `/`, in a real Chromium, on a real service."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from bench.running import READY_SECONDS, Service, running, until
from bench.stores import exact_checkpoint
from service.access import Caller, Keys
from service.routes.page import FOLDER, POLICY, read_files
from tests import screenshots
from tests.browser import CHROMIUM, DESK, PATIENCE_MS, PHONE, POCKET, compare, fill, is_done, opened, sample, started

DS = (1.0, 128.0, float("inf"))
STAGES = ["Queue", "Batch wait", "Sampling", "Encoding"]
NOTEBOOK = {"viewport": {"width": 1280, "height": 720}}
LONG = {"count": "256", "steps": "10000"}
"""Longer than any test waits: to be seen, lost sight of and canceled."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of three D of one data set that are loaded at once."""
    store = tmp_path_factory.mktemp("store")
    for D in DS:
        exact_checkpoint(store, D)
    return store


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what was found out about networks is kept, so that it is found out once."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module")
def service(store: Path, memory: Path) -> Iterator[Service]:
    with running(memory=memory, model_store=store, compile=False, batch_images=32) as service:
        yield service


@pytest.fixture(scope="module")
def guarded(store: Path, memory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service that asks for keys, and the key of someone who may submit once a minute."""
    keys = Keys(tmp_path_factory.mktemp("keys") / "keys.json")
    key = keys.add(Caller(name="alice", submissions_per_minute=1))
    with running(memory=memory, model_store=store, compile=False, batch_images=32, keys_file=keys.path) as service:
        yield service, key


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with started() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    with opened(browser, service.url) as page:
        is_filled(page)
        yield page


def is_filled(page: Page) -> None:
    """Wait until the forms know what can be sampled."""
    expect(page.locator("#sample-dataset")).to_have_value("points")


def shown_pixels(page: Page, selector: str) -> np.ndarray[Any, Any]:
    """What a canvas shows, [H, W]."""
    url = page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
    with Image.open(BytesIO(b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("L"))


def saved_pixels(content: bytes, scale: int) -> np.ndarray[Any, Any]:
    """A PNG as it was before it was enlarged, [H, W]."""
    with Image.open(BytesIO(content)) as picture:
        return np.asarray(picture)[::scale, ::scale]


def test_every_file_is_served_with_its_type_a_tag_and_a_strict_policy(service: Service) -> None:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in ("/", *(f"/page/{name}" for name in read_files())):
        answer = service.client.get(path)
        assert answer.status_code == httpx.codes.OK, path
        kind = kinds[Path(path).suffix or ".html"]
        assert answer.headers["content-type"].partition(";")[0] == kind
        assert answer.headers.get_list("content-security-policy") == [POLICY]
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = service.client.get(path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]
    assert service.client.head("/").headers["content-type"].startswith("text/html")
    assert "/page/{name}" not in service.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapi.py", "__init__.py", ""])
def test_other_files_are_not(service: Service, name: str) -> None:
    answer = service.client.get(f"/page/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert POLICY not in answer.headers.get_list("content-security-policy")


def test_what_files_refer_to_is_there_and_of_this_service() -> None:
    files = read_files()
    assert len(files) == len(list(FOLDER.iterdir()))
    for name, file in files.items():
        text = file.content.decode()
        found = re.findall(r'from "\./([^"]+)"', text) + re.findall(r'(?:src|href)="/page/([^"]+)"', text)
        assert set(found) <= set(files), name
        assert not re.search(r"<script(?! type=\"module\" src)|style=\"|innerHTML|\beval\(", text), name


def test_a_request_becomes_a_picture(page: Page, service: Service) -> None:
    sample(page, count="32", steps="50", seed="7")
    is_done(page)
    job = service.job(page.url.rsplit("/", 1)[1])
    assert (job["status"], job["seeds"]) == ("succeeded", list(range(7, 39)))
    grid = service.client.get(job["links"]["grid"]).content
    assert (shown_pixels(page, ".job canvas") == saved_pixels(grid, job["request"]["scale"])).all()
    width, shown, rendering = page.eval_on_selector(
        ".job canvas", "c => [c.width, c.getBoundingClientRect().width, getComputedStyle(c).imageRendering]"
    )
    assert (shown % width, rendering) == (0, "pixelated")  # each of its pixels is so many whole ones
    expect(page.locator(".job-state")).to_contain_text("Done in")
    assert page.locator(".legend dt").all_inner_texts() == STAGES
    whole, parts = page.eval_on_selector(
        ".bar", "bar => [bar.clientWidth, [...bar.children].reduce((sum, part) => sum + part.offsetWidth, 0)]"
    )
    assert parts >= whole - 4 * len(STAGES)  # gaps, and parts rounded to pixels
    with page.expect_download() as download:
        page.click("text=Grid, PNG")
    assert download.value.path().read_bytes() == grid
    with page.expect_download() as download:
        page.click("text=Images, npz")
    assert np.load(download.value.path())["seeds"].tolist() == job["seeds"]


def test_an_image_is_pointed_at_opened_and_saved_by_keyboard_alone(page: Page, service: Service) -> None:
    page.focus("#sample-D-1")
    for place in (2, 0):  # once round
        page.keyboard.press("ArrowRight")
        expect(page.locator(f"#sample-D-{place}")).to_be_checked()
        expect(page.locator(f"#sample-D-{place}")).to_be_focused()
    fill(page, count="4", steps="2", seed="5")
    page.press("#sample-seed", "Enter")
    is_done(page)
    page.focus(".cell")
    expect(page.locator(".caption")).to_contain_text("Image 0 (seed 5, class class ")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".caption")).to_contain_text("Image 2 (seed 7, class class ")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-caption")).to_contain_text("Image 2 (seed 7")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-caption")).to_contain_text("Image 3 (seed 8")
    job = service.job(page.url.rsplit("/", 1)[1])
    single = service.client.get(f"/v1/jobs/{job['id']}/images/3.png").content
    with page.expect_download() as download:
        page.click("text=Download PNG")
    assert download.value.path().read_bytes() == single
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_a_job_is_copied_as_a_command_and_as_a_program(page: Page, service: Service, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.select_option("#sample-label", "turn")
    fill(page, count="4", steps="3", seed=str(2**63 - 5))  # JavaScript's own numbers have not as many digits
    with page.expect_response("**/v1/samples") as submitted:
        page.eval_on_selector("#sample button[type=submit]", "button => { button.click(); button.click(); }")
    is_done(page)
    until(lambda: not page.get_attribute("#sample button[type=submit]", "aria-disabled"))
    assert service.client.get("/v1/jobs?limit=1").json()["jobs"][0]["id"] == submitted.value.json()["id"]
    grid = service.client.get(f"/v1/jobs/{page.url.rsplit('/', 1)[1]}/grid.png").content
    command = copied_command(page)
    assert run_command(command, tmp_path) == (0, "grid.png: image/png\n", "")
    assert (saved_pixels((tmp_path / "grid.png").read_bytes(), 16) == saved_pixels(grid, 16)).all()
    status, said, error = run_command(command.replace('"steps":3', '"steps":1'), tmp_path)
    assert (status, said) == (22, "grid.png: application/problem+json\n")
    assert "422" in error
    slower = command.replace("wait=60", "wait=0").replace('"steps":3', '"steps":10000')
    assert run_command(slower, tmp_path) == (0, "grid.png: application/json\n", "")
    service.client.post(f"/v1/jobs/{json.loads((tmp_path / 'grid.png').read_text())['id']}/cancel")
    page.click("text=Copy as Python")
    until(lambda: "Client" in page.evaluate("navigator.clipboard.readText()"))
    program = page.evaluate("navigator.clipboard.readText()")
    assert f"seed={2**63 - 5}" in program
    assert 'precision="exact", scale=16' in program  # whatever the service's own are
    assert 'labels=["class 0", "class 1", "class 0", "class 1"]' in program
    (tmp_path / "grid.png").unlink()
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert (saved_pixels((tmp_path / "grid.png").read_bytes(), 16) == saved_pixels(grid, 16)).all()


def copied_command(page: Page) -> str:
    """What "Copy as curl" puts on the clipboard."""
    page.click("text=Copy as curl")
    expect(page.locator("#live")).to_have_text("Copied")  # for who listens; the button says so for a moment
    command: str = page.evaluate("navigator.clipboard.readText()")
    return command


def run_command(command: str, folder: Path) -> tuple[int, str, str]:
    """Its exit status, and what it says; as in a shell that stops at nothing."""
    ended = subprocess.run(["/bin/sh", "-c", command], cwd=folder, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_long_job_is_copied_as_a_command_that_waits_for_it(page: Page, service: Service, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sample(page, **LONG, seed="7")
    expect(page.locator(".job[data-previews]")).to_be_visible()
    page.click(".job >> text=Cancel")
    expect(page.locator(".job-state")).to_have_text("Canceled")
    command = copied_command(page)
    shorter = command.replace('"count":256', '"count":4').replace('"steps":10000', '"steps":500')
    status, _, error = run_command(shorter.replace("wait=60", "wait=0"), tmp_path)  # asks again and again
    assert (status, error) == (0, "")
    job = service.client.get("/v1/jobs?limit=1").json()["jobs"][0]
    assert (job["status"], job["seeds"]) == ("succeeded", [7, 8, 9, 10])  # one job, however often it was asked for
    assert (tmp_path / "grid.png").read_bytes() == service.client.get(job["links"]["grid"]).content
    status, _, error = run_command(command.replace('"count":256', '"count":0'), tmp_path)
    assert status == 22
    assert "422" in error


CURL_OF = """async ([job, seconds]) => {
  const { curlOf } = await import("/page/request.js");
  const latency = { ...job.latency, sampling_seconds: seconds };
  return curlOf({ ...job, latency }, undefined, location.origin, true);
}"""


def test_only_the_command_of_a_job_that_a_submission_waits_for_is_a_single_one(page: Page, service: Service) -> None:
    job = service.ended(service.submit(dataset="points", D=1, count=1, steps=2)["id"])
    quick, slow = (page.evaluate(CURL_OF, [job, seconds]) for seconds in (40, 41))
    assert quick.startswith("curl --fail-with-body")
    assert "while" in slow
    assert all("Bearer $PFGMPP_KEY" in command for command in (quick, slow))


@pytest.mark.parametrize(("window", "words"), [(NOTEBOOK, "Point at an image"), (POCKET, "Tap an image")])
def test_how_an_image_is_enlarged_is_said_for_mouse_and_finger(
    browser: Browser, service: Service, window: dict[str, Any], words: str
) -> None:
    job = service.ended(service.submit(dataset="points", D=1, count=2, steps=2, seed=5)["id"])
    with opened(browser, f"{service.url}/#/job/{job['id']}", **window) as page:
        is_done(page)
        expect(page.locator(".caption")).to_contain_text(words)
        if "has_touch" in window:
            page.tap(".cell >> nth=1")
            expect(page.locator("#viewer-caption")).to_contain_text("Image 1 (seed 6, class")


def test_both_forms_explain_what_D_is(page: Page) -> None:
    for view, field in {"Sample": "#sample .field-D", "Compare": "#compare .field-Ds"}.items():
        page.click(f"nav >> text={view}")
        expect(page.locator(f"{field} .about p")).to_be_hidden()
        page.click(f"{field} >> text=What is D?")
        expect(page.locator(f"{field} .about p")).to_contain_text("Every D is a network of its own")


def test_what_is_wrong_is_said_at_the_field(page: Page) -> None:
    fill(page, steps="1", seed="x")
    expect(page.locator("#sample-steps-error")).to_have_text("must be a whole number from 2 to 10000")
    expect(page.locator("#sample-seed-error")).to_contain_text("must be a whole number, or a list")
    page.click("#sample button[type=submit]")
    expect(page.locator("#sample-steps")).to_be_focused()
    expect(page.locator("#sample-steps")).to_have_attribute("aria-invalid", "true")
    fill(page, steps="", seed="", count="1000")  # what only the service knows
    expect(page.locator("#sample-count-error")).to_have_text("must be at most 256")
    fill(page, count="3")
    expect(page.locator("#sample-count-error")).to_be_empty()
    expect(page.locator("#sample .estimate")).to_contain_text("21 network evaluations")
    page.click("text=More options")
    fill(page, others='{"sigma_max": 4000, "flavour": 1}')
    expect(page.locator("#sample-others-error")).to_contain_text("flavour: ")
    fill(page, others='{"count": 3}')
    expect(page.locator("#sample-others-error")).to_have_text("count: has a field of its own in this form")
    for wrong in ("{", '{"sigma_max": 1e999}'):
        fill(page, others=wrong)
        expect(page.locator("#sample-others-error")).to_contain_text("must be a JSON object")
        fill(page, others="")
        expect(page.locator("#sample-others-error")).to_be_empty()
    page.select_option("#sample-label", "list")
    for listed, wrong in {
        "": "name at least one class",
        "1, eleven": "there is no class eleven; there are class 0, class 1",
        "0, 1, 0, 1": "lists 4 classes, which is more than there are images (3)",
    }.items():
        fill(page, labels=listed)
        expect(page.locator("#sample-labels-error")).to_contain_text(wrong)


def test_a_list_of_seeds_and_classes(page: Page, service: Service) -> None:
    page.select_option("#sample-label", "list")
    sample(page, seed="3, 10-12", labels="class 1, class 0", steps="2")
    is_done(page)
    job = service.job(page.url.rsplit("/", 1)[1])
    assert (job["seeds"], job["labels"]) == ([3, 10, 11, 12], [1, 0, 1, 0])
    expect(page.locator("#sample-count")).to_have_value("4")
    expect(page.locator("#sample-count-hint")).to_have_text("One for each seed of the list.")
    assert page.get_attribute("#sample-count", "readonly") is not None
    page.click("text=More options")
    sample(page, others='{"foo": 1}')
    expect(page.locator("#sample-others")).to_be_focused()
    expect(page.locator("#sample-others-error")).to_have_text(re.compile("foo: .*no such field"))
    is_done(page)  # what was there still is


def test_history_is_reopened_after_a_reload_used_again_and_deleted(page: Page, service: Service) -> None:
    page.check("#sample-D-0")
    sample(page, count="2", steps="5", seed="99")
    is_done(page)
    job_id = page.url.rsplit("/", 1)[1]
    page.reload()
    is_done(page)
    expect(page.locator("#sample-seed")).to_have_value("99")
    page.click("nav >> text=History")
    entry = page.locator(f"[data-id='{job_id}']")
    expect(entry).to_contain_text(re.compile("2 images of points, D\u00a0=\u00a01, 5 steps of heun, .*seeds 99 to 100"))
    expect(entry).to_contain_text("Done · just now")
    until(lambda: shown_pixels(page, f"[data-id='{job_id}'] canvas").shape == (6, 11))
    another = service.ended(service.submit(dataset="points", D=128, count=3, steps=4, seed=5)["id"])["id"]
    expect(page.locator(f"[data-id='{another}']")).to_be_visible()  # by itself
    page.click(f"[data-id='{another}'] .entry-words")
    is_done(page)
    page.click("text=Use these settings")
    expect(page.locator("#sample-seed")).to_have_value("5")
    expect(page.locator("#sample-D-1")).to_be_checked()
    page.go_back()
    page.click(f"[data-id='{another}'] button")
    page.click(f"[data-id='{another}'] button")
    expect(page.locator(f"[data-id='{another}']")).to_have_count(0)
    page.goto(f"{service.url}/#/job/{another}")
    page.reload()
    expect(page.locator(".job .notice.bad")).to_have_text("There is no such job, or no longer.")


def shown_jobs(page: Page) -> list[str]:
    """The ids of the jobs that the history lists."""
    ids: list[str] = page.locator(".entry").evaluate_all("all => all.map((entry) => entry.dataset.id)")
    return ids


def test_history_lists_the_last_jobs_in_their_order(page: Page, service: Service) -> None:
    def submit(count: int) -> None:
        for _ in range(count):
            jobs.insert(0, service.submit(dataset="points", D=1, count=1, steps=2)["id"])

    jobs = list[str]()
    submit(22)
    page.click("nav >> text=History")
    until(lambda: shown_jobs(page) == jobs[:20])
    page.click(f"[data-id='{jobs[0]}'] button")
    page.click(f"[data-id='{jobs.pop(0)}'] button")
    until(lambda: shown_jobs(page) == jobs[:19])
    page.click("nav >> text=Sample")
    page.click("nav >> text=History")  # is looked at anew
    until(lambda: shown_jobs(page) == jobs[:20])
    page.click("nav >> text=Sample")
    submit(21)
    page.click("nav >> text=History")
    until(lambda: shown_jobs(page) == jobs[:20])
    page.click("text=Older jobs")
    until(lambda: shown_jobs(page) == jobs[:40])


def test_a_link_says_what_the_form_holds(browser: Browser, service: Service) -> None:
    with opened(
        browser, f"{service.url}/#/sample?dataset=points&D=inf&steps=7&seed=1&solver=euler&label=%3Dclass+1"
    ) as page:
        expect(page.locator("#sample-steps")).to_have_value("7")
        expect(page.locator("#sample-D-2")).to_be_checked()
        expect(page.locator("#sample-solver")).to_have_value("euler")
        expect(page.locator("#sample-label")).to_have_value("=class 1")
        expect(page.locator("#sample [role=status]")).to_be_hidden()
        page.goto(f"{service.url}/#/sample?D=7&solver=foo&flavour=1&steps=9")
        expect(page.locator("#sample [role=status]")).to_contain_text("left out: D=7, solver=foo, flavour=1.")
        expect(page.locator("#sample-D-1")).to_be_checked()  # as in a form that nobody has touched
        expect(page.locator("#sample-solver")).to_have_value("heun")
        expect(page.locator("#sample-label")).to_have_value("")
        expect(page.locator("#sample-seed")).to_have_value("")
        fill(page, steps="8")
        expect(page.locator("#sample [role=status]")).to_be_hidden()
        page.goto(f"{service.url}/#/sample?flavour=1&toString=2")
        expect(page.locator("#sample [role=status]")).to_contain_text("left out: flavour=1, toString=2.")
        page.goto(f"{service.url}/#/sample?count=3")
        expect(page.locator("#sample-count")).to_have_value("3")
        expect(page.locator("#sample [role=status]")).to_be_hidden()
        page.goto(f"{service.url}/#/sample?flavour=2")
        expect(page.locator("#sample [role=status]")).to_be_visible()
        page.click("nav >> text=History")
        page.click("nav >> text=Sample")
        expect(page.locator("#sample [role=status]")).to_be_hidden()


def test_a_job_is_canceled_and_shows_what_was_finished(page: Page) -> None:
    sample(page, count="256", steps="2000")  # of 32 at once
    expect(page.locator(".job .progress .hint")).to_contain_text(re.compile("[1-9][0-9]* of 256 images"))
    page.click(".job >> text=Cancel")
    expect(page.locator(".job-state")).to_have_text("Canceled")
    expect(page.locator(".job .progress")).to_be_hidden()
    expect(page.locator(".job[data-picture=some]")).to_be_visible()
    said = page.inner_text(".job .hint >> text=of 256 images had been finished; they can be downloaded.")
    done = int(said.split()[0])
    assert page.locator(".cell:enabled").count() == done
    assert page.locator(".cell[aria-label$='not finished']").count() == 256 - done


@pytest.mark.parametrize("window", [NOTEBOOK, POCKET], ids=["notebook", "phone"])
def test_what_runs_is_in_view_with_the_way_to_cancel_it(
    browser: Browser, service: Service, window: dict[str, Any]
) -> None:
    with opened(browser, service.url, **window) as page:
        is_filled(page)
        assert page.eval_on_selector("#sample .stage", "stage => stage.clientHeight") < 500  # nothing: no blank
        assert page.inner_text("#sample .empty .hint").count("D\u00a0=\u00a0") == 2  # on one line each
        sample(page, **LONG)
        expect(page.locator(".job[data-previews]")).to_be_visible()
        is_near_the_top(page, ".job canvas")
        expect(page.locator(".job >> text=Cancel")).to_be_in_viewport(ratio=1)
        expect(page.locator(".job .progress .hint")).to_be_in_viewport(ratio=1)
        expect(page.locator(".job .progress .hint")).to_have_text(
            re.compile(r"images · about .* left( \(9 in 10: .*\))?$")
        )
        page.click(".job >> text=Cancel")
        expect(page.locator(".job-state")).to_have_text("Canceled")
        is_near_the_top(page, ".job canvas")


def test_a_comparison_is_in_view_on_a_phone(browser: Browser, service: Service) -> None:
    with opened(browser, f"{service.url}/#/compare", **POCKET) as page:
        expect(page.locator("#compare-dataset")).to_have_value("points")
        compare(page, count="2", steps="3")
        is_near_the_top(page, ".compared canvas")


def is_near_the_top(page: Page, selector: str) -> None:
    """Wait until an element begins in the upper half of the window, for the page may be scrolling."""
    places = "element => [element.getBoundingClientRect().top, window.innerHeight]"

    def is_there() -> bool:
        top, height = page.eval_on_selector(selector, places)
        return bool(0 <= top < height / 2)

    until(is_there, seconds=PATIENCE_MS / 1000)


def test_a_lost_connection_is_told_and_found_again(page: Page) -> None:
    sample(page, **LONG)
    expect(page.locator(".job[data-status=running]")).to_be_visible()
    page.context.set_offline(True)
    expect(page.locator("#banner")).to_contain_text("The service does not answer. Trying again")
    expect(page.locator("#status-words")).to_have_text("No connection")
    sample(page, count="1", steps="2")
    page.click("text=Stop trying")
    expect(page.locator(".pending")).to_have_count(0)
    until(lambda: not page.get_attribute("#sample button[type=submit]", "aria-disabled"))
    sample(page)
    expect(page.locator(".pending")).to_contain_text("The service does not answer")
    page.click("nav >> text=History")
    expect(page.locator("#history .empty")).to_have_text("Your jobs are not known at present.")
    page.context.set_offline(False)
    expect(page.locator("#banner")).to_have_text("The service answers again.")
    expect(page.locator("#status-words")).not_to_have_text("No connection")
    expect(page.locator(".job[data-picture=whole]")).to_have_count(1)
    expect(page.locator("#history")).to_be_visible()  # nobody is called away
    page.go_back()
    page.click(".job >> text=Cancel")
    expect(page.locator(".job-state")).to_have_text("Canceled")
    expect(page.locator(".job .notice")).to_have_count(2)
    expect(page.locator(".job .notice >> visible=true")).to_have_count(0)


def test_a_job_is_followed_through_the_death_of_the_api(page: Page, service: Service) -> None:
    sample(page, **LONG)
    expect(page.locator(".job[data-previews]")).to_be_visible()  # a picture before the picture
    expect(page.locator(".job .progress .hint")).to_contain_text("of 5,119,744 evaluations")
    victim = service.pid("api")
    os.kill(victim, signal.SIGKILL)
    until(lambda: service.pid("api") != victim)
    before = int(page.get_attribute(".job", "data-previews") or 0)
    until(lambda: int(page.get_attribute(".job", "data-previews") or 0) > before + 1)
    page.click(".job >> text=Cancel")
    expect(page.locator(".job-state")).to_have_text("Canceled")


def test_a_proxy_that_reaches_nobody_is_a_lost_connection(page: Page, service: Service) -> None:
    job = service.ended(service.submit(dataset="points", D=1, count=2, steps=3)["id"])
    everything = re.compile("/v1/|/livez")
    page.route(everything, lambda route: route.fulfill(status=502, content_type="text/html", body="Bad Gateway"))
    page.goto(f"{service.url}/#/job/{job['id']}")
    expect(page.locator(".job .notice >> visible=true")).to_contain_text("The service does not answer; this goes on")
    page.click("text=Try now")
    expect(page.locator("#banner")).to_contain_text(re.compile("Trying again in [2-9] s"))
    expect(page.locator("text=Try now")).to_be_focused()
    page.unroute(everything)
    page.click("text=Try now")
    is_done(page)


def test_what_was_chosen_stays_while_there_is_no_worker(page: Page, browser: Browser, service: Service) -> None:
    page.check("#sample-D-0")
    job_id = service.submit(dataset="points", D=1, count=256, steps=2000)["id"]
    until(lambda: service.job(job_id)["progress"]["images_done"])
    service.client.post(f"/v1/jobs/{job_id}/cancel")
    service.ended(job_id)
    os.kill(service.process.pid, signal.SIGSTOP)  # or there would be another worker at once
    try:
        os.kill(service.pid("worker-1"), signal.SIGTERM)
        expect(page.locator("#sample .notice.bad")).to_contain_text("There is no worker")
        with opened(browser, f"{service.url}/#/job/{job_id}") as other:
            expect(other.locator(".job[data-picture=some]")).to_be_visible()
            expect(other.locator("text=Use these settings")).to_have_count(0)
            os.kill(service.process.pid, signal.SIGCONT)
            expect(other.locator("text=Use these settings")).to_be_visible(timeout=1000 * READY_SECONDS)
    finally:
        os.kill(service.process.pid, signal.SIGCONT)
    expect(page.locator("#sample .notice.bad")).to_be_hidden(timeout=1000 * READY_SECONDS)
    expect(page.locator("#sample-D-0")).to_be_checked()


def test_a_result_that_is_no_longer_kept_is_said_to_be_gone(page: Page, service: Service) -> None:
    job = service.ended(service.submit(dataset="points", D=1, count=2, steps=3)["id"])
    for folder in (service.folder / "results").rglob(job["id"]):
        shutil.rmtree(folder)
    page.goto(f"{service.url}/#/job/{job['id']}")
    expect(page.locator(".job .notice.bad")).to_contain_text("is no longer there")


def test_workers_and_queue_are_shown(page: Page) -> None:
    page.click("#status summary")
    expect(page.locator("#status-panel")).to_contain_text("idle")
    expect(page.locator("#status-panel")).to_contain_text("The queue is empty.")
    page.keyboard.press("Escape")
    expect(page.locator("#status-panel")).to_be_hidden()
    sample(page, **LONG)
    page.click("#status summary")
    expect(page.locator("#status-panel")).to_contain_text("points-d128")
    expect(page.locator("#status-words")).to_have_text("1 job running")
    page.keyboard.press("Escape")  # it lies above the button
    page.click(".job >> text=Cancel")
    expect(page.locator("#status-words")).to_have_text("Idle")


HEIGHTS = "selectors => selectors.map((one) => document.querySelector(one).getBoundingClientRect().height)"


def test_every_D_is_compared(page: Page, service: Service) -> None:
    page.click("nav >> text=Compare")
    compare(page, count="3", seed="11", steps="6")
    names = page.locator(".compared h3").all_inner_texts()
    assert names == ["D\u00a0=\u00a01", "D\u00a0=\u00a0128", "D\u00a0=\u00a0∞"]
    ids = [
        link.rsplit("/", 1)[1] for link in page.locator(".compared h3 a").evaluate_all("all => all.map(a => a.href)")
    ]
    jobs = [service.job(each) for each in ids]
    assert [job["seeds"] for job in jobs] == [[11, 12, 13]] * 3
    assert len({tuple(job["labels"]) for job in jobs}) == 1
    assert page.eval_on_selector(".compared canvas", "canvas => canvas.clientHeight") > 80
    assert page.locator(".path").count() == 3
    page.click(".compared >> nth=1 >> .cell >> nth=2")
    expect(page.locator(".paths h3")).to_have_text(re.compile(r"^How image 2 \(seed 13, class .*\) came about$"))
    path = shown_pixels(page, ".path >> nth=1 >> canvas")
    whole = saved_pixels(service.client.get(jobs[1]["links"]["trajectory"]).content, jobs[1]["request"]["scale"])
    assert (path == whole[10:16]).all()
    assert page.locator(".chart svg[role=img]").count() == 2
    expect(page.locator(".chart-legend >> nth=0")).to_have_text("every D")
    heights = page.evaluate(HEIGHTS, [".tick", "figcaption"])
    assert heights[0] < heights[1]
    expect(page.locator(".figures table")).to_contain_text("905.1")  # 80 sqrt(128)
    assert page.locator(".compared-name .hint").all_inner_texts() == ["11 evaluations an image"] * 3
    assert not re.search(r"\d m?s\b", page.inner_text(".comparison"))  # they ran beside each other: nothing that D does
    expect(page.locator(".figures .table .hint")).to_contain_text("equally often whatever D is")
    for _ in range(2):
        page.reload()
        expect(page.locator(".comparison[data-done]")).to_be_visible()
        assert page.locator(".compared").evaluate_all("all => all.map((row) => row.ariaLabel)") == names


def test_numbers_of_steps_are_compared(page: Page) -> None:
    page.click("nav >> text=Compare")
    page.check("#compare-by-1")
    fill(page, "compare", sweep="3, none, 40000")
    expect(page.locator("#compare-sweep-error")).to_contain_text("none, 40000: must be whole numbers from 2 to 10000")
    fill(page, "compare", sweep="none, none")
    expect(page.locator("#compare-sweep-hint")).not_to_contain_text("twice")
    fill(page, "compare", sweep="4, 8, 4")
    expect(page.locator("#compare-sweep-hint")).to_have_text("4: listed twice, compared once.")
    compare(page, count="2", sweep="8, 3, 20")
    assert page.locator(".compared h3").all_inner_texts() == ["3 steps", "8 steps", "20 steps"]
    rows = [row.split("\t") for row in page.locator(".figures tbody tr").all_inner_texts()]
    assert [row[:2] for row in rows] == [["3", "5"], ["8", "15"], ["20", "39"]]
    expect(page.locator(".figures th").last).to_have_text("Distance to 20 steps")
    assert [row[4].replace("\N{EN DASH}", "itself") == "itself" for row in rows] == [False, False, True]
    expect(page.locator(".figures .table .hint")).to_contain_text("ran beside each other")
    expect(page.locator(".compared-name .hint").first).to_contain_text("Sampled in")


def test_a_key_is_asked_for_and_limits_are_counted_down(browser: Browser, guarded: tuple[Service, str]) -> None:
    service, key = guarded
    with opened(browser, service.url) as page:
        page.fill("#key", "pfgmpp_wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-error")).to_contain_text("does not know this key")
        page.keyboard.press("Escape")
        expect(page.locator("#sample .notice.bad")).to_have_text("This service asks for an API key.")
        page.click("#key-button")
        page.fill("#key", key)
        page.check("text=Remember it")
        page.keyboard.press("Enter")
        is_filled(page)
        sample(page, count="2", steps="3")
        is_done(page)  # the picture was asked for with the key
        page.reload()
        is_done(page)
        sample(page)
        expect(page.locator(".pending")).to_contain_text(re.compile(r"a minute\. Trying again in \d+ s\."))
        page.click("text=Stop trying")
        expect(page.locator(".pending")).to_have_count(0)
        is_done(page)  # what was there still is


def show_sample(page: Page) -> None:
    page.check("#sample-trajectory")
    sample(page, count="4", steps="100")
    is_done(page)
    page.click("text=How the images came about")
    expect(page.locator(".scrolled + *, .facts > .hint")).to_contain_text("Scroll sideways")


def show_compare(page: Page) -> None:
    page.click("nav >> text=Compare")
    compare(page, count="2", steps="3")


def show_history(page: Page) -> None:
    page.click("nav >> text=History")
    page.wait_for_selector(".entry")


VIEWS = (show_sample, show_compare, show_history)

CONTRAST = """() => {
  const parts = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (rgb) => rgb.slice(0, 3)
    .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(each).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!says || !element.checkVisibility() || element.closest("svg")) continue;
    const [a, b] = [light(parts(getComputedStyle(element).color)), light(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) poor.push(`${element.tagName}.${element.className} ${element.textContent}: ${contrast}`);
  }
  return poor;
}"""

NAMELESS = """() => [...document.querySelectorAll("input, select, button, a, summary, canvas[role=img], [role=group]")]
  .filter((element) => element.checkVisibility() && !element.closest("[aria-hidden]"))
  .filter((element) => !(element.labels?.length || element.getAttribute("aria-label") || element.textContent.trim()))
  .map((element) => element.outerHTML)"""


def test_every_view_is_readable_in_light_and_dark_and_fits_on_a_phone(browser: Browser, service: Service) -> None:
    with opened(browser, service.url) as page:
        is_filled(page)
        page.click("text=More options")
        fill(page, steps="1")
        expect(page.locator("#sample-steps-error")).not_to_be_empty()
        is_readable(page)
        fill(page, steps="")
        for show in VIEWS:
            show(page)
            is_readable(page)
            assert page.evaluate(NAMELESS) == []
            ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
            assert len(ids) == len(set(ids))
            assert page.evaluate("document.documentElement.scrollWidth") <= DESK["width"], page.url
            page.set_viewport_size(PHONE)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], page.url
            page.set_viewport_size(DESK)


def is_readable(page: Page) -> None:
    """Whether all text that is to be seen has the contrast that WCAG asks for (AA), in both schemes."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(CONTRAST) == [], (scheme, page.url)


def test_the_pictures_of_its_document_are_made(browser: Browser, service: Service, tmp_path: Path) -> None:
    """Of other images: what the models of this service do not have is left out of their requests."""
    for view in screenshots.VIEWS:
        view(browser, service.url, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"page.png", "page-compare.png", "page-phone.png"}
