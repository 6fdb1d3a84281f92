"""The table of promises for pytest's terminal writer: what was not checked first, then what needs a person, 80 columns."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Finding
from pytest_sglang.report import alike, cells, state, view

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
"""Cells of a column: "22 min 04 s" and ">= 42.5 tok/s" fit."""
SHARED = 5
"""So many equal numbers in two checks of a power level are of one load."""
SILENT = -2
"""``-qq``: the verdict alone, no table."""


def promise_table(run: Run, width: int, colours: bool, verbosity: int = 0) -> list[Line]:
    """Lines with their markup (empty without ``colours``): not checked, table, causes, warnings.

    ``verbosity`` is pytest's: with ``-q`` checks that simply pass are counted only, with ``-v`` each says what else it measured.
    """
    if verbosity <= SILENT:
        return []
    width = max(min(width, WIDEST), 40)
    lines = [
        _heading(run, width),
        *_not_checked(run, width),
        *_table(run, width, verbosity),
        *_since(run, width),
        *_curve(run, width),
        *(_not_promised(run, width) if verbosity >= 0 else ()),
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
    ruler = width - cells.width(text)
    return f"{'=' * (ruler // 2)}{text}{'=' * (ruler - ruler // 2)}" if ruler > 0 else cells.cut(text.strip(), width), {
        "bold": True
    }


def _not_checked(run: Run, width: int) -> list[Line]:
    """A line a reason; what was left out for one and the same reason stands together."""
    if not run.not_checked:
        return []
    reasons: dict[str, list[str]] = {}
    for each in run.not_checked:
        reasons.setdefault(each.reason, []).append(each.id)
    lines: list[Line] = [("not checked:", {"yellow": True, "bold": True})]
    for reason, ids in reasons.items():
        told = f"{ids[0]}: {reason}" if len(ids) == 1 else f"{reason}: {', '.join(ids)}"
        lines += [(text, {"yellow": True}) for text in cells.wrapped(told, width, "  ", "      ")]
    return [*lines, ("", {})]


def _table(run: Run, width: int, verbosity: int) -> list[Line]:
    """The four columns; ids give way first where the terminal is narrow, since verdict and numbers are what is read."""
    every = view.rows(run)
    if not every:
        return [("no check was made", {"yellow": True})]
    rows = every if verbosity >= 0 else [row for row in every if row.standing != "pass"]
    if not rows:
        return [(f"{len(every)} pass", {"green": True})]
    texts = [(row.label, cells.tail(row.measured, MOST), cells.tail(row.limit, MOST), row.word) for row in rows]
    others = [max(len(_HEAD[column]), *(cells.width(each[column]) for each in texts)) for column in (1, 2, 3)]
    room = width - sum(others) - 6
    wanted = max(len(_HEAD[0]), *(cells.width(each[0]) for each in texts))
    first = max(min(wanted, room), 12)
    lines: list[Line] = [(_columns(_HEAD, first, others), {"bold": True})]
    told_by: dict[tuple[str, str, str], str] = {}
    for row, each in zip(rows, texts, strict=True):
        lines.append((_columns((cells.cut(each[0], first), *each[1:]), first, others), MARKUP[row.standing]))
        if row.cause:
            lines += [(text, {}) for text in cells.wrapped(row.cause, width, "    ", "    ")]
        if row.note:
            lines += [(text, {}) for text in cells.wrapped(row.note, width, "    ", "    ")]
        if verbosity > 0:
            lines += [(text, {}) for told in _more(row, told_by) for text in cells.wrapped(told, width, "    ", "      ")]
    if len(rows) < len(every):
        lines.append((f"{len(every) - len(rows)} pass", {"green": True}))
    return lines


def _more(row: view.Row, told_by: dict[tuple[str, str, str], str]) -> list[str]:
    """What ``-v`` adds: the promise, and every other number that was measured.

    Numbers of one load, which several checks judge, are told once. ``told_by``: who told a number of a power level first; is added to.
    """
    level = row.label.removeprefix(row.id)
    keys = [(level, name, value) for name, value in row.numbers]
    tellers = Counter(told_by[key] for key in keys if level and key in told_by)
    whose, count = tellers.most_common(1)[0] if tellers else ("", 0)
    again = count >= SHARED
    numbers = [f"{name} {value}" for key in keys for _, name, value in [key] if not (again and told_by.get(key) == whose)]
    for key in keys:
        told_by.setdefault(key, row.id)
    if again:
        return [row.promise, ", ".join([*numbers, f"{'the rest ' if numbers else ''}as {whose}"])]
    return [row.promise, *([", ".join(numbers)] if len(numbers) > 1 else [])]


def _columns(texts: tuple[str, ...], first: int, others: list[int]) -> str:
    numbers = f"{cells.left(texts[0], first)}  {cells.right(texts[1], others[0])}  {cells.right(texts[2], others[1])}"
    return f"{numbers}  {texts[3]}".rstrip()


def _curve(run: Run, width: int) -> list[Line]:
    """The power curve of a sweep."""
    from pytest_sglang.report import curve

    lines: list[Line] = []
    for position, text in enumerate(curve.lines(run)):
        indent = text[: len(text) - len(text.lstrip())]
        folded = [text] if cells.width(text) <= width else cells.wrapped(text.strip(), width, indent, f"{indent}  ")
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
    return [(text, {}) for text in cells.wrapped(f"not promised by the rig file: {', '.join(run.not_promised)}", width, "", "    ")]


def loose_failures(run: Run) -> list[Finding]:
    """Failures that belong to no check; a failed check has told its own already."""
    made = {check.id for check in run.checks}
    return [each for each in view.all_findings(run) if each.severity == "fail" and each.check_id not in made]


def _warnings(run: Run, width: int) -> list[Line]:
    """Failures that belong to no check, and warnings."""
    lines: list[Line] = []
    for finding in alike.told([*loose_failures(run), *(each for each in view.all_findings(run) if each.severity == "warn")]):
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        markup = {"red": True} if finding.severity == "fail" else {"yellow": True}
        word = "failure" if finding.severity == "fail" else "warning"
        lines += [(text, markup) for text in cells.wrapped(f"{word}: {finding.text}{remedy}", width, "", "    ")]
        for subject, mend in finding.members:
            both = f"{subject} ({mend})" if mend else subject
            lines += [(text, markup) for text in cells.wrapped(both, width, "    ", "        ")]
    return lines
