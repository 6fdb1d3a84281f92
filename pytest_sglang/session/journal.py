"""The journal of a run: every change of somebody's rig is on disk before it is made, so that another process can undo it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from pytest_sglang.session.errors import SessionError
from pytest_sglang.session.state import STATE_DIR_VARIABLE, Owner, boot_id, ensure, sync_directory

FOLDER = "journal"
SUFFIX = ".jsonl"


class JournalError(SessionError):
    """A change could not be journalled, so it must not be made."""


class Entry(NamedTuple):
    """One change. ``before`` and ``after`` are plain JSON values of ``target``; ``context`` is what undoing needs.

    ``at``: epoch seconds, stamped before the change was made. ``id`` counts from 1 within a run.
    """

    id: int
    kind: str
    target: str
    before: Any
    after: Any
    boot_id: str
    owner: Owner
    at: float
    context: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return {**self._asdict(), "owner": self.owner.plain()}

    @classmethod
    def from_plain(cls, data: Any) -> Entry:
        """The entry that ``plain`` described. Raises ValueError."""
        try:
            owner = Owner.from_plain(data["owner"])
            return cls(
                int(data["id"]),
                str(data["kind"]),
                str(data["target"]),
                data["before"],
                data["after"],
                str(data["boot_id"]),
                owner,
                float(data["at"]),
                dict(data["context"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a journal entry: {error!r}") from None


class JournalFile(NamedTuple):
    """What stands in one run's journal. ``damaged`` counts lines that are no JSON: a write cut by a power loss."""

    path: Path
    run_id: str
    entries: tuple[Entry, ...]
    resolved: dict[int, str]
    locks: tuple[str, ...] = ()
    damaged: int = 0
    covered_by: Owner | None = None
    """Whose locks these are: a run that has changed nothing yet has no entry."""

    @property
    def open(self) -> tuple[Entry, ...]:
        """Changes that nobody has undone or given up, oldest first."""
        return tuple(entry for entry in self.entries if entry.id not in self.resolved)

    @property
    def simulated(self) -> bool:
        """Whether the run was on a simulated rig, whose first change is a directory of its own: all users' locks are not its."""
        return any(entry.kind == "directory" for entry in self.entries)

    @property
    def owner(self) -> Owner | None:
        """Whose changes these are; None for a file without a readable line of it."""
        return self.entries[-1].owner if self.entries else self.covered_by


class Journal:
    """The journal of a living run. Safe to use from several threads; a forked child cannot write to it."""

    def __init__(self, state_dir: Path, owner: Owner) -> None:
        self.state_dir, self.owner = state_dir, owner
        self.path = path_of(state_dir, owner.run_id)
        self._mutex = threading.Lock()
        self._entries: dict[int, Entry] = {}
        self._resolved: set[int] = set()
        self._file = -1

    def record(self, kind: str, target: str, before: Any, after: Any, context: dict[str, Any] | None = None) -> Entry:
        """Write down a change that is about to be made; it is on disk when this returns. Raises JournalError: do not make it."""
        with self._mutex:
            entry = Entry(len(self._entries) + 1, kind, target, before, after, boot_id(), self.owner, time.time(), context or {})
            self._write({"line": "change", **entry.plain()}, f"{kind} of {target} was not changed")
            self._entries[entry.id] = entry
            return entry

    def resolve(self, entry_id: int, how: str) -> None:
        """Write down that a change is undone, or is not ours any more; ``how`` in a few words. Twice is harmless.

        Later changes of the same thing are resolved with it.
        """
        with self._mutex:
            if entry_id in self._resolved:
                return
            if entry_id not in self._entries:
                raise JournalError(f"{self.path}: no entry {entry_id} (entries: {sorted(self._entries) or 'none'})")
            subject = self._entries[entry_id].kind, self._entries[entry_id].target
            self._resolve(entry_id, how)
            # the thing is as it was before this change, so it is no more as a later change had made it: undoing that one too
            # would, say, stop a server which the run has just given back
            for entry in reversed(self.open):
                if entry.id > entry_id and (entry.kind, entry.target) == subject:
                    self._resolve(entry.id, f"settled with entry {entry_id}: {how}")

    def _resolve(self, entry_id: int, how: str) -> None:
        self._write(_resolution(entry_id, how), f"entry {entry_id} stays open")
        self._resolved.add(entry_id)

    def covers(self, locks: list[str]) -> None:
        """Name the locks under which this run works: its changes are not undone under a later run that holds one of them."""
        with self._mutex:
            self._write({"line": "locks", "names": list(locks), "owner": self.owner.plain()}, "nothing was changed")

    @property
    def open(self) -> tuple[Entry, ...]:
        """Changes that still stand, oldest first."""
        return tuple(entry for number, entry in self._entries.items() if number not in self._resolved)

    def close(self) -> tuple[Entry, ...]:
        """Close the file, and delete it if every change is resolved. Twice is harmless.

        Gives the changes that still stand: the guard undoes them when this process has ended.
        """
        with self._mutex:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                if not self.open and os.getpid() == self.owner.pid:
                    self.path.unlink(missing_ok=True)
            return self.open

    def _write(self, line: dict[str, Any], consequence: str) -> None:
        if os.getpid() != self.owner.pid:
            raise JournalError(
                f"{self.path}: belongs to pid {self.owner.pid}, this is pid {os.getpid()}: make changes in the run's own process"
            )
        try:
            if self._file < 0:
                self._file = _create(self.path)
            append(self._file, line)
        except OSError as error:
            what = error.strerror or str(error)
            hint = f"set {STATE_DIR_VARIABLE} to a writable directory that outlives the run, on a local disk"
            raise JournalError(f"{self.path}: {what}, so {consequence} ({hint})") from None


