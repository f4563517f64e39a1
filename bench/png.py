"""(f) PNG: the service's encoder against Pillow's default, on a grid of 8x8 photographs of 32x32 pixels."""

from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from bench.report import Figure, Findings
from bench.timing import interleaved, speed
from bench.workload import Workbench
from service.picture import Pixels, grid, png

SIDE = 8
REPEATS = 20


def photographs() -> Pixels:
    """64 pieces of two photographs, reduced to 32x32 pixels: uint8 [64, 32, 32, 3]."""
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        picture = Image.fromarray(load_sample_image(name)).resize((256, 128), Image.Resampling.LANCZOS)
        rows = np.asarray(picture).reshape(4, 32, SIDE, 32, 3).swapaxes(1, 2)
        pieces.append(rows.reshape(-1, 32, 32, 3))
    return np.concatenate(pieces)


def measure(bench: Workbench) -> Findings:
    """How many times as fast, at how many times the bytes."""
    pixels = grid(photographs(), SIDE)

    def pillow() -> bytes:
        encoded = BytesIO()
        Image.fromarray(pixels).save(encoded, "PNG")
        return encoded.getvalue()

    ours = partial(png, pixels)
    timings = interleaved(
        {"ours": lambda: [ours() for _ in range(REPEATS)], "pillow": lambda: [pillow() for _ in range(REPEATS)]},
        bench.rounds,
    )
    sizes = {"ours": len(ours()), "pillow": len(pillow())}
    return Findings(
        figures=[
            Figure(
                name="PNG of 8x8 photographs: speed / Pillow's",
                value=speed(timings["ours"].wall, timings["pillow"].wall),
                at_least=4,
            ),
            Figure(
                name="PNG of 8x8 photographs: bytes / Pillow's", value=sizes["ours"] / sizes["pillow"], at_most=1.15
            ),
        ],
        details={
            "bytes": sizes,
            "seconds": {who: [each / REPEATS for each in timing.wall] for who, timing in timings.items()},
        },
    )
