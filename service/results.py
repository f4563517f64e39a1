"""What is fetched of a job: its images one by one, as arrays, or as files in a ZIP."""

import errno
import io
import os
import zipfile
from typing import Any, NamedTuple

import numpy as np

from service import sample
from service.job import Job, fate
from service.picture import Pixels, film, grid, grid_shape, path, png
from service.problems import NoResult, NotFinished
from service.provenance import Picture, of_one, provenance
from service.request import Resolved
from service.sample import TRAJECTORY
from service.store import ResultStore

PREVIEW_PIXELS = 512
"""Of a preview: its width and height are at most about so many."""

UNKNOWN = 128
"""The grey of images of which nothing is known."""


def with_result(job: Job) -> Job:
    """The job, which has a result. Raises NotFinished or NoResult."""
    if not job.is_finished:
        raise NotFinished(f"job {job.id} is {job.status}; follow it at /v1/jobs/{job.id}?wait=30")
    if job.has_images and job.status != "succeeded":
        left = f"what was finished ({job.done} of {job.count} images) is at /v1/jobs/{job.id}/images.npz and .zip"
        raise NoResult(f"job {job.id} was canceled; {left}")
    if job.status != "succeeded":
        raise NoResult(f"job {job.id} {fate(job.status)}" + (f": {job.error.detail}" if job.error else ""))
    return job


def with_images(job: Job) -> Job:
    """The job, which has images: all, or if it was canceled those that were finished. Raises as `with_result`."""
    return job if job.has_images else with_result(job)


class Piece(NamedTuple):
    """Some images of a job that follow each other."""

    start: int
    images: Pixels
    """[n, H, W, C]"""
    labels: list[int]
    """Their classes; empty for a model without."""


def pieces(store: ResultStore, job: Job) -> list[Piece]:
    """The images of a job, all or of a canceled one those that were finished; some, or OSError is raised.

    What lost workers have put aside may overlap, and some may come after the end: neither is counted among the done.
    """
    if job.status == "succeeded":
        return [Piece(0, store.array(job.id, "images.npy"), job.labels or [])]
    kept, done = sample.kept(store, job.id), job.parts_done
    found = [Piece(part.start, output.images, output.labels) for part, output in kept.items() if part.start in done]
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return sorted(found, key=lambda piece: piece.start)


def text_of(job: Job, picture: Picture) -> dict[str, str]:
    """The text chunks of a picture of a job."""
    return provenance(Resolved.model_validate(job.request), job.labels or [], job.checkpoint_sha256, picture)


def preview(store: ResultStore, job: Job) -> bytes:
    """The grid as PNG, of what the images are taken for by now; grey where nothing is known. Raises OSError."""
    furthest_last = sorted(job.previews, key=lambda start: job.previews[start].evaluation)
    parts = {start: sample.shown(store, job.id, start) for start in furthest_last}
    images = np.full((job.count, *next(iter(parts.values())).shape[1:]), UNKNOWN, dtype=np.uint8)
    for start, part in parts.items():
        images[start : start + len(part)] = part
    columns = job.request["columns"]
    skip = -(-max(grid_shape(job.count, columns, (images.shape[1], images.shape[2]))) // PREVIEW_PIXELS)
    return png(grid(images[:, ::skip, ::skip], columns))


def image(store: ResultStore, job: Job, k: int) -> bytes:
    """Image k as PNG. Raises OSError, or NoResult for one that a canceled job lacks."""
    for piece in pieces(store, job):
        if piece.start <= k < piece.start + len(piece.images):
            return _image(job, piece, k - piece.start, text_of(job, "image"))
    raise NoResult(f"image {k} of job {job.id} was not finished when the job was canceled")


def _image(job: Job, piece: Piece, k: int, text: dict[str, str]) -> bytes:
    """Image k of a piece as PNG, with the text chunks of its job made its own."""
    own = of_one(text, job.seeds[piece.start + k], piece.labels[k] if piece.labels else None)
    return png(piece.images[k], job.request["scale"], own)


def images(store: ResultStore, job: Job) -> list[bytes]:
    """All images of a job as PNGs. Raises OSError."""
    text = text_of(job, "image")
    return [_image(job, piece, k, text) for piece in pieces(store, job) for k in range(len(piece.images))]


def trajectory_png(store: ResultStore, job: Job) -> bytes:
    """How the images came about, a row for each, as PNG. Raises OSError."""
    images, estimates = (store.array(job.id, name) for name in ("images.npy", TRAJECTORY))
    return png(path(images, estimates), job.request["scale"], text_of(job, "trajectory"))


def trajectory_gif(store: ResultStore, job: Job) -> bytes:
    """How the images came about, as a film. Raises OSError."""
    images, estimates = (store.array(job.id, name) for name in ("images.npy", TRAJECTORY))
    return film(images, estimates, job.request["columns"], job.request["scale"])


def npz(store: ResultStore, job: Job) -> bytes:
    """`images` [n, H, W, C], `index` [n] (their places in the job), `seeds` [n], `labels` [n] where there are classes.

    Raises OSError.
    """
    found = pieces(store, job)
    index = np.concatenate([np.arange(piece.start, piece.start + len(piece.images)) for piece in found])
    images = np.concatenate([piece.images for piece in found])
    arrays: dict[str, Any] = {"images": images, "index": index, "seeds": np.array(job.seeds)[index]}
    if labels := [label for piece in found for label in piece.labels]:
        arrays["labels"] = np.array(labels)
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def archive(store: ResultStore, job: Job) -> bytes:
    """A ZIP with a PNG for every image, named by its place, and the job as JSON. Raises OSError."""
    content, digits, text = io.BytesIO(), len(str(job.count - 1)), text_of(job, "image")
    with zipfile.ZipFile(content, "w") as file:
        # Without the webhook: archives are passed on, and its URL may hold a secret.
        file.writestr("job.json", job.view().model_dump_json(indent=1, exclude={"webhook"}))
        for piece in pieces(store, job):
            for k in range(len(piece.images)):
                file.writestr(f"{piece.start + k:0{digits}}.png", _image(job, piece, k, text))
    return content.getvalue()
