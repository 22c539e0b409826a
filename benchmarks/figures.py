"""Measurements as a Markdown table and a picture: medians, with the range where there are several."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from workloads import WORKLOADS

Run = Mapping[str, Any]
REFERENCE = "plain"
CLIENTS = WORKLOADS["idle"]["clients"]
COLUMNS: dict[str, tuple[str, str]] = {
    "loop, s": ("loop_s", "{:.1f}"),
    "evaluation, s": ("evaluation_s", "{:.1f}"),
    "start, s": ("startup_s", "{:.1f}"),
    "process, s": ("process_s", "{:.1f}"),
    "peak PSS, MB": ("pss_mb", "{:,.0f}"),
    "CPU, s": ("cpu_s", "{:.0f}"),
    "others": ("others", "{:.0%}"),
    "accuracy": ("accuracy", "{:.3f}"),
}


def groups(runs: Sequence[Run], workload: str) -> dict[str, list[Run]]:
    """Return a workload's runs by rival, in the order in which rivals first appear."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run["workload"] == workload:
            found.setdefault(run["rival"], []).append(run)
    return found


def middle(runs: Sequence[Run], key: str) -> float | None:
    """Return the median of a figure over the runs that have it."""
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def table(runs: Sequence[Run], workload: str) -> str:
    """Return a workload's rivals as a Markdown table, the fastest first; ratios are of medians."""
    by_rival = groups(runs, workload)
    base = middle(by_rival.get(REFERENCE, []), "loop_s")
    head = ["rival", "n", "rounds/s", f"/ {REFERENCE}", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for rival, some in sorted(by_rival.items(), key=lambda item: middle(item[1], "loop_s") or 0):
        loop = middle(some, "loop_s") or 0.0
        rounds = f"{some[0]['rounds'] / loop:.2f}"
        cells = [rival, str(len(some)), rounds, f"{loop / base:.2f}" if base else "-"]
        cells += [cell(some, key, form) for key, form in COLUMNS.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def idle_table(runs: Sequence[Run], workload: str) -> str:
    """Return the seconds of a round in which clients do nothing: the median round but the first and last."""
    lines = ["| rival | n | a round, s | a client, us |", "|---|---|---|---|"]
    for rival, some in groups(runs, workload).items():
        seconds = [statistics.median(between(run["marks"])) for run in some]
        middle_one = statistics.median(seconds)
        microseconds = middle_one / CLIENTS * 1e6
        lines.append(f"| {rival} | {len(some)} | {middle_one:.2f} | {microseconds:,.0f} |")
    return "\n".join(lines)


def between(marks: Sequence[float]) -> list[float]:
    """Return each round's seconds from the times at which rounds ended, the first and last round left out."""
    return [end - begin for begin, end in itertools.pairwise(marks[:-1])]


def cell(runs: Sequence[Run], key: str, form: str) -> str:
    """Return a figure's median, and its range where the runs differ in what is shown."""
    value = middle(runs, key)
    if value is None:
        return "-"
    values = [run[key] for run in runs if run.get(key) is not None]
    low, high = form.format(min(values)), form.format(max(values))
    return form.format(value) if low == high else f"{form.format(value)} ({low} to {high})"


def header(facts: Mapping[str, Any], runs: Sequence[Run]) -> str:
    """Return on what the figures were taken, in a few lines."""
    n = max((run["repetition"] + 1 for run in runs), default=0)
    machine = facts["environment"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("fedvision", "torch", "flwr", "python"))
    others = ", ".join(facts["rivals"].values())
    return (
        f"{machine['processor']}, {machine['cpus']} cores; {versions}; rivals: {others}; "
        f"seed {facts['seed']}; median of up to n = {n} interleaved runs, their range in brackets."
    )


def draw(
    runs: Sequence[Run], workloads: Sequence[str], path: Path, what: str = "seconds of all rounds"
) -> None:
    """Write a bar for each rival's loop seconds in each workload, ours dark, every run a dot."""
    sizes = [len(groups(runs, workload)) for workload in workloads]
    with rc_context({"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "fedvision"}):
        figure = Figure(figsize=(9, 0.42 * sum(sizes) + 1.1 * len(sizes)), layout="constrained")
        figure.patch.set_facecolor("white")
        panels = figure.subplots(len(sizes), squeeze=False, height_ratios=[max(1, n) for n in sizes])
        for workload, axes in zip(workloads, panels[:, 0], strict=True):
            ordered = sorted(
                groups(runs, workload).items(), key=lambda item: -(middle(item[1], "loop_s") or 0)
            )
            for place, (rival, some) in enumerate(ordered):
                value = middle(some, "loop_s") or 0.0
                axes.barh(place, value, color="#0072b2" if rival.startswith("fedvision") else "#b8b8b8")
                axes.plot([run["loop_s"] for run in some], [place] * len(some), "k.", markersize=4)
                axes.annotate(
                    f"{value:.1f} s", (max(run["loop_s"] for run in some), place),
                    xytext=(6, 0), textcoords="offset points", va="center",
                )  # fmt: skip
            axes.set_yticks(range(len(ordered)), [rival for rival, _ in ordered])
            axes.set_title(f"{workload.upper()}: {what}", loc="left", fontsize=11)
            axes.margins(x=0.12)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
