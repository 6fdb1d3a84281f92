"""Every entry of every compile cache at one moment: a walk that only reads, and bears that a server writes meanwhile.

A second walk takes over Triton entries whose directory has not changed since the first one. That is sound where every file appears by
a rename, as Triton writes them; a file that is written in place does not change its directory, so other caches are read anew.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_sglang.cache.entries import MARKER, TRITON_ENTRY, Name, What, file_entry, triton_entry
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.mounts import Mount, mount_of, mounts

RACY_S = 2.0
"""A directory that changed so shortly before a snapshot may have changed again within the same tick of its file system's clock."""

_DAY_NS = 86_400 * 10**9

Keeping = Literal["never", "relative", "always"]
"""Whether a file system keeps the time of a reading. relative: when the kept one is older than the last change, or than a day (mount(8))."""


class Entry(NamedTuple):
    """A directory of a Triton cache, or one file of another cache. ``changed_ns`` is the newest modification time in it.

    ``folder_ns`` is the directory's own modification time, 0 where it says nothing about what is inside. ``read_ns`` is when it was
    last read (the group file of a Triton entry), ``tells`` whether the file system will keep the time of its next reading.
    """

    what: What
    kernel: str | None
    complete: bool
    files: int
    bytes: int
    changed_ns: int
    folder_ns: int = 0
    read_ns: int = 0
    tells: bool = False


class File(NamedTuple):
    """One file of a listing: what ``os.stat`` said."""

    name: str
    size: int
    mtime_ns: int
    atime_ns: int
    tells: bool


class PlaceSnapshot(NamedTuple):
    """One place: its entries by path relative to it. A place inside this one has its own; an absent one is an empty cache."""

    place: CachePlace
    exists: bool
    entries: dict[str, Entry]

    @property
    def files(self) -> int:
        """Files in the place."""
        return sum(entry.files for entry in self.entries.values())

    @property
    def bytes(self) -> int:
        """Bytes of these files."""
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def newest(self) -> float | None:
        """Epoch seconds of the newest entry; None for an empty cache."""
        return max((entry.changed_ns for entry in self.entries.values()), default=0) / 1e9 or None


class Snapshot(NamedTuple):
    """All places at one moment. ``unreadable`` has one sentence for each thing that should have been read and could not be."""

    places: tuple[PlaceSnapshot, ...]
    unreadable: tuple[str, ...]
    taken_at: float
    """Epoch seconds of this machine's clock when the walk began."""


def take(places: Sequence[CachePlace], since: Snapshot | None = None) -> Snapshot:
    """Read every place once; what vanishes under the walk is as if it had not been there.

    ``since``: an earlier snapshot, from which unchanged Triton entries are taken over (a sixth of the time).
    """
    taken_at = time.time()
    unreadable: list[str] = []
    roots = {str(place.here) for place in places}
    seen: dict[str, PlaceSnapshot] = {}
    earlier = {} if since is None else {str(each.place.here): each.entries for each in since.places}
    racy_ns = int(((since.taken_at if since is not None else 0.0) - RACY_S) * 1e9)
    known = mounts()
    for place in places:
        root = str(place.here)
        # two kinds may share a directory (both variables set to it): it is read for the first of them
        if root not in seen:
            walk = _Walk(place, root, roots - {root}, unreadable, earlier.get(root, {}), racy_ns, _keeping(place, known))
            seen[root] = walk.read()
    return Snapshot(tuple(seen.values()), tuple(unreadable), taken_at)


def _keeping(place: CachePlace, known: Sequence[Mount]) -> Keeping:
    mount = mount_of(place.here, known)
    if mount is None or "noatime" in mount.options or "ro" in mount.options:
        return "never"
    return "relative" if "relatime" in mount.options else "always"


