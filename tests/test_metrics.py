"""What operators look at: metrics as documented, rules and dashboard that a real Prometheus understands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench.running import Service, running, until
from bench.stores import exact_checkpoint
from service.embedded import die_with_parent

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "pfgmpp.json").read_text())
GROUPS = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDS = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SUFFIXES = re.compile(r"_(bucket|sum|count)$")

POINTS = {"dataset": "points", "D": 2}

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (apt-get install prometheus)",
)


def documented() -> dict[str, tuple[str, set[str]]]:
    """The metrics of docs/metrics.md: their types and labels by name."""
    rows = re.findall(r"^\| `(pfgmpp_\w+)` \| (\w+) \|([^|]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.M)
    assert len(rows) == len({name for name, _, _ in rows})
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def shown(text: str) -> dict[str, tuple[str, set[str]]]:
    """The metrics of an exposition: their types and labels by name."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.samples:
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
    return found


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The values of an exposition by name and labels; no series is shown twice."""
    every = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in every}
    assert len(values) == len(every)
    return values


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of a name with such labels."""
    return sum(v for (its, own), v in samples(text).items() if its == name and labels.items() <= dict(own).items())


def promtool(*arguments: str, stdin: str = "") -> None:
    """Have promtool check something, and be content without a word of warning."""
    done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a model that is loaded at once."""
    folder = tmp_path_factory.mktemp("points")
    store = exact_checkpoint(folder / "store", 2.0).parent
    with running(memory=folder / "memory", model_store=store) as service:
        yield service


@pytest.fixture(scope="module")
def worker_url(service: Service) -> Iterator[str]:
    """Where a worker that runs alone, for the same queue, shows its metrics."""
    folder = service.folder / "alone"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "networks").symlink_to((service.folder / "data" / "networks").resolve())
    redis = {"REDIS_URL": f"unix://{service.folder / 'data' / 'redis.sock'}"}
    own = {"PFGMPP_DATA_DIR": str(folder / "data"), "PFGMPP_METRICS_PORT": "0", "PFGMPP_WORKER_NAME": "alone"}
    with (folder / "log").open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "service", "worker"],
            env=service.environment | redis | own,
            stderr=log,
            preexec_fn=die_with_parent(),  # noqa: PLW1509
        )
    ready = until(lambda: [line for line in (folder / "log").read_text().splitlines() if "worker ready" in line])
    yield f"http://127.0.0.1:{json.loads(ready[0])['metrics_port']}"
    worker.terminate()
    assert worker.wait(20) == 0


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client of a real Prometheus with the project's own files, but for where it looks and how often."""
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [targets[job["job_name"]].removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name in config["rule_files"]:
        shutil.copy(DOCKER / name, folder)
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]  # fmt: skip
    log = folder / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, stderr=out, stdout=out, preexec_fn=die_with_parent()) as process,  # noqa: PLW1509
    ):
        try:
            address = until(lambda: re.findall(r'msg="Listening on" address=(\S+)', log.read_text()))[0]
            with httpx.Client(base_url=f"http://{address}") as client:
                until(lambda: client.get("/-/ready").status_code == httpx.codes.OK)
                yield client
        finally:
            process.terminate()


