"""What several tests share: waiting for a condition, and records to put into the queue."""

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.running import PATIENCE_SECONDS
from models.sampling import SOLVER_FACTS
from service import metrics
from service.catalogue import Catalogue, ModelFacts, WorkerState
from service.messages import Batch, Census
from service.policy import Appetite
from service.queue import Queue, new_id

T = TypeVar("T")

LANE = "digits-d2048|sample|18|heun|exact"
MODELS = ["digits-d128", "digits-d2048"]
S3_SECRET = "never-to-be-seen"


async def eventually(condition: Callable[[], Awaitable[T | None]], seconds: float = PATIENCE_SECONDS) -> T:
    """What the condition returns as soon as that is true."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := await condition():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        await asyncio.sleep(0.01)


def facts(dataset: str = "digits", D: float | str = 2048, **changes: object) -> ModelFacts:
    """A model as a worker announces it."""
    return ModelFacts.model_validate(
        {
            "name": f"{dataset}-d{D}",
            "dataset": dataset,
            "D": D,
            "resolution": 8,
            "channels": 1,
            "classes": tuple("0123456789"),
            "default_steps": 18,
            "max_steps": 256,
            "solvers": tuple(SOLVER_FACTS),
            "checkpoint_sha256": "0" * 64,
            "parameters": 1,
            "license": "Apache-2.0",
            "training": {},
        }
        | changes
    )


def worker_state(*models: ModelFacts, **changes: object) -> WorkerState:
    """A worker's word of itself."""
    return WorkerState(name="worker-1", state="idle", device="cpu", models=models or (facts(),)).model_copy(
        update=dict(changes)
    )


def metric(name: str, **labels: str) -> float:
    """The sum of a metric's samples with such labels in this process."""
    text = metrics.exposition(Census(), Catalogue([])).decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def next_batch(
    queue: Queue,
    room: int = 8,
    *,
    below: int = 0,
    is_for_oldest: bool = False,
    worker: str = "worker-1",
    batch_id: str | None = None,
    is_empty_handed: bool = True,
    models: Sequence[str] = MODELS,
) -> Batch | None:
    """What a worker with so much room would claim."""
    appetite = Appetite(dict.fromkeys(models, room), below, is_for_oldest)
    return await queue.claim(batch_id or new_id(), worker, appetite, is_empty_handed)


def forbid(bucket: str, is_forbidden: bool = True) -> None:
    """Let nobody do anything with a bucket, or everybody again."""
    name = bucket.removeprefix("s3://").partition("/")[0]
    policy = f"{os.environ['AWS_ENDPOINT_URL']}/{name}?policy"
    everything = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{name}/*"}
    if is_forbidden:
        httpx.put(policy, json={"Version": "2012-10-17", "Statement": [everything]}).raise_for_status()
    else:
        httpx.delete(policy).raise_for_status()


def small_disk(folder: Path) -> list[str]:
    """What a command is put behind to see a disk of 1 MB in a folder; nothing where users have no namespaces."""
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    wrapper = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(folder)]
    is_possible = not subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode
    return wrapper if is_possible else []


@contextmanager
def full_disk(folder: Path) -> Iterator[str]:
    """No room on a small disk; what the system says of it."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield "No space left on device"
    filler.unlink()
