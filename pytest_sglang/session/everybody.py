"""What all users of a machine share: one lock per GPU and server in a directory that each may write to, and sight of others' journals.

State directories of root and of a user are apart, and neither may write into the other's; a rig is one all the same. Where
``PYTEST_SGLANG_STATE_DIR`` names a directory, that is the one for everybody, and no other is looked at.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.session import journal
from pytest_sglang.session.errors import SessionError
from pytest_sglang.session.journal import JournalFile
from pytest_sglang.session.state import STATE_DIR_VARIABLE, SYSTEM_STATE_DIR, StateError, boot_id, started_ticks, state_dir

SHARED = (Path("/run/lock"), Path("/tmp"))
"""Where everybody may make a file and nobody may take another's away; the first that is so. The same for every user, so never $TMPDIR."""
GUARD_MODULE = "pytest_sglang.session.guard"
"""What a guard's command line names."""
_TRIES = 5
_FIRST_PERSON = 1000
"""User ids below are the system's own (login.defs(5), UID_MIN)."""


def shared_dir() -> Path | None:
    """The directory for locks of all users: root's, writable by all, sticky; None where there is none."""
    for path in () if os.environ.get(STATE_DIR_VARIABLE) else SHARED:
        try:
            status = path.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and status.st_mode & 0o1002 == 0o1002:
            return path
    return None


def lock_name(name: str) -> str:
    """A file name for a lock: readable, and distinct for every name."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.lock"


def shared_path(directory: Path, name: str) -> Path:
    """The file of a lock that all users share."""
    return directory / f"pytest-sglang-{lock_name(name)}"


class SharedHolder(NamedTuple):
    """Who took a shared lock that is held, as the kernel tells it; ``pid`` None = not told (another process-id namespace).

    ``alive`` False: that process is dead, and a child that it left behind keeps the lock's descriptor.
    """

    pid: int | None
    alive: bool = True

    def guards(self, run_id: str | None = None) -> bool:
        """Whether it is a guard (of the run ``run_id``), which holds the lock while it puts back what a dead run has changed."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        return GUARD_MODULE in words and (run_id is None or ("--run", run_id) in pairwise(words))

    def describe(self) -> str:
        """How a message names it: pid, user, command."""
        if self.pid is None:
            return "a process that cannot be seen from here"
        words = [f"pid {self.pid}"]
        try:
            words.append(f"of {user_name(os.stat(f'/proc/{self.pid}').st_uid)}")
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            command = ""
        return " ".join(words) + (f": {command[:120]}" if command else "")


def take(path: Path) -> int | SharedHolder:
    """An exclusive lock on ``path``, as a descriptor to be kept, or who holds it. Never waits. Raises StateError.

    The file is never written and need not be one's own: the kernel's lock on it is all that counts. A link is not followed.
    """
    for _ in range(_TRIES):
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held = _holder_of(descriptor)
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return held
            raise _unusable(path, error) from None
        # a file that was removed meanwhile (an old one in /tmp) is nobody's lock any more
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)
    raise StateError(f"{path}: removed again and again while it was locked: look who does that")


