"""A comparison as text for the terminal and as one HTML page: what changed, what it did, how sure that is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from pytest_sglang.judge import keys
from pytest_sglang.judge.keys import Difference
from pytest_sglang.judge.regression import Change
from pytest_sglang.record import units
from pytest_sglang.report import summary, view
from pytest_sglang.report.svg import Panel
from pytest_sglang.report.terminal import Line
from pytest_sglang.session.compared_answers import AnswersComparison
from pytest_sglang.session.comparison import Comparison, Quantity

WORDS = {"better": "better", "worse": "WORSE", "same": "no loss", "undecided": "UNDECIDED"}
_MARKUP: dict[str, dict[str, Any]] = {
    "worse": {"red": True, "bold": True},
    "undecided": {"yellow": True, "bold": True},
    "better": {"green": True},
    "same": {"green": True},
}
_HEAD = ("quantity", "before", "after", "change", "verdict")


def change_text(quantity: Quantity) -> str:
    """The change of the number itself, with its sign: "-4.1 %" of a time is a shorter one."""
    if not quantity.before or quantity.after is None:
        return ""
    share = (quantity.after / quantity.before - 1) * 100
    if quantity.change is not None and quantity.change.change is not None:
        # of the means over boots, as its interval, not of the medians that are shown
        share = quantity.change.change * (100 if quantity.higher_is_better else -100)
    return f"{share:+.{1 if abs(share) < 10 else 0}f} %".replace("-0.0 %", "0.0 %").replace("+0.0 %", "0.0 %")


def interval_text(quantity: Quantity) -> str:
    """ "-5.9 % to -4.0 %" of the number itself, as ``change_text``; empty where there is none."""
    change = quantity.change
    if change is None or change.low is None or change.high is None:
        return ""
    ends = (change.low, change.high) if quantity.higher_is_better else (-change.high, -change.low)
    low, high = (f"{value * 100:+.1f} %".replace("-0.0", "0.0").replace("+0.0", "0.0") for value in ends)
    return f"{low} to {high}"


def outcome(quantity: Quantity) -> str:
    """Word of the verdict; in small letters where it does not count, "shown" where there is none."""
    if quantity.change is None:
        return "shown"
    word = WORDS[quantity.change.outcome]
    return word if quantity.judged else word.lower()


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
    """``FAIL: worse: decode at 250 W``, ``PASS``, ``INCONCLUSIVE: ...``; SIMULATED at its end."""
    suffix = f" ({view.SIMULATED})" if found.simulated else ""
    if found.refused:
        return f"INCONCLUSIVE: not comparable{suffix}"
    if found.verdict == "pass":
        return f"PASS{suffix}"
    kind = "worse" if found.verdict == "fail" else "undecided"
    names = [each.name for each in found.quantities if each.judged and each.change and each.change.outcome == kind]
    told = [f"{kind}: {_first(names)}"] if names else []
    if found.answers is not None and found.answers.verdict == found.verdict:
        told.append("answers changed" if found.verdict == "fail" else f"answers: {found.answers.outcome}")
    if found.broken:
        told.append(f"promise broken: {_first([each.split(': ')[0] for each in found.broken])}")
    if found.lost and found.verdict == "inconclusive":
        told.append(f"missing: {_first([each.split(': ')[0] for each in found.lost])}")
    return f"{found.verdict.upper()}: {'; '.join(told) or 'nothing was measured in both that can be compared'}{suffix}"


def _first(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
    """The headline, wrapped."""
    colour = {"pass": "green", "fail": "red", "inconclusive": "yellow"}[found.verdict]
    return [(text, {"bold": True, colour: True}) for text in _wrap(headline(found), max(min(width, 110), 40))]


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
    return [*head, *(of_answers if failing else ()), *told, *(() if failing else of_answers), *_shown_lines(every, widths, width)]


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
        "why": "; ".join(filter(None, (why, each.note if judged else ""))),
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
    """Changes with their intervals on one axis, positive is better; None where nothing has an interval."""
    told = [
        (each, each.change) for each in ordered(found) if each.judged and each.change is not None and each.change.low is not None
    ]
    if not told:
        return None
    from pytest_sglang.report import svg

    try:
        return _draw(identity, told)
    except svg.DrawingError as error:
        return Panel(heading="Change", missing=f"Not drawn: {error}")


def _draw(identity: str, told: list[tuple[Quantity, Change]]) -> Panel:
    from pytest_sglang.report import svg

    height = 46.0 + 34.0 * len(told)
    colours = {"worse": svg.FAIL, "undecided": svg.WARN, "better": svg.STRONG, "same": svg.STRONG}
    note = "; ".join(f"{each.name}: {change.why}" for each, change in told)
    with svg.canvas(420.0, height) as drawing:
        drawing.margins(14, 14, 10, 36)
        axes = drawing.axes
        for place, (each, change) in enumerate(told):
            low, high, middle = (100 * (value or 0.0) for value in (change.low, change.high, change.change))
            axes.plot([low, high], [place, place], color=colours[change.outcome], linewidth=3, solid_capstyle="butt")
            axes.plot([middle], [place], marker="o", markersize=6, color=colours[change.outcome], linestyle="none")
            axes.text(0.0, place - 0.3, each.name, transform=axes.get_yaxis_transform(), ha="left", va="center", color=svg.INK)
        axes.axvline(0, color=svg.MUTED, linewidth=1)
        axes.set_ylim(len(told) - 0.5, -0.7)
        axes.set_yticks([])
        axes.set_xlabel("change in %, right is better; bars: each end holds with 99 %", labelpad=2)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=svg.RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        picture = drawing.svg(identity=identity, title="Change by quantity", description=note)
    return Panel(heading="Change by quantity", svg=picture)
