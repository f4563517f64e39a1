"""The container files: valid, in agreement with the code, and no more privileged than they must be."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser, Namespace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner as ClickRunner
from click.testing import Result
from fastapi.routing import APIRoute
from typer.testing import CliRunner

from service.api import ROUTERS
from service.cli import app
from service.embedded import server_command
from service.settings import Settings
from service.worker import INSIST_SECONDS

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
PROMETHEUS = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())
ROUTES = [route for router in ROUTERS for route in router.routes]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_stages(dockerfile: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, after those of the stage it begins with, as (word, rest)."""
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            stages[name] = current = list(stages.get(base, []))
        elif word:
            current.append((word, rest.strip()))
    return stages


STAGES = read_stages(DOCKERFILE.read_text())


def said(stage: str, word: str) -> list[str]:
    """What a stage gives to each of its instructions of one kind."""
    return [rest for each, rest in STAGES[stage] if each == word]


def target_of(service: str) -> str:
    """The stage that a service of ours is built from."""
    target: str = SERVICES[service]["build"]["target"]
    return target


def installing_stage(service: str) -> str:
    """The stage whose virtual environment a service of ours gets."""
    [source] = [copy for copy in said(target_of(service), "COPY") if "/opt/venv" in copy]
    return source.split()[0].removeprefix("--from=")


def pip_installs(service: str) -> list[Namespace]:
    """What pip is told when the image of a service is built, with the shell's expansions done by a shell."""
    stage = installing_stage(service)
    arguments = dict(argument.split("=", 1) for argument in said(stage, "ARG"))
    arguments |= SERVICES[service]["build"].get("args", {})
    known = ArgumentParser()
    known.add_argument("command", choices=["install"])
    known.add_argument("--constraint")
    known.add_argument("--index-url")
    known.add_argument("--no-deps", action="store_true")
    known.add_argument("requirements", nargs="+")
    calls = []
    for run in said(stage, "RUN"):
        command = re.sub(r"^(--mount=\S+\s+)*", "", run)
        if command.startswith("pip "):
            script = f'pip() {{ printf "%s\\n" "$@"; }}; {command}'
            shown = subprocess.run(["sh", "-euc", script], env=arguments, capture_output=True, text=True, check=True)
            calls.append(known.parse_intermixed_args(shown.stdout.splitlines()))
    return calls


def image_environment(target: str) -> dict[str, str | None]:
    """The environment that an image brings."""
    return {
        name: value for env in said(target, "ENV") for name, _, value in [w.partition("=") for w in shlex.split(env)]
    }


def environment_of(service: str) -> dict[str, str | None]:
    """The environment of a service of ours: of its image, then of compose; None is passed on from outside."""
    environment: dict[str, str | None] = SERVICES[service]["environment"]
    return image_environment(target_of(service)) | environment


def settings_of(service: str) -> Settings:
    """The settings that a service of ours reads."""
    environment = {name: value for name, value in environment_of(service).items() if value is not None}
    with patch.dict(os.environ, environment, clear=True):
        return Settings()


def mounts_of(service: str) -> dict[str, tuple[str, str]]:
    """The mounts of a service: where -> (what, mode)."""
    split = [[*volume.split(":"), "rw"][:3] for volume in SERVICES[service].get("volumes", [])]
    return {where: (what, mode) for what, where, mode in split}


def health_check(target: str) -> list[str]:
    """The command of an image's health check."""
    [check] = said(target, "HEALTHCHECK")
    command: list[str] = json.loads(check[check.index("CMD") + 3 :])
    return command


def health_url(target: str) -> str:
    """What an image's health check asks for."""
    [url] = re.findall(r"http://[^']+", " ".join(health_check(target)))
    return str(url)


def scraped() -> dict[str, tuple[int, str]]:
    """What Prometheus asks each service for: its port and path."""
    found = {}
    for job in PROMETHEUS["scrape_configs"]:
        for discovery in job["dns_sd_configs"]:
            assert discovery["type"] == "A"
            for name in discovery["names"]:
                found[name] = (discovery["port"], job.get("metrics_path", "/metrics"))
    return found


def worker_metrics_port() -> int:
    """The port of the metrics of `pfgmpp worker` in the environment of its container."""
    seen: list[Settings] = []

    class Recorder:
        def __init__(self, settings: Settings):
            seen.append(settings)

        async def run(self) -> None:
            pass

    environment = {name: value for name, value in environment_of("worker").items() if value is not None}
    with (
        patch("service.worker.Worker", Recorder),
        patch("service.logs.configure"),
        patch.dict(os.environ, environment, clear=True),
    ):
        result = CliRunner().invoke(app, ["worker"])
    assert result.exit_code == 0, result.output
    assert seen[0].metrics_port is not None
    return seen[0].metrics_port


def check_compose(file: Path) -> Result:
    """Hold a file against the schema of the Compose Specification."""
    return ClickRunner().invoke(check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(file)])


