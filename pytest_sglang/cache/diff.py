"""What a start compiled: the difference of two snapshots, told as kernel names, variants, graphs and tuning results."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from pytest_sglang.cache.snapshot import Entry, PlaceSnapshot, Snapshot
from pytest_sglang.record.values import CacheDiff, CacheSize, NewEntries

GRAPHS_SHOWN = 20
"""Paths of new graphs that are kept of one start; all are counted."""


def added(before: Snapshot, after: Snapshot) -> CacheDiff:
    """What ``after`` has and ``before`` had not.

    A kernel *name* is new when no cache held it before, in any rank's part of any tree: a further entry of a known name is a
    variant (coordinate-descent tuning makes some at every start). An entry that was written again in place was compiled again: a
    variant too.
    """
    known = _names(entry for place in before.places for entry in place.entries.values())
    old = {str(place.place.path): place.entries for place in before.places}

    def fresh(place: PlaceSnapshot) -> dict[str, tuple[Entry, Entry | None]]:
        had = old.get(str(place.place.path), {})
        pairs = ((key, entry, had.get(key)) for key, entry in place.entries.items())
        return {key: (entry, was) for key, entry, was in pairs if was is None or _grown(entry, was)}

    count = sum(_counts(entry) for place in before.places for entry in place.entries.values())
    told = _told(after.places, fresh, known, tuple(dict.fromkeys(before.unreadable + after.unreadable)), count)
    hits, hits_told = _hits(before, after)
    sizes = tuple(_size(place, place.entries.values()) for place in before.places)
    return msgspec.structs.replace(told, hits=hits, hits_told=hits_told, before=sizes)


def _hits(before: Snapshot, after: Snapshot) -> tuple[int, int]:
    """(entries read between the two, entries of which that can be told): kernels by their group file, graphs by themselves."""
    now = {str(place.place.path): place.entries for place in after.places}
    hits = told = 0
    for place in before.places:
        entries = now.get(str(place.place.path), {})
        for key, was in place.entries.items():
            if was.tells and (entry := entries.get(key)) is not None:
                told += 1
                hits += entry.read_ns > was.read_ns
    return hits, told


def since(after: Snapshot, epoch_s: float) -> CacheDiff:
    """What was written at ``epoch_s`` (epoch seconds of the file system's clock) or later: for a start that nobody watched.

    Entries that have been deleted meanwhile cannot be told, and an entry written again in place counts as known before.
    """
    limit_ns = int(epoch_s * 1e9)
    older = [entry for place in after.places for entry in place.entries.values() if entry.changed_ns < limit_ns]

    def fresh(place: PlaceSnapshot) -> dict[str, tuple[Entry, Entry | None]]:
        return {key: (entry, None) for key, entry in place.entries.items() if entry.changed_ns >= limit_ns}

    told = _told(after.places, fresh, _names(older), after.unreadable, sum(map(_counts, older)))
    sizes = tuple(
        _size(place, [entry for entry in place.entries.values() if entry.changed_ns < limit_ns]) for place in after.places
    )
    return msgspec.structs.replace(told, before=sizes)


def _size(place: PlaceSnapshot, entries: Iterable[Entry]) -> CacheSize:
    held = list(entries)
    return CacheSize(
        cache=place.place.kind,
        path=str(place.place.path),
        exists=place.exists,
        entries=sum(map(_counts, held)),
        files=sum(entry.files for entry in held),
        bytes=sum(entry.bytes for entry in held),
    )


def _names(entries: Iterable[Entry]) -> set[str]:
    return {entry.kernel for entry in entries if entry.kernel is not None}


def _counts(entry: Entry) -> bool:
    """Whether an entry is something that a warm start can find: before_entries counts these."""
    return entry.what in ("kernel", "graph")


def _grown(entry: Entry, was: Entry) -> bool:
    return entry.changed_ns > was.changed_ns or entry.files > was.files


def _told(
    places: tuple[PlaceSnapshot, ...],
    fresh: Callable[[PlaceSnapshot], dict[str, tuple[Entry, Entry | None]]],
    known: set[str],
    unreadable: tuple[str, ...],
    before_entries: int,
) -> CacheDiff:
    found = [(place, fresh(place)) for place in places]
    caches = tuple(each for place, entries in found if (each := _new_entries(place, entries, known)) is not None)
    graphs = [
        f"{place.place.path}/{key}" for place, entries in found for key, (entry, _) in entries.items() if entry.what == "graph"
    ]
    return CacheDiff(
        caches=caches,
        new_kernels=tuple(sorted({name for each in caches for name in each.new_kernels})),
        new_variants=tuple(sorted({name for each in caches for name in each.new_variants})),
        new_graphs=sum(each.new_graphs for each in caches),
        files=sum(each.files for each in caches),
        bytes=sum(each.bytes for each in caches),
        unreadable=unreadable,
        before_entries=before_entries,
        variants=sum(sum(each.new_variants.values()) for each in caches),
        new_autotune=sum(each.new_autotune for each in caches),
        rewritten=tuple(
            sorted({entry.kernel for _, entries in found for entry, was in entries.values() if entry.kernel and was is not None})
        ),
        graph_paths=tuple(graphs[:GRAPHS_SHOWN]),
    )


def _new_entries(place: PlaceSnapshot, entries: dict[str, tuple[Entry, Entry | None]], known: set[str]) -> NewEntries | None:
    """What one place gained; None where that is nothing."""
    if not entries:
        return None
    kernels: dict[str, int] = {}
    variants: dict[str, int] = {}
    graphs = tuning = files = size = 0
    for entry, was in entries.values():
        if entry.kernel is not None:
            names = variants if entry.kernel in known else kernels
            names[entry.kernel] = names.get(entry.kernel, 0) + 1
        graphs += entry.what == "graph"
        tuning += entry.what == "autotune"
        files += max(0, entry.files - (was.files if was is not None else 0))
        size += max(0, entry.bytes - (was.bytes if was is not None else 0))
    return NewEntries(
        cache=place.place.kind,
        path=str(place.place.path),
        new_kernels=dict(sorted(kernels.items())),
        new_variants=dict(sorted(variants.items())),
        new_graphs=graphs,
        new_autotune=tuning,
        files=files,
        bytes=size,
    )