def shared_holder(name: str) -> SharedHolder | None:
    """Who else holds the shared lock ``name``; None = nobody, or this very process."""
    directory = shared_dir()
    if directory is None:
        return None
    try:
        descriptor = os.open(shared_path(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        held = _holder_of(descriptor)
        return None if held.pid == os.getpid() else held
    finally:
        os.close(descriptor)
    return None


class Kept:
    """The shared locks of a dead run in its guard's hands: nobody is to measure on a rig that is half restored."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}

    @property
    def names(self) -> frozenset[str]:
        """What is held."""
        return frozenset(self._descriptors)

    def take(self, names: Iterable[str]) -> None:
        """Take what is free, in order, up to the first that a living process holds (two that wait never hold each other up)."""
        directory = shared_dir()
        if directory is None:
            return
        for name in sorted(set(names) - self.names):
            try:
                taken = take(shared_path(directory, name))
            except StateError:
                continue
            if isinstance(taken, int):
                self._descriptors[name] = taken
            elif taken.alive:
                return

    def release(self) -> None:
        """Let go of all. Safe to call twice."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _open(path: Path) -> int:
    """The lock file, made if need be: never through a link, and nothing but a plain file."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        for _ in range(_TRIES):
            try:
                # without O_CREAT: the kernel refuses that for others' files in a sticky directory (fs.protected_regular)
                descriptor = os.open(path, flags)
            except FileNotFoundError:
                try:
                    descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
                    os.fchmod(descriptor, 0o644)  # whatever the umask: the others must be able to open it
                except FileExistsError:
                    continue
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise StateError(f"{path}: not a plain file: look who made it, and remove it")
            return descriptor
    except OSError as error:
        raise _unusable(path, error) from None
    raise StateError(f"{path}: made and removed again and again: look who does that")


def _unusable(path: Path, error: OSError) -> StateError:
    why = "a symbolic link, which is not followed" if error.errno == errno.ELOOP else error.strerror or str(error)
    return StateError(f"{path}: {why}: all users of this rig lock it there; look who made it, and remove it")


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder_of(descriptor: int) -> SharedHolder:
    """Who took the lock on this file, and whether that process still has it: its number may have been given anew."""
    status, pid = os.fstat(descriptor), _pid_of(descriptor)
    if pid is None:
        # within a process-id namespace the kernel tells no dead taker: a lock that a process in sight has without having taken it
        # was inherited. Source: locks_translate_pid in the kernel's fs/locks.c
        heirs = (int(each) for each in os.listdir("/proc") if each.isdigit())
        return SharedHolder(None, not any(_has_open(each, status, "FLOCK") for each in heirs))
    return SharedHolder(pid, _exists(pid) and _has_open(pid, status) is not False)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    # another user's process may be out of sight (proc(5), hidepid), which is not death
    return started_ticks(pid) is not None or not Path(f"/proc/{pid}").exists()


def _has_open(pid: int, status: os.stat_result, word: str = "") -> bool | None:
    """Whether a process has this file open, with ``word`` in what /proc tells of the descriptor; None = not ours to look at."""
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for number in numbers:
        try:
            same = os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), status)
            if same and word in Path(f"/proc/{pid}/fdinfo/{number}").read_text(encoding="ascii", errors="replace"):
                return True
        except OSError:
            continue
    return False


def _pid_of(descriptor: int) -> int | None:
    """Who holds the lock on this file. Source: proc(5), /proc/locks: type, kind, access, pid, major:minor:inode."""
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == wanted and words[4].isdigit() and words[4] != "0":
            return int(words[4])
    return None


# --- others' journals ---------------------------------------------------------------------------------------------------------


class Foreign(NamedTuple):
    """Another user's journal with changes that still stand."""

    user: str
    file: JournalFile

    def describe(self) -> str:
        """A sentence: whose run, what it has left, and the line that puts it back."""
        what = ", ".join(dict.fromkeys(f"{entry.kind} of {entry.target}" for entry in self.file.open))
        return f"a dead run of {self.user} (run {self.file.run_id}) has left {what}: {_as(self.user)}pytest-sglang undo"


def directories() -> list[Path]:
    """State directories of other users, as far as they are in their usual places: root's, and for root those in the homes."""
    if os.environ.get(STATE_DIR_VARIABLE):
        return []
    found = [SYSTEM_STATE_DIR]
    if os.geteuid() == 0:
        people = (each for each in pwd.getpwall() if each.pw_uid >= _FIRST_PERSON)
        found += [Path(each.pw_dir) / ".local" / "state" / "pytest-sglang" for each in people]
    own = state_dir()
    return [each for each in dict.fromkeys(found) if each != own]


def foreign() -> Iterator[Foreign]:
    """Others' changes that still stand, where they can be read. They are looked at only: what stands in a journal is executed."""
    for directory in directories():
        try:
            paths = sorted((directory / journal.FOLDER).glob(f"*{journal.SUFFIX}"))
        except OSError:
            continue
        for path in paths:
            try:
                user, file = user_name(path.stat().st_uid), journal.read(path)
            except (OSError, SessionError):
                continue
            if file.open and file.owner is not None:
                yield Foreign(user, file)


def left_by_others() -> list[str]:
    """Changes of other users' dead runs on this machine, a sentence each with the line that puts them back."""
    return [each.describe() for each in foreign() if each.file.owner is not None and not each.file.owner.alive()]


def left_on(names: Iterable[str]) -> tuple[str, Foreign] | None:
    """One of the locks ``names`` whose rig another user's dead run has left changed since this boot, and that run's journal."""
    wanted, now = set(names), boot_id()
    for each in foreign():
        owner, common = each.file.owner, sorted(wanted.intersection(each.file.locks))
        if common and owner is not None and owner.boot_id == now and not owner.alive() and not each.file.simulated:
            return common[0], each
    return None


def _as(user: str) -> str:
    return "sudo " if user == "root" else f"sudo -u {user} "


def user_name(uid: int) -> str:
    """The name of a user; the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user id {uid}"
