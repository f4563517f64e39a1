"""What a request may choose of how images are sampled, and what that costs: readable without torch."""

from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from models.levels import Discretization, LevelsError, Range, Scaling, ScheduleName, default_range, discretized

SolverName = Literal["heun", "euler", "churn", "dpmpp-2m", "dpmpp-3m", "unipc", "ipndm"]


Quantized = Literal["all", "official"]


class SolverFacts(NamedTuple):
    """What is to be known of a solver before it runs."""

    is_second_order: bool = False
    """Whether all steps but the last take two evaluations."""
    least_steps: int = 2
    """Fewer would not reach its order once."""


SOLVER_FACTS: dict[SolverName, SolverFacts] = {
    "heun": SolverFacts(is_second_order=True),
    "euler": SolverFacts(),
    "churn": SolverFacts(is_second_order=True),
    "dpmpp-2m": SolverFacts(),
    "dpmpp-3m": SolverFacts(least_steps=3),
    "unipc": SolverFacts(least_steps=3),
    "ipndm": SolverFacts(least_steps=4),
}

CHURN_FIELDS = ("S_churn", "S_min", "S_max", "S_noise")


class Window(BaseModel):
    """A part of the frame that a model was trained on, in its pixels; it may reach beyond it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x: int = Field(0, description="Of its left edge, from that of the frame.")
    y: int = Field(0, description="Of its upper edge.")
    width: int = Field(ge=1)
    height: int = Field(ge=1)

    MOST_FRAMES: ClassVar[int] = 4
    """Widths of the frame that a window may measure, and lie away from it."""

    @classmethod
    def of(cls, numbers: tuple[int, int, int, int]) -> "Window":
        """From x, y, width and height."""
        return cls(**dict(zip(cls.model_fields, numbers, strict=True)))

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """x, y, width and height."""
        return self.x, self.y, self.width, self.height

    def faults(self, resolution: int, unit: int) -> Iterator[tuple[str, str]]:
        """Every (field, reason) for which a network for such frames, in multiples of `unit` pixels, has no such."""
        most = self.MOST_FRAMES * resolution
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels > most or pixels % unit:
                yield f"window.{name}", f"must be a multiple of {unit} up to {most} for this model"
        for name, place in (("x", self.x), ("y", self.y)):
            if abs(place) > most:
                yield f"window.{name}", f"must be from -{most} to {most} for this model"


class SamplingOptions(BaseModel):
    """What a request may choose beside the number of steps; every default is EDM's."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    solver: SolverName = Field("heun", description="As listed by the model.")
    sigma_min: float | None = Field(None, gt=0, description="Lowest noise level before 0; the model's if left out.")
    sigma_max: float | None = Field(None, gt=0, description="Highest, where the prior is drawn; the model's.")
    rho: float = Field(7.0, ge=1, le=100, description="How the noise levels crowd towards the lowest (edm).")
    discretization: Discretization = Field("edm", description="Whose noise levels: edm, vp, ve or iddpm.")
    schedule: ScheduleName = Field("linear", description="How noise grows with time: linear (edm), vp or ve.")
    scaling: Scaling = Field("none", description="How images are scaled on their way: none (edm) or vp.")
    second_order: float = Field(1.0, ge=0.01, le=1, description="Where in a step heun takes its second slope.")
    S_churn: float = Field(40.0, ge=0, le=10_000, description="churn: how much noise is renewed, over all steps.")
    S_min: float = Field(0.0, ge=0, description="churn: from this noise level on.")
    S_max: float | None = Field(None, gt=0, description="churn: up to this noise level; any if left out.")
    S_noise: float = Field(1.0, ge=0, le=2, description="churn: deviation of the new noise.")
    alpha: float = Field(0.0, ge=0, le=10, description="Noise injected before each step, in noise levels.")
    bits: int | None = Field(None, ge=2, le=16, description="Weights rounded to so many bits; none if left out.")
    quantized: Quantized = Field(
        "all", description="Which weights: all, or those of the official code, which leaves all layers at 32x32 float."
    )
    guidance: float = Field(
        1.0, ge=0, le=100, description="Weight of the model's estimate against that of a guide; 1 asks no guide."
    )
    guide: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Name of the model that guides (autoguidance); left out, the model without a class "
        "(classifier-free guidance).",
    )
    window: Window | None = Field(
        None, description="A part of the frame, or more than it, for models that were trained on patches."
    )
    trajectory: bool = Field(False, description="Also keep the denoised estimate of every step.")


