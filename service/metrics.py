"""Prometheus metrics: counters and histograms where things happen, gauges of the queue read from Redis at each scrape.

With PROMETHEUS_MULTIPROC_DIR set (by `pfgmpp serve`), API and local workers share one exposition. docs/metrics.md tells
what each is for.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.catalogue import Catalogue
from service.job import ENDS, Latency
from service.logs import get_logger
from service.messages import Census, GivenBack

# When a series began is of no use here, and would double what a worker alone shows.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
log = get_logger()
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"

SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600)
FINE_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

ETA_RANGES = ("below_p50", "p50_to_p90", "above_p90")
"""Of a prediction: where the truth fell."""

jobs_submitted = Counter("pfgmpp_jobs_submitted", "Jobs accepted.", ["model"], registry=REGISTRY)
jobs_finished = Counter("pfgmpp_jobs_finished", "Jobs ended.", ["model", "outcome"], registry=REGISTRY)
jobs_rejected = Counter("pfgmpp_jobs_rejected", "Submissions refused.", ["reason"], registry=REGISTRY)
jobs_reclaimed = Counter("pfgmpp_jobs_reclaimed", "Jobs taken back from lost workers.", ["model"], registry=REGISTRY)
images_generated = Counter("pfgmpp_images_generated", "Images delivered.", ["model"], registry=REGISTRY)
network_evaluations = Counter(
    "pfgmpp_network_evaluations", "Network evaluations, one per image.", ["model", "kind"], registry=REGISTRY
)
batches = Counter(
    "pfgmpp_batches", "Batches begun, by why they were not larger.", ["model", "reason"], registry=REGISTRY
)
job_duration = Histogram(
    "pfgmpp_job_duration_seconds", "Where a job's time went.", ["model", "stage"], buckets=SECONDS, registry=REGISTRY
)
batch_images = Histogram("pfgmpp_batch_images", "Images of a claim.", ["model"], buckets=IMAGES, registry=REGISTRY)
network_evaluation_seconds = Histogram(
    "pfgmpp_network_evaluation_seconds",
    "One network evaluation of a whole batch.",
    ["model"],
    buckets=FINE_SECONDS,
    registry=REGISTRY,
)
webhooks = Counter("pfgmpp_webhooks", "Calls of webhooks.", ["outcome"], registry=REGISTRY)
eta = Counter(
    "pfgmpp_eta",
    "Predictions of when a job ends, by where the truth fell: half belong below p50, a tenth above p90.",
    ["model", "range"],
    registry=REGISTRY,
)
store_errors = Counter("pfgmpp_store_errors", "Times that the result store failed.", ["operation"], registry=REGISTRY)
http_request_duration = Histogram(
    "pfgmpp_http_request_duration_seconds",
    "HTTP requests, long polls included.",
    ["method", "route", "code"],
    buckets=SECONDS,
    registry=REGISTRY,
)
worker_memory = Gauge(
    "pfgmpp_worker_memory_bytes",
    "Memory of the workers.",
    ["kind"],
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
worker_start_time = Gauge(
    "pfgmpp_worker_start_time_seconds",
    "When the worker that was started last became ready, since 1970.",
    ["device"],
    registry=REGISTRY,
    multiprocess_mode="max",
)
build_info = Gauge(
    "pfgmpp_build_info",
    "What the workers run.",
    ["version", "torch", "device"],
    registry=REGISTRY,
    multiprocess_mode="livemax",
)


def introduce_model(model: str) -> None:
    """Show the counters of a model from 0 on: of a series that begins with 1, Prometheus sees no increase."""
    for outcome in ENDS:
        jobs_finished.labels(model, outcome)
    for kind in ("useful", "padding", "wasted"):
        network_evaluations.labels(model, kind)
    for reason in ("full", "timeout", "idle"):
        batches.labels(model, reason)
    for each in ETA_RANGES:
        eta.labels(model, each)
    for counter in (jobs_submitted, jobs_reclaimed, images_generated):
        counter.labels(model)


def introduce_reasons(reasons: Iterable[str]) -> None:
    """Show from 0 on the counters that are of no model; `reasons` are those for which the API refuses submissions."""
    for reason in reasons:
        jobs_rejected.labels(reason)
    for outcome in ("delivered", "retried", "given_up"):
        webhooks.labels(outcome)
    for operation in ("write", "read", "remove"):
        store_errors.labels(operation)


def observe_job(model: str, latency: Latency) -> None:
    """Record where the time of a finished job went."""
    for stage, seconds in latency.stages().items():
        job_duration.labels(model, stage).observe(seconds)


def count_given_back(job: GivenBack) -> None:
    """Record, and log, a job whose batch was lost, or that was not begun in time."""
    if job.outcome != "expired":
        jobs_reclaimed.labels(job.model).inc()
    if job.outcome != "requeued":
        jobs_finished.labels(job.model, job.outcome).inc()
    say = {"requeued": log.warning, "failed": log.error, "expired": log.info}[job.outcome]
    say(f"job {job.outcome}", job=job.job_id, model=job.model)


def observe_evaluation(model: str, seconds: float, padding: int) -> None:
    """Record one network call, and how many of its images only filled it up."""
    network_evaluation_seconds.labels(model).observe(seconds)
    if padding:
        network_evaluations.labels(model, "padding").inc(padding)


def observe_memory(device_bytes: int | None) -> None:
    """Record what memory this worker holds now."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    worker_memory.labels("resident").set(resident_pages * os.sysconf("SC_PAGE_SIZE"))
    if device_bytes is not None:
        worker_memory.labels("device").set(device_bytes)


