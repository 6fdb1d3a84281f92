"""A start as a table for the terminal: phases with begin, length and progress, then what looks wrong."""

from __future__ import annotations

import textwrap
from pathlib import PurePath

from pytest_sglang.record import units
from pytest_sglang.record.values import Finding
from pytest_sglang.server.phases import Timeline
from pytest_sglang.session.timeline import Reading, Start, judge, stamp

Line = tuple[str, str]
"""Text and its colour: "", "red", "yellow", "green", "bold"."""

COLOURS = {"red": "31", "yellow": "33", "green": "32", "bold": "1"}
"""Parameters of the terminal sequence (SGR) of each colour."""
_KINDS = {"cold": "cold", "warm": "warm", "partial": "partly cold", "unknown": ""}
_TRACEBACK_LINES = 16


def table(found: Start, reading: Reading, width: int) -> list[Line]:
    """The whole answer of ``pytest-sglang timeline``."""
    lines = [*_head(found, reading, width), ("", ""), *_phases(found, width), ("", ""), *_outcome(found, width)]
    wrong = [each for each in found.findings if each.severity != "info"]
    if wrong:
        lines += [("", ""), ("what looks wrong", "bold"), *(line for each in wrong for line in _finding(each, width))]
    failure = found.timeline.failure
    if failure is not None and failure.traceback:
        lines += [("", ""), ("first traceback in the log (what follows it there is fallout)", "bold")]
        lines += [(_cut_path(f"  {line}", width), "") for line in _shortened(failure.traceback.splitlines())]
    if found.state != "ready":
        lines += [("", ""), ("last lines", "bold")]
        lines += [(_cut(f"  {_clean(line)}", width), "") for line in found.timeline.last_lines[-4:]]
    noticed = [each for each in found.findings if each.severity == "info"]
    if noticed:
        lines += [("", ""), ("also in the log", "bold"), *(line for each in noticed for line in _finding(each, width))]
    return lines


def _head(found: Start, reading: Reading, width: int) -> list[Line]:
    timeline = found.timeline
    model, tp = timeline.facts.get("model_path"), timeline.facts.get("tp_size")
    when = stamp(timeline.launched_at) if timeline.launched_at is not None else "time unknown"
    parts = [f"start {found.number} of {found.of}", when]
    parts += [f"SGLang {timeline.versions['sglang']}"] if "sglang" in timeline.versions else []
    parts += [str(model)] if model else []
    parts += [f"TP={tp}"] if tp else []
    parts += [f"NCCL {timeline.versions['nccl']}"] if "nccl" in timeline.versions else []
    return [(_cut_left(reading.name, width), ""), *((line, "bold") for line in _wrap(" · ".join(parts), width))]


def _phases(found: Start, width: int) -> list[Line]:
    timeline = found.timeline
    if not timeline.phases:
        return [("phases unknown", "yellow")]
    total_s = found.total_s or 0.0
    lines: list[Line] = [(f"  {'phase':<15}{'begin':>11}{'duration':>12}{'share':>6}  inside", "bold")]
    for phase in timeline.phases:
        if phase.id == "ready":
            lines.append((f"  {phase.id:<15}{_seconds(phase.begin_s):>11}", "green"))
            continue
        length_s = (phase.end_s if phase.end_s is not None else max(total_s, phase.begin_s)) - phase.begin_s
        share = f"{100 * length_s / total_s:.0f} %" if total_s > 0 else ""
        row = f"  {phase.id:<15}{_seconds(phase.begin_s):>11}{_seconds(length_s):>12}{share:>6}  "
        told = _progress(timeline, phase.id) + (" ... here the log ends" if phase.end_s is None else "")
        wrapped = _wrap(told.strip(), max(width - len(row), 16)) or [""]
        colour = "yellow" if phase.end_s is None else ""
        lines += [((row if not number else " " * len(row)) + each, colour) for number, each in enumerate(wrapped)]
    return [(line.rstrip(), colour) for line, colour in lines]


def _progress(timeline: Timeline, phase: str) -> str:
    parts = [timeline.progress[phase].text] if phase in timeline.progress else []
    notes = timeline.notes
    if phase == "weights" and timeline.weights_s is not None:
        parts.append(f"{units.duration(timeline.weights_s)} by its own clock")
    if phase == "kv_cache" and "kv_tokens" in notes:
        parts.append(f"{int(notes['kv_tokens']):,} tokens")
    if phase == "capture_decode" and "decode_sizes" in notes:
        sizes = notes["decode_sizes"].split(", ")
        parts.append(f"batch sizes {notes['decode_sizes'] if len(sizes) <= 8 else f'{sizes[0]} to {sizes[-1]}'}")
    return ", ".join(each for each in parts if each)


