"""What a simulated rig holds beside its server: file systems and rules, installed packages, caches of an earlier start, and what faults make of them."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pytest_sglang.simulator.caches import Caches, Kernel, base32, known, late
from pytest_sglang.simulator.config import Config

_GONE = 4_194_303
"""A pid that is not used: the largest that Linux gives (PID_MAX_LIMIT of 64-bit machines, minus one)."""
_LONG_AGO_S = 5 * 86_400.0
_SITE = "venv/lib/python3.12/site-packages"


def caches_of(config: Config, start: int) -> Caches:
    """The caches that a start works with."""
    return Caches(*config.caches_of(start), config.model, config.triton_of(start))


# --- machine -----------------------------------------------------------------------------------------------------------------


def machine(config: Config) -> None:
    """Mounts, rules of systemd-tmpfiles and free space, in the forms of a real machine; its root is the rig's directory."""
    folder = config.directory / "machine"
    (folder / "tmpfiles.d").mkdir(parents=True, exist_ok=True)
    config.tmp.mkdir(exist_ok=True)
    faults = config.faults
    root = "overlay overlay rw,lowerdir=/l,upperdir=/u" if "cache-in-container-layer" in faults else "ext4 /dev/nvme0n1p2 rw"
    mounts = [f"22 1 259:2 / / rw,relatime shared:1 - {root}"]
    if "cache-in-memory" in faults:
        mounts.append("31 22 0:27 / /home rw,nosuid - tmpfs tmpfs rw,size=64g")
    if "cache-read-only" in faults:
        mounts.append("32 22 259:3 / /home/.cache ro,relatime - ext4 /dev/nvme1n1p1 ro")
    if "cache-private-tmp" in faults:
        mounts.append("33 22 259:2 /tmp/systemd-private-4c1b-sglang.service-kq1/tmp /tmp rw,relatime - ext4 /dev/nvme0n1p2 rw")
    (folder / "mountinfo").write_text("\n".join(mounts) + "\n", encoding="utf-8")
    rules = ["# See tmpfiles.d(5)", "D /tmp 1777 root root -", "q /var/tmp 1777 root root 30d"]
    (folder / "tmpfiles.d" / "tmp.conf").write_text("\n".join(rules) + "\n", encoding="utf-8")
    if "cache-aged" in faults:
        (folder / "tmpfiles.d" / "homes.conf").write_text("e /home/.cache/* - - - 10d\n", encoding="utf-8")
    space = (
        [500_000_000, 900_000, "quota of user id 0"]
        if "cache-little-space" in faults
        else [400_000_000_000, 20_000_000, "free space on /"]
    )
    told = {"contained": "cache-in-container-layer" in faults, "free": {"/": space}}
    (folder / "space.json").write_text(json.dumps(told), encoding="utf-8")


def installed(config: Config, start: int) -> None:
    """The server's Python packages: their names and versions, and the library that the server maps."""
    site = config.directory / _SITE
    wanted = {"sglang": "0.5.11", "torch": "2.11.0", "triton": config.triton_of(start)}
    (site / "triton" / "_C").mkdir(parents=True, exist_ok=True)
    for name, version in wanted.items():
        for old in site.glob(f"{name}-*.dist-info"):
            if old.name != f"{name}-{version}.dist-info":
                old.rmdir()
        path = site / f"{name}-{version}.dist-info"
        path.mkdir(exist_ok=True)
        before_s = time.time() - 30 * 86_400
        os.utime(path, (before_s, before_s))
    library = site / "triton" / "_C" / "libtriton.so"
    if not library.exists():
        library.write_bytes(b"\x7fELF" + b"\0" * 4092)


