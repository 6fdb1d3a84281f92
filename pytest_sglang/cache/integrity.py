"""Is what is in the caches whole? Triton checks nothing when it loads an entry: no checksum, no size (triton 3.6 cache.py)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytest_sglang.cache import elf
from pytest_sglang.cache.contents import Kernel, metadata, read
from pytest_sglang.cache.entries import TRITON_ENTRY
from pytest_sglang.cache.snapshot import Entry, PlaceSnapshot, Snapshot

SETTLED_S = 600.0
"""An unfinished write that nothing touched for so long is left over, whoever made it."""

_WRITER = re.compile(r"tmp\.pid_(\d+)_|(?:^|/)\.(\d+)\.\d+\.tmp$")
_BINARIES = (".cubin", ".so")


class Problem(NamedTuple):
    """Something wrong at ``path`` in the cache ``root``: ``kind`` is a finding's. ``bytes``: what could go without loss."""

    kind: str
    path: str
    detail: str
    bytes: int = 0
    root: str = ""


def problems(snapshot: Snapshot, *, now_s: float | None = None, sample: int | None = None) -> list[Problem]:
    """What is broken, half written or of no use. Entries that change meanwhile are passed over.

    ``sample``: read only so many entries of each place, spread over it, and no leftovers.
    """
    if sample is not None:
        return [each for each in _sampled(snapshot, sample) if each.kind != "cache-leftover"]
    now_ns = int((time.time() if now_s is None else now_s) * 1e9)
    found: list[Problem] = []
    for place in snapshot.places:
        for key, entry in place.entries.items():
            # an entry whose group file is there was finished once, whatever it lacks now
            finished = entry.complete or os.path.exists(f"{place.place.here}/{key}/__grp__{entry.kernel}.json")
            if entry.what == "leftover" or not finished:
                found += _leftover(place, key, entry, now_ns)
            elif entry.what == "kernel" and TRITON_ENTRY.fullmatch(key.rpartition("/")[2]):
                found += _triton(place, key, entry)
            elif key.endswith(_BINARIES):
                found += _binary(place, key, entry)
    return found


