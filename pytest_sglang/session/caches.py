"""The compile caches of a server, or of directories that are named: where they are, what is in them, what is wrong with them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sglang.cache import contents, integrity, snapshot
from pytest_sglang.cache.contents import Group
from pytest_sglang.cache.entries import TRITON_ENTRY
from pytest_sglang.cache.integrity import Problem, Running
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.machine import Machine
from pytest_sglang.cache.mounts import mounts
from pytest_sglang.cache.snapshot import PlaceSnapshot, Snapshot
from pytest_sglang.cache.survive import LOST_AT_STOP
from pytest_sglang.cache.tmpfiles import read as read_rules
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.rig.model import StartPromise

if TYPE_CHECKING:
    from pytest_sglang.gpu.card import Card

_REMEDIES = {
    "cache-broken": "stop the server and remove the whole entry: rm -r {entry}",
    "cache-incomplete": "stop the server and remove the whole entry: rm -r {entry}",
    "cache-moved": "move it back, or drop it and let the next start compile: rm -r {root}",
    "cache-leftover": "rm -r {path}",
    "cache-stale": "harmless; cache set-aside, a start and cache drop get rid of them",
    "cache-duplicate": "",
}
_FAILS = frozenset({"cache-broken", "cache-incomplete", "cache-moved"})
"""A start fails on these, computes wrongly, or compiles again."""


class CacheLine(Value, frozen=True, kw_only=True):
    """One cache. ``newest`` in epoch seconds; ``None`` = not known."""

    kind: str
    path: str
    why: str
    variable: str
    exists: bool
    file_system: str | None
    owner: str | None
    free_bytes: int | None
    files: int
    bytes: int
    entries: int
    newest: float | None


class Look(Value, frozen=True, kw_only=True):
    """Everything that was seen. ``stale_bytes``: what the running versions and cards never look up."""

    caches: tuple[CacheLine, ...]
    kernels: tuple[Group, ...]
    findings: tuple[Finding, ...]
    files: int
    bytes: int
    stale_bytes: int
    unreadable: tuple[str, ...]
    systems: tuple[contents.System, ...] = ()


def simulated_machine(rig: Path) -> Machine:
    """The simulated rig's own file systems and rules, in the forms of a real one."""
    import json

    from pytest_sglang.cache.machine import Space

    told = json.loads((rig / "machine" / "space.json").read_text(encoding="utf-8"))
    return Machine(
        mounts=mounts((rig / "machine" / "mountinfo").read_text(encoding="utf-8")),
        rules=read_rules((rig / "machine" / "tmpfiles.d",)),
        contained=bool(told.get("contained")),
        outer=rig,
        spaces=tuple((path, Space(*space)) for path, space in told["free"].items()),
    )


def running_of(pid: int | None, cards: Sequence[Card]) -> Running:
    """Versions in the server's processes, and its cards, that look things up in the caches now; what cannot be told is left open."""
    from pytest_sglang.gpu.readings import value_or_none
    from pytest_sglang.server.processes import tree
    from pytest_sglang.session.fingerprint import installed

    found: dict[str, tuple[str, float]] = {}
    for process in tree(pid):
        for name, version in installed(process.pid).items():
            found.setdefault(name, version)
    capable = [value_or_none(card.compute_capability()) for card in cards]
    triton, torch = found.get("triton"), found.get("torch")
    return Running(
        triton=triton[0] if triton is not None else None,
        archs=frozenset(f"sm_{each.replace('.', '')}" for each in capable if isinstance(each, str)),
        torch=torch[0] if torch is not None else None,
        torch_since=torch[1] if torch is not None else None,
    )


def look(
    places: Sequence[CachePlace],
    machine: Machine,
    running: Running,
    *,
    doubts: Iterable[Finding] = (),
    start: StartPromise | None = None,
    taken: Snapshot | None = None,
) -> Look:
    """Read everything. ``doubts``: findings on whether the caches survive; ``start``: what is promised of a start."""
    taken = snapshot.take(places) if taken is None else taken
    kernels = list(contents.kernels(taken))
    stale = integrity.stale(taken, kernels, running)
    problems = [*integrity.problems(taken), *stale, *integrity.duplicates(kernels)]
    lines = tuple(_line(each, machine) for each in taken.places)
    found = [*(weighed(each, start) for each in doubts), *findings(problems, taken)]
    return Look(
        caches=lines,
        kernels=tuple(contents.grouped(kernels)),
        findings=tuple(found),
        files=sum(each.files for each in lines),
        bytes=sum(each.bytes for each in lines),
        stale_bytes=sum(each.bytes for each in stale),
        unreadable=taken.unreadable,
        systems=tuple(contents.systems(taken)),
    )


