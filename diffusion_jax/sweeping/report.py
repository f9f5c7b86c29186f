"""What came of a sweep: a table and a plot."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.files import write_atomically
from diffusion_jax.sweeping.sweep import PlannedRun

NOT_METRICS = ("step", "time")


def write_report(runs: Sequence[PlannedRun], metrics: Sequence[str], workdir: epath.Path) -> str:
    """Writes `report.md`, `report.csv` and `report.png` into the sweep's folder.

    The tables have a row for each run: its point, its step, and the last value of each metric in its log, that is, the
    mean over its last `train.log_every` steps, or its last evaluation. The plot has the curve of each metric over the
    steps, a line for each run.

    Args:
      runs: the runs.
      metrics: names of their logs, such as "loss" or "eval/fid".
      workdir: the sweep's folder, which exists.

    Returns:
      The table, as Markdown.

    Raises:
      UserError: no run has a log yet, or none has a metric of that name.
    """
    logs = [run.log() for run in runs]
    known = {key for log in logs for line in log for key in line} - set(NOT_METRICS)
    if not known:
        raise UserError(f"{workdir}: no run of the sweep has logged anything yet")
    for metric in metrics:
        if metric not in known:
            raise UserError(f"--metrics {metric}: no run has logged it{did_you_mean(metric, known)}")
    header, rows = table(runs, logs, metrics)
    text = markdown(header, rows)
    write_atomically(workdir / "report.md", text.encode())
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    write_atomically(workdir / "report.csv", lines.getvalue().encode())
    image = io.BytesIO()
    plot(runs, logs, metrics).savefig(image, format="png", dpi=100)
    write_atomically(workdir / "report.png", image.getvalue())
    return text


def table(
    runs: Sequence[PlannedRun], logs: Sequence[Sequence[dict[str, float]]], metrics: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """The header and the rows: the keys of the points, "step", the metrics; empty where there is no value."""
    keys = list(dict.fromkeys(key for run in runs for key in run.point))
    header = ["run", *keys, "step", *metrics]
    rows = []
    for run, log in zip(runs, logs, strict=True):
        last = {key: value for line in log for key, value in line.items()}
        values = [last.get(metric, "") for metric in metrics]
        rows.append([run.name, *(run.point.get(key, "") for key in keys), last.get("step", 0), *values])
    return header, rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, floats with five digits."""
    written = [[f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*written, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in written
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def plot(runs: Sequence[PlannedRun], logs: Sequence[Sequence[dict[str, float]]], metrics: Sequence[str]) -> Figure:
    """Curves over the steps: a panel for each metric, a line for each run."""
    figure = Figure(figsize=(1 + 5 * len(metrics) + 3, 4.5), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    colours = matplotlib.colormaps["viridis"]
    for metric, axes in zip(metrics, panels, strict=True):
        smallest, largest = math.inf, -math.inf
        for number, (run, log) in enumerate(zip(runs, logs, strict=True)):
            points = [(line["step"], line[metric]) for line in log if metric in line]
            if points:
                steps, values = zip(*points, strict=True)
                colour = colours(number / max(len(runs) - 1, 1))
                axes.plot(steps, values, label=run.name, color=colour, marker="." if len(points) < 20 else None)
                smallest, largest = min(smallest, *values), max(largest, *values)
        if smallest > 0 and largest > 10 * smallest:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(metric)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure
