"""The commands that ask a running service: `pfgmpp sample`, `submit`, `watch`, `status` and their like."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from service.commands import completion
from service.commands.options import request_of
from service.commands.terminal import (
    EXIT_FAILED,
    EXIT_MISCONFIGURED,
    Reach,
    give_up,
    given,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from service.client import Client, Event, SampleFields, Submitted
    from service.client.following import Watch
    from service.job import Estimate, Eta, JobView

JobId = Annotated[
    str, typer.Argument(metavar="ID", help="The id of a job, as `submit` prints it.", autocompletion=completion.jobs)
]

Output = Annotated[
    Path, typer.Option("-o", "--output", help="FILE.png for one grid, FILE.npz for arrays, FILE.zip for single PNGs.")
]
Trajectory = Annotated[
    Path | None, typer.Option(help="Also write how the images came about: FILE.gif, or FILE.png side by side.")
]

RESULTS = {".png": "grid.png", ".npz": "images.npz", ".zip": "images.zip"}
"""What of a job's result a file holds, by how its name ends."""


@given(request=request_of, reach=Reach)
def sample(
    *, request: "SampleFields", trajectory: Trajectory = None, output: Output = Path("grid.png"), reach: Reach
) -> None:
    """Ask for images and write them: one PNG grid, arrays, or single PNGs.

    \b
    Examples:
      pfgmpp sample --dataset digits --D 2048 --count 16 --scale 8
      pfgmpp sample --dataset digits --D inf --seeds 1,2,5-10 --label 7 -o sevens.png
    """
    _check_files(reach, output, trajectory)
    if trajectory:
        request["trajectory"] = True
    with reach.client() as client:
        job = _made(client, request, reach)
        _write(job, output, trajectory, reach)
    reach.answer(job.job, _wrote(job.job, output, trajectory))


@given(request=request_of, reach=Reach)
def submit(request: "SampleFields", reach: Reach) -> None:
    """Make a job and print its id; do not wait for it.

    With --set trajectory=true `fetch` can write how its images came about as well.

    \b
    Example:
      id=$(pfgmpp submit --dataset digits --D 2048 --count 64)
      pfgmpp fetch "$id" -o grid.png
    """
    with reach.client() as client:
        job = _submitted(client, request, reach)
    reach.answer(job.job, job.id)


@given(reach=Reach)
def watch(job_id: JobId, reach: Reach) -> None:
    """Watch a job until it has ended.

    The status is 0 if it succeeded, else 1. With --json every event is a line such as {"event": "progress", "job": {}};
    the others are queued, started and, at the end, finished.

    \b
    Example:
      pfgmpp watch 0123456789abcdef0123456789abcdef
    """

    def show(event: "Event") -> None:
        if event.preview is None:
            print_json({"event": event.kind, "job": event.job})

    with reach.client() as client:
        job = client.job(job_id)
        if reach.is_json and job.job.finished_at is not None:
            print_json({"event": "finished", "job": job.job})
        _watch(job, reach, show if reach.is_json else True)
    if job.job.status != "succeeded":
        _fail(reach, job.job)
    if not reach.is_json:
        typer.echo(_told(job.job))


@given(reach=Reach)
def fetch(*, job_id: JobId, trajectory: Trajectory = None, output: Output = Path("grid.png"), reach: Reach) -> None:
    """Wait for a job to end, and write its images.

    Of a job that was canceled, FILE.npz and FILE.zip hold those that had been finished.

    \b
    Example:
      pfgmpp fetch 0123456789abcdef0123456789abcdef -o images.npz
    """
    _check_files(reach, output, trajectory)
    with reach.client() as client:
        job = client.job(job_id)
        _watch(job, reach)
        _write(job, output, trajectory, reach)
    reach.answer(job.job, _wrote(job.job, output, trajectory))


@given(reach=Reach)
def status(
    *,
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="The id of a job; without it the service as a whole.",
            show_default=False,
            autocompletion=completion.jobs,
        ),
    ] = None,
    reach: Reach,
) -> None:
    """Show how a job is, or how the service is.

    Without a job: what waits for each model, and the workers.

    \b
    Example:
      pfgmpp status
    """
    with reach.client() as client:
        if job_id is not None:
            job = client.job(job_id).job
            reach.answer(job, _told(job))
            return
        state = client.status()
    if reach.is_json:
        print_json(state)
        return
    print_table(
        ("model", "queued jobs", "images", "evaluations", "oldest", "running jobs"),
        [
            (
                model.model,
                f"{model.queued_jobs:,}",
                f"{model.queued_images:,}",
                f"{model.queued_evaluations:,}",
                f"{model.oldest_age_seconds:.0f} s",
                f"{model.running_jobs:,}",
            )
            for model in state.models
        ],
    )
    typer.echo("")
    print_table(
        ("worker", "state", "device", "evaluations a second", "loaded"),
        [
            (
                worker.name,
                worker.state,
                worker.device,
                f"{worker.evaluations_per_second:,.0f}" if worker.evaluations_per_second else "-",
                ", ".join(worker.loaded) or "-",
            )
            for worker in state.workers
        ],
    )