class _Scrape(Collector):
    """The gauges of one scrape; of the queue there are none while Redis does not answer."""

    def __init__(self, census: Census | None, catalogue: Catalogue):
        self.census, self.catalogue = census, catalogue

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("pfgmpp_redis_up", "Whether Redis answered this scrape.", self.census is not None)
        if self.census is not None:
            yield from self._queue(self.census)
            yield self._workers()

    def _queue(self, census: Census) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("pfgmpp_queue_jobs", "Jobs with images that wait.", labels=["model"])
        images = GaugeMetricFamily("pfgmpp_queue_images", "Images that wait.", labels=["model"])
        evaluations = GaugeMetricFamily("pfgmpp_queue_evaluations", "Network evaluations that wait.", labels=["model"])
        oldest = GaugeMetricFamily(
            "pfgmpp_queue_oldest_age_seconds", "Age of the oldest job with images that wait.", labels=["model"]
        )
        running = GaugeMetricFamily("pfgmpp_jobs_running", "Jobs begun and not ended.", labels=["model"])
        for each in census.models:
            jobs.add_metric([each.model], each.queued_jobs)
            images.add_metric([each.model], each.queued_images)
            evaluations.add_metric([each.model], each.queued_evaluations)
            oldest.add_metric([each.model], each.oldest_age_seconds)
            running.add_metric([each.model], each.running_jobs)
        yield from (jobs, images, evaluations, oldest, running)

    def _workers(self) -> Metric:
        workers = GaugeMetricFamily("pfgmpp_workers", "Live workers, and those lost just now.", labels=["state"])
        for state in ("idle", "busy", "draining", "lost"):
            workers.add_metric([state], sum(worker.state == state for worker in self.catalogue.workers))
        return workers


def exposition(census: Census | None, catalogue: Catalogue) -> bytes:
    """All metrics in the text format; without a census, those of the processes alone. It takes some milliseconds."""
    for model in () if census is None else census.running:
        introduce_model(model)
    of_scrape = CollectorRegistry()
    of_scrape.register(_Scrape(census, catalogue))
    of_processes = REGISTRY
    if MULTIPROCESS_DIR in os.environ:
        of_processes = CollectorRegistry()
        MultiProcessCollector(of_processes)  # type: ignore[no-untyped-call]
    return generate_latest(of_processes) + generate_latest(of_scrape)
