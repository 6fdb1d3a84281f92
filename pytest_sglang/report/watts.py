"""One GPU's power over time with its enforced limit; measured windows are shaded."""

from __future__ import annotations

import itertools
from typing import Any

from pytest_sglang.record import units
from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330.0, 124.0, 34.0, 58.0, 20.0, 22.0
GAP_FACTOR = 8.0
"""A pause of so many usual steps between two readings is a gap in the line, not a straight line across it."""


def split(series: dict[str, Any]) -> list[dict[str, Any]]:
    """One item a GPU out of ``run.power_series``, all with the same axes."""
    gpus = series.get("gpus") or {}
    times = [float(each) for each in series.get("t") or []]
    every = [value for gpu in gpus.values() for value in (*_numbers(gpu["w"]), *_numbers(_limits(gpu, times)))]
    if not times or not every:
        return []
    top = max(every) * 1.12
    windows = [(float(each[0]), float(each[1]), str(each[2])) for each in series.get("windows") or []]
    return [
        {
            "label": str(gpu.get("label") or uuid),
            "uuid": uuid,
            "t": times,
            "w": gpu["w"],
            "limit_w": _limits(gpu, times),
            "windows": windows,
            "top": top,
        }
        for uuid, gpu in gpus.items()
    ]


def _limits(gpu: dict[str, Any], times: list[float]) -> list[float | None]:
    """The limit at every reading; one number stands for the whole run."""
    limit = gpu.get("limit_w")
    return list(limit) if isinstance(limit, (list, tuple)) else [limit] * len(times)


def _numbers(values: Any) -> list[float]:
    return [float(each) for each in values if each is not None]


def panel(identity: str, item: dict[str, Any]) -> Panel:
    """The panel of one item of ``split``. Raises DrawingError without matplotlib."""
    times, watts, limits = item["t"], item["w"], item["limit_w"]
    known = _numbers(watts)
    heading = item["label"]
    if not known:
        return Panel(heading=heading, missing="This card gave no power reading.")
    levels = sorted(set(_numbers(limits)))
    note = _note(times, watts, item["windows"])
    note += f", limit {', '.join(f'{each:g}' for each in levels)} W" if levels else ", limit not read"
    with svg.canvas(WIDTH, HEIGHT) as drawing:
        drawing.margins(LEFT, RIGHT, TOP, BOTTOM)
        axes = drawing.axes
        begin, end = min(times), max(times)
        axes.set(xlim=(begin, max(end, begin + 0.001)), ylim=(0, item["top"]))
        for left, right, _ in item["windows"]:
            axes.axvspan(left, right, color=svg.ACCENT, alpha=0.16, linewidth=0)
        axes.plot(*_with_gaps(times, watts), color=svg.STRONG, linewidth=1.2, solid_joinstyle="round")
        axes.plot(*_with_gaps(times, limits), color=svg.INK, linewidth=1.1, linestyle=(0, (3, 2)))
        if levels:
            last = _numbers(limits)[-1]
            axes.text(1.02, last, f"limit {last:g}", transform=axes.get_yaxis_transform(), ha="left", va="center", color=svg.INK)
        _axes(axes)
        picture = drawing.svg(
            identity=identity,
            title=f"Power over time: {heading}",
            description=f"{heading} over {units.duration(end - begin)}: {note}.",
        )
    return Panel(heading=heading, note=note, svg=picture)


def _note(times: list[float], watts: Any, windows: list[tuple[float, float, str]]) -> str:
    """Mean inside the measured rounds, since a mean that holds the pauses between them tells nothing."""
    inside = [
        each
        for time, each in zip(times, watts, strict=False)
        if each is not None and any(left <= time <= right for left, right, _ in windows)
    ]
    known = inside or _numbers(watts)
    return f"mean {sum(known) / len(known):.0f} W{' in the rounds' if inside else ''}, highest {max(_numbers(watts)):.0f} W"


def _with_gaps(times: list[float], values: Any) -> tuple[list[float], list[float]]:
    """Points with a break wherever nothing was read for long, time went backwards, or a reading is missing."""
    nan = float("nan")
    steps = sorted(after - before for before, after in itertools.pairwise(times) if after > before)
    usual = steps[len(steps) // 2] if steps else 0.0
    xs: list[float] = []
    ys: list[float] = []
    before: float | None = None
    for time, value in zip(times, values, strict=False):
        if before is not None and (time < before or time - before > GAP_FACTOR * usual):
            xs.append(time)
            ys.append(nan)
        xs.append(time)
        ys.append(nan if value is None else float(value))
        before = time
    return xs, ys


def _axes(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color=svg.RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.text(-0.02, 1.03, "W", transform=axes.transAxes, ha="right", va="bottom", color=svg.MUTED)
    axes.text(1.02, -0.04, "s", transform=axes.transAxes, ha="left", va="top", color=svg.MUTED)
