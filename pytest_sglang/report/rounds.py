"""One measurement as dots, a dot a round, with promised limit, target, median and its confidence interval."""

from __future__ import annotations

from typing import Any

from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380.0, 210.0, 38.0, 126.0, 18.0, 38.0
LABEL_GAP_PX = 14.0
_NAMES = {"decode": "decode", "end_to_end": "end to end"}


def panel(identity: str, item: dict[str, Any]) -> Panel:
    """The panel of one item of ``run.throughputs``. Raises DrawingError without matplotlib, KeyError and kin otherwise."""
    found, quantity = item["throughput"], str(item.get("quantity") or "decode")
    heading = f"{item.get('label') or 'measurement'}, {_NAMES.get(quantity, quantity)}"
    key = f"{quantity}_tok_s"
    valid, hollow = _points(found, key)
    median, low, high = found.get(key), found.get("ci_low"), found.get("ci_high")
    limit, target = item.get("limit_tok_s"), item.get("target_tok_s")
    note = _note(found, median, low, high, limit, len(valid), len(hollow))
    values = [value for _, value in (*valid, *hollow)]
    if not values:
        return Panel(heading=heading, note=note, missing="No round gave a rate.")
    with svg.canvas(WIDTH, HEIGHT) as drawing:
        drawing.margins(LEFT, RIGHT, TOP, BOTTOM)
        axes = drawing.axes
        bottom, top = _range([*values, *(each for each in (low, high, limit, target) if each is not None)])
        last = max(index for index, _ in (*valid, *hollow))
        first = min(index for index, _ in (*valid, *hollow))
        axes.set(xlim=(first - 0.6, last + 0.6), ylim=(bottom, top))
        _axes(axes, first, last)
        labels = _lines(axes, median, low, high, limit, target)
        _side_labels(axes, labels, (top - bottom) / (HEIGHT - TOP - BOTTOM))
        dots = {"marker": "o", "markersize": 5, "linestyle": "none", "clip_on": False}
        axes.plot(*_columns(valid), color=svg.STRONG, **dots)
        if hollow:
            axes.plot(*_columns(hollow), markerfacecolor="none", markeredgecolor=svg.MUTED, **dots)
        picture = drawing.svg(identity=identity, title=f"Tokens per second by round: {heading}", description=note)
    return Panel(heading=heading, note=note, svg=picture)


def _lines(
    axes: Any, median: float | None, low: float | None, high: float | None, limit: float | None, target: float | None
) -> list[tuple[float, str, str]]:
    """The band and the lines; gives their labels as (place, text, colour). The limit is red once the whole interval misses it."""
    labels = []
    if low is not None and high is not None:
        axes.axhspan(low, high, color=svg.ACCENT, alpha=0.28, linewidth=0)
    if limit is not None:
        best = high if high is not None else median
        colour = svg.FAIL if best is not None and best < limit else svg.INK
        axes.axhline(limit, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
        labels.append((limit, f"promised {limit:g} tok/s", colour))
    if target is not None:
        axes.axhline(target, color=svg.MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
        labels.append((target, f"target {target:g} tok/s", svg.MUTED))
    if median is not None:
        axes.axhline(median, color=svg.STRONG, linewidth=1.2)
        labels.append((median, f"median {median:.1f} tok/s", svg.STRONG))
    return labels


def _points(found: dict[str, Any], key: str) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Rounds that count and rounds that do not, as (index, rate); a round without a rate has no dot."""
    every = [(each, each.get("invalid_because") is None) for each in found.get("rounds") or []]
    every += [(each, False) for each in found.get("discarded") or []]
    told = [(int(each["index"]), float(each[key]), good) for each, good in every if each.get(key) is not None]
    return [(index, rate) for index, rate, good in told if good], [(index, rate) for index, rate, good in told if not good]


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [index for index, _ in points], [rate for _, rate in points]


def _note(
    found: dict[str, Any], median: float | None, low: float | None, high: float | None, limit: float | None, valid: int, hollow: int
) -> str:
    told = f"median {median:.1f} tok/s" if median is not None else "no median"
    if low is not None and high is not None:
        told += f", {100 * float(found.get('confidence') or 0):g} % interval {low:.1f} to {high:.1f}"
    if limit is not None:
        told += f", promised {limit:g} tok/s"
    told += f", {valid} round{'' if valid == 1 else 's'}"
    reasons = sorted({str(each["invalid_because"]) for each in found.get("discarded") or [] if each.get("invalid_because")})
    if not hollow:
        return told
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return f"{told}, {hollow} not counted{because}"


def _range(values: list[float]) -> tuple[float, float]:
    """Axis range with air; dots need no zero, but a span below a tenth of the value would turn noise into drama."""
    low, high = min(values), max(values)
    middle, span = (low + high) / 2, max(high - low, 0.1 * abs(high), 0.1)
    return middle - 0.62 * span, middle + 0.62 * span


def _axes(axes: Any, first: int, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    step = max(1, -(-(last - first + 1) // 10))
    axes.set_xticks(range(first, last + 1, step))
    axes.set_xlabel("round", labelpad=2)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color=svg.RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.text(-0.02, 1.03, "tok/s", transform=axes.transAxes, ha="right", va="bottom", color=svg.MUTED)


def _side_labels(axes: Any, labels: list[tuple[float, str, str]], per_px: float) -> None:
    """Labels at the right of their lines, pushed apart where lines lie close together."""
    placed: list[float] = []
    for value, text, colour in sorted(labels):
        place = value if not placed else max(value, placed[-1] + LABEL_GAP_PX * per_px)
        placed.append(place)
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), ha="left", va="center", color=colour)
