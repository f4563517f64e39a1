"""The bridge to `models`: the only module of the service that knows them, and torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

import models.generate
from models.card import SHIPPED, CheckpointError, checkpoint_files, format_D
from models.checkpoint import Model, load
from models.generate import Generator
from models.shapes import Shapes, steady_shapes
from service.catalogue import ModelFacts
from service.logs import get_logger
from service.policy import Flight
from service.sample import Walk

SOLVERS = ("heun",)

log = get_logger()


class Engine:
    """Holds the checkpoints of a store, loaded and warm on one device."""

    def __init__(self, store: Path | None, device: torch.device, largest_batch: int):
        self.device = device
        self._generators: dict[str, Generator] = {}
        self._shapes: dict[object, Shapes] = {}
        self._launched: torch.cuda.Event | None = None
        for path in checkpoint_files(store or SHIPPED):
            self._take(path, largest_batch)

    def _take(self, path: Path, largest_batch: int) -> None:
        """Load and warm one checkpoint, or say why not: one bad file does not stop the others."""
        try:
            model = load(path, self.device)
            name = model.card.name
            if name in self._generators:
                raise CheckpointError(f"{path}: another file of the store already holds {name}")
            shapes = self._steady_shapes(model, largest_batch)
        except CheckpointError as error:
            log.error("checkpoint refused", reason=str(error))
            return
        except Exception:
            log.exception("checkpoint refused", file=path.name)
            return
        self._generators[name] = Generator(model, shapes)
        log.info("checkpoint loaded", model=name, batch_sizes=list(shapes.sizes), file=path.name)

    def _steady_shapes(self, model: Model, largest_batch: int) -> Shapes:
        """The batch sizes of a model, looked for once for all models of the same make."""
        make = (model.card.architecture, model.card.shape, len(model.card.classes))
        if make not in self._shapes:
            self._shapes[make] = steady_shapes(model, largest_batch)
        return self._shapes[make]

    @property
    def facts(self) -> tuple[ModelFacts, ...]:
        """What is loaded, as the catalogue shows it."""
        return tuple(_facts(name, generator.model) for name, generator in self._generators.items())

    def checkpoint(self, model: str) -> str:
        """The SHA-256 of the checkpoint that serves a model."""
        return self._generators[model].model.sha256

    @property
    def capacity(self) -> int:
        """The images that are worth having in hand: those of the widest network call."""
        return max(generator.width for generator in self._generators.values())

    def width(self, flight: Flight) -> int:
        """The most images of a network call; more would bring nothing but delay."""
        return self._generator(flight).width

    def evaluated(self, flight: Flight, images: int) -> int:
        """How many images the network sees when it is asked for so many: those and what fills the batch up."""
        return sum(self._generator(flight).shapes.cut(images))

    def walk(self, flight: Flight, seeds: Sequence[int], labels: Sequence[int | None], steps: int, solver: str) -> Walk:
        """The walk of one image per seed; labels of None are drawn from the seed."""
        return self._generator(flight).walk(seeds, labels, steps, solver)

    def evaluate(self, flight: Flight, walks: Sequence[Walk]) -> None:
        """Take walks of one flight, made by this engine, an evaluation further in one network call."""
        self._generator(flight).evaluate(cast("Sequence[models.generate.Walk]", walks))
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Be at most one evaluation ahead of an accelerator: what comes in enters soon, and timings mean something."""
        if self.device.type == "cuda":
            before, self._launched = self._launched, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._launched.record()
            if before:
                before.synchronize()

    def _generator(self, flight: Flight) -> Generator:
        return self._generators[flight.model]

    @property
    def torch_version(self) -> str:
        return str(torch.__version__)

    @property
    def device_bytes(self) -> int | None:
        """Memory taken on the accelerator; None on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else None


def choose_device(device: str, index: int = 0) -> torch.device:
    """The device of a setting: `auto` is the CUDA device of that index, counted round, when there is one.

    Raises ValueError when the setting is no device, or one this machine does not have.
    """
    if device == "auto":
        device = f"cuda:{index % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen


def use_threads(threads: int) -> None:
    """Let torch use so many CPU threads in this process."""
    torch.set_num_threads(threads)


def _facts(name: str, model: Model) -> ModelFacts:
    card = model.card
    return ModelFacts(
        name=name,
        dataset=card.dataset,
        D=format_D(card.D),
        resolution=card.resolution,
        channels=card.channels,
        classes=card.classes,
        default_steps=card.default_steps,
        max_steps=card.max_steps,
        solvers=SOLVERS,
        checkpoint_sha256=model.sha256,
        parameters=model.parameters,
        license=card.license,
        training=card.training,
    )
