"""The machine-wide state directory, and who owns a change: a process that is alive, or one that died with its changes undone."""

from __future__ import annotations

import os
import sys
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pytest_sglang.session.errors import SessionError

STATE_DIR_VARIABLE = "PYTEST_SGLANG_STATE_DIR"
SYSTEM_STATE_DIR = Path("/var/lib/pytest-sglang")


class StateError(SessionError):
    """The state directory cannot be used; nothing has been changed."""


def state_dir() -> Path:
    """Where locks and journals live: machine-wide for root, below ``$XDG_STATE_HOME`` else; never made here.

    Outside every workspace, because a CI runner wipes that. ``PYTEST_SGLANG_STATE_DIR`` overrides it.
    """
    named = os.environ.get(STATE_DIR_VARIABLE)
    if named:
        return Path(named).absolute()
    if os.geteuid() == 0:
        return SYSTEM_STATE_DIR
    base = os.environ.get("XDG_STATE_HOME", "")
    # the XDG base directory specification: a relative path is invalid and is to be ignored
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "pytest-sglang"


def ensure(directory: Path) -> Path:
    """``directory`` with its parents, made if need be: 0755 for root, 0700 for others. Raises StateError."""
    mode = 0o755 if os.geteuid() == 0 else 0o700
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise unusable(directory, error) from None
    return directory


def unusable(path: Path, error: OSError) -> StateError:
    """What to tell when ``path`` in the state directory cannot be used."""
    what = error.strerror or str(error)
    return StateError(f"{path}: {what} (set {STATE_DIR_VARIABLE} to a writable directory that outlives the run, on a local disk)")


def sync_directory(directory: Path) -> None:
    """fsync of a directory: a file made in it is found again after a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def boot_id() -> str:
    """The kernel's random id of this boot; empty where /proc does not tell (source: random(4))."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def started_ticks(pid: int) -> int | None:
    """Start time of a living process in clock ticks since boot; None for one that is gone, or dead and not yet reaped.

    Source: proc_pid_stat(5), fields 3 (state) and 22 (starttime). With the pid it names a process for the whole of a boot.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the second field, the command, may hold blanks and brackets: count from the last one
    fields = stat[stat.rfind(")") + 2 :].split()
    if len(fields) < 20 or fields[0] in ("Z", "X", "x"):
        return None
    return int(fields[19])


class Owner(NamedTuple):
    """A process that owns a run: pid and start time name it beyond doubt within one boot."""

    pid: int
    started: int
    command: str
    run_id: str
    boot_id: str
    user: int = 0

    @classmethod
    def me(cls, run_id: str) -> Owner:
        """This process, as the owner of run ``run_id``."""
        pid = os.getpid()
        command = " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])
        return cls(pid, started_ticks(pid) or 0, command, run_id, boot_id(), os.geteuid())

    def alive(self) -> bool:
        """Whether that very process lives: same boot, same pid, same start time, not merely waiting to be reaped."""
        return self.boot_id == boot_id() and started_ticks(self.pid) == self.started

    def plain(self) -> dict[str, Any]:
        """As JSON types, for ``from_plain``."""
        return self._asdict()

    @classmethod
    def from_plain(cls, data: Any) -> Owner:
        """The owner that ``plain`` described. Raises ValueError."""
        try:
            return cls(
                int(data["pid"]),
                int(data["started"]),
                str(data["command"]),
                str(data["run_id"]),
                str(data["boot_id"]),
                int(data["user"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an owner: {error!r}") from None

    def describe(self, since: float | None = None) -> str:
        """How a message names it: pid, age (``since``: epoch seconds), command, run."""
        from pytest_sglang.record.units import duration

        age = "" if since is None else f", for {duration(max(0.0, time.time() - since))}"
        return f"pid {self.pid}{age}: {self.command} (run {self.run_id})"


class HeldFiles(Protocol):
    """Something that holds descriptors whose meaning is "this process lives"."""

    def forget(self) -> None:
        """Close them without any other effect."""


_held: weakref.WeakSet[Any] = weakref.WeakSet()


def not_in_forks(holder: HeldFiles) -> None:
    """Have ``holder.forget()`` called in every child made by fork without exec.

    Such a child (multiprocessing) would keep a lock held, and a pipe open, that tell the world that the run is alive.
    """
    _held.add(holder)


def _after_fork() -> None:
    for holder in list(_held):
        holder.forget()


os.register_at_fork(after_in_child=_after_fork)
