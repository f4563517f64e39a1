"""What the commands share: how they end, what they print, and options that several have."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from service import DEFAULT_SERVER

if TYPE_CHECKING:
    from service.client import Client

FILE_WIDTH = 200
"""Of a table that does not go to a terminal."""

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2
EXIT_INTERRUPTED = 130


def give_up(message: str, status: int) -> NoReturn:
    """End the program with one line on standard error."""
    typer.echo(f"pfgmpp: {message}", err=True)
    raise typer.Exit(status)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, every row on one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None)
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def print_json(value: Any) -> None:
    """Print a value for a program, on one line; models of pydantic may be in it."""
    typer.echo(json.dumps(value, default=lambda model: model.model_dump(mode="json")))


def given(**makers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have parameters of a command made of options: those that the functions of their names take.

    So options that several commands have stand once.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        taken = {name: list(signature(maker).parameters) for name, maker in makers.items()}

        def run(**values: Any) -> None:
            made = {name: maker(**{each: values.pop(each) for each in taken[name]}) for name, maker in makers.items()}
            command(**made, **values)

        parameters = list[Parameter]()
        for name, parameter in signature(command).parameters.items():
            options = signature(makers[name]).parameters.values() if name in makers else [parameter]
            parameters += [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


class Reach:
    """How a command reaches a service and answers its user: in words, or with --json for a program."""

    def __init__(
        self,
        server: Annotated[
            str, typer.Option(envvar="PFGMPP_SERVER", help="The service.", show_default=True)
        ] = DEFAULT_SERVER,
        key: Annotated[
            str | None, typer.Option(envvar="PFGMPP_KEY", help="An API key, where one is needed.", show_default=False)
        ] = None,
        patience: Annotated[
            float, typer.Option(help="Seconds to ask again while the service is too busy, or away.", min=0)
        ] = 60,
        is_json: Annotated[
            bool, typer.Option("--json", help="Print JSON and nothing else; errors as JSON on standard error.")
        ] = False,
    ):
        self.server, self.key, self.patience_seconds, self.is_json = server, key, patience, is_json

    @contextmanager
    def client(self) -> Iterator["Client"]:
        """A client; what goes wrong with it ends the program."""
        from service.client import Client, ClientError

        try:
            with Client(self.server, self.key, patience_seconds=self.patience_seconds) as client:
                yield client
        except ClientError as error:
            self.fail(error.problem(), str(error))
        except OSError as error:
            self.fail({"code": "file-error", "detail": str(error)}, str(error))
        except KeyboardInterrupt:
            self.interrupted("interrupted")

    def fail(self, problem: dict[str, Any], message: str, status: int = EXIT_FAILED) -> NoReturn:
        """End the program with what went wrong."""
        if not self.is_json:
            give_up(message, status)
        typer.echo(json.dumps(problem), err=True)
        raise typer.Exit(status)

    def interrupted(self, message: str, job_id: str | None = None) -> NoReturn:
        """End the program because its user wants that, with what becomes of a job."""
        self.fail({"code": "interrupted", "detail": message, "job": job_id}, message, EXIT_INTERRUPTED)

    def answer(self, value: Any, text: str) -> None:
        """Print an answer: the value for a program, or the text."""
        if self.is_json:
            print_json(value)
        else:
            typer.echo(text)
