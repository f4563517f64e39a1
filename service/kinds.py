"""Kinds of jobs: what the queue and the worker ask of each. `sample` is the first."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from service.job import Part
from service.picture import Pixels
from service.policy import Flight
from service.sample import Preview, SampleKind, Sampler, Walk
from service.store import ResultStore


class Request(Protocol):
    """What every kind's request says: how many images it is for."""

    @property
    def count(self) -> int: ...


R = TypeVar("R", bound=Request)
Output = TypeVar("Output")


class Kind(Protocol[R, Output]):
    """One kind of job: its cost, its lane, how its images come about and how its result is written."""

    name: str

    def parse(self, text: str) -> R:
        """The request as it was kept with the job."""

    def evaluations(self, request: R) -> int:
        """The cost of each image, in network evaluations."""

    def lane(self, request: R) -> str:
        """Jobs of equal cost: `model|kind|...`."""

    def flights(self, request: R) -> tuple[Flight, ...]:
        """What may share a network call: that of its first evaluation, of its second if that differs, and so on."""

    def walk(self, engine: Sampler, request: R, start: int, length: int) -> Walk:
        """The way of images start..start+length-1 of a request."""

    def output(self, walks: Sequence[Walk]) -> Output:
        """What finished walks, one after the other, have made. Raises FloatingPointError when it is no use."""

    def labels(self, output: Output) -> list[int]:
        """The classes of the images of a part; empty for a model without."""

    def previews(self, request: R) -> int:
        """How often it is to be shown how far the images are."""

    def show(self, store: ResultStore, part: Part, estimates: Sequence[Preview]) -> None:
        """Let it be seen what the images of a part are taken for."""

    def shown(self, store: ResultStore, job_id: str, start: int) -> Pixels:
        """What is to be seen of the part that begins there. Raises OSError."""

    def keep(self, store: ResultStore, part: Part, output: Output) -> None:
        """Put aside what was computed of a job until the rest is done."""

    def kept(self, store: ResultStore, job_id: str) -> dict[Part, Output]:
        """What was put aside of a job, by any worker."""

    def write(
        self, store: ResultStore, job_id: str, request: R, outputs: Mapping[Part, Output], checkpoint_sha256: str
    ) -> None:
        """Write the result of a whole job."""


KINDS: dict[str, Kind[Any, Any]] = {kind.name: kind for kind in (SampleKind(),)}


def kind_of(lane: str) -> Kind[Any, Any]:
    """The kind of the jobs in a lane."""
    return KINDS[lane.split("|")[1]]
