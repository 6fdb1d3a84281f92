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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.session import journal
from pytest_sglang.session.errors import SessionError
from pytest_sglang.session.journal import JournalFile
from pytest_sglang.session.state import STATE_DIR_VARIABLE, SYSTEM_STATE_DIR, StateError, state_dir

SHARED = (Path("/run/lock"), Path("/tmp"))
"""Where everybody may make a file and nobody may take another's away; the first that is so. The same for every user, so never $TMPDIR."""
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
    """Who holds a shared lock, as the kernel tells it; ``pid`` None = not told (another process-id namespace)."""

    pid: int | None

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
            held = SharedHolder(_pid_of(descriptor))
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
        held = SharedHolder(_pid_of(descriptor))
        return None if held.pid == os.getpid() else held
    finally:
        os.close(descriptor)
    return None


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
    told = []
    for user, file in foreign():
        if file.owner is None or file.owner.alive():
            continue
        what = ", ".join(dict.fromkeys(f"{entry.kind} of {entry.target}" for entry in file.open))
        told.append(f"a dead run of {user} (run {file.run_id}) has left {what}: {_as(user)}pytest-sglang undo")
    return told


def _as(user: str) -> str:
    return "sudo " if user == "root" else f"sudo -u {user} "


def user_name(uid: int) -> str:
    """The name of a user; the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user id {uid}"
