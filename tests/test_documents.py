"""What the documents say is so: their commands run, their options, settings, routes and links exist."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from pydantic_core import PydanticUndefined

from bench.running import Service, running
from service.api import create_app
from service.cli import app
from service.job import JobView
from service.problems import Problem
from service.request import SampleRequest
from service.settings import OF_CLIENTS, Settings
from tests import pictures
from tests.documents import CODE, DOCUMENTS, LINK, ROOT, Block, anchors, blocks, commands, prose

COMMAND_LINE = typer.main.get_command(app)
BLOCK_SECONDS = 90
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """What a reader has started before: `pfgmpp serve`."""
    with running(compile=False) as service:
        yield service


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    """The id of a job that has ended, of which every kind of result can be had."""
    job = service.submit(dataset="digits", D=2048, count=4, steps=4, label=7, trajectory=True)
    assert service.ended(job["id"])["status"] == "succeeded"
    return str(job["id"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the project as a reader has it, with some images of their own."""
    for name in ("models", "deploy", "docs", "tests", "docker", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    random = np.random.default_rng(0)
    for name, side in {"images.zip": 16, "cifar10.zip": 32}.items():
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for k in range(24):
                file.writestr(f"{k}.png", png(random.integers(0, 256, (side, side, 3), dtype=np.uint8)))
    for k in range(4):
        photo = tmp_path / "photos" / f"class-{k % 2}" / f"{k}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(png(random.integers(0, 256, (80, 100, 3), dtype=np.uint8)))
    return tmp_path


def png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """An image as PNG."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def code_of(block: Block, service: Service, job: str) -> str:
    """What is run of a block: for this service, this job, and this Python's programs."""
    text = block.text if block.instead is None else block.instead
    text = re.sub(r"\.venv/bin/", "", text)
    text = re.sub(r"(localhost|127\.0\.0\.1):8000", service.url.removeprefix("http://"), text)
    return text.replace("<id>", job)


def run(block: Block, code: str, folder: Path, service: Service) -> None:
    """Run a block. Raises AssertionError with what it said when it fails."""
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" or block.instead else [sys.executable, "-c"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PFGMPP_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PFGMPP_SERVER": service.url,
        "PFGMPP_DATA_DIR": str(folder / "data"),
        "KEY": "none-is-needed",
    }
    try:
        done = subprocess.run(
            [*program, code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BLOCK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{block}: not done within {BLOCK_SECONDS} s") from error
    assert done.returncode == 0, (
        f"{block}: ends with {done.returncode}\n{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_command_runs(document: Path, request: pytest.FixtureRequest) -> None:
    """The blocks of a document, one after the other, in one folder; those that are not run are listed with why."""
    chosen = list(blocks(document))
    for block in (block for block in chosen if block.reason is not None):
        print(f"{block}: not run: {block.reason}")  # noqa: T201
    if any(block.reason is None for block in chosen):
        service, job, folder = (request.getfixturevalue(name) for name in ("service", "job", "folder"))
        for block in chosen:
            if block.reason is None:
                run(block, code_of(block, service, job), folder, service)


def test_what_is_not_run_says_why() -> None:
    every = [block for document in DOCUMENTS for block in blocks(document)]
    left_out = [block for block in every if block.reason is not None]
    print(f"{len(left_out)} of {len(every)} blocks are not run")  # noqa: T201
    assert all(len(block.reason or "") > 10 for block in left_out)


def refusal(arguments: list[str]) -> str | None:
    """Why the command line would not know a command or one of its options; None if it knows them."""
    command: Any = COMMAND_LINE
    while (known := getattr(command, "commands", None)) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in known:
            return f"there is no command {name}"
        command = known[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in arguments if re.match(r"--?[A-Za-z]", word)} - {"--help"}
    return f"{command.name} has no {', '.join(sorted(given - options))}" if given - options else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_options_exist(document: Path) -> None:
    """Of commands that are not run too, in blocks and in sentences."""
    texts = [block.text for block in blocks(document)] + CODE.findall(prose(document))
    for text in texts:
        for arguments in commands(text, "pfgmpp"):
            assert refusal(arguments) is None, f"{document.name}: pfgmpp {shlex.join(arguments)}"


@pytest.mark.parametrize("wrong", ["serv", "sample --dat digits", "keys ad alice", "train digits -x 1"])
def test_options_that_do_not_exist_are_found(wrong: str) -> None:
    [arguments] = commands(f"KEY=1 .venv/bin/pfgmpp {wrong} | cat  # a comment", "pfgmpp")
    assert refusal(arguments) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_targets_of_make_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for text in [block.text for block in blocks(document)] + CODE.findall(prose(document)):
        for target, *_ in commands(text, "make"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name}: make {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_settings_exist(document: Path) -> None:
    known = {f"PFGMPP_{name.upper()}" for name in Settings.model_fields} | OF_CLIENTS
    named = set(re.findall(r"\bPFGMPP_[A-Z_]*[A-Z]\b(?![*_])", document.read_text()))
    assert named <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{document.name}: {target}"


def settings_table() -> str:
    """The table of all settings, as docs/settings.md holds it."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = "REDIS_URL" if name == "redis_url" else f"PFGMPP_{name.upper()}"
        value = field.get_default(call_default_factory=True, validated_data={})
        assert value is not PydanticUndefined
        default = "" if value is None else f"`{value}`"
        lines.append(f"| `{variable}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_every_setting_is_described() -> None:
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text()


def routes() -> set[str]:
    """Every route, as `METHOD /path`."""
    paths = create_app(Settings(redis_url="redis://unused")).openapi()["paths"]
    return {
        f"{method.upper()} {path.replace('{job_id}', '{id}')}"
        for path, operations in paths.items()
        for method in operations
    }


def test_every_route_is_described_and_no_other() -> None:
    described = (ROOT / "docs" / "api.md").read_text()
    others = "".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"\| `((?:GET|POST|DELETE|PUT) /[^`?]*)", described))
    assert named <= routes()
    assert all(route.split()[1] in others for route in routes())


def test_every_field_of_a_request_is_described() -> None:
    fields = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "api.md").read_text().partition("## A request")[2]))
    assert SampleRequest.model_fields.keys() <= fields
    assert JobView.model_fields.keys() <= fields


def problem_kinds(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Every kind of problem."""
    for each in kind.__subclasses__():
        yield each
        yield from problem_kinds(each)


def test_every_problem_is_described() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    described = {
        (int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", text, re.MULTILINE)
    }
    assert {(int(each.status), each.code) for each in problem_kinds()} <= described


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = {target.partition("#")[0] for target in LINK.findall(index)}
    assert {each.name for each in DOCUMENTS if each.name != "README.md"} <= linked


def test_pictures_are_small_and_used() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 200_000
        assert f"({picture.name})" in text or f"(docs/{picture.name})" in text


def test_pictures_can_be_made_again(tmp_path: Path) -> None:
    """Those that need no model are; the others are made the same way."""
    pictures.kernel(tmp_path)
    with Image.open(tmp_path / "concept-kernel.png") as made, Image.open(ROOT / "docs" / "concept-kernel.png") as kept:
        assert made.size == kept.size
