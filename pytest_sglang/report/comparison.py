"""A comparison as text for the terminal and as one HTML page: what changed, what it did, how sure that is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from pytest_sglang.judge import keys
from pytest_sglang.judge.keys import Difference
from pytest_sglang.judge.regression import FIRST_BOOTS, Change
from pytest_sglang.record import units
from pytest_sglang.report import change_chart, summary, view
from pytest_sglang.report.svg import Panel
from pytest_sglang.report.terminal import Line
from pytest_sglang.session.compared_answers import AnswersComparison
from pytest_sglang.session.comparison import Comparison, Quantity

WORDS = {"better": "better", "worse": "WORSE", "same": "not worse", "undecided": "UNDECIDED"}
_MARKUP: dict[str, dict[str, Any]] = {
    "worse": {"red": True, "bold": True},
    "undecided": {"yellow": True, "bold": True},
    "better": {"green": True},
    "same": {"green": True},
}
FEWEST = 4
"""Starts on either side with which the interval of a phase is shown."""
VALUES = "Values are geometric means over rounds and boots."
_HEAD = ("quantity", "before", "after", "change", "verdict")


def change_text(quantity: Quantity) -> str:
    """The change of the number itself, with its sign: "-4.1 %" of a time is a shorter one."""
    if not quantity.before or quantity.after is None:
        return ""
    return _signed(quantity.after / quantity.before - 1)


def _signed(share: float) -> str:
    """ "+4.1 %"; no decimals from 100 % on, as ``regression.pct``."""
    text = f"{share * 100:+.{1 if abs(share) < 1 else 0}f} %"
    return "0.0 %" if text in ("-0.0 %", "+0.0 %") else text


def interval(quantity: Quantity) -> tuple[float, float] | None:
    """Both ends as shares of the number itself. None where there is none, or where so few starts tell a part of them that it is noise."""
    change = quantity.change
    if change is None or change.low is None or change.high is None or (not quantity.judged and min(quantity.boots) < FEWEST):
        return None
    return (change.low, change.high) if quantity.higher_is_better else (-change.high, -change.low)


def interval_text(quantity: Quantity) -> str:
    """ "-5.9 % to -4.0 %" of the number itself, as ``change_text``; empty where there is none."""
    ends = interval(quantity)
    return "" if ends is None else f"{_signed(ends[0])} to {_signed(ends[1])}"


def outcome(quantity: Quantity) -> str:
    """Word of the verdict; "shown" where nothing is judged."""
    return WORDS[quantity.change.outcome] if quantity.judged and quantity.change is not None else "shown"


def value_text(value: float | None, unit: str) -> str:
    """A value with its unit."""
    return "not read" if value is None else units.show(value, unit)


def difference_text(each: Difference) -> str:
    """ "engine: 0.5.11 -> 0.5.12"."""
    return f"{each.name}: {keys.shown(each.before)} -> {keys.shown(each.after)}"


def ordered(found: Comparison) -> list[Quantity]:
    """What is judged first, the worst of it first; then what is only shown."""
    order = ("worse", "undecided", "better", "same")
    judged = [each for each in found.quantities if each.judged and each.change is not None]
    shown = [each for each in found.quantities if each not in judged]
    return [*sorted(judged, key=lambda each: order.index(each.change.outcome if each.change else "same")), *shown]


def headline(found: Comparison) -> str:
    """``FAIL: worse: decode at 250 W``, ``PASS``, ``INCONCLUSIVE: decode at 250 W``; SIMULATED at its end."""
    suffix = f" ({view.SIMULATED})" if found.simulated else ""
    if found.refused:
        return f"INCONCLUSIVE: not comparable{suffix}"
    if found.verdict == "pass":
        return f"PASS{suffix}"
    kind = "worse" if found.verdict == "fail" else "undecided"
    names = [each.name for each in found.quantities if each.judged and each.change and each.change.outcome == kind]
    told = [f"{'worse: ' if kind == 'worse' else ''}{_first(names)}"] if names else []
    if found.answers is not None and found.answers.verdict == found.verdict:
        told.append("answers changed" if found.verdict == "fail" else f"answers: {found.answers.outcome}")
    if found.broken:
        told.append(f"promise broken: {_first([each.split(': ')[0] for each in found.broken])}")
    if found.lost and found.verdict == "inconclusive":
        told.append(f"missing: {_first([each.split(': ')[0] for each in found.lost])}")
    return f"{found.verdict.upper()}: {'; '.join(told) or 'nothing was measured in both that can be compared'}{suffix}"


def _first(names: Sequence[str], most: int = 4) -> str:
    """The first of at least one; a fifth is named rather than counted."""
    told = list(names) if len(names) <= most + 1 else [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def advice(found: Comparison) -> str:
    """What would decide what is undecided, all of it in one line; empty where nothing is."""
    left = [
        (each.name, each.change)
        for each in found.quantities
        if each.judged and each.change and each.change.verdict == "inconclusive"
    ]
    every = [each.name for each in found.quantities if each.judged]
    asked: dict[str, list[tuple[str, Change]]] = {}
    for name, change in left:
        asked.setdefault(change.asks, []).append((_short(name, every), change))
    names = {kind: _first([name for name, _ in each]) for kind, each in asked.items()}
    told = []
    if "more" in asked:
        boots = max(change.more_boots or 1 for _, change in asked["more"])
        rounds = max(change.more_rounds or 1 for _, change in asked["more"])
        what = f"{rounds} rounds" if boots == 1 else f"{boots} boots" + (f" of {rounds} rounds" if rounds > 1 else "")
        told.append(f"{what} on either side would decide {names['more']}")
    if "boots" in asked:
        told.append(f"{FIRST_BOOTS} boots on either side would tell how far boots differ, which {names['boots']} waits for")
    if "settle" in asked:
        told.append(f"let {names['settle']} settle (soak in the rig file)")
    if "hopeless" in asked:
        told.append(f"no sensible number of boots would decide {names['hopeless']}")
    return "; ".join(told)


def _short(name: str, every: Sequence[str]) -> str:
    """Without the power level where all have the same."""
    levels = {level for each in every for level in re.findall(r" at \S+ W", each)}
    return (name.replace(levels.pop(), "") if len(levels) == 1 else name).removesuffix(", ready")


def terminal(found: Comparison, width: int = 80) -> list[Line]:
    """Lines with their markup for pytest's terminal writer."""
    width = max(min(width, 110), 40)
    lines: list[Line] = [(f"before  {found.title_before} ({_boots(found.before)})", {"bold": True})]
    lines.append((f"after   {found.title_after} ({_boots(found.after)})", {"bold": True}))
    if found.refused:
        lines.append(("", {}))
        lines.append(("these runs must not be compared, their conditions differ:", {"yellow": True, "bold": True}))
        return [*lines, *_list(found.refused, width, {"yellow": True})]
    lines += [("", {}), (f"what changed{f' (under test: {found.under_test})' if found.under_test else ''}:", {"bold": True})]
    changed = [difference_text(each) for each in (*found.changed, *found.seen)]
    lines += _list(_few(changed), width) if changed else [("  nothing that is recorded", {})]
    lines += [(text, {"yellow": True}) for note in found.notes for text in _wrap(f"note: {note}", width)]
    told = [
        *((f"promise broken: {each}", "red") for each in found.broken),
        *((f"missing: {each}", "yellow") for each in found.lost),
    ]
    lines += [(text, {colour: True, "bold": True}) for each, colour in told for text in _wrap(each, width)]
    lines += [("", {}), *_table(found, width)]
    return lines


