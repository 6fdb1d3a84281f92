"""A fleet as a table for the terminal and as one HTML page."""

from __future__ import annotations

from typing import Any

from pytest_sglang.judge import stats
from pytest_sglang.record import units
from pytest_sglang.report import cells, summary, view
from pytest_sglang.report.terminal import Line
from pytest_sglang.session.merge import Cell, Fleet

_MARKUP: dict[str, dict[str, Any]] = {"fail": {"red": True, "bold": True}, "inconclusive": {"yellow": True}, "pass": {}}


def headline(fleet: Fleet) -> str:
    """``FAIL 1 of 8 nodes``; what is missing, and SIMULATED, at its end."""
    bad = sum(verdict == fleet.verdict for verdict in fleet.verdicts.values())
    count = len(fleet.nodes) if fleet.verdict == "pass" else bad
    tail = f", {len(fleet.missing)} missing" if fleet.missing else ""
    tail += f", {len(fleet.skipped)} unreadable" if fleet.skipped else ""
    tail += f", {len(fleet.left_out)} with checks left out" if fleet.left_out else ""
    suffix = f" ({view.SIMULATED})" if fleet.simulated else ""
    plural = "" if len(fleet.nodes) == 1 else "s"
    return f"{fleet.verdict.upper()} {count} of {len(fleet.nodes)} node{plural}{tail}{suffix}"


def cell_text(cell: Cell | None) -> str:
    """Value, or the verdict where there is none; ``!`` where it fails, ``*`` where it is an outlier."""
    if cell is None:
        return "-"
    text = units.show(cell.value, cell.unit) if cell.value is not None else cell.verdict
    return f"{text}{'!' if cell.verdict == 'fail' and cell.value is not None else ''}{'*' if cell.outlier else ''}"


def terminal(fleet: Fleet, width: int = 80) -> list[Line]:
    """What needs a person first, node by node; then the nodes that simply pass together, and the promises over all nodes."""
    lines: list[Line] = []
    plain: dict[str, list[str]] = {}
    for node in sorted(fleet.nodes, key=lambda each: (("fail", "inconclusive", "pass").index(fleet.verdicts[each]), each)):
        odd = [(promise, cell) for promise, cell in fleet.cells[node].items() if cell.verdict != "pass" or cell.outlier]
        if fleet.verdicts[node] == "pass" and not odd:
            plain.setdefault(verdict_text(fleet, node), []).append(node)
            continue
        lines.append((cells.cut(f"{cells.left(node, 24)} {verdict_text(fleet, node)}", width), _MARKUP[fleet.verdicts[node]]))
        for promise, cell in odd:
            share = f", {cell.deviation * 100:+.1f} % off the median" if cell.deviation is not None else ""
            markup = {"yellow": True} if cell.outlier and cell.verdict == "pass" else _MARKUP[cell.verdict]
            lines.append((cells.cut(f"    {promise}: {cell_text(cell)} {cell.verdict}{share}", width), markup))
    lines += [(cells.cut(f"{cells.left(node, 24)} MISSING: no run of it", width), {"yellow": True}) for node in fleet.missing]
    lines += [
        (text, {"yellow": True})
        for each in fleet.skipped
        for text in cells.wrapped(f"unreadable: {each.path}: {each.reason}", width, "", "    ")
    ]
    for verdict, nodes in plain.items():
        lines += [(text, {"green": True}) for text in cells.wrapped(f"{verdict}: {', '.join(nodes)}", width, "", "    ")]
    if fleet.unlisted:
        lines += [(text, {}) for text in cells.wrapped(f"not in the list of nodes: {', '.join(fleet.unlisted)}", width, "", "    ")]
    return [*lines, *_promises(fleet, width)]


def verdict_text(fleet: Fleet, node: str) -> str:
    """A node's verdict, with the number of checks that its run left out."""
    count = fleet.left_out.get(node)
    return f"{fleet.verdicts[node].upper()}{f', {count} not checked' if count else ''}"


_HEAD = ("promise", "pass", "median", "lowest", "highest")


def _promises(fleet: Fleet, width: int) -> list[Line]:
    """A line a promise over all nodes: how many keep it, the median, the lowest and the highest with their nodes."""
    if len(fleet.nodes) < 2:
        return []
    rows = [_HEAD, *(_over_nodes(fleet, promise) for promise in fleet.promises)]
    widths = [max(cells.width(row[column]) for row in rows) for column in range(5)]
    first = max(12, min(widths[0], width - sum(widths[1:]) - 8))
    told = []
    for row in rows:
        rest = f"{cells.right(row[1], widths[1])}  {cells.right(row[2], widths[2])}  {cells.left(row[3], widths[3])}  {row[4]}"
        told.append(cells.cut(f"{cells.left(cells.cut(row[0], first), first)}  {rest}".rstrip(), width))
    return [("", {}), *((text, {"bold": True} if place == 0 else {}) for place, text in enumerate(told))]


def _over_nodes(fleet: Fleet, promise: str) -> tuple[str, str, str, str, str]:
    found = {node: row[promise] for node, row in fleet.cells.items() if promise in row}
    passed = f"{sum(cell.verdict == 'pass' for cell in found.values())}/{len(found)}"
    values = sorted((cell.value, node) for node, cell in found.items() if cell.value is not None)
    if not values:
        return promise, passed, "", "", ""
    unit = next(cell.unit for cell in found.values())
    ends = [f"{units.show(value, unit)} {cells.cut(node, 12)}" for value, node in (values[0], values[-1])]
    return promise, passed, units.show(stats.median([value for value, _ in values]), unit), ends[0], ends[1]


def page(fleet: Fleet) -> str:
    """A complete HTML document: self-contained, no script."""
    from markupsafe import Markup

    template = summary._templates().get_template("fleet.html.jinja")
    rows = [
        (
            node,
            fleet.verdicts[node],
            verdict_text(fleet, node),
            [(cell_text(fleet.cells[node].get(each)), _standing(fleet.cells[node].get(each))) for each in fleet.promises],
        )
        for node in fleet.nodes
    ]
    style = Markup(f"<style>{summary.stylesheet()}</style>")
    return str(template.render(style=style, fleet=fleet, headline=headline(fleet), rows=rows))


def _standing(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return "marginal" if cell.outlier and cell.verdict == "pass" else cell.verdict
