"""The application: routes, what stands behind them, and what runs beside. Never imports torch."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import __version__, tracing
from service.access import Keys
from service.dialects import InferenceError, OpenAIError
from service.door import Door
from service.job import Message
from service.logs import get_logger
from service.openapi import TAGS, complete
from service.problems import ProblemDocument
from service.redis_client import cancel as cancel_tasks
from service.request import SampleRequest
from service.routes import docs, events, health, inference, jobs, models, new_router, openai, page, results, status
from service.routes.openai import ImagesRequest
from service.settings import Settings
from service.store import open_store
from service.tensors import InferRequest
from service.wire import install

ROUTERS = (
    health.open_router,
    page.router,
    docs.router,
    jobs.router,
    events.router,
    results.router,
    models.router,
    status.router,
    openai.router,
    inference.open_router,
    inference.router,
    health.router,
)

DEFECT_PAUSE_SECONDS = 5.0

log = get_logger()

webhooks = new_router(is_open=True)


@webhooks.post("job", tags=["webhooks"], summary="An event of a job", status_code=204)
def on_event(message: Message) -> None:
    """Sent to the `webhook` of a request, signed as [Standard Webhooks](https://www.standardwebhooks.com) says.

    Any 2xx is an answer; other ones are followed by more tries with the same `webhook-id`.
    """


def _acts(door: Door) -> Iterator[Callable[[], Awaitable[None]]]:
    """What is done beside answering: giving back what lost workers had, and with a secret calling webhooks."""
    yield door.reap
    if secret := door.settings.webhook_secret:
        from service.webhooks import Webhooks  # here, for the client that it brings takes 40 ms

        yield lambda: Webhooks(door.queue, door.settings, secret).run()


async def _keep_up(act: Callable[[], Awaitable[None]]) -> None:
    """Do something until cancelled; a defect in it is logged, and it begins anew."""
    while True:
        try:
            await act()
        except Exception:
            log.exception("defect")
        await asyncio.sleep(DEFECT_PAUSE_SECONDS)


def create_app(settings: Settings) -> FastAPI:
    """The application; its lifespan holds the connections to Redis. Raises ValueError for a store that cannot be."""
    store = open_store(settings)
    tracing.begin("api", f"{socket.gethostname()}-{os.getpid()}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        door = app.state.door = Door(settings, store)
        tasks = [asyncio.create_task(_keep_up(act)) for act in _acts(door)]
        yield
        await cancel_tasks(tasks, again_seconds=1)
        await door.queue.close()
        await asyncio.to_thread(tracing.end)

    app = FastAPI(
        title="PFGM++ Serve",
        version=__version__,
        summary="Samples PFGM++ image models: one family with PFGM at D = 1 and diffusion at D = infinity.",
        openapi_tags=TAGS,
        servers=[{"url": "/", "description": "The service that says this."}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # Not by `include_router`, whose routes are matched twice and through one more layer: 35 us a request.
        routes=[route for router in ROUTERS for route in router.routes],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        webhooks=webhooks,
        lifespan=lifespan,
    )
    complete(
        app,
        settings.keys_file is not None,
        SampleRequest,
        ProblemDocument,
        ImagesRequest,
        OpenAIError,
        InferRequest,
        InferenceError,
    )
    app.state.page = page.read_files()
    app.state.keys = Keys(settings.keys_file) if settings.keys_file else None
    install(app, app.state.keys, is_local=not settings.keys_file and not settings.allow_anyone)
    return app
