"""The power curve of a sweep, as text for the terminal and as a drawing with the promises."""

from __future__ import annotations

from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520.0, 260.0, 44.0, 20.0, 26.0, 40.0
NOT_THE_WALL = "board power of the serving GPUs, not the wall"
_HEAD = ("cap", "tok/s", "interval", "promise", "power", "J/token", "of top", "held by")


def points(run: Run) -> list[dict[str, Any]]:
    """The points of the run's curve by rising cap; none where fewer than two levels are known."""
    found = run.power_curve.get("points")
    known = [each for each in found if _is_point(each)] if isinstance(found, (list, tuple)) else []
    return known if len(known) > 1 else []


def _is_point(each: Any) -> bool:
    return isinstance(each, dict) and all(isinstance(each.get(name), (int, float)) for name in ("power_w", "tok_s"))


def swept(run: Run) -> bool:
    """This very run measured more than one level."""
    return len([each for each in points(run) if each.get("run_id") == run.run_id]) > 1


def of_what(run: Run) -> str:
    """What the curve is of: "decode of 1 stream, NVLink 0-1 and 2-3, SGLang 0.5.11, /models/home-70b-awq"."""
    key = dict(run.power_curve.get("key") or {})
    streams = key.get("streams") or 1
    pairs = [str(each).split(":")[0] for each in key.get("nvlink") or ()]
    parts = [
        f"decode of {streams} stream{'s' if streams != 1 else ''}{' each' if streams != 1 else ''}",
        f"NVLink {' and '.join(pairs)}" if pairs else "no NVLink",
        f"SGLang {key['engine']}" if key.get("engine") else "",
        str(key.get("model") or "").rsplit("/", 1)[-1],
    ]
    return ", ".join(part for part in parts if part)


def conclusions(run: Run) -> list[str]:
    """Plateau, most efficient cap, cheapest cap that is nearly as fast, in sentences."""
    curve = run.power_curve
    by_level = {each["power_w"]: each for each in points(run)}
    told = []
    for begin, end in curve.get("plateaus") or ():
        free = any(by_level[level].get("held_by") == "nothing" for level in by_level if begin <= level <= end)
        told.append(f"plateau: {begin:g} to {end:g} W is no faster{' (the power limit is not reached)' if free else ''}")
    efficient, suggested, fastest = (curve.get(name) for name in ("efficient_w", "suggested_w", "fastest_w"))
    if efficient is not None:
        edge = ", the lowest level measured: a lower one may be cheaper still" if curve.get("efficient_at_edge") else ""
        told.append(f"most efficient: {efficient:g} W, {by_level[efficient]['j_per_token']:.1f} J/token{edge}")
    if suggested is not None and fastest is not None:
        share = 100 * by_level[suggested]["tok_s"] / by_level[fastest]["tok_s"]
        sure = "" if curve.get("suggested_surely") else ", by its median"
        within = f"within {curve.get('max_slowdown_pct', 5.0):g} % of full speed ({by_level[fastest]['tok_s']:.1f} tok/s at {fastest:g} W)"
        if suggested == fastest:
            told.append(f"suggested cap: {suggested:g} W, since no lower one is {within}")
        else:
            told.append(f"suggested cap: {suggested:g} W, the lowest {within}: {share:.0f} %{sure}")
    faulty = [f"{each['power_w']:g} W" for each in points(run) if each.get("faulty")]
    if faulty:
        told.append(f"not the speed of their caps, since something else held the cards: {', '.join(faulty)}")
    return told


def rows(run: Run) -> list[tuple[str, ...]]:
    """The table, its head first; a level of an earlier run is marked with an asterisk."""
    top = max((each["tok_s"] for each in points(run)), default=0.0)
    table: list[tuple[str, ...]] = [_HEAD]
    for each in points(run):
        earlier = each.get("run_id") != run.run_id
        low, high, energy, watts = (each.get(name) for name in ("ci_low", "ci_high", "j_per_token", "mean_w"))
        table.append(
            (
                f"{each['power_w']:g} W{'*' if earlier else ''}",
                f"{each['tok_s']:.1f}",
                f"{low:.1f}-{high:.1f}" if low is not None and high is not None else "",
                f">= {each['min_tok_s']:g}" if each.get("min_tok_s") is not None else "none",
                f"{watts:.0f} W" if watts is not None else "not read",
                f"{energy:.1f}" if energy is not None else "not read",
                f"{100 * each['tok_s'] / top:.0f} %",
                str(each.get("held_by") or "not read").replace("power cap", "power limit").replace("nothing", "none"),
            )
        )
    return table


def lines(run: Run) -> list[str]:
    """The sweep for a terminal: what, table, conclusions; empty where this run measured no more than one level."""
    if not swept(run):
        return []
    table = rows(run)
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEAD))]
    last = len(_HEAD) - 1
    text = [f"power curve: {of_what(run)}"]
    for row in table:
        cells = [cell.ljust(widths[column]) if column == last else cell.rjust(widths[column]) for column, cell in enumerate(row)]
        text.append("  " + "  ".join(cells).rstrip())
    if any(row[0].endswith("*") for row in table):
        text.append("  * measured in an earlier run on the same engine, model, cards and links")
    text += [f"  {each}" for each in conclusions(run)]
    return [*text, f"  power and J/token: {NOT_THE_WALL}"]


