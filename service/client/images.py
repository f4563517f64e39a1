"""What a finished job has made: its images, as pictures and as arrays."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from service.job import JobView

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

SHOWN_PIXELS = 320
"""Of a notebook's picture, along its longer side: small ones are enlarged to about that."""


@dataclass(frozen=True, eq=False, repr=False)
class Images(Sequence["Image"]):
    """The images of a job, in order: `images[k]` is one of PIL's, `images.array` all of them for numpy.

    Every PNG, so every picture's `info`, holds what it takes to make it again.
    """

    job: JobView
    """The job that made them, at its end: latency, checkpoint, and the request with everything filled in."""
    pngs: tuple[bytes, ...]
    """Each as a PNG, enlarged as the request's `scale` says."""
    grid_png: bytes
    """All of them as one PNG."""

    @classmethod
    def of(cls, job: JobView, archive: bytes, grid_png: bytes) -> "Images":
        """From the files of a job. Raises zipfile.BadZipFile for what is none."""
        with zipfile.ZipFile(BytesIO(archive)) as files:
            names = sorted(name for name in files.namelist() if name.endswith(".png"))
            return cls(job, tuple(files.read(name) for name in names), grid_png)

    def __len__(self) -> int:
        return len(self.pngs)

    @overload
    def __getitem__(self, index: int) -> "Image": ...
    @overload
    def __getitem__(self, index: slice) -> "list[Image]": ...
    def __getitem__(self, index: int | slice) -> "Image | list[Image]":
        if isinstance(index, slice):
            return [_opened(png) for png in self.pngs[index]]
        return _opened(self.pngs[index])

    def __repr__(self) -> str:
        model = f"{self.job.model.dataset}, D = {self.job.model.D}"
        return f"<{len(self)} images of {model}, job {self.job.id}>"

    def _repr_png_(self) -> bytes:
        """What a notebook shows: the grid, its pixels enlarged by a whole number where they are few."""
        grid = self.grid()
        enlargement = SHOWN_PIXELS // max(grid.size)
        if enlargement < 2:
            return self.grid_png
        png = BytesIO()
        grid.resize((grid.width * enlargement, grid.height * enlargement), resample=0).save(png, "PNG")
        return png.getvalue()

    @property
    def seeds(self) -> list[int]:
        """The seed of every image."""
        return self.job.seeds

    @property
    def labels(self) -> list[int] | None:
        """The class of every image; None for a model without."""
        return self.job.labels

    @cached_property
    def array(self) -> "Pixels":
        """All of them, not enlarged: bytes [n, height, width, channels]."""
        import numpy as np

        scale = self.job.request["scale"]
        pixels = np.stack([np.asarray(image)[::scale, ::scale] for image in self])
        return pixels.reshape(*pixels.shape[:3], -1)

    def grid(self) -> "Image":
        """All of them as one picture."""
        return _opened(self.grid_png)

    def save(self, path: str | Path) -> None:
        """Write them: the grid to FILE.png, arrays to FILE.npz, or every image and the job to a folder.

        Raises ValueError for other files, OSError when it cannot be written.
        """
        path = Path(path)
        if path.suffix == ".png":
            path.write_bytes(self.grid_png)
        elif path.suffix == ".npz":
            self._save_arrays(path)
        elif path.suffix and not path.is_dir():
            raise ValueError(f"{path}: must end with .png (the grid) or .npz (arrays), or be a folder")
        else:
            path.mkdir(parents=True, exist_ok=True)
            for k, png in enumerate(self.pngs):
                (path / f"{k:0{len(str(len(self) - 1))}}.png").write_bytes(png)
            (path / "job.json").write_text(self.job.model_dump_json(indent=1, exclude={"webhook"}))

    def _save_arrays(self, path: Path) -> None:
        """`images`, `seeds`, if there are classes `labels`, and the `request` as JSON."""
        import numpy as np

        arrays: dict[str, Any] = {"images": self.array, "seeds": np.array(self.seeds)}
        if self.labels is not None:
            arrays["labels"] = np.array(self.labels)
        np.savez(path, **arrays, request=json.dumps(self.job.request))


def _opened(png: bytes) -> "Image":
    from PIL import Image

    image = Image.open(BytesIO(png))
    image.load()
    return image
