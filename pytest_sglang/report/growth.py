"""What a start added to the compile caches: a bar for each cache, what it held before and what came to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_sglang.record.values import Value
from pytest_sglang.report import svg
from pytest_sglang.report.svg import Panel

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 380.0, 40.0, 104.0, 76.0, 4.0, 4.0
BAR = 11.0
NAMES = {"inductor_triton": "inductor/triton", "fxgraph": "FX graphs", "aotautograd": "AOTAutograd", "tvm_ffi": "tvm-ffi"}
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Cache(Value, frozen=True, kw_only=True):
    """One cache of a start; ``before`` bytes None where the record did not keep it, ``unreadable`` the reason."""

    name: str
    before: int | None
    added: int
    files: int
    told: str
    unreadable: str = ""


def panel(identity: str, item: dict[str, Any]) -> Panel:
    """The panel of one item of ``run.startups``. Raises DrawingError without matplotlib, KeyError and kin for a foreign record."""
    start = item["startup"]
    heading, diff = str(item.get("label") or "start"), start.get("cache_diff")
    if diff is None:
        return Panel(heading=heading, missing="The caches were not looked at around this start.")
    caches, note = _caches(diff), _note(start, diff)
    if not caches:
        nothing = "nothing can be told" if diff.get("unreadable") else "no cache was found where one was looked for"
        return Panel(heading=heading, note=note, missing=f"{nothing[0].upper()}{nothing[1:]}.")
    whole = max([*((each.before or 0) + each.added for each in caches), 1])
    height = TOP + BOTTOM + ROW * len(caches)
    with svg.canvas(WIDTH, height) as drawing:
        drawing.margins(0, 0, 0, 0)
        axes = drawing.axes
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        for place, each in enumerate(caches):
            _cache(axes, each, TOP + ROW * place, (WIDTH - LEFT - RIGHT) / whole)
        listed = "; ".join(_sentence(each) for each in caches)
        picture = drawing.svg(identity=identity, title=f"Compile caches: {heading}", description=f"{note}. {listed}.")
    return Panel(heading=heading, note=note, svg=picture)


def sizes(identity: str, item: dict[str, Any]) -> Panel:
    """Bytes in all caches after each start of a kind (``label``), over runs: ``points`` of (moment, bytes), the last is this run's."""
    kind, points = item["label"], item["points"]
    width, height, left, right = WIDTH, 92.0, 76.0, 76.0
    values = [value for _, value in points]
    heading = f"{kind} starts of {len(points)} runs"
    note = f"bytes in all caches after the start, {_between(points[0][0], points[-1][0])}"
    with svg.canvas(width, height) as drawing:
        drawing.margins(left, right, 14, 16)
        axes = drawing.axes
        low, high = min(values), max(values)
        room = max(high - low, 0.02 * high, 1) * 0.15
        axes.set(xlim=(-0.3, len(points) - 0.7), ylim=(min(low, high - 4 * room) - room, high + room))
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.plot(range(len(points)), values, color=svg.ACCENT, marker="o", markersize=4, clip_on=False)
        axes.plot([len(points) - 1], [values[-1]], color=svg.STRONG, marker="o", markersize=6, clip_on=False)
        away = 0.3 + (len(points) - 0.4) * 6 / (width - left - right)
        axes.text(-away, values[0], amount(values[0]), ha="right", va="center", color=svg.MUTED)
        axes.text(len(points) - 1 + away, values[-1], amount(values[-1]), va="center", color=svg.INK)
        told = ", ".join(f"{moment[:10]} {amount(value)}" for moment, value in points)
        picture = drawing.svg(identity=identity, title=f"Size of the compile caches, {heading}", description=f"{told}.")
    return Panel(heading=heading, note=note, svg=picture)


def _between(first: str, last: str) -> str:
    """Days, or times where it is one day: "2026-11-27, 20:02 to 21:40 UTC"."""
    if first[:10] != last[:10]:
        return f"{first[:10]} to {last[:10]}"
    return f"{first[:10]}, {first[11:16]} to {last[11:16]} UTC"


def amount(size: float) -> str:
    """Bytes for a person: "201 kB", "95.1 MB"; decimal, as disks are sold."""
    for factor, unit in _UNITS:
        if size >= factor:
            value = size / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{size:.0f} B"


