"""``pytest-sglang timeline``: the starts that a log tells of, each judged for itself; needs no rig, no server, no pytest."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from pytest_sglang.record import run as records
from pytest_sglang.record import units
from pytest_sglang.record.values import Finding, StartKind, Value
from pytest_sglang.server import log as logs
from pytest_sglang.server import phases, rotated, start, timings, versions
from pytest_sglang.server.log import FileLog, LogLine, LogSource, TextLog
from pytest_sglang.server.phases import Timeline
from pytest_sglang.server.sources import JournalLog, StreamLog
from pytest_sglang.session.errors import Refused

State = Literal["ready", "died", "unfinished"]
EXIT_CODES: dict[str, int] = {"ready": 0, "died": 1, "unfinished": records.EXIT_CODES["inconclusive"]}
UNKNOWN_AFTER_S = 180.0
"""A log that goes on for so long without any stage that the table knows is one of another version."""
_BEFORE_S = 2 * 3600.0
"""A launch is at most so long before the first line of its log: imports, and whatever the owner runs before."""


class Asked(Value, frozen=True, kw_only=True):
    """Which log, and which start of it. ``log``: a path, ``-`` for standard input; ``unit``: a systemd unit, ``user:NAME`` a user's."""

    log: str | None = None
    unit: str | None = None
    start: int | None = None
    started: str | None = None
    version: str | None = None


class Start(Value, frozen=True, kw_only=True):
    """One start of a log, judged. ``number`` counts from 1, ``of`` is how many the log holds."""

    number: int
    of: int
    timeline: Timeline
    state: State
    kind: StartKind
    begun: bool
    """False: a server's log in which no start begins."""
    findings: tuple[Finding, ...]

    @property
    def total_s(self) -> float | None:
        """Seconds from the launch (or the first line) until ready, else until the last moment that the log tells: a stamp, or a bar's clock."""
        timeline = self.timeline
        zero, end = timeline.launched_at, timeline.ready_at or timeline.last_at
        if zero is None or end is None:
            return None
        if timeline.ready_at is None and timeline.phases:
            last = timeline.phases[-1]
            inside = timeline.progress.get(last.id)
            end = max(end, zero + last.begin_s + (inside.elapsed_s if inside is not None else 0.0))
        return max(0.0, end - zero)

    @property
    def exit_code(self) -> int:
        """0 ready; 1 died, or a finding of severity fail; 6 where the log does not tell."""
        if any(finding.severity == "fail" for finding in self.findings):
            return 1
        return EXIT_CODES[self.state]


class Reading(Value, frozen=True, kw_only=True):
    """A log that was read: where from, every start in it, and when its owner launched them (where that is known)."""

    name: str
    starts: tuple[tuple[LogLine, ...], ...]
    launches: tuple[float, ...] = ()


# --- where it comes from ---------------------------------------------------------------------------------------------------


def source(asked: Asked) -> LogSource:
    """The log that was asked for. Raises Refused where it is not there or cannot be read."""
    if asked.unit is not None:
        if shutil.which("journalctl") is None:
            raise Refused("journalctl is not installed here: give the log as a file, or pipe it in with -")
        user, unit = asked.unit.startswith("user:"), asked.unit.removeprefix("user:")
        return JournalLog(unit, ["journalctl", *(["--user"] if user else []), "--no-pager"])
    if asked.log is None:
        raise Refused(
            "no log named: give a file, - for standard input, or --unit NAME (example: pytest-sglang timeline server.log)"
        )
    if asked.log == "-":
        if sys.stdin.isatty():
            raise Refused("standard input is a terminal: pipe a log into it (example: cat server.log | pytest-sglang timeline -)")
        return StreamLog(sys.stdin.fileno(), "standard input")
    return _file(Path(asked.log).expanduser())