# --- drawing -----------------------------------------------------------------------------------------------------------------


def panels(identity: str, run: Run) -> tuple[Panel, ...]:
    """Speed over cap with the promises, energy per token over cap. Raises DrawingError without matplotlib."""
    found = points(run)
    speed = _panel(f"{identity}-rate", "Tokens per second by power limit", found, run, "tok_s", "tok/s")
    priced = [each for each in found if each.get("j_per_token") is not None]
    if len(priced) < 2:
        return (
            speed,
            Panel(heading="Energy per token by power limit", missing="The energy of these levels could not be measured."),
        )
    return (speed, _panel(f"{identity}-energy", "Board energy per token by power limit", priced, run, "j_per_token", "J/token"))


def _panel(identity: str, heading: str, found: list[dict[str, Any]], run: Run, name: str, unit: str) -> Panel:
    told = [f"{each['power_w']:g} W {each[name]:.1f} {unit}" for each in found]
    with svg.canvas(WIDTH, HEIGHT) as drawing:
        drawing.margins(LEFT, RIGHT, TOP, BOTTOM)
        axes = drawing.axes
        sound = [each for each in found if not each.get("faulty")]
        axes.plot([each["power_w"] for each in sound], [each[name] for each in sound], color=svg.ACCENT, linewidth=1.4, zorder=2)
        for each in found:
            _dot(axes, each, name, run.run_id)
        highest = max(max(each[name], each.get("target_tok_s") or 0.0 if name == "tok_s" else 0.0) for each in found)
        caps = [each["power_w"] for each in found]
        side = max((max(caps) - min(caps)) * 0.06, 5.0)
        axes.set(xlim=(min(caps) - side, max(caps) + side), ylim=(0, highest * 1.16))
        if name == "tok_s":
            _promises(axes, found)
            for begin, end in run.power_curve.get("plateaus") or ():
                axes.axvspan(begin, end, color=svg.RULE, alpha=0.6, linewidth=0, zorder=0)
        marked = run.power_curve.get("suggested_w" if name == "tok_s" else "efficient_w")
        _mark(axes, next((each for each in found if each["power_w"] == marked), None), name, highest)
        _axes(axes, caps, unit)
        picture = drawing.svg(identity=identity, title=heading, description=f"{of_what(run)}: {', '.join(told)}.")
    return Panel(heading=heading, svg=picture)


def _dot(axes: Any, each: dict[str, Any], name: str, run_id: str) -> None:
    """Filled: this run; hollow: an earlier one; a cross: something else than the cap held the cards."""
    x, y = each["power_w"], each[name]
    if each.get("faulty"):
        axes.plot([x], [y], marker="x", markersize=7, color=svg.FAIL, linestyle="none", zorder=4)
        return
    filled = each.get("run_id") == run_id
    low, high = each.get("ci_low"), each.get("ci_high")
    if name == "tok_s" and low is not None and high is not None:
        axes.plot([x, x], [low, high], color=svg.STRONG, linewidth=3.2, alpha=0.45, solid_capstyle="butt", zorder=3)
    axes.plot(
        [x], [y], marker="o", markersize=5.5, color=svg.STRONG, linestyle="none", zorder=4,
        fillstyle="full" if filled else "none",
    )  # fmt: skip


def _promises(axes: Any, found: list[dict[str, Any]]) -> None:
    """What is promised at a level: the least as a bar that the dot must stand above, the target as a dotted one."""
    for each in found:
        x = each["power_w"]
        for key, style in (("min_tok_s", "-"), ("target_tok_s", ":")):
            if each.get(key) is not None:
                broken = key == "min_tok_s" and each["tok_s"] < each[key]
                colour = svg.FAIL if broken else svg.INK
                axes.plot([x - 7, x + 7], [each[key]] * 2, color=colour, linewidth=1.6, linestyle=style, zorder=3)
        if each.get("min_tok_s") is not None:
            axes.annotate(
                f">= {each['min_tok_s']:g}", (x, each["min_tok_s"]), xytext=(0, -13), textcoords="offset points",
                ha="center", color=svg.MUTED,
            )  # fmt: skip


def _mark(axes: Any, each: dict[str, Any] | None, name: str, highest: float) -> None:
    if each is None:
        return
    word = "suggested" if name == "tok_s" else "most efficient"
    axes.plot([each["power_w"]] * 2, [0, each[name]], color=svg.MUTED, linewidth=1.0, linestyle=(0, (3, 2)), zorder=1)
    axes.annotate(
        f"{word} {each['power_w']:g} W", (each["power_w"], highest * 0.02), xytext=(4, 2), textcoords="offset points",
        ha="left", va="bottom", color=svg.INK,
    )  # fmt: skip


def _axes(axes: Any, caps: list[float], unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xticks(caps, [f"{cap:g}" for cap in caps])
    axes.set_xlabel("power limit of a card, W")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color=svg.RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.text(-0.01, 1.03, unit, transform=axes.transAxes, ha="right", va="bottom", color=svg.MUTED)
