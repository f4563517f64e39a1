"""The bridge: two precisions of the same models, what is measured once, and compiled networks that take over."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.stores import untrained_checkpoint
from models.checkpoint import save
from models.generate import UInt8Array
from models.sampling import Sampling
from models.shapes import Network
from service.catalogue import ModelGone
from service.engine import Engine
from service.policy import Flight
from service.request import Precision
from tests.models.helpers import card, random_tensors

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    untrained_checkpoint(tmp_path / "store", card())
    untrained_checkpoint(tmp_path / "store", card(D=2))
    return tmp_path / "store"


def sampled(engine: Engine, flight: Flight, seeds: Sequence[int]) -> UInt8Array:
    walk = engine.walk([flight], seeds, [seed % 3 for seed in seeds], Sampling(steps=4))
    while not walk.is_finished:
        engine.evaluate(flight, [walk])
    return walk.images()


def flight(precision: Precision, D: int = 128) -> Flight:
    return Flight(f"tiny-d{D}", precision)


def test_both_precisions_are_served_and_exact_stays_as_it_is(store: Path) -> None:
    engine = Engine(store, CPU, 8)
    exact = sampled(engine, flight("exact"), range(5))
    fast = sampled(engine, flight("fast"), range(5))
    assert engine.arithmetic(flight("exact")) == "float32"
    assert engine.arithmetic(flight("fast")) in {"float32", "float32-winograd", "bfloat16"}
    assert np.abs(exact.astype(int) - fast).mean() < 2
    assert np.array_equal(sampled(engine, flight("exact"), range(5)), exact)


def test_images_of_other_jobs_in_a_fast_call_change_nothing_one_could_see(store: Path) -> None:
    engine = Engine(store, CPU, 8)
    alone = sampled(engine, flight("fast"), [3])
    walks = [
        engine.walk([flight("fast")], [seed], [seed % 3], Sampling(steps=steps))
        for seed, steps in ((3, 4), (4, 9), (5, 2))
    ]
    while not walks[0].is_finished:
        engine.evaluate(flight("fast"), [walk for walk in walks if not walk.is_finished])
    assert np.abs(walks[0].images().astype(int) - alone).mean() < 2


def test_what_is_asked_for_by_default_is_ready_before_the_first_request(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(store, CPU, 8)
    engine.prepare("fast")
    assert capsys.readouterr().out.count("fast network ready") == len(engine.models) == 2
    sampled(engine, flight("fast"), [1])
    assert "fast network ready" not in capsys.readouterr().out


def test_what_was_measured_is_remembered(store: Path, tmp_path: Path) -> None:
    """One finding for each precision, for both models are of one make; a second start adds none, and finds the same."""
    folder = tmp_path / "networks"
    first = Engine(store, CPU, 8, folder)
    first.prepare("fast")
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    assert len(kept) == 2
    second = Engine(store, CPU, 8, folder)
    second.prepare("fast")
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    for D in (2, 128):
        for precision in ("exact", "fast"):
            assert np.array_equal(sampled(first, flight(precision, D), [7]), sampled(second, flight(precision, D), [7]))


def test_a_folder_that_cannot_be_written_stops_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    engine = Engine(store, CPU, 8, tmp_path / "file", compiles=True)
    engine.prepare("fast")
    printed = capsys.readouterr().out
    assert "not remembered for the next start" in printed
    assert "networks stay uncompiled" in printed
    assert sampled(engine, flight("fast"), [1]).shape == (1, 8, 8, 3)


def test_weights_of_few_bits_are_another_flight_and_few_of_them_are_held(store: Path) -> None:
    engine = Engine(store, CPU, 8)
    plain = sampled(engine, flight("exact"), range(3))
    few = {bits: sampled(engine, Flight("tiny-d128", "exact", bits, "all"), range(3)) for bits in (3, 4, 12, 16)}
    assert engine.arithmetic(Flight("tiny-d128", "exact", 16, "all")) == "float32, weights of 16 bits"
    off = {bits: np.abs(images.astype(int) - plain).mean() for bits, images in few.items()}
    assert off[16] <= off[12] < 1 < off[3]
    with pytest.raises(KeyError):
        engine.arithmetic(Flight("tiny-d128", "exact", 3, "all"))
    assert np.array_equal(sampled(engine, Flight("tiny-d128", "exact", 3, "all"), range(3)), few[3])
    assert np.array_equal(sampled(engine, flight("exact"), range(3)), plain)


def test_within_a_budget_what_was_not_used_for_longest_makes_room(store: Path) -> None:
    untrained_checkpoint(store, card(D=7))
    size = max(path.stat().st_size for path in store.glob("*.safetensors"))
    engine = Engine(store, CPU, 8, memory_bytes=2 * size + size // 2)
    assert engine.models == ["tiny-d128", "tiny-d2", "tiny-d7"]
    assert engine.loaded == ("tiny-d128", "tiny-d2")
    first = sampled(engine, flight("exact", 128), [1])
    sampled(engine, flight("exact", 7), [1])
    assert engine.loaded == ("tiny-d128", "tiny-d7")
    assert np.array_equal(sampled(engine, flight("exact", 128), [1]), first)
    engine.load("tiny-d2")
    assert engine.loaded == ("tiny-d128", "tiny-d2")


def test_nothing_is_unloaded_while_something_is_under_way_with_it(store: Path) -> None:
    engine = Engine(store, CPU, 8)
    walk = engine.walk([flight("exact")], [1], [None], Sampling(steps=3))
    engine.unload("tiny-d128")
    engine.unload("tiny-d2")
    assert engine.loaded == ("tiny-d128",)
    assert "tiny-d2" in engine.models
    del walk
    engine.unload("tiny-d128")
    assert not engine.loaded
    sampled(engine, flight("exact"), [1])
    assert engine.loaded == ("tiny-d128",)


class Scarce(nn.Module):
    """A network on a device with memory for so many images at once."""

    def __init__(self, network: nn.Module, images: int):
        super().__init__()
        self.network, self.images = network, images

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        if len(x) > self.images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        answer: Tensor = self.network(x, *rest)
        return answer


def test_where_memory_does_not_suffice_batches_are_halved(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The images are the same; where there is not even memory for one, it is an error."""
    engine = Engine(store, CPU, 8)
    expected = sampled(engine, flight("exact"), range(7))
    key, generator = next((key, each) for key, each in engine._generators.items() if key.model == "tiny-d128")
    for images in (2, 0):
        model = replace(generator.model, network=Scarce(generator.model.network, images))
        engine._generators[key] = replace(generator, model=model)
        if images:
            assert np.array_equal(sampled(engine, flight("exact"), range(7)), expected)
            assert engine._generators[key].shapes.sizes[-1] == 2
        else:
            with pytest.raises(torch.OutOfMemoryError):
                sampled(engine, flight("exact"), range(7))
    assert capsys.readouterr().out.count("out of memory") == 2 + 3