def last(found: Comparison, width: int = 80) -> list[Line]:
    """The headline, and what would decide the rest, wrapped."""
    colour, width = {"pass": "green", "fail": "red", "inconclusive": "yellow"}[found.verdict], max(min(width, 110), 40)
    lines: list[Line] = [(text, {"bold": True, colour: True}) for text in _wrap(headline(found), width)]
    rest = advice(found)
    return [*lines, *((text, {}) for text in (_wrap(rest, width) if rest else ()))]


def _few(lines: Sequence[str], most: int = 14) -> list[str]:
    return (
        list(lines)
        if len(lines) <= most
        else [*lines[: most - 1], f"... and {len(lines) - most + 1} more (see the page, or --json)"]
    )


def _boots(ids: tuple[str, ...]) -> str:
    return f"{len(ids)} boot{'s' if len(ids) > 1 else ''}"


def _list(lines: Sequence[str], width: int, markup: dict[str, Any] | None = None) -> list[Line]:
    return [(text, markup or {}) for line in lines for text in _wrap(line, width, "  ", "      ")]


def _wrap(text: str, width: int, first: str = "", rest: str = "    ") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first]


def _cells(each: Quantity) -> tuple[str, str, str, str, str]:
    return each.name, value_text(each.before, each.unit), value_text(each.after, each.unit), change_text(each), outcome(each)