def _outcome(found: Start, width: int) -> list[Line]:
    timeline, total_s = found.timeline, found.total_s
    total = "?" if total_s is None else _seconds(total_s)
    if found.state == "ready":
        tuned = timeline.autotune_runs
        first = f"ready after {total}"
        if _KINDS[found.kind]:
            first += f", a {_KINDS[found.kind]} start ({tuned} autotuning run{'' if tuned == 1 else 's'} in the log)"
        elif timeline.facts.get("enable_torch_compile") is False:
            first += ", without torch.compile"
        colour = "green"
    else:
        where = f" in {timeline.phase}" if timeline.phase else ""
        first = f"{'DIED' if found.state == 'died' else 'NOT READY'}{where} after {total}"
        if not found.begun:
            first = "no start in this log: its beginning is not there"
        colour = "red" if found.state == "died" else "yellow"
    lines: list[Line] = [(line, colour) for line in _wrap(first, width)]
    if timeline.launched_at_is == "first line" and total_s is not None and found.begun:
        told = "counted from the first line of the log, which comes up to half a minute after the launch: --started '...' tells it"
        lines += [(line, "") for line in _wrap(told, width)]
    return lines


def _finding(finding: Finding, width: int) -> list[Line]:
    colour = {"fail": "red", "warn": "yellow"}.get(finding.severity, "")
    head = f"  {finding.severity:<6}{finding.kind}: {_clean(finding.detail)}"
    lines = _wrap(head, width, rest=" " * 8)
    if finding.remedy:
        lines += _wrap(f"-> {finding.remedy}", width, first=" " * 8, rest=" " * 11)
    return [(line, colour) for line in lines]


def listing(reading: Reading, width: int) -> list[Line]:
    """``--list``: the starts of a log, oldest first."""
    count = len(reading.starts)
    held = f"{count} start{'' if count == 1 else 's'} in "
    lines: list[Line] = [(held + _cut_left(reading.name, width - len(held)), "bold")]
    for number in range(1, count + 1):
        found = judge(reading, number)
        timeline = found.timeline
        model = PurePath(str(timeline.facts.get("model_path") or "?")).name
        when = stamp(timeline.launched_at) if timeline.launched_at is not None else "time unknown"
        text, colour = _in_short(found)
        tp = timeline.facts.get("tp_size")
        lines += [
            (line, colour)
            for line in _wrap(f"{number:>4}  {when}  {model}{f' TP={tp}' if tp else ''}: {text}", width, rest=" " * 27)
        ]
    return [*lines, ("--start N chooses one (-1, the last, is the default)", "")]


def _in_short(found: Start) -> Line:
    timeline, total = found.timeline, _seconds(found.total_s or 0.0)
    where = f" in {timeline.phase}" if timeline.phase else ""
    if found.state == "ready":
        kind = f", {_KINDS[found.kind]}" if _KINDS[found.kind] else ""
        return f"ready after {total}{kind}", "green" if found.exit_code == 0 else "red"
    if found.state == "died":
        cause = f": {timeline.failure.cause}" if timeline.failure is not None else ", no reason in the log"
        return f"died{where} after {total}{cause}", "red"
    return f"not ready{where} after {total}", "yellow"


def _wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _seconds(seconds: float) -> str:
    """Stamps are whole seconds: no decimals where there are none to show."""
    if seconds == int(seconds) and seconds < 120:
        return f"{int(seconds)} s"
    return units.duration(seconds)


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= _TRACEBACK_LINES:
        return lines
    left = len(lines) - _TRACEBACK_LINES + 1
    return [*lines[:3], f"  ... {left} lines (all of them with --json) ...", *lines[-(_TRACEBACK_LINES - 4) :]]


def _clean(text: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _cut_path(text: str, width: int) -> str:
    """A traceback's line: the end of a path tells more than its beginning."""
    over = len(text) - width
    head, quote, tail = text.partition('File "')
    if over <= 0 or not quote or len(tail) <= over + 1:
        return _cut(text, width)
    return f"{head}{quote}…{tail[over + 1 :]}"


def _cut_left(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _cut(text: str, width: int) -> str:
    text = text.expandtabs(4)
    return text if len(text) <= width else text[: width - 1] + "…"
