"""Starts before and after: readiness by kind of start, and the phases that it is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pytest_sglang.judge import margins
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import PHASES
from pytest_sglang.session import compared
from pytest_sglang.session.compared import Past, Pending, Quantity, Side

KINDS = ("warm", "cold", "partial")
STAMP_SD_S = math.sqrt(2 / 12)
"""Standard uncertainty of a phase's length: the log's stamps are whole seconds, at both of its ends (a rectangle of ± 0.5 s each)."""
LEAST_S = 1.0
"""A phase that is shorter on both sides says nothing in a log of whole seconds."""
Start = Mapping[str, Any]


def readiness(before: Sequence[Run], after: Sequence[Run], past: Past) -> list[Pending]:
    """Seconds to readiness by kind of start; judged where enough starts tell how far starts differ."""
    found = []
    for kind in KINDS:
        zero, sides = _alike(before, after, kind, past)
        values: tuple[Side, Side] = (_ready(sides[0]), _ready(sides[1]))
        if not all(values):
            continue
        told = [(key, name, [value]) for key, name, start in _earlier(past, kind, zero) if (value := _seconds(start)) is not None]
        spread = compared.learn(past, told, values, margins.READY.assumed_sd)
        judged = spread.degrees is not None and spread.degrees >= compared.FEW
        found.append(
            Pending(
                name=f"{kind} start, ready",
                margin=margins.READY,
                sides=values,
                spread=spread,
                judged=judged,
                note="" if judged else f"not judged: {_too_few(values)}",
            )
        )
    return found


def phases(before: Sequence[Run], after: Sequence[Run], past: Past) -> list[Quantity]:
    """Every phase of the starts of a kind, with an interval where several starts tell it. They are parts of readiness and do not count."""
    found: list[Quantity] = []
    for kind in KINDS:
        zero, sides = _alike(before, after, kind, past)
        if not all(sides):
            continue
        earlier = _earlier(past, kind, zero)
        pending = [_phase(kind, phase, sides, earlier, past) for phase in PHASES]
        found += compared.settle([each for each in pending if each is not None])
    return found


def _phase(
    kind: str, phase: str, sides: tuple[list[Start], list[Start]], earlier: list[tuple[str, str, Start]], past: Past
) -> Pending | None:
    values: tuple[Side, Side] = (_lengths(sides[0], phase), _lengths(sides[1], phase))
    longest = max((each for side in values for boot in side for each in boot), default=0.0)
    if longest < LEAST_S:
        return None
    told = [(key, name, [length]) for key, name, start in earlier if (length := _length(start, phase)) is not None]
    spread = compared.learn(past, told, values, margins.PHASE.assumed_sd)
    known = all(values) and spread.degrees is not None and spread.degrees >= compared.FEW
    missing = next((f"no value {when}" for when, side in zip(("before", "after"), values, strict=True) if not side), "")
    note = "" if known else f"not judged: {missing or _too_few(values)}"
    errors = [STAMP_SD_S / middle if (middle := compared.middle(side)) else 0.0 for side in values]
    return Pending(
        name=f"{kind} start: {phase}",
        margin=margins.PHASE,
        sides=values,
        spread=spread,
        judged=known,
        counts=False,
        note=note,
        error_sd=(errors[0], errors[1]),
    )


def _too_few(values: tuple[Side, Side]) -> str:
    if all(len(side) == 1 for side in values):
        return "one start on either side"
    counts = " and ".join(f"{len(side)} {when}" for side, when in zip(values, ("before", "after"), strict=True))
    return f"too few starts tell how far starts differ ({counts})"


def explained(ready: Quantity, parts: Sequence[Quantity]) -> Quantity:
    """A start that became slower, with the phase that took most of it."""
    if ready.change is None or ready.change.outcome != "worse" or ready.before is None or ready.after is None:
        return ready
    kind = ready.name.split(",")[0]
    longer = [
        (each.after - each.before, each)
        for each in parts
        if each.name.startswith(f"{kind}:") and each.before is not None and each.after is not None
    ]
    if not longer:
        return ready
    seconds, part = max(longer, key=lambda each: each[0])
    if seconds < (ready.after - ready.before) / 2:
        return ready
    return msgspec.structs.replace(ready, note=f"most of it in {part.name.split(': ')[1]}, {seconds:.0f} s longer")


def notes(before: Sequence[Run], after: Sequence[Run]) -> list[str]:
    """Starts that are not compared because they are of other kinds; kernels that the newest start after compiled."""
    told = []
    kinds = [[kind for kind in (*KINDS, "unknown") if _starts(runs, kind)] for runs in (before, after)]
    if kinds[0] and not kinds[1]:
        told.append(f"starts: {_and(kinds[0])} before, none after: not compared")
    elif kinds[0] and kinds[1]:
        gone = [kind for kind in kinds[0] if kind not in kinds[1]]
        new = [kind for kind in kinds[1] if kind not in kinds[0]]
        if gone or new:
            told.append(f"starts: {_and(kinds[0])} before, {_and(kinds[1])} after: only those of one kind are compared")
    for kind in kinds[0]:
        zeros = [_zeros(_starts(runs, kind)) for runs in (before, after)]
        if all(zeros) and not zeros[0] & zeros[1]:
            told.append(
                f"{kind} starts: counted from {_and(sorted(zeros[0]))} before, from {_and(sorted(zeros[1]))} after: not compared"
            )
    return told + _compiled(after)


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _compiled(after: Sequence[Run]) -> list[str]:
    """New kernels of warm starts: the newest of them."""
    for start in reversed(_starts(after, "warm")):
        names = list((start.get("cache_diff") or {}).get("new_kernels") or ())
        if not names:
            return []
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return [
            f"the warm start after compiled {len(names)} new kernel{'s' if len(names) > 1 else ''}: {', '.join(names[:3])}{more}"
        ]
    return []


def _starts(runs: Sequence[Run], kind: str) -> list[Start]:
    found = [item.get("startup") or {} for run in runs for item in run.startups]
    return [each for each in found if each.get("kind") == kind]


def _alike(before: Sequence[Run], after: Sequence[Run], kind: str, past: Past) -> tuple[str, tuple[list[Start], list[Start]]]:
    """Starts of a kind whose seconds count from the same zero, the launch where both know it; empty where there are none.

    A start that several runs found counts once.
    """
    old, new = _single(before, kind, past), _single(after, kind, past)
    zero = max(_zeros(old) & _zeros(new), default="launch")
    return zero, tuple([each for each in side if _zeros([each]) == {zero}] for side in (old, new))  # type: ignore[return-value]


def _zeros(starts: Sequence[Start]) -> set[str]:
    """What their seconds count from."""
    return {str(each.get("launched_at_is") or "launch") for each in starts}


def _single(runs: Sequence[Run], kind: str, past: Past) -> list[Start]:
    """The starts of a kind, each once. One that was measured from its launch, in the run that made it, comes before what a log tells."""
    found: dict[str, Start] = {}
    for run in runs:
        for index, item in enumerate(run.startups):
            start = item.get("startup") or {}
            name = past.starts[run.run_id, index]
            if start.get("kind") == kind and (name not in found or (start.get("observed") and not found[name].get("observed"))):
                found[name] = start
    return list(found.values())


def _earlier(past: Past, kind: str, zero: str) -> list[tuple[str, str, Start]]:
    """Earlier starts of a kind, counted from the same zero, each once, with their run's key and their name; none of those compared."""
    found: dict[str, tuple[str, str, Start]] = {}
    for key, run in past.runs:
        for index, item in enumerate(run.startups):
            name = past.starts[run.run_id, index]
            if item.startup.get("kind") == kind and _zeros([item.startup]) == {zero} and name not in past.compared:
                found.setdefault(name, (key, name, item.startup))
    return list(found.values())


def _ready(starts: Sequence[Start]) -> Side:
    return [[value] for each in starts if (value := _seconds(each)) is not None]


def _seconds(start: Start) -> float | None:
    value = start.get("ready_s")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value > 0 else None


def _lengths(starts: Sequence[Start], phase: str) -> Side:
    return [[length] for each in starts if (length := _length(each, phase)) is not None]


def _length(start: Start, phase: str) -> float | None:
    """Seconds of a phase; None where it is not told, or took none."""
    for each in start.get("phases") or ():
        if each.get("id") == phase and each.get("end_s") is not None and each.get("begin_s") is not None:
            length = float(each["end_s"]) - float(each["begin_s"])
            return length if math.isfinite(length) and length > 0 else None
    return None
