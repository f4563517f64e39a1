"""What a benchmark found: figures, each beside what it must reach, and the details behind them."""

from typing import Any

from pydantic import BaseModel


class Figure(BaseModel):
    """One number, and its bound if it has one."""

    name: str
    value: float
    unit: str = "x"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """The bound in words; empty without one."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    @property
    def is_met(self) -> bool:
        """Whether it is within its bound."""
        lowest = -float("inf") if self.at_least is None else self.at_least
        highest = float("inf") if self.at_most is None else self.at_most
        return lowest <= self.value <= highest


class Findings(BaseModel):
    """What one part of the suite found."""

    figures: list[Figure] = []
    details: dict[str, Any] = {}


class Report(BaseModel):
    """One run of the suite: where, what, and the findings by part."""

    machine: dict[str, Any]
    parts: dict[str, Findings]
