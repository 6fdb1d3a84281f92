"""The machine as a drawing: cards below one another, bridges at their right, a frame round each tensor parallel group.

A second panel has the way between every two cards, as ``nvidia-smi topo -m`` names it.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from pytest_sglang.report import cards, svg
from pytest_sglang.report.cards import BAD, Crossing, Join, Plan, Row, Section
from pytest_sglang.report.svg import Panel

WIDTH, ROW, BOX, HEAD, GAP = 380.0, 43.0, 36.0, 22.0, 10.0
BOX_LEFT, BOX_RIGHT, LANE, TEXT = 12.0, 212.0, 14.0, 246.0
"""Left and right edge of a card, distance of two lanes of bridges, begin of their texts (pixels)."""
LANES = 9
"""Bridges beside one another for which there is room."""
SMALL = 11.0
_WAYS = {
    "PSB": "one board",
    "PIX": "one PCIe bridge",
    "PXB": "several PCIe bridges",
    "PHB": "a PCIe host bridge, typically the CPU",
    "NODE": "PCIe host bridges of one NUMA node",
    "SYS": "the link between NUMA nodes",
}
"""nvidia-smi's legend, shortened."""


def panels(identity: str, run: Any) -> list[Panel]:
    """The drawing, and for more than two cards the ways between them; [] where the record tells of no card.

    Raises DrawingError without matplotlib, KeyError and kin for a foreign record.
    """
    plan = cards.plan(run)
    if plan is None:
        return []
    drawn = [_machine(f"{identity}-1", plan)]
    if len(set(plan.paths.values())) > 1:
        drawn.append(_ways(f"{identity}-2", plan))
    return drawn


# --- the machine -------------------------------------------------------------------------------------------------------------


def _machine(identity: str, plan: Plan) -> Panel:
    places, frames, height = _places(plan)
    heading = _heading(plan)
    with svg.canvas(WIDTH, height) as drawing:
        drawing.margins(0, 0, 0, 0)
        axes = drawing.axes
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        for section, (top, bottom) in zip(plan.sections, frames, strict=True):
            _frame(axes, section, top, bottom)
            for row in section.rows:
                _card(axes, row, places[row.key], idle=section.idle)
        if plan.fabric:
            _fabric(axes, plan, places)
        meshes, joins = _meshed(plan)
        for members, links in meshes:
            _bar(axes, [places[each] for each in members], ["" for _ in members], "every two", _count(links))
        untold = _bridges(axes, joins, plan.crossings, places)
        picture = drawing.svg(identity=identity, title=f"Cards and links: {heading}", description=_described(plan))
    return Panel(heading=heading, note="; ".join([*plan.notes, *untold]), svg=picture)


def _places(plan: Plan) -> tuple[dict[int | str, float], list[tuple[float, float]], float]:
    """Middle of every card, top and bottom of every section, height of it all (pixels)."""
    places: dict[int | str, float] = {}
    frames, y = [], 1.0
    for section in plan.sections:
        top = y
        y += HEAD if section.title else 4.0
        for row in section.rows:
            places[row.key] = y + ROW / 2
            y += ROW
        frames.append((top, y + 2))
        y += 2 + GAP
    return places, frames, y - GAP + 1


