"""Slow or stuck? A start that shows no sign of progress for long enough hangs; one that moves is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pytest_sglang.record import units
from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Phase
from pytest_sglang.server import processes
from pytest_sglang.server.task import Task

if TYPE_CHECKING:
    import psutil

LOOK_S = 1.0
"""Wall seconds between two looks at CPU time, caches and cards."""
MIN_SILENCE_WALL_S = 2.0
"""A simulated rig's clock runs ahead: a hang must also last this long on the wall, or a busy machine would look like one."""
LONGEST_LOOK_S = 30.0
"""A look that does not come back (a driver that hangs, a dead network file system) is no sign of life."""
CPU_ACTIVE = 0.05
"""Share of one core from which on a tree counts as active; an idle SGLang stays below."""


class _Look(NamedTuple):
    began_s: float
    ended_s: float
    signs: object
    cpu_s: float
    pids: frozenset[int]


class Watchdog:
    """Silence of one start. ``activity()`` gives something that changes as long as the start moves (caches, cards)."""

    def __init__(self, clock: Clock, silence_s: float, activity: Callable[[], object]) -> None:
        self.silence_s, self._clock, self._activity = silence_s, clock, activity
        self.pids: set[int] = set()
        """Every process that was seen in the tree."""
        self._quiet_since, self._quiet_since_wall = clock.time(), time.monotonic()
        self._polled_rig, self._polled_wall = self._quiet_since, self._quiet_since_wall
        self._suspected: float | None = None
        self._task: Task[_Look] | None = None
        self._asked_wall = 0.0
        self._last: _Look | None = None

    def alive(self) -> None:
        """There was a sign of life."""
        self._quiet_since, self._quiet_since_wall = self._clock.time(), time.monotonic()
        self._suspected = None

    def silent_s(self, process: psutil.Process | None) -> float | None:
        """Rig seconds without a sign of life once they prove a hang: so many, and a look that began after them found none either."""
        now, wall = self._clock.time(), time.monotonic()
        if wall - self._polled_wall > LOOK_S:
            # we ourselves were held up: that time says nothing about the server
            self._quiet_since += now - self._polled_rig
            self._quiet_since_wall += wall - self._polled_wall
        self._polled_rig, self._polled_wall = now, wall
        seen = self._look(process, wall)
        quiet_s = now - self._quiet_since
        if quiet_s <= self.silence_s or wall - self._quiet_since_wall <= MIN_SILENCE_WALL_S:
            return None
        if self._suspected is None:
            self._suspected = wall
        stuck = self._task is not None and wall - self._asked_wall > LONGEST_LOOK_S
        proved = seen is not None and seen.began_s >= self._suspected
        return quiet_s if proved or stuck else None

    def _look(self, process: psutil.Process | None, wall: float) -> _Look | None:
        """A look that has just ended and found nothing; None otherwise. It runs in the background: it may take long."""
        if self._task is None:
            # a suspicion is looked into at once
            if wall - self._asked_wall >= (LOOK_S / 4 if self._suspected is not None else LOOK_S):
                self._asked_wall = wall
                pid = process.pid if process is not None else None
                self._task = Task(lambda: self._see(pid))
            return None
        look = self._task.result()
        if look is None:
            return None
        self._task = None
        before, self._last = self._last, look
        self.pids |= look.pids
        if before is None:
            return None
        share = (look.cpu_s - before.cpu_s) / max(look.ended_s - before.ended_s, 1e-3)
        if look.signs != before.signs or share > CPU_ACTIVE:
            self.alive()
            return None
        return look

    def _see(self, pid: int | None) -> _Look:
        began = time.monotonic()
        signs = self._activity()
        tree = processes.tree(pid)
        return _Look(began, time.monotonic(), signs, processes.cpu_s(tree), frozenset(each.pid for each in tree))


def patience_s(budget_s: float) -> float:
    """How long something is waited for that moves, but has a budget: twice as long, at least 10 min more."""
    return max(budget_s * 2, budget_s + 600.0)


def over(phases: Sequence[Phase], budgets_s: Mapping[str, float], elapsed_s: float) -> str | None:
    """The phase in which the start is now, where it is so far over its budget that waiting on tells nothing new."""
    current = phases[-1] if phases else None
    budget_s = budgets_s.get(current.id) if current is not None and current.end_s is None else None
    if current is None or budget_s is None or elapsed_s - current.begin_s <= patience_s(budget_s):
        return None
    return f"phase {current.id} has lasted {units.duration(elapsed_s - current.begin_s)}, budget {units.duration(budget_s)}"
