"""How long a start will take: as long as the last one of its kind took, by the run.json files of earlier runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytest_sglang.record.values import Startup, Value

RUNS = 50
"""How many run folders are looked into, newest first."""


class Expected(Value, frozen=True, kw_only=True):
    """Seconds until ready of the last start of each kind; None where none is known."""

    cold_s: float | None = None
    warm_s: float | None = None

    def of(self, *, cold: bool) -> float | None:
        """The one to compare with."""
        return self.cold_s if cold else self.warm_s

    def after(self, history: Iterable[Startup]) -> Expected:
        """With the starts of this very run, oldest first, which are newer than any record."""
        cold_s, warm_s = self.cold_s, self.warm_s
        for each in history:
            if each.ready_s is not None and each.kind in ("cold", "warm"):
                cold_s, warm_s = (each.ready_s, warm_s) if each.kind == "cold" else (cold_s, each.ready_s)
        return Expected(cold_s=cold_s, warm_s=warm_s)


def read(report_dir: Path, *, rig: str, server: Any, simulated: bool) -> Expected:
    """The last cold and the last warm start of this rig's server (same model, tensor parallel size, torch.compile) in ``report_dir``.

    A run.json that cannot be read, and runs of other rigs, are passed over.
    """
    found: dict[str, float] = {}
    for path in _newest(report_dir):
        for kind, ready_s in _starts(path, rig, server, simulated):
            found.setdefault(kind, ready_s)
        if {"cold", "warm"} <= found.keys():
            break
    return Expected(cold_s=found.get("cold"), warm_s=found.get("warm"))


def _newest(report_dir: Path) -> list[Path]:
    try:
        found = [(each.stat().st_mtime, each) for each in report_dir.glob("*/run.json")]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)[:RUNS]]


def _starts(path: Path, rig: str, server: Any, simulated: bool) -> list[tuple[str, float]]:
    """Kind and seconds of a run's starts, newest first; [] for another rig's."""
    from pytest_sglang.record import run as records

    try:
        run = records.read(path)
        told = run.rig.get("server") or {}
        same = run.simulated == simulated and run.rig.get("name") == rig
        if not same or any(told.get(key) != getattr(server, key) for key in ("model", "tp", "torch_compile")):
            return []
        starts = [each["startup"] for each in reversed(run.startups)]
        # seconds from the first log line are no launch's
        return [(each["kind"], float(each["ready_s"])) for each in starts if each["ready_s"] and each["launched_at_is"] == "launch"]
    except (records.RecordError, AttributeError, KeyError, TypeError, ValueError):
        return []