def test_a_model_and_its_guide_stay_while_something_is_under_way_with_them(store: Path) -> None:
    """Even where memory is for one of them alone."""
    untrained_checkpoint(store, card(dataset="worse", D=128, classes=()))
    size = max(path.stat().st_size for path in store.glob("*.safetensors"))
    engine = Engine(store, CPU, 8, memory_bytes=size + size // 2)
    shas = {each.name: each.checkpoint_sha256 for each in engine.facts}
    own, guide = (Flight(name, "exact", checkpoint=shas[name]) for name in ("tiny-d128", "worse-d128"))
    sampling = Sampling(steps=3, guidance=2.0, guide=guide.model)
    walk = engine.walk([own, guide], [1], [None], sampling)
    engine.load("tiny-d2")
    assert {own.model, guide.model} <= set(engine.loaded)
    while not walk.is_finished:
        engine.evaluate(guide if walk.asks_guide else own, [walk])
    assert walk.images().any()
    del walk
    engine.load("tiny-d2")
    engine.settle()
    assert not {own.model, guide.model} <= set(engine.loaded)


def test_what_has_begun_with_a_replaced_file_ends_with_it(store: Path) -> None:
    engine = Engine(store, CPU, 8)
    old = engine.facts[0].checkpoint_sha256
    plan = Flight("tiny-d128", "exact", checkpoint=old)
    expected = sampled(engine, plan, range(3))
    walk = engine.walk([plan], range(3), [0, 1, 2], Sampling(steps=4))
    torch.manual_seed(1)
    save(store / "tiny-d128.safetensors", card(), random_tensors(card()))
    assert engine.store.scan()
    engine.offer()
    engine.settle()
    assert not engine.is_settled
    assert engine.facts[0].checkpoint_sha256 != old
    while not walk.is_finished:
        engine.evaluate(plan, [walk])
    assert engine.checkpoint(plan) == old
    assert np.array_equal(walk.images(), expected)
    del walk
    engine.settle()
    assert engine.is_settled
    assert not np.array_equal(sampled(engine, plan, range(3)), expected), "an old job that begins now takes the new one"
    assert engine.checkpoint(plan) == engine.facts[0].checkpoint_sha256


def test_a_checkpoint_that_does_not_load_is_no_longer_offered(store: Path) -> None:
    tensors = random_tensors(card(D=2))
    next(iter(tensors.values()))[...] = torch.nan
    save(store / "tiny-d2.safetensors", card(D=2), tensors)
    engine = Engine(store, CPU, 8)
    assert engine.models == ["tiny-d128"]
    with pytest.raises(ModelGone, match="tiny-d2 is no longer in the model store"):
        engine.load("tiny-d2")


@pytest.mark.skipif(sys.platform != "linux", reason="what is told is of glibc")
def test_memory_is_kept_for_the_next_evaluation() -> None:
    """In the thread that computes, evaluations come and go with hardly a page fault."""
    code = """
import resource, threading, torch
from models.card import SHIPPED
from models.checkpoint import load
from models.shapes import random_batch
from service.engine import keep_memory
keep_memory()
model = load(SHIPPED / "digits-d2048.safetensors", torch.device("cpu"))
@torch.inference_mode()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        model.network(*random_batch(model, 64))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
thread = threading.Thread(target=lambda: print(*(faults() for _ in range(3))))
thread.start()
thread.join()
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout.split()[-1]) < 1000  # some 100, else 8,000


def test_compiled_networks_take_over_when_all_are_there(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody waits for them: until the last is there, and for sizes that failed, the network itself is run."""
    engine = Engine(store, CPU, 8)
    before = sampled(engine, flight("fast"), range(8))
    programs: dict[int, Future[Network]] = {4: Future(), 8: Future()}
    engine.expect(flight("fast"), programs)
    network, ran = engine.network(flight("fast")), []

    def compiled(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        ran.append(len(x))
        return network(x, sigma, labels)  # type: ignore[no-any-return]

    programs[8].set_result(compiled)
    assert np.array_equal(sampled(engine, flight("fast"), range(8)), before)
    assert not ran
    assert not engine.arithmetic(flight("fast")).endswith("-compiled")
    programs[4].set_exception(RuntimeError("no compiled network for batches of 4: out of ink"))
    after = sampled(engine, flight("fast"), range(8))
    assert set(ran) == {8}
    assert np.abs(after.astype(int) - before).mean() < 2
    assert engine.arithmetic(flight("fast")).endswith("-compiled")
    assert engine.compiling == []
    assert "out of ink" in capsys.readouterr().out
