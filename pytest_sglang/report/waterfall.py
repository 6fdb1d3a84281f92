"""One start as a waterfall: a row for each phase, its bar where and as long as it lasted, the promised budget as a line.

Behind the bars stands the last start of that kind as outlines, each phase where and as long as it was then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pytest_sglang.record import units
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Value
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
DIFFERENCE = 60.0
"""Room for what a phase took longer than last time."""
FAINT = 0.6
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


class Earlier(Value, frozen=True, kw_only=True):
    """The start behind: when it was, its readiness, its phases as (begin, end) in seconds by id and number of that id."""

    told: str
    ready_s: float
    spans: dict[tuple[str, int], tuple[float, float | None]]


def panel(identity: str, item: dict[str, Any], earlier: Mapping[str, Any] | None = None) -> Panel:
    """The panel of one item of ``run.startups``, with that of ``run.earlier_starts`` that it is compared with behind it.

    Raises DrawingError without matplotlib, KeyError and kin for a foreign record.
    """
    start, budget_s = item["startup"], item.get("budget_s")
    phases, ready_s = start.get("phases") or [], start.get("ready_s")
    heading = str(item.get("label") or "start")
    note = _note(start, ready_s, budget_s)
    if not phases:
        return Panel(heading=heading, note=note, missing="The log of this start gave no phases.")
    behind = _behind(earlier)
    keys = _keys(phases)
    differences = {} if behind is None else _differences(phases, keys, behind)
    end_s = _end(phases, ready_s, budget_s, behind)
    # lengths and what they grew by stand close to one another
    right = max(54.0, 12 + 6.2 * max(len(_length(each)) for each in phases)) + DIFFERENCE if differences else RIGHT
    with svg.canvas(WIDTH, TOP + BOTTOM + ROW * len(phases)) as drawing:
        drawing.margins(LEFT, right, TOP, BOTTOM)
        axes = drawing.axes
        axes.set(xlim=(0, end_s), ylim=(len(phases) - 0.5, -0.5))
        _time_axis(axes, end_s, marks=5 if WIDTH - LEFT - right > 165 else 4)
        axes.set_yticks(range(len(phases)), [svg.clean(_name(each["id"])) for each in phases])
        axes.spines["left"].set_visible(False)
        longest = max(_seconds(each, end_s) for each in phases)
        for place, each in enumerate(phases):
            if behind is not None and (span := behind.spans.get(keys[place])) is not None:
                _outline(axes, place, span, end_s)
            _bar(axes, place, each, end_s, longest, WIDTH - LEFT - right)
            _difference(axes, place, differences.get(keys[place]), 1 + (right - DIFFERENCE) / (WIDTH - LEFT - right))
        if behind is not None and behind.ready_s <= end_s:
            _tick(axes, behind.ready_s, len(phases))
        if budget_s is not None and budget_s <= end_s:
            _budget(axes, budget_s, end_s, missed=ready_s is not None and ready_s > budget_s)
        told = "" if behind is None else f". {behind.told[0].upper()}{behind.told[1:]}"
        described = "; ".join(_described(each, keys[place], behind, differences) for place, each in enumerate(phases))
        picture = drawing.svg(
            identity=identity, title=f"Start-up time line: {heading}", description=f"{note}{told}. Phases: {described}."
        )
    return Panel(heading=heading, note=note if behind is None else f"{note}; {behind.told}", svg=picture)


def earlier_of(run: Run, item: Any) -> dict[str, Any] | None:
    """The start to compare an item of ``run.startups`` with: of the kind that it was judged as, else that it was; None without one.

    A warm restart that compiled everything again stands before the last true warm one: that shows what went wrong.
    """
    if not isinstance(item, dict) or not isinstance(item.get("startup"), dict):
        return None
    start, asked = item["startup"], str(item.get("label") or "").split(" ")[0]
    kind = asked if asked in ("warm", "cold") else {"partial": "warm"}.get(str(start.get("kind")), str(start.get("kind")))
    found = run.earlier_starts.get(kind)
    # seconds from the first line of a log do not stand beside seconds from the launch
    if not isinstance(found, dict) or start.get("launched_at_is", "launch") != found.get("launched_at_is", "launch"):
        return None
    server, promised = run.environment.get("server") or {}, run.rig.get("server") or {}
    now = {"SGLang": server.get("version"), "model": promised.get("model")}
    then = {"SGLang": found.get("version"), "model": found.get("model")}
    return {**found, "unlike": [f"{name} {then[name]}" for name in now if now[name] and then[name] and now[name] != then[name]]}


def _behind(earlier: Mapping[str, Any] | None) -> Earlier | None:
    """The start behind; None without one, and for one that cannot be understood: it must not cost the start before it."""
    try:
        if earlier is None or not earlier.get("phases"):
            return None
        phases, ready_s = earlier["phases"], float(earlier["ready_s"])
        spans = {
            key: (float(each["begin_s"]), None if each.get("end_s") is None else float(each["end_s"]))
            for key, each in zip(_keys(phases), phases, strict=True)
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    told = f"outline: {_day(earlier.get('started'))} (run {earlier.get('run_id')}), ready after {units.duration(ready_s)}"
    told += "".join(f", {each}" for each in earlier.get("unlike") or ())
    return Earlier(told=told, ready_s=ready_s, spans=spans)


def _day(started: object) -> str:
    try:
        moment = datetime.fromisoformat(str(started))
    except ValueError:
        return "an earlier day"
    return f"{moment.day} {moment:%b %Y}"


def _keys(phases: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Each phase's id with its number among those of that id."""
    counts: dict[str, int] = {}
    keys = []
    for each in phases:
        name = str(each["id"])
        counts[name] = counts.get(name, 0) + 1
        keys.append((name, counts[name]))
    return keys