@given(reach=Reach)
def jobs(
    *,
    state: Annotated[
        str | None,
        typer.Option(
            "--status",
            help="Only queued, running, succeeded, failed, canceled or expired ones.",
            autocompletion=completion.statuses,
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Only those of a data set.", autocompletion=completion.datasets)
    ] = None,
    limit: Annotated[int, typer.Option(help="So many at most.", min=1)] = 20,
    reach: Reach,
) -> None:
    """List your jobs, the last one first.

    \b
    Example:
      pfgmpp jobs --status succeeded --limit 5
    """
    with reach.client() as client:
        found = list(client.jobs(cast("Any", state), dataset, limit))
    if reach.is_json:
        print_json(found)
        return
    print_table(
        ("id", "status", "data set", "D", "images", "submitted (UTC)", "seconds"),
        [
            (
                job.id,
                job.status,
                job.model.dataset,
                str(job.model.D),
                str(len(job.seeds)),
                f"{job.created_at:%Y-%m-%d %H:%M:%S}",
                f"{job.latency.total_seconds:.2f}" if job.latency else "-",
            )
            for job in found
        ],
    )


@given(reach=Reach)
def cancel(job_id: JobId, reach: Reach) -> None:
    """End a job; its finished images stay.

    \b
    Example:
      pfgmpp cancel 0123456789abcdef0123456789abcdef
    """
    with reach.client() as client:
        job = client.job(job_id)
        had_ended = job.job.finished_at is not None
        job.cancel()
    word = f"had already {job.job.status}" if had_ended or job.job.status != "canceled" else "is canceled"
    reach.answer(job.job, f"job {job.id} {word}".replace("already canceled", "already been canceled"))


@given(request=request_of, reach=Reach)
def estimate(request: "SampleFields", reach: Reach) -> None:
    """Say what a request would take, and queue nothing.

    The status is 1 if it would be refused.

    \b
    Example:
      pfgmpp estimate --dataset digits --D 2048 --count 256 --steps 40
    """
    with reach.client() as client:
        found = client.estimate(**request)
    reach.answer(found, _foreseen(found))
    if found.refusal:
        raise typer.Exit(EXIT_FAILED)


@given(reach=Reach)
def models(reach: Reach) -> None:
    """List what can be sampled.

    \b
    Example:
      pfgmpp models --json
    """
    with reach.client() as client:
        offered = client.models()
    if reach.is_json:
        print_json(offered)
        return
    if not offered:
        typer.echo("nothing is on offer: no worker that lives has a model; `pfgmpp doctor` may say why")
        return
    print_table(
        ("data set", "D", "pixels", "classes", "steps", "parameters", "loaded on", "licence"),
        [
            (
                model.dataset,
                str(model.D),
                f"{model.resolution}x{model.resolution}x{model.channels}",
                str(len(model.classes)),
                f"{model.default_steps} (2 to {model.max_steps})",
                f"{model.parameters:,}",
                ", ".join(model.loaded_on) or "-",
                model.license,
            )
            for model in offered
        ],
    )


@given(reach=Reach)
def reproduce(
    *,
    picture: Annotated[
        Path, typer.Argument(metavar="PICTURE", help="A PNG of this service: a grid, one image, or a trajectory.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the picture made again.")] = None,
    reach: Reach,
) -> None:
    """Make a picture again from itself, and compare.

    The status is 0 if every pixel is the same, else 1.

    \b
    Example:
      pfgmpp sample --dataset digits --D 2048 --count 4 -o four.png
      pfgmpp reproduce four.png
    """
    from service.commands.reproduce import NoWord, compare, open_picture

    try:
        known = open_picture(picture)
    except NoWord as error:
        reach.fail({"code": "not-reproducible", "detail": str(error)}, str(error))
    if output:
        _check_files(reach, output, known=(".png",))
    with reach.client() as client:
        job = _made(client, cast("SampleFields", known.remake.fields), reach)
        made = job.fetch(known.file)
        if output:
            output.write_bytes(made)
    comparison = compare(known, made, job.job)
    reach.answer(comparison.facts() | {"job": job.job}, f"{picture}: {comparison.in_words()}")
    if not comparison.is_identical:
        raise typer.Exit(EXIT_FAILED)


def _made(client: "Client", request: "SampleFields", reach: Reach) -> "Submitted":
    """A job that has succeeded; one that does not ends the program."""
    job = _submitted(client, request, reach)
    _watch(job, reach)
    if job.job.status != "succeeded":
        _fail(reach, job.job)
    return job


def _submitted(client: "Client", request: "SampleFields", reach: Reach) -> "Submitted":
    """A new job; an interruption before its id is known ends the program."""
    try:
        return client.submit(**request)
    except KeyboardInterrupt:
        reach.interrupted("interrupted while a job was made: `pfgmpp jobs` shows whether it was")


def _watch(job: "Submitted", reach: Reach, progress: "Watch | None" = None) -> None:
    """Wait until a job has ended, with a bar unless a program reads; an interruption ends the program, not the job."""
    try:
        job.wait(not reach.is_json if progress is None else progress)
    except KeyboardInterrupt:
        reach.interrupted(f"job {job.id} goes on: `pfgmpp fetch {job.id}`, or cancel it", job.id)


def _write(job: "Submitted", output: Path, trajectory: Path | None, reach: Reach) -> None:
    """Write what an ended job has made; what cannot be written ends the program, with the job's id."""
    contents = {output: job.fetch(RESULTS[output.suffix.lower()])}
    if trajectory:
        contents[trajectory] = job.fetch(f"trajectory{trajectory.suffix.lower()}")
    try:
        for path, content in contents.items():
            path.write_bytes(content)
    except OSError as error:
        message = f"{error}; `pfgmpp fetch {job.id}` writes it elsewhere"
        reach.fail({"code": "file-error", "detail": message, "job": job.id}, message)


def _wrote(job: "JobView", output: Path, trajectory: Path | None) -> str:
    """What was written, in a line or two."""
    latency, images = job.latency, _number(job.progress.images_done, "image")
    seconds = f" in {latency.total_seconds:.2f} s ({latency.sampling_seconds:.2f} s of sampling)" if latency else ""
    whose = _span(job.seeds) if job.status == "succeeded" else f"of the {len(job.seeds)} of a canceled job"
    return f"wrote {output}: {images}{seconds}, {whose}" + (f"\nwrote {trajectory}" if trajectory else "")


def _fail(reach: Reach, job: "JobView") -> None:
    """End the program for a job that ended without its images."""
    from service.client import JobFailed

    failed = JobFailed(job)
    reach.fail(failed.problem(), str(failed))


def _told(job: "JobView") -> str:
    """How a job is, in a few lines."""
    lines = [f"job {job.id}: {job.status}" + (f", {job.error.detail}" if job.error else "")]
    lines.append(f"{_number(len(job.seeds), 'image')} of {job.model.dataset}, D = {job.model.D}, {_span(job.seeds)}")
    progress = job.progress
    done = f"{progress.evaluations_done}/{progress.evaluations_total} evaluations"
    lines.append(f"{done}, {progress.images_done}/{progress.images_total} images")
    if job.queue_position is not None:
        lines.append(f"{_number(job.queue_position, 'job')} ahead")
    if job.eta_seconds:
        lines.append(f"should end {_soon(job.eta_seconds)}")
    if job.waits_for:
        lines.append(f"waits for {job.waits_for}")
    if job.latency:
        stages = job.latency.stages().items()
        lines.append(", ".join(f"{stage.replace('_', ' ')} {seconds:.3f} s" for stage, seconds in stages))
    return "\n".join(lines)


def _foreseen(found: "Estimate") -> str:
    """An estimate in words."""
    if found.refusal:
        return f"would be refused: {found.refusal.code}: {found.refusal.detail}"
    eta = found.eta_seconds
    when = _soon(eta) if eta else "nothing is known of the workers yet"
    return f"{_number(found.images, 'image')}, {found.evaluations:,} evaluations: {when}"


def _soon(eta: "Eta") -> str:
    return f"in about {eta.p50:.1f} s, 9 times in 10 within {eta.p90:.1f} s"


def _number(count: int, noun: str) -> str:
    """So many of something, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _check_files(
    reach: Reach, output: Path, trajectory: Path | None = None, known: Collection[str] = RESULTS.keys()
) -> None:
    """End the program when pictures could not be written where they are to be."""
    if output.suffix.lower() not in known:
        give_up(f"--output {output}: must end with {' or '.join(known)}", EXIT_MISCONFIGURED)
    if trajectory and trajectory.suffix.lower() not in {".gif", ".png"}:
        give_up(f"--trajectory {trajectory}: must end with .gif or .png", EXIT_MISCONFIGURED)
    if trajectory and trajectory.resolve() == output.resolve():
        give_up(f"--trajectory {trajectory}: is also the file of the grid; name another", EXIT_MISCONFIGURED)
    for path in filter(None, (output, trajectory)):
        wrong = f"there is no directory {path.parent}" if not path.parent.is_dir() else "is a directory"
        if not path.parent.is_dir() or path.is_dir():
            reach.fail({"code": "file-error", "detail": f"{path}: {wrong}"}, f"{path}: {wrong}")


def _span(seeds: list[int]) -> str:
    is_range = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return "seeds " + (f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds)))
