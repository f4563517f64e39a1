"""The manifests and units of `deploy`: valid, in agreement with the code, and no more privileged than they must be."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator, ValidationError

from service import __version__, metrics
from service.catalogue import Catalogue
from service.cli import app
from service.messages import Census
from service.settings import Settings
from service.supervisor import MISCONFIGURED
from service.worker import INSIST_SECONDS
from tests.documents import blocks
from tests.test_containers import COMPOSE, ROUTES, image_environment, said, worker_metrics_port

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "deploy" / "kubernetes"
UNITS = ROOT / "deploy" / "systemd"
SCHEMAS = {
    schema["properties"]["kind"]["const"]: schema
    for schema in (json.loads(file.read_text()) for file in (ROOT / "tests" / "fixtures").glob("*.json"))
}
OLDEST = "1.30"
"""Kubernetes, of which `sleep` is taken as preStop."""

PLACES = ["", "base", "gpu-s3"]
"""Where there is something to be applied, below MANIFESTS."""

OURS = ["api", "worker"]
ANSWERING_SECONDS = 2
"""How long answers under way may take when the API closes (uvicorn's timeout_graceful_shutdown)."""

Manifest = dict[str, Any]


@cache
def rendered(place: str) -> list[Manifest]:
    """What `kubectl apply -k` would apply."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed, which renders kustomizations")
    command = ["kubectl", "kustomize", str(MANIFESTS / place)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return list(yaml.safe_load_all(shown.stdout))


def of_kind(place: str, *kinds: str) -> list[Manifest]:
    """All that is of some kinds."""
    return [each for each in rendered(place) if each["kind"] in kinds]


def named(place: str, kind: str, name: str) -> Manifest:
    """The one of that kind and name; of names with a hash, what stands before it."""
    [found] = [each for each in of_kind(place, kind) if re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"]) == name]
    return found


def workloads(place: str) -> list[Manifest]:
    """All that makes pods."""
    return of_kind(place, "Deployment", "StatefulSet")


def pod_of(place: str, name: str) -> Manifest:
    """The pods of a workload."""
    [pod] = [each["spec"]["template"] for each in workloads(place) if each["metadata"]["name"] == name]
    return dict(pod)


def container_of(place: str, name: str) -> Manifest:
    """The one container of a workload's pods."""
    [container] = pod_of(place, name)["spec"]["containers"]
    return dict(container)


def value_of(variable: Manifest, common: Manifest) -> str | None:
    """The value of a variable of a container, of the common settings if it is taken from them; None for secrets."""
    taken = variable.get("valueFrom", {}).get("configMapKeyRef")
    if not taken:
        return variable.get("value")
    assert taken["name"] == common["metadata"]["name"]
    assert not taken.get("optional", False)
    return str(common["data"][taken["key"]])


def environment_of(place: str, name: str) -> dict[str, str | None]:
    """The environment of a container of ours: of its image, of the common settings, its own; None for secrets."""
    container = container_of(place, name)
    common = named(place, "ConfigMap", "pfgmpp")
    assert container["envFrom"][0] == {"configMapRef": {"name": common["metadata"]["name"]}}
    own = {each["name"]: value_of(each, common) for each in container["env"]}
    return {**image_environment(name), **common["data"], **own}


def settings_of(environment: dict[str, str | None]) -> Settings:
    """The settings that a process with that environment reads."""
    given = {name: value for name, value in environment.items() if value is not None}
    with patch.dict(os.environ, given, clear=True):
        return Settings()


def port_of(place: str, name: str, port: str) -> int:
    """The number of a port that a container calls by a name."""
    [number] = [each["containerPort"] for each in container_of(place, name)["ports"] if each["name"] == port]
    return int(number)


def is_selected(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector takes something with such labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def pods_selected(place: str, selector: Manifest) -> set[str]:
    """The workloads whose pods a selector takes."""
    return {
        each["metadata"]["name"]
        for each in workloads(place)
        if is_selected(selector, each["spec"]["template"]["metadata"]["labels"])
    }


def check(manifest: Manifest) -> None:
    """Hold a manifest against the schema of its kind. Raises ValidationError."""
    if manifest["kind"] in SCHEMAS:
        Draft202012Validator(SCHEMAS[manifest["kind"]]).validate(manifest)
    else:
        for version in (OLDEST, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("place", PLACES)
def test_every_manifest_follows_its_schema(place: str) -> None:
    for manifest in rendered(place):
        check(manifest)


def test_how_it_scales_is_what_an_autoscaler_takes() -> None:
    spec = named("", "ScaledObject", "worker")["spec"]
    check(
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "keda-hpa-worker"},
            "spec": {
                "scaleTargetRef": spec["scaleTargetRef"],
                "minReplicas": spec["minReplicaCount"],
                "maxReplicas": spec["maxReplicaCount"],
                "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
            },
        }
    )


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("Deployment", ("spec", "template", "spec", "restartPolice"), "Always"),
        ("PodDisruptionBudget", ("spec", "selector"), "api"),
        ("ScaledObject", ("spec", "maxReplicas"), 8),
        ("ScaledObject", ("spec", "triggers", 0, "metadata", "threshold"), 60000),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "interval"), 10),
    ],
)
def test_broken_manifests_are_refused(kind: str, path: Sequence[Any], wrong: object) -> None:
    broken = json.loads(json.dumps(of_kind("", kind)[0]))
    *way, last = path
    inner = broken
    for step in way:
        inner = inner[step]
    inner[last] = wrong
    with pytest.raises(ValidationError):
        check(broken)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OURS)
