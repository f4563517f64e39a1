"""How near each solver comes to the end of the path with few evaluations, measured."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from models.checkpoint import Model
from models.generate import Generator, UInt8Array
from models.sampling import SOLVER_FACTS, Sampling, SolverName
from models.shapes import Shapes

CONVERGED_STEPS = 256
FEWEST_EVALUATIONS = 2
DETERMINISTIC: tuple[SolverName, ...] = tuple(name for name in SOLVER_FACTS if name != "churn")
"""The solvers that follow one path, so that there is an end to compare with."""


class Row(NamedTuple):
    """What a solver did with a number of evaluations."""

    solver: SolverName
    evaluations: int
    distance: float
    """Mean Euclidean distance of an image to the converged one, over pixels in 0..1."""
    seconds: float
    """For each image."""


def rows(model: Model, evaluations: Sequence[int], count: int) -> Iterator[Row]:
    """Every solver with at most so many evaluations, on the images of seeds 0..count-1 in one batch.

    They are compared with what Heun's method makes of CONVERGED_STEPS steps. What is too few for a solver is left out.
    """
    generator = Generator(model, Shapes((count,), (1.0,)))
    converged = _sampled(generator, Sampling(steps=CONVERGED_STEPS), count)
    for solver in DETERMINISTIC:
        for most in evaluations:
            steps = 1 + (most - 1) // Sampling(steps=2, solver=solver).evaluations_per_step
            if steps < SOLVER_FACTS[solver].least_steps:
                continue
            sampling = Sampling(steps=steps, solver=solver)
            started = time.perf_counter()
            images = _sampled(generator, sampling, count)
            seconds = (time.perf_counter() - started) / count
            off = np.linalg.norm((images.astype(np.float64) - converged).reshape(count, -1) / 255, axis=1)
            yield Row(solver, sampling.evaluations, float(off.mean()), seconds)


def _sampled(generator: Generator, sampling: Sampling, count: int) -> UInt8Array:
    walk = generator.walk(range(count), [None] * count, sampling)
    while not walk.is_finished:
        generator.evaluate([walk])
    return walk.images()
