"""The charts of a run as inline SVG: start-up time lines, caches, tok/s by round, watts over time, the machine.

Each chart is a handful of small panels rather than one big drawing: a cold start of 22 min stands beside a warm one of 80 s,
every panel on its own scale, and on a phone the panels stand below one another at a size that can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Value
from pytest_sglang.report.svg import DrawingError, Panel

_BUDGET = "; the dashed line is the promised budget"


class Chart(Value, frozen=True, kw_only=True):
    """A titled group of panels; ``empty`` says why there are none."""

    id: str
    title: str
    note: str
    panels: tuple[Panel, ...] = ()
    empty: str = ""


def charts(run: Run) -> list[Chart]:
    """All charts of the run, in the order of the page; never fails, whatever the record holds."""
    from pytest_sglang.report import curve

    swept = [curve_chart(run)] if curve.points(run) else []
    return [
        startup_chart(run),
        cache_chart(run),
        throughput_chart(run),
        latency_chart(run),
        *swept,
        power_chart(run),
        topology_chart(run),
    ]


def startup_chart(run: Run) -> Chart:
    """Waterfall of phases, a panel for each start."""
    from pytest_sglang.report import waterfall

    def draw(identity: str, item: Any) -> Panel:
        return waterfall.panel(identity, item, waterfall.earlier_of(run, item))

    panels = tuple(_panel(f"sg-start-{number}", item, draw) for number, item in enumerate(run.startups, 1))
    drawn = any(">budget " in (each.svg or "") for each in panels)
    note = f"Phases from launch to readiness{_BUDGET if drawn else ''}. Each start has its own time axis."
    if any(waterfall.earlier_of(run, item) for item in run.startups):
        note += (
            " Outlines are the last start of that kind in an earlier run (without injected faults); "
            "where a phase took clearly longer or shorter, the difference stands at the right."
        )
    if run.simulated:
        note += " All times are rig time."
    return Chart(id="start", title="Start-up", note=note, panels=panels, empty="No start was made or read in this run.")


def cache_chart(run: Run) -> Chart:
    """What each start added to the compile caches, and their size over the runs before."""
    from pytest_sglang.report import growth

    panels = [_panel(f"sg-cache-{number}", item, growth.panel) for number, item in enumerate(run.startups, 1)]
    for kind, points in _cache_sizes(run).items():
        panels.append(_panel(f"sg-caches-{kind}", {"label": kind, "points": points}, growth.sizes))
    return Chart(
        id="cache",
        title="Compile caches",
        note="A bar is what a cache held before the start and then, in the stronger colour, what the start added. "
        "Each start has its own scale.",
        panels=tuple(panels),
        empty="No start was made or read in this run.",
    )


def _cache_sizes(run: Run) -> dict[str, list[tuple[str, int]]]:
    """Bytes after each start of a kind, over the earlier runs and this one; only where three and more tell of it."""
    found: dict[str, list[tuple[str, int]]] = {}
    for kind, earlier in run.earlier_starts.items():
        try:
            diffs = [each["startup"]["cache_diff"] for each in run.startups if each["startup"]["kind"] == kind]
            held = [sum(each["bytes"] for each in diff["before"]) + diff["bytes"] for diff in diffs if diff and diff["before"]]
            points = [(str(each["started"]), int(each["bytes"])) for each in earlier["sizes"]]
        except (KeyError, TypeError, ValueError):
            continue
        if held and len(points) > 1:
            found[kind] = [*points, (run.started, int(held[-1]))]
    return found


def topology_chart(run: Run) -> Chart:
    """Cards, links and the server's groups on them."""
    from pytest_sglang.report import topology

    try:
        panels, note, empty = topology.panels("sg-topology", run), topology.note(run), "This run looked at no cards."
    except DrawingError as error:
        panels, note, empty = [], "", f"Not drawn: {error}"
    except Exception as error:
        panels, note, empty = [], "", f"The recorded cards could not be understood: {type(error).__name__}: {error}"
    return Chart(id="topology", title="Topology", note=note, panels=tuple(panels), empty=empty)


