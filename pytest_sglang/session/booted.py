"""Which boot a measurement is of: what several runs measured on one server process is one boot, and teaches nothing of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.session import store

SAME_S = 60.0
"""Starts of one pid so near to one another are one start: clocks are set, and a log tells it some seconds later than its owner."""
SAME_UNSEEN_S = 2.0
"""The same for a start whose pid is not known."""
Place = tuple[str, int]
"""A run's id, and the number of the item in it."""


class Boots:
    """Names the process of every measurement, and every start, of some runs; equal names are one boot.

    A measurement without ``process`` (an older run.json, or a server on another machine) is of the newest start that its run tells;
    else of the server's pid, and of the random seed that SGLang draws at each start. What tells none of it is of one boot: nothing
    shows that it is of several.
    """

    def __init__(self, runs: Sequence[Run | store.Stored]) -> None:
        self._known: dict[tuple[str, Any], list[tuple[float, str]]] = {}
        self.processes: dict[Place, str] = {}
        self.starts: dict[Place, str] = {}
        for run in runs:
            self._add(run)

    def _add(self, run: Run | store.Stored) -> None:
        host = str(run.environment.get("host") or "")
        newest = (float("-inf"), "")
        for index, item in enumerate(run.startups):
            start: Mapping[str, Any] = _field(item, "startup") or {}
            name = self._start(host, start)
            # a start that tells no moment is told by its place alone
            self.starts[run.run_id, index] = name or f"{run.run_id} start {index}"
            newest = max(newest, (float(start["launched_at"]), name)) if name else newest
        for index, measured in enumerate(run.throughputs):
            told = _field(measured, "process")
            self.processes[run.run_id, index] = str(told or newest[1] or _server(host, run.environment))

    def _start(self, host: str, start: Mapping[str, Any]) -> str:
        at, pid = start.get("launched_at"), start.get("pid")
        if not isinstance(at, (int, float)):
            return ""
        known = self._known.setdefault((host, pid), [])
        for moment, name in known:
            if abs(at - moment) <= (SAME_UNSEEN_S if pid is None else SAME_S):
                return name
        known.append((float(at), f"{host} {pid} started {at:.0f}"))
        return known[-1][1]


def _field(item: Any, name: str) -> Any:
    """Of a whole record's item, or of the short form's."""
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name)


def _server(host: str, environment: Mapping[str, Any]) -> str:
    server = dict(environment.get("server") or {})
    told = (server.get("pid"), dict(server.get("arguments") or {}).get("random_seed"))
    return f"{host or server.get('url') or ''} {told[0]} seed {told[1]}"