def answer(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """What an expression is now. Raises AssertionError if Prometheus does not understand it."""
    response = client.get("/api/v1/query", params={"query": expression})
    assert response.json()["status"] == "success", (expression, response.text)
    found: list[dict[str, Any]] = response.json()["data"]["result"]
    return found


def expressions() -> list[str]:
    """What the panels of the dashboard ask, with Grafana's variables filled in."""
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [each.replace("$__rate_interval", "1m").replace("$model", ".*") for each in asked]


def test_metrics_are_those_of_the_documentation(service: Service) -> None:
    """With their types and labels, and with what happened: one job done, one canceled, one refused."""
    job = service.ended(service.submit(**POINTS, count=3, steps=4)["id"])
    long = service.submit(**POINTS, count=256, steps=10_000)
    service.client.post(long["links"]["cancel"])
    assert service.client.post("/v1/samples", json=POINTS | {"D": 7}).status_code == 422
    text = until(
        lambda: text if value(text := service.client.get("/metrics").text, "pfgmpp_job_duration_seconds_count") else ""
    )
    assert shown(text) == documented()
    model = job["request"]["model"]
    finished = {outcome: value(text, "pfgmpp_jobs_finished_total", outcome=outcome) for outcome in job_outcomes(text)}
    assert finished == {"succeeded": 1, "failed": 0, "canceled": 1, "expired": 0}
    assert value(text, "pfgmpp_jobs_submitted_total") == 2
    assert value(text, "pfgmpp_jobs_rejected_total", reason="unknown-model") == 1
    assert value(text, "pfgmpp_jobs_rejected_total") == 1
    assert value(text, "pfgmpp_images_generated_total", model=model) == 3
    assert value(text, "pfgmpp_network_evaluations_total", model=model, kind="useful") == 3 * 7
    assert value(text, "pfgmpp_batches_total", model=model, reason="idle") == 1
    assert value(text, "pfgmpp_batch_images_bucket", model=model, le="4.0") == 1
    total, *stages = (
        value(text, "pfgmpp_job_duration_seconds_sum", model=model, stage=stage)
        for stage in ("total", "queue", "batch_wait", "sampling", "encoding")
    )
    assert total == pytest.approx(sum(stages), abs=1e-5)
    assert value(text, "pfgmpp_redis_up") == value(text, "pfgmpp_build_info") == 1
    assert value(text, "pfgmpp_workers") >= 1
    assert 50e6 < value(text, "pfgmpp_worker_memory_bytes", kind="resident") < 5e9


def job_outcomes(text: str) -> set[str]:
    """The values that a label is shown with."""
    return {dict(labels)["outcome"] for name, labels in samples(text) if name == "pfgmpp_jobs_finished_total"}


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_what_is_shown(service: Service, worker_url: str) -> None:
    service.ended(service.submit(**POINTS, steps=2)["id"])
    for url in (service.url, worker_url):
        promtool("check", "metrics", stdin=httpx.get(f"{url}/metrics").text)
    alone = shown(httpx.get(f"{worker_url}/metrics").text)
    assert alone.items() <= documented().items()
    assert {"pfgmpp_build_info", "pfgmpp_network_evaluations_total"} <= alone.keys()


@needs_prometheus
def test_a_real_prometheus_finds_data_for_every_panel_and_no_alert(
    service: Service, worker_url: str, tmp_path: Path
) -> None:
    with prometheus(tmp_path, {"api": service.url, "worker": worker_url}) as client:
        until(lambda: [each["value"][1] for each in answer(client, "up")] == ["1", "1"])
        service.ended(service.submit(**POINTS, steps=2)["id"])
        service.client.post("/v1/samples", json=POINTS | {"D": 7})
        rules = client.get("/api/v1/rules").json()["data"]["groups"]
        loaded = {rule["name"]: rule for group in rules for rule in group["rules"]}
        assert loaded.keys() == ALERTS.keys() | RECORDS.keys()
        for expression in (*expressions(), *RECORDS):
            until(lambda: answer(client, expression))  # noqa: B023
        for rule in ALERTS.values():
            until(lambda: not answer(client, rule["expr"]))  # noqa: B023
        until(lambda: not answer(client, "ALERTS"))
        names = answer(client, 'group by (__name__) ({__name__=~"pfgmpp_.+"})')
        families = {SUFFIXES.sub("", each["metric"]["__name__"]) for each in names}
        assert families == documented().keys()


def test_nothing_is_shown_of_a_worker_that_died(service: Service) -> None:
    def memory() -> float:
        return value(service.client.get("/metrics").text, "pfgmpp_worker_memory_bytes", kind="resident")

    before, victim = until(memory), service.pid("worker-1")
    os.kill(victim, signal.SIGKILL)
    until(lambda: service.pid("worker-1") != victim and memory())
    assert memory() < 1.5 * before
    assert not list((service.folder / "data" / "metrics").glob(f"gauge_live*_{victim}.db"))


@needs_prometheus
@pytest.mark.parametrize("file", ["alerts_test.yml", "alerts_recorded_test.yml"])
def test_alerts_fire_for_what_they_should_and_nothing_else(file: str) -> None:
    promtool("test", "rules", str(DOCKER / file))


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_rules_and_configuration() -> None:
    promtool("check", "rules", "--lint-fatal", str(DOCKER / "alerts.yml"))
    promtool("check", "config", "--lint-fatal", str(DOCKER / "prometheus.yml"))


def test_every_alert_is_tested_explained_and_watches_what_there_is() -> None:
    tests, pages = (DOCKER / "alerts_test.yml").read_text(), (ROOT / "docs" / "alerts.md").read_text()
    fired = set(re.findall(r'alertname="(\w+)", alertstate="firing"', tests))
    headings = [heading.lower() for heading in re.findall(r"^## (\w+)$", pages, re.M)]
    assert fired == ALERTS.keys()
    assert headings == [name.lower() for name in ALERTS]
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
    for rule in (*ALERTS.values(), *RECORDS.values()):
        assert used(rule["expr"]) <= documented().keys(), rule


def used(expression: str) -> set[str]:
    """The metrics of the service that an expression looks at."""
    return {SUFFIXES.sub("", name) for name in re.findall(r"(?<!:)\bpfgmpp_\w+\b(?!:)", expression)}


def test_the_dashboard_is_whole() -> None:
    """Every panel has an id and a place of its own, a title, a source of data, and looks at metrics that there are."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    assert not [(a, b) for a, b in combinations(places, 2) if overlap(a, b)]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "model"]
    for panel in PANELS:
        assert panel["title"]
        assert panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    looked_at = set[str]().union(*map(used, expressions()))
    assert looked_at <= documented().keys()
    recorded = set(re.findall(r"\b\w*:\w+:\w+\b", " ".join(expressions())))
    assert recorded <= RECORDS.keys()
    shown_nowhere = (
        documented().keys() - looked_at - set[str]().union(*(used(rule["expr"]) for rule in RECORDS.values()))
    )
    assert shown_nowhere == set()


def overlap(a: Mapping[str, int], b: Mapping[str, int]) -> bool:
    """Whether two panels lie on each other."""
    is_beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    return not (is_beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"])


def test_grafana_is_provisioned_with_the_files_that_compose_mounts() -> None:
    """Grafana itself is not run here."""
    its = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["grafana"]
    mounts = {where: ROOT / what for what, where, *_ in (volume.split(":") for volume in its["volumes"])}
    provisioning = mounts["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "pfgmpp.yml").read_text())["providers"]
    home = Path(its["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (mounts[str(home.parent)] / home.name).exists()
