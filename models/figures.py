"""Results of `pfgmpp evaluate` in a JSON file that grows with every one, so that none is found twice."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from models.card import Dimension
from models.evaluate import Evaluation
from models.sampling import Sampling


class Trial(BaseModel):
    """All that decides the figures of a model."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    """Of the checkpoint."""
    sampling: Sampling
    first_seed: int
    images: int
    data: str
    fingerprint: str
    """Of the real images and their classes."""
    features: str
    """Whose, in words."""
    classifier: str | None
    """The classifier that recognises, in words."""

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.images)


class Result(BaseModel):
    """An evaluation, and of what."""

    model_config = ConfigDict(frozen=True)

    model: str
    D: Dimension
    trial: Trial
    evaluation: Evaluation
    torch: str
    """The version."""


class Minimum(BaseModel):
    """The least Fréchet distance of several rounds, each of other seeds, as papers report it."""

    model_config = ConfigDict(frozen=True)

    model: str
    measure: str
    rounds: int
    minimum: float
    trial: Trial
    """Of the round with that distance."""

    @classmethod
    def of(cls, rounds: Sequence[Result]) -> Self:
        """That of the rounds of one model."""
        best = min(rounds, key=lambda each: each.evaluation.frechet)
        return cls(
            model=best.model,
            measure=best.evaluation.measure,
            rounds=len(rounds),
            minimum=best.evaluation.frechet,
            trial=best.trial,
        )


class Figures(BaseModel):
    """What a JSON file holds."""

    model_config = ConfigDict(extra="forbid")

    results: list[Result] = []
    minima: list[Minimum] = []

    @classmethod
    def read(cls, path: Path) -> Self:
        """Those of a file, none if it is not there yet.

        Raises ValueError naming the file when it holds something else, or could not be written.
        """
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no directory {path.parent}")
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path}: holds no results of this program; name another file") from error

    def find(self, trial: Trial) -> Result | None:
        """The result of a trial that was finished before."""
        return next((each for each in self.results if each.trial == trial), None)

    def add(self, found: Result | Minimum) -> None:
        """Hold this too, once."""
        kept: list[Result] | list[Minimum] = self.results if isinstance(found, Result) else self.minima
        if found not in kept:
            kept.append(found)  # type: ignore[arg-type]

    def write(self, path: Path) -> None:
        """Replace the file; it is never there by half."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self.model_dump_json(indent=1))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
