"""A run for GitHub Actions: Markdown for the job summary (below its 1 MiB), workflow commands for annotations. Pure text."""

from __future__ import annotations

from pytest_sglang.record.run import Run
from pytest_sglang.report import since, view
from pytest_sglang.report.terminal import as_left_line, loose_failures

SUMMARY_BYTES = 1024 * 1024
"""GitHub refuses a step's summary above this (docs: "Workflow commands", job summaries are limited to 1 MiB a step)."""
ANNOTATIONS = 10
"""GitHub shows at most so many of each level a step."""
_ICONS = {"fail": "❌", "inconclusive": "❔", "expected": "⚪", "unexpected": "⚪", "marginal": "⚠️", "pass": "✅"}


def summary(run: Run, artefact: str = "") -> str:
    """The essential first: verdict, promises that are broken, then all of them, findings, environment; cut at the limit, said so.

    ``artefact``: where the HTML report is to be found, a link or a name.
    """
    parts = [f"## {view.headline(run)}\n", f"{_escape(view.title(run))} · run `{run.run_id}`\n"]
    parts += [_not_checked(run), _since(run), _table(run), _findings(run), _environment(run)]
    if artefact:
        parts.insert(2, f"Report: {artefact}\n")
    parts.append(f"{_escape(as_left_line(run))}\n")
    return _fit([part for part in parts if part])


def workflow_commands(run: Run) -> list[str]:
    """``::error ...`` for a broken promise, ``::warning ...`` for what could not be measured; the first ANNOTATIONS of each."""
    lines = []
    for word, standing in (("error", "fail"), ("warning", "inconclusive")):
        rows = [row for row in view.rows(run) if row.standing == standing]
        for row in rows[:ANNOTATIONS]:
            told = " ".join(
                part
                for part in (f"measured {row.measured}" if row.measured else "", f"limit {row.limit}" if row.limit else "")
                if part
            )
            message = ": ".join(part for part in (told, row.cause) if part) or row.word
            lines.append(_command(run, word, f"{row.label}: {row.word}", message))
    lines += [
        _command(run, "error", f"{each.subject}: FAIL", f"{each.detail} {each.remedy}".strip())
        for each in loose_failures(run)[:ANNOTATIONS]
    ]
    if not lines and (run.verdict != "pass" or run.finished is None):
        lines.append(_command(run, "error", view.verdict_word(run), view.headline(run)))
    return lines


def _command(run: Run, word: str, title: str, message: str) -> str:
    return f"::{word} title={_property(f'{title}{view.simulated_suffix(run)}')}::{_message(message)}"


def _not_checked(run: Run) -> str:
    if not run.not_checked:
        return ""
    listed = "\n".join(f"- {_escape(each.id)}: {_escape(each.reason)}" for each in run.not_checked)
    return f"**Not checked**\n\n{listed}\n"


def _since(run: Run) -> str:
    """Where something fails: what has changed since the last pass."""
    told = since.line(run, "→") if any(row.standing == "fail" for row in view.rows(run)) else ""
    return f"{_escape(told[0].upper() + told[1:])}\n" if told else ""


def _table(run: Run) -> str:
    rows = view.rows(run)
    if not rows:
        return "No check was made.\n"
    lines = ["| | promise | measured | limit | margin | cause |", "|---|---|---:|---:|---:|---|"]
    for row in rows:
        cells = (_ICONS[row.standing], row.label, row.measured, row.limit, row.margin, row.cause)
        lines.append("| " + " | ".join(_escape(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _findings(run: Run) -> str:
    found = [each for each in view.all_findings(run) if each.severity != "info"]
    if not found:
        return ""
    lines = [
        f"- {each.severity}: {_escape(view.finding_text(each))}{f' ({_escape(each.remedy)})' if each.remedy else ''}"
        for each in found
    ]
    return "<details><summary>Findings</summary>\n\n" + "\n".join(lines) + "\n\n</details>\n"


def _environment(run: Run) -> str:
    server = dict(run.environment.get("server") or {})
    pairs = [
        ("SGLang", server.get("version")),
        *(dict(server.get("packages") or {}).items()),
        ("driver", run.environment.get("driver")),
        ("kernel", run.environment.get("kernel")),
        ("GPUs", ", ".join(sorted({str(card.get("name")) for card in run.environment.get("gpus") or ()}))),
    ]
    told = "\n".join(f"- {_escape(str(name))}: {_escape(str(value))}" for name, value in pairs if value)
    return f"<details><summary>Environment</summary>\n\n{told}\n\n</details>\n" if told else ""


def _fit(parts: list[str]) -> str:
    cut = "\n_Cut here: the rest stands in the report._\n"
    room = SUMMARY_BYTES - len(cut.encode()) - 64
    out: list[str] = []
    used = 0
    for part in parts:
        data = part.encode()
        if used + len(data) > room:
            whole_lines = data[: room - used].decode("utf-8", errors="ignore").rpartition("\n")[0]
            opened = "\n\n</details>" if "<details>" in whole_lines else ""
            return "\n".join([*out, f"{whole_lines}{opened}", cut])
        out.append(part)
        used += len(data) + 1
    return "\n".join(out)


_SPECIAL = str.maketrans({each: f"&#{ord(each)};" for each in "&<>|`*_~[]\\$#"} | {"\n": " ", "\r": " "})


def _escape(text: str) -> str:
    """As text and nothing else: what Markdown, HTML or a table could read as a mark becomes a character reference."""
    return text.translate(_SPECIAL)


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
