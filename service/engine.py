"""The bridge to `models`: the only module of the service that knows them, and torch."""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

import models.generate
from models.card import SHIPPED, CheckpointError, checkpoint_files, format_D
from models.checkpoint import Model, load
from models.compiled import CompiledNetwork, compile_in_background
from models.fast import Fast, fastest_with_shapes
from models.generate import Generator
from models.memory import Memory, fingerprint
from models.quantize import quantized
from models.sampling import Quantized, Sampling
from models.shapes import Network, Shapes, steady_shapes, timed_shapes, warm_up
from models.solvers import SOLVERS
from service.catalogue import ModelFacts
from service.logs import get_logger
from service.policy import Flight
from service.sample import Precision, Walk

Finding = TypeVar("Finding")

KEPT_QUANTIZED = 2
"""So many models of rounded weights are held at once."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BYTES = 2**30

Programs = dict[int, Future[Network]]
"""Compiled networks to come, by batch size."""

log = get_logger()


class Engine:
    """Holds the checkpoints of a store, loaded and warm on one device.

    `exact` networks are ready at the start, `fast` ones when they are first asked for. Which way is fastest, and in
    which batch sizes, is measured once for all models of the same make, and remembered in `folder` if there is one.
    If it `compiles`, small `fast` networks are compiled beside that, in another process, and take over when they are
    done. All but `width` and `capacity` is for one thread.
    """

    def __init__(
        self,
        store: Path | None,
        device: torch.device,
        largest_batch: int,
        folder: Path | None = None,
        compiles: bool = False,
    ):
        self.device = device
        self._largest_batch = largest_batch
        self._compiled_dir = folder if compiles else None
        self._memory = Memory(folder)
        self._generators: dict[Flight, Generator] = {}
        self._arithmetic: dict[Flight, str] = {}
        self._compiling: dict[Flight, Programs] = {}
        self._launched: torch.cuda.Event | None = None
        for path in checkpoint_files(store or SHIPPED):
            self._take(path)
        self.models = [flight.model for flight in self._generators]
        self.capacity = max((generator.width for generator in self._generators.values()), default=0)
        """The images that are worth having in hand: those of the widest network call."""

    def _take(self, path: Path) -> None:
        """Load and warm one checkpoint, or say why not: one bad file does not stop the others."""
        try:
            model = load(path, self.device)
            flight = Flight(model.card.name, "exact")
            if flight in self._generators:
                raise CheckpointError(f"{path}: another file of the store already holds {flight.model}")
            shapes = self._found(model, Shapes, steady_shapes)
            warm_up(model, shapes)
        except CheckpointError as error:
            log.error("checkpoint refused", reason=str(error))
            return
        except Exception:
            log.exception("checkpoint refused", file=path.name)
            return
        self._generators[flight] = Generator(model, shapes)
        self._arithmetic[flight] = "float32"
        log.info("checkpoint loaded", model=flight.model, batch_sizes=list(shapes.sizes), file=path.name)

    def _found(
        self, model: Model, kind: type[Finding], find: Callable[[Model, int], Finding], *about: object
    ) -> Finding:
        """What is known of all models of one make, or is found out now."""
        key = fingerprint(model.card, model.device, kind.__name__, self._largest_batch, *about)
        found = self._memory.recall(key, kind)
        if found is None:
            found = find(model, self._largest_batch)
            try:
                self._memory.keep(key, found)
            except OSError as error:
                log.warning("not remembered for the next start", model=model.card.name, reason=str(error))
        return found

    def prepare(self, precision: Precision) -> None:
        """Make all models ready in a precision, so that nobody waits for it later."""
        for model in self.models:
            self.prepare_flight(Flight(model, precision))

    def prepare_flight(self, flight: Flight) -> None:
        """Make one model ready in a precision, and let it run compiled as soon as that can be."""
        if flight not in self._generators:
            (self._prepare_quantized if flight.bits else self._prepare_fast)(flight)
        programs = self._compiling.get(flight, {})
        if programs and all(program.done() for program in programs.values()):
            self._take_compiled(flight, programs)

    @property
    def compiling(self) -> list[Future[Network]]:
        """Compiled networks to come; once all of a model are there, they are used."""
        return [program for programs in self._compiling.values() for program in programs.values()]

    @property
    def facts(self) -> tuple[ModelFacts, ...]:
        """What is loaded, as the catalogue shows it."""
        return tuple(_facts(name, self._exact(name).model) for name in self.models)

    def checkpoint(self, model: str) -> str:
        """The SHA-256 of the checkpoint that serves a model."""
        return self._exact(model).model.sha256

    def arithmetic(self, flight: Flight) -> str:
        """How the network computes: `float32`, `bfloat16`, `float32-winograd`; with `-compiled` if it is."""
        return self._arithmetic[flight]

    def width(self, flight: Flight) -> int:
        """The most images of a network call; more would bring nothing but delay."""
        return self._generators.get(flight, self._exact(flight.model)).width

    def evaluated(self, flight: Flight, images: int) -> int:
        """How many images the network sees when it is asked for so many: those and what fills the batch up."""
        return sum(self._generators[flight].shapes.cut(images))

    def walk(
        self, flight: Flight, seeds: Sequence[int], labels: Sequence[int | None], sampling: Sampling
    ) -> models.generate.Walk:
        """The walk of one image per seed; labels of None are drawn from the seed."""
        self.prepare_flight(flight)
        return self._generators[flight].walk(seeds, labels, sampling)

    def evaluate(self, flight: Flight, walks: Sequence[Walk]) -> None:
        """Take walks of one flight, made by this engine, an evaluation further in one network call."""
        self._generators[flight].evaluate(cast("Sequence[models.generate.Walk]", walks))
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Be at most one evaluation ahead of an accelerator: what comes in enters soon, and timings mean something."""
        if self.device.type == "cuda":
            before, self._launched = self._launched, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._launched.record()
            if before:
                before.synchronize()

    def _exact(self, model: str) -> Generator:
        return self._generators[Flight(model, "exact")]

    def _prepare_quantized(self, flight: Flight) -> None:
        """Round a model's weights, and forget others that were rounded, for each takes the memory of a model."""
        for other in [other for other in self._generators if other.bits][: 1 - KEPT_QUANTIZED]:
            del self._generators[other], self._arithmetic[other]
        exact = self._exact(flight.model)
        network = quantized(exact.model.network, flight.bits, cast("Quantized", flight.quantized))
        self._generators[flight] = Generator(replace(exact.model, network=network), exact.shapes)
        self._arithmetic[flight] = f"float32, weights of {flight.bits} bits"

    def _prepare_fast(self, flight: Flight) -> None:
        """Find the fastest way for a model, and have it compiled if that may pay."""
        model = self._exact(flight.model).model
        found = self._found(model, Fast, fastest_with_shapes)
        fast = replace(model, network=found.way.of(model.network))
        warm_up(fast, found.shapes)
        self._generators[flight] = Generator(fast, found.shapes)
        self._arithmetic[flight] = str(found.way)
        log.info("fast network ready", model=flight.model, way=str(found.way), batch_sizes=list(found.shapes.sizes))
        if self._compiled_dir:
            try:
                programs = compile_in_background(fast, fast.network, found.way, found.shapes, self._compiled_dir)
            except OSError as error:
                log.warning("networks stay uncompiled", model=flight.model, reason=str(error))
            else:
                self.expect(flight, programs)

    def expect(self, flight: Flight, programs: Programs) -> None:
        """Let compiled networks take over a flight once all of them are there, or have failed."""
        self._compiling[flight] = programs

    def network(self, flight: Flight) -> nn.Module:
        """The network of a flight, as it is run now."""
        return self._generators[flight].model.network

    def _take_compiled(self, flight: Flight, programs: Programs) -> None:
        """Run the sizes that could be compiled so, and measure anew which are worth what."""
        del self._compiling[flight]
        compiled = {size: program.result() for size, program in programs.items() if not program.exception()}
        for reason in {str(program.exception()) for program in programs.values() if program.exception()}:
            log.warning("network stays uncompiled", model=flight.model, reason=reason)
        if compiled:
            model = self._generators[flight].model
            network = CompiledNetwork(model.network, compiled)
            find = partial(timed_shapes, network=network)
            shapes = self._found(model, Shapes, find, self._arithmetic[flight], sorted(compiled))
            self._generators[flight] = Generator(replace(model, network=network), shapes)
            self._arithmetic[flight] += "-compiled"
            log.info("compiled network ready", model=flight.model, batch_sizes=sorted(compiled))

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


def keep_memory() -> None:
    """Let this process keep what memory it frees, for the next evaluation needs it again.

    The C library (glibc) would give it back, and getting it anew, page by page, took up to a tenth of the time of a
    worker (digits, 64 images: 300,000 page faults in 5 s, and hardly any since). All threads share one arena, for
    those of other threads than the first end at 64 MiB. To be called before there are threads.
    """
    with suppress(AttributeError):  # other C libraries have no such call
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_ARENA_MAX, 1)


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
        sigma_min=card.sigma_min,
        sigma_max=card.sigma_max,
        solvers=tuple(SOLVERS),
        checkpoint_sha256=model.sha256,
        parameters=model.parameters,
        license=card.license,
        training=card.training,
    )
