"""Will the caches survive a reboot, a stop of the unit, a change of user? Each doubt with the line for the unit that removes it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.machine import Machine
from pytest_sglang.cache.mounts import MEMORY, temporary_root
from pytest_sglang.record import units
from pytest_sglang.record.values import Finding

LITTLE_BYTES = 2 * 1024**3
"""Free space below which a cold compilation may not fit: one of an 8B model wrote 0.15 GiB for one GPU."""
LITTLE_FILES = 50_000
"""Free inodes below which one may not fit: the same one wrote 5,500 files for one GPU."""

LOST_AT_STOP = "cache-in-private-tmp"
"""The one kind that makes every start a cold one."""

_EMPTIED_AT_BOOT = (Path("/dev/shm"), Path("/run"))


class Server(NamedTuple):
    """Whose caches they are: its environment, the properties of its systemd unit (PrivateTmp, User ...), the user it runs as."""

    environment: Mapping[str, str]
    unit: Mapping[str, str]
    user: str | None


def findings(
    places: Sequence[CachePlace],
    environment: Mapping[str, str],
    *,
    unit: Mapping[str, str] | None = None,
    user: str | None = None,
    machine: Machine | None = None,
) -> list[Finding]:
    """Doubts about the caches that exist, worst first within a cache.

    ``environment`` is the server's, ``unit`` the properties of its systemd unit (PrivateTmp, User) where it has one, ``user`` the
    name that it runs as where that is known otherwise, ``machine`` what its caches live on (default: this one).
    """
    unit = unit or {}
    server = Server(environment, unit, user or unit.get("User") or None)
    machine = Machine.here() if machine is None else machine
    found: list[Finding] = []
    # a place without a variable of its own lies in one that has, and goes where that goes
    for place in places:
        if place.variable and _is_dir(place) and not any(other.path in place.path.parents and _is_dir(other) for other in places):
            found += _of_place(place, server, machine)
    return found


def _is_dir(place: CachePlace) -> bool:
    try:
        return place.here.is_dir()
    except OSError:
        return False


def _of_place(place: CachePlace, server: Server, machine: Machine) -> Iterator[Finding]:
    lost = _lost(place, server, machine)
    if lost is not None:
        kind, why, remedy = lost
        line = remedy or f"Environment={place.variable}={_kept(place, server.environment, machine)}"
        yield Finding(kind, "warn", str(place.path), f"{place.kind} cache: {why}", line)
    yield from _of_file_system(place, server, machine)


def _lost(place: CachePlace, server: Server, machine: Machine) -> tuple[str, str, str] | None:
    """What will take the cache away: kind of finding, what happens, and another remedy than to move it; None = it stays."""
    path = machine.seen(place.path)
    temporary = temporary_root(path, server.environment)
    in_tmp = temporary in (Path("/tmp"), Path("/var/tmp"))
    private = machine.private_tmp(place.path) or (server.unit.get("PrivateTmp", "no") not in ("no", "") and in_tmp)
    if private:
        return LOST_AT_STOP, "PrivateTmp=yes empties it at every stop: the next start compiles everything again", ""
    mount, (aged, emptied) = machine.mount(place.path), machine.removed(place.path)
    if mount is not None and mount.type in MEMORY:
        return "cache-in-memory", f"{mount.point} is kept in memory: the start after a reboot is a cold one", ""
    if machine.in_container_layer(place.path):
        why = "it lies in the container's own layer: a new container (an upgrade) starts cold"
        return "cache-in-container-layer", why, f"docker run -v sglang-{place.kind}:{path}"
    if place.through:
        return (
            LOST_AT_STOP,
            "it lies in the server's own mount namespace, which ends when the unit stops: the next start is a cold one",
            "",
        )
    if emptied is not None:
        return "cache-in-tmp", f"{emptied.path} is emptied at every boot ({emptied.where}): the start after that is a cold one", ""
    if aged is not None:
        age = _age(aged.age_s or 0.0)
        why = f"systemd-tmpfiles removes what nobody touched for {age} ({aged.where}): kernels go one by one"
        return ("cache-in-tmp" if temporary is not None else "cache-aged"), why, ""
    if temporary is not None:
        what = "which a reboot empties" if temporary in _EMPTIED_AT_BOOT else "which many systems empty at boot"
        return "cache-in-tmp", f"it lies in {temporary}, {what}: the start after that is a cold one", ""
    return None


def _of_file_system(place: CachePlace, server: Server, machine: Machine) -> Iterator[Finding]:
    status = _status(place.here)
    if status is None:
        return
    mount, wanted = machine.mount(place.path), _uid(server.user)
    if mount is not None and "ro" in mount.options:
        detail = "its file system is read-only for the server: nothing that a start compiles is kept"
        guarded = any(server.unit.get(name, "no") not in ("no", "") for name in ("ProtectSystem", "ProtectHome", "ReadOnlyPaths"))
        remedy = f"ReadWritePaths={place.path}" if guarded else f"mount -o remount,rw {mount.point}"
        yield Finding("cache-read-only", "warn", str(place.path), f"{place.kind} cache: {detail}", remedy)
    if wanted is not None and wanted not in (0, status.st_uid) and not status.st_mode & 0o002:
        detail = f"it belongs to user id {status.st_uid}, the server runs as {server.user}: it cannot write what it compiles"
        remedy = f"chown -R {server.user} {place.path}"
        yield Finding("cache-other-owner", "warn", str(place.path), f"{place.kind} cache: {detail}", remedy)
    space = machine.space(place.path, place.here, wanted)
    if space is not None and (space.bytes < LITTLE_BYTES or (space.files is not None and space.files < LITTLE_FILES)):
        left = f"{space.bytes / 1024**3:.1f} GiB" + ("" if space.files is None else f" and {space.files} files")
        detail = f"only {left} are left ({space.why}): what does not fit is compiled again at every start"
        base = _kept(place, server.environment, machine)
        yield Finding(
            "cache-little-space",
            "warn",
            str(place.path),
            f"{place.kind} cache: {detail}",
            f"make room, or put it on a larger file system: Environment={place.variable}={base}",
        )


def _age(seconds: float) -> str:
    return f"{seconds / 86_400:g} days" if seconds >= 86_400 else units.duration(seconds)


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _kept(place: CachePlace, environment: Mapping[str, str], machine: Machine) -> Path:
    """A directory for this cache that nothing empties: below the server's home, or /var/lib where that is no lasting place."""
    home = Path(environment.get("HOME") or "/tmp")
    lasting = temporary_root(machine.seen(home)) is None and machine.removed(home) == (None, None)
    mount = machine.mount(home)
    lasting = lasting and (mount is None or (mount.type not in MEMORY and "ro" not in mount.options))
    base = home / ".cache" / "sglang" if lasting else Path("/var/lib/sglang")
    kept = base / place.kind
    if kept == place.path:
        kept = Path("/var/lib/sglang") / place.kind
    # FlashInfer appends .cache/flashinfer to its variable itself
    return kept.parent if place.variable == "FLASHINFER_WORKSPACE_BASE" else kept


def _uid(user: str | None) -> int | None:
    try:
        return int(user) if user and user.isdigit() else pwd.getpwnam(user).pw_uid if user else None
    except KeyError:
        return None
