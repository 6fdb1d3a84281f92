"""File systems under the caches, from /proc/self/mountinfo: mount points, types, options, what a reboot or a stop empties."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run")


class Mount(NamedTuple):
    """One mounted file system. Source: proc_pid_mountinfo(5), fields 4, 5, 6 and those behind the dash.

    ``root`` is the directory of the file system that is mounted, ``device`` what the file system is made of.
    """

    point: Path
    type: str
    options: frozenset[str]
    root: str = "/"
    device: str = ""


def mounts(text: str | None = None, *, pid: int | str = "self") -> tuple[Mount, ...]:
    """Every mount in the view of ``pid``, in mount order; ``text`` instead of its mountinfo. Empty where /proc does not tell."""
    if text is None:
        try:
            text = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ()
    found = []
    for line in text.splitlines():
        front, dash, back = line.partition(" - ")
        fields, behind = front.split(" "), back.split(" ")
        if dash and len(fields) >= 6 and len(behind) >= 3:
            options = frozenset((*fields[5].split(","), *behind[2].split(",")))
            found.append(Mount(Path(_unescaped(fields[4])), behind[0], options, _unescaped(fields[3]), _unescaped(behind[1])))
    return tuple(found)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def mount_of(path: Path, known: Iterable[Mount] | None = None) -> Mount | None:
    """The file system that ``path`` lies on, or would lie on if it existed; of several at one point the last one mounted."""
    real = Path(os.path.realpath(path))
    best: Mount | None = None
    for mount in mounts() if known is None else known:
        inside = mount.point == real or mount.point in real.parents
        if inside and (best is None or len(mount.point.parts) >= len(best.point.parts)):
            best = mount
    return best


def is_mount_point(path: Path, known: Iterable[Mount] | None = None) -> bool:
    """Whether ``path`` itself cannot be renamed because something is mounted on it (bind mounts included)."""
    real = Path(os.path.realpath(path))
    return any(mount.point == real for mount in (mounts() if known is None else known))


def mounts_inside(path: Path, known: Iterable[Mount] | None = None) -> tuple[Path, ...]:
    """Mount points strictly below ``path``."""
    real = Path(os.path.realpath(path))
    return tuple(sorted({mount.point for mount in (mounts() if known is None else known) if real in mount.point.parents}))


def in_memory(path: Path, known: Iterable[Mount] | None = None) -> bool:
    """Whether ``path`` lies on a file system that a reboot empties."""
    mount = mount_of(path, known)
    return mount is not None and mount.type in MEMORY


def temporary_root(path: Path, environ: Mapping[str, str] | None = None) -> Path | None:
    """The temporary directory that ``path`` lies in; None for a path that nobody cleans.

    Temporary is what the operating system may empty (file-hierarchy(7)), and what ``TMPDIR`` names in ``environ``.
    """
    named = [environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ and environ.get(name)]
    if environ is None:
        named = [tempfile.gettempdir()]
    for each in (*_TEMPORARY, *named):
        for form in (Path(each), Path(os.path.realpath(each))):
            if form == path or form in path.parents:
                return Path(each)
    return None