def _answers_cells(answers: AnswersComparison) -> tuple[str, str, str, str, str]:
    words = {"pass": "no change", "fail": "CHANGED", "inconclusive": "UNDECIDED", None: "shown"}
    if answers.outcome == "not recorded":
        return "answers", "", "", "", words[answers.verdict]
    return "answers", f"{answers.tokens} tokens", f"{answers.equal} equal", "", words[answers.verdict]


def _answers_markup(answers: AnswersComparison) -> dict[str, Any]:
    return _MARKUP[{"fail": "worse", "inconclusive": "undecided"}.get(answers.verdict or "", "same")] if answers.verdict else {}


def _table(found: Comparison, width: int) -> list[Line]:
    """What is judged with its reasons, then what is only shown, by the reason for that."""
    every = ordered(found)
    if not every:
        return [("nothing was measured in both that can be compared", {"yellow": True})]
    answers = [] if found.answers is None else [_answers_cells(found.answers)]
    widths = [max(len(row[column]) for row in (_HEAD, *map(_cells, every), *answers)) for column in range(5)]
    widths[0] = min(widths[0], max(16, width - sum(widths[1:]) - 8))
    told: list[Line] = []
    for each in every:
        if each.judged and each.change is not None:
            told += [(text, _MARKUP[each.change.outcome]) for text in _row(_cells(each), widths)]
            why = each.change.why + (f" ({interval_text(each)})" if interval_text(each) else "")
            told += [(text, {}) for line in (why, each.note) if line for text in _wrap(line, width, "    ", "    ")]
    of_answers: list[Line] = []
    if found.answers is not None:
        of_answers = [(text, _answers_markup(found.answers)) for text in _row(_answers_cells(found.answers), widths)]
        of_answers += [(text, {}) for text in _wrap(found.answers.text, width, "    ", "    ")]
    failing = found.answers is not None and found.answers.verdict == "fail"
    head: list[Line] = [(_row(_HEAD, widths)[0], {"bold": True})]
    every_line = [
        *head,
        *(of_answers if failing else ()),
        *told,
        *(() if failing else of_answers),
        *_shown_lines(every, widths, width),
    ]
    return [*every_line, ("", {}), (VALUES, {})]


def _shown_lines(every: Sequence[Quantity], widths: Sequence[int], width: int) -> list[Line]:
    """What does not count, by the reason for that."""
    lines: list[Line] = []
    shown: dict[str, list[Quantity]] = {}
    for each in every:
        if not each.judged:
            shown.setdefault(_reason(each), []).append(each)
    for note, quantities in shown.items():
        lines += [("", {}), *((text, {}) for text in _wrap(f"shown, {note}:", width, "", "  "))]
        for each in quantities:
            lines += [(text, {}) for text in _row(_cells(each), widths)]
            lines += [(f"    {interval_text(each)}", {})] if interval_text(each) else []
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """One line; two where the name is too long for its column."""
    numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:4], widths[1:4], strict=True))
    name, first = cells[0], []
    if len(name) > widths[0]:
        first, name = [name], ""
    return [*first, f"{name:<{widths[0]}}  {numbers}  {cells[4] if cells[4] != 'shown' else ''}".rstrip()]


# --- the page ----------------------------------------------------------------------------------------------------------------


