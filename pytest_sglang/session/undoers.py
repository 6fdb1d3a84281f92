"""What a run changes on a rig, kind by kind: power limits, servers, caches, processes and directories of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_sglang.session.changes import Change, Undoer, UndoError, named
from pytest_sglang.session.journal import Entry

if TYPE_CHECKING:
    from pytest_sglang.server.control import Controller


class PowerLimit(Change):
    """``target`` a GPU's UUID, values in watts.

    Context: ``{"nvml": "real"}``, or ``{"nvml": "module:function", "argument": ...}``, which gives an object in place of pynvml.
    """

    lost_by_reboot = True
    tolerance_w = 1.0

    def settle_s(self, entry: Entry) -> float:
        """An nvidia-smi that the run had started may outlive it by a moment."""
        return 3.0

    def present(self, entry: Entry) -> float:
        """The requested limit: the enforced one follows it with delay and may be clamped."""
        from pytest_sglang.gpu.nvml import Missing

        with self._card(entry.target) as card:
            requested = card.limits().requested_w
        if isinstance(requested, Missing):
            raise UndoError(f"{entry.target}: its power limit cannot be read: {requested.reason}")
        return float(requested)

    def same(self, value: Any, present: Any) -> bool:
        """Within 1 W: drivers round."""
        return isinstance(value, (int, float)) and abs(float(value) - float(present)) <= self.tolerance_w

    def say(self, value: Any) -> str:
        """Watts."""
        return f"{value:g} W"

    def undo(self, entry: Entry) -> None:
        """By the driver as root and on a stand-in, else by ``sudo -n nvidia-smi -pl``."""
        watts = float(entry.before)
        if os.geteuid() != 0 and self._real:
            _run(["sudo", "-n", "nvidia-smi", "-i", entry.target, "-pl", f"{watts:g}"])
            return
        with self._card(entry.target) as card:
            card.set_limit_w(watts)

    @property
    def _real(self) -> bool:
        return bool(self._context.get("nvml", "real") == "real")

    def _card(self, uuid: str) -> _OpenCard:
        return _OpenCard(uuid, None if self._real else named(str(self._context["nvml"]))(self._context.get("argument")))


class _OpenCard:
    """The card with this UUID while the driver is open."""

    def __init__(self, uuid: str, module: Any) -> None:
        self._uuid, self._module = uuid, module

    def __enter__(self) -> Any:
        from pytest_sglang.gpu.nvml import Nvml

        self._nvml = Nvml.open(self._module)
        for card in self._nvml.cards():
            if card.uuid == self._uuid:
                return card
        self._nvml.close()
        raise UndoError(f"{self._uuid}: no such GPU answers at present (nvidia-smi -L lists those that do)")

    def __exit__(self, *_: object) -> None:
        self._nvml.close()


class Server(Change):
    """``target`` a controller's subject, values ``{"active": bool}``. Context: what ``Controller.description()`` gave."""

    limit_s = 130.0
    stop_under_way_s = 75.0
    """SGLang drains before it ends, and the run grants 60 s before SIGKILL: so long after the entry it may still be stopping."""
    overdue_s = 70.0
    """So long after the entry a stop that is still under way (TimeoutStopSec=90s by default) is followed by a start, which waits for it."""
    asked_within_s = 8.0
    """A stop whose tool was started just before the run died reaches the service manager within this time."""
    grace_s = 5.0
    start_looks_s = 8.0

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__(context)
        from pytest_sglang.server.control import from_description

        self._controller: Controller = from_description(dict(context))
        self._asked = False
        """It has been told to start, which a service manager keeps until a stop under way is over."""

    def settle_s(self, entry: Entry) -> float:
        """A stop goes on in the service manager when the run that asked for it is dead."""
        return self.stop_under_way_s if _active(entry.before) else 3.0

    def under_way(self, entry: Entry) -> bool:
        """Not where another process serves already than the one that was to be stopped, or where nobody is stopping it."""
        if not _active(entry.before):
            return True
        state = self._controller.state()
        before = entry.before.get("pid") if isinstance(entry.before, Mapping) else None
        if not state.active:
            return True  # stopped in this very moment: look again
        if None not in (before, state.pid) and state.pid != before:
            return False
        return state.stopping is not False or time.time() < entry.at + self.asked_within_s

    def present(self, entry: Entry) -> dict[str, bool]:
        """Whether the server's process lives, by its controller. Not seen is not the same as stopped, and stopping is, in the end."""
        state = self._controller.state()
        if state.result == "unreadable" and not state.active:
            raise UndoError(f"whether {entry.target} runs cannot be told: {state.detail}")
        overdue = state.stopping and not self._asked and time.time() > entry.at + self.overdue_s
        return {"active": bool(state.active and not overdue)}

    def same(self, value: Any, present: Any) -> bool:
        """Both active, or both not."""
        return _active(value) == _active(present)

    def say(self, value: Any) -> str:
        """In a word."""
        return "active" if _active(value) else "stopped"

    def undo(self, entry: Entry) -> None:
        """Start without waiting for readiness, or stop with a short grace: it is a server that the run itself had started."""
        if not _active(entry.before):
            self._controller.stop(self.grace_s)
            return
        failure: list[Exception] = []
        self._asked = True
        thread = threading.Thread(target=_keep_error, args=(self._controller.start, failure), daemon=True)
        thread.start()
        # a unit of Type=notify keeps its start command waiting until it is ready, which may take 25 minutes
        deadline = time.monotonic() + self.start_looks_s
        while time.monotonic() < deadline and not failure:
            state = self._controller.state()
            if state.active and not state.stopping:
                return
            time.sleep(0.2)
        if failure:
            raise UndoError(f"{entry.target} could not be started: {failure[0]}")
        if not thread.is_alive():
            raise UndoError(
                f"{entry.target} was started, but is not active {self.start_looks_s:.0f} s later: {self._controller.state().detail}"
            )


