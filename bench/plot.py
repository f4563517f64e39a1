"""The figures of a run, and latency against load, as a picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from bench.report import Figure, Report

MET, MISSED = "#2a7f62", "#c0392b"
COLOURS = {"in-flight": "#1f5fa8", "by-key": "#d98b2b"}


def draw(report: Report, path: Path) -> None:
    """Write the picture of a report: what was found as a part of its bound, and the sweep of loads if there is one."""
    mpl.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figures = [figure for findings in report.parts.values() for figure in findings.figures if figure.bound]
    has_load = "load" in report.parts
    picture = Picture(figsize=(14 if has_load else 8, 1.6 + 0.3 * max(12, len(figures))), layout="constrained")
    axes = picture.subplots(1, 2 if has_load else 1, width_ratios=[1, 1.1] if has_load else [1], squeeze=False)[0]
    _bounds(axes[0], figures)
    if has_load:
        _sweep(axes[1], report.parts["load"].details["loads"])
    about = report.machine
    picture.suptitle(
        f"pfgmpp {about['pfgmpp']} on {about['cores']} cores, {about['processor']}, torch {about['torch']}"
    )
    picture.savefig(path, dpi=110)


def _bounds(axes: Axes, figures: list[Figure]) -> None:
    """How far each figure is on the right side of its bound."""
    for row, figure in enumerate(reversed(figures)):
        margin = figure.value / (figure.at_least or 1) if figure.at_least else (figure.at_most or 1) / figure.value
        colour = MET if figure.is_met else MISSED
        axes.plot([1, margin], [row, row], color=colour, linewidth=2)
        axes.plot([margin], [row], "o", color=colour)
        axes.annotate(
            f" {figure.value:.3g} {figure.unit} ({figure.bound}) ",
            (max(margin, 1), row),
            xytext=(6, -3),
            textcoords="offset points",
        )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.35)
    axes.set_yticks(range(len(figures)), [figure.name for figure in reversed(figures)])
    axes.set_xlabel("times better than it must be")


def _sweep(axes: Axes, loads: dict[float, list[dict[str, Any]]]) -> None:
    """p50 and p99 of both classes of jobs against the load, for both kinds of batching."""
    for mode, colour in COLOURS.items():
        for kind, style in (("short", "-"), ("long", "--")):
            for percentile, marker in (("p50", "o"), ("p99", "^")):
                values = [
                    sorted(run[mode]["latency_seconds"][kind][percentile] for run in runs)[len(runs) // 2]
                    for runs in loads.values()
                ]
                axes.plot(
                    [100 * float(load) for load in loads],
                    values,
                    style,
                    marker=marker,
                    color=colour,
                    label=f"{mode}: {kind} jobs, {percentile}",
                )
    axes.set_yscale("log")
    axes.set_xlabel("load, % of what by-key batching does when all is there at once")
    axes.set_ylabel("seconds from submission to end")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, frameon=False)
