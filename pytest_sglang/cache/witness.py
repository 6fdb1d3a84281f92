"""Where a running server really has its compiled kernels open: a cross-check of the environment and of the table of defaults.

Variables that SGLang's own Python sets do not show in /proc/PID/environ, and setproctitle blanks that of the schedulers. Libraries that
are mapped (Triton's launchers, Inductor's C++ kernels, JIT modules) and files that are open lie where the caches are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_sglang.cache.locate import CachePlace

_SIGNS = (
    # Triton: <root>/<52 of base32>/<file>; under Inductor <root>/triton/<GPU>/<52 of base32>/<file>
    ("inductor", re.compile(r"(/.+)/triton/\d+/[A-Z2-7]{52}/[^/]+")),
    ("triton", re.compile(r"(/.+)/[A-Z2-7]{52}/[^/]+")),
    # Inductor: <root>/<xx>/c<51 of base32>.<suffix>
    ("inductor", re.compile(r"(/.+)/[a-z2-7]{2}/c[a-z2-7]{51}[^/]*\.(?:so|py|cpp)")),
    ("tvm_ffi", re.compile(r"(/.*/tvm-ffi)/.+\.so")),
    ("flashinfer", re.compile(r"(/.*/\.cache/flashinfer)/.+\.so")),
    ("deep_gemm", re.compile(r"(/.*/deep_gemm)/.+\.(?:so|cubin)")),
)
"""Kinds with the form of their files' paths; the first group is the root."""


class Seen(NamedTuple):
    """A cache that a process has files open in: kind, root, process, one file."""

    kind: str
    root: Path
    pid: int
    file: str


def seen(pids: Collection[int]) -> tuple[Seen, ...]:
    """Caches that these processes have open or mapped, each once. Processes that may not be looked into show nothing."""
    found: dict[tuple[str, str], Seen] = {}
    for pid in sorted(pids):
        for path in dict.fromkeys(_files(pid)):
            sign = _sign(path)
            if sign is not None and sign not in found:
                found[sign] = Seen(sign[0], Path(sign[1]), pid, path)
    return tuple(found.values())


def _sign(path: str) -> tuple[str, str] | None:
    for kind, pattern in _SIGNS:
        match = pattern.fullmatch(path)
        if match is not None:
            return kind, match[1]
    return None


def _files(pid: int) -> Iterator[str]:
    try:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, slash, path = line.partition(" /")
            if slash:
                yield "/" + path.removesuffix(" (deleted)")
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue


def elsewhere(found: Sequence[Seen], places: Sequence[CachePlace]) -> tuple[Seen, ...]:
    """What is open outside every known place."""
    roots = {os.path.realpath(place.here) for place in places} | {str(place.path) for place in places}
    return tuple(each for each in found if not any(_inside(str(each.root), root) for root in roots))


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def completed(places: Sequence[CachePlace], found: Sequence[Seen]) -> tuple[CachePlace, ...]:
    """``places``, and those that are open although neither environment nor defaults name them."""
    more = [
        CachePlace(each.kind, each.root, f"open in pid {each.pid}", _VARIABLES.get(each.kind, ""))
        for each in elsewhere(found, places)
    ]
    inside = [
        CachePlace(kind, place.path / name, place.why)
        for place in more
        if place.kind == "inductor"
        for kind, name in (("inductor_triton", "triton"), ("fxgraph", "fxgraph"), ("aotautograd", "aotautograd"))
    ]
    return (*places, *more, *inside)


_VARIABLES = {
    "triton": "TRITON_CACHE_DIR",
    "inductor": "TORCHINDUCTOR_CACHE_DIR",
    "tvm_ffi": "TVM_FFI_CACHE_DIR",
    "flashinfer": "FLASHINFER_WORKSPACE_BASE",
    "deep_gemm": "SGLANG_DG_CACHE_DIR",
}


def fresh(candidates: Sequence[CachePlace], places: Sequence[CachePlace], since_s: float) -> tuple[CachePlace, ...]:
    """Places of other layouts in which something was written at ``since_s`` (epoch seconds) or later: the table may be wrong there."""
    known = {str(place.path) for place in places}
    return tuple(
        place._replace(why=f"written since the start ({place.why})")
        for place in candidates
        if str(place.path) not in known and not any(_inside(str(place.path), root) for root in known) and _written(place, since_s)
    )


_LOOKS = 4096


def _written(place: CachePlace, since_s: float) -> bool:
    """Whether a directory in the upper levels of a place changed since; every new entry changes the directory that holds it."""
    folders, looks = [(str(place.here), 0)], 0
    while folders and looks < _LOOKS:
        path, depth = folders.pop()
        looks += 1
        try:
            if os.stat(path).st_mtime >= since_s:
                return True
            if depth < 3:
                with os.scandir(path) as listing:
                    folders += [(item.path, depth + 1) for item in listing if item.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return False