def weighed(finding: Finding, start: StartPromise | None) -> Finding:
    """A cache that is emptied at every stop contradicts a promised warm start; other doubts are warnings."""
    promised = start is not None and (start.warm_s is not None or start.max_new_kernels is not None)
    if finding.kind != LOST_AT_STOP or not promised:
        return finding
    return Finding(finding.kind, "fail", finding.subject, finding.detail, finding.remedy, finding.check_id)


def findings(problems: Sequence[Problem], taken: Snapshot) -> list[Finding]:
    """Problems of one kind in one cache as one finding: how many, how much, and the first of them."""
    together: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        together.setdefault((problem.kind, _root(problem.path, taken)), []).append(problem)
    found = []
    for (kind, root), members in sorted(together.items(), key=lambda item: (item[0][0] not in _FAILS, item[0])):
        first, size = members[0], sum(each.bytes for each in members)
        remedy = _REMEDIES[kind].format(path=first.path, entry=_entry_of(first.path), root=root)
        if len(members) > 1:
            detail = f"{len(members)} of them, {_size(size)}; the first: {first.detail} ({first.path})"
        else:
            detail = first.detail
        severity = "fail" if kind in _FAILS else "info"
        found.append(Finding(kind, severity, first.path if len(members) == 1 else root, detail, remedy))  # type: ignore[arg-type]
    return found


def _root(path: str, taken: Snapshot) -> str:
    roots = [str(each.place.path) for each in taken.places if path.startswith(f"{each.place.path}/")]
    return max(roots, key=len, default=path)


def _entry_of(path: str) -> str:
    """The directory of a Triton entry that a path lies in, else the path: single files must not be removed from an entry."""
    parts = path.split("/")
    place = next((number for number, part in enumerate(parts) if TRITON_ENTRY.fullmatch(part)), len(parts) - 1)
    return "/".join(parts[: place + 1])


def _line(each: PlaceSnapshot, machine: Machine) -> CacheLine:
    place = each.place
    mount = machine.mount(place.path)
    space = machine.space(place.path, place.here, None) if each.exists else None
    return CacheLine(
        kind=place.kind,
        path=str(place.path),
        why=place.why,
        variable=place.variable,
        exists=each.exists,
        file_system=mount.type if mount is not None else None,
        owner=_owner(place.here) if each.exists else None,
        free_bytes=space.bytes if space is not None else None,
        files=each.files,
        bytes=each.bytes,
        entries=len(each.entries),
        newest=each.newest,
    )


def _owner(path: Path) -> str | None:
    try:
        uid = os.stat(path).st_uid
    except OSError:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _size(size: int) -> str:
    number, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


def named_places(folders: Sequence[Path]) -> tuple[CachePlace, ...]:
    """Directories named by hand as caches: what each holds is told by its layout, an Inductor cache with the caches inside it."""
    found: list[CachePlace] = []
    for folder in folders:
        path = Path(os.path.abspath(folder))
        kind = _kind(path)
        found.append(CachePlace(kind, path, "named"))
        if kind == "inductor":
            inside = (("inductor_triton", "triton"), ("fxgraph", "fxgraph"), ("aotautograd", "aotautograd"))
            found += [CachePlace(inner, path / name, "named") for inner, name in inside if (path / name).is_dir()]
    return tuple(found)


_ENTRIES_LOOKED_AT = 1000


def _kind(path: Path) -> str:
    """The kind of cache whose layout a directory has; "other" where it has none that is known."""
    from itertools import islice

    try:
        with os.scandir(path) as listing:
            names = [item.name for item in islice(listing, _ENTRIES_LOOKED_AT)]
    except OSError:
        return "other"
    if any(TRITON_ENTRY.fullmatch(name) for name in names):
        return "triton"
    if {"fxgraph", "aotautograd", "triton", "locks"} & set(names):
        return "inductor" if {"fxgraph", "aotautograd", "locks"} & set(names) else "other"
    by_name = {
        "tvm-ffi": "tvm_ffi",
        "flashinfer": "flashinfer",
        "deep_gemm": "deep_gemm",
        "fxgraph": "fxgraph",
        "aotautograd": "aotautograd",
    }
    return by_name.get(path.name, "other")
