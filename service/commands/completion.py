"""What a shell may complete: data sets, D and jobs, as the service knows them; nothing where it does not answer."""

import os
from enum import StrEnum
from typing import Any, get_args

import typer
from typer._completion_classes import completion_init

from service import DEFAULT_SERVER

TIMEOUT_SECONDS = 1.0

completion_init()  # typer makes the shells known along with options of its own, in place of which there are Shells here


class Shell(StrEnum):
    """What can be told how to complete."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"
    pwsh = "pwsh"


def datasets(ctx: typer.Context, incomplete: str) -> list[str]:
    """The data sets that begin so."""
    return sorted({model["dataset"] for model in _asked(ctx, "/v1/models") if model["dataset"].startswith(incomplete)})


def dimensions(ctx: typer.Context, incomplete: str) -> list[str]:
    """The D that begin so, of the data set if one was named before."""
    dataset = ctx.params.get("dataset")
    found = {str(each["D"]) for each in _asked(ctx, "/v1/models") if dataset in {None, each["dataset"]}}
    return sorted((D for D in found if D.startswith(incomplete)), key=float)


def jobs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The ids of the caller's last jobs that begin so, each with its status."""
    found = _asked(ctx, "/v1/jobs")
    return [(job["id"], job["status"]) for job in found if job["id"].startswith(incomplete)]


def statuses(incomplete: str) -> list[str]:
    """Those of jobs that begin so."""
    from service.job import Status

    return [status for status in get_args(Status) if status.startswith(incomplete)]


def solvers(ctx: typer.Context, incomplete: str) -> list[str]:
    """The solvers of what is on offer that begin so."""
    found = {solver for model in _asked(ctx, "/v1/models") for solver in model["solvers"]}
    return sorted(solver for solver in found if solver.startswith(incomplete))


def precisions(incomplete: str) -> list[str]:
    """Those that begin so."""
    from service.request import Precision

    return [precision for precision in get_args(Precision) if precision.startswith(incomplete)]


def fields(ctx: typer.Context, incomplete: str) -> list[str]:
    """The fields of a request that begin so and have no option of their own, each as the beginning of NAME=VALUE."""
    from service.request import SampleRequest

    others = SampleRequest.model_fields.keys() - ctx.params.keys() - {"labels"}
    return sorted(f"{name}=" for name in others if name.startswith(incomplete))


def _asked(ctx: typer.Context, path: str) -> list[dict[str, Any]]:
    """What the service lists there; nothing when it does not answer at once, for a shell must not be disturbed."""
    import httpx

    server = ctx.params.get("server") or os.environ.get("PFGMPP_SERVER") or DEFAULT_SERVER
    key = ctx.params.get("key") or os.environ.get("PFGMPP_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{server.rstrip('/')}{path}", headers=headers, timeout=TIMEOUT_SECONDS)
        found: Any = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return []
    listed: list[dict[str, Any]] = found["jobs"] if path == "/v1/jobs" else found
    return listed
