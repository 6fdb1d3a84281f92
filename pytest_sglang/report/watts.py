"""One GPU's power over time with its enforced limit, what held its clocks, its SM clock and temperature; measured windows are shaded."""

from __future__ import annotations

import itertools
from typing import Any

from pytest_sglang.record import units
from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel

WIDTH, ALONE, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 350.0, 660.0, 124.0, 38.0, 78.0, 20.0, 22.0
"""``ALONE``: width of the only panel."""
STRIP, NAME, BELOW, APART = 6.0, 16.0, 54.0, 22.0
"""Heights of the strip of reasons, of its name and of the plot of clock and temperature below the watts, and the space above that, in pixels."""
_COLOURS = {"sw_power_cap": svg.ACCENT, "sync_boost": svg.WARN, "board_limit": svg.WARN, "reliability": svg.WARN}
_HARMLESS = ("", "gpu_idle", "applications_clocks_setting", "display_clock_setting")
_WORDS = {
    "sw_power_cap": "power limit",
    "gpu_idle": "idle",
    "sw_thermal_slowdown": "heat",
    "hw_thermal_slowdown": "heat (hardware)",
    "hw_power_brake_slowdown": "power brake",
    "hw_slowdown": "hardware slowdown",
    "": "none",
}
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
            **{name: gpu[name] for name in ("c", "mhz", "held") if any(each is not None for each in gpu.get(name) or ())},
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
    some = ", ".join(f"{each:g}" for each in levels) if len(levels) < 4 else f"{levels[0]:g} to {levels[-1]:g}"
    note += f", limit {some} W" if levels else ", limit not read"
    note += _beside(item)
    extra = (STRIP + NAME if "held" in item else 0.0) + (BELOW + APART if "mhz" in item or "c" in item else 0.0)
    with svg.canvas(ALONE if item.get("alone") else WIDTH, HEIGHT + extra) as drawing:
        drawing.margins(LEFT, RIGHT, TOP, BOTTOM + extra)
        axes = drawing.axes
        begin, end = min(times), max(times)
        axes.set(xlim=(begin, max(end, begin + 0.001)), ylim=(0, item["top"]))
        for left, right, _ in item["windows"]:
            axes.axvspan(left, right, color=svg.ACCENT, alpha=0.16, linewidth=0)
        axes.plot(*_with_gaps(times, watts), color=svg.STRONG, linewidth=1.2, solid_joinstyle="round")
        axes.plot(*_with_gaps(times, limits), color=svg.INK, linewidth=1.1, linestyle=(0, (3, 2)))
        if levels:
            last = _numbers(limits)[-1]
            axes.annotate(
                f"limit {last:g} W",
                (1, last),
                xycoords=axes.get_yaxis_transform(),
                xytext=(6, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                color=svg.INK,
            )
        _axes(axes)
        _lower(drawing, item)
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


# --- clock, temperature and what held the clocks ------------------------------------------------------------------------------


def _beside(item: dict[str, Any]) -> str:
    """SM clock, temperature and what held the clocks inside the rounds, as words."""
    inside = [any(left <= t <= right for left, right, _ in item["windows"]) for t in item["t"]]
    if not any(inside):
        inside = [True] * len(item["t"])

    def kept(name: str) -> list[Any]:
        return [each for each, good in zip(item.get(name) or (), inside, strict=False) if good and each is not None]

    clocks, degrees, held = _numbers(kept("mhz")), _numbers(kept("c")), kept("held")
    parts = []
    if clocks:
        parts.append(f"SM {sum(clocks) / len(clocks):,.0f} MHz")
    if degrees:
        span = f"{degrees[0]:.0f} to {degrees[-1]:.0f}" if round(degrees[0]) != round(degrees[-1]) else f"{degrees[0]:.0f}"
        parts.append(f"{span} °C")
    if held:
        shares = sorted(((held.count(name) / len(held), name) for name in set(held)), reverse=True)
        told = ", ".join(
            f"{_WORDS.get(name, name.replace('_', ' '))} {100 * share:.0f} %" for share, name in shares if share >= 0.01
        )
        told = "none" if set(held) == {""} else told
        parts.append("idle" if set(held) == {"gpu_idle"} else f"clocks event reasons: {told}")
    return "".join(f"; {part}" for part in parts)


def _lower(drawing: svg.Canvas, item: dict[str, Any]) -> None:
    """Below the watts, on the same times: a strip of what held the clocks, then SM clock and temperature."""
    from matplotlib.ticker import MaxNLocator

    top = 4.0 + (BELOW + APART if "mhz" in item or "c" in item else 0.0)
    if "held" in item:
        strip = _below(drawing, top, STRIP)
        strip.set(ylim=(0, 1), yticks=[])
        for begin, end, reason in _runs(item["t"], item["held"]):
            if reason not in _HARMLESS:
                strip.axvspan(begin, end, color=_COLOURS.get(reason, svg.FAIL), linewidth=0)
        none = all(reason in _HARMLESS for reason in item["held"] if reason is not None)
        idle = {reason for reason in item["held"] if reason is not None} == {"gpu_idle"}
        name = f"clocks event reasons{': idle' if idle else ': none' if none else ''}"
        strip.text(0, 1 + 3 / STRIP, name, transform=strip.transAxes, ha="left", va="bottom", color=svg.MUTED)
    if "mhz" in item or "c" in item:
        clock = _below(drawing, 6.0, BELOW)
        clock.plot(*_with_gaps(item["t"], item.get("mhz") or []), color=svg.INK, linewidth=1.1)
        highest = max([*_numbers(item.get("mhz") or []), 1.0])
        ticks = [float(each) for each in MaxNLocator(3).tick_values(0, highest * 1.02)]
        clock.set_ylim(0, ticks[-1])
        clock.set_yticks(ticks, [f"{each:,.0f}" for each in ticks])
        clock.grid(axis="y", color=svg.RULE, linewidth=0.7)
        clock.text(0, 1.08, "SM clock, MHz", transform=clock.transAxes, ha="left", va="bottom", color=svg.MUTED)
        warm = clock.twinx()
        warm.plot(*_with_gaps(item["t"], item.get("c") or []), color=svg.WARN, linewidth=1.1, linestyle=(0, (1, 1)))
        warm.set_ylim(0, 110)
        warm.set_yticks([0, 50, 100])
        warm.tick_params(length=0)
        warm.spines["right"].set_visible(False)
        warm.spines["left"].set_visible(False)
        clock.text(1, 1.08, "°C (dots)", transform=clock.transAxes, ha="right", va="bottom", color=svg.MUTED)


def _below(drawing: svg.Canvas, bottom: float, height: float) -> Any:
    axes = drawing.figure.add_axes(
        (LEFT / drawing.width, bottom / drawing.height, (drawing.width - LEFT - RIGHT) / drawing.width, height / drawing.height)
    )
    axes.set_xlim(*drawing.axes.get_xlim())
    axes.set_xticks([])
    axes.spines["left"].set_visible(False)
    return axes


def _runs(times: list[float], held: list[Any]) -> list[tuple[float, float, str]]:
    """Stretches of time with one reason; a moment that was not read ends a stretch, and so does a pause."""
    steps = sorted(after - before for before, after in itertools.pairwise(times) if after > before)
    usual = steps[len(steps) // 2] if steps else 1.0
    found: list[tuple[float, float, str]] = []
    for time, reason in zip(times, held, strict=False):
        if reason is None:
            continue
        if found and found[-1][2] == reason and time - found[-1][1] <= usual * 1.5:
            found[-1] = (found[-1][0], time + usual / 2, reason)
        else:
            found.append((time - usual / 2, time + usual / 2, reason))
    return found
