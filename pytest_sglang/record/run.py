"""run.json, schema 1: what one run found. Written after every check (write, then rename), so that a killed run leaves the truth."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from pytest_sglang.record.values import Finding, Value

SCHEMA = 1
Verdict = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 1, "inconclusive": 6}
EXIT_INTERRUPTED = 2
EXIT_USAGE = 4


class RecordError(ValueError):
    """A run.json that cannot be read; the message names the file and what is wrong with it."""


class Measurement(msgspec.Struct, frozen=True):
    """A measured number with its unit ("s", "tok/s", "W", "count", ...)."""

    value: float | int | str | bool | None
    unit: str


class Limit(msgspec.Struct, frozen=True):
    """What was promised: ``measured op value``."""

    op: Literal[">=", "<=", "=="]
    value: float | int | str | bool
    unit: str


class Check(Value, frozen=True, kw_only=True):
    """One check's verdict. ``promise`` is its docstring's first sentence; ``cause`` the most likely one, in one line."""

    id: str
    promise: str
    verdict: Verdict
    power_w: float | None = None
    inconclusive_because: str | None = None
    measured: dict[str, Measurement] = {}
    limit: Limit | None = None
    cause: str | None = None
    findings: tuple[Finding, ...] = ()
    duration_s: float = 0.0
    reruns: int = 0
    marginal: bool = False
    message: str = ""
    quantity: str | None = None
    """Which of ``measured`` the limit is about."""
    expected_failure: bool = False
    nodeid: str = ""


class NotChecked(msgspec.Struct, frozen=True):
    """A promised check that was not made, and why."""

    id: str
    reason: str


class Run(Value, frozen=True, kw_only=True):
    """A whole run. ``finished`` is null, and ``verdict`` "inconclusive", until the session has ended."""

    run_id: str
    started: str
    simulated: bool
    schema: int = SCHEMA
    time_scale: float = 1.0
    finished: str | None = None
    duration_s: float | None = None
    wall_s: float | None = None
    verdict: Verdict = "inconclusive"
    exit_code: int | None = None
    interrupted: bool = False
    power_levels_w: tuple[float, ...] = ()
    rig: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    checks: tuple[Check, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    not_promised: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    as_found: dict[str, Any] = {}
    as_left: dict[str, Any] = {}
    since_pass: dict[str, Any] = {}
    """The newest earlier pass of the same rig and what differs: ``run_id, started, differences [{name, before, after}], measured``."""
    logs: tuple[dict[str, Any], ...] = ()
    """Redacted excerpts in files beside run.json: ``title, file, source, checks, lines, shown``."""
    startups: tuple[dict[str, Any], ...] = ()
    throughputs: tuple[dict[str, Any], ...] = ()
    power_series: dict[str, Any] = {}
    power_curve: dict[str, Any] = {}
    topology: dict[str, Any] = {}
    """Cards, links between them and the server's place on them, as last read (``session.layout`` has the keys)."""
    earlier_starts: dict[str, Any] = {}
    """By kind ("warm", "cold") the newest start of it in an earlier finished run of the same rig (``session.earlier``)."""
    answers: tuple[dict[str, Any], ...] = ()
    """Fixed prompts answered greedily, asked after each start: ``after, at, power_w, answers, why``; ``why``: they could not be had."""


def utc(epoch_s: float) -> str:
    """ISO 8601 in UTC with milliseconds: ``2026-11-24T01:53:00.000Z``."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """``value`` as plain JSON types, NaN and infinities as None."""

    def clean(item: Any) -> Any:
        if isinstance(item, float):
            return item if item == item and abs(item) != float("inf") else None
        if isinstance(item, dict):
            return {str(key): clean(inner) for key, inner in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(inner) for inner in item]
        return item

    return clean(msgspec.to_builtins(value))


def verdict_of(checks: tuple[Check, ...]) -> Verdict:
    """fail beats inconclusive beats pass; no check at all (expected failures are none) is inconclusive."""
    verdicts = {check.verdict for check in checks if not check.expected_failure}
    if "fail" in verdicts:
        return "fail"
    if "inconclusive" in verdicts or not verdicts:
        return "inconclusive"
    return "pass"


def write(run: Run, folder: Path) -> Path:
    """Write ``folder/run.json`` atomically: a reader, or a crash at any moment, finds the old file or the new one, whole."""
    path = folder / "run.json"
    write_atomic(path, json.dumps(plain(run), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read(path: Path) -> Run:
    """The run in ``path`` (a run.json or the folder that holds one). Raises RecordError."""
    path = path / "run.json" if path.is_dir() else path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error} (give a run folder or its run.json)") from None
    try:
        schema = json.loads(data).get("schema")
        if schema != SCHEMA:
            raise RecordError(f"{path}: schema {schema!r}, this version reads {SCHEMA}")
        return msgspec.json.decode(data, type=Run)
    except RecordError:
        raise
    except (ValueError, AttributeError, msgspec.MsgspecError) as error:
        raise RecordError(f"{path}: not a run.json: {error}") from None
