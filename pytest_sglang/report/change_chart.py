"""Changes with their intervals on one axis of ratios: each number's own change, as the table beside it says it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pytest_sglang.record.values import Value
from pytest_sglang.report.svg import Panel

WIDTH, ROW, TOP, BOTTOM, SIDE = 360.0, 42.0, 6.0, 40.0, 14.0
"""Pixels; a phone shows the drawing at nine tenths of its size."""
FURTHEST = math.log(10)
"""An interval is cut beyond a tenth and ten times the value, with an arrow: one that wide says only that it is wide."""
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
LOWER_TICKS = (-1, -2, -5, -10, -20, -25, -30, -40, -50, -75, -90, -95, -99)
BETWEEN_TICKS, HALF_LABEL = 52.0, 24.0


class Bar(Value, frozen=True, kw_only=True):
    """One row. ``change``, ``low``, ``high``: shares of the number itself; ``outcome`` as a verdict says it."""

    name: str
    text: str
    """The change in words, with better or worse."""
    change: float
    low: float
    high: float
    outcome: str
    why: str


def panel(identity: str, bars: Sequence[Bar]) -> Panel:
    """The drawing, or why there is none."""
    from pytest_sglang.report import svg

    try:
        return _draw(identity, bars)
    except svg.DrawingError as error:
        return Panel(heading="Change", missing=f"Not drawn: {error}")


def _draw(identity: str, bars: Sequence[Bar]) -> Panel:
    from pytest_sglang.report import svg

    colours = {"worse": svg.FAIL, "undecided": svg.WARN, "better": svg.STRONG, "same": svg.STRONG}
    note = "; ".join(f"{each.name}: {each.text}: {each.why}" for each in bars)
    left, right = _ends(bars)
    ticks = _ticks(left, right)
    with svg.canvas(WIDTH, TOP + BOTTOM + ROW * len(bars)) as drawing:
        drawing.margins(SIDE, SIDE, TOP, BOTTOM)
        axes = drawing.axes
        for place, each in enumerate(bars):
            # lines of the grid end below the words of each row
            for tick in ticks:
                axes.plot(
                    [math.log1p(tick / 100)] * 2, [place - 0.04, place + 0.36], color=svg.RULE if tick else svg.MUTED, linewidth=1
                )
            _bar(axes, place, each, (left, right), colours[each.outcome])
            for x, text, align in ((0.0, each.name, "left"), (1.0, each.text, "right")):
                colour = svg.INK if align == "left" else colours[each.outcome]
                axes.text(x, place - 0.26, text, transform=axes.get_yaxis_transform(), ha=align, va="center", color=colour)
        axes.set_xlim(left, right)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks([])
        axes.set_xticks(
            [math.log1p(tick / 100) for tick in ticks], [f"{tick:+d} %".replace("-", "−") if tick else "0" for tick in ticks]
        )
        axes.set_xlabel("change of the number; hollow: undecided", labelpad=3)
        axes.spines["left"].set_visible(False)
        picture = drawing.svg(identity=identity, title="Change by quantity", description=note)
    return Panel(heading="Change by quantity", svg=picture)


def _bar(axes: Any, place: int, each: Bar, ends: tuple[float, float], colour: str) -> None:
    """The interval, cut at the ends with an arrow, and its middle, hollow where undecided."""
    from pytest_sglang.report import svg

    y = place + 0.14
    low, high = (min(max(_log(value), ends[0]), ends[1]) for value in (each.low, each.high))
    axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
    for value, end, marker in ((each.low, ends[0], "<"), (each.high, ends[1], ">")):
        if (_log(value) < end) if marker == "<" else (_log(value) > end):
            axes.plot([end], [y], marker=marker, markersize=7, color=colour, linestyle="none", clip_on=False)
    if each.outcome == "undecided":
        axes.plot([_log(each.change)], [y], marker="o", markersize=8, color=colour, linestyle="none")
        axes.plot([_log(each.change)], [y], marker="o", markersize=4, color=svg.SOFT, linestyle="none")
    else:
        axes.plot([_log(each.change)], [y], marker="o", markersize=7, color=colour, linestyle="none")


def _log(share: float) -> float:
    """Logarithm of the ratio after to before; a share so near to -100 % that it rounds to it is far out."""
    return math.log1p(share) if -1 < share < math.inf else math.copysign(1e3, share)


def _ends(bars: Sequence[Bar]) -> tuple[float, float]:
    """Of the axis: all intervals, cut at FURTHEST, and every middle; a little more on either side."""
    middles = [_log(each.change) for each in bars]
    left = min(0.0, *middles, max(-FURTHEST, min(_log(each.low) for each in bars)))
    right = max(0.0, *middles, min(FURTHEST, max(_log(each.high) for each in bars)))
    room = max(0.04 * (right - left), 0.005)
    return left - room, right + room


def _ticks(left: float, right: float) -> list[int]:
    """Percent: from 0 outwards, the next that leaves room for its label."""
    scale = (WIDTH - 2 * SIDE) / (right - left)
    inside = (HALF_LABEL - SIDE) / scale
    found = [0]
    for ticks in (TICKS, LOWER_TICKS):
        last = 0.0
        for tick in ticks:
            x = math.log1p(tick / 100)
            if left + inside <= x <= right - inside and abs(x - last) * scale >= BETWEEN_TICKS:
                found.append(tick)
                last = x
    return sorted(found)