def lint(dockerfile: str) -> "subprocess.CompletedProcess[str]":
    """Lint a Dockerfile by all rules, comments that would switch some off notwithstanding."""
    command = [str(Path(sys.executable).with_name("hadolint")), "--disable-ignore-pragma", "-"]
    return subprocess.run(command, input=dockerfile, capture_output=True, text=True, check=False)


def test_compose_file_follows_the_specification() -> None:
    checked = check_compose(COMPOSE_FILE)
    assert checked.exit_code == 0, checked.stdout


@pytest.mark.parametrize("wrong", [{"heathcheck": {}}, {"read_only": []}, {"depends_on": {"valkey": {}}}])
def test_broken_compose_files_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    broken = COMPOSE | {"services": SERVICES | {"api": SERVICES["api"] | wrong}}
    file = tmp_path / "docker-compose.yml"
    file.write_text(yaml.safe_dump(broken))
    checked = check_compose(file)
    assert checked.exit_code == 1
    assert "services.api" in checked.stdout


def test_dockerfile_passes_every_rule() -> None:
    linted = lint(DOCKERFILE.read_text())
    assert linted.returncode == 0, linted.stdout


def test_linter_refuses_a_bad_dockerfile() -> None:
    linted = lint("# hadolint ignore=DL3006\nFROM python\nRUN pip install torch\n")
    assert linted.returncode == 1
    assert {"DL3006", "DL3013"} <= set(re.findall(r"DL\d+", linted.stdout))


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("api", [".[s3,otel]"]),
        ("worker", ["torch", ".[worker,s3,otel]"]),
        ("worker-gpu", ["torch", ".[worker,s3,otel]"]),
    ],
)
def test_images_install_what_the_project_names(service: str, expected: list[str]) -> None:
    installs = pip_installs(service)
    assert [each.requirements for each in installs] == [[requirement] for requirement in expected]
    assert {each.constraint for each in installs} == {"constraints.txt"}
    extras = {extra for requirement in expected for extra in re.findall(r"[\[,](\w+)", requirement)}
    assert extras <= PROJECT["project"]["optional-dependencies"].keys()


