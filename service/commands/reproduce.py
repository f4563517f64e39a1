"""A picture made again from itself: what its text chunks say, and how the two compare."""

from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from service.job import JobView
from service.provenance import Picture, Remake, remake

if TYPE_CHECKING:
    from service.picture import Pixels

FILES: dict[Picture, str] = {"grid": "grid.png", "image": "images/0.png", "trajectory": "trajectory.png"}
"""Where a job has what a picture shows."""


class NoWord(Exception):
    """A file does not say how it was made; the message names the file and the reason."""


@dataclass(frozen=True)
class Known:
    """A picture that says how it was made."""

    remake: Remake
    pixels: "Pixels"

    @property
    def file(self) -> str:
        """Under which a job has the same."""
        return FILES[self.remake.picture]


@dataclass(frozen=True)
class Comparison:
    """How a picture made again compares with the first."""

    is_identical: bool
    pixels: int
    different_pixels: int
    """All, if the sizes differ."""
    largest_difference: int
    """Of 255."""
    mean_difference: float
    other_checkpoints: dict[str, tuple[str, str | None]]
    """Checkpoints that are other ones now: by which the picture was made, and which the service has."""
    size: tuple[int, int]
    size_before: tuple[int, int]

    def facts(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)

    def in_words(self) -> str:
        """For a person."""
        lines = [
            f"{name} was {before[:12]} when it was made and is {(after or 'none')[:12]} now"
            for name, (before, after) in self.other_checkpoints.items()
        ]
        if self.is_identical:
            return "; ".join([f"identical, all {_counted(self.pixels)}", *lines])
        if self.size != self.size_before:
            found, before = (f"{width}x{height}" for width, height in (self.size, self.size_before))
            return "; ".join([f"different: {found} pixels in place of {before}", *lines])
        share = self.different_pixels / self.pixels
        how = f"by {self.largest_difference} of 255 at most, {self.mean_difference:.3g} on average"
        return "; ".join([f"different: {_counted(self.different_pixels)} ({share:.2%}), {how}", *lines])


def open_picture(path: Path) -> Known:
    """A picture, with what it says of itself. Raises NoWord."""
    try:
        with Image.open(path) as image:
            image.load()
            text, pixels = getattr(image, "text", None), _pixels(image)
    except UnidentifiedImageError as error:
        raise NoWord(f"{path}: is no picture") from error
    except IsADirectoryError as error:
        raise NoWord(f"{path}: is a directory") from error
    except FileNotFoundError as error:
        raise NoWord(f"{path}: there is no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NoWord(f"{path}: cannot be decoded ({error})") from error
    if not text:
        raise NoWord(
            f"{path}: does not say how it was made: it is not a PNG of this service, or what has saved it since "
            "left out its text chunks"
        )
    try:
        return Known(remake(text), pixels)
    except ValueError as error:
        raise NoWord(f"{path}: does not say how it was made: {error}") from error


def compare(known: Known, made: bytes, job: JobView) -> Comparison:
    """A picture beside that which a job made again."""
    with Image.open(BytesIO(made)) as image:
        before, after = known.pixels, _pixels(image)
    has_size = before.shape == after.shape
    difference = np.abs(before.astype(int) - after) if has_size else np.full(after.shape, 255)
    different = int((difference.max(axis=-1) > 0).sum())
    used = {
        "checkpoint_sha256": job.model.checkpoint_sha256,
        "guide_checkpoint_sha256": job.request.get("guide_checkpoint_sha256"),
    }
    made_by = known.remake.checkpoints
    return Comparison(
        is_identical=different == 0,
        pixels=difference[..., 0].size,
        different_pixels=different,
        largest_difference=int(difference.max()),
        mean_difference=float(difference.mean()),
        other_checkpoints={
            name: (sha256, used.get(name)) for name, sha256 in made_by.items() if sha256 != used.get(name)
        },
        size=(after.shape[1], after.shape[0]),
        size_before=(before.shape[1], before.shape[0]),
    )


def _counted(pixels: int) -> str:
    return "1 pixel" if pixels == 1 else f"{pixels:,} pixels"


def _pixels(image: Image.Image) -> "Pixels":
    """Its pixels [H, W, 3], however a program may have packed them since."""
    return np.asarray(image.convert("RGB"))
