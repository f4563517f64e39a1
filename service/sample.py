"""What jobs of samples ask of queue and workers: their lane, the walk of their images, and what is written of them."""

import errno
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.sampling import Sampling
from service.job import Part
from service.picture import Pixels, array_bytes, grid, png
from service.policy import Flight
from service.provenance import provenance
from service.request import Resolved
from service.store import ResultStore

KIND = "sample"
"""The kind of all jobs so far."""

TRAJECTORY = "trajectory.npy"
"""The file of a job that holds its estimates [n, steps, H, W, C], if they were kept."""


class Preview(Protocol):
    """What images were taken for at a noise level."""

    @property
    def sigma(self) -> float: ...

    def images(self) -> Pixels:
        """Them [n, H, W, C], for any thread."""


class Walk(Protocol):
    """Images on their way from the prior to their end, an evaluation at a time."""

    labels: list[int]
    """Their classes; empty for a model without."""

    @property
    def is_finished(self) -> bool: ...

    def images(self) -> Pixels:
        """The finished images [n, H, W, C]. Raises FloatingPointError when one is not finite."""

    def trajectory(self) -> Pixels | None:
        """The denoised estimates of every step [n, steps, H, W, C]; None if they were not asked for."""

    def preview(self) -> "Preview | None":
        """The denoised estimate that came last; None before the first."""


class Sampler(Protocol):
    """What walks need of the engine."""

    def walk(
        self, flights: Sequence[Flight], seeds: Sequence[int], labels: Sequence[int | None], sampling: Sampling
    ) -> Walk:
        """The walk of one image per seed, of a model and its guide; labels of None are drawn from the seed."""


@dataclass(frozen=True)
class Images:
    """What became of a part: images [n, H, W, C], and their classes (empty for a model without)."""

    images: Pixels
    labels: list[int]
    trajectory: Pixels | None = None
    """The denoised estimates of every step [n, steps, H, W, C], if they were asked for."""


def lane(request: Resolved) -> str:
    """Jobs of equal cost: model (dataset and D), steps, solver, guided or not, precision, size of the window."""
    solver = f"{request.solver}+guidance" if request.is_guided else request.solver
    size = f"|{request.window.width}x{request.window.height}" if request.window else ""
    return f"{request.model}|{KIND}|{request.steps}|{solver}|{request.precision}{size}"


def flights(request: Resolved) -> tuple[Flight, ...]:
    """What may share a network call: the checkpoint, its weights as they are or rounded, precision, the window."""
    bits, quantized = (request.bits, request.quantized) if request.bits else (0, "")
    window = request.window.numbers if request.window else None
    own = Flight(request.model, request.precision, bits, quantized, window, request.checkpoint_sha256)
    if not request.guide:
        return (own,)
    return (own, Flight(request.guide, request.precision, checkpoint=request.guide_checkpoint_sha256 or ""))


def walk(engine: Sampler, request: Resolved, start: int, length: int) -> Walk:
    """The way of images start..start+length-1 of a request."""
    span = slice(start, start + length)
    labels = (request.labels or [None] * request.count)[span]
    return engine.walk(flights(request), request.seeds[span], labels, request)


def output(walks: Sequence[Walk]) -> Images:
    """The images of finished walks, one after the other."""
    trajectories = [trajectory for walk in walks if (trajectory := walk.trajectory()) is not None]
    return Images(
        np.concatenate([walk.images() for walk in walks]),
        [label for walk in walks for label in walk.labels],
        np.concatenate(trajectories) if trajectories else None,
    )


def show(store: ResultStore, part: Part, estimates: Sequence[Preview]) -> None:
    """Let it be seen what the images of a part are taken for, in place of what was seen of them before."""
    images = np.concatenate([estimate.images() for estimate in estimates])
    store.write(part.job_id, _part_name(part.start, "preview"), array_bytes(images))


def shown(store: ResultStore, job_id: str, start: int) -> Pixels:
    """What is to be seen of the part that begins there. Raises OSError."""
    return store.array(job_id, _part_name(start, "preview"))


def keep(store: ResultStore, part: Part, output: Images) -> None:
    """Put aside the images of a part until the other parts of its job are done."""
    if output.trajectory is not None:
        store.write(part.job_id, _part_name(part.start, "trajectory"), array_bytes(output.trajectory))
    store.write(part.job_id, _part_name(part.start, "labels"), array_bytes(np.array(output.labels)))
    # Last, for a part is there when its images are.
    store.write(part.job_id, _part_name(part.start, "images"), array_bytes(output.images))


def kept(store: ResultStore, job_id: str) -> dict[Part, Images]:
    """What was put aside of a job, by any worker."""
    outputs, names = {}, store.names(job_id)
    for name in fnmatch.filter(names, _part_name("*", "images")):
        start = int(name.split("-")[1])
        images, labels = store.array(job_id, name), store.array(job_id, _part_name(start, "labels"))
        trajectory = _part_name(start, "trajectory")
        outputs[Part(job_id, start, len(images))] = Images(
            images, labels.tolist(), store.array(job_id, trajectory) if trajectory in names else None
        )
    return outputs


def write(
    store: ResultStore, job_id: str, request: Resolved, outputs: Mapping[Part, Images], checkpoint_sha256: str
) -> None:
    """Write the result of a whole job: its images and its grid.

    Parts that were computed twice hold the same images, so where they overlap either will do.
    Raises OSError when parts of it are no longer there.
    """
    covered = {k for part in outputs for k in range(part.start, part.start + part.length)}
    if len(covered) < request.count:
        raise OSError(errno.ENOENT, f"{request.count - len(covered)} of its images are no longer in the store")
    images = _whole({part.start: output.images for part, output in outputs.items()}, request.count)
    labels = [0] * (0 if request.labels is None else request.count)
    if labels:
        for part, output in outputs.items():
            labels[part.start : part.start + part.length] = output.labels
    if request.trajectory:
        parts = {part.start: output.trajectory for part, output in outputs.items() if output.trajectory is not None}
        store.write(job_id, TRAJECTORY, array_bytes(_whole(parts, request.count)))
    text = provenance(request, labels, checkpoint_sha256)
    store.write(job_id, "images.npy", array_bytes(images))
    store.write(job_id, "grid.png", png(grid(images, request.columns), request.scale, text))


def _whole(parts: Mapping[int, Pixels], count: int) -> Pixels:
    """Arrays of images by the place of their first, put together."""
    whole = np.zeros((count, *next(iter(parts.values())).shape[1:]), dtype=np.uint8)
    for start, part in parts.items():
        whole[start : start + len(part)] = part
    return whole


def _part_name(start: int | str, what: str) -> str:
    return f"part-{start}-{what}.npy"
