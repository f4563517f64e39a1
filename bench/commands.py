"""The command `pfgmpp bench`. What a part needs is imported when it runs."""

import os
import platform
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bench.report import Report

PARTS = {
    "engine": "the engine alone against a plain sampler",
    "service": "the service end to end against a plain sampler",
    "load": "jobs that arrive at random, in-flight against by-key batching",
    "overhead": "what the service adds to a nearly instant model",
    "start": "time and memory from nothing to the first picture",
    "png": "the PNG encoder against Pillow's",
    "workers": "two workers against one",
    "scheduler": "what the scheduler costs",
    "training": "steps of training: precisions, layouts of memory, compiled code",
}


ON_DEVICE = {"engine", "scheduler", "training"}
"""The parts that run on --device; the others are of services on the CPU."""


def bench(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(PARTS)}; all if left out.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each contestant.", min=1)] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Short runs of the small network alone: a trial.")] = False,
    device: Annotated[str, typer.Option(help="Of the parts engine, scheduler and training, such as cuda.")] = "cpu",
    folder: Annotated[Path, typer.Option(help="For what lasts: networks, compiled code.")] = Path(".pfgmpp/bench"),
    output: Annotated[Path, typer.Option("-o", "--output", help="The JSON to write.")] = Path("bench.json"),
    plot: Annotated[Path | None, typer.Option(help="The PNG to draw.")] = None,
) -> None:
    """Measure how fast this machine serves; all of it takes about an hour on two CPU cores, one thread a process.

    \b
    Example:
      pfgmpp bench service load --quick --plot bench.png
    """
    # Before torch is imported: what is compared has one thread, as a worker has.
    os.environ |= {"OMP_NUM_THREADS": "1"}
    wrong = [part for part in parts or () if part not in PARTS]
    if wrong:
        raise typer.BadParameter(f"there is no part {', '.join(wrong)}; there are: {', '.join(PARTS)}")
    for path in filter(None, (output, plot)):
        if not path.parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no directory {path.parent}")
        if path.is_dir():
            raise typer.BadParameter(f"{path}: is a directory, and must be a file to write")
    try:
        import torch

        from bench.plot import draw
        from bench.report import Report
        from bench.workload import Workbench

        torch.set_num_threads(1)
        workbench = Workbench(folder.resolve(), rounds, quick, torch.device(device))
        if ON_DEVICE & set(parts or PARTS):
            torch.empty(0, device=workbench.device)
    except ModuleNotFoundError as error:
        hint = ".venv/bin/pip install -c constraints.txt -e '.[bench]'"
        raise typer.BadParameter(f"the benchmarks need {error.name}: {hint}") from error
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device {device}: {str(error).splitlines()[0]}") from error
    report = Report(machine=machine(device), parts={})
    for part in parts or PARTS:
        typer.echo(f"{part}: {PARTS[part]}", err=True)
        started = time.monotonic()
        findings = import_module(f"bench.{part}").measure(workbench)
        findings.details["took_seconds"] = round(time.monotonic() - started, 1)
        report.parts[part] = findings
        output.write_text(report.model_dump_json(indent=2))
    if plot:
        draw(report, plot)
    show(report)


def machine(device: str) -> dict[str, Any]:
    """Where the figures were measured."""
    import torch

    from service import __version__

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pfgmpp": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def show(report: "Report") -> None:
    """Print every figure beside what it must reach."""
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "figure", "must be", "found", "", title=f"{report.machine['processor']}")
    for part, findings in report.parts.items():
        for figure in findings.figures:
            mark = "" if not figure.bound else "[green]yes" if figure.is_met else "[red]no"
            table.add_row(part, figure.name, figure.bound, f"{figure.value:.3g} {figure.unit}", mark)
    Console().print(table)
