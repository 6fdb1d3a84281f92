"""The compile caches of a running or stopped server, looked at: where they are, what they hold, whether they will be there tomorrow."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pytest_sglang.cache import diff, locate, snapshot, survive, witness
from pytest_sglang.cache.integrity import Running
from pytest_sglang.cache.machine import Machine
from pytest_sglang.record.values import CacheDiff, Finding
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.session import caches

if TYPE_CHECKING:
    from pytest_sglang.cache.locate import CachePlace
    from pytest_sglang.cache.snapshot import Snapshot
    from pytest_sglang.gpu.card import Card
    from pytest_sglang.server.control import Controller
    from pytest_sglang.session.caches import Look
    from pytest_sglang.session.simulated import Simulation


class Source(NamedTuple):
    """What is asked about a server: its controller, the version it answers with (None = not known), its cards, what is promised."""

    controller: Callable[[], Controller]
    version: Callable[[], str | None]
    cards: Callable[[], Sequence[Card]]
    start: StartPromise | None
    simulation: Simulation | None


class CacheView:
    """The compile caches of one server; changes nothing."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._places: tuple[CachePlace, ...] | None = None
        self._version: str | None = None

    @property
    def places(self) -> tuple[CachePlace, ...]:
        """Where the caches are, by the server's environment and its version's defaults; ``~/.triton/cache`` alone would be wrong."""
        if self._places is None:
            self._places = self._locate()
        return self._places

    def relocate(self) -> None:
        """Look again: a unit's environment counts from its next start on, and a running server shows what it has open."""
        self._places = None

    def _locate(self) -> tuple[CachePlace, ...]:
        controller = self._source.controller()
        state = controller.state()
        self._version = (self._source.version() if state.active else None) or self._version
        return places_of(dict(controller.environment()), self._version, state.pid)

    def snapshot(self, since: Snapshot | None = None) -> Snapshot:
        """Every entry of every cache, by kernel name; a place that cannot be read is kept with its reason.

        ``since``: an earlier one, from which is taken over what has not changed.
        """
        return snapshot.take(self.places, since)

    def added_since(self, before: Snapshot) -> CacheDiff:
        """New kernel names, new variants of known ones, new graphs since ``before``."""
        return diff.added(before, self.snapshot(before))

    def added_after(self, epoch_s: float) -> CacheDiff:
        """What was written at ``epoch_s`` or later: for a start that nobody watched."""
        return diff.since(self.snapshot(), epoch_s)

    def places_unasked(self) -> tuple[CachePlace, ...]:
        """Where the caches are, without a question to the server: while it starts, /server_info hangs."""
        if self._places is not None:
            return self._places
        controller = self._source.controller()
        return places_of(dict(controller.environment()), self._version, controller.state().pid)

    @property
    def machine(self) -> Machine:
        """What the caches live on, as the server sees it."""
        if self._source.simulation is not None:
            return caches.simulated_machine(Path(self._source.simulation.rig.directory))
        return Machine.here(self._source.controller().state().pid)

    def doubts(self) -> list[Finding]:
        """Will the caches survive a reboot, a stop of the unit, another user?"""
        controller = self._source.controller()
        show, pid = getattr(controller, "show", None), controller.state().pid
        return survive.findings(
            self.places,
            {**controller.environment(), **({} if pid is None else locate.environment_of(pid) or {})},
            unit=show() if show is not None else None,
            user=None if pid is None else _owner(pid),
            machine=self.machine,
        )

    def running(self) -> Running:
        """Versions and cards that look things up in the caches now."""
        return caches.running_of(self._source.controller().state().pid, self._source.cards())

    def look(self) -> Look:
        """Everything about the caches: where, how much, kernels, findings."""
        found = caches.look(self.places, self.machine, self.running(), doubts=self.doubts(), start=self._source.start)
        return msgspec.structs.replace(found, findings=(*self._elsewhere(), *found.findings))

    def findings(self) -> tuple[Finding, ...]:
        """Will the caches survive, and is what is in them whole?"""
        return self.look().findings

    def _elsewhere(self) -> list[Finding]:
        """Where the server's own files and the table of defaults do not agree."""
        controller = self._source.controller()
        state = controller.state()
        found = [
            Finding(
                "cache-elsewhere",
                "info",
                str(place.path),
                f"{place.kind} cache: neither environment nor defaults name it, but it is {place.why}",
            )
            for place in self.places
            if place.why.startswith("open in")
        ]
        if state.pid is None or self._source.simulation is not None:
            return found
        environ = {**controller.environment(), **(locate.environment_of(state.pid) or {})}
        candidates = places_by_default(environ, None, state.pid)
        return found + [
            Finding("cache-elsewhere", "info", str(place.path), f"{place.kind} cache of another version: {place.why}")
            for place in witness.fresh(candidates, self.places, _started_s(state.pid))
        ]


def places_of(environ: dict[str, str], version: str | None, pid: int | None) -> tuple[CachePlace, ...]:
    """Caches of a server with this environment (its unit's or command's) and version; its process tells more, if it can be read."""
    if pid is None:
        return places_by_default(environ, version, None)
    seen = locate.environment_of(pid)
    environ = {**environ, **seen} if seen else environ
    from pytest_sglang.server.processes import tree

    found = places_by_default(environ, version, pid)
    found = witness.completed(found, witness.seen([each.pid for each in tree(pid)]))
    return locate.as_seen_by(pid, found)


def places_by_default(environ: dict[str, str], version: str | None, pid: int | None) -> tuple[CachePlace, ...]:
    """Where an environment and the defaults of a version put the caches; ``version`` None gives every layout's."""
    user = (None if pid is None else _owner(pid)) or pwd.getpwuid(os.getuid()).pw_name
    home = Path(environ.get("HOME") or _home(user))
    cwd = _cwd(pid)
    return locate.locate(
        version=version, environ=environ, home=home, tmpdir=Path(environ.get("TMPDIR") or "/tmp"), user=user, cwd=cwd
    )


def _cwd(pid: int | None) -> Path:
    try:
        return Path("/") if pid is None else Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return Path("/")


def _started_s(pid: int) -> float:
    """Epoch seconds (wall) at which a process was started; now for one that is gone."""
    import time

    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return time.time()


def _owner(pid: int) -> str | None:
    try:
        return pwd.getpwuid(os.stat(f"/proc/{pid}").st_uid).pw_name
    except (OSError, KeyError):
        return None


def _home(user: str) -> str:
    try:
        return pwd.getpwnam(user).pw_dir
    except KeyError:
        return tempfile.gettempdir()