def throughput_chart(run: Run) -> Chart:
    """Rate of every round with limit and interval, a panel for each measurement."""
    from pytest_sglang.report import rounds

    panels = tuple(_panel(f"sg-rate-{number}", item, rounds.panel) for number, item in enumerate(run.throughputs, 1))
    note = (
        "One dot a round, the band is the confidence interval of the median of this boot; hollow dots are rounds that do not count."
    )
    return Chart(
        id="rate",
        title="Tokens per second by round",
        note=note,
        panels=panels,
        empty="Nothing was measured under load in this run.",
    )


def curve_chart(run: Run) -> Chart:
    """Speed and energy per token over the power caps of a sweep, with the promises."""
    from pytest_sglang.report import curve

    try:
        panels = curve.panels("sg-curve", run)
        note = f"{curve.of_what(run)}. {' '.join(_sentence(each) for each in curve.conclusions(run))}"
        empty = ""
    except DrawingError as error:
        panels, note, empty = (), "", f"Not drawn: {error}"
    except Exception as error:
        panels, note, empty = (), "", f"The recorded curve could not be understood: {type(error).__name__}: {error}"
    hint = " Hollow dots are earlier runs on the same engine, model, cards and links; short bars are promises, grey is a plateau."
    wall = f" Energy is {curve.NOT_THE_WALL}."
    return Chart(id="curve", title="Power curve", note=f"{_sentence(note)}{hint}{wall}", panels=panels, empty=empty)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:] if not text.startswith("/") else text
    return text if text.endswith(".") or not text else f"{text}."


def latency_chart(run: Run) -> Chart:
    """Distributions of TTFT (time to first token) and ITL (between tokens), of every measurement."""
    from pytest_sglang.report import latency

    panels: list[Panel] = []
    for number, item in enumerate(run.throughputs, 1):
        panels += _panels(f"sg-latency-{number}", item, latency.panels)
    note = "TTFT is the time to first token, ITL the time between tokens. Share of samples up to a latency, of all rounds that count; dots are the median and the percentiles that the samples earn."
    return Chart(
        id="latency",
        title="Latencies",
        note=note,
        panels=tuple(panels),
        empty="Too few requests for a distribution were measured in this run.",
    )


def power_chart(run: Run) -> Chart:
    """Watts over time, a panel for each GPU, all on the same axes."""
    from pytest_sglang.report import watts

    try:
        items = watts.split(run.power_series)
    except Exception as error:
        items, broken = [], f"The recorded readings could not be understood: {type(error).__name__}: {error}"
    else:
        broken = "No power readings were taken in this run."
    panels = tuple(
        _panel(f"sg-watts-{number}", {**item, "alone": len(items) == 1}, watts.panel) for number, item in enumerate(items, 1)
    )
    note = (
        "Board power as NVML reads it, not the wall. The dashed line is the enforced power limit, shaded bands are measured rounds. "
        "The strip below tells the clocks event reasons: blue the power limit, red heat, a brake or a slowdown. "
        "A mean here is of NVML's samples of one GPU; the table's is from the energy counters of all serving GPUs."
    )
    return Chart(id="watts", title="Power over time", note=note, panels=panels, empty=broken)


def _panel(identity: str, item: Any, draw: Callable[[str, Any], Panel]) -> Panel:
    """A panel, or the reason why there is none: a page with one chart less is better than no page."""
    return _panels(identity, item, lambda name, each: [draw(name, each)])[0]


def _panels(identity: str, item: Any, draw: Callable[[str, Any], list[Panel]]) -> list[Panel]:
    heading = str(item.get("label") or "unnamed") if isinstance(item, dict) else "unnamed"
    try:
        return draw(identity, item)
    except DrawingError as error:
        return [Panel(heading=heading, missing=f"Not drawn: {error}")]
    except Exception as error:
        missing = f"Not drawn: the record does not hold what the chart needs ({type(error).__name__}: {error})"
        return [Panel(heading=heading, missing=missing)]