class Sampling(SamplingOptions):
    """A whole choice: what decides the path of an image, beside its seed, its class and the model."""

    steps: int = Field(ge=2)
    """Noise levels at which the network is asked."""

    @property
    def evaluations_per_step(self) -> int:
        """Of all steps but the last, which takes one."""
        return 2 if SOLVER_FACTS[self.solver].is_second_order else 1

    @property
    def is_guided(self) -> bool:
        """Whether every estimate takes a second evaluation, of the guide."""
        return self.guidance != 1

    @property
    def evaluations(self) -> int:
        """Network evaluations of each image."""
        return (self.evaluations_per_step * (self.steps - 1) + 1) * (2 if self.is_guided else 1)

    @property
    def is_ablation(self) -> bool:
        """Whether the path is that of another process than EDM's, or the second slope not taken at the end."""
        return (self.schedule, self.scaling, self.second_order) != ("linear", "none", 1.0)

    @property
    def is_noisy(self) -> bool:
        """Whether noise is added on the way."""
        return self.solver == "churn" or self.alpha > 0

    def range(self, sigma_min: float, sigma_max: float) -> Range:
        """The noise levels of the path for a model with this range."""
        usual = Range(sigma_min, sigma_max) if self.discretization == "edm" else default_range(self.discretization)
        return Range(
            self.sigma_min or max(usual.sigma_min, sigma_min), self.sigma_max or min(usual.sigma_max, sigma_max)
        )

    def levels(self, ends: Range) -> list[float]:
        """The falling noise levels between these, then 0. Raises ValueError as `discretized` does."""
        return discretized(self.discretization, self.steps, *ends, self.rho)

    def faults(self, sigma_min: float, sigma_max: float) -> Iterator[tuple[str, str]]:
        """Every (field, reason) for which a model of this range cannot be sampled so."""
        least, ends = SOLVER_FACTS[self.solver].least_steps, self.range(sigma_min, sigma_max)
        if self.steps < least:
            yield "steps", f"must be at least {least} for {self.solver}, which else never reaches its order"
        for name, level in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if level and not sigma_min <= level <= sigma_max:
                yield name, f"must be from {sigma_min:g} to {sigma_max:g}, the noise levels of this model"
        if ends.sigma_min >= ends.sigma_max:
            yield "sigma_min", f"must be below sigma_max, {ends.sigma_max:g}"
        else:
            yield from self._levels_faults(ends)
        if self.solver == "churn":
            yield from self._churn_faults(ends)
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        yield from ((name, f"is for {use}") for name, use in self.idle() if name in changed)
        if self.is_ablation and self.alpha:
            yield "alpha", "cannot be combined with another schedule, scaling or second_order"
        if self.guide and self.bits:
            yield "guide", "cannot be combined with bits"

    def _levels_faults(self, ends: Range) -> Iterator[tuple[str, str]]:
        try:
            self.levels(ends)
        except LevelsError as error:
            given = (name for name in ("sigma_min", "sigma_max") if getattr(self, name))
            yield next(given, "steps"), str(error)

    def _churn_faults(self, ends: Range) -> Iterator[tuple[str, str]]:
        """Why no step would be disturbed."""
        S_max = self.S_max or ends.sigma_max
        if self.S_churn == 0:
            yield "S_churn", "must be above 0, or no noise would be renewed; heun is the solver without"
        if self.S_min > min(S_max, ends.sigma_max):
            yield "S_min", f"must be at most {min(S_max, ends.sigma_max):g}, or no noise would be renewed"
        elif S_max < ends.sigma_min:
            yield "S_max", f"must be at least {ends.sigma_min:g}, or no noise would be renewed"
        else:
            with suppress(ValueError, LevelsError):
                if not any(self.S_min <= level <= S_max for level in self.levels(ends)[:-1]):
                    yield "S_max", f"leaves no step to begin from {self.S_min:g} on, so no noise would be renewed"

    def idle(self) -> Iterator[tuple[str, str]]:
        """Every (field, use) that is without effect on this path, and what it would be for."""
        if self.solver != "churn":
            yield from ((name, "the solver churn") for name in CHURN_FIELDS)
        if self.solver not in {"heun", "euler"}:
            yield from ((name, "the solvers heun and euler") for name in ("schedule", "scaling"))
        if self.solver != "heun":
            yield "second_order", "the solver heun"
        if self.discretization != "edm":
            yield "rho", "the discretization edm"
        if self.bits is None:
            yield "quantized", "bits"
        if not self.is_guided:
            yield "guide", "a guidance other than 1"
