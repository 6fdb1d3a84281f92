"""``reports/`` as a store of runs: found, read fast and in part, kept tidy. Nothing here needs pytest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pytest_sglang.record.run import SCHEMA, Run
from pytest_sglang.record.values import Value


class StoredRound(Value, frozen=True, kw_only=True):
    """A round without its samples."""

    decode_tok_s: float | None = None
    end_to_end_tok_s: float | None = None
    output_tokens: int = 0
    joules: float | None = None
    invalid_because: str | None = None


class StoredThroughput(Value, frozen=True, kw_only=True):
    """A measurement without its samples."""

    streams: int = 1
    rounds: tuple[StoredRound, ...] = ()
    decode_tok_s: float | None = None
    end_to_end_tok_s: float | None = None


class StoredMeasurement(Value, frozen=True, kw_only=True):
    """An item of ``run.throughputs``."""

    label: str = ""
    power_w: float | None = None
    quantity: str = "decode"
    throughput: StoredThroughput = StoredThroughput()
    samples: dict[str, tuple[float, ...]] = {}
    """Values of each quantity by name (``judge.samples.short``); {} in a run that is older than that."""


class StoredStart(Value, frozen=True, kw_only=True):
    """An item of ``run.startups``."""

    label: str = ""
    startup: dict[str, Any] = {}


class Stored(Value, frozen=True, kw_only=True):
    """A run as history needs it: everything but samples, charts and events, so that a thousand runs are read in seconds."""

    schema: int
    run_id: str
    started: str
    simulated: bool
    finished: str | None = None
    verdict: str = "inconclusive"
    exit_code: int | None = None
    interrupted: bool = False
    power_levels_w: tuple[float, ...] = ()
    rig: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    checks: tuple[dict[str, Any], ...] = ()
    not_checked: tuple[dict[str, Any], ...] = ()
    startups: tuple[StoredStart, ...] = ()
    throughputs: tuple[StoredMeasurement, ...] = ()
    folder: str = ""

    @property
    def rig_name(self) -> str:
        """Name of its rig."""
        return str(self.rig.get("name") or "unnamed rig")

    def measured(self, check_id: str, power_w: float | None = None) -> tuple[float, str] | None:
        """(value, unit) of what a check's limit is about; None where it was not measured."""
        for check in self.checks:
            if check.get("id") != check_id or check.get("power_w") != power_w:
                continue
            found = check.get("measured", {}).get(check.get("quantity") or "")
            if isinstance(found, dict) and isinstance(found.get("value"), (int, float)) and not isinstance(found["value"], bool):
                return float(found["value"]), str(found.get("unit") or "")
        return None


class Skipped(Value, frozen=True):
    """A folder that holds no run that can be read, and why."""

    path: str
    reason: str


def runs(folder: Path) -> tuple[list[Stored], list[Skipped]]:
    """Every finished or killed run below ``folder`` (one level), oldest first, and what was skipped. Never raises for a broken one."""
    found: list[Stored] = []
    skipped: list[Skipped] = []
    for path in _records(folder):
        try:
            found.append(read(path))
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            skipped.append(Skipped(str(path), why(error)))
    return sorted(found, key=lambda run: (run.started, run.run_id)), skipped


def read(path: Path) -> Stored:
    """One run.json in part. Raises OSError, msgspec.MsgspecError, ValueError."""
    stored = _DECODER.decode(path.read_bytes())
    if stored.schema != SCHEMA:
        raise ValueError(f"schema {stored.schema}, this version reads {SCHEMA}")
    return msgspec.structs.replace(stored, folder=str(path.parent))


def whole(stored: Stored) -> Run:
    """The whole record behind it. Raises RecordError."""
    from pytest_sglang.record import run as records

    return records.read(Path(stored.folder))


def prune(folder: Path, keep: int, *, rig: str | None = None, dry_run: bool = False) -> list[Path]:
    """Remove the oldest finished run folders beyond ``keep`` a rig; a named baseline and what is not a run are never touched.

    ``rig``: only runs of this one. Simulated runs are counted apart: they must not push real ones out. Gives the folders that went (or would go). Raises ValueError for ``keep`` below 1.
    """
    if keep < 1:
        raise ValueError(f"retention of {keep} runs: at least 1 is kept (write e.g. --keep 50)")
    by_rig: dict[tuple[str, bool], list[Stored]] = {}
    for each in runs(folder)[0]:
        if each.finished is not None and rig in (None, each.rig_name) and not (Path(each.folder) / KEPT).exists():
            by_rig.setdefault((each.rig_name, each.simulated), []).append(each)
    gone = [Path(each.folder) for stored in by_rig.values() for each in stored[:-keep]]
    for path in gone:
        if not dry_run:
            shutil.rmtree(path)
    return gone


KEPT = "baseline"
"""A file of this name in a run folder keeps it from retention; it holds the baselines' names, one a line."""
_DECODER = msgspec.json.Decoder(Stored)


def _records(folder: Path) -> Iterator[Path]:
    import os

    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path) / "run.json"
        if entry.is_dir() and path.is_file():
            yield path


def why(error: Exception) -> str:
    """Why a run.json was skipped, in a line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"not a run.json of this kind: {error}"
