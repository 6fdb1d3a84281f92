"""Will the caches survive a reboot, a stop of the unit, a change of user? Each doubt with the line for the unit that removes it."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.mounts import in_memory, mount_of, mounts, temporary_root
from pytest_sglang.record.values import Finding

LITTLE_BYTES = 2 * 1024**3
"""Free space below which a cold compilation may not fit: one of an 8B model wrote 0.15 GiB for one GPU."""

_EMPTIED_AT_BOOT = (Path("/tmp"), Path("/dev/shm"), Path("/run"))


def findings(
    places: Sequence[CachePlace],
    environment: Mapping[str, str],
    *,
    unit: Mapping[str, str] | None = None,
    user: str | None = None,
) -> list[Finding]:
    """Doubts about the caches that exist, worst first within a cache.

    ``environment`` is the server's, ``unit`` the properties of its systemd unit (PrivateTmp, User) where it has one, ``user`` the
    name that it runs as where that is known otherwise.
    """
    unit = unit or {}
    user = user or unit.get("User") or None
    found: list[Finding] = []
    # a place without a variable of its own lies in one that has, and goes where that goes
    for place in places:
        if place.variable and _is_dir(place) and not any(other.path in place.path.parents and _is_dir(other) for other in places):
            found += _of_place(place, environment, unit, user)
    return found


def _is_dir(place: CachePlace) -> bool:
    try:
        return place.here.is_dir()
    except OSError:
        return False


def _of_place(place: CachePlace, environment: Mapping[str, str], unit: Mapping[str, str], user: str | None) -> Iterator[Finding]:
    temporary = temporary_root(place.path, environment)
    private = unit.get("PrivateTmp", "no") not in ("no", "") and temporary in (Path("/tmp"), Path("/var/tmp"))
    if place.through or private:
        what = "PrivateTmp=yes empties it at every stop" if private else "it lies in the server's own mount namespace"
        yield _lost("cache-in-private-tmp", place, f"{what}: the next start compiles everything again", environment)
    elif temporary is not None:
        when = "a reboot" if temporary in _EMPTIED_AT_BOOT else "systemd-tmpfiles (30 days by default) or a reboot"
        detail = f"it lies in {temporary}, which {when} empties: the start after that is a cold one"
        yield _lost("cache-in-tmp", place, detail, environment)
    elif in_memory(place.path):
        detail = "its file system is kept in memory: the start after a reboot is a cold one"
        yield _lost("cache-in-memory", place, detail, environment)
    if not place.through:
        yield from _of_file_system(place, user)


def _of_file_system(place: CachePlace, user: str | None) -> Iterator[Finding]:
    status, mount = os.stat(place.path), mount_of(place.path, mounts())
    if mount is not None and "ro" in mount.options:
        detail = "its file system is mounted read-only: nothing that a start compiles is kept"
        yield Finding("cache-read-only", "warn", str(place.path), detail, f"mount -o remount,rw {mount.point}")
    wanted = _uid(user)
    if wanted is not None and wanted not in (0, status.st_uid) and not status.st_mode & 0o002:
        detail = f"it belongs to user id {status.st_uid}, the server runs as {user}: it cannot write what it compiles"
        yield Finding("cache-other-owner", "warn", str(place.path), detail, f"chown -R {user} {place.path}")
    free = shutil.disk_usage(place.path).free
    if free < LITTLE_BYTES:
        detail = f"only {free / 1024**3:.1f} GiB are free: what does not fit is compiled again at every start"
        remedy = f"free space on {mount.point if mount else place.path}"
        yield Finding("cache-little-space", "warn", str(place.path), detail, remedy)


def _lost(kind: str, place: CachePlace, why: str, environment: Mapping[str, str]) -> Finding:
    home = Path(environment.get("HOME") or "/tmp")
    base = home / ".cache" / "sglang" if temporary_root(home) is None else Path("/var/lib/sglang")
    # FlashInfer appends .cache/flashinfer to its variable itself
    kept = base if place.variable == "FLASHINFER_WORKSPACE_BASE" else base / place.kind
    return Finding(kind, "warn", str(place.path), f"{place.kind} cache: {why}", f"Environment={place.variable}={kept}")


def _uid(user: str | None) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        return None
