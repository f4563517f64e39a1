"""Machine code of a network for given batch sizes: made by AOTInductor in a process of its own, kept on disk.

It pays where an evaluation is more overhead than arithmetic: the digits' network answers one image 4.7 times as fast
as operation by operation, 8 images 2.0 times, 64 images 1.4 times; one for CIFAR-10 gains nothing (0.97 times with
Winograd's convolutions). It takes half a minute a size and a C++ compiler, once for all models of the same make, and
15 ms to load. The code holds no weights: it is given those of the network. Its bits are its own, so it is for `fast`.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from models.card import Card
from models.checkpoint import Model, build
from models.fast import Way
from models.memory import fingerprint, make_of
from models.precond import Denoiser
from models.shapes import Network, Shapes, random_batch

UNPACKED = "aotinductor_"
"""What the names of the folders begin with into which torch unpacks code."""

PAYS_BELOW_SECONDS = 0.1
"""An evaluation that takes longer is hardly overhead."""


class Program:
    """Compiled code for one batch size, with the tensors of a network."""

    def __init__(self, path: Path, network: nn.Module):
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        # The code keeps pointers alone, so the tensors are kept here.
        self._tensors = {name: tensors[name] for name in self._loader.get_constant_fqns()}
        self._loader.load_constants(self._tensors, False, True, True, False)
        _remove_unpacked()

    def __call__(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The network's answer to inputs of the types of `random_batch`: the code itself checks none."""
        inputs = [x.contiguous(memory_format=torch.channels_last), *(rows.contiguous() for rows in rest)]
        return self._loader.run(inputs)[0]


def _remove_unpacked() -> None:
    """Remove the folders into which code was unpacked: it is mapped, and a process that is killed would leave them."""
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            mapped = Path(line[line.find("/") :]) if "/" in line else Path()
            for folder in mapped.parents:
                if folder.name.startswith(UNPACKED):
                    shutil.rmtree(folder, ignore_errors=True)


class CompiledNetwork(nn.Module):
    """A network with compiled code for some batch sizes; it runs the others itself."""

    def __init__(self, network: nn.Module, programs: Mapping[int, Network]):
        super().__init__()
        self.network = network
        self._programs = dict(programs)

    def forward(self, *batch: Tensor) -> Tensor:
        """The network's answer to a batch of any size."""
        return self._programs.get(len(batch[0]), self.network)(*batch)


def compile_in_background(
    model: Model, network: nn.Module, way: Way, shapes: Shapes, cache: Path
) -> dict[int, Future[Network]]:
    """For every batch size where it pays, the compiled network to come.

    `network` is the model's in that way, `shapes` its sizes. A thread loads what the cache holds; another process
    compiles the rest, one for all that share the cache, and ends with this one. A future raises RuntimeError when there
    is no C++ compiler, or when compiling or loading fails. A network that is no U-Net is not compiled: no sizes. On
    CUDA, torch.compile records graphs in a thread; nobody has run that yet. Raises OSError when the cache cannot be
    written.
    """
    if not isinstance(network, Denoiser):
        return {}
    pays = [size for size, seconds in zip(shapes.sizes, shapes.seconds, strict=True) if seconds < PAYS_BELOW_SECONDS]
    programs: dict[int, Future[Network]] = {size: Future() for size in pays}
    if model.device.type == "cuda":
        threading.Thread(target=_graph, args=(model, network, programs), daemon=True).start()
        return programs
    cache.mkdir(parents=True, exist_ok=True)
    if pays:
        paths = {size: cache / f"{fingerprint(model.card, model.device, way, size)}.pt2" for size in pays}
        order = Order(make_of(model.card), way, torch.get_num_threads(), paths)
        lock = (cache / "lock").open("w")
        threading.Thread(target=_provide, args=(order, lock, network, programs), daemon=True).start()
    return programs


def _provide(order: "Order", lock: TextIO, network: nn.Module, programs: dict[int, Future[Network]]) -> None:
    """Load the sizes of an order, and first have compiled what is missing once the lock is had."""
    reason = ""
    with lock:
        if order.missing:
            fcntl.flock(lock, fcntl.LOCK_EX)  # meanwhile others may have made some
            reason = _compiled_elsewhere(order._replace(paths=order.missing)) if order.missing else ""
    for size, path in order.paths.items():
        if path.exists():
            _fulfil(programs[size], path, network)
        else:
            programs[size].set_exception(RuntimeError(f"no compiled network for batches of {size}: {reason}"))


def _fulfil(program: Future[Network], path: Path, network: nn.Module) -> None:
    try:
        program.set_result(Program(path, network))
    except RuntimeError as error:
        program.set_exception(RuntimeError(f"{path}: cannot be loaded ({error})"))


def _graph(model: Model, network: nn.Module, programs: dict[int, Future[Network]]) -> None:
    """Compile for CUDA, replayed as graphs; an answer is copied, for the next one overwrites it."""
    compiled = torch.compile(network, mode="reduce-overhead", dynamic=False)
    for size, program in programs.items():
        with torch.inference_mode():
            compiled(*random_batch(model, size))
        program.set_result(lambda *batch: compiled(*batch).clone())


class Order(NamedTuple):
    """What is to be compiled, for how many threads, and the file for each batch size."""

    card: Card
    way: Way
    threads: int
    paths: dict[int, Path]

    @property
    def missing(self) -> dict[int, Path]:
        return {size: path for size, path in self.paths.items() if not path.exists()}


def _compiled_elsewhere(order: Order) -> str:
    """Have a process compile an order; why it could not, or "". The process ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        print(TypeAdapter(Order).dump_json(order).decode(), file=process.stdin, flush=True)
        reason = process.stdout.read().strip() if process.stdout else ""
    return reason or ("the compiling process died" if process.returncode else "")


def main() -> None:
    """Compile the order on standard input, yielding to everything else on the machine; says why it could not."""
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(19)
    order = TypeAdapter(Order).validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        _compile(order)
    except Exception as error:
        print(str(error).strip().splitlines()[-1], file=report)
        raise


def _end_with_input() -> None:
    """End this process, and the compilers it has started, when the one that gave the order is gone."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _compile(order: Order) -> None:
    """Compile size after size."""
    scratch = next(iter(order.paths.values())).with_name("scratch")
    compiler = os.environ.get("CXX", "g++")  # as Inductor has it, which would find out half a minute later
    if shutil.which(compiler) is None:
        raise FileNotFoundError(f"there is no C++ compiler {compiler}")
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": str(scratch), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    torch.set_num_threads(order.threads)
    model, network = _blank(order)
    for size, path in order.paths.items():
        _package(network, random_batch(model, size), scratch / "network.pt2")
        os.replace(scratch / "network.pt2", path)
    shutil.rmtree(scratch, ignore_errors=True)


def _blank(order: Order) -> tuple[Model, nn.Module]:
    """The model of a card with no weights in particular, and its network in the way it is to run."""
    network = build(order.card).to_empty(device="cpu").requires_grad_(False).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(order.card, network, "", torch.device("cpu")), order.way.of(network)


@torch.no_grad()
def _package(network: nn.Module, batch: list[Tensor], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    torch._inductor.aoti_compile_and_package(
        torch.export.export(network, tuple(batch)),
        package_path=str(path),
        inductor_configs={
            "aot_inductor.package_constants_in_so": False,
            "always_keep_tensor_constants": True,  # else those of few elements are written into the code
        },
    )


if __name__ == "__main__":
    main()