def _differences(phases: list[dict[str, Any]], keys: list[tuple[str, int]], behind: Earlier) -> dict[tuple[str, int], float]:
    """Seconds by which phases took longer (or shorter, negative) than then, where that is worth telling.

    A log is stamped to the second, so that two lengths differ by up to 2 s for nothing, and starts of one machine differ by some per
    cent: told is what is more than 3 s, 15 % of the phase and 4 % of the start.
    """
    told = {}
    for each, key in zip(phases, keys, strict=True):
        begin_s, end_s = behind.spans.get(key, (0.0, None))
        if end_s is None or each.get("end_s") is None:
            continue
        change_s = (each["end_s"] - each["begin_s"]) - (end_s - begin_s)
        if abs(change_s) > max(3.0, 0.15 * (end_s - begin_s), 0.04 * behind.ready_s):
            told[key] = change_s
    return told


def _change(seconds: float) -> str:
    size, sign = abs(seconds), "+" if seconds > 0 else "\N{MINUS SIGN}"
    if size < 100:
        return f"{sign}{size:.0f} s"
    return f"{sign}{size / 60:.{0 if size >= 600 else 1}f} min" if size < 6000 else f"{sign}{size / 3600:.1f} h"


def _difference(axes: Any, place: int, seconds: float | None, at: float) -> None:
    """Behind the length (``at``, in widths of the axes): what grew in the colour of a warning, what shrank in grey."""
    if seconds is not None:
        colour, weight = (svg.WARN, "bold") if seconds > 0 else (svg.MUTED, "normal")
        axes.text(
            at, place, _change(seconds), transform=axes.get_yaxis_transform(), ha="left", va="center", color=colour, weight=weight
        )


def _outline(axes: Any, place: int, span: tuple[float, float | None], end_s: float) -> None:
    begin_s, stopped_s = span
    if stopped_s is not None and stopped_s <= begin_s:
        if begin_s <= end_s:
            axes.plot(
                [begin_s], [place], marker="D", markersize=8, color=svg.MUTED, fillstyle="none", markeredgewidth=0.9, alpha=FAINT
            )
        return
    seconds = (end_s if stopped_s is None else stopped_s) - begin_s
    width = max(seconds, end_s / 250)
    axes.barh(place, width, left=begin_s, height=0.86, facecolor="none", edgecolor=svg.MUTED, linewidth=0.9, alpha=FAINT)


def _tick(axes: Any, ready_s: float, rows: int) -> None:
    """Readiness of the start behind at the time axis."""
    length = [0, -6 / (ROW * rows)]
    axes.plot([ready_s] * 2, length, transform=axes.get_xaxis_transform(), color=svg.MUTED, alpha=FAINT, clip_on=False)


def _described(
    phase: dict[str, Any], key: tuple[str, int], behind: Earlier | None, differences: dict[tuple[str, int], float]
) -> str:
    """A phase for who cannot see it, with what it was before."""
    text = f"{_name(phase['id'])} {_length(phase)}"
    span = behind.spans.get(key) if behind is not None else None
    if span is None or span[1] is None or span[1] <= span[0]:
        return text
    change = f", {_change(differences[key])}" if key in differences else ""
    return f"{text} (was {units.duration(span[1] - span[0])}{change})"


def _name(identity: Any) -> str:
    return NAMES.get(identity, str(identity))


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


def _end(phases: list[dict[str, Any]], ready_s: float | None, budget_s: float | None, behind: Earlier | None) -> float:
    """Right edge: all phases, the start behind and the budget where they are not so far off that they would squeeze them."""
    last = max([ready_s or 0.0, *(max(each["begin_s"], each.get("end_s") or 0.0) for each in phases)])
    last = max(last, 0.001)
    if behind is not None:
        then = max([behind.ready_s, *(end or begin for begin, end in behind.spans.values())])
        last = max(last, min(then, 2 * last))
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


def _bar(axes: Any, place: int, phase: dict[str, Any], end_s: float, longest: float, width: float) -> None:
    """A bar; a moment is a diamond; a phase that never ended runs hatched to the edge. Its length stands at the right."""
    begin_s, seconds = phase["begin_s"], _seconds(phase, end_s)
    if phase.get("end_s") is None:
        axes.barh(place, seconds, left=begin_s, height=0.62, facecolor="none", edgecolor=svg.MUTED, hatch="////", linewidth=0.8)
    elif seconds <= 0:
        axes.plot([begin_s], [place], marker="D", markersize=4.5, color=svg.STRONG, clip_on=False, linestyle="none")
    else:
        # a phase of a second in a start of twenty minutes still has to be seen
        axes.barh(
            place, max(seconds, end_s / 250), left=begin_s, height=0.56, color=svg.STRONG if seconds == longest else svg.ACCENT
        )
    axes.text(1 + 6 / width, place, _length(phase), transform=axes.get_yaxis_transform(), ha="left", va="center", color=svg.INK)


def _time_axis(axes: Any, end_s: float, *, marks: int) -> None:
    step = next((each for each in _STEPS if end_s / each <= marks), 86400)
    places = [step * number for number in range(int(end_s / step) + 1)]
    factor, unit = (60, "min") if step >= 60 else (1, "s")
    texts = [f"{place / factor:g}" for place in places]
    axes.set_xticks(places, [*texts[:-1], f"{texts[-1]} {unit}"])
    axes.grid(axis="x", color=svg.RULE, linewidth=0.7)
    axes.set_axisbelow(True)
