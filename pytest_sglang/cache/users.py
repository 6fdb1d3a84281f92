"""Which processes use a directory at this moment: open files, mapped libraries, working directories, from /proc."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.cache.locate import parent_of


class User(NamedTuple):
    """A process that uses ``path``."""

    pid: int
    command: str
    path: str


def users_of(folders: Sequence[Path], *, ignore_pids: Collection[int] = ()) -> tuple[User, ...]:
    """Processes that have something below one of ``folders`` open, mapped or as working directory, one entry for each.

    ``ignore_pids`` are passed over with all their descendants, this process without its own. Processes of other users show nothing
    unless this one is root's.
    """
    roots = [os.path.realpath(folder) for folder in folders]
    found = []
    for pid in _pids():
        if pid == os.getpid() or _descends(pid, ignore_pids):
            continue
        used = _uses(pid, roots)
        if used is not None:
            found.append(User(pid, _command(pid), used))
    return tuple(found)


def _pids() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return []


def _descends(pid: int, ancestors: Collection[int]) -> bool:
    while pid > 1:
        if pid in ancestors:
            return True
        pid = parent_of(pid)
    return False


def _uses(pid: int, roots: Sequence[str]) -> str | None:
    if not roots:
        return None
    for path in _open_paths(pid):
        if any(path == root or path.startswith(root + "/") for root in roots):
            return path
    try:
        mapped = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return None
    return next((root for root in roots if b" " + os.fsencode(root) + b"/" in mapped), None)


def _open_paths(pid: int) -> Iterator[str]:
    try:
        names = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd"))]
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(name)
        except OSError:
            continue


def _command(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return text[:80] or Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone"