def test_torch_is_pinned_and_only_of_the_worker() -> None:
    assert re.search(r"^torch==\d", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert any(each.startswith("torch>") for each in PROJECT["project"]["optional-dependencies"]["worker"])
    assert not any(each.startswith(("torch", "safetensors")) for each in PROJECT["project"]["dependencies"])


@pytest.mark.parametrize(
    ("service", "index"), [("worker", "https://download.pytorch.org/whl/cpu"), ("worker-gpu", None)]
)
def test_torch_alone_comes_from_the_index_of_the_build(service: str, index: str | None) -> None:
    torch, project = pip_installs(service)
    assert (torch.index_url, torch.no_deps) == (index, True)
    assert (project.index_url, project.no_deps) == (None, False)


def test_build_context_is_what_the_install_needs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert patterns[0] == "*"
    project = PROJECT["project"]
    needed = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    needed |= {package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == needed
    assert all((ROOT / name).exists() for name in needed)


@pytest.mark.parametrize("service", OURS)
def test_environment_is_settings(service: str) -> None:
    names = {name.removeprefix("PFGMPP_").lower() for name in environment_of(service) if name.startswith("PFGMPP_")}
    assert names <= Settings.model_fields.keys()
    settings = settings_of(service)
    assert urlsplit(settings.redis_url or "").hostname in SERVICES
    assert (settings.log_format, settings.device) == ("json", "cuda" if service == "worker-gpu" else "auto")


@pytest.mark.parametrize("service", OURS)
def test_images_run_their_command(service: str) -> None:
    [command] = said(target_of(service), "CMD")
    program, subcommand = json.loads(command)
    assert program in PROJECT["project"]["scripts"]
    assert subcommand in {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    assert subcommand == target_of(service)


def test_api_port_and_health_path_are_those_of_the_code() -> None:
    settings = settings_of("api")
    url = urlsplit(health_url("api"))
    assert url.port == settings.port == Settings.model_fields["port"].default
    assert url.path in {route.path for route in ROUTES if isinstance(route, APIRoute)}
    assert settings.host == "0.0.0.0"
    assert said("api", "EXPOSE") == [str(settings.port)]
    assert SERVICES["api"]["ports"][0].endswith(f":{settings.port}")


def test_metrics_port_is_that_of_the_code() -> None:
    port = worker_metrics_port()
    assert urlsplit(health_url("worker")).port == port
    assert said("worker", "EXPOSE") == [str(port)]


def test_prometheus_scrapes_api_and_workers() -> None:
    port = worker_metrics_port()
    expected = {"api": (settings_of("api").port, "/metrics")}
    expected |= {name: (port, "/metrics") for name in OURS if target_of(name) == "worker"}
    assert scraped() == expected
    assert "/metrics" in {route.path for route in ROUTES if isinstance(route, APIRoute)}
    mounts = mounts_of("prometheus")
    assert mounts["/etc/prometheus/prometheus.yml"] == ("./docker/prometheus.yml", "ro")
    for name in PROMETHEUS["rule_files"]:
        assert mounts[f"/etc/prometheus/{name}"] == (f"./docker/{name}", "ro")


def with_keys(file: Path) -> str:
    """A configuration with what is commented out in it for keys."""
    return re.sub(r"# (?=PFGMPP_KEYS_FILE: |- \./keys:|- \./prometheus\.key:|authorization: )", "", file.read_text())


def test_what_is_commented_out_for_keys_fits_together(tmp_path: Path) -> None:
    file = tmp_path / "docker-compose.yml"
    file.write_text(with_keys(COMPOSE_FILE))
    checked = check_compose(file)
    assert checked.exit_code == 0, checked.output
    api, prometheus = (yaml.safe_load(file.read_text())["services"][name] for name in ("api", "prometheus"))
    assert f"./keys:{Path(api['environment']['PFGMPP_KEYS_FILE']).parent}:ro" in api["volumes"]
    jobs = yaml.safe_load(with_keys(ROOT / "docker" / "prometheus.yml"))["scrape_configs"]
    [credentials] = [job["authorization"]["credentials_file"] for job in jobs if "authorization" in job]
    assert f"./prometheus.key:{credentials}:ro" in prometheus["volumes"]
    [user] = said(target_of("api"), "USER")
    assert f"-o {user.partition(':')[0]} keys\n" in (ROOT / "docs" / "access.md").read_text()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
@pytest.mark.parametrize("target", ["api", "worker"])
def test_health_checks_tell_well_from_ill(target: str, status: int, expected: int) -> None:
    class Process(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == urlsplit(health_url(target)).path else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Process) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        _, *arguments = health_check(target)
        here = [each.replace(f":{urlsplit(health_url(target)).port}/", f":{server.server_port}/") for each in arguments]
        assert here != arguments
        environment = os.environ | {"http_proxy": "http://127.0.0.1:1"}
        checked = subprocess.run([sys.executable, *here], env=environment, capture_output=True, check=False)
        server.shutdown()
    assert checked.returncode == expected, checked.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_watched_and_restarted(service: str) -> None:
    is_watched = "healthcheck" in SERVICES[service] or (service in OURS and said(target_of(service), "HEALTHCHECK"))
    assert is_watched
    assert SERVICES[service]["restart"] == "unless-stopped"
    if service in OURS:
        assert SERVICES[service]["depends_on"] == {"valkey": {"condition": "service_healthy"}}


@pytest.mark.parametrize("service", SERVICES)
def test_services_have_no_privileges(service: str) -> None:
    its = SERVICES[service]
    users = [its["user"]] if "user" in its else said(target_of(service), "USER")
    assert users
    assert users[-1].split(":")[0] not in {"", "0", "root"}
    assert (its["read_only"], its["cap_drop"], its["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_to_this_machine_alone(service: str) -> None:
    for port in SERVICES[service].get("ports", []):
        assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+}:\d+", port)


def test_foreign_images_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert images
    assert all(re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+(\.\d+)?", image) for image in images)


@pytest.mark.parametrize("service", OURS)
def test_results_are_shared_by_one_user(service: str) -> None:
    results = str(settings_of(service).results_dir)
    assert mounts_of(service) == {results: ("results", "ro" if service == "api" else "rw")}
    assert "results" in COMPOSE["volumes"]
    assert image_environment(target_of(service))["PFGMPP_RESULTS_DIR"] == results
    [user] = said(target_of(service), "USER")
    uid, gid = user.split(":")
    [run] = said(target_of(service), "RUN")
    assert f"install --directory --owner={uid} --group={gid} {results}" in run
    assert f"useradd --no-log-init --uid {uid} --gid {gid} " in run


@pytest.mark.parametrize("service", [name for name in OURS if target_of(name) == "worker"])
def test_workers_have_time_to_finish(service: str) -> None:
    seconds = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert seconds >= settings_of(service).grace_seconds + 2 * INSIST_SECONDS + 5


def test_valkey_keeps_jobs_as_the_embedded_server_does(tmp_path: Path) -> None:
    def options(command: list[str]) -> dict[str, str]:
        return dict(zip(command[1::2], command[2::2], strict=True))

    embedded = options(server_command(Path("valkey-server"), tmp_path / "socket", tmp_path))
    own = {"--port", "--unixsocket", "--unixsocketperm", "--dir", "--logfile", "--daemonize"}
    assert options(SERVICES["valkey"]["command"]) == {name: embedded[name] for name in embedded.keys() - own}
    assert options(SERVICES["valkey"]["command"])["--maxmemory-policy"] == "noeviction"
    assert mounts_of("valkey") == {"/data": ("valkey", "rw")}