def _file(path: Path) -> LogSource:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        near = _near(path)
        hint = f"; did you mean {near}?" if near else ""
        raise Refused(f"{path} does not exist{hint}") from None
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from None
    if stat.S_ISDIR(mode):
        inside = (
            sorted(each.name for each in path.iterdir() if each.is_file() and ".log" in each.name)[:3]
            if os.access(path, os.R_OK)
            else []
        )
        hint = f" (in it: {', '.join(inside)})" if inside else ""
        raise Refused(f"{path} is a folder, not a log{hint}")
    if not os.access(path, os.R_OK):
        raise Refused(f"{path}: permission denied (try sudo, or join the group that may read it)")
    if not stat.S_ISREG(mode):
        return StreamLog(os.open(path, os.O_RDONLY), str(path))
    if rotated.is_packed(path):
        try:
            return TextLog(rotated.read(path, logs.LIMIT_BYTES), name=str(path))
        except (OSError, EOFError) as error:
            raise Refused(f"{path} cannot be unpacked: {error}") from None
    return FileLog(path)


def _near(path: Path) -> str | None:
    import difflib

    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return None
    found = difflib.get_close_matches(path.name, names, n=1)
    return str(path.parent / found[0]) if found else None


def read(origin: LogSource) -> Reading:
    """Every start that the log holds, with what was rotated away before it. Raises Refused where it is no SGLang log."""
    text, name = _whole(origin), origin.describe()
    if origin.why is not None and not text:
        raise Refused(origin.why)
    if isinstance(origin, FileLog) and (aside := rotated.siblings(origin.path)):
        name += f" and {len(aside)} rotated file{'' if len(aside) == 1 else 's'}"
    lines = logs.split(text)
    refuse_foreign(lines, name)
    launches = tuple(origin.launches()) if isinstance(origin, JournalLog) else ()
    return Reading(name=name, starts=tuple(tuple(each) for each in logs.starts(lines)), launches=launches)


def _whole(origin: LogSource) -> str:
    if not isinstance(origin, FileLog):
        return origin.read()
    text = origin.tail_from(FileLog.BEGIN)[0]
    return rotated.before(origin.path, text, lambda _: False, logs.LIMIT_BYTES) + text


def _range() -> str:
    return f"{versions.name(versions.OLDEST)} to {versions.name(versions.NEWEST)}"


def refuse_foreign(lines: list[LogLine], name: str) -> None:
    """Raise Refused where there are lines, and none is SGLang's."""
    if lines and not is_sglang(lines):
        count = f"{len(lines):,} line{'' if len(lines) == 1 else 's'}"
        raise Refused(f"{name} is not a log of SGLang: {count}, and none that SGLang {_range()} writes")


def is_sglang(lines: list[LogLine]) -> bool:
    """Whether any line is one that SGLang writes: its arguments, a stage of its start, its statistics, its own name in a path."""
    forms = [pattern for form, pattern in versions.compiled(None) if form.mark != "port_open"]  # uvicorn serves others too
    return any(
        versions.OWN_WORDS.search(line.text) or (line.time is not None and any(form.search(line.text) for form in forms))
        for line in lines
    )


# --- one start -------------------------------------------------------------------------------------------------------------


def choose(reading: Reading, asked: Asked) -> Start:
    """The start that was asked for, the last by default. Raises Refused where the log has no such start."""
    count = len(reading.starts)
    number = asked.start if asked.start is not None else -1
    if not (1 <= number <= count or -count <= number <= -1):
        held = "1 start: --start 1" if count == 1 else f"{count} starts: --start 1 to {count}, or -1 (the last) to -{count}"
        raise Refused(f"--start {number}: {reading.name} holds {held}; --list shows them")
    return judge(reading, number if number > 0 else count + number + 1, asked)


