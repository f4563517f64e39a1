"""The commands that make models: train, dataset, import, inspect. What they need is imported when one runs."""

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one such as `digits`.")],
    D: Annotated[str, typer.Option("--D", help='Augmentation dimension: a number > 0 or "inf".')],
    data: Annotated[
        Path | None, typer.Option(help="A ZIP or folder of images of one size; the digits need none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the data set, as requests say it; the recipe's.")] = None,
    terms: Annotated[str, typer.Option("--licence", help="Of the data, and so of the model.")] = "that of its data",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The checkpoint to write.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the log, the state and sample grids; runs/NAME-dD.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    transfer: Annotated[Path | None, typer.Option(help="A checkpoint to begin with, of the same network.")] = None,
    images: Annotated[int | None, typer.Option(help="Images to see, in place of the recipe's.", min=1)] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of a setting, such as batch=64 or architecture.dropout=0.1."),
    ] = None,
    save_seconds: Annotated[float, typer.Option(help="How often to save the state and a sample grid.", min=0)] = 300,
    device: Annotated[str, typer.Option(help="Device to train on, such as cpu or cuda.")] = "cpu",
    compiles: Annotated[
        bool, typer.Option("--compile", help="Compile the network: takes minutes; meant for GPUs.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.", min=1)] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and do nothing.")] = False,
) -> None:
    """Train one model by a recipe and write its checkpoint; under torchrun, on several devices."""
    from models.training import Plan, Stopped, carry_out

    plan = Plan(
        recipe=recipe,
        D=D,
        data=data,
        name=name,
        terms=terms,
        output=output,
        folder=folder,
        resume=resume,
        transfer=transfer,
        changes=[*(changes or ()), *([f"images={images}"] if images else ())],
        save_seconds=save_seconds,
        device=device,
        compiles=compiles,
        threads=threads,
        is_dry=is_dry,
    )
    try:
        written = carry_out(plan)
    except Stopped as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        give_up(str(error))
    if written:
        typer.echo(written)


def dataset(
    source: Annotated[
        Path, typer.Argument(help="A folder or ZIP of images, CIFAR-10 for Python, MNIST's IDX, or LSUN's LMDB.")
    ],
    output: Annotated[Path, typer.Argument(help="The ZIP to write.")],
    resolution: Annotated[str | None, typer.Option(help="Pixels, such as 64, or WIDTHxHEIGHT.")] = None,
    crop: Annotated[
        Literal["none", "center", "center-wide"],
        typer.Option(help="Around the middle: a square, or WIDTHxHEIGHT with black above and below."),
    ] = "none",
    most: Annotated[int | None, typer.Option("--max-images", help="Of the first ones.", min=1)] = None,
    colour: Annotated[
        Literal["kept", "grey", "rgb"], typer.Option(help="Of all images; kept: they are alike as they are.")
    ] = "kept",
) -> None:
    """Pack images of any size into a ZIP to train on."""
    from models.bar import bar
    from models.pack import pack, parse_size

    try:
        size = parse_size(resolution)
        with bar("pack") as report:
            held = pack(source, output, size, crop, most, colour, report)
    except (ValueError, OSError) as error:
        give_up(str(error))
    typer.echo(f"wrote {output}: {held}")


def import_official(
    file: Annotated[Path, typer.Argument(help="A `.pkl` or `.pt` of the official code.")],
    dataset: Annotated[str | None, typer.Option(help="Its data set; as the file notes it if left out.")] = None,
    D: Annotated[str | None, typer.Option("--D", help='A number > 0 or "inf", where the file does not tell.')] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Names of the classes: a JSON list, or one a line; 0, 1, 2 ... if left out.")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="For old models: noise levels sqrt(1 + N/D) times as high.")
    ] = False,
    output: Annotated[Path | None, typer.Option("-o", "--out", help="The checkpoint to write.")] = None,
) -> None:
    """Turn an official checkpoint of PFGM++ or EDM into one that can be served. Nothing in it is executed."""
    from models import checkpoint
    from models.card import parse_D
    from models.official import convert, open_official, read_classes

    try:
        names = None if classes is None else read_classes(classes)
        card, tensors = convert(open_official(file), dataset, None if D is None else parse_D(D), names, align)
    except ValueError as error:
        give_up(str(error))
    output = output or Path(f"{card.name}.safetensors")
    act = "replaced" if output.is_file() else "wrote"
    if output.exists() and output.samefile(file):
        give_up(f"{output}: is the file that is imported; choose another --out")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(output, card, tensors)
    except OSError as error:
        give_up(f"{output}: cannot be written ({error})")
    typer.echo(f"{act} {output}: {card.name}, licensed {card.license}")


def inspect(file: Annotated[Path, typer.Argument(help="An official checkpoint, or one of this program.")]) -> None:
    """Print what a checkpoint holds. Nothing in it is executed."""
    from rich.console import Console
    from rich.text import Text

    from models.card import CheckpointError
    from models.official import describe

    try:
        facts = describe(file)
    except CheckpointError as error:
        give_up(str(error))
    width, console = max(map(len, facts)), Console()
    for name, fact in facts.items():
        console.print(Text(f"{printable(name):<{width}} ", "bold"), Text(printable(fact)), soft_wrap=True)


def give_up(message: str) -> NoReturn:
    """End the program with one line on standard error."""
    typer.echo(f"pfgmpp: {printable(message)}", err=True)
    raise typer.Exit(2)


def printable(text: str) -> str:
    """A text without characters that move the cursor or change colours, which a file may hold."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