def mapped(config: Config) -> mmap.mmap:
    """Triton's library, mapped into this process as an import would."""
    with open(config.directory / _SITE / "triton" / "_C" / "libtriton.so", "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


# --- caches ------------------------------------------------------------------------------------------------------------------


def caches(config: Config) -> None:
    """The caches as an earlier start and the rig's faults have left them."""
    made = caches_of(config, 1)
    if config.acts("cache-cold", 1):
        made.empty()
        return
    made.fill()
    for fault, spoil in _SPOILERS.items():
        if fault in config.faults:
            spoil(made)


def at_stop(config: Config, next_start: int) -> None:
    """What goes when the server stops."""
    if config.acts("cache-cold", next_start):
        caches_of(config, next_start).empty()
    if "cache-private-tmp" in config.faults:
        shutil.rmtree(config.inductor_dir, ignore_errors=True)
    if config.acts("cache-autotune-lost", next_start):
        caches_of(config, next_start).forget_tuning()
    if config.acts("cache-graphs-lost", next_start):
        caches_of(config, next_start).forget_graphs()


def late_work(config: Config, start: int) -> Callable[[], None] | None:
    """What a start compiles at its first requests; None = nothing."""
    if not config.acts("cache-late", start):
        return None
    made = caches_of(config, start)

    def compile_all() -> None:
        for kernel in late(config.model):
            made.compile(kernel)

    return compile_all


def _groups(made: Caches) -> list[Path]:
    return sorted(made.triton.glob("*/__grp__*.json"))


def _move(made: Caches) -> None:
    """As a copy is whose original still stands: the group files lead there, and the original's files are used."""
    old = made.triton.parents[2] / "old" / "triton"
    shutil.copytree(made.triton, old)
    for group in _groups(made):
        group.write_text(group.read_text(encoding="utf-8").replace(str(made.triton), str(old)), encoding="utf-8")


def _lose_a_cubin(made: Caches) -> None:
    next(_groups(made)[3].parent.glob("*.cubin")).unlink()


def _break(made: Caches) -> None:
    first, second, third = (group.parent for group in _groups(made)[:3])
    whole = next(first.glob("*.cubin"))
    whole.write_bytes(whole.read_bytes()[:700])
    next(second.glob("*.cubin")).write_bytes(b"")
    metadata = next(path for path in third.glob("*.json") if not path.name.startswith("__grp__"))
    metadata.write_bytes(metadata.read_bytes()[:40])


def _leave(made: Caches) -> None:
    """As a compiler that was killed leaves them: unfinished files, and an entry without its group file."""
    half = known(made.model)[0]
    beside = made.triton / base32("half written") / f"tmp.pid_{_GONE}_5f0c6b1e-3a52-4a56-9c7f-8c1a34c2f1a7"
    beside.mkdir(parents=True)
    (beside / f"{half.name}.cubin").write_bytes(b"\x7fELF")
    entry = made.triton / base32("without a group")
    entry.mkdir()
    (entry / f"{half.name}.ttir").write_bytes(b"module {\n")
    (entry / f"{half.name}.json").write_bytes(b"{}")
    _age([*beside.iterdir(), *entry.iterdir()])


def _double(made: Caches) -> None:
    for group in _groups(made)[:5]:
        target = made.inductor / "triton" / "0" / group.parent.name
        shutil.copytree(group.parent, target)
        copied = target / group.name
        copied.write_text(copied.read_text(encoding="utf-8").replace(str(group.parent), str(target)), encoding="utf-8")


def _add_stale(made: Caches) -> None:
    for number, kernel in enumerate(known(made.model)[:12]):
        triton, arch = ("3.5.1", 86) if number < 8 else ("3.6.0", 90)
        old = Kernel(kernel.name, base32(f"{made.model}/stale/{number}"), triton, arch)
        made.compile(old)
        _age((made.triton / old.key).iterdir())


def _age(paths: Iterable[Path]) -> None:
    moment_s = time.time() - _LONG_AGO_S
    for path in paths:
        os.utime(path, (moment_s, moment_s))


_SPOILERS: dict[str, Callable[[Caches], None]] = {
    "cache-moved": _move,
    "cache-incomplete": _lose_a_cubin,
    "cache-broken": _break,
    "cache-leftover": _leave,
    "cache-duplicate": _double,
    "cache-stale": _add_stale,
}
