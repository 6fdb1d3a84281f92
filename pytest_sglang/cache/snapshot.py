"""Every entry of every compile cache at one moment: a walk that only reads, and bears that a server writes meanwhile."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.cache.entries import MARKER, TRITON_ENTRY, Name, What, file_entry, triton_entry
from pytest_sglang.cache.locate import CachePlace


class Entry(NamedTuple):
    """A directory of a Triton cache, or one file of another cache. ``changed_ns`` is the newest modification time in it."""

    what: What
    kernel: str | None
    complete: bool
    files: int
    bytes: int
    changed_ns: int


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


def take(places: Sequence[CachePlace]) -> Snapshot:
    """Read every place once; what vanishes under the walk is as if it had not been there."""
    taken_at = time.time()
    unreadable: list[str] = []
    roots = {str(place.here) for place in places}
    seen: dict[str, PlaceSnapshot] = {}
    for place in places:
        root = str(place.here)
        # two kinds may share a directory (both variables set to it): it is read for the first of them
        if root not in seen:
            seen[root] = _place(place, roots - {root}, unreadable)
    return Snapshot(tuple(seen.values()), tuple(unreadable), taken_at)


def _place(place: CachePlace, others: set[str], unreadable: list[str]) -> PlaceSnapshot:
    root = str(place.here)
    try:
        status = os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        return PlaceSnapshot(place, False, {})
    except OSError as error:
        unreadable.append(f"{place.kind} cache {place.path}: {error.strerror}")
        return PlaceSnapshot(place, False, {})
    if not stat.S_ISDIR(status.st_mode):
        unreadable.append(f"{place.kind} cache {place.path}: not a directory")
        return PlaceSnapshot(place, False, {})
    return PlaceSnapshot(place, True, dict(_walk(place, root, others, unreadable)))


def _walk(place: CachePlace, root: str, others: set[str], unreadable: list[str]) -> Iterator[tuple[str, Entry]]:
    folders = [""]
    while folders:
        folder = folders.pop()
        path = f"{root}/{folder}" if folder else root
        files: list[tuple[str, int, int]] = []
        inner: list[str] = []
        try:
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
                    files.append((item.name, status.st_size, status.st_mtime_ns))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unreadable.append(f"{place.kind} cache {path}: {error.strerror}")
            continue
        if TRITON_ENTRY.fullmatch(folder.rpartition("/")[2]):
            yield from _triton(folder, files)
        else:
            yield from _plain(place.kind, folder, files)
        folders += [name for each in inner if f"{root}/{(name := f'{folder}/{each}' if folder else each)}" not in others]


def _triton(folder: str, files: list[tuple[str, int, int]]) -> Iterator[tuple[str, Entry]]:
    if files:
        yield folder, _entry(triton_entry({name for name, _, _ in files}), files)


def _plain(kind: str, folder: str, files: list[tuple[str, int, int]]) -> Iterator[tuple[str, Entry]]:
    for file in files:
        yield f"{folder}/{file[0]}" if folder else file[0], _entry(file_entry(kind, folder, file[0]), [file])


def _entry(name: Name, files: list[tuple[str, int, int]]) -> Entry:
    size = sum(file[1] for file in files)
    return Entry(name.what, name.kernel, name.complete, len(files), size, max(file[2] for file in files))


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