def page(comparisons: Sequence[Comparison]) -> str:
    """A complete HTML document: self-contained, opens offline, no script."""
    from markupsafe import Markup

    template = summary._templates().get_template("comparison.html.jinja")
    title = " · ".join(dict.fromkeys(f"{each.title_before} against {each.title_after}" for each in comparisons))
    items = [_context(number, each) for number, each in enumerate(comparisons, 1)]
    return str(template.render(title=title, style=Markup(f"<style>{summary.stylesheet()}</style>"), items=items))


def _context(number: int, found: Comparison) -> dict[str, Any]:
    return {
        "found": found,
        "headline": headline(found),
        "advice": advice(found),
        "means": VALUES,
        "verdict": found.verdict,
        "rows": _rows(found),
        "shown": _shown(found),
        "changed": [(each.name, keys.shown(each.before), keys.shown(each.after)) for each in found.changed],
        "seen": [(each.name, keys.shown(each.before), keys.shown(each.after)) for each in found.seen],
        "panel": _panel(f"sg-compare-{number}", found),
    }


def _rows(found: Comparison) -> list[dict[str, str]]:
    """What is judged, failing first."""
    rows, answers = [_page_row(each) for each in ordered(found) if each.judged], _answers_row(found.answers)
    return [*answers, *rows] if found.answers is not None and found.answers.verdict == "fail" else [*rows, *answers]


def _answers_row(answers: AnswersComparison | None) -> list[dict[str, str]]:
    if answers is None:
        return []
    name, before, after, change, word = _answers_cells(answers)
    standing = answers.verdict or "pass"
    row = {"name": name, "before": before, "after": after, "change": change, "interval": "", "word": word}
    return [{**row, "standing": standing, "why": answers.text, "counts": ""}]


def _page_row(each: Quantity) -> dict[str, str]:
    judged = each.judged and each.change is not None
    standing = {"worse": "fail", "undecided": "inconclusive"}.get(each.change.outcome if judged and each.change else "", "pass")
    why = each.change.why if judged and each.change is not None else ""
    return {
        "name": each.name,
        "before": value_text(each.before, each.unit),
        "after": value_text(each.after, each.unit),
        "change": change_text(each),
        "interval": interval_text(each),
        "word": outcome(each),
        "standing": standing,
        "why": "; ".join(filter(None, (why, each.note if judged else ""))).replace(" -", " −"),
        "counts": _counts(each),
    }


def _shown(found: Comparison) -> list[dict[str, Any]]:
    """What does not count, by the reason for that."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for each in found.quantities:
        if not each.judged:
            title = "Start-up" if " start" in each.name else "Also measured"
            groups.setdefault((title, _reason(each)), []).append(_page_row(each))
    return [
        {"title": title, "reason": reason, "rows": rows, "intervals": any(row["interval"] for row in rows)}
        for (title, reason), rows in groups.items()
    ]


def _reason(each: Quantity) -> str:
    """Why it does not count."""
    return each.note or "parts of a start, which is judged as a whole"


def _counts(each: Quantity) -> str:
    if each.change is None or not all(each.boots):
        return ""
    if each.rounds == each.boots:
        return f"{each.boots[0]} start{_s(each.boots[0])} before, {each.boots[1]} after"
    return f"{each.rounds[0]} rounds in {each.boots[0]} boot{_s(each.boots[0])} before, {each.rounds[1]} in {each.boots[1]} after"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _panel(identity: str, found: Comparison) -> Panel | None:
    """Changes with their intervals; None where nothing has an interval."""
    bars = [bar for each in ordered(found) if each.judged and (bar := _bar(each)) is not None]
    return change_chart.panel(identity, bars) if bars else None


def _bar(each: Quantity) -> change_chart.Bar | None:
    change, ends = each.change, interval(each)
    if change is None or change.change is None or ends is None:
        return None
    told = change_text(each)
    text = told if told == "0.0 %" else f"{told.replace('-', '−')} is {'better' if change.change > 0 else 'worse'}"
    share = change.change if each.higher_is_better else -change.change
    return change_chart.Bar(
        name=each.name, text=text, change=share, low=ends[0], high=ends[1], outcome=change.outcome, why=change.why
    )
