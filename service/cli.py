"""The command line: `pfgmpp serve | api | worker | sample`, and what other packages add (`train`, `judge`)."""

import asyncio
import gc
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from service.settings import Settings

FILE_WIDTH = 200
"""Of a table that does not go to a terminal."""

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2

app = typer.Typer(
    help="Sample PFGM++ image models: a service, its worker, and a client.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)

Host = Annotated[str | None, typer.Option(help="Address to listen on [PFGMPP_HOST; 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="Port to listen on [PFGMPP_PORT; 8000].")]


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes [PFGMPP_WORKERS; 1].")] = None,
) -> None:
    """Serve on this machine: embedded Redis (unless REDIS_URL is set), API and workers. Ctrl-C stops all."""
    from service.embedded import NoServer
    from service.logs import configure
    from service.supervisor import CannotListen, Supervisor

    settings = read_settings(host=host, port=port, workers=workers)
    configure("serve", settings.log_format)
    try:
        status = asyncio.run(Supervisor(settings).run())
    except (NoServer, CannotListen) as error:
        give_up(str(error), EXIT_MISCONFIGURED)
    raise typer.Exit(status)


@app.command()
def api(host: Host = None, port: Port = None, fd: Annotated[int | None, typer.Option(hidden=True)] = None) -> None:
    """Run the API alone; REDIS_URL says where the queue is."""
    import socket

    settings = read_settings(host=host, port=port)
    need_redis(settings)
    with uncollected():
        import uvicorn

        from service.api import create_app
        from service.logs import configure

        configure("api", settings.log_format)
        config = uvicorn.Config(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    sockets = None if fd is None else [socket.socket(fileno=fd)]
    uvicorn.Server(config).run(sockets)


@app.command()
def worker(
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of this worker's /metrics [PFGMPP_METRICS_PORT; 9100].")
    ] = None,
) -> None:
    """Run one worker alone; REDIS_URL says where the queue is, PFGMPP_RESULTS_DIR where results go."""
    import os

    settings = read_settings(metrics_port=metrics_port)
    need_redis(settings)
    try:
        with uncollected():
            from uvicorn.loops.auto import auto_loop_factory

            from service.worker import Misconfigured, Worker
    except ModuleNotFoundError as error:
        give_up(f"a worker needs {error.name}: pip install 'pfgmpp-serve[worker]'", EXIT_MISCONFIGURED)
    from service.logs import configure
    from service.metrics import MULTIPROCESS_DIR

    if settings.metrics_port is None and MULTIPROCESS_DIR not in os.environ:
        settings = settings.model_copy(update={"metrics_port": 9100})
    configure(settings.worker_name or "worker", settings.log_format)
    try:
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(Worker(settings).run())
    except Misconfigured as error:
        give_up(str(error), EXIT_MISCONFIGURED)


@app.command()
def sample(
    dataset: Annotated[str, typer.Option(help="Data set, as listed by /v1/models.")],
    D: Annotated[str, typer.Option("--D", help='Augmentation dimension: a number, or "inf".')],
    count: Annotated[int, typer.Option(help="Images.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Solver steps; the model's default if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Image k has seed + k; drawn if left out.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Class of all images, or one per image with commas; drawn if left out.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="exact, or fast with a difference nobody can see; the service's default.")
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Of the grid.")] = None,
    scale: Annotated[int, typer.Option(help="Enlargement of the picture, 1 to 16.")] = 1,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("grid.png"),
    server: Annotated[str, typer.Option(envvar="PFGMPP_SERVER", help="The service.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask a running service for images and write them as one PNG grid."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from service.client import Client, ClientError

    labels: list[Any] = [
        int(each) if each.isascii() and each.isdecimal() else each for each in (label or "").split(",")
    ]
    chosen = {} if label is None else {"label": labels[0]} if len(labels) == 1 else {"labels": labels}
    optional = {"steps": steps, "seed": seed, "precision": precision, "columns": columns}
    request = {"dataset": dataset, "D": _number(D), "count": count, "scale": scale} | chosen
    request |= {name: value for name, value in optional.items() if value is not None}
    if not output.parent.is_dir():
        give_up(f"{output}: there is no directory {output.parent}", EXIT_FAILED)
    bar = Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} evaluations"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    try:
        client = Client(server)
        with bar:
            job = client.submit(request)
            task = bar.add_task(job.status, total=job.progress.evaluations_total)
            for latest in client.follow(job.id):
                job = latest
                bar.update(task, description=job.status, completed=job.progress.evaluations_done)
        if job.error:
            give_up(f"job {job.id} failed: {job.error.detail}", EXIT_FAILED)
        output.write_bytes(client.grid(job.id))
    except (ClientError, OSError) as error:
        give_up(str(error), EXIT_FAILED)
    latency = job.latency
    seconds = f" in {latency.total_seconds:.2f} s ({latency.sampling_seconds:.2f} s of sampling)" if latency else ""
    typer.echo(f"wrote {output}: {count} images{seconds}, seeds {_span(job.seeds)}")


@app.command()
def models(
    server: Annotated[str, typer.Option(envvar="PFGMPP_SERVER", help="The service.")] = "http://127.0.0.1:8000",
) -> None:
    """List what a running service can sample."""
    from rich.console import Console
    from rich.table import Table

    from service.client import Client, ClientError

    try:
        offered = Client(server).models()
    except ClientError as error:
        give_up(str(error), EXIT_FAILED)
    table = Table("data set", "D", "pixels", "classes", "steps", "parameters", "loaded on", "licence", box=None)
    for column in table.columns:
        column.no_wrap = True
    for model in offered:
        pixels = f"{model.resolution}x{model.resolution}x{model.channels}"
        steps, parameters = f"{model.default_steps} (2 to {model.max_steps})", f"{model.parameters:,}"
        loaded = ", ".join(model.loaded_on) or "-"
        row = (model.dataset, str(model.D), pixels, str(len(model.classes)), steps, parameters, loaded, model.license)
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage while modules are loaded, and never look at them again.

    A worker starts 150 ms sooner, and a full collection took the API 60 ms.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _number(D: str) -> float | int | str:
    """D as JSON has it; what is no number is left for the service to refuse."""
    try:
        number = float(D)
    except ValueError:
        return D
    if not math.isfinite(number):
        return D
    return int(number) if number.is_integer() else number


def _span(seeds: list[int]) -> str:
    is_range = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if is_range and len(seeds) > 1 else ", ".join(map(str, seeds))


def read_settings(**given: object) -> Settings:
    """The settings, with what the command line gave in place of the environment; wrong ones end the program."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = (
            f"{'.'.join(map(str, each['loc']))}: {each['msg']} (it is {each['input']!r})" for each in error.errors()
        )
        give_up("wrong settings: " + "; ".join(wrong), EXIT_MISCONFIGURED)


def need_redis(settings: Settings) -> None:
    """End the program when no Redis is named."""
    if not settings.redis_url:
        give_up("REDIS_URL is not set; set it, or use `pfgmpp serve`, which starts its own", EXIT_MISCONFIGURED)


def give_up(message: str, status: int) -> NoReturn:
    """End the program with one line on standard error."""
    typer.echo(f"pfgmpp: {message}", err=True)
    raise typer.Exit(status)


for command in sorted(entry_points(group="pfgmpp.commands"), key=lambda entry: entry.name):
    app.command(command.name)(command.load())
