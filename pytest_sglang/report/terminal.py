"""The table of promises for pytest's terminal writer: what was not checked first, then what needs a person, 80 columns."""

from __future__ import annotations

import textwrap
from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.report import state, view

Line = tuple[str, dict[str, Any]]
"""A line and its markup, as ``TerminalWriter.line(text, **markup)`` takes them."""

WIDEST = 110
"""Wider than this a table is harder to read, not easier."""
MARKUP: dict[view.Standing, dict[str, Any]] = {
    "fail": {"red": True, "bold": True},
    "inconclusive": {"yellow": True, "bold": True},
    "expected": {"yellow": True},
    "unexpected": {"yellow": True},
    "marginal": {"yellow": True},
    "pass": {"green": True},
}
_HEAD = ("promise", "measured", "limit", "verdict")


MOST = 18
"""Characters of a cell: "22 min 04 s" and ">= 42.5 tok/s" fit."""


def promise_table(run: Run, width: int, colours: bool) -> list[Line]:
    """Lines with their markup (empty without ``colours``): not checked, table, causes, warnings."""
    width = max(min(width, WIDEST), 40)
    lines = [
        _heading(run, width),
        *_not_checked(run, width),
        *_table(run, width),
        *_since(run, width),
        *_curve(run, width),
        *_not_promised(run, width),
        *_warnings(run, width),
    ]
    return lines if colours else [(text, {}) for text, _ in lines]


def last_line(run: Run) -> str:
    """The verdict: ``PASS 7 of 9, 2 not checked``, ``FAIL 2 of 9``, ``INCONCLUSIVE ...``; SIMULATED at its end where it is."""
    return view.headline(run)


def as_left_line(run: Run) -> str:
    """``rig as left: limits 250 W x 6, sglang.service active (pid N), caches in place``, as it was read back."""
    return state.as_left_line(run)


def _heading(run: Run, width: int) -> Line:
    text = f" promises: {view.title(run).replace(' · ', ', ')} "
    return text.center(width, "=") if len(text) < width else text.strip(), {"bold": True}


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first.rstrip()]


def _not_checked(run: Run, width: int) -> list[Line]:
    if not run.not_checked:
        return []
    lines: list[Line] = [("not checked:", {"yellow": True, "bold": True})]
    for each in run.not_checked:
        lines += [(text, {"yellow": True}) for text in _wrapped(f"{each.id}: {each.reason}", width, "  ", "      ")]
    return [*lines, ("", {})]


def _table(run: Run, width: int) -> list[Line]:
    """The four columns; ids give way first where the terminal is narrow, since verdict and numbers are what is read."""
    rows = view.rows(run)
    if not rows:
        return [("no check was made", {"yellow": True})]
    cells = [(row.label, _tail(row.measured), _tail(row.limit), row.word) for row in rows]
    others = [max(len(_HEAD[column]), *(len(each[column]) for each in cells)) for column in (1, 2, 3)]
    room = width - sum(others) - 6
    wanted = max(len(_HEAD[0]), *(len(each[0]) for each in cells))
    first = max(min(wanted, room), 12)
    lines: list[Line] = [(_columns(_HEAD, first, others), {"bold": True})]
    for row, each in zip(rows, cells, strict=True):
        markup = MARKUP[row.standing]
        lines.append((_columns((_fit(each[0], first), *each[1:]), first, others), markup))
        if row.cause:
            lines += [(text, {}) for text in _wrapped(row.cause, width, "    ", "    ")]
    return lines


def _tail(text: str) -> str:
    """A long name by its end, where model names differ; numbers are never that long."""
    return text if len(text) <= MOST else f"…{text[1 - MOST :]}"


def _columns(cells: tuple[str, ...], first: int, others: list[int]) -> str:
    numbers = f"{cells[0]:<{first}}  {cells[1]:>{others[0]}}  {cells[2]:>{others[1]}}"
    return f"{numbers}  {cells[3]}".rstrip()


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _curve(run: Run, width: int) -> list[Line]:
    """The power curve of a sweep."""
    from pytest_sglang.report import curve

    lines: list[Line] = []
    for position, text in enumerate(curve.lines(run)):
        indent = text[: len(text) - len(text.lstrip())]
        folded = [text] if len(text) <= width else _wrapped(text.strip(), width, indent, f"{indent}  ")
        lines += [(each, {"bold": True} if position == 0 else {}) for each in folded]
    return [("", {}), *lines] if lines else []


def _since(run: Run, width: int) -> list[Line]:
    """What has changed since the last pass, where a check fails."""
    from pytest_sglang.report import since

    if not any(check.verdict == "fail" and not check.expected_failure for check in run.checks):
        return []
    return [(text, {"bold": True}) for text in since.lines(run, width)]


def _not_promised(run: Run, width: int) -> list[Line]:
    if not run.not_promised:
        return []
    return [(text, {}) for text in _wrapped(f"not promised by the rig file: {', '.join(run.not_promised)}", width, "", "    ")]


def _warnings(run: Run, width: int) -> list[Line]:
    """Warnings, and failures that belong to no check; a failed check has told its own already."""
    made = {check.id for check in run.checks}
    shown = [
        each
        for each in view.all_findings(run)
        if each.severity == "warn" or (each.severity == "fail" and each.check_id not in made)
    ]
    lines: list[Line] = []
    for finding in shown:
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        markup = {"red": True} if finding.severity == "fail" else {"yellow": True}
        word = "failure" if finding.severity == "fail" else "warning"
        lines += [(text, markup) for text in _wrapped(f"{word}: {view.finding_text(finding)}{remedy}", width, "", "    ")]
    return lines
