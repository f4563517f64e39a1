"""The options of a request on the command line, as `sample`, `submit` and `estimate` have them."""

import json
import math
import re
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from service.commands import completion
from service.commands.terminal import EXIT_MISCONFIGURED, give_up

if TYPE_CHECKING:
    from service.client import SampleFields

MOST_SEEDS = 1_000_000
"""Of a span; the service takes fewer in one request."""


def request_of(
    dataset: Annotated[
        str, typer.Option(help="Data set, as listed by `pfgmpp models`.", autocompletion=completion.datasets)
    ],
    D: Annotated[
        str,
        typer.Option("--D", help='Augmentation dimension: a number, or "inf".', autocompletion=completion.dimensions),
    ],
    count: Annotated[int | None, typer.Option(help="Images; 1, or as many as seeds.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; the model's default if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Image k has seed + k; drawn if left out.")] = None,
    seeds: Annotated[str | None, typer.Option(help="One per image, such as 1,2,5-10.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Class of all images, or one per image with commas; drawn if left out.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="heun if left out.", autocompletion=completion.solvers)] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="exact, or fast with a difference nobody can see; the service's default.",
            autocompletion=completion.precisions,
        ),
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Columns of the grid.")] = None,
    scale: Annotated[int, typer.Option(help="Enlargement of the picture, 1 to 16.")] = 1,
    chosen: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--set",
            metavar="NAME=VALUE",
            help="Any other field of a request, such as sigma_max=40 or trajectory=true; repeatable.",
            autocompletion=completion.fields,
        ),
    ] = None,
) -> "SampleFields":
    """The request that options make; wrong ones end the program."""
    optional = {
        "count": count,
        "steps": steps,
        "seed": seed,
        "seeds": None if seeds is None else _seeds(seeds),
        "solver": solver,
        "precision": precision,
        "columns": columns,
    }
    request = {"dataset": dataset, "D": _number(D), "scale": scale} | _labels(label)
    request |= {name: value for name, value in optional.items() if value is not None}
    _set_fields(request, chosen or [])
    return cast("SampleFields", request)


def _number(D: str) -> float | int | str:
    """D as JSON has it; what is no number is left for the service to refuse."""
    try:
        number = float(D)
    except ValueError:
        return D
    if not math.isfinite(number):
        return D
    return int(number) if number.is_integer() else number


def _seeds(text: str) -> list[int]:
    """The seeds in such as `1,2,5-10`; a text that is none ends the program."""
    seeds = list[int]()
    for span in text.split(","):
        found = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", span.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not 0 <= last - first < MOST_SEEDS:
            give_up(f"--seeds {text}: must be whole numbers and rising spans, such as 1,2,5-10", EXIT_MISCONFIGURED)
        seeds += range(first, last + 1)
    return seeds


def _labels(text: str | None) -> dict[str, Any]:
    """The classes in such as `7` or `cat,dog` as the field of a request."""
    if text is None:
        return {}
    labels = [int(each) if each.isascii() and each.isdecimal() else each for each in text.split(",")]
    return {"label": labels[0]} if len(labels) == 1 else {"labels": labels}


def _set_fields(request: dict[str, Any], settings: list[str]) -> None:
    """Add fields to a request from `name=value`, each value in JSON or as it is; what is wrong ends the program."""
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            give_up(f"--set {setting}: must be NAME=VALUE", EXIT_MISCONFIGURED)
        if name in request.keys() - {"scale"}:
            give_up(f"--set {name}: is given twice, or has an option of its own", EXIT_MISCONFIGURED)
        try:
            request[name] = json.loads(value)
        except (ValueError, RecursionError):
            request[name] = value
