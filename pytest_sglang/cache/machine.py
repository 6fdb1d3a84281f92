"""The machine that a server's caches live on, as its process sees it: mounts, what is removed by age, free space, quota."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.cache import mounts as mounted
from pytest_sglang.cache import tmpfiles
from pytest_sglang.cache.mounts import Mount
from pytest_sglang.cache.tmpfiles import Rule

_OVERLAYS = frozenset({"overlay", "aufs", "fuse-overlayfs", "zfs-graph"})
_GET_QUOTA = 0x800007 << 8
"""QCMD(Q_GETQUOTA, USRQUOTA) of quotactl(2)."""


class Space(NamedTuple):
    """Bytes and files that a user may still write. ``why`` names what limits them: a mount point, or a user's quota."""

    bytes: int
    files: int | None
    why: str


class Machine(NamedTuple):
    """What may happen to a path. ``outer``: where a simulated machine's root directory is; None for a real one."""

    mounts: tuple[Mount, ...] = ()
    rules: tuple[Rule, ...] = ()
    contained: bool = False
    """The server sees another root file system than we do."""
    outer: Path | None = None
    spaces: tuple[tuple[str, Space], ...] = ()
    """Of a simulated machine: free space by path; elsewhere the file system is asked."""

    @classmethod
    def here(cls, pid: int | None = None) -> Machine:
        """This machine as process ``pid`` sees it; as we do, where that cannot be told."""
        ours = mounted.mounts()
        if pid is None or _same_namespace(pid):
            return cls(ours, tmpfiles.read())
        theirs = mounted.mounts(pid=pid)
        return cls(theirs or ours, tmpfiles.read(), contained=_root_of(theirs) != _root_of(ours))

    def seen(self, path: Path) -> Path:
        """``path`` as the machine itself calls it."""
        if self.outer is None:
            return path
        try:
            return Path("/") / path.relative_to(self.outer)
        except ValueError:
            return path

    def mount(self, path: Path) -> Mount | None:
        """The file system that ``path`` lies on."""
        seen = self.seen(path)
        best: Mount | None = None
        for mount in self.mounts:
            inside = mount.point == seen or mount.point in seen.parents
            if inside and (best is None or len(mount.point.parts) >= len(best.point.parts)):
                best = mount
        return best

    def removed(self, path: Path) -> tuple[Rule | None, Rule | None]:
        """The rules of systemd-tmpfiles by which ``path`` is cleaned by age, and emptied at boot. A container has none of ours."""
        return (None, None) if self.contained else tmpfiles.of(self.seen(path), self.rules)

    def private_tmp(self, path: Path) -> bool:
        """Whether ``path`` lies in a temporary directory that systemd made for the unit alone, which goes when the unit stops."""
        mount = self.mount(path)
        return mount is not None and "systemd-private-" in mount.root

    def in_container_layer(self, path: Path) -> bool:
        """Whether ``path`` lies in the container's own writable layer: removing the container removes it."""
        mount = self.mount(path)
        return self.contained and mount is not None and mount.point == Path("/") and mount.type in _OVERLAYS

    def space(self, path: Path, here: Path, uid: int | None) -> Space | None:
        """What ``uid`` may still write below ``path`` (``here``: where this process reads it); None where that cannot be read."""
        for below, space in self.spaces:
            if Path(below) == self.seen(path) or Path(below) in self.seen(path).parents:
                return space
        try:
            status = os.statvfs(here)
        except OSError:
            return None
        mount = self.mount(path)
        free = status.f_bavail if uid != 0 else status.f_bfree
        files = status.f_favail if status.f_files else None
        space = Space(free * status.f_frsize, files, f"free space on {mount.point if mount is not None else path}")
        quota = quota_left(mount.device, uid) if mount is not None and uid else None
        return quota if quota is not None and quota.bytes < space.bytes else space


def _same_namespace(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return True  # without the right to look, the other view cannot be read either


def _root_of(known: tuple[Mount, ...]) -> tuple[str, str, str] | None:
    root = next((mount for mount in reversed(known) if mount.point == Path("/")), None)
    return None if root is None else (root.device, root.root, root.type)


def quota_left(device: str, uid: int) -> Space | None:
    """What a user's disk quota leaves on ``device``; None where there is none, or it may not be read. Source: quotactl(2), dqblk."""
    if not device.startswith("/dev/"):
        return None
    block = ctypes.create_string_buffer(72)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if library.quotactl(_GET_QUOTA, os.fsencode(device), uid, block) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return quota_of(block.raw, uid)


def quota_of(block: bytes, uid: int) -> Space | None:
    """The space that a ``struct if_dqblk`` leaves: hard limits in KiB and files; 0 = no limit."""
    hard_kib, soft_kib, used, hard_files, soft_files, files = struct.unpack_from("<6Q", block)
    limit = (soft_kib or hard_kib) * 1024
    if not limit:
        return None
    most = soft_files or hard_files
    return Space(max(0, limit - used), max(0, most - files) if most else None, f"quota of user id {uid}")
