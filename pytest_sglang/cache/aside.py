"""Cold on purpose, losing nothing: every cache directory is renamed inside its own file system, and comes back by a rename.

No copy, no deletion of anything that was there before. The names on disk tell the state at every instant, so ``restore`` needs
nothing but the plan that was journalled before the first rename, wherever a crash came between:

- ``<cache>.aside-<token>`` is there: the old cache is in it. Whatever stands at the original path came later.
- a directory at the original path that holds ``.pytest-sglang-<token>`` was made by us: what has grown in it may go.
- anything else at the original path is somebody's: it is kept as ``<cache>.found-<token>``.

A mount point cannot be renamed: its children are moved into ``.pytest-sglang-aside-<token>`` inside it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pytest_sglang.cache.entries import MARKER
from pytest_sglang.cache.locate import HEADERS, CachePlace
from pytest_sglang.cache.machine import Machine
from pytest_sglang.cache.mounts import MEMORY, in_memory, is_mount_point, mounts, mounts_inside, temporary_root
from pytest_sglang.cache.snapshot import roots
from pytest_sglang.cache.users import users_of

_COMPLETE = "-complete"
_NOT_MOVED = ("lost+found", MARKER)
"""Begins of names that stay where they are in a mount point: the file system's own, and ours."""


class AsideError(Exception):
    """A cache could not be set aside or put back; the message names the path, and where the old cache is now."""


class Moved(NamedTuple):
    """One rename, planned or done. ``children``: ``original`` is a mount point, its children move into ``aside`` inside it."""

    original: Path
    aside: Path
    kind: str
    token: str
    children: bool = False

    @property
    def grown(self) -> Path:
        """Where what has grown meanwhile goes before it is removed."""
        return self._beside("grown")

    @property
    def found(self) -> Path:
        """Where somebody else's files at the original path are kept."""
        return self._beside("found")

    @property
    def fresh(self) -> Path:
        """Where the new empty directory gets its owner and mode before it appears at the original path."""
        return self._beside("new")

    def _beside(self, what: str) -> Path:
        if self.children:
            return self.original / f"{MARKER}{what}-{self.token}"
        return self.original.with_name(f"{self.original.name}.{what}-{self.token}")

    @property
    def marker(self) -> str:
        """Name of the file that tells a directory of ours from anybody else's."""
        return MARKER + self.token


def plan_aside(places: Sequence[CachePlace], *, token: str) -> list[Moved]:
    """The renames that set the existing caches aside, before anything is done; a cache inside another one goes with it.

    ``token`` names the run in the new names; characters that are awkward in a file name are replaced.
    """
    token, places = re.sub(r"[^A-Za-z0-9._-]", "-", token), _movable(places)
    kinds: dict[Path, list[str]] = {}
    outer = roots(places)
    for place in places:
        path = Path(os.path.realpath(place.path))
        if path in outer and not place.through:
            kinds.setdefault(path, []).append(place.kind)
    plan = []
    for root in outer:
        children = is_mount_point(root)
        aside = root / f"{MARKER}aside-{token}" if children else root.with_name(f"{root.name}{_ASIDE}{token}")
        plan.append(Moved(root, aside, "+".join(kinds[root]), token, children))
    return plan


def standing(places: Sequence[CachePlace]) -> list[Moved]:
    """Caches that are set aside at this moment, by the names beside (or inside) the places; the oldest first.

    What a killed run or an owner has renamed is found like this without any record of it.
    """
    found: dict[Path, Moved] = {}
    for place in _movable(places):
        if place.through:
            continue
        path = Path(os.path.realpath(place.path))
        beside, inside = f"{path.name}{_ASIDE}", f"{MARKER}aside-"
        for folder, begin, children in ((path.parent, beside, False), (path, inside, True)):
            for name in _names(folder, begin):
                found.setdefault(folder / name, Moved(path, folder / name, place.kind, name[len(begin) :], children))
    return sorted(found.values(), key=lambda moved: _changed_ns(moved.aside))


_ASIDE = ".aside-"


def _names(folder: Path, begin: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith(begin) and (folder / name).is_dir())
    except OSError:
        return []


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0


def swap_back(moved: Moved) -> tuple[str, ...]:
    """As ``restore``, but what has grown at the original path is kept beside it, not removed: it may be months of service."""
    # without our mark, what stands there is somebody's; in a mount point, new files stay beside the old ones
    mark = moved.aside / (moved.marker + _COMPLETE) if moved.children else moved.original / moved.marker
    with contextlib.suppress(FileNotFoundError):
        mark.unlink()
    return restore([moved])