def test_environment_is_settings(place: str, name: str) -> None:
    environment = environment_of(place, name)
    names = {each.removeprefix("PFGMPP_").lower() for each in environment if each.startswith("PFGMPP_")}
    assert names <= Settings.model_fields.keys()
    settings = settings_of(environment)
    [service] = [each for each in of_kind(place, "Service") if each["metadata"]["name"] == "valkey"]
    assert settings.redis_url == f"redis://valkey:{service['spec']['ports'][0]['port']}/0"
    assert settings.device == ("cuda" if (place, name) == ("gpu-s3", "worker") else "auto")
    assert settings.log_format == "json"


@pytest.mark.parametrize("place", PLACES)
def test_ports_and_probes_are_those_of_the_code(place: str) -> None:
    assert port_of(place, "api", "http") == settings_of(environment_of(place, "api")).port
    assert port_of(place, "worker", "metrics") == worker_metrics_port()
    probes = {
        name: {
            kind: container_of(place, name)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
        }
        for name in OURS
    }
    # Ready is said of a pod alone: without Valkey or workers, all pods go on answering 503 with a reason.
    assert set(map(str, probes["api"].values())) == {str({"path": "/livez", "port": "http"})}
    assert set(map(str, probes["worker"].values())) == {str({"path": "/metrics", "port": "metrics"})}
    paths = {route.path for route in ROUTES if isinstance(route, APIRoute)}
    assert {each["path"] for name in OURS for each in probes[name].values()} <= paths