def judge(reading: Reading, number: int, asked: Asked | None = None) -> Start:
    """Start ``number`` (from 1) of the log. Raises Refused where ``started`` or ``version`` do not fit."""
    lines = list(reading.starts[number - 1])
    last = number == len(reading.starts)
    version = asked.version if asked is not None else None
    if version is not None and versions.parse(version) is None:
        raise Refused(f"--sglang-version {version!r} is no version (write e.g. 0.5.11)")
    launched = _launched(reading, number, lines, asked.started if asked is not None else None)
    timeline = phases.timeline(lines, launched_at=launched, version=version)
    state: State = "unfinished"
    if timeline.ready_at is not None:
        state = "ready"
    elif timeline.failure is not None or (_begun(timeline) and (timeline.ended_at is not None or not last)):
        state = "died"
    findings = [*timeline.findings, *_more(timeline, lines, state, last)]
    if timeline.failure is None and state == "died":
        timeline = msgspec.structs.replace(timeline, phase=timeline.phase or "launch")
    return Start(
        number=number,
        of=len(reading.starts),
        timeline=timeline,
        state=state,
        kind=_kind(timeline, lines),
        begun=_begun(timeline),
        findings=tuple(sorted(findings, key=lambda each: ("fail", "warn", "info").index(each.severity))),
    )


def _more(timeline: Timeline, lines: list[LogLine], state: State, last: bool) -> list[Finding]:
    """Findings that only the whole of a start gives."""
    found = list(timings.disagreements(timeline.timings, timeline, "the log's own line"))
    where = f" in {timeline.phase}" if timeline.phase else ""
    if state == "died" and timeline.failure is None:
        why = "it was ended from outside" if timeline.ended_at is not None else "another start follows it in the log"
        found.append(
            Finding("never-ready", "fail", "server log", f"it never became ready: the log ends{where}, and {why}", _KILLED)
        )
    elif state == "unfinished" and not _begun(timeline):
        lost = "no start begins in this log: its beginning was rotated away, or --log-level warning hides it"
        found.append(Finding("no-start", "warn", "server log", lost))
    elif state == "unfinished":
        detail = f"not ready as far as this log goes: it ends{where}"
        found.append(Finding("unfinished", "warn", "server log", detail, f"it may still run (--follow shows it), or {_KILLED}"))
    known = {phase.id for phase in timeline.phases} - {"launch", "arguments", "ready"}
    long = (timeline.last_at or 0.0) - (timeline.launched_at or 0.0) > UNKNOWN_AFTER_S
    told = any(each.kind == "phases-unknown" for each in timeline.findings)
    if not known and not told and _begun(timeline) and timeline.failure is None and (state == "ready" or long) and lines:
        detail = f"phases unknown: no stage of SGLang {_range()} stands in it"
        found.append(
            Finding(
                "phases-unknown", "info", "server log", detail, "another version, its beginning is lost, or --log-level warning"
            )
        )
    return found


def _kind(timeline: Timeline, lines: list[LogLine]) -> StartKind:
    """Autotuning lines tell cold from warm only where torch.compile tunes: on a GPU, and asked for."""
    found = start.kind_of(timeline, lines)
    tunes = timeline.facts.get("enable_torch_compile") and timeline.facts.get("device") != "cpu"
    return found if found == "cold" or tunes else "unknown"


def _begun(timeline: Timeline) -> bool:
    return timeline.echo_at is not None or bool(timeline.phases) or timeline.ready_at is not None or timeline.failure is not None


_KILLED = "it was killed without a word: look for the OOM killer (journalctl -k) and at who stopped it"


def _launched(reading: Reading, number: int, lines: list[LogLine], started: str | None) -> float | None:
    """Epoch seconds of the launch: as told, else by systemd's own entries in the journal; None = not known."""
    first = next((line.time for line in lines if line.time is not None), None)
    if started is not None:
        return _moment(started, first)
    if first is None:
        return None
    before = [line.time for line in reading.starts[number - 2] if line.time is not None] if number > 1 else []
    floor = max(before[-1] if before else 0.0, first - _BEFORE_S)
    return max((each for each in reading.launches if floor <= each <= first + 1.0), default=None)


