"""One start as a waterfall: a row for each phase, its bar where and as long as it lasted, the promised budget as a line."""

from __future__ import annotations

from typing import Any

from pytest_sglang.record import units
from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel
from pytest_sglang.report.view import promised_text

NAMES: dict[str, str] = {
    "launch": "launch",
    "arguments": "arguments",
    "distributed": "distributed",
    "weights": "weights",
    "kv_cache": "KV cache",
    "capture_decode": "capture, decode",
    "capture_prefill": "capture, prefill",
    "port_open": "port open",
    "warmup": "warm-up",
    "ready": "ready",
    "first_token": "first token",
    "steady": "steady",
}
WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 380.0, 18.0, 102.0, 92.0, 18.0, 24.0
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


def panel(identity: str, item: dict[str, Any]) -> Panel:
    """The panel of one item of ``run.startups``. Raises DrawingError without matplotlib, KeyError and kin for a foreign record."""
    start, budget_s = item["startup"], item.get("budget_s")
    phases, ready_s = start.get("phases") or [], start.get("ready_s")
    heading = str(item.get("label") or "start")
    note = _note(start, ready_s, budget_s)
    if not phases:
        return Panel(heading=heading, note=note, missing="The log of this start gave no phases.")
    end_s = _end(phases, ready_s, budget_s)
    described = "; ".join(f"{NAMES.get(each['id'], each['id'])} {_length(each)}" for each in phases)
    with svg.canvas(WIDTH, TOP + BOTTOM + ROW * len(phases)) as drawing:
        drawing.margins(LEFT, RIGHT, TOP, BOTTOM)
        axes = drawing.axes
        axes.set(xlim=(0, end_s), ylim=(len(phases) - 0.5, -0.5))
        _time_axis(axes, end_s)
        axes.set_yticks(range(len(phases)), [svg.clean(NAMES.get(each["id"], each["id"])) for each in phases])
        axes.spines["left"].set_visible(False)
        longest = max(_seconds(each, end_s) for each in phases)
        for place, each in enumerate(phases):
            _bar(axes, place, each, end_s, longest)
        if budget_s is not None and budget_s <= end_s:
            _budget(axes, budget_s, end_s, missed=ready_s is not None and ready_s > budget_s)
        picture = drawing.svg(
            identity=identity, title=f"Start-up time line: {heading}", description=f"{note}. Phases: {described}."
        )
    return Panel(heading=heading, note=note, svg=picture)


def _budget(axes: Any, budget_s: float, end_s: float, *, missed: bool) -> None:
    colour = svg.FAIL if missed else svg.INK
    axes.axvline(budget_s, color=colour, linewidth=1.2, linestyle=(0, (3, 2)))
    side = "right" if budget_s > 0.3 * end_s else "left"
    text = f"budget {promised_text(budget_s, 's')}"
    axes.text(budget_s, 1.0, text, transform=axes.get_xaxis_transform(), ha=side, va="bottom", color=colour)


def _note(start: dict[str, Any], ready_s: float | None, budget_s: float | None) -> str:
    kind = str(start.get("kind", "unknown"))
    told = f"{kind} start" if kind != "unknown" else "start of unknown kind"
    told += f", ready after {units.duration(ready_s)}" if ready_s is not None else ", never ready"
    if budget_s is not None:
        told += f", budget {promised_text(budget_s, 's')}"
    return told + ("" if start.get("observed", True) else ", read from its log")


def _end(phases: list[dict[str, Any]], ready_s: float | None, budget_s: float | None) -> float:
    """Right edge: all phases, and the budget where it is not so far off that it would squeeze them."""
    last = max([ready_s or 0.0, *(max(each["begin_s"], each.get("end_s") or 0.0) for each in phases)])
    last = max(last, 0.001)
    return float(max(last, budget_s) * 1.01 if budget_s is not None and budget_s < 4 * last else last * 1.02)


def _seconds(phase: dict[str, Any], end_s: float) -> float:
    end = phase.get("end_s")
    return max(float(end_s if end is None else end) - float(phase["begin_s"]), 0.0)


def _length(phase: dict[str, Any]) -> str:
    end = phase.get("end_s")
    if end is None:
        return "not ended"
    seconds = end - phase["begin_s"]
    return units.duration(seconds) if seconds > 0 else f"at {units.duration(phase['begin_s'])}"


def _bar(axes: Any, place: int, phase: dict[str, Any], end_s: float, longest: float) -> None:
    """A bar; a moment is a diamond; a phase that never ended runs hatched to the edge. Its length stands at the right."""
    begin_s, seconds = phase["begin_s"], _seconds(phase, end_s)
    if phase.get("end_s") is None:
        axes.barh(place, seconds, left=begin_s, height=0.62, facecolor="none", edgecolor=svg.MUTED, hatch="////", linewidth=0.8)
    elif seconds <= 0:
        axes.plot([begin_s], [place], marker="D", markersize=4.5, color=svg.STRONG, clip_on=False, linestyle="none")
    else:
        # a phase of a second in a start of twenty minutes still has to be seen
        axes.barh(
            place, max(seconds, end_s / 250), left=begin_s, height=0.62, color=svg.STRONG if seconds == longest else svg.ACCENT
        )
    axes.text(1.03, place, _length(phase), transform=axes.get_yaxis_transform(), ha="left", va="center", color=svg.INK)


def _time_axis(axes: Any, end_s: float) -> None:
    step = next((each for each in _STEPS if end_s / each <= 5), 86400)
    places = [step * number for number in range(int(end_s / step) + 1)]
    factor, unit = (60, "min") if step >= 60 else (1, "s")
    texts = [f"{place / factor:g}" for place in places]
    axes.set_xticks(places, [*texts[:-1], f"{texts[-1]} {unit}"])
    axes.grid(axis="x", color=svg.RULE, linewidth=0.7)
    axes.set_axisbelow(True)