@pytest.mark.parametrize("place", PLACES)
def test_services_reach_a_port_of_their_pods(place: str) -> None:
    for service in of_kind(place, "Service"):
        [name] = pods_selected(place, {"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            assert port_of(place, name, port["targetPort"])


@pytest.mark.parametrize("place", PLACES)
def test_selectors_take_the_pods_they_are_named_after(place: str) -> None:
    for each in (*workloads(place), *of_kind(place, "PodDisruptionBudget", "PodMonitor")):
        assert pods_selected(place, each["spec"]["selector"]) == {each["metadata"]["name"]}
    assert {each["metadata"]["name"] for each in of_kind(place, "PodDisruptionBudget")} == set(OURS)
    for name in OURS:
        [spread] = pod_of(place, name)["spec"]["topologySpreadConstraints"]
        assert pods_selected(place, spread["labelSelector"]) == {name}


@pytest.mark.parametrize("place", PLACES)
def test_pods_have_time_to_stop(place: str) -> None:
    api, worker = (settings_of(environment_of(place, name)) for name in OURS)
    seconds = {name: pod_of(place, name)["spec"]["terminationGracePeriodSeconds"] for name in OURS}
    before = container_of(place, "api")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert api.drain_seconds > 0
    assert seconds["api"] >= before + api.drain_seconds + ANSWERING_SECONDS + 5
    assert seconds["worker"] >= worker.grace_seconds + 2 * INSIST_SECONDS + 5


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*OURS, "valkey"])
def test_pods_have_no_privileges(place: str, name: str) -> None:
    pod, container = pod_of(place, name)["spec"], container_of(place, name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (
        named(place, "Namespace", "pfgmpp")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OURS)
def test_no_variable_of_a_service_passes_for_a_setting(place: str, name: str) -> None:
    assert pod_of(place, name)["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OURS)
def test_files_belong_to_the_user_of_the_image(place: str, name: str) -> None:
    [user] = said(name, "USER")
    context = pod_of(place, name)["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["fsGroup"] == context["runAsGroup"]


@pytest.mark.parametrize("place", ["", "base"])
def test_results_are_a_volume_of_api_and_workers(place: str) -> None:
    assert named(place, "PersistentVolumeClaim", "results")["spec"]["accessModes"] == ["ReadWriteMany"]
    for name in OURS:
        path = str(settings_of(environment_of(place, name)).results_dir)
        [mount] = [each for each in container_of(place, name)["volumeMounts"] if each["mountPath"] == path]
        [volume] = [each for each in pod_of(place, name)["spec"]["volumes"] if each["name"] == mount["name"]]
        assert volume["persistentVolumeClaim"] == {"claimName": "results"}
        assert mount.get("readOnly", False) == (name == "api")


def test_results_in_a_bucket_need_no_volume() -> None:
    assert not of_kind("gpu-s3", "PersistentVolumeClaim")
    for name in OURS:
        assert {"secretRef": {"name": "pfgmpp-s3", "optional": True}} in container_of("gpu-s3", name)["envFrom"]
        assert "results" not in {each["name"] for each in pod_of("gpu-s3", name)["spec"]["volumes"]}


@pytest.mark.parametrize("bucket", ["s3://my-bucket/pfgmpp", "s3://another/place"])
def test_results_go_to_the_bucket_that_the_overlay_names(bucket: str, tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path, dirs_exist_ok=True)
    overlay = tmp_path / "gpu-s3" / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("s3://my-bucket/pfgmpp", bucket))
    place = str(overlay.parent)
    assert named(place, "ConfigMap", "pfgmpp")["data"]["AWS_REGION"] == "eu-central-1"
    for name in OURS:
        assert settings_of(environment_of(place, name)).results_url == bucket


def test_no_pod_starts_without_the_bucket_that_an_overlay_must_name(tmp_path: Path) -> None:
    """For a variable is taken of the common settings that is not there."""
    shutil.copytree(MANIFESTS, tmp_path, dirs_exist_ok=True)
    overlay = tmp_path / "gpu-s3" / "kustomization.yaml"
    overlay.write_text(re.sub(r"(?m)^ +- (PFGMPP_RESULTS_URL|AWS_REGION)=.*\n", "", overlay.read_text()))
    place = str(overlay.parent)
    assert not {"PFGMPP_RESULTS_URL", "AWS_REGION"} & named(place, "ConfigMap", "pfgmpp")["data"].keys()
    for name in OURS:
        with pytest.raises(KeyError, match="PFGMPP_RESULTS_URL"):
            environment_of(place, name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", OURS)
def test_what_is_mounted_is_there(place: str, name: str) -> None:
    mounts = {each["name"] for each in container_of(place, name)["volumeMounts"]}
    assert mounts == {each["name"] for each in pod_of(place, name)["spec"]["volumes"]}
    assert "/tmp" in {each["mountPath"] for each in container_of(place, name)["volumeMounts"]}


@pytest.mark.parametrize("place", PLACES)
def test_the_api_asks_for_keys(place: str) -> None:
    settings = settings_of(environment_of(place, "api"))
    assert settings.keys_file
    assert not settings.allow_anyone
    [volume] = [each for each in pod_of(place, "api")["spec"]["volumes"] if each["name"] == "keys"]
    assert volume["secret"]["secretName"] == "pfgmpp-keys"
    [mount] = [each for each in container_of(place, "api")["volumeMounts"] if each["name"] == "keys"]
    assert settings.keys_file.parent == Path(mount["mountPath"])
    assert "subPath" not in mount  # a key that is added would not be seen


@pytest.mark.parametrize("place", PLACES)
def test_valkey_keeps_jobs_as_compose_has_it(place: str) -> None:
    valkey = COMPOSE["services"]["valkey"]
    container = container_of(place, "valkey")
    assert container["image"] == valkey["image"]
    assert container["command"] == valkey["command"]
    mounts = [each["mountPath"] for each in container["volumeMounts"]]
    assert mounts == [volume.partition(":")[2] for volume in valkey["volumes"]]
    assert container["readinessProbe"]["exec"]["command"] == valkey["healthcheck"]["test"][1:]


def test_workers_on_gpus_have_one_each() -> None:
    resources = container_of("gpu-s3", "worker")["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == 1
    assert "gpu" in container_of("gpu-s3", "worker")["image"]
    strategy = named("gpu-s3", "Deployment", "worker")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("place", ["", "gpu-s3"])
def test_images_are_of_this_version(place: str) -> None:
    assert {container_of(place, name)["image"].rpartition(":")[2] for name in OURS} == {__version__}


@pytest.mark.parametrize("place", ["", "gpu-s3"])
def test_the_scaler_watches_the_queue(place: str) -> None:
    spec = named(place, "ScaledObject", "worker")["spec"]
    target = spec["scaleTargetRef"]
    workers = named(place, target["kind"], target["name"])
    assert "replicas" not in workers["spec"]
    assert spec["minReplicaCount"] >= 1
    [trigger] = spec["triggers"]
    [series] = set(re.findall(r"pfgmpp_\w+", trigger["metadata"]["query"]))
    exposed = metrics.exposition(Census(), Catalogue([])).decode()
    assert f"# TYPE {series} gauge" in exposed
    assert f'namespace="{workers["metadata"]["namespace"]}"' in trigger["metadata"]["query"]


@pytest.mark.parametrize(("place", "per_second"), [("", 2_000), ("gpu-s3", 10_000)])
def test_the_scaler_knows_what_a_worker_does(place: str, per_second: int) -> None:
    """As docs/sizing.md says: half a minute's work of a core, or of a GPU, for which a figure stands in."""
    [trigger] = named(place, "ScaledObject", "worker")["spec"]["triggers"]
    assert int(trigger["metadata"]["threshold"]) == 30 * per_second
    [told] = re.findall(r"(?s)## The scaler\n(.*?)\n## ", (ROOT / "docs" / "sizing.md").read_text())
    assert f"{30 * per_second:,}" in told
    assert f"{per_second:,} a second" in told


def test_the_scaler_counts_the_queue_once(tmp_path: Path) -> None:
    """However many API replicas tell of it."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    query = named("", "ScaledObject", "worker")["spec"]["triggers"][0]["metadata"]["query"]
    waiting = {"digits-d2048": 300, "cifar10-d128": 50}
    series = [
        {"series": f'pfgmpp_queue_evaluations{{namespace="pfgmpp", pod="api-{k}", model="{model}"}}', "values": value}
        for k in range(3)
        for model, value in waiting.items()
    ]
    expected = {"expr": query, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": sum(waiting.values())}]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"tests": [{"input_series": series, "promql_expr_test": [expected]}]}))
    tested = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_command_for_alerts_makes_an_object_of_them() -> None:
    [block] = [each for each in blocks(ROOT / "docs" / "operating.md") if "PrometheusRule" in each.text]
    made_by, _, applied_by = block.text.partition("| kubectl")
    assert applied_by.split() == ["-n", "pfgmpp", "apply", "-f", "-"]
    made = subprocess.run(["bash", "-euc", made_by], capture_output=True, text=True, check=True, cwd=ROOT)
    assert yaml.safe_load(made.stdout) == {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "pfgmpp"},
        "spec": yaml.safe_load((ROOT / "docker" / "alerts.yml").read_text()),
    }


@pytest.mark.parametrize("name", OURS)
def test_alerts_know_the_jobs_that_the_operator_names(name: str) -> None:
    """After namespace and PodMonitor."""
    metadata = named("", "PodMonitor", name)["metadata"]
    groups = yaml.safe_load((ROOT / "docker" / "alerts.yml").read_text())["groups"]
    [rule] = [rule for group in groups for rule in group["rules"] if rule.get("alert") == "PfgmppTargetDown"]
    [pattern] = re.findall(r'job=~"(.+?)"', rule["expr"])
    assert re.fullmatch(pattern, f"{metadata['namespace']}/{metadata['name']}")
    assert not re.fullmatch(pattern, f"another/{name}")


def test_monitors_scrape_what_can_be_scraped() -> None:
    for monitor in of_kind("", "PodMonitor"):
        name = monitor["metadata"]["name"]
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert port_of("", name, endpoint["port"])
        assert endpoint["path"] == "/metrics"
        assert ("authorization" in endpoint) == (name == "api")


@pytest.mark.parametrize("place", PLACES)
def test_the_network_lets_pass_what_must_and_no_more(place: str) -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(place, "NetworkPolicy")}
    assert policies["default"]["podSelector"] == {}
    assert policies["default"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policies["default"]
    for name in OURS:
        assert pods_selected(place, policies[name]["podSelector"]) == {name}
        [way] = policies[name]["egress"]
        assert pods_selected(place, way["to"][0]["podSelector"]) == {"valkey"}
        assert way["ports"] == [{"port": port_of(place, "valkey", "redis")}]
    [entry] = policies["valkey"]["ingress"]
    assert pods_selected(place, entry["from"][0]["podSelector"]) == set(OURS)


def ways_out(place: str, name: str) -> list[Manifest]:
    """What all policies together let the pods of a workload reach."""
    return [
        way
        for policy in of_kind(place, "NetworkPolicy")
        if name in pods_selected(place, policy["spec"]["podSelector"])
        for way in policy["spec"].get("egress", [])
    ]


def addresses_open(place: str, name: str) -> set[tuple[str, int, str]]:
    """The single addresses that a workload reaches: (address, port, protocol)."""
    return {
        (to["ipBlock"]["cidr"], port["port"], port.get("protocol", "TCP"))
        for way in ways_out(place, name)
        for to in way.get("to", [])
        if to.get("ipBlock", {}).get("cidr", "").endswith("/32")
        for port in way["ports"]
    }


@pytest.mark.parametrize("name", OURS)
def test_names_and_credentials_can_be_asked_for(name: str) -> None:
    names = {("169.254.20.10/32", 53, protocol) for protocol in ("TCP", "UDP")}
    credentials = {(f"{address}/32", 80, "TCP") for address in ("169.254.169.254", "169.254.170.23")}
    assert addresses_open("", name) == names
    assert addresses_open("gpu-s3", name) == names | credentials


@pytest.mark.parametrize("name", OURS)
def test_traces_reach_the_collector(name: str) -> None:
    endpoint = urlsplit(environment_of("gpu-s3", name)["OTEL_EXPORTER_OTLP_ENDPOINT"] or "")
    _, namespace, _ = (endpoint.hostname or "").split(".")
    to = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
    assert {"to": [to], "ports": [{"port": endpoint.port}]} in ways_out("gpu-s3", name)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in environment_of("", name)


def directives(unit: Path) -> Iterator[tuple[str, str]]:
    """What a unit says, in its order: (name, value)."""
    for line in unit.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            yield name, value


def told(unit: Path, name: str) -> list[str]:
    """The values that a unit gives to one name."""
    return [value for each, value in directives(unit) if each == name]


UNIT_FILES = sorted(UNITS.glob("*.service"))
NAMES = [unit.name for unit in UNIT_FILES]


def unit_environment(unit: Path) -> dict[str, str | None]:
    """The variables that a unit sets, for its instance 1 on the machine `host`."""
    words = [word for line in told(unit, "Environment") for word in line.split()]
    return {
        name: value.replace("%i", "1").replace("%H", "host")
        for name, _, value in (word.partition("=") for word in words)
    }


def analyze(tmp_path: Path, verb: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Have systemd look at the units, with this program in place of that which is to be installed."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    for unit in UNIT_FILES:
        text = unit.read_text().replace("/opt/pfgmpp/bin/pfgmpp", str(Path(sys.executable).with_name("pfgmpp")))
        (tmp_path / unit.name).write_text(text)
    files = [str(tmp_path / name.replace("@", "@1")) for name in NAMES] if verb == "verify" else []
    (tmp_path / "pfgmpp-worker@1.service").write_text((tmp_path / "pfgmpp-worker@.service").read_text())
    return subprocess.run(
        ["systemd-analyze", verb, *options, *files], capture_output=True, text=True, check=False, cwd=tmp_path
    )


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    verified = analyze(tmp_path, "verify", "--man=no")
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_units_are_hardened(tmp_path: Path, name: str) -> None:
    judged = analyze(tmp_path, "security", "--offline=yes", "--threshold=20", "--no-pager", f"./{name}")
    assert judged.returncode == 0, judged.stdout[-2000:]


@pytest.mark.parametrize("unit", UNIT_FILES, ids=NAMES)
def test_units_run_commands_that_exist(unit: Path) -> None:
    [command] = told(unit, "ExecStart")
    program, subcommand = command.split()
    assert program == "/opt/pfgmpp/bin/pfgmpp"
    assert subcommand in {each.name or each.callback.__name__ for each in app.registered_commands if each.callback}
    assert subcommand == {"pfgmpp": "serve", "pfgmpp-api": "api", "pfgmpp-worker@": "worker"}[unit.stem]


@pytest.mark.parametrize("unit", UNIT_FILES, ids=NAMES)
def test_units_set_settings(unit: Path) -> None:
    environment = unit_environment(unit)
    assert {name.removeprefix("PFGMPP_").lower() for name in environment} <= Settings.model_fields.keys()
    settings = settings_of(environment)
    [state] = told(unit, "StateDirectory")
    assert settings.data_dir == Path("/var/lib", state)
    if unit.stem == "pfgmpp-worker@":
        assert (settings.worker_index, settings.worker_name, settings.metrics_port) == (1, "host-1", 9101)


def test_the_example_names_settings() -> None:
    lines = re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", (UNITS / "env.example").read_text(), re.MULTILINE)
    given = dict(lines)
    ours = {name.removeprefix("PFGMPP_").lower() for name in given if name.startswith("PFGMPP_")}
    assert ours <= Settings.model_fields.keys()
    assert {name for name in given if not name.startswith("PFGMPP_")} == {
        "REDIS_URL",
        "AWS_REGION",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    }
    assert settings_of(given).keys_file


@pytest.mark.parametrize("unit", UNIT_FILES, ids=NAMES)
def test_units_have_time_to_stop(unit: Path) -> None:
    settings = settings_of(unit_environment(unit))
    [seconds] = map(float, told(unit, "TimeoutStopSec"))
    needed = {
        "pfgmpp": 2 * (max(settings.grace_seconds, settings.drain_seconds) + 5),
        "pfgmpp-api": settings.drain_seconds + ANSWERING_SECONDS,
        "pfgmpp-worker@": settings.grace_seconds + 2 * INSIST_SECONDS,
    }
    assert seconds >= needed[unit.stem] + 5
    assert told(unit, "KillMode") == ["mixed"]
    assert told(unit, "KillSignal") == ["SIGTERM"]


@pytest.mark.parametrize("unit", UNIT_FILES, ids=NAMES)
def test_units_start_again_what_would_run(unit: Path) -> None:
    assert told(unit, "Restart") == ["on-failure"]
    assert told(unit, "RestartPreventExitStatus") == [str(MISCONFIGURED)]


def test_units_are_of_a_user_who_is_made() -> None:
    [made] = [line.split()[1] for line in (UNITS / "pfgmpp.sysusers").read_text().splitlines() if line[0] == "u"]
    assert {value for unit in UNIT_FILES for name in ("User", "Group") for value in told(unit, name)} == {made}
