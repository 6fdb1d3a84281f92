"""``reports/`` as a store of runs: found, read fast and in part, kept tidy. Nothing here needs pytest."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pytest_sglang.record.run import SCHEMA, Run
from pytest_sglang.record.values import Value
from pytest_sglang.session import beginnings


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
    process: str | None = None
    """The server process that it was made on (``session.serving``); None in a run that is older than that."""
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
    earlier_starts: dict[str, Any] = {}
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
    try:
        paths = _records(folder)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [Skipped(str(folder), why(error))]
    for path in paths:
        try:
            found.append(read(path))
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            skipped.append(Skipped(str(path), why(error)))
    return sorted(found, key=lambda run: (run.started, run.run_id)), skipped


def read(path: Path) -> Stored:
    """One run.json in part. Raises OSError, msgspec.MsgspecError, ValueError."""
    data = path.read_bytes()
    try:
        stored = _DECODER.decode(data)
    except msgspec.ValidationError:
        _known_schema(data)
        raise
    if stored.schema != SCHEMA:
        raise ValueError(f"schema {stored.schema}, this version reads {SCHEMA}")
    return msgspec.structs.replace(stored, folder=str(path.parent))


def newest(folder: Path, *, rig: str, simulated: bool) -> Iterator[Stored]:
    """Runs of one rig below ``folder``, newest first, each read when it is asked for; what cannot be read is passed over.

    Newest by the moment in the folder's name, as runs name theirs; a folder of another name goes by the time of its run.json.
    Runs of other rigs are told by the first lines of their file and cost a thirtieth of a reading.
    """
    for path in beginnings.newest_first(folder):
        try:
            if not beginnings.read(path).may_be_of(rig, simulated):
                continue
            run = read(path)
        except (OSError, msgspec.MsgspecError, ValueError):
            continue
        if run.rig_name == rig and run.simulated == simulated:
            yield run


def _known_schema(data: bytes) -> None:
    """What a later version writes need not have this version's shape: its number says more than the first field that differs."""
    found = msgspec.json.decode(data)
    schema = found.get("schema") if isinstance(found, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        raise ValueError(f"schema {schema}, this version reads {SCHEMA}")


def whole(stored: Stored) -> Run:
    """The whole record behind it. Raises RecordError."""
    from pytest_sglang.record import run as records

    return records.read(Path(stored.folder))


def prune(folder: Path, keep: int, *, rig: str | None = None, dry_run: bool = False) -> list[Path]:
    """Remove the oldest finished run folders beyond ``keep`` a rig, and give them.

    Never touched: a named baseline, a run that a rig file's [gain] is measured against, a run that has not ended, what is not a
    run, and a folder that does not carry its run's own name (somebody renamed, copied or linked it). ``rig``: only runs of this
    one. Simulated runs are counted apart: they must not push real ones out. Raises ValueError for ``keep`` below 1, OSError.
    """
    if keep < 1:
        raise ValueError(f"retention of {keep} runs: at least 1 is kept (write e.g. --keep 50)")
    every = runs(folder)[0]
    used = {name for each in every for name in _used(each)}
    by_rig: dict[tuple[str, bool], list[Stored]] = {}
    for each in every:
        if each.finished is not None and rig in (None, each.rig_name) and not _stays(Path(each.folder), each, used):
            by_rig.setdefault((each.rig_name, each.simulated), []).append(each)
    gone = [Path(each.folder) for stored in by_rig.values() for each in stored[:-keep]]
    if not dry_run:
        for path in [*gone, *folder.glob(f"{_GOING}*")]:
            _remove(path)
    return gone


_GOING = ".removed-"


def _remove(path: Path) -> None:
    """Out of the store in one step, then its files: a clean-up that is cut off leaves no half run, and the next one ends it."""
    going = path if path.name.startswith(_GOING) else path.with_name(f"{_GOING}{path.name}")
    with contextlib.suppress(FileNotFoundError):  # another clean-up was faster
        path.rename(going)
        shutil.rmtree(going)


def _stays(folder: Path, run: Stored, used: set[str]) -> bool:
    return (folder / KEPT).exists() or folder.is_symlink() or folder.name != run.run_id or run.run_id in used


def _used(run: Stored) -> Iterator[str]:
    """Run folders that this run's rig file names as what its gain is measured against."""
    gain = run.rig.get("gain")
    for name in ("compile_baseline", "nvlink_baseline"):
        path = gain.get(name) if isinstance(gain, dict) else None
        if isinstance(path, str):
            yield Path(path.removesuffix("/run.json")).name


KEPT = "baseline"
"""A file of this name in a run folder keeps it from retention; it holds the baselines' names, one a line."""
_DECODER = msgspec.json.Decoder(Stored)


def _records(folder: Path) -> list[Path]:
    """run.json of every folder that has one, or that does not let us look. Raises OSError."""
    with os.scandir(folder) as entries:
        shown = [each for each in entries if not each.name.startswith(".")]
        return [Path(each.path) / "run.json" for each in sorted(shown, key=lambda entry: entry.name) if _holds(each)]


def _holds(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() and (Path(entry.path) / "run.json").is_file()
    except OSError:
        return True


def why(error: Exception) -> str:
    """Why a run.json was skipped, in a line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, msgspec.ValidationError):
        return f"not a run.json of pytest-sglang: {error}"
    return f"broken: {error}" if isinstance(error, msgspec.MsgspecError) else str(error)
