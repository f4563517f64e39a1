"""What is fetched of a job: its images one by one, as arrays, or as files in a ZIP."""

import errno
import io
import os
import zipfile
from typing import Any

import numpy as np

from service.job import Job
from service.kinds import KINDS
from service.picture import Pixels, grid, grid_shape, png
from service.problems import NoResult, NotFinished
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
        left = f"the {job.done} images that were finished are at /v1/jobs/{job.id}/images.npz and .zip"
        raise NoResult(f"job {job.id} was canceled; {left}")
    if job.status != "succeeded":
        raise NoResult(f"job {job.id} {job.status}" + (f": {job.error.detail}" if job.error else ""))
    return job


def with_images(job: Job) -> Job:
    """The job, which has images: all, or if it was canceled those that were finished. Raises as `with_result`."""
    return job if job.has_images else with_result(job)


def pieces(store: ResultStore, job: Job) -> list[tuple[int, Pixels]]:
    """The images of a job, as the places of the first and images [n, H, W, C] each; some, or OSError is raised."""
    if job.status == "succeeded":
        return [(0, store.array(job.id, "images.npy"))]
    kept = KINDS[job.kind].kept(store, job.id)
    if not kept:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return sorted(((part.start, output.images) for part, output in kept.items()), key=lambda piece: piece[0])


def preview(store: ResultStore, job: Job) -> bytes:
    """The grid as PNG, of what the images are taken for by now; grey where nothing is known. Raises OSError."""
    kind, furthest_last = KINDS[job.kind], sorted(job.previews, key=lambda start: job.previews[start].evaluation)
    parts = {start: kind.shown(store, job.id, start) for start in furthest_last}
    images = np.full((job.count, *next(iter(parts.values())).shape[1:]), UNKNOWN, dtype=np.uint8)
    for start, part in parts.items():
        images[start : start + len(part)] = part
    columns = job.request["columns"]
    skip = -(-max(grid_shape(job.count, columns, (images.shape[1], images.shape[2]))) // PREVIEW_PIXELS)
    return png(grid(images[:, ::skip, ::skip], columns))


def image(store: ResultStore, job: Job, k: int) -> bytes:
    """Image k as PNG. Raises OSError, or NoResult for one that a canceled job lacks."""
    for start, images in pieces(store, job):
        if start <= k < start + len(images):
            return png(images[k - start], job.request["scale"])
    raise NoResult(f"image {k} of job {job.id} was not finished when the job was canceled")


def npz(store: ResultStore, job: Job) -> bytes:
    """`images` [n, H, W, C], `index` [n] (their places in the job), `seeds` [n], `labels` [n] where there are classes.

    Raises OSError.
    """
    index, images = _all(store, job)
    arrays: dict[str, Any] = {"images": images, "index": index, "seeds": np.array(job.seeds)[index]}
    if job.labels:
        arrays["labels"] = np.array(job.labels)[index]
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def archive(store: ResultStore, job: Job) -> bytes:
    """A ZIP with a PNG for every image, named by its place, and the job as JSON. Raises OSError."""
    index, images = _all(store, job)
    content, digits = io.BytesIO(), len(str(job.count - 1))
    with zipfile.ZipFile(content, "w") as file:
        # Without the webhook: archives are passed on, and its URL may hold a secret.
        file.writestr("job.json", job.view().model_dump_json(indent=1, exclude={"webhook"}))
        for k, pixels in zip(index, images, strict=True):
            file.writestr(f"{k:0{digits}}.png", png(pixels, job.request["scale"]))
    return content.getvalue()


def _all(store: ResultStore, job: Job) -> "tuple[np.ndarray[tuple[int], np.dtype[np.int64]], Pixels]":
    """The places of all images there are, and those."""
    found = pieces(store, job)
    index = np.concatenate([np.arange(start, start + len(images)) for start, images in found])
    return index, np.concatenate([images for _, images in found])
