"""What is in the caches: kernels by name with architecture, Triton version, warps and stages, from their metadata. Only reads.

An entry that a server changes or removes meanwhile is told as it was found, or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pytest_sglang.cache.entries import TRITON_ENTRY
from pytest_sglang.cache.snapshot import Entry, PlaceSnapshot, Snapshot

_PTX = re.compile(rb"^\.version (\d+\.\d+)", re.MULTILINE)
_TOOLS = re.compile(rb"Cuda compilation tools, release [\d.]+, V(\d+\.\d+\.\d+)")
_TOOLS_WITHIN = 1 << 20


class Kernel(NamedTuple):
    """One compiled kernel. ``where`` is its directory (or file); what its metadata do not tell is None.

    ``arch`` "sm_86"; ``ptx`` the version of the PTX language that it was made from; ``ptxas`` the assembler that says so itself.
    """

    name: str
    kind: str
    where: str
    bytes: int
    changed_ns: int
    arch: str | None = None
    triton: str | None = None
    ptx: str | None = None
    ptxas: str | None = None
    warps: int | None = None
    stages: int | None = None


class System(NamedTuple):
    """A machine for which max-autotune has kept its choices: GPU name, CUDA version, number of choices, file, its bytes."""

    gpu: str | None
    cuda: str | None
    choices: int
    where: str
    bytes: int


def kernels(snapshot: Snapshot) -> Iterator[Kernel]:
    """Every kernel of every cache."""
    for place in snapshot.places:
        for key, entry in place.entries.items():
            if entry.kernel is not None:
                yield _kernel(place, key, entry)


def _kernel(place: PlaceSnapshot, key: str, entry: Entry) -> Kernel:
    name, path = entry.kernel or "", f"{place.place.here}/{key}"
    made = Kernel(name, place.place.kind, f"{place.place.path}/{key}", entry.bytes, entry.changed_ns)
    if not TRITON_ENTRY.fullmatch(key.rpartition("/")[2]):
        return made
    told = metadata(f"{path}/{name}.json")
    if told is None:
        return made
    target = told.get("target") if isinstance(told.get("target"), dict) else {}
    arch = target.get("arch") if isinstance(target, dict) else None
    return made._replace(
        name=_text(told.get("name")) or name,
        arch=f"sm_{arch}" if isinstance(arch, int) else _text(arch),
        triton=_text(told.get("triton_version")),
        ptx=_first(_PTX, f"{path}/{name}.ptx", 512),
        ptxas=_first(_TOOLS, f"{path}/{name}.cubin", _TOOLS_WITHIN),
        warps=_number(told.get("num_warps")),
        stages=_number(told.get("num_stages")),
    )


def metadata(path: str) -> dict[str, Any] | None:
    """A JSON object from a file; None where it is gone or is none."""
    try:
        found = json.loads(read(path))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read(path: str, limit: int = -1) -> bytes:
    """A file's first ``limit`` bytes without leaving a trace in its access time, where that is allowed. Raises OSError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        descriptor = os.open(path, flags)  # only the owner may leave no trace
    with open(descriptor, "rb") as file:
        return file.read(limit)


def _first(pattern: re.Pattern[bytes], path: str, limit: int) -> str | None:
    try:
        found = pattern.search(read(path, limit))
    except OSError:
        return None
    return None if found is None else found[1].decode("ascii")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def systems(snapshot: Snapshot) -> list[System]:
    """The systems of the max-autotune choices (torch 2.11 _inductor/codecache.py CacheBase.get_system)."""
    found = []
    for place in snapshot.places:
        for key, entry in place.entries.items():
            if entry.what != "autotune" or not key.startswith("cache/"):
                continue
            told = metadata(f"{place.place.here}/{key}")
            if told is None:
                continue
            system: Any = told.get("system")
            system = system if isinstance(system, dict) else {}
            choices = told.get("cache")
            gpu, cuda = _inside(system, "device", "name"), _inside(system, "version", "cuda")
            number = len(choices) if isinstance(choices, dict) else 0
            found.append(System(gpu, cuda, number, f"{place.place.path}/{key}", entry.bytes))
    return found


def _inside(value: dict[str, Any], outer: str, inner: str) -> str | None:
    nested = value.get(outer)
    return _text(nested.get(inner)) if isinstance(nested, dict) else None


class Group(NamedTuple):
    """Kernels of one name, architecture and Triton version."""

    name: str
    arch: str | None
    triton: str | None
    ptx: tuple[str, ...]
    ptxas: tuple[str, ...]
    warps: tuple[int, ...]
    stages: tuple[int, ...]
    entries: int
    bytes: int


def grouped(found: Sequence[Kernel]) -> list[Group]:
    """Kernels by name, architecture and version: the most entries first."""
    together: dict[tuple[str, str | None, str | None], list[Kernel]] = {}
    for kernel in found:
        together.setdefault((kernel.name, kernel.arch, kernel.triton), []).append(kernel)
    groups = [
        Group(
            *key,
            ptx=_sorted(each.ptx for each in members),
            ptxas=_sorted(each.ptxas for each in members),
            warps=tuple(sorted({each.warps for each in members if each.warps is not None})),
            stages=tuple(sorted({each.stages for each in members if each.stages is not None})),
            entries=len(members),
            bytes=sum(each.bytes for each in members),
        )
        for key, members in together.items()
    ]
    return sorted(groups, key=lambda group: (-group.entries, group.name, group.arch or "", group.triton or ""))


def _sorted(values: Iterator[str | None]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value is not None}))