class _Walk:
    """One place, read."""

    def __init__(
        self,
        place: CachePlace,
        root: str,
        others: set[str],
        unreadable: list[str],
        earlier: dict[str, Entry],
        racy_ns: int,
        keeping: Keeping,
    ) -> None:
        self.place, self.root, self.others, self.unreadable = place, root, others, unreadable
        self.earlier, self.racy_ns, self.keeping = earlier, racy_ns, keeping
        self.day_ago_ns = time.time_ns() - _DAY_NS

    def read(self) -> PlaceSnapshot:
        """Its snapshot; an absent place is an empty cache."""
        try:
            status = os.stat(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return PlaceSnapshot(self.place, False, {})
        except OSError as error:
            self.unreadable.append(f"{self.place.kind} cache {self.place.path}: {error.strerror}")
            return PlaceSnapshot(self.place, False, {})
        if not stat.S_ISDIR(status.st_mode):
            self.unreadable.append(f"{self.place.kind} cache {self.place.path}: not a directory")
            return PlaceSnapshot(self.place, False, {})
        return PlaceSnapshot(self.place, True, dict(self._entries()))

    def _entries(self) -> Iterator[tuple[str, Entry]]:
        folders = [""]
        while folders:
            folder = folders.pop()
            path = f"{self.root}/{folder}" if folder else self.root
            is_entry = TRITON_ENTRY.fullmatch(folder.rpartition("/")[2]) is not None
            try:
                folder_ns = os.stat(path).st_mtime_ns if is_entry else 0
                same = self._unchanged(folder, path, folder_ns) if is_entry else None
                if same is not None:
                    yield folder, same
                    continue
                files, inner = self._list(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self.unreadable.append(f"{self.place.kind} cache {path}: {error.strerror}")
                continue
            if is_entry:
                yield from _triton(folder, files, 0 if inner else folder_ns)
            else:
                yield from _plain(self.place.kind, folder, files)
            names = (f"{folder}/{each}" if folder else each for each in inner)
            folders += [name for name in names if f"{self.root}/{name}" not in self.others]

    def _unchanged(self, folder: str, path: str, folder_ns: int) -> Entry | None:
        """The earlier entry, with the newest time of its reading, where its directory is what it was."""
        was = self.earlier.get(folder)
        if was is None or was.kernel is None or not was.complete or was.folder_ns != folder_ns or folder_ns > self.racy_ns:
            return None
        try:
            group = os.stat(f"{path}/__grp__{was.kernel}.json", follow_symlinks=False)
        except OSError:
            return None
        if group.st_mtime_ns > was.changed_ns:
            return None
        if group.st_atime_ns == was.read_ns:
            return was
        return was._replace(read_ns=group.st_atime_ns, tells=self._tells(group))

    def _tells(self, status: os.stat_result) -> bool:
        if self.keeping != "relative":
            return self.keeping == "always"
        read_ns = status.st_atime_ns
        return read_ns <= max(status.st_mtime_ns, status.st_ctime_ns) or read_ns < self.day_ago_ns

    def _list(self, path: str) -> tuple[list[File], list[str]]:
        """Files and directories in ``path``. Raises OSError."""
        files: list[File] = []
        inner: list[str] = []
        with os.scandir(path) as listing:
            for item in listing:
                if item.name.startswith(MARKER):
                    continue
                if item.is_dir(follow_symlinks=False):
                    inner.append(item.name)
                    continue
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                files.append(File(item.name, status.st_size, status.st_mtime_ns, status.st_atime_ns, self._tells(status)))
        return files, inner


def _triton(folder: str, files: list[File], folder_ns: int) -> Iterator[tuple[str, Entry]]:
    if files:
        name = triton_entry({file.name for file in files})
        group = next((file for file in files if file.name.startswith("__grp__")), None)
        yield folder, _entry(name, files, folder_ns, group)


def _plain(kind: str, folder: str, files: list[File]) -> Iterator[tuple[str, Entry]]:
    for file in files:
        name = file_entry(kind, folder, file.name)
        yield f"{folder}/{file.name}" if folder else file.name, _entry(name, [file], 0, file if name.what == "graph" else None)


def _entry(name: Name, files: list[File], folder_ns: int, read: File | None) -> Entry:
    return Entry(
        name.what,
        name.kernel,
        name.complete,
        len(files),
        sum(file.size for file in files),
        max(file.mtime_ns for file in files),
        folder_ns,
        read.atime_ns if read is not None else 0,
        read is not None and read.tells,
    )


def newest(places: Sequence[CachePlace]) -> tuple[int, int]:
    """Something that changes as long as a cache grows: (newest modification time of a directory in ns, number of directories).

    Cheap enough for a watchdog to ask every second: new entries change the directory that holds them, so files are not looked at.
    """
    latest, count = 0, 0
    for root in {str(place.here) for place in places}:
        folders = [root]
        while folders:
            path = folders.pop()
            try:
                latest = max(latest, os.stat(path).st_mtime_ns)
                with os.scandir(path) as listing:
                    inner = [item for item in listing if item.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            count += len(inner)
            folders += [item.path for item in inner if not TRITON_ENTRY.fullmatch(item.name) and not item.name.startswith(MARKER)]
    return latest, count


def kernels(snapshot: Snapshot) -> dict[str, int]:
    """Compiled kernels by name, with the number of their entries, over all caches."""
    found: dict[str, int] = {}
    for place in snapshot.places:
        for entry in place.entries.values():
            if entry.kernel is not None:
                found[entry.kernel] = found.get(entry.kernel, 0) + 1
    return dict(sorted(found.items()))


def roots(places: Sequence[CachePlace]) -> list[Path]:
    """The outermost existing directories of ``places`` in our own view, symbolic links resolved: each file lies in exactly one."""
    existing = sorted({Path(os.path.realpath(place.path)) for place in places if not place.through and place.path.is_dir()})
    return [path for path in existing if not any(other in path.parents for other in existing)]
