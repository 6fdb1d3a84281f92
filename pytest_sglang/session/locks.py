"""One lock per GPU and per server URL: two runs on one rig would judge each other's load, and undo each other's changes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.session import everybody
from pytest_sglang.session.errors import SessionError
from pytest_sglang.session.everybody import Foreign, SharedHolder
from pytest_sglang.session.state import Owner, ensure, not_in_forks, unusable

GUARD_WAIT_S = 10.0
"""How long a new run waits for a guard that is putting back what a dead run has changed, before it is refused."""
_LOOK_EVERY_S = 0.1


class Holder(NamedTuple):
    """Who wrote a lock's content: the owner and when it took the lock (epoch seconds)."""

    owner: Owner
    at: float


class LockHeld(SessionError):
    """A lock of the rig is held by another run; nothing was locked and nothing was changed."""

    def __init__(self, name: str, holder: Holder | SharedHolder | Foreign | None, path: Path) -> None:
        self.name = name
        self.owner = holder.owner if isinstance(holder, Holder) else None
        super().__init__(_held_message(name, holder, path))


def _held_message(name: str, holder: Holder | SharedHolder | Foreign | None, path: Path) -> str:
    if isinstance(holder, Foreign):
        return f"{name} is not as its owner left it: {holder.describe()} (its guard may be at it: wait a moment and try again)"
    if isinstance(holder, SharedHolder) and not holder.alive:
        who = "" if holder.pid is None else f", pid {holder.pid}"
        return (
            f"{name} was in use by a run that is dead{who}, and a process that it left behind still holds the lock "
            f"(which one: fuser {path}); end that process"
        )
    if isinstance(holder, SharedHolder) and holder.guards():
        return (
            f"what a dead run has changed on {name} is being put back by its guard, pid {holder.pid} ({path}). Wait for it to end"
        )
    if isinstance(holder, SharedHolder):
        return f"{name} is in use by another run, {holder.describe()} ({path}). Wait for it to end"
    if holder is None:
        return f"{name} is in use by another run (who it is: fuser {path}); wait for it to end"
    if holder.owner.alive():
        return (
            f"{name} is in use by another run, {holder.owner.describe(holder.at)}. Wait for it to end, or interrupt it: "
            f"kill -INT {holder.owner.pid} (it puts everything back and ends)"
        )
    return (
        f"{name} was in use by a run that is dead, {holder.owner.describe(holder.at)}, and a process that it left behind "
        f"still holds the lock (which one: fuser {path}); end that process"
    )


def lock_path(state_dir: Path, name: str) -> Path:
    """The file of a lock: readable, and distinct for every name."""
    return state_dir / "locks" / everybody.lock_name(name)


def holder(state_dir: Path, name: str) -> Holder | None:
    """Who holds the lock ``name`` at this moment; None = nobody, or somebody who has not yet written who."""
    path = lock_path(state_dir, name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # a shared lock is refused exactly while a run holds the exclusive one
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None


class RigLocks:
    """The locks of one run, all or none. The kernel lets go of them when the process dies, however it dies.

    ``shared``: a directory in which they are locked once more, for users whose state directories are elsewhere.
    """

    def __init__(self, state_dir: Path, names: Iterable[str], shared: Path | None = None) -> None:
        self.state_dir, self._shared = state_dir, shared
        # sorted: two runs that want overlapping sets never each hold what the other waits for
        self.names = sorted(set(names))
        self._descriptors: dict[str, int] = {}
        self._signed: set[str] = set()
        not_in_forks(self)

    def acquire(self, owner: Owner) -> RigLocks:
        """Take every lock, waiting for nothing but a guard at work, and write ``owner`` into it. Raises LockHeld, StateError; then none is held.

        A lock left by a run that died a moment ago is taken only when that run's changes are undone (its guard may be at it);
        another user's are that user's to undo, so where their journal can be read LockHeld tells of them.
        """
        folder = ensure(ensure(self.state_dir) / "locks")
        try:
            dead = {self._take(lock_path(self.state_dir, name), name) for name in self.names} - {None}
            self._take_shared()
            for run_id in dead:
                self._settle(str(run_id))
            self._sign(owner)
        except OSError as error:
            self.release()
            raise unusable(folder, error) from None
        except BaseException:
            self.release()
            raise
        return self

    def _take(self, path: Path, name: str) -> str | None:
        """Take one lock; the run id of its last owner, if that died while it held it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._descriptors[name] = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise LockHeld(name, _read(descriptor), path) from None
        before = _read(descriptor)
        return None if before is None or before.owner.alive() else before.owner.run_id

    def _take_shared(self) -> None:
        if self._shared is None:
            return
        deadline = time.monotonic() + GUARD_WAIT_S
        for name in self.names:
            path = everybody.shared_path(self._shared, name)
            taken = everybody.take(path)
            while isinstance(taken, SharedHolder) and taken.guards() and time.monotonic() < deadline:
                time.sleep(_LOOK_EVERY_S)
                taken = everybody.take(path)
            if isinstance(taken, SharedHolder):
                raise LockHeld(name, taken, path)
            self._descriptors[f"shared {name}"] = taken
        # looked at under the locks: a guard that comes later waits for this run
        left = everybody.left_on(self.names)
        if left is not None:
            raise LockHeld(*left, everybody.shared_path(self._shared, left[0]))

    def _settle(self, run_id: str) -> None:
        from pytest_sglang.session.undo import undo

        undo(self.state_dir, run_id=run_id, held=self.names)

    def _sign(self, owner: Owner) -> None:
        for name in self.names:
            descriptor = self._descriptors[name]
            content = json.dumps({"name": name, "at": time.time(), "owner": owner.plain()}) + "\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content.encode(), 0)
            self._signed.add(name)

    def release(self) -> None:
        """Let go of every lock. Safe to call twice."""
        for name, descriptor in self._descriptors.items():
            # an empty lock file says that its last run ended in order
            if name in self._signed:
                os.ftruncate(descriptor, 0)
            # explicitly: a child that is being forked at this moment still has the descriptor
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Close the descriptors only: in a forked child this leaves the parent's locks alone."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._signed.clear()

    def __enter__(self) -> RigLocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _read(descriptor: int) -> Holder | None:
    try:
        data = json.loads(os.pread(descriptor, 65536, 0))
        return Holder(Owner.from_plain(data["owner"]), float(data["at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
