"""Trends for the terminal, and index.html over all runs of a store."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_sglang.record import run as records
from pytest_sglang.record import units
from pytest_sglang.report import cells, summary, view
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
WAIT_S = 10.0
"""So long the writer of an index waits for another one."""


def spark(values: Sequence[float], most: int = MOST_BARS) -> str:
    """The newest ``most`` values as bars between their least and greatest; equal values are a flat line."""
    values = values[-most:]
    low, high = min(values), max(values)
    if high <= low:
        return BARS[3] * len(values)
    return "".join(BARS[min(7, int((value - low) / (high - low) * 8))] for value in values)


def terminal(trends: Sequence[Trend], skipped: Sequence[Skipped], width: int = 80) -> list[Line]:
    """A line a promise: newest value and verdict, how many runs passed, bars; since when it fails or stands on its level below it."""
    lines: list[Line] = []
    rigs: dict[str, list[Trend]] = {}
    for trend in trends:
        rigs.setdefault(f"{trend.rig}{f' ({view.SIMULATED})' if trend.simulated else ''}", []).append(trend)
    for name, found in rigs.items():
        count = max(len(each.points) for each in found)
        lines += [("", {})] if lines else []
        lines.append((cells.cut(f"{name}, {count} run{'s' if count > 1 else ''}", width), {"bold": True}))
        lines += _table(found, width)
    lines += [
        (text, {"yellow": True})
        for each in skipped
        for text in cells.wrapped(f"skipped: {each.path}: {each.reason}", width, "", "    ")
    ]
    return lines or [("no runs yet: run pytest acceptance/ first", {"yellow": True})]


_HEAD = ("promise", "newest", "verdict", "passed")
_LABEL = 28


def _table(trends: Sequence[Trend], width: int) -> list[Line]:
    rows = [_HEAD, *(_texts(each) for each in trends)]
    widths = [max(cells.width(row[column]) for row in rows) for column in range(4)]
    room = min(MOST_BARS, width - sum(widths) - 10)
    lines: list[Line] = []
    for row, trend in zip(rows, (None, *trends), strict=True):
        first, value = cells.left(row[0], widths[0]), cells.right(row[1], widths[1])
        text = f"  {first}  {value}  {cells.left(row[2], widths[2])}  {cells.right(row[3], widths[3])}"
        if trend is None:
            lines.append((cells.cut(text.rstrip(), width), {}))
            continue
        bars = spark(trend.values, room) if len(trend.values) > 1 and trend.op != "==" and room > 2 else ""
        markup: dict[str, Any] = {"fail": {"red": True}, "inconclusive": {"yellow": True}}.get(trend.points[-1].verdict, {})
        lines.append((cells.cut(f"{text}  {bars}".rstrip(), width), markup))
        lines += [(cells.cut(f"      {told}", width), {"yellow": True}) for told in since(trend)]
    return lines


def _texts(trend: Trend) -> tuple[str, str, str, str]:
    newest = trend.points[-1]
    value = units.show(newest.value, trend.unit) if newest.value is not None else ""
    passed = sum(point.verdict == "pass" for point in trend.points)
    return cells.cut(trend.label, _LABEL), value, newest.verdict, f"{passed}/{len(trend.points)}"


def since(trend: Trend) -> list[str]:
    """Since when its newest verdict holds, where that is no pass, and since when it stands on its present level."""
    told = []
    newest = trend.points[-1].verdict
    if newest != "pass" and len(trend.points) > 1:
        streak = list(itertools.takewhile(lambda point: point.verdict == newest, reversed(trend.points)))
        runs = f"{len(streak)} runs" if len(streak) > 1 else "this run only"
        told.append(f"{newest} since {streak[-1].started[:10]}, {runs} ({streak[-1].run_id})")
    if trend.step is not None and trend.step_at is not None:
        at = trend.step_at
        told.append(f"{trend.step.change * 100:+.1f} % since {at.started[:10]} ({at.run_id})")
    return told


def write_index(folder: Path, coming: Path | None = None) -> Path:
    """Write ``folder/index.html`` anew from all runs in it (write, then rename: runs side by side cannot break it).

    ``coming``: a run folder whose page is about to be written, linked although it is not there yet. One at a time: of two runs that end at the same moment the later writer has read the other's end as well.
    """
    path = folder / INDEX
    with locked(folder):
        runs, skipped = store.runs(folder)
        records.write_atomic(path, index(runs, skipped, folder, coming))
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder itself locked (flock on the directory, gone with its process), or go on after WAIT_S without: a page is all it guards."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def index(runs: Sequence[Stored], skipped: Sequence[Skipped], folder: Path, coming: Path | None = None) -> str:
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
            rows=[_row(each, folder, coming) for each in newest[:MOST_ROWS]],
            older=max(0, len(newest) - MOST_ROWS),
            skipped=[(each.path, each.reason) for each in skipped],
        )
    )


def _row(run: Stored, folder: Path, coming: Path | None) -> dict[str, Any]:
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
        "link": os.path.relpath(report, folder) if report.is_file() or report.parent == coming else "",
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
    note += "".join(f"; {told.partition(' (')[0]}" for told in since(trend))
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
