"""The bridge to `models`: the only module of the service that knows them, and torch."""

import ctypes
import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn

from models import generate
from models.card import SHIPPED, CheckpointError, format_D
from models.checkpoint import Model, load
from models.compiled import CompiledNetwork, compile_in_background
from models.fast import Fast, fastest_with_shapes
from models.generate import Generator
from models.memory import Memory, fingerprint
from models.quantize import quantized
from models.sampling import Quantized, Sampling, Window
from models.shapes import Network, Shapes, steady_shapes, timed_shapes, warm_up
from models.solvers import SOLVERS
from models.store import Entry, ModelStore
from models.window import windowed
from service.catalogue import ModelFacts, ModelGone, Pace
from service.logs import get_logger
from service.policy import Flight
from service.request import Precision
from service.sample import Walk

Finding = TypeVar("Finding")

KEPT_QUANTIZED = 2
"""So many models of rounded weights are held at once."""

KEPT_WINDOWS = 16
"""And so many windows."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BYTES = 2**30

Programs = dict[int, Future[Network]]
"""Compiled networks to come, by batch size."""

log = get_logger()


class Engine:
    """Holds checkpoints of a store, loaded and warm on one device, and runs their networks.

    All that fit into `memory_bytes` are loaded at the start, others when they are asked for, in place of those that
    were not for the longest time. `exact` networks are ready when a checkpoint is loaded, `fast` ones when they are
    asked for. Which way is fastest, and in which batch sizes, is measured once for all models of the same make, and
    remembered in `folder` if there is one. If it `compiles`, small `fast` networks are compiled beside that, in another
    process, and take over when they are done.

    A file of another content is another checkpoint: what has begun with the old one ends with it. All but `offer`,
    `width`, `capacity`, `facts` and `loaded` is for one thread.
    """

    def __init__(
        self,
        store: Path | None,
        device: torch.device,
        largest_batch: int,
        folder: Path | None = None,
        compiles: bool = False,
        patterns: Sequence[str] = ("*",),
        memory_bytes: int | None = None,
    ):
        self.device = device
        self.store = ModelStore(store or SHIPPED, patterns)
        self._largest_batch = largest_batch
        self._memory_bytes = memory_bytes
        self._compiled_dir = folder if compiles else None
        self._memory = Memory(folder)
        self._generators: dict[Flight, Generator] = {}
        self._arithmetic: dict[Flight, str] = {}
        self._compiling: dict[Flight, Programs] = {}
        self._walks = OrderedDict[str, WeakSet[generate.Walk]]()
        """Those under way, by checkpoint; of the checkpoints that are loaded, the one used last is the last."""
        self._widths: dict[str, int] = {}
        self.first_paces: dict[str, Pace] = {}
        """How fast the models are that have been loaded, as measured when their networks were first run."""
        self._launched: torch.cuda.Event | None = None
        self.store.scan()
        self.offer()
        self._load_what_fits()

    def offer(self) -> None:
        """Offer what the last scan of the store has found."""
        for problem in self.store.problems:
            log.error("checkpoint refused", reason=problem)
        self._entries = self.store.entries

    @property
    def models(self) -> list[str]:
        """The models on offer."""
        return list(self._entries)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those of them that are in memory as they are now on offer."""
        held = set(self._walks)
        return tuple(name for name, entry in self._entries.items() if entry.sha256 in held)

    @property
    def capacity(self) -> int:
        """The images that are worth having in hand: those of the widest network call."""
        return max((self._widths.get(name, self._largest_batch) for name in self.models), default=0)

    def width(self, flight: Flight) -> int:
        """The most images of a network call; more would bring nothing but delay."""
        generator = self._generators.get(self._key(flight))
        return generator.width if generator else self._widths.get(flight.model, self._largest_batch)

    @property
    def facts(self) -> tuple[ModelFacts, ...]:
        """What is on offer, as the catalogue shows it."""
        return tuple(_facts(entry) for entry in self._entries.values())

    def load(self, model: str) -> None:
        """Load a model that is on offer, if it is not. Raises ModelGone."""
        self._exact(Flight(model, "exact"))

    def unload(self, model: str) -> None:
        """Free the memory of a model, unless something is under way with it; it stays on offer."""
        for checkpoint in {
            generator.model.sha256 for flight, generator in self._generators.items() if flight.model == model
        }:
            if checkpoint in self._idle():
                self._drop(checkpoint)

    @property
    def is_settled(self) -> bool:
        """Whether all in memory are on offer: work may be under way with those that were replaced."""
        return self._walks.keys() <= self._current

    def settle(self) -> None:
        """After the offer has changed: drop what was replaced and is idle, and load what is new, if it fits."""
        self._make_room(0)
        self._load_what_fits()

    @property
    def _current(self) -> set[str]:
        return {entry.sha256 for entry in self._entries.values()}

    def _load_what_fits(self) -> None:
        """Load the models of the store, in the order of their files, until memory is full."""
        for name, entry in list(self._entries.items()):
            is_room = self._memory_bytes is None or self._held_bytes() + entry.size <= self._memory_bytes
            if is_room and entry.sha256 not in self._walks:
                with suppress(ModelGone):
                    self.load(name)

    def _key(self, flight: Flight) -> Flight:
        """The flight with the checkpoint that serves it: its own while that is in memory, else the current one."""
        if flight.checkpoint in self._walks or flight.model not in self._entries:
            return flight
        return flight._replace(checkpoint=self._entries[flight.model].sha256)

    def _exact(self, flight: Flight) -> Generator:
        """The plain network of a flight, loaded if need be. Raises ModelGone."""
        key = self._key(Flight(flight.model, "exact", checkpoint=flight.checkpoint))
        if key not in self._generators:
            self._generators[key] = self._loaded(key.model)
            self._arithmetic[key] = "float32"
        return self._generators[key]

    def _loaded(self, name: str) -> Generator:
        """Load and warm a checkpoint, making room for it. Raises ModelGone when it is not there or cannot be loaded."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelGone(f"{name} is no longer in the model store")
        self._make_room(entry.size)
        try:
            model = load(entry.path, self.device, entry.sha256)
            shapes = self._found(model, Shapes, steady_shapes)
            warm_up(model, shapes)
        except Exception as error:
            if isinstance(error, CheckpointError):
                log.error("checkpoint refused", reason=str(error))
            else:
                log.exception("checkpoint refused", file=entry.path.name)
            self.store.refuse(entry)
            self._entries = self.store.entries
            raise ModelGone(f"the checkpoint of {name} cannot be loaded") from error
        self._walks[entry.sha256] = WeakSet()
        self._widths[name] = max(shapes.width, self._widths.get(name, 0))
        self.first_paces[name] = _pace(shapes)
        log.info("checkpoint loaded", model=name, batch_sizes=list(shapes.sizes), file=entry.path.name)
        return Generator(model, shapes)

    def _make_room(self, size: int) -> None:
        """Drop what was replaced, and else what was not used for the longest time, if nothing is under way with it."""
        current = self._current
        idle = self._idle()
        for checkpoint in sorted(idle, key=lambda each: each in current):
            is_full = self._memory_bytes is not None and self._held_bytes() + size > self._memory_bytes
            if is_full or checkpoint not in current:
                self._drop(checkpoint)

    def _idle(self) -> list[str]:
        """The checkpoints with which nothing is under way, those used last at the end.

        Work that was dropped is found out to be by collecting garbage, for it and its shares know each other.
        """
        if any(not walk.is_finished for walks in self._walks.values() for walk in walks):
            gc.collect()
        return [
            checkpoint for checkpoint, walks in self._walks.items() if all(walk.is_finished for walk in list(walks))
        ]

    def _held_bytes(self) -> int:
        """Memory of all networks; what they share counts once."""
        networks = [generator.model.network for generator in self._generators.values()]
        tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def _drop(self, checkpoint: str) -> None:
        """Forget a checkpoint, and every way to run it."""
        flights = [flight for flight, generator in self._generators.items() if generator.model.sha256 == checkpoint]
        for flight in flights:
            del self._generators[flight], self._arithmetic[flight]
            self._compiling.pop(flight, None)
        del self._walks[checkpoint]
        log.info("checkpoint unloaded", model=flights[0].model)

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
        """Make all models in memory ready in a precision, so that nobody waits for it later."""
        for name in self.loaded:
            self.prepare_flight(Flight(name, precision))

    def prepare_flight(self, flight: Flight) -> None:
        """Make one model ready to be run so, and let it run compiled as soon as that can be. Raises ModelGone."""
        flight = self._key(flight)
        if flight not in self._generators:
            if flight.window:
                self._prepare_window(flight, Window.of(flight.window))
            elif flight.bits:
                self._prepare_quantized(flight)
            elif flight.precision == "fast":
                self._prepare_fast(flight)
            else:
                self._exact(flight)
        self._walks.move_to_end(self.checkpoint(flight))  # at no moment missing, for `loaded` is read elsewhere
        programs = self._compiling.get(flight, {})
        if programs and all(program.done() for program in programs.values()):
            self._take_compiled(flight, programs)

    @property
    def compiling(self) -> list[Future[Network]]:
        """Compiled networks to come; once all of a model are there, they are used."""
        return [program for programs in self._compiling.values() for program in programs.values()]

    def checkpoint(self, flight: Flight) -> str:
        """The SHA-256 of the checkpoint that serves a flight."""
        return self._generators[self._key(flight)].model.sha256

    def arithmetic(self, flight: Flight) -> str:
        """How the network computes: `float32`, `bfloat16`, `float32-winograd`; with `-compiled` if it is."""
        return self._arithmetic[self._key(flight)]

    def evaluated(self, flight: Flight, images: int) -> int:
        """How many images the network sees when it is asked for so many: those and what fills the batch up."""
        return sum(self._generators[self._key(flight)].shapes.cut(images))

    def pace(self, flight: Flight, images: int, seconds: float) -> Pace:
        """From what one network call has taken: how fast the device is."""
        shapes = self._generators[self._key(flight)].shapes
        return _pace(shapes, seconds / shapes.seconds_of(images))

    def walk(
        self, flights: Sequence[Flight], seeds: Sequence[int], labels: Sequence[int | None], sampling: Sampling
    ) -> generate.Walk:
        """The walk of one image per seed, with the flights of its model and its guide; labels of None are drawn.

        Raises ModelGone when one of them is not there, or the guide is no longer the one that was asked for.
        """
        own, *guides = flights
        self.prepare_flight(own)
        cards = [self._entries[guide.model].card for guide in guides if guide.model in self._entries]
        walk = self._generators[self._key(own)].walk(seeds, labels, sampling, *cards)
        self._walks[self.checkpoint(own)].add(walk)
        for guide in guides:
            self.prepare_flight(guide)
            if self.checkpoint(guide) != guide.checkpoint:
                raise ModelGone(f"the checkpoint of {guide.model}, the guide, was replaced; submit the job again")
            self._walks[guide.checkpoint].add(walk)
        return walk

    def evaluate(self, flight: Flight, walks: Sequence[Walk]) -> None:
        """Take walks of one flight, made by this engine, an evaluation further in one network call.

        Where the memory of the device does not suffice, in several smaller ones, now and from then on.
        """
        own = cast("Sequence[generate.Walk]", walks)
        generate.advance(own, self._estimates(flight, own))
        self._keep_pace()

    def _estimates(self, flight: Flight, walks: Sequence[generate.Walk]) -> Tensor:
        while True:
            generator = self._generators[self._key(flight)]
            try:
                return generator.estimates(walks)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_of_memory(error) or not self._make_do(flight, generator):
                    raise

    def _make_do(self, flight: Flight, generator: Generator) -> bool:
        """Run a network in batches of half the size from now on; whether there is such a size."""
        smaller = generator.shapes.halved()
        if smaller is None:
            return False
        log.warning("out of memory", model=flight.model, batch_sizes=list(smaller.sizes))
        self._generators[self._key(flight)] = replace(generator, shapes=smaller)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _keep_pace(self) -> None:
        """Be at most one evaluation ahead of an accelerator: what comes in enters soon, and timings mean something."""
        if self.device.type == "cuda":
            before, self._launched = self._launched, torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._launched.record()
            if before:
                before.synchronize()

    def _prepare_quantized(self, flight: Flight) -> None:
        """Round a model's weights, and forget others that were rounded, for each takes the memory of a model."""
        self._forget([other for other in self._generators if other.bits][: 1 - KEPT_QUANTIZED])
        exact = self._exact(flight)
        network = quantized(exact.model.network, flight.bits, cast("Quantized", flight.quantized))
        self._generators[flight] = Generator(replace(exact.model, network=network), exact.shapes)
        self._arithmetic[flight] = f"float32, weights of {flight.bits} bits"

    def _prepare_window(self, flight: Flight, window: Window) -> None:
        """Have a model asked for a window, and forget others that were asked for long ago."""
        self._forget([other for other in self._generators if other.window][: 1 - KEPT_WINDOWS])
        frame = flight._replace(window=None)
        self.prepare_flight(frame)
        model = self._generators[frame].model
        if isinstance(model.network, CompiledNetwork):  # for the size of the frame alone
            model = replace(model, network=model.network.network)
        own = windowed(model, window)
        size = (flight.bits, window.height, window.width)
        if flight.precision == "exact":
            shapes = self._found(own, Shapes, steady_shapes, *size)
        else:
            shapes = self._found(own, Shapes, partial(timed_shapes, network=own.network), "fast", *size)
        self._generators[flight] = Generator(own, shapes)
        self._arithmetic[flight] = self._arithmetic[frame].removesuffix("-compiled")

    def _forget(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            del self._generators[flight], self._arithmetic[flight]

    def _prepare_fast(self, flight: Flight) -> None:
        """Find the fastest way for a model, and have it compiled if that may pay."""
        model = self._exact(flight).model
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
        self._compiling[self._key(flight)] = programs

    def network(self, flight: Flight) -> nn.Module:
        """The network of a flight, as it is run now."""
        return self._generators[self._key(flight)].model.network

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


def _pace(shapes: Shapes, slower: float = 1.0) -> Pace:
    """How fast a network is that takes so many times what was measured."""
    return Pace(
        evaluations_per_second=shapes.width / (slower * shapes.seconds_of(shapes.width)),
        evaluation_seconds=slower * shapes.seconds_of(1),
        images=shapes.width,
    )


def _is_of_memory(error: Exception) -> bool:
    """Whether an error is that the device, or torch's allocator for the CPU, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def use_threads(threads: int) -> None:
    """Let torch use so many CPU threads in this process."""
    torch.set_num_threads(threads)


def _facts(entry: Entry) -> ModelFacts:
    card = entry.card
    return ModelFacts(
        name=card.name,
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
        is_guidable=card.can_leave_out_class,
        coordinates=card.architecture.coordinates,
        window_unit=card.architecture.unit,
        checkpoint_sha256=entry.sha256,
        parameters=entry.parameters,
        license=card.license,
        training=card.training,
    )
