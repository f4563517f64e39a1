"""The command line: `pfgmpp serve | api | worker | sample`, and what other packages add (`train`, `judge`)."""

import asyncio
import gc
import json
import math
import re
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

MOST_SEEDS = 1_000_000
"""Of a span; the service takes fewer in one request."""

EXTRAS = {
    "torch": "worker",
    "safetensors": "worker",
    "sklearn": "train",
    "lmdb": "train",
    "matplotlib": "train",
    "obstore": "s3",
}
"""Which extra of the package brings a module."""

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
Server = Annotated[str, typer.Option(envvar="PFGMPP_SERVER", help="The service.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="PFGMPP_KEY", help="An API key, where one is needed.", show_default=False)
]


@contextmanager
def naming_the_extra(command: str) -> Iterator[None]:
    """End the program with one line that says what to install when a command lacks a module of an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        give_up(f"{command} needs {module}: pip install 'pfgmpp-serve[{EXTRAS[module]}]'", EXIT_MISCONFIGURED)


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
    check_access(settings)
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
    check_access(settings)
    with naming_the_extra("api"), uncollected():
        import uvicorn

        from service.api import create_app
        from service.connection import Connection, allow_many
        from service.logs import configure
        from service.server import Server

        configure("api", settings.log_format)
        allow_many()
        try:
            application = create_app(settings)
        except ValueError as error:
            give_up(str(error), EXIT_MISCONFIGURED)
        config = uvicorn.Config(
            application,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=Connection,
            timeout_graceful_shutdown=2,
        )
    sockets = None if fd is None else [socket.socket(fileno=fd)]
    Server(config, application, settings.drain_seconds).run(sockets)


@app.command()
def worker(
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of this worker's /metrics [PFGMPP_METRICS_PORT; 9100].")
    ] = None,
) -> None:
    """Run one worker alone; REDIS_URL says where the queue is, PFGMPP_RESULTS_DIR (or _URL) where results go."""
    import os

    settings = read_settings(metrics_port=metrics_port)
    need_redis(settings)
    with naming_the_extra("worker"), uncollected():
        from uvicorn.loops.auto import auto_loop_factory

        from service.worker import Hung, Misconfigured, Worker
    from service.logs import configure
    from service.metrics import MULTIPROCESS_DIR
    from service.store import StoreAway

    if settings.metrics_port is None and MULTIPROCESS_DIR not in os.environ:
        settings = settings.model_copy(update={"metrics_port": 9100})
    configure(settings.worker_name or "worker", settings.log_format)
    try:
        with naming_the_extra("worker"), asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(Worker(settings).run())
    except Misconfigured as error:
        give_up(str(error), EXIT_MISCONFIGURED)
    except StoreAway as error:
        give_up(str(error), EXIT_FAILED)
    except Hung as error:
        typer.echo(f"pfgmpp: {error}", err=True)
        os._exit(EXIT_FAILED)  # an orderly end would wait for the thread that hangs


@app.command()
def sample(
    dataset: Annotated[str, typer.Option(help="Data set, as listed by /v1/models.")],
    D: Annotated[str, typer.Option("--D", help='Augmentation dimension: a number, or "inf".')],
    count: Annotated[int | None, typer.Option(help="Images; 1, or as many as seeds.")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps; the model's default if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Image k has seed + k; drawn if left out.")] = None,
    seeds: Annotated[str | None, typer.Option(help="One per image, such as 1,2,5-10.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Class of all images, or one per image with commas; drawn if left out.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="exact, or fast with a difference nobody can see; the service's default.")
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Of the grid.")] = None,
    scale: Annotated[int, typer.Option(help="Enlargement of the picture, 1 to 16.")] = 1,
    chosen: Annotated[
        list[str] | None,
        typer.Option(
            "-s", "--set", help="Any other field of a request, such as solver=ipndm or alpha=0.1; repeatable."
        ),
    ] = None,
    trajectory: Annotated[
        Path | None, typer.Option(help="Also write how the images came about: FILE.gif, or FILE.png side by side.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The PNG to write.")] = Path("grid.png"),
    server: Server = "http://127.0.0.1:8000",
    key: ApiKey = None,
) -> None:
    """Ask a running service for images and write them as one PNG grid."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from service.client import Client, ClientError

    one_per_image = None if seeds is None else _seeds(seeds)
    optional = {
        "count": len(one_per_image) if count is None and one_per_image else count,
        "steps": steps,
        "seed": seed,
        "seeds": one_per_image,
        "precision": precision,
        "columns": columns,
        "trajectory": True if trajectory else None,
    }
    request = {"dataset": dataset, "D": _number(D), "scale": scale} | _labels(label)
    request |= {name: value for name, value in optional.items() if value is not None}
    _set_fields(request, chosen or [])
    _check_files(output, trajectory)
    bar = Progress(
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} evaluations"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    try:
        with Client(server, key) as client:
            with bar:
                job = client.submit(request)
                task = bar.add_task(job.status, total=job.progress.evaluations_total)
                for latest in client.follow(job.id):
                    job = latest
                    bar.update(task, description=job.status, completed=job.progress.evaluations_done)
            if job.error:
                give_up(f"job {job.id} failed: {job.error.detail}", EXIT_FAILED)
            output.write_bytes(client.picture(job.id, "grid.png"))
            if trajectory:
                trajectory.write_bytes(client.picture(job.id, f"trajectory{trajectory.suffix}"))
    except (ClientError, OSError) as error:
        give_up(str(error), EXIT_FAILED)
    latency = job.latency
    seconds = f" in {latency.total_seconds:.2f} s ({latency.sampling_seconds:.2f} s of sampling)" if latency else ""
    images = "1 image" if len(job.seeds) == 1 else f"{len(job.seeds)} images"
    typer.echo(f"wrote {output}: {images}{seconds}, {_span(job.seeds)}")
    if trajectory:
        typer.echo(f"wrote {trajectory}")


@app.command()
def models(server: Server = "http://127.0.0.1:8000", key: ApiKey = None) -> None:
    """List what a running service can sample."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from service.client import Client, ClientError

    try:
        with Client(server, key) as client:
            offered = client.models()
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
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


keys = typer.Typer(help="API keys: make, list and revoke them.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys, name="keys")

KeysFile = Annotated[Path, typer.Option("--file", envvar="PFGMPP_KEYS_FILE", help="Where their hashes are kept.")]


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    file: KeysFile,
    admin: Annotated[
        bool, typer.Option("--admin", help="Opens anyone's jobs by their ids, orders models, reads metrics.")
    ] = False,
    per_minute: Annotated[int | None, typer.Option(help="Most submissions a minute.", min=1)] = None,
    evaluations: Annotated[int | None, typer.Option(help="Most network evaluations not done.", min=1)] = None,
    jobs: Annotated[int | None, typer.Option(help="Most jobs not ended.", min=1)] = None,
) -> None:
    """Make a key and print it, this once; services that use the file know it at once."""
    from service.access import AccessError, Caller, Keys

    limits = {"submissions_per_minute": per_minute, "queued_evaluations": evaluations, "open_jobs": jobs}
    try:
        typer.echo(Keys(file).add(Caller(name=name, is_admin=admin, **limits)))
    except ValidationError:
        give_up(f"{name!r}: must be 1 to 64 letters, digits, dots, - and _", EXIT_MISCONFIGURED)
    except AccessError as error:
        give_up(str(error), EXIT_MISCONFIGURED)


@keys.command("list")
def list_keys(file: KeysFile) -> None:
    """List whose keys there are, and what they may."""
    from rich.console import Console
    from rich.table import Table

    from service.access import AccessError, Keys

    table = Table("name", "made", "admin", "a minute", "evaluations", "jobs", box=None)
    try:
        for key in Keys(file).read():
            limits = (key.submissions_per_minute, key.queued_evaluations, key.open_jobs)
            shown = ("-" if limit is None else f"{limit:,}" for limit in limits)
            table.add_row(key.name, f"{key.created_at:%Y-%m-%d %H:%M}", "yes" if key.is_admin else "", *shown)
    except AccessError as error:
        give_up(str(error), EXIT_MISCONFIGURED)
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


@keys.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="Whose it is.")], file: KeysFile) -> None:
    """Let a key be none from now on; services that use the file need no restart."""
    from service.access import AccessError, Keys

    try:
        Keys(file).revoke(name)
    except AccessError as error:
        give_up(str(error), EXIT_MISCONFIGURED)
    typer.echo(f"revoked {name}")


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
        if not equals:
            give_up(f"--set {setting}: must be NAME=VALUE", EXIT_MISCONFIGURED)
        if name in request.keys() - {"scale"}:
            give_up(f"--set {name}: is given twice, or has an option of its own", EXIT_MISCONFIGURED)
        try:
            request[name] = json.loads(value)
        except (ValueError, RecursionError):
            request[name] = value


def _check_files(output: Path, trajectory: Path | None) -> None:
    """End the program when pictures could not be written where they are to be."""
    if trajectory and trajectory.suffix not in {".gif", ".png"}:
        give_up(f"--trajectory {trajectory}: must end with .gif or .png", EXIT_MISCONFIGURED)
    if trajectory and trajectory.resolve() == output.resolve():
        give_up(f"--trajectory {trajectory}: is also the file of the grid; name another", EXIT_MISCONFIGURED)
    for path in filter(None, (output, trajectory)):
        if not path.parent.is_dir():
            give_up(f"{path}: there is no directory {path.parent}", EXIT_FAILED)
        if path.is_dir():
            give_up(f"{path}: is a directory", EXIT_FAILED)


def _span(seeds: list[int]) -> str:
    is_range = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return "seeds " + (f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds)))


SECRETS = {"webhook_secret", "redis_url"}
"""Settings that are not repeated in messages, for they may hold a password."""


def read_settings(**given: object) -> Settings:
    """The settings, with what the command line gave in place of the environment; wrong ones end the program.

    Those that do not exist are named: they may be meant to be others, or for another program.
    """
    for variable, meant in Settings.unknown_variables():
        hint = f"; is {meant} meant?" if meant else ""
        typer.echo(f"pfgmpp: there is no setting {variable}{hint}", err=True)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = (
            f"{(name := '.'.join(map(str, each['loc'])))}: {each['msg'].removeprefix('Value error, ')}"
            + ("" if name in SECRETS else f" (it is {each['input']!r})")
            for each in error.errors()
            if each["type"] != "default_factory_not_called"
        )
        give_up("wrong settings: " + "; ".join(wrong), EXIT_MISCONFIGURED)


def need_redis(settings: Settings) -> None:
    """End the program when no Redis is named."""
    if not settings.redis_url:
        give_up("REDIS_URL is not set; set it, or use `pfgmpp serve`, which starts its own", EXIT_MISCONFIGURED)


def check_access(settings: Settings) -> None:
    """End the program when strangers could use the service without anyone having said so, or nobody could."""
    from service.access import AccessError, Keys, is_loopback

    try:
        if settings.keys_file:
            Keys(settings.keys_file).read()
        elif not settings.allow_anyone and not is_loopback(settings.host):
            raise AccessError(
                f"{settings.host} can be reached from elsewhere, and there are no keys: make one with "
                "`pfgmpp keys add NAME --file keys.json` and set PFGMPP_KEYS_FILE=keys.json, "
                "or set PFGMPP_ALLOW_ANYONE=true on a network you trust"
            )
    except AccessError as error:
        give_up(str(error), EXIT_MISCONFIGURED)


def give_up(message: str, status: int) -> NoReturn:
    """End the program with one line on standard error."""
    typer.echo(f"pfgmpp: {message}", err=True)
    raise typer.Exit(status)


for command in sorted(entry_points(group="pfgmpp.commands"), key=lambda entry: entry.name):
    app.command(command.name)(naming_the_extra(command.name)(command.load()))