def _frame(axes: Any, section: Section, top: float, bottom: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    if section.used:
        style = "round,pad=0,rounding_size=5"
        edge, line = (svg.STRONG, "solid") if section.sure else (svg.MUTED, (0, (4, 3)))
        frame = FancyBboxPatch(
            (2, top), BOX_RIGHT + 6, bottom - top, boxstyle=style, facecolor=svg.SOFT, edgecolor=edge, linestyle=line, linewidth=1.2
        )
        axes.add_patch(frame)
    axes.text(BOX_LEFT, top + HEAD / 2 + 2, section.title, va="center", color=svg.MUTED if section.idle else svg.INK, size=SMALL)


def _card(axes: Any, row: Row, y: float, *, idle: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    there = row.standing == "there"
    edge = svg.FAIL if not there else svg.RULE if idle else svg.STRONG
    box = FancyBboxPatch(
        (BOX_LEFT, y - BOX / 2),
        BOX_RIGHT - BOX_LEFT,
        BOX,
        boxstyle="round,pad=0,rounding_size=3",
        facecolor="none",
        edgecolor=edge,
        linestyle="solid" if there else (0, (3, 2)),
        linewidth=1.0,
    )
    axes.add_patch(box)
    ink = svg.INK if there and not idle else svg.MUTED
    axes.text(BOX_LEFT + 8, y - 7, svg.clean(row.label), va="center", color=ink, weight="bold")
    axes.text(BOX_RIGHT - 8, y - 7, svg.clean(row.name), va="center", ha="right", color=ink, size=SMALL)
    below = {"there": row.pcie, "lost": "lost", "absent": "not found"}[row.standing]
    colour = svg.FAIL if not there or row.pcie_short else svg.MUTED
    axes.text(BOX_LEFT + 8, y + 8.5, svg.clean(below), va="center", color=colour, size=SMALL)


# --- bridges -----------------------------------------------------------------------------------------------------------------


def _meshed(plan: Plan) -> tuple[list[tuple[list[int | str], int]], list[Join]]:
    """Three and more cards of which every two have equally many links are one bar instead of many bridges."""
    good = {(each.one, each.other): each.links for each in plan.joins if each.state in ("up", "extra")}
    keys = [row.key for row in plan.rows if any(row.key in pair for pair in good)]
    counts = {good.get((a, b), good.get((b, a))) for a, b in combinations(keys, 2)}
    if len(keys) < 3 or len(counts) != 1 or None in counts:
        return [], list(plan.joins)
    return [(keys, counts.pop() or 0)], [each for each in plan.joins if each.state not in ("up", "extra")]


def _bridges(axes: Any, joins: list[Join], crossings: tuple[Crossing, ...], places: dict[int | str, float]) -> list[str]:
    """Bridges as brackets, each on a lane of its own where they overlap. Gives the texts for which there is no room then."""
    over = {frozenset((each.one, each.other)): each for each in crossings}
    bridged = {frozenset((each.one, each.other)) for each in joins}
    every: list[Join | Crossing] = [*joins, *(each for ends, each in over.items() if ends not in bridged)]
    spans = [(min(places[each.one], places[each.other]), max(places[each.one], places[each.other])) for each in every]
    lanes = _lanes(spans)
    alone = max(lanes, default=0) == 0
    for each, (top, bottom), lane in zip(every, spans, lanes, strict=True):
        if lane < LANES:
            _bracket(axes, top, bottom, lane, each, whole=alone or isinstance(each, Crossing))
            x, middle = _lane(lane), (top + bottom) / 2
            if alone:
                _texts(axes, x, middle, each, over.get(frozenset((each.one, each.other))) if isinstance(each, Join) else None)
            elif isinstance(each, Join):
                number = "×" if each.state == "down" else "?" if each.links is None else str(each.links)
                axes.text(x, middle, number, ha="center", va="center", color=_colour(each), size=SMALL)
    return [] if alone else [f"GPU {each.one} to {each.other}: {_told(each)}" for each in joins if each.state != "up"]


def _lanes(spans: list[tuple[float, float]]) -> list[int]:
    """A lane for each span such that no two on one lane overlap; the short ones next to the cards."""
    taken: list[list[tuple[float, float]]] = []
    found = [0] * len(spans)
    for place in sorted(range(len(spans)), key=lambda each: (spans[each][1] - spans[each][0], spans[each][0])):
        top, bottom = spans[place]
        lane = next((n for n, others in enumerate(taken) if all(bottom <= low or top >= high for low, high in others)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((top, bottom))
        found[place] = lane
    return found


def _lane(lane: int) -> float:
    return BOX_RIGHT + 8 + LANE * (lane + 1)


def _state(each: Join | Crossing) -> str:
    return each.state if isinstance(each, Join) else "crossing"


def _colour(each: Join | Crossing) -> str:
    state = _state(each)
    return svg.FAIL if state in BAD else svg.MUTED if state in ("crossing", "unknown") else svg.STRONG


def _bracket(axes: Any, top: float, bottom: float, lane: int, each: Join | Crossing, *, whole: bool) -> None:
    """``whole``: without a gap in its middle for a number."""
    state, x, middle = _state(each), _lane(lane), (top + bottom) / 2
    line = {"down": (0, (4, 3)), "unknown": (0, (1, 2)), "crossing": (0, (1, 2.2))}.get(state, "solid")
    width = 2.6 if state in ("up", "extra") else 1.6
    # bridges leave a card below its middle and arrive above it, so that a chain of them does not run together
    low, high = top + 7, bottom - 7
    upper, lower = [(BOX_RIGHT, low), (x, low)], [(x, high), (BOX_RIGHT, high)]
    parts = [[*upper, *lower]] if whole else [[*upper, (x, middle - 8)], [(x, middle + 8), *lower]]
    for part in parts:
        axes.plot([px for px, _ in part], [py for _, py in part], color=_colour(each), linewidth=width, linestyle=line)


def _texts(axes: Any, x: float, middle: float, each: Join | Crossing, instead: Crossing | None) -> None:
    """What a bridge is, beside it; ``instead``: the way that its traffic takes where it is down."""
    state = _state(each)
    if state == "down":
        axes.plot([x], [middle], marker="x", markersize=8, markeredgewidth=2, color=_colour(each))
    told = f"NVLink, {each.text}" if state in ("up", "extra", "partial", "unusable") else each.text
    first = svg.MUTED if state in ("crossing", "unknown") else _colour(each) if state in BAD else svg.INK
    lines = [told, *([each.more] if each.more else []), *([instead.text] if instead is not None else [])]
    step = 13.0 if len(lines) < 3 else 12.0
    for number, line in enumerate(lines):
        axes.text(
            TEXT,
            middle + step * (number - (len(lines) - 1) / 2),
            svg.clean(line),
            va="center",
            color=first if number == 0 else svg.MUTED,
            size=SMALL,
            weight="bold" if number == 0 and state in BAD else "normal",
        )


def _fabric(axes: Any, plan: Plan, places: dict[int | str, float]) -> None:
    """NVSwitches as one bar, and what each card has to them."""
    rows = [row for row in plan.rows if row.key in plan.fabric]
    texts = [_count(row.switched) if row.links_up >= row.links else f"{row.links_up} of {row.links}" for row in rows]
    wanted = plan.fabric_promised
    short = [wanted is not None and row.switched < wanted for row in rows]
    more = "not promised" if wanted is None else "as promised" if not any(short) else f"{_count(wanted)} promised"
    if plan.fabric_off:
        more, short = f"unusable ({plan.fabric_off})", [True for _ in rows]
    _bar(axes, [places[row.key] for row in rows], texts, "NVSwitch", more, bad=short)


def _count(links: int) -> str:
    return f"{links} link{'s' if links != 1 else ''}"


def _bar(axes: Any, heights: list[float], texts: list[str], title: str, more: str, *, bad: list[bool] | None = None) -> None:
    """A vertical bar to which cards are joined."""
    from matplotlib.patches import FancyBboxPatch

    left, wide = 280.0, 12.0
    top, bottom = min(heights) - BOX / 2, max(heights) + BOX / 2
    for number, (y, text) in enumerate(zip(heights, texts, strict=True)):
        failed = bool(bad and bad[number])
        colour = svg.FAIL if failed else svg.STRONG
        axes.plot([BOX_RIGHT, left], [y, y], color=colour, linewidth=2.6, linestyle=(0, (4, 2)) if failed else "solid")
        axes.text(
            (BOX_RIGHT + 8 + left) / 2, y - 4, text, ha="center", va="bottom", color=colour if failed else svg.INK, size=SMALL
        )
    style = "round,pad=0,rounding_size=3"
    axes.add_patch(
        FancyBboxPatch((left, top), wide, bottom - top, boxstyle=style, facecolor=svg.ACCENT, edgecolor=svg.STRONG, linewidth=1.2)
    )
    middle, x = (top + bottom) / 2, left + wide + 8
    axes.text(x, middle - 6.5, title, va="center", color=svg.INK, size=SMALL)
    failed = bool(bad and any(bad))
    axes.text(x, middle + 6.5, more, va="center", color=svg.FAIL if failed else svg.MUTED, size=SMALL)


# --- the ways ----------------------------------------------------------------------------------------------------------------


def _ways(identity: str, plan: Plan) -> Panel:
    from matplotlib.patches import Rectangle

    keys = sorted({index for pair in plan.paths for index in pair})
    left, top = 52.0, 22.0
    wide = min((WIDTH - left - 4) / len(keys), 62.0)
    tall = 26.0
    states = {frozenset((each.one, each.other)): each.state for each in plan.joins}
    with svg.canvas(WIDTH, top + tall * len(keys) + 4) as drawing:
        drawing.margins(0, 0, 0, 0)
        axes = drawing.axes
        axes.set(xlim=(0, WIDTH), ylim=(top + tall * len(keys) + 4, 0))
        axes.set_axis_off()
        for row, one in enumerate(keys):
            y = top + tall * (row + 0.5)
            axes.text(left - 8, y, f"GPU {one}", ha="right", va="center", color=svg.MUTED, size=SMALL)
            axes.text(left + wide * (row + 0.5), top / 2, str(one), ha="center", va="center", color=svg.MUTED, size=SMALL)
            for column, other in enumerate(keys):
                x = left + wide * column
                text = "" if one == other else plan.paths.get((min(one, other), max(one, other)), "?")
                bad = states.get(frozenset((one, other))) in BAD
                fill = svg.ACCENT if text.startswith("NV") else svg.SOFT if one == other else "none"
                edge = {"edgecolor": svg.FAIL, "linestyle": (0, (3, 2)), "linewidth": 1.4} if bad else {"edgecolor": svg.RULE}
                axes.add_patch(Rectangle((x + 1, y - tall / 2 + 1), wide - 2, tall - 2, facecolor=fill, **edge))
                axes.text(
                    x + wide / 2, y, svg.clean(text), ha="center", va="center", color=svg.FAIL if bad else svg.INK, size=SMALL
                )
        told = "; ".join(f"GPU {one} to {other}: {text}" for (one, other), text in sorted(plan.paths.items()))
        heading = "The way between every two cards"
        picture = drawing.svg(identity=identity, title=heading, description=f"{told}.")
    kinds = sorted({text for text in plan.paths.values() if text in _WAYS}, key=list(_WAYS).index)
    legend = ["NV and a number: NVLinks"] if any(text.startswith("NV") for text in plan.paths.values()) else []
    return Panel(heading=heading, note="; ".join([*legend, *(f"{kind}: over {_WAYS[kind]}" for kind in kinds)]), svg=picture)


# --- in words ----------------------------------------------------------------------------------------------------------------


def _heading(plan: Plan) -> str:
    count = sum(row.standing != "absent" for row in plan.rows)
    used = [section for section in plan.sections if section.used and section.sure]
    cards_text = f"{count} card{'s' if count != 1 else ''}"
    if not used:
        return cards_text
    members = sorted(row.key for section in used for row in section.rows if isinstance(row.key, int))
    run = len(members) > 2 and members[-1] - members[0] == len(members) - 1
    listed = f"{members[0]} to {members[-1]}" if run else ", ".join(map(str, members))
    return f"{cards_text}, the server on GPU{'s' if len(members) > 1 else ''} {listed}"


def note(run: Any) -> str:
    """How the drawing is read, as far as this one needs it; "" where it cannot be drawn."""
    try:
        plan = cards.plan(run)
    except Exception:
        return ""
    if plan is None:
        return ""
    told = ["The second line of a card is its PCIe link."]
    told += ["Thick lines are NVLink."] if plan.fabric or any(each.links for each in plan.joins) else []
    told += ["A dashed line with a cross is a bridge that is down."] if any(each.state == "down" for each in plan.joins) else []
    told += ["Dotted is where a group's traffic crosses PCIe."] if plan.crossings else []
    return " ".join(told)


def _described(plan: Plan) -> str:
    """The drawing for who cannot see it."""
    parts = []
    for section in plan.sections:
        listed = ", ".join(
            f"{row.label} {' '.join(each for each in (row.name, row.pcie, row.why) if each)}".strip() for row in section.rows
        )
        parts.append(f"{section.title or 'cards'}: {listed}")
    names = {row.key: row.label for row in plan.rows}
    parts += [f"NVLink {names[each.one]} to {names[each.other]}: {_told(each)}" for each in plan.joins]
    fabric = [row for row in plan.rows if row.key in plan.fabric]
    parts += [
        f"{row.label} has {_count(row.switched)} to NVSwitches{'' if row.links_up >= row.links else f', {row.links} there'}"
        for row in fabric
    ]
    if plan.fabric_off:
        parts.append(f"the NVSwitches are unusable for peers ({plan.fabric_off})")
    parts += [f"between {names[each.one]} and {names[each.other]} the group goes {_told(each)}" for each in plan.crossings]
    return "; ".join([*parts, *plan.notes]) + "."


def _told(each: Join | Crossing) -> str:
    return f"{each.text}, {each.more}" if each.more else each.text
