"""Trends for the terminal, and index.html over all runs of a store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_sglang.record import run as records
from pytest_sglang.record import units
from pytest_sglang.report import summary, view
from pytest_sglang.report.svg import Panel
from pytest_sglang.report.terminal import Line
from pytest_sglang.session import history, store
from pytest_sglang.session.history import Trend
from pytest_sglang.session.store import Skipped, Stored

BARS = "▁▂▃▄▅▆▇█"
MOST_BARS = 24
MOST_ROWS = 200
"""Runs listed on the index; older ones are counted, and stand in the trends."""
MOST_POINTS = 150
"""Runs drawn in a trend, the newest ones."""
INDEX = "index.html"


def spark(values: Sequence[float]) -> str:
    """The newest values as bars between their least and greatest; equal values are a flat line."""
    values = values[-MOST_BARS:]
    low, high = min(values), max(values)
    if high <= low:
        return BARS[3] * len(values)
    return "".join(BARS[min(7, int((value - low) / (high - low) * 8))] for value in values)


def terminal(trends: Sequence[Trend], skipped: Sequence[Skipped], width: int = 80) -> list[Line]:
    """A line a promise: newest value, limit, verdicts, bars; its step below it."""
    lines: list[Line] = []
    rig = ""
    for trend in trends:
        name = f"{trend.rig}{f' ({view.SIMULATED})' if trend.simulated else ''}"
        if name != rig:
            rig = name
            lines += [("", {})] if lines else []
            lines.append((f"{name}, {max(len(each.points) for each in trends if each.rig == trend.rig)} runs", {"bold": True}))
        lines += _lines(trend, width)
    lines += [(f"skipped: {each.path}: {each.reason}"[:width], {"yellow": True}) for each in skipped]
    return lines or [("no runs yet: run pytest acceptance/ first", {"yellow": True})]


def _lines(trend: Trend, width: int) -> list[Line]:
    newest = trend.points[-1]
    markup: dict[str, Any] = {"fail": {"red": True}, "inconclusive": {"yellow": True}}.get(newest.verdict, {})
    bad = sum(point.verdict == "fail" for point in trend.points)
    counted = f"{len(trend.points) - bad}/{len(trend.points)} kept" if bad else ""
    label = trend.label if len(trend.label) <= 28 else f"{trend.label[:27]}…"
    value = units.show(newest.value, trend.unit) if newest.value is not None else ""
    bars = spark(trend.values) if len(trend.values) > 1 and trend.op != "==" else ""
    lines: list[Line] = [(f"  {label:<28}  {value:>13}  {newest.verdict:<12}  {counted:<11} {bars}".rstrip()[:width], markup)]
    if trend.step is not None and trend.step_at is not None:
        at = trend.step_at
        lines.append(
            (f"      changed by {trend.step.change * 100:+.1f} % on {at.started[:10]} ({at.run_id})"[:width], {"yellow": True})
        )
    return lines


def write_index(folder: Path, found: tuple[Sequence[Stored], Sequence[Skipped]] | None = None) -> Path:
    """Write ``folder/index.html`` anew from all runs in it (write, then rename: runs side by side cannot break it)."""
    runs, skipped = found or store.runs(folder)
    path = folder / INDEX
    records.write_atomic(path, index(runs, skipped, folder))
    return path


def index(runs: Sequence[Stored], skipped: Sequence[Skipped], folder: Path) -> str:
    """A complete HTML document: trends by rig, the newest runs with links to their reports."""
    from markupsafe import Markup

    trends = [each for each in history.trends(runs) if len(each.values) > 1 and each.op != "=="]
    rigs: dict[str, list[Trend]] = {}
    for trend in trends:
        rigs.setdefault(f"{trend.rig}{f' ({view.SIMULATED})' if trend.simulated else ''}", []).append(trend)
    newest = list(reversed(runs))
    template = summary._templates().get_template("index.html.jinja")
    return str(
        template.render(
            style=Markup(f"<style>{summary.stylesheet()}</style>"),
            rigs=[
                (name, [_panel(f"sg-trend-{place}-{number}", each) for number, each in enumerate(found)])
                for place, (name, found) in enumerate(rigs.items())
            ],
            rows=[_row(each, folder) for each in newest[:MOST_ROWS]],
            older=max(0, len(newest) - MOST_ROWS),
            skipped=[(each.path, each.reason) for each in skipped],
        )
    )


def _row(run: Stored, folder: Path) -> dict[str, Any]:
    counts = {word: sum(check.get("verdict") == word for check in run.checks) for word in ("pass", "fail", "inconclusive")}
    failed = [str(check.get("id")) for check in run.checks if check.get("verdict") == "fail"]
    report = Path(run.folder) / "report.html"
    return {
        "when": run.started[:16].replace("T", " "),
        "rig": run.rig_name,
        "power": ", ".join(f"{each:g} W" for each in run.power_levels_w),
        "engine": dict(run.environment.get("server") or {}).get("version") or "",
        "verdict": run.verdict if run.finished is not None else "inconclusive",
        "word": run.verdict.upper() if run.finished is not None else "NOT FINISHED",
        "tally": f"{counts['pass']} of {len(run.checks) + len(run.not_checked)}"
        + (f", failed: {', '.join(failed)}" if failed else ""),
        "simulated": run.simulated,
        "link": os.path.relpath(report, folder) if report.is_file() else "",
    }


def _panel(identity: str, trend: Trend) -> Panel:
    from pytest_sglang.report import svg

    try:
        return _draw(identity, trend)
    except svg.DrawingError as error:
        return Panel(heading=trend.label, missing=f"Not drawn: {error}")


def _draw(identity: str, trend: Trend) -> Panel:
    from pytest_sglang.report import svg

    measured = [point for point in trend.points if point.value is not None][-MOST_POINTS:]
    hidden = len(trend.values) - len(measured)
    values = trend.values[hidden:]
    note = f"{len(trend.values)} runs{f' ({len(values)} drawn)' if hidden else ''}, newest {units.show(values[-1], trend.unit)}"
    if trend.limit is not None:
        note += f", promised {trend.op} {view.promised_text(trend.limit, trend.unit)}"
    if trend.step is not None and trend.step_at is not None:
        note += f"; changed by {trend.step.change * 100:+.1f} % on {trend.step_at.started[:10]}"
    colours = {"fail": svg.FAIL, "inconclusive": svg.WARN}
    with svg.canvas(340.0, 130.0) as drawing:
        drawing.margins(44, 12, 10, 22)
        axes = drawing.axes
        axes.plot(range(len(values)), values, color=svg.ACCENT, linewidth=1.2)
        for verdict in ("pass", "inconclusive", "fail"):
            places = [(place, point.value) for place, point in enumerate(measured) if point.verdict == verdict]
            if places:
                size = 4 if len(values) <= 60 else 2
                axes.plot(
                    *zip(*places, strict=True),
                    marker="o",
                    markersize=size,
                    linestyle="none",
                    color=colours.get(verdict, svg.STRONG),
                )
        if trend.limit is not None:
            axes.axhline(trend.limit, color=svg.INK, linewidth=1.0, linestyle=(0, (3, 2)))
        if trend.step is not None and trend.step.index >= hidden:
            axes.axvline(trend.step.index - hidden - 0.5, color=svg.WARN, linewidth=1.0)
        axes.set_xticks([])
        axes.set_xlabel("runs, newest on the right", labelpad=4)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", color=svg.RULE, linewidth=0.7)
        axes.margins(y=0.15)
        picture = drawing.svg(identity=identity, title=f"{trend.label} over runs", description=note)
    return Panel(heading=f"{trend.label}, {trend.unit}", note=note, svg=picture)