def path_of(state_dir: Path, run_id: str) -> Path:
    """The journal file of a run. Raises JournalError for an id that is no file name."""
    if not run_id or "/" in run_id or run_id.startswith("."):
        raise JournalError(f"run id {run_id!r} cannot be a file name (use letters, digits, '-', '_', '.')")
    return state_dir / FOLDER / f"{run_id}{SUFFIX}"


def _create(path: Path) -> int:
    ensure(ensure(path.parent.parent) / path.parent.name)
    # root's can be read by all: a user who would drop caches must see whose they are. It holds no secret
    mode = 0o644 if os.geteuid() == 0 else 0o600
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
    sync_directory(path.parent)
    sync_directory(path.parent.parent)
    return descriptor


def append(descriptor: int, line: dict[str, Any]) -> None:
    """Append one JSON line and fsync. A line that was cut before it is closed first, so that it spoils nothing but itself."""
    text = json.dumps(line, ensure_ascii=False) + "\n"
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        text = "\n" + text
    data = text.encode()
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _resolution(entry_id: int, how: str) -> dict[str, Any]:
    return {"line": "resolved", "id": entry_id, "how": how, "at": time.time()}


def append_resolution(descriptor: int, entry_id: int, how: str) -> None:
    """What ``Journal.resolve`` writes, for the process that undoes after the owner's death."""
    append(descriptor, _resolution(entry_id, how))


def read(path: Path) -> JournalFile:
    """What stands in a journal file; a cut or damaged line is counted, not raised: what it was to announce has not been done.

    Raises OSError.
    """
    entries: dict[int, Entry] = {}
    resolved: dict[int, str] = {}
    locks: tuple[str, ...] = ()
    damaged = 0
    covered_by: Owner | None = None
    for raw in path.read_bytes().split(b"\n"):
        if not raw.strip(b" \x00"):
            continue
        try:
            data = json.loads(raw)
            if data["line"] == "change":
                entry = Entry.from_plain(data)
                entries[entry.id] = entry
            elif data["line"] == "resolved":
                resolved[int(data["id"])] = str(data["how"])
            elif data["line"] == "locks":
                locks = tuple(str(name) for name in data["names"])
                covered_by = Owner.from_plain(data["owner"]) if "owner" in data else None
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return JournalFile(path, path.name.removesuffix(SUFFIX), tuple(entries.values()), resolved, locks, damaged, covered_by)


def open_entries(state_dir: Path, run_id: str | None = None) -> list[JournalFile]:
    """Every journal that is there (or that of one run), the oldest first; raises StateError where the folder cannot be read.

    A file of another user is left out: what stands in a journal is executed.
    """
    from pytest_sglang.session.state import unusable

    folder = state_dir / FOLDER
    found: list[tuple[float, JournalFile]] = []
    try:
        paths = [path_of(state_dir, run_id)] if run_id is not None else sorted(folder.glob(f"*{SUFFIX}"))
    except OSError as error:
        raise unusable(folder, error) from None
    for path in paths:
        try:
            status = path.stat()
            if status.st_uid == os.geteuid():
                found.append((status.st_mtime, read(path)))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise unusable(path, error) from None
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]
