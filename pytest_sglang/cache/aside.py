"""Cold on purpose, losing nothing: every cache directory is renamed inside its own file system, and comes back by a rename.

No copy, no deletion of anything that was there before. The names on disk tell the state at every instant, so ``restore`` needs nothing but
the plan that was journalled before the first rename, wherever a crash came between:

- ``<cache>.aside-<token>`` is there: the old cache is in it. Whatever stands at the original path came later.
- a directory at the original path that holds ``.pytest-sglang-<token>`` was made by us: what has grown in it may go.
- anything else at the original path is somebody's: it is kept as ``<cache>.found-<token>``.

A mount point cannot be renamed: its children are moved into ``.pytest-sglang-aside-<token>`` inside it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pytest_sglang.cache.entries import MARKER
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.mounts import is_mount_point
from pytest_sglang.cache.snapshot import roots

_COMPLETE = "complete"


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
    token = re.sub(r"[^A-Za-z0-9._-]", "-", token)
    kinds: dict[Path, list[str]] = {}
    outer = roots(places)
    for place in places:
        path = Path(os.path.realpath(place.here))
        root = next((each for each in outer if each == path), None)
        if root is not None:
            kinds.setdefault(root, []).append(place.kind)
    plan = []
    for root in outer:
        children = is_mount_point(root)
        aside = root / f"{MARKER}aside-{token}" if children else root.with_name(f"{root.name}.aside-{token}")
        plan.append(Moved(root, aside, "+".join(kinds[root]), token, children))
    return plan


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
        done.append(moved)
        try:
            move(moved)
        except AsideError:
            restore(done)
            raise
    return done


def move(moved: Moved) -> None:
    """Do one planned rename, and leave an empty directory with the old one's owner, mode and labels. Raises AsideError."""
    if moved.aside.exists():
        raise AsideError(f"{moved.aside} exists: a cache was set aside under this name before (put it back first: pytest-sglang undo)")
    try:
        if moved.children:
            _move_children(moved)
        else:
            _make_fresh(moved.original, moved.fresh, moved.marker)
            os.rename(moved.original, moved.aside)
            os.rename(moved.fresh, moved.original)
            _sync(moved.original.parent)
    except OSError as error:
        raise AsideError(f"{moved.original}: cannot be set aside: {error.strerror or error} (the old cache: {_where(moved)})") from error


def _move_children(moved: Moved) -> None:
    names = sorted(os.listdir(moved.original))
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

    Calling it again, after a crash at any moment, goes on where it stopped; where nothing was moved it does nothing. Raises AsideError
    when a cache cannot be put back, after the others have been.
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
            if not name.startswith(MARKER):
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
