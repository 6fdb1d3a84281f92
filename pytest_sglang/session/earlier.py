"""The last start of each kind before this run: what stands behind its phases in the report."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.session import store
from pytest_sglang.session.store import Stored

KINDS = ("warm", "cold")
LOOKED_AT = 25
"""Runs of a rig that are read at most, newest first: each knows the starts before it, so the first one is nearly always enough."""
SIZES = 30
"""Runs over which the size of the caches is kept."""


def starts(report_dir: Path, run: Run) -> dict[str, Any]:
    """By kind ("warm", "cold") the newest start of it in a finished run of the same rig that began before ``run``.

    Each with ``run_id, started, label, ready_s, launched_at_is, phases, version, model, cache_bytes`` and ``sizes``, the bytes in
    the caches after such a start over the runs before. A run with injected faults is never taken, whatever else there is: the
    outline shows how the rig starts when nothing is wrong. What cannot be read is passed over.
    """
    found: dict[str, Any] = {}
    name = str(run.rig.get("name") or "unnamed rig")
    runs = store.newest(report_dir, rig=name, simulated=run.simulated)
    earlier = (each for each in runs if each.run_id != run.run_id and each.finished is not None and each.started < run.started)
    for each in islice(earlier, LOOKED_AT):
        if each.environment.get("faults"):
            continue
        for kind in KINDS:
            if kind not in found and (told := _readable(each, kind)) is not None:
                found[kind] = told
        if len(found) == len(KINDS):
            break
    return found


def _readable(run: Stored, kind: str) -> dict[str, Any] | None:
    try:
        return _of(run, kind)
    except (AttributeError, KeyError, TypeError, ValueError):
        # a foreign record; the background of a chart must not cost a run its own
        return None


def _of(run: Stored, kind: str) -> dict[str, Any] | None:
    """The run's own newest start of this kind, else the one that it knows of."""
    known = run.earlier_starts.get(kind)
    before = known if isinstance(known, dict) and _is_whole(known) else None
    for item in reversed(run.startups):
        if item.startup.get("kind") == kind and _is_whole(item.startup):
            return _told(run, item.label, item.startup, before)
    return before


def _is_whole(start: dict[str, Any]) -> bool:
    """Whether it has a time line that can stand behind another; seconds from the first line of a log are no launch's."""
    phases = start.get("phases")
    timed = isinstance(phases, list) and all(isinstance(each["begin_s"], (int, float)) and "id" in each for each in phases)
    return (
        bool(phases)
        and timed
        and isinstance(start.get("ready_s"), (int, float))
        and start.get("launched_at_is", "launch") == "launch"
    )


def _told(run: Stored, label: str, start: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    server = run.environment.get("server")
    held = cache_bytes(start)
    earlier = before.get("sizes") if before is not None else None
    sizes = [*(earlier if isinstance(earlier, list) else []), {"run_id": run.run_id, "started": run.started, "bytes": held}]
    return {
        "run_id": run.run_id,
        "started": run.started,
        "label": label,
        "ready_s": start["ready_s"],
        "launched_at_is": "launch",
        "phases": start["phases"],
        "version": server.get("version") if isinstance(server, dict) else None,
        "model": (run.rig.get("server") or {}).get("model"),
        "cache_bytes": held,
        "sizes": [each for each in sizes if each["bytes"] is not None][-SIZES:],
    }


def cache_bytes(start: dict[str, Any]) -> int | None:
    """Bytes in all caches after a start; None where that is not in its record, or one of them could not be read."""
    diff = start.get("cache_diff") or {}
    before = diff.get("before")
    if not before or diff.get("unreadable"):
        return None
    return int(sum(each["bytes"] for each in before) + diff["bytes"])
