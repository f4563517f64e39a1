"""Whether the process answers, whether a request would be served, and metrics."""

from typing import Any

from fastapi import Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.openapi import problem_responses
from service.problems import Draining, Forbidden, NotReady
from service.routes import admit_admin, check_ready, door_of, new_router

open_router = new_router(is_open=True)
router = new_router()


@open_router.get("/livez", tags=["health"], summary="Whether the process answers")
async def livez() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "alive"}


@open_router.get(
    "/readyz",
    tags=["health"],
    summary="Whether a request would be served",
    responses=problem_responses(NotReady, Draining),
)
async def readyz(request: Request) -> dict[str, Any]:
    """Redis answers, a live worker serves a model, and whoever has a key is known."""
    catalogue = await check_ready(request)
    return {"status": "ready", "models": len(catalogue.models), "workers": len(catalogue.workers)}


@router.get(
    "/metrics",
    tags=["health"],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **problem_responses(Forbidden)},
    dependencies=[Depends(admit_admin)],
)
async def metrics(request: Request) -> Response:
    """The queue as it is now (while Redis answers), this process, and the local workers of `pfgmpp serve`."""
    return Response(await door_of(request).exposition(), media_type=CONTENT_TYPE_LATEST)
