"""A fleet as a table for the terminal and as one HTML page."""

from __future__ import annotations

from typing import Any

from pytest_sglang.record import units
from pytest_sglang.report import summary, view
from pytest_sglang.report.terminal import Line
from pytest_sglang.session.merge import Cell, Fleet

_MARKUP: dict[str, dict[str, Any]] = {"fail": {"red": True, "bold": True}, "inconclusive": {"yellow": True}, "pass": {}}


def headline(fleet: Fleet) -> str:
    """``FAIL 1 of 8 nodes``; what is missing, and SIMULATED, at its end."""
    bad = sum(verdict == fleet.verdict for verdict in fleet.verdicts.values())
    count = len(fleet.nodes) if fleet.verdict == "pass" else bad
    tail = f", {len(fleet.missing)} missing" if fleet.missing else ""
    tail += f", {len(fleet.skipped)} unreadable" if fleet.skipped else ""
    suffix = f" ({view.SIMULATED})" if fleet.simulated else ""
    return f"{fleet.verdict.upper()} {count} of {len(fleet.nodes)} nodes{tail}{suffix}"


def cell_text(cell: Cell | None) -> str:
    """Value, or the verdict where there is none; ``!`` where it fails, ``*`` where it is an outlier."""
    if cell is None:
        return "-"
    text = units.show(cell.value, cell.unit) if cell.value is not None else cell.verdict
    return f"{text}{'!' if cell.verdict == 'fail' and cell.value is not None else ''}{'*' if cell.outlier else ''}"


def terminal(fleet: Fleet, width: int = 80) -> list[Line]:
    """A block a node, the ones that need a person first; nodes that simply pass in one line."""
    order = ("fail", "inconclusive", "pass")
    lines: list[Line] = []
    for node in sorted(fleet.nodes, key=lambda each: (order.index(fleet.verdicts[each]), each)):
        row = fleet.cells[node]
        lines.append((f"{node:<24} {fleet.verdicts[node].upper()}"[:width], _MARKUP[fleet.verdicts[node]]))
        for promise in fleet.promises:
            cell = row.get(promise)
            if cell is not None and (cell.verdict != "pass" or cell.outlier):
                share = f", {cell.deviation * 100:+.1f} % off the median" if cell.deviation is not None else ""
                lines.append((f"    {promise}: {cell_text(cell)} {cell.verdict}{share}"[:width], _MARKUP[cell.verdict]))
    lines += [(f"{node:<24} MISSING: no run of it", {"yellow": True}) for node in fleet.missing]
    lines += [(f"unreadable: {each.path}: {each.reason}"[:width], {"yellow": True}) for each in fleet.skipped]
    return lines


def page(fleet: Fleet) -> str:
    """A complete HTML document: self-contained, no script."""
    from markupsafe import Markup

    template = summary._templates().get_template("fleet.html.jinja")
    rows = [
        (
            node,
            fleet.verdicts[node],
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