def _moment(text: str, first: float | None) -> float:
    """``--started``: a date and time, a time of the day of the log's first line, or epoch seconds. Raises Refused."""
    wrong = f"--started {text!r} is no moment (write e.g. '2026-11-23 22:21:34', '22:21:34', or epoch seconds)"
    try:
        moment = float(text.removeprefix("@"))
    except ValueError:
        try:
            if "-" not in text and ":" in text and first is not None:
                moment = datetime.fromisoformat(f"{time.strftime('%Y-%m-%d', time.localtime(first))} {text}").timestamp()
                moment -= 86_400.0 if moment > first + 2.0 else 0.0  # launched before midnight
            else:
                moment = datetime.fromisoformat(text).timestamp()
        except ValueError:
            raise Refused(wrong) from None
    if first is not None and not -_BEFORE_S < moment - first <= 2.0:
        raise Refused(
            f"--started {text!r}: the first line of this start was written at {stamp(first)}, so it was launched before that, "
            f"at most {units.duration(_BEFORE_S)} (--list shows the starts of a log)"
        )
    return moment


def stamp(epoch_s: float) -> str:
    """As SGLang prints it: local time without a zone, whole seconds."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch_s))


# --- as data ---------------------------------------------------------------------------------------------------------------


def nothing(name: str) -> dict[str, Any]:
    """The JSON of a log without a line."""
    empty = Finding("empty", "warn", name, "the log is empty")
    return {
        "log": name,
        "start": None,
        "starts": [],
        "state": "unfinished",
        "ready": False,
        "total_s": None,
        "phases": [],
        "findings": [records.plain(empty)],
        "exit_code": EXIT_CODES["unfinished"],
    }


def plain(found: Start, reading: Reading) -> dict[str, Any]:
    """The JSON of ``--json``: seconds, plain types; times as the log has them (the server's local time, no zone)."""
    timeline = found.timeline
    inside = timeline.progress
    rows = [
        {
            "phase": phase.id,
            "begin_s": _round(phase.begin_s),
            "end_s": _round(phase.end_s),
            "duration_s": None if phase.end_s is None else _round(phase.end_s - phase.begin_s),
            "progress": records.plain(inside[phase.id]) if phase.id in inside else None,
        }
        for phase in timeline.phases
    ]
    facts = {
        "log": reading.name,
        "start": found.number,
        "starts": [summary(judge(reading, number)) for number in range(1, found.of + 1)],
        "started": None if timeline.launched_at is None else stamp(timeline.launched_at),
        "launched_at_is": timeline.launched_at_is,
        "state": found.state,
        "ready": found.state == "ready",
        "phase": timeline.phase,
        "kind": found.kind,
        "total_s": _round(found.total_s),
        "phases": rows,
        "versions": timeline.versions,
        "model": timeline.facts.get("model_path"),
        "tp": timeline.facts.get("tp_size"),
        "autotune_runs": timeline.autotune_runs,
        "capture_s": timeline.capture_s,
        "weights_s": timeline.weights_s,
        "own_timings_s": timeline.timings,
        "notes": timeline.notes,
        "failure": None
        if timeline.failure is None
        else {"kind": timeline.failure.kind, "cause": timeline.failure.cause, "traceback": timeline.failure.traceback},
        "findings": [records.plain(each) for each in found.findings],
        "last_lines": list(timeline.last_lines),
        "exit_code": found.exit_code,
    }
    kept: dict[str, Any] = records.plain(facts)
    return kept


def summary(found: Start) -> dict[str, Any]:
    """A start in one entry, for ``--list``."""
    timeline = found.timeline
    return {
        "start": found.number,
        "started": None if timeline.launched_at is None else stamp(timeline.launched_at),
        "state": found.state,
        "kind": found.kind,
        "total_s": _round(found.total_s),
        "phase": timeline.phase,
        "model": timeline.facts.get("model_path"),
        "tp": timeline.facts.get("tp_size"),
        "autotune_runs": timeline.autotune_runs,
        "cause": None if timeline.failure is None else timeline.failure.cause,
    }


def _round(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