def _keep_error(call: Callable[[], object], failure: list[Exception]) -> None:
    try:
        call()
    except Exception as error:
        failure.append(error)


def _active(value: Any) -> bool:
    return bool(value["active"] if isinstance(value, Mapping) else value)


class CacheAside(Change):
    """``target`` a cache's directory, values where its content is: the original path before, the renamed one after."""

    limit_s = 120.0

    def present(self, entry: Entry) -> str:
        """Where the old content is: as long as the renamed directory exists, it is there."""
        for where in (_at(entry.after), _at(entry.before)):
            if os.path.lexists(where):
                return where
        raise UndoError(f"{entry.target}: neither the cache nor its renamed copy {_at(entry.after)} exists any more")

    def same(self, value: Any, present: Any) -> bool:
        """The same path."""
        return _at(value) == _at(present)

    def say(self, value: Any) -> str:
        """The path."""
        return _at(value)

    def undo(self, entry: Entry) -> None:
        """Rename it back; what the run's own cold start has written there is removed. Not under a server that a boot has started."""
        from pathlib import Path

        from pytest_sglang.cache import aside
        from pytest_sglang.cache.users import users_of
        from pytest_sglang.session.undo import rebooted

        for user in users_of([Path(_at(entry.before))]) if rebooted(entry) else ():
            raise UndoError(f"{user.path} is in use by pid {user.pid} ({user.command}): stop it, then pytest-sglang undo")
        aside.restore([aside.described(_at(entry.before), _at(entry.after), self._context)])

    def tidy(self, entry: Entry) -> None:
        """A crash inside a rename leaves an empty new directory, or what had grown; restoring again takes those away."""
        self.undo(entry)


def _at(value: Any) -> str:
    return str(value["at"] if isinstance(value, Mapping) else value)


class Process(Change):
    """A process tree that the run started.

    ``target`` its pid, ``before`` None, ``after`` ``{"pid": ..., "started": ticks}`` with ``state.started_ticks(pid)``.
    """

    lost_by_reboot = True
    grace_s = 3.0

    def present(self, entry: Entry) -> dict[str, int] | None:
        """The same process, or None where it is gone (another one may have its pid)."""
        from pytest_sglang.session.state import started_ticks

        ticks = started_ticks(int(entry.after["pid"]))
        return dict(entry.after) if ticks is not None and ticks == int(entry.after["started"]) else None

    def say(self, value: Any) -> str:
        """Its pid."""
        return "gone" if value is None else f"alive (pid {value['pid']})"

    def undo(self, entry: Entry) -> None:
        """SIGTERM to the tree and to its session, then SIGKILL to what is left."""
        import psutil

        processes = _family(int(entry.after["pid"]))
        for process in processes:
            _ignoring_gone(process.terminate)
        psutil.wait_procs(processes[:1], timeout=self.grace_s)
        left = {*processes, *(child for each in processes if each.is_running() for child in _ignoring_gone(each.children) or [])}
        for process in left:
            _ignoring_gone(process.kill)
        psutil.wait_procs(list(left), timeout=self.grace_s)


def _family(pid: int) -> list[Any]:
    """The process, its descendants, and, where it leads a session, every member of that: a child whose parent died is found too."""
    import psutil

    top = psutil.Process(pid)
    found = [top, *top.children(recursive=True)]
    if os.getsid(pid) == pid:
        for each in psutil.process_iter():
            try:
                if os.getsid(each.pid) == pid and each not in found:
                    found.append(each)
            except OSError:
                continue
    return found


def _ignoring_gone(call: Callable[[], Any]) -> Any:
    import psutil

    try:
        return call()
    except psutil.NoSuchProcess:
        return None


class Directory(Change):
    """A directory that the run made, a simulated rig say, with everything inside.

    Context: ``{"call": "module:function", "argument": path}``, which removes it.
    """

    def present(self, entry: Entry) -> str | None:
        """Its path, or None."""
        return entry.target if os.path.lexists(entry.target) else None

    def undo(self, entry: Entry) -> None:
        """Call the remover."""
        named(str(self._context["call"]))(self._context.get("argument", entry.target))


def _run(command: list[str]) -> None:
    """Run a command that must succeed. Raises UndoError naming it and what it said."""
    import subprocess

    line = " ".join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise UndoError(f"{line}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise UndoError(f"{line}: no answer within 20 s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UndoError(f"{line}: exit status {done.returncode}{': ' + said[-1] if said else ''} (run it by hand as root)")


KINDS: dict[str, Callable[[Mapping[str, Any]], Undoer]] = {
    "power_limit": PowerLimit,
    "server": Server,
    "cache_aside": CacheAside,
    "process": Process,
    "directory": Directory,
}
"""The kinds of journal entries, each with its undoer."""