def drop(moved: Moved) -> None:
    """Remove a cache that is set aside for good. Raises AsideError while nothing has been compiled in its place."""
    if not any(not name.startswith(_NOT_MOVED) for name in _names_in(moved.original)):
        raise AsideError(f"{moved.original} is empty: nothing has been compiled since, so {moved.aside} is all there is")
    try:
        shutil.rmtree(moved.aside)
    except OSError as error:
        raise AsideError(f"{moved.aside} cannot be removed: {error.strerror or error}") from error
    with contextlib.suppress(OSError):
        (moved.original / moved.marker).unlink()


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def describe(moved: Moved) -> dict[str, Any]:
    """What a journal keeps of a rename beside its two paths, as plain JSON types, for ``described``."""
    return {"kind": moved.kind, "token": moved.token, "children": moved.children}


def described(original: str | Path, aside: str | Path, context: Mapping[str, Any]) -> Moved:
    """The rename that a journal entry is about. Raises ValueError where the entry is not one of ``describe``."""
    try:
        return Moved(Path(original), Path(aside), str(context["kind"]), str(context["token"]), bool(context["children"]))
    except KeyError as error:
        raise ValueError(f"the journal's entry on {original} lacks {error}") from None


def set_aside(places: Sequence[CachePlace], *, token: str) -> list[Moved]:
    """Set every existing cache aside; all or nothing. Raises AsideError with everything back in place."""
    done: list[Moved] = []
    for moved in plan_aside(places, token=token):
        try:
            move(moved)
        except AsideError:
            restore(done)
            raise
        done.append(moved)
    return done


def _movable(places: Sequence[CachePlace]) -> list[CachePlace]:
    """Those that a cold start is about: precompiled headers hold no kernels, and lie in the temporary directory whatever is set."""
    return [place for place in places if place.kind != HEADERS]


def refusals(
    places: Sequence[CachePlace],
    *,
    allow_temporary: bool = False,
    ignore_pids: Collection[int] = (),
    machine: Machine | None = None,
) -> tuple[str, ...]:
    """Why the caches must not be set aside, one sentence each with what to do instead; empty where they may.

    ``ignore_pids``: the server's own processes, which are stopped before the move (their descendants count with them).
    ``allow_temporary``: nothing that empties a temporary directory can come between (the server is no unit with PrivateTmp).
    ``machine``: what the caches live on, as the server sees it (default: as we do).
    """
    places = _movable(places)
    reasons = [_private(place) for place in places if place.through]
    known = machine.mounts if machine is not None and machine.outer is None else mounts()
    outer = roots(places)
    for path in outer:
        reasons += [] if allow_temporary else _temporary(path, places, machine)
        reasons += _unsafe(path)
        inside = mounts_inside(path, known)
        if inside:
            reasons.append(f"{path} has a mount point inside ({inside[0]}), which a rename would take along (unmount it first)")
    for user in users_of(outer, ignore_pids=ignore_pids):
        reasons.append(f"{user.path} is in use by pid {user.pid} ({user.command}): stop it first")
    return tuple(reasons)


def _private(place: CachePlace) -> str:
    return (
        f"{place.path} is in the server's own mount namespace (PrivateTmp=yes or a container): stopping the server would take "
        f"the renamed cache with it (set {place.variable or 'the cache variable'} to a directory outside)"
    )


def _temporary(path: Path, places: Sequence[CachePlace], machine: Machine | None) -> list[str]:
    seen = path if machine is None else machine.seen(path)
    temporary = temporary_root(seen) if machine is None or machine.outer is None else temporary_root(seen, {})
    if machine is not None and machine.private_tmp(path):
        where = f"lies in {temporary or 'a temporary directory'} of the unit's own (PrivateTmp=yes): stopping the unit"
    elif temporary is not None:
        where = f"lies in {temporary}: a reboot"
    elif in_memory(path) if machine is None else _kept_in_memory(path, machine):
        where = "is kept in memory: a reboot"
    else:
        return []
    variable = next((place.variable for place in places if place.here == path and place.variable), "the cache variable")
    return [f"{path} {where} would take the renamed cache with it (set {variable} to a directory that is kept)"]


def _kept_in_memory(path: Path, machine: Machine) -> bool:
    mount = machine.mount(path)
    return mount is not None and mount.type in MEMORY


def _unsafe(path: Path) -> list[str]:
    """A variable may name more than a cache, or something that we may not rename."""
    status = os.stat(path)
    keep = [Path.home(), Path.cwd(), Path(sys.prefix)]
    with contextlib.suppress(KeyError):
        keep.append(Path(pwd.getpwuid(status.st_uid).pw_dir))
    held = next((each for each in keep if path == each or path in each.parents), None)
    if held is not None and held != Path("/"):
        return [f"{path} is not a directory for a cache alone: {held} lies in it (give the cache a directory of its own)"]
    if os.geteuid() not in (0, status.st_uid):
        return [f"{path} belongs to user id {status.st_uid}: run as that user or as root"]
    parent = path if is_mount_point(path) else path.parent
    if not os.access(parent, os.W_OK | os.X_OK):
        return [f"{parent} is not writable, so {path} cannot be renamed: run as its owner or as root"]
    return []


