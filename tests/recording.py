"""`python -m tests.recording`: what a healthy service shows, as a test of the alert rules in which none fires."""

import argparse
import random
import re
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.running import Service, running

DOCKER = Path(__file__).parent.parent / "docker"
RULES = DOCKER / "alerts.yml"
RECORDED = DOCKER / "alerts_recorded_test.yml"
ABSENT = "_"

HEAD = """\
# What a service at work showed, every {interval:g} s for {minutes:g} minutes: no alert may fire, nor be about to.
# Made by `python -m tests.recording`, of the series that the rules look at; run by `promtool test rules`.

rule_files: [alerts.yml]
evaluation_interval: {interval:g}s

tests:
  - name: a service at work
    interval: {interval:g}s
    promql_expr_test:
"""


def watched(rules: str) -> set[str]:
    """The names of the samples that rules look at."""
    return set(re.findall(r"\b(?:pfgmpp_\w+|up)\b(?=[{\[) ])", rules))


def scrape(service: Service) -> dict[str, str]:
    """What Prometheus would store now: samples by series, in its notation."""
    shown = {'up{job="api"}': "1"}
    for family in text_string_to_metric_families(service.client.get("/metrics").text):
        for sample in family.samples:
            labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items())
            shown[f"{sample.name}{{{labels}}}"] = f"{sample.value:.3f}".rstrip("0").rstrip(".")
    return shown


def ask_for_images(service: Service, until: float) -> None:
    """Submit a job every other second, of a kind that is drawn, until a moment of time.monotonic."""
    drawn = random.Random(0)
    while time.monotonic() < until:
        request = {"D": drawn.choice([128, 2048]), "count": drawn.randint(1, 8), "steps": drawn.randint(4, 18)}
        job = service.submit(dataset="digits", **request)
        if drawn.random() < 0.02:
            service.client.post(job["links"]["cancel"])
        elif drawn.random() < 0.5:
            service.ended(job["id"])
        service.client.post("/v1/samples", json={"dataset": "cats"})
        time.sleep(2)


def record(minutes: float, interval: float) -> list[dict[str, str]]:
    """The scrapes of a service that is asked for images meanwhile."""
    scrapes = list[dict[str, str]]()
    with running(compile=False) as service:
        began = time.monotonic()
        for k in range(1 + round(60 * minutes / interval)):
            ask_for_images(service, began + k * interval)
            scrapes.append(scrape(service))
    return scrapes


def notation(values: Sequence[str]) -> Iterator[str]:
    """Values as promtool has them, those that stay the same together."""
    for value, same in groupby(values):
        times = len(list(same))
        yield value if times == 1 else f"{value}x{times if value == ABSENT else times - 1}"


def rules_test(scrapes: Sequence[dict[str, str]], names: set[str], minutes: float, interval: float) -> str:
    """The test file: that no alert fires, that there was something to look at, and the series."""
    lines = [HEAD.format(interval=interval, minutes=minutes)]
    times = range(1, int(minutes) + 1)
    lines += [f"      - {{ expr: ALERTS, eval_time: {minute}m, exp_samples: [] }}\n" for minute in times]
    for expression in (
        "count(model_stage:pfgmpp_job_duration_seconds:p95_15m{stage='total'}) > bool 0",
        "sum(model_kind:pfgmpp_network_evaluations:rate15m{kind='useful'}) > bool 0",
        "sum(increase(pfgmpp_eta_total[15m])) > bool 0",
    ):
        lines.append(f'      - expr: "{expression}"\n        eval_time: {int(minutes)}m\n')
        lines.append("        exp_samples: [{ labels: '{}', value: 1 }]\n")
    lines.append("    input_series:\n")
    for series in sorted({series for shown in scrapes for series in shown}):
        if series.partition("{")[0] in names:
            values = " ".join(notation([shown.get(series, ABSENT) for shown in scrapes]))
            lines.append(f"      - {{ series: '{series}', values: \"{values}\" }}\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--interval", type=float, default=30, help="seconds between scrapes")
    parser.add_argument("-o", "--output", type=Path, default=RECORDED)
    asked = parser.parse_args()
    scrapes = record(asked.minutes, asked.interval)
    asked.output.write_text(rules_test(scrapes, watched(RULES.read_text()), asked.minutes, asked.interval))


if __name__ == "__main__":
    main()