def _caches(diff: Mapping[str, Any]) -> list[Cache]:
    """Caches that held or gained something, or should have and could not be read; the largest first."""
    before = {str(each["path"]): each for each in diff.get("before") or ()}
    gained = {str(each["path"]): each for each in diff.get("caches") or ()}
    unreadable = [str(each) for each in diff.get("unreadable") or ()]
    found = []
    for path in dict.fromkeys((*before, *gained)):
        had, got = before.get(path), gained.get(path)
        why = next((each for each in unreadable if _is_about(each, path, [*before, *gained])), "")
        held = None if had is None else int(had["bytes"])
        if not why and not held and got is None:
            continue
        kind = str((had or got or {}).get("cache"))
        found.append(
            Cache(
                name=NAMES.get(kind, kind.replace("_", " ")),
                # a cold start's caches are set aside: what gained something without a size before held nothing
                before=held if held is not None else 0 if before or not diff.get("before_entries") else None,
                added=int(got["bytes"]) if got is not None else 0,
                files=int(got["files"]) if got is not None else 0,
                told=_gained(got) if got is not None else "nothing new",
                unreadable=why.partition(": ")[2],
            )
        )
    return sorted(found, key=lambda each: (-(each.before or 0) - each.added, each.name))


def _is_about(sentence: str, path: str, paths: list[str]) -> bool:
    """Whether it is about this cache, or something in it that is no cache of its own."""
    about = [each for each in paths if f" {each}:" in sentence or f" {each}/" in sentence]
    return max(about, key=len, default=None) == path


def _gained(got: Mapping[str, Any]) -> str:
    names, variants = got.get("new_kernels") or {}, got.get("new_variants") or {}
    entries = sum(names.values())
    parts = [
        _count(len(names), "new kernel name") + (f" in {entries} entries" if entries > len(names) else ""),
        f"{_count(sum(variants.values()), 'new variant')} of {_count(len(variants), 'kernel')}" if variants else "",
        _count(got.get("new_graphs") or 0, "graph"),
        _count(got.get("new_autotune") or 0, "tuning result"),
    ]
    told = ", ".join(each for each in parts if each)
    return told or (_count(got["files"], "file") if got["files"] else "rewritten")


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}" if number else ""


def _note(start: Mapping[str, Any], diff: Mapping[str, Any]) -> str:
    kind = str(start.get("kind", "unknown"))
    told = [f"{kind} start" if kind != "unknown" else "start of unknown kind"]
    if diff.get("unreadable"):
        told.append(f"not readable: {'; '.join(map(str, diff['unreadable']))}")
    gained = diff.get("caches") or ()
    entries = sum(
        sum((each.get("new_kernels") or {}).values())
        + sum((each.get("new_variants") or {}).values())
        + (each.get("new_graphs") or 0)
        for each in gained
    )
    if not gained:
        return ", ".join([*told, "nothing new" if not diff.get("unreadable") else "nothing new where it could be read"])
    had = diff.get("before_entries") or 0
    told.append(f"{had} → {had + entries} entries, +{amount(diff.get('bytes') or 0)}")
    told.append(_count(len(diff.get("new_kernels") or ()), "new kernel name") or "no new kernel name")
    if had and not diff.get("before"):
        told.append("sizes before are not in this record")
    late = start.get("after_ready") or {}
    after = len(late.get("new_kernels") or ()) if isinstance(late, dict) else 0
    return ", ".join([*told, *([f"{after} of them after it was ready"] if after else [])])


def _cache(axes: Any, each: Cache, top: float, scale: float) -> None:
    from matplotlib.patches import Rectangle

    middle = top + 11
    axes.text(LEFT - 8, middle, svg.clean(each.name), ha="right", va="center", color=svg.INK)
    if each.unreadable:
        axes.add_patch(
            Rectangle((LEFT, middle - BAR / 2), 60, BAR, facecolor="none", edgecolor=svg.MUTED, hatch="////", linewidth=0.8)
        )
        axes.text(LEFT + 68, middle, "not readable", va="center", color=svg.WARN)
    else:
        before = (each.before or 0) * scale
        if before:
            axes.add_patch(Rectangle((LEFT, middle - BAR / 2), max(before, 1.5), BAR, facecolor=svg.ACCENT, linewidth=0))
        if each.added:
            # what is there has to be seen beside a hundred times as much
            begin = LEFT + max(before, 1.5 if before else 0)
            axes.add_patch(
                Rectangle((begin, middle - BAR / 2), max(each.added * scale, 2.5), BAR, facecolor=svg.STRONG, linewidth=0)
            )
        gained = f"+{amount(each.added)}" if each.added else "+0"
        axes.text(WIDTH - 2, middle, gained if each.told != "nothing new" else amount(each.before or 0), ha="right", va="center")
    axes.text(LEFT, top + 27, svg.clean(_cut(each.unreadable or each.told, 44)), va="center", color=svg.MUTED, size=11)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _sentence(each: Cache) -> str:
    if each.unreadable:
        return f"{each.name} not readable ({each.unreadable})"
    before = "" if each.before is None else f"{amount(each.before)} before, "
    return f"{each.name} {before}{each.told}{f', +{amount(each.added)} in {each.files} files' if each.added else ''}"
