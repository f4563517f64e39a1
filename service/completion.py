"""What a shell may complete: data sets, D and jobs, as the service knows them; nothing where it does not answer."""

import os
from typing import Any

import typer

TIMEOUT_SECONDS = 1.0


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


def _asked(ctx: typer.Context, path: str) -> list[dict[str, Any]]:
    """What the service lists there; nothing when it does not answer at once, for a shell must not be disturbed."""
    import httpx

    server = ctx.params.get("server") or os.environ.get("PFGMPP_SERVER") or "http://127.0.0.1:8000"
    key = ctx.params.get("key") or os.environ.get("PFGMPP_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{server.rstrip('/')}{path}", headers=headers, timeout=TIMEOUT_SECONDS)
        found: Any = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return []
    listed: list[dict[str, Any]] = found["jobs"] if path == "/v1/jobs" else found
    return listed
