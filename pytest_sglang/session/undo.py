"""Putting back what a dead run left changed: newest change first, only where the present value is still the run's own."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pytest_sglang.session import changes, everybody, journal, locks
from pytest_sglang.session.changes import Action, Undoer, UndoError
from pytest_sglang.session.journal import Entry, JournalFile
from pytest_sglang.session.state import boot_id

T = TypeVar("T")

CLAIM_WAIT_S = 90.0
"""How long to wait for another process (the guard) that is undoing the same run: as long as a stop may be under way."""
INLINE_SETTLE_S = 5.0
"""A change that settles sooner is waited for in its turn; a longer wait comes when everything else is undone."""
LOOK_EVERY_S = 0.25


class Outcome(NamedTuple):
    """What came of one change. "nothing to do": it is as it was before the run, or a reboot has reset it."""

    entry: Entry
    action: Action
    detail: str


def undo(
    state_dir: Path,
    *,
    run_id: str | None = None,
    dry_run: bool = False,
    force_owner: bool = False,
    held: Collection[str] = (),
    tell: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Undo every open change of dead runs (or of the run ``run_id``), the newest first; ``tell`` hears of each as it happens.

    A change whose owner lives is left alone, and so is one on a rig that another living run has locked; ``force_owner`` overrides
    both. ``held``: shared locks that this process holds itself. ``dry_run`` only looks. A change that cannot be undone is an outcome
    "failed", and stays in the journal. Raises StateError where the journals cannot be read.
    """
    outcomes: list[Outcome] = []

    def found(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if tell is not None:
            tell(outcome)

    for file in reversed(journal.open_entries(state_dir, run_id)):
        reason = None if force_owner else _hands_off(state_dir, file, held)
        if reason is not None:
            for entry in reversed(file.open):
                found(Outcome(entry, "owner alive", f"{changes.name_of(entry)} is left alone: {reason}"))
        elif dry_run:
            for outcome in _foresee(file):
                found(outcome)
        elif file.owner is None:
            _drop_unreadable(file)
        else:
            _undo_file(file, found)
    return outcomes


def _hands_off(state_dir: Path, file: JournalFile, held: Collection[str]) -> str | None:
    """Why the changes of this run are not to be touched; None = its owner is dead and nobody else is on the rig."""
    if file.owner is None:
        return None
    if file.owner.alive():
        return f"its run is alive, {file.owner.describe(file.entries[0].at if file.entries else None)}"
    for name in file.locks:
        holder = locks.holder(state_dir, name)
        if holder is not None and holder.owner.pid != os.getpid() and holder.owner.alive():
            return f"{name} is in use by a later run, {holder.owner.describe(holder.at)}"
        other = None if name in held or file.simulated else everybody.shared_holder(name)
        # a dead run's lock in the hands of its child or of its guard is nobody else's use of the rig
        if other is not None and other.alive and other.pid != file.owner.pid and not other.guards(file.run_id):
            return f"{name} is in use by another run, {other.describe()}"
    return None


def _drop_unreadable(file: JournalFile) -> None:
    """A file without one whole entry: its run died before it changed anything (or is about to write its first line)."""
    try:
        if time.time() - file.path.stat().st_mtime > 60.0:
            file.path.unlink()
    except OSError:
        pass


# --- one run -----------------------------------------------------------------------------------------------------------


def _undo_file(file: JournalFile, found: Callable[[Outcome], None]) -> None:
    try:
        with _claimed(file.path) as descriptor:
            if descriptor is not None:
                _Undoing(journal.read(file.path), descriptor, found).run()
    except OSError as error:
        for entry in file.open:
            found(Outcome(entry, "failed", f"{file.path}: {error.strerror or error}"))


@contextmanager
def _claimed(path: Path) -> Iterator[int | None]:
    """The journal, open for appending, while no other process undoes it; None where another one has finished it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        deadline = time.monotonic() + CLAIM_WAIT_S
        while not _flock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    0, f"another process has been undoing it for more than {CLAIM_WAIT_S:.0f} s (which one: fuser {path})"
                )
            time.sleep(0.1)
        yield descriptor if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()) else None
    finally:
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Undoing:
    """One pass over one run's open changes."""

    def __init__(self, file: JournalFile, descriptor: int, found: Callable[[Outcome], None]) -> None:
        self._file, self._descriptor, self._found = file, descriptor, found
        self._open = {entry.id: entry for entry in file.open}
        self._stuck: set[tuple[str, str]] = set()
        self._later: list[tuple[Entry, Undoer]] = []

    def run(self) -> None:
        """The run's own directories first, with all that is in them; then the rest, newest first; last what may still be changing.

        The file goes when nothing is left open.
        """
        newest_first = list(reversed(self._file.open))
        for entry in [each for each in newest_first if each.kind == "directory"]:
            if self._one(entry):
                self._void(entry.target)
        for entry in [each for each in newest_first if each.kind != "directory"]:
            if entry.id in self._open:
                self._one(entry)
        for entry, undoing in self._later:
            self._finish(entry, undoing, entry.at + undoing.settle_s(entry))
        if not self._open:
            self._file.path.unlink(missing_ok=True)

    def _void(self, directory: str) -> None:
        """Whatever was inside a removed directory (caches, server, stand-in of a simulated rig) is gone with it."""
        for entry in list(reversed(self._open.values())):
            if mentions([entry.target, entry.context], directory):
                self._close(entry, "nothing to do", f"{changes.name_of(entry)} belonged to {directory}, which is removed")

    def _one(self, entry: Entry) -> bool:
        """Undo one change, or put it off; True = it is settled."""
        if (entry.kind, entry.target) in self._stuck:
            # the older change rests on the newer: putting it back now would put back the wrong thing
            self._found(Outcome(entry, "failed", f"{changes.name_of(entry)}: waits for a later change of the same thing"))
            return False
        try:
            undoing = changes.undoer(entry)
        except Exception as error:
            return self._failed(entry, error)
        if _reset_by_reboot(entry, undoing):
            return self._close(
                entry, "nothing to do", f"{changes.name_of(entry)}: the machine was rebooted since, which has reset it"
            )
        until = entry.at + undoing.settle_s(entry)
        if until - time.time() > INLINE_SETTLE_S and not rebooted(entry):
            try:
                present = bounded(lambda: undoing.present(entry), undoing.limit_s)
                later = changes.judge(entry, undoing, present)[0] == "nothing to do" and _under_way(entry, undoing)
            except Exception as error:
                return self._failed(entry, error)
            if later:
                self._later.append((entry, undoing))
                self._stuck.add((entry.kind, entry.target))
                return False
        return self._finish(entry, undoing, until)

    def _finish(self, entry: Entry, undoing: Undoer, until: float) -> bool:
        """Undo, looking again until ``until`` while the value is still the old one: the change may be under way."""
        try:
            while True:
                action, detail = bounded(lambda: changes.act(entry, undoing), undoing.limit_s)
                # a clock that was set back must not make this wait for ever
                waiting = time.time() < until < time.time() + 600 and not rebooted(entry)
                if action != "nothing to do" or not waiting or not _under_way(entry, undoing):
                    return self._close(entry, action, detail)
                time.sleep(LOOK_EVERY_S)
        except Exception as error:
            return self._failed(entry, error)

    def _close(self, entry: Entry, action: Action, detail: str) -> bool:
        journal.append_resolution(self._descriptor, entry.id, f"{action}: {detail}")
        self._open.pop(entry.id, None)
        self._found(Outcome(entry, action, detail))
        return True

    def _failed(self, entry: Entry, error: Exception) -> bool:
        self._stuck.add((entry.kind, entry.target))
        self._found(Outcome(entry, "failed", _told(entry, error)))
        return False


def _told(entry: Entry, error: Exception) -> str:
    # the package's own errors are whole sentences; a KeyError's text alone would say nothing
    text = f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else str(error)
    return (
        f"{changes.name_of(entry)} could not be put back: {text} (before the run: {entry.before}; the run made it: {entry.after})"
    )


def _foresee(file: JournalFile) -> Iterator[Outcome]:
    """What ``undo`` would do, without waiting and without touching anything."""
    assumed: dict[tuple[str, str], Any] = {}
    removed: list[str] = []
    newest_first = list(reversed(file.open))
    for entry in sorted(newest_first, key=lambda each: each.kind != "directory"):
        subject = (entry.kind, entry.target)
        action: Action
        try:
            if any(mentions([entry.target, entry.context], directory) for directory in removed):
                action, detail = "nothing to do", f"{changes.name_of(entry)} would be gone with {removed[0]}"
            else:
                undoing = changes.undoer(entry)
                if _reset_by_reboot(entry, undoing):
                    action, detail = (
                        "nothing to do",
                        f"{changes.name_of(entry)}: the machine was rebooted since, which has reset it",
                    )
                else:
                    present = assumed[subject] if subject in assumed else bounded(lambda: undoing.present(entry), undoing.limit_s)  # noqa: B023
                    action, detail = changes.judge(entry, undoing, present)
        except Exception as error:
            action, detail = "failed", _told(entry, error)
        if action == "would undo":
            assumed[subject] = entry.before
            removed += [entry.target] if entry.kind == "directory" else []
        yield Outcome(entry, action, detail)


def _under_way(entry: Entry, undoing: Undoer) -> bool:
    return bounded(lambda: undoing.under_way(entry), undoing.limit_s)


def rebooted(entry: Entry) -> bool:
    """Whether the machine was booted since the change was made; False where the kernel does not tell."""
    now = boot_id()
    return bool(now and entry.boot_id) and now != entry.boot_id


def _reset_by_reboot(entry: Entry, undoing: Undoer) -> bool:
    """Whether a reboot has settled a change: what runs now, the boot or its owner has started, and it is not ours to stop."""
    started = entry.kind == "server" and isinstance(entry.before, dict) and entry.before.get("active") is False
    return (undoing.lost_by_reboot or started) and rebooted(entry)


def mentions(value: Any, directory: str) -> bool:
    """Whether a path at or below ``directory`` stands anywhere in plain JSON."""
    if isinstance(value, str):
        return value == directory or f"{directory.rstrip('/')}/" in value or value.endswith(directory)
    if isinstance(value, dict):
        return any(mentions(each, directory) for each in value.values())
    return isinstance(value, (list, tuple)) and any(mentions(each, directory) for each in value)


def bounded(call: Callable[[], T], limit_s: float) -> T:
    """``call()`` in a thread that is left behind when it takes longer: a call that is stuck in the driver cannot be interrupted.

    Raises what it raises, or UndoError.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True, name="undo")
    thread.start()
    thread.join(limit_s)
    if failure:
        raise failure[0]
    if not result:
        raise UndoError(f"no answer within {limit_s:.0f} s")
    return result[0]