def move(moved: Moved) -> None:
    """Do one planned rename, and leave an empty directory with the old one's owner, mode and labels. Raises AsideError."""
    if moved.aside.exists():
        raise AsideError(f"{moved.aside} exists: a cache was set aside under this name before (pytest-sglang undo puts it back)")
    try:
        if moved.children:
            _move_children(moved)
        else:
            _make_fresh(moved.original, moved.fresh, moved.marker)
            os.rename(moved.original, moved.aside)
            os.rename(moved.fresh, moved.original)
            _sync(moved.original.parent)
    except OSError as error:
        with contextlib.suppress(AsideError):
            restore([moved])
        why = f"cannot be set aside: {error.strerror or error} (the old cache is {_where(moved)})"
        raise AsideError(f"{moved.original}: {why}") from error


def _move_children(moved: Moved) -> None:
    names = sorted(name for name in os.listdir(moved.original) if not name.startswith(_NOT_MOVED))
    moved.aside.mkdir()
    for name in names:
        os.rename(moved.original / name, moved.aside / name)
    # only from here on is everything outside the aside directory known to be new
    (moved.aside / (moved.marker + _COMPLETE)).touch()
    _sync(moved.aside)
    _sync(moved.original)


def _make_fresh(old: Path, new: Path, marker: str) -> None:
    status = os.stat(old)
    new.mkdir()
    (new / marker).touch()
    with contextlib.suppress(OSError):
        # labels and access lists are more than some file systems know
        for name in os.listxattr(old):
            os.setxattr(new, name, os.getxattr(old, name))
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(new, status.st_uid, status.st_gid)
    os.chmod(new, stat.S_IMODE(status.st_mode))


def _where(moved: Moved) -> Path:
    return moved.aside if moved.aside.exists() else moved.original


def restore(moved: Iterable[Moved]) -> tuple[str, ...]:
    """Put every cache back, newest rename first; one sentence for each thing that was kept or could not be removed.

    Calling it again, after a crash at any moment, goes on where it stopped; where nothing was moved it does nothing. Raises
    AsideError when a cache cannot be put back, after the others have been.
    """
    notes: list[str] = []
    failed: list[str] = []
    for each in reversed(list(moved)):
        try:
            notes += _restore_children(each) if each.children else _restore(each)
        except OSError as error:
            failed.append(f"{each.original}: not put back: {error.strerror or error} (the old cache is in {_where(each)})")
    if failed:
        raise AsideError("; ".join(failed))
    return tuple(notes)


def _restore(moved: Moved) -> list[str]:
    notes = []
    if moved.aside.exists():
        if os.path.lexists(moved.original):
            if os.path.lexists(moved.original / moved.marker) and not moved.grown.exists():
                os.rename(moved.original, moved.grown)
            else:
                notes.append(_keep(moved.original, moved.found))
        os.rename(moved.aside, moved.original)
        _sync(moved.original.parent)
    return notes + _remove(moved.grown) + _remove(moved.fresh)


def _restore_children(moved: Moved) -> list[str]:
    notes = []
    complete = moved.aside / (moved.marker + _COMPLETE)
    if complete.exists():
        moved.grown.mkdir(exist_ok=True)
        for name in os.listdir(moved.original):
            if not name.startswith(_NOT_MOVED):
                os.rename(moved.original / name, _free(moved.grown / name))
        complete.unlink()
        _sync(moved.aside)
    if moved.aside.exists():
        for name in sorted(os.listdir(moved.aside)):
            if os.path.lexists(moved.original / name):
                moved.found.mkdir(exist_ok=True)
                notes.append(_keep(moved.original / name, moved.found / name))
            os.rename(moved.aside / name, moved.original / name)
        moved.aside.rmdir()
        _sync(moved.original)
    return notes + _remove(moved.grown)


def _keep(path: Path, place: Path) -> str:
    place = _free(place)
    os.rename(path, place)
    return f"{path} was not made by this run: kept as {place}"


def _free(path: Path) -> Path:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _remove(folder: Path) -> list[str]:
    """Remove a directory that we made; what a server that still runs keeps writing there is told, not fought."""
    if not folder.exists():
        return []
    shutil.rmtree(folder, ignore_errors=True)
    return [f"{folder} could not be removed wholly (newly compiled kernels, not needed)"] if folder.exists() else []


def _sync(folder: Path) -> None:
    """fsync of a directory: renames in it survive a power loss in their order."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
