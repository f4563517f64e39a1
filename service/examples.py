"""What the OpenAPI document shows of every body, made of the objects themselves so that it is what they say."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from models.sampling import SOLVER_FACTS
from service.catalogue import OfferedModel, ServiceStatus, WorkerView
from service.job import Estimate, Eta, Job, JobList, Message, moment
from service.messages import ModelQueue
from service.problems import SOME_JOB
from service.request import SampleRequest, resolve
from service.routes import inference, openai
from service.stream import Known, Seen, message, news
from service.tensors import InferResponse, OutputTensor

AT = 1_795_702_412_866.0
"""Milliseconds since 1970 when the job of the examples was submitted."""

CHECKPOINT = "d62966b0625ffba64beaacc29ffe03a6f3e243021f4d35a80cfde220ad9a4dbf"
WORKER = "worker-1-4711"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGOoBwAAggCBd81ytgAAAABJRU5ErkJggg=="
"""A picture of one pixel."""

METRICS = """\
# HELP pfgmpp_queue_jobs Jobs with images that wait.
# TYPE pfgmpp_queue_jobs gauge
pfgmpp_queue_jobs{model="digits-d2048"} 3.0
"""

MODEL = OfferedModel(
    name="digits-d2048",
    dataset="digits",
    D=2048,
    resolution=8,
    channels=1,
    classes=tuple("0123456789"),
    default_steps=18,
    max_steps=256,
    solvers=tuple(SOLVER_FACTS),
    is_guidable=True,
    window_unit=2,
    checkpoint_sha256=CHECKPOINT,
    parameters=309_697,
    license="Apache-2.0 (data: UCI handwritten digits, CC BY 4.0)",
    training={"images": 300_032, "seconds": 420.8, "device": "cpu"},
    loaded_on=(WORKER,),
)


def job(**fields: str) -> Job:
    """The job of two images of a seven, as Redis has it."""
    asked = SampleRequest(dataset="digits", D=2048, count=2, seed=1, label=7, scale=8)
    request = resolve(asked, MODEL, "exact", max_count=256, max_pixels=2**26)
    known = {
        "kind": "sample",
        "status": "queued",
        "request": request.model_dump_json(),
        "count": f"{request.count}",
        "evaluations": f"{request.evaluations}",
        "done": "0",
        "attempts": "0",
        "submitted_ms": f"{AT}",
        "queued": "2",
        "owner": "alice",
    }
    return Job.from_redis(SOME_JOB, known | fields, place=3)


def ended_job() -> Job:
    """The same at its end."""
    times = {"started_ms": 3, "began_ms": 8, "sampled_ms": 215, "finished_ms": 221}
    return job(
        status="succeeded",
        done="2",
        attempts="1",
        batch_images="2",
        arithmetic="float32",
        checkpoint=CHECKPOINT,
        **{name: f"{AT + after}" for name, after in times.items()},
        **{"labels:0": "[7, 7]"},
    )


def stream() -> str:
    """The events of that job, for one that asks when it has ended."""
    ended = ended_job()
    shown = ended.view().model_dump_json()
    return "".join(message(kind, shown, Known({ended.id: seen})) for kind, seen in news(Seen(), ended))


def generations() -> str:
    """The events of an image as OpenAI's clients have it streamed."""
    partial = openai.PartialImage(b64_json=PIXEL, created_at=int(AT / 1000), partial_image_index=0, size="64x64")
    completed = openai.CompletedImage(b64_json=PIXEL, created_at=int(AT / 1000), size="64x64")
    return openai.event(partial) + openai.event(completed)


def bodies() -> Mapping[str, BaseModel | dict[str, Any] | str]:
    """Examples by the names of schemas, or of operations whose answers have none; with a status where it matters."""
    ended, waiting = ended_job().view(), job().view(eta=Eta(p50=0.3, p90=0.7))
    version, image = inference.version_of(MODEL), openai.GeneratedImage(b64_json=PIXEL, revised_prompt="7")
    outputs = [OutputTensor(name="seed", datatype="INT64", shape=[2], data=[1, 2])]
    return {
        "livez": {"status": "alive"},
        "readyz": {"status": "ready", "models": 4, "workers": 1},
        "metrics": METRICS,
        "events": stream(),
        "events_of_several": stream(),
        "OfferedModel": MODEL,
        "JobView": ended,
        "JobView 202": waiting,
        "JobList": JobList(jobs=[ended], next=None),
        "Message": Message(type="job.succeeded", timestamp=moment(AT + 300), data=ended),
        "Estimate": Estimate(
            images=2, evaluations=70, wait_seconds=0.1, eta_seconds=waiting.eta_seconds, run_seconds=0.242, refusal=None
        ),
        "ServiceStatus": ServiceStatus(
            workers=[
                WorkerView(
                    name=WORKER,
                    state="busy",
                    device="cpu",
                    evaluations_per_second=8_210.0,
                    models=[MODEL.name],
                    loaded=[MODEL.name],
                )
            ],
            models=[
                ModelQueue(
                    model=MODEL.name,
                    queued_jobs=3,
                    queued_images=6,
                    queued_evaluations=210,
                    oldest_age_seconds=0.4,
                    running_jobs=1,
                )
            ],
            evaluations=280,
        ),
        "images_generations": generations(),
        "openai_images": generations(),
        "ImagesResponse": openai.ImagesResponse(created=int(AT / 1000), data=[image], size="64x64", job=SOME_JOB),
        "ListedModel": openai.ListedModel(id=MODEL.name),
        "ListedModels": openai.ListedModels(data=[openai.ListedModel(id=MODEL.name)]),
        "Live": inference.Live(),
        "Ready": inference.Ready(),
        "Server": inference.Server(),
        "ModelReady": inference.ModelReady(name=MODEL.name),
        "ModelMetadata": inference.metadata_of(MODEL),
        "IndexEntry": inference.IndexEntry(name=MODEL.name, version=version),
        "InferResponse": InferResponse(
            model_name=MODEL.name, model_version=version, parameters={"job": SOME_JOB}, outputs=outputs
        ),
    }