def _sampled(snapshot: Snapshot, number: int) -> list[Problem]:
    places = []
    for place in snapshot.places:
        kernels = [item for item in place.entries.items() if item[1].what == "kernel"]
        places.append(place._replace(entries=dict(kernels[:: max(1, len(kernels) // number)])))
    return problems(snapshot._replace(places=tuple(places)))


def _leftover(place: PlaceSnapshot, key: str, entry: Entry, now_ns: int) -> Iterator[Problem]:
    """A write that was interrupted; one that is under way is none."""
    writer = _WRITER.search(key)
    pid = next((number for number in writer.groups() if number), None) if writer is not None else None
    dead = pid is not None and not place.place.through and not os.path.exists(f"/proc/{pid}")
    if not dead and now_ns - entry.changed_ns < SETTLED_S * 1e9:
        return
    by = f" by pid {pid}" if pid is not None else ""
    named = f" of {entry.kernel}" if entry.kernel is not None else ""
    what = "entry" + named if entry.what == "kernel" else "file"
    yield Problem("cache-leftover", f"{place.place.path}/{key}", f"{what} of a write that was interrupted{by}", entry.bytes)


def _triton(place: PlaceSnapshot, key: str, entry: Entry) -> Iterator[Problem]:
    folder, shown, name = f"{place.place.here}/{key}", f"{place.place.path}/{key}", entry.kernel or ""
    try:
        group = json.loads(read(f"{folder}/__grp__{name}.json"))
        children = {str(child): str(path) for child, path in group["child_paths"].items()}
    except OSError:
        return  # gone meanwhile
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Problem(
            "cache-broken", f"{shown}/__grp__{name}.json", f"{name}: its group file is no JSON: the start fails", entry.bytes
        )
        return
    yield from _children(place, folder, shown, name, children, entry)
    if metadata(f"{folder}/{name}.json") is None and os.path.exists(f"{folder}/{name}.json"):
        yield Problem("cache-broken", f"{shown}/{name}.json", f"{name}: its metadata are no JSON: the start fails", entry.bytes)
    for binary in (each for each in children if each.endswith(_BINARIES)):
        try:
            wrong = elf.broken_file(f"{folder}/{binary}")
        except OSError:
            continue
        if wrong is not None:
            detail = f"{name}: {wrong}: it cannot be loaded, or computes wrongly"
            yield Problem("cache-broken", f"{shown}/{binary}", detail, entry.bytes)


def _children(
    place: PlaceSnapshot, folder: str, shown: str, name: str, children: dict[str, str], entry: Entry
) -> Iterator[Problem]:
    """A group file holds absolute paths: in a moved or copied cache they lead nowhere, or to the files of the old place."""
    elsewhere = [path for path in children.values() if os.path.dirname(path) != shown and not _same(place, path, folder)]
    if elsewhere:
        there = any(os.path.exists(place.place.through + path) for path in elsewhere)
        meaning = "the files of the old place are used" if there else "the kernel is compiled again"
        yield Problem(
            "cache-moved", shown, f"{name}: its group file points to {os.path.dirname(elsewhere[0])}: {meaning}", entry.bytes
        )
        return
    missing = sorted(child for child in children if not os.path.exists(f"{folder}/{child}"))
    if missing and os.path.exists(f"{folder}/__grp__{name}.json"):
        what = "the start fails" if f"{name}.cubin" in missing else "the kernel is compiled again"
        yield Problem("cache-incomplete", shown, f"{name}: {', '.join(missing)} is missing: {what}", entry.bytes)


def _same(place: PlaceSnapshot, path: str, folder: str) -> bool:
    """Whether a child's path leads into this very directory, by way of a link."""
    try:
        return os.path.samefile(place.place.through + os.path.dirname(path), folder)
    except OSError:
        return False


def _binary(place: PlaceSnapshot, key: str, entry: Entry) -> Iterator[Problem]:
    """Kernels of FlashInfer, DeepGEMM, tvm-ffi, Inductor's C++."""
    try:
        wrong = elf.broken_file(f"{place.place.here}/{key}")
    except OSError:
        return
    if wrong is not None and entry.kernel is not None:
        yield Problem("cache-broken", f"{place.place.path}/{key}", f"{entry.kernel}: {wrong}: it cannot be loaded", entry.bytes)


def duplicates(found: Sequence[Kernel]) -> list[Problem]:
    """Triton entries that are stored more than once: the same key in several trees, as every rank and every tree has its own."""
    seen: dict[str, list[Kernel]] = {}
    for kernel in found:
        key = kernel.where.rpartition("/")[2]
        if TRITON_ENTRY.fullmatch(key):
            seen.setdefault(key, []).append(kernel)
    return [
        Problem(
            "cache-duplicate",
            copies[0].where,
            f"{copies[0].name}: stored {len(copies)} times, again in {os.path.dirname(copies[1].where)}",
            sum(copy.bytes for copy in copies[1:]),
        )
        for copies in seen.values()
        if len(copies) > 1
    ]


class Running(NamedTuple):
    """What runs now; None or empty = not known, and then nothing is called stale for it. ``torch_since``: when torch was installed."""

    triton: str | None = None
    archs: frozenset[str] = frozenset()
    gpus: frozenset[str] = frozenset()
    torch: str | None = None
    torch_since: float | None = None


def stale(snapshot: Snapshot, found: Sequence[Kernel], running: Running) -> list[Problem]:
    """Entries that the running versions and cards never look up: every key holds Triton's version and the architecture.

    Graphs carry their torch version only inside a hash: those written before the running torch was installed are of another one.
    """
    out: list[Problem] = []
    for kernel in found:
        other = [f"Triton {kernel.triton}"] if kernel.triton and running.triton and kernel.triton != running.triton else []
        other += [kernel.arch] if kernel.arch and running.archs and kernel.arch not in running.archs else []
        if other:
            runs = [f"Triton {running.triton}"] if running.triton else []
            runs += sorted(running.archs)
            out.append(
                Problem(
                    "cache-stale", kernel.where, f"{kernel.name}: made by {', '.join(other)}; {', '.join(runs)} runs", kernel.bytes
                )
            )
    if running.torch is not None and running.torch_since is not None:
        before_ns = int(running.torch_since * 1e9)
        for place in snapshot.places:
            out += [
                Problem(
                    "cache-stale",
                    f"{place.place.path}/{key}",
                    f"a graph of before torch {running.torch} was installed",
                    entry.bytes,
                )
                for key, entry in place.entries.items()
                if entry.what == "graph" and entry.changed_ns < before_ns
            ]
    return out
