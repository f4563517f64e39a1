"""The command line: `pfgmpp serve | api | worker`, what asks a service, and what other packages add (`train`, `judge`).

What a command needs is imported when it runs: `--help` and completion are quick.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.completion import install_callback, show_callback
from typer.core import TyperGroup

from service import __version__
from service.commands import asking, completion, doctor
from service.commands.keys import keys
from service.commands.terminal import EXIT_FAILED, EXIT_MISCONFIGURED, give_up

if TYPE_CHECKING:
    from service.settings import Settings

EXTRAS = {
    "torch": "worker",
    "safetensors": "worker",
    "sklearn": "train",
    "lmdb": "train",
    "matplotlib": "train",
    "obstore": "s3",
    "opentelemetry": "otel",
}
"""Which extra of the package brings a module."""


ASKING = (
    asking.sample,
    asking.submit,
    asking.watch,
    asking.fetch,
    asking.status,
    asking.jobs,
    asking.cancel,
    asking.estimate,
    asking.models,
    asking.reproduce,
)
"""The commands that ask a running service."""

SECTIONS = {
    "Ask a service": tuple(command.__name__ for command in ASKING),
    "Run a service": ("serve", "api", "worker", "keys", "doctor", "bench"),
}
"""Of the help; what is in none is under `Make and judge models`."""


LONGEST_HELP = 200
"""Letters of what is said of a command in the list; they are wrapped."""


class Sections(TyperGroup):
    """The commands, by what they are about."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List them under the names of their sections."""
        named = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in named)
        for title, names in {**SECTIONS, "Make and judge models": others}.items():
            shown = [(name, self.commands[name]) for name in names if name in self.commands]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(LONGEST_HELP)) for name, command in shown])


app = typer.Typer(
    cls=Sections,
    help="Sample PFGM++ image models: a service, its worker, and a client. `pfgmpp COMMAND --help` has examples.",
    epilog="Exit status: 0 done; 1 failed, refused or out of reach; 2 wrong usage or settings; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    add_completion=False,  # its options take no shell
)

Host = Annotated[str | None, typer.Option(help="Address to listen on [PFGMPP_HOST; 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="Port to listen on [PFGMPP_PORT; 8000].")]


@contextmanager
def naming_the_extra(command: str) -> Iterator[None]:
    """End the program with one line that says what to install when a command lacks a module of an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        give_up(f"{command} needs {module}: pip install -c constraints.txt '.[{EXTRAS[module]}]'", EXIT_MISCONFIGURED)


def print_version(is_asked: bool) -> None:
    """Print the version, and end the program."""
    if is_asked:
        typer.echo(f"pfgmpp {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    show_completion: Annotated[
        completion.Shell | None,
        typer.Option(callback=show_callback, is_eager=True, help="Print the completion script of a shell."),
    ] = None,
    install_completion: Annotated[
        completion.Shell | None,
        typer.Option(callback=install_callback, is_eager=True, help="Install completion for a shell."),
    ] = None,
) -> None:
    """What is said to the program itself, which ends with the answer."""


@app.command()
def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes [PFGMPP_WORKERS; 1].")] = None,
) -> None:
    """Serve on this machine; Ctrl-C stops all of it.

    Starts an embedded Redis (unless REDIS_URL is set), the API and workers.

    \b
    Example:
      pfgmpp serve --port 8080 --workers 2
    """
    import asyncio

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
    """Run the API alone.

    REDIS_URL says where the queue is.

    \b
    Example:
      export REDIS_URL=redis://queue:6379 PFGMPP_RESULTS_DIR=/results PFGMPP_KEYS_FILE=/var/lib/pfgmpp/keys.json
      pfgmpp api --host 0.0.0.0
    """
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
    """Run one worker alone.

    REDIS_URL says where the queue is, PFGMPP_RESULTS_DIR (or _URL) where results go.

    \b
    Example:
      REDIS_URL=redis://queue:6379 PFGMPP_RESULTS_DIR=/results pfgmpp worker
    """
    import asyncio
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


def read_settings(**given: object) -> "Settings":
    """The settings, with what the command line gave in place of the environment; wrong ones end the program.

    Those that do not exist are named: they may be meant to be others, or for another program.
    """
    from pydantic import ValidationError

    from service.settings import Settings, faults

    for variable, meant in Settings.unknown_variables():
        hint = f"; is {meant} meant?" if meant else ""
        typer.echo(f"pfgmpp: there is no setting {variable}{hint}", err=True)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        give_up("wrong settings: " + "; ".join(faults(error)), EXIT_MISCONFIGURED)


def need_redis(settings: "Settings") -> None:
    """End the program when no Redis is named."""
    if not settings.redis_url:
        give_up("REDIS_URL is not set; set it, or use `pfgmpp serve`, which starts its own", EXIT_MISCONFIGURED)


def check_access(settings: "Settings") -> None:
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


for command in ASKING:
    app.command()(command)
app.command()(doctor.doctor)
app.add_typer(keys, name="keys")
for entry in sorted(entry_points(group="pfgmpp.commands"), key=lambda entry: entry.name):
    app.command(entry.name)(naming_the_extra(entry.name)(entry.load()))
