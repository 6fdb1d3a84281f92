"""The blocks above pytest-html's table, and our columns in it: all that a reader has to know, on one page, without a script."""

from __future__ import annotations

import html
from datetime import datetime
from pathlib import Path
from typing import Any

from pytest_sglang.record import units
from pytest_sglang.record.run import Check, Run
from pytest_sglang.report import alike, environment, excerpts, notes, since, state, view

BLOCKS: tuple[str, ...] = ("headline", "not_checked", "promises", "since", "charts", "findings", "rig", "logs", "environment")
"""Templates of the page's blocks, in their order: what was not checked stands before what was."""
SHOWN = 100
"""So many plain passes stand open in the table of promises; the rest is folded, so that the page opens at once."""
LISTED = 300
"""With more checks than this, pytest-html's table leaves out those that simply passed: its script needs a millisecond for each."""
_COLUMNS: tuple[tuple[str, str], ...] = (("measured", "Measured"), ("limit", "Limit"), ("margin", "Margin"), ("verdict", "Verdict"))


def title(run: Run) -> str:
    """Title of the page: rig, power level, SIMULATED where it is."""
    return view.title(run)


def summary_html(run: Run, *, heading_level: int = 3, folder: Path | None = None) -> list[str]:
    """The blocks as HTML, style first; everything escaped, nothing loaded from elsewhere, no script.

    ``heading_level``: 3 below pytest-html's own "Summary", 2 on a page of our own. ``folder``: the run's, for the excerpts of logs.
    """
    templates = _templates()
    context = _context(run, heading_level, folder)
    blocks = [templates.get_template(f"{name}.html.jinja").render(context).strip() for name in _order(run)]
    return [f"<style>{stylesheet()}</style>", *(block for block in blocks if block)]


def _order(run: Run) -> tuple[str, ...]:
    """What has changed since the last pass is the first thing to know where something fails."""
    if run.verdict == "pass" or not run.since_pass.get("differences"):
        return BLOCKS
    rest = [name for name in BLOCKS if name != "since"]
    place = rest.index("promises")
    return (*rest[:place], "since", *rest[place:])


def below_heading(run: Run, count: int) -> str:
    """What stands between our blocks and pytest-html's own table, which lists the same checks (``count`` of them) once more."""
    told = "The same checks, and tests of your own, as pytest ran them: open a line to read what it printed."
    passed = sum(view.standing(check) == "pass" for check in run.checks)
    short = count > LISTED and passed > 0
    if short:
        told += f" {passed:,} checks that simply passed are listed in the table of promises only."
    return f'<section class="sg sg-tests{" sg-short" if short else ""}"><h3>Tests</h3><p class="sg-note">{told}</p></section>'


def header_cells() -> list[str]:
    """Our columns' heads for pytest-html's table, to be put behind its "Duration"."""
    return [f'<th class="sg-col" data-column-type="{name}">{text}</th>' for name, text in _COLUMNS]


def row_cells(check: Check | None) -> list[str]:
    """Our columns' cells for a test; empty ones for a test that is no check, so that columns stay aligned."""
    if check is None:
        return [f'<td class="col-{name}"></td>' for name, _ in _COLUMNS]
    row = view.row(check)
    measured = row.measured + (f" ({row.interval})" if row.interval else "")
    texts = {"measured": measured, "limit": pretty(row.limit), "margin": pretty(row.margin), "verdict": row.word}
    return [
        f'<td class="col-{name} sg-cell{f" sg-is-{row.standing}" if name == "verdict" else ""}">{html.escape(texts[name])}</td>'
        for name, _ in _COLUMNS
    ]


def cells_below(check: Check, count: int) -> list[str] | None:
    """``row_cells``; None where pytest-html's table is to leave the check out, which passed as one of ``count``."""
    return None if count > LISTED and view.standing(check) == "pass" else row_cells(check)


def stylesheet() -> str:
    """The style of all blocks, every rule of it tied to our class."""
    return _read("report.css")


def pretty(text: str) -> str:
    """Typographic signs where HTML has them: ≥, ≤ and a true minus."""
    return text.replace(">=", "≥").replace("<=", "≤").replace("-", "−", 1) if text[:1] in "<>-" else text


def when(iso: str | None) -> str:
    """A time stamp of the record for a person: "24 November 2026, 01:53 UTC"."""
    if not iso:
        return ""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def took(run: Run) -> str:
    """How long it lasted; on a simulated rig in rig time, and on the wall as well."""
    if run.duration_s is None:
        return "has not ended" if run.finished is None else ""
    if run.simulated:
        wall = f", {units.duration(run.wall_s)} on the wall" if run.wall_s is not None else ""
        return f"took {units.duration(run.duration_s)} of rig time{wall}"
    return f"took {units.duration(run.duration_s)}"


def _context(run: Run, level: int, folder: Path | None) -> dict[str, Any]:
    from pytest_sglang.report.charts import charts

    rows, logs = view.rows(run), excerpts.read(run, folder)
    bad = [row for row in rows if row.standing in ("fail", "inconclusive")]
    plain = [row for row in rows if row.standing == "pass"]
    folded = plain[SHOWN:] if len(plain) > SHOWN + 20 else []
    return {
        "run": run,
        "level": level,
        "title": title(run),
        "word": view.verdict_word(run),
        "tally": view.tally(run),
        "headline": view.headline(run),
        "rig": view.rig_name(run),
        "power": view.power_text(run),
        "not_checked": _by_reason(run),
        "rows": rows[: len(rows) - len(folded)],
        "folded": folded,
        "interval": notes.interval_name(run),
        "then": {row.label: told for row in bad if (told := since.measured_then(run, row.label)) != row.measured},
        "log_of": {row.label: found for row in bad if (found := excerpts.link_for(row.id, row.cause, logs)) is not None},
        "logs": logs,
        "since": since.of(run, folder),
        "looked_in": since.looked_in(run),
        "charts": charts(run),
        "findings": alike.told(view.all_findings(run)),
        "groups": environment.groups(run.environment),
        "found": state.found_line(run.as_found, "not recorded"),
        "left": state.as_left_line(run).removeprefix("rig as left: ").removesuffix(view.simulated_suffix(run)),
        "same": state.parts(run.as_found) == state.parts(run.as_left) and bool(run.as_left),
        "facts": [each for each in (when(run.started), took(run), f"run {run.run_id}") if each],
    }


def _by_reason(run: Run) -> dict[str, list[str]]:
    """Checks that were not made by their reason, in the order of the first of each."""
    found: dict[str, list[str]] = {}
    for each in run.not_checked:
        found.setdefault(each.reason, []).append(each.id)
    return found


def _templates() -> Any:
    import jinja2

    loader = jinja2.FunctionLoader(_read)
    templates = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader, undefined=jinja2.StrictUndefined
    )
    templates.filters["pretty"] = pretty
    return templates


def _read(name: str) -> str:
    from importlib.resources import files

    return (files("pytest_sglang.report") / "templates" / name).read_text(encoding="utf-8")
