"""The commands of `pfgmpp keys`: API keys are made, listed and revoked."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.terminal import EXIT_MISCONFIGURED, give_up, print_table

keys = typer.Typer(help="API keys: make, list and revoke them.", no_args_is_help=True, rich_markup_mode=None)

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
    """Make a key and print it, this once; services that use the file know it at once.

    \b
    Example:
      pfgmpp keys add alice --file keys.json --per-minute 60
    """
    from pydantic import ValidationError

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
    """List whose keys there are, and what they may.

    \b
    Example:
      pfgmpp keys list --file keys.json
    """
    from service.access import AccessError, Keys

    try:
        found = Keys(file).read()
    except AccessError as error:
        give_up(str(error), EXIT_MISCONFIGURED)
    rows = list[tuple[str, ...]]()
    for key in found:
        limits = (key.submissions_per_minute, key.queued_evaluations, key.open_jobs)
        shown = ("-" if limit is None else f"{limit:,}" for limit in limits)
        rows.append((key.name, f"{key.created_at:%Y-%m-%d %H:%M}", "yes" if key.is_admin else "", *shown))
    print_table(("name", "made", "admin", "a minute", "evaluations", "jobs"), rows)


@keys.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="Whose it is.")], file: KeysFile) -> None:
    """Let a key be none from now on; services that use the file need no restart.

    \b
    Example:
      pfgmpp keys revoke alice --file keys.json
    """
    from service.access import AccessError, Keys

    try:
        Keys(file).revoke(name)
    except AccessError as error:
        give_up(str(error), EXIT_MISCONFIGURED)
    typer.echo(f"revoked {name}")
