"""Rates, energy and latencies of every level and number of streams that was measured before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_sglang.judge import margins, samples
from pytest_sglang.judge.boots import Spread
from pytest_sglang.judge.margins import Margin
from pytest_sglang.judge.samples import UNRECORDED, Samples
from pytest_sglang.record.run import Run
from pytest_sglang.session import compared, store
from pytest_sglang.session.compared import Past, Pending, Side, Told

Place = tuple[float | None, int]
"""Power level (None: whatever it is) and streams."""
Boots = list[tuple[dict[str, Any], dict[str, Samples]]]
"""One item a boot: its measurement, and what that says of each quantity."""


def rates(before: Sequence[Run], after: Sequence[Run], past: Past, one: str | None) -> list[Pending]:
    """Every quantity that was measured before, at each place; what is gone, or has become unfair, is undecided and says so.

    ``one``: the thing under test. Where that is the power limit, one level of either side is compared with one of the other.
    """
    across = one == "power" and all(len({place[0] for place in _places(runs, False)}) == 1 for runs in (before, after))
    found = []
    # where nothing at all was measured before, that is what is to be said of each place
    for place in _places(before, across) or _places(after, across):
        sides = [_measured(runs, place, across, past) for runs in (before, after)]
        found += _place(place, sides[0], sides[1], past)
    return found


def new_places(before: Sequence[Run], after: Sequence[Run], one: str | None) -> list[str]:
    """What was measured only after."""
    if one == "power":
        return []
    known = set(_places(before, False))
    return [_where(place).removeprefix(" at ") for place in _places(after, False) if place not in known]


def one_boot(before: Sequence[Run], after: Sequence[Run], past: Past) -> list[str]:
    """That runs of a side share server processes, where they do: more of such runs decide nothing."""
    told = []
    for when, runs in (("before", before), ("after", after)):
        measured = [run for run in runs if run.throughputs]
        count = len({past.processes[run.run_id, index] for run in measured for index in range(len(run.throughputs))})
        if count < len(measured):
            boots = (
                "one start of the server: they are one boot"
                if count == 1
                else f"{count} starts of the server: they are {count} boots"
            )
            told.append(f"the {len(measured)} runs {when} measured {boots} (only a restart in between makes another)")
    return told


def _places(runs: Sequence[Run], across: bool) -> list[Place]:
    return list(dict.fromkeys(_place_of(item, across) for run in runs for item in run.throughputs))


def _place_of(item: dict[str, Any], across: bool) -> Place:
    return (None if across else item.get("power_w"), int(item.get("throughput", {}).get("streams") or 1))


def _where(place: Place) -> str:
    power, streams = place
    level = "" if power is None else f" at {power:g} W"
    return f"{level}{f', {streams} streams' if streams != 1 else ''}"


def _measured(runs: Sequence[Run], place: Place, across: bool, past: Past) -> Boots:
    """The place's measurements, one a boot, with what they say: a process that was measured twice counts once, with all of its rounds."""
    boots: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for index, item in enumerate(run.throughputs):
            if _place_of(item, across) == place:
                boots.setdefault(past.processes[run.run_id, index], []).append(item)
    found: Boots = []
    for items in boots.values():
        rounds = [each for item in items for each in item["throughput"].get("rounds") or ()]
        whole = {**items[0], "throughput": {**items[0]["throughput"], "rounds": rounds}}
        found.append((whole, samples.of(whole["throughput"])))
    return found


def _place(place: Place, old: Boots, new: Boots, past: Past) -> list[Pending]:
    gone = _nothing(old, "before") or _nothing(new, "after")
    if gone:
        # one row says it for all quantities
        return [_pending(margins.RATES[0], place, [], [], past, trouble=gone)]
    tokens = [_tokens(side) for side in (old, new)]
    unlike = ""
    if tokens[0] != tokens[1]:
        unlike = f"a round had {_list(tokens[0])} tokens before and {_list(tokens[1])} after: not the same work"
    promised = any(item.get("quantity") == "end_to_end" for item, _ in old)
    found = []
    for margin in (*margins.RATES, *margins.LATENCIES):
        if (margin.name == "end_to_end_tok_s" and not promised) or (margin.name == "aggregate_tok_s" and place[1] == 1):
            continue
        told = [[each[margin.name] for _, each in side if margin.name in each] for side in (old, new)]
        one = _one(margin, place, told[0], told[1], past, unlike)
        if one is not None:
            found.append(one)
    return found


def _nothing(side: Boots, when: str) -> str:
    if not side:
        return f"not measured {when}"
    return "" if any(told for _, told in side) else f"no valid round {when}"


def _tokens(side: Boots) -> set[int]:
    """Output tokens of the valid rounds."""
    return {
        int(each["output_tokens"])
        for item, _ in side
        for each in item["throughput"].get("rounds") or ()
        if each.get("invalid_because") is None and each.get("output_tokens")
    }


def _list(tokens: set[int]) -> str:
    return " or ".join(str(each) for each in sorted(tokens))


def _one(margin: Margin, place: Place, old: list[Samples], new: list[Samples], past: Past, unlike: str) -> Pending | None:
    """One quantity of one place; None where there is nothing to say of it."""
    if not any(each.values for each in (*old, *new)):
        return _without(margin, place, old, new, past)
    before = _unfair(old, "before") or _lagging(old, margin, "before")
    after = unlike or _unfair(new, "after") or _lagging(new, margin, "after")
    if margin.name == "tpot_ms" and place[1] == 1:
        return _pending(margin, place, old, new, past, note="the inverse of the decode rate, which is judged")
    if before and not margin.primary:
        # what could not be told before either is no promise; what could, and cannot any more, is undecided
        return _pending(margin, place, old, new, past, note=f"not judged: {before}")
    few = _few(margin, old, new, past, place)
    if few and not after:
        return _pending(margin, place, old, new, past, note=f"not judged: {few}")
    return _pending(margin, place, old, new, past, trouble=before or after, judged=True)


def _without(margin: Margin, place: Place, old: list[Samples], new: list[Samples], past: Past) -> Pending | None:
    """A quantity of which neither side tells a value: a rate is undecided, a median says why, of others there is nothing to say."""
    why = _unfair(old, "before") or _unfair(new, "after")
    if margin.primary:
        return _pending(margin, place, old, new, past, trouble=why or "no values")
    told = any(each.left_out and UNRECORDED not in each.why for each in (*old, *new))
    if told and margin.name in ("ttft_ms", "itl_ms"):
        return _pending(margin, place, old, new, past, note=f"not judged: {why}")
    return None


def _pending(
    margin: Margin,
    place: Place,
    old: list[Samples],
    new: list[Samples],
    past: Past,
    *,
    judged: bool = False,
    trouble: str = "",
    note: str = "",
) -> Pending:
    sides = _values(old), _values(new)
    return Pending(
        name=f"{margin.title}{_where(place)}",
        margin=margin,
        sides=sides,
        spread=_spread(margin, sides, past, place),
        judged=judged or bool(trouble),
        trouble=trouble,
        note=note,
        error_sd=(_error(old), _error(new)),
        rounds_each=max((each.rounds_each for each in (*old, *new)), default=1),
    )


def _values(side: list[Samples]) -> Side:
    return [list(each.values) for each in side if each.values]


def _spread(margin: Margin, sides: tuple[Side, Side], past: Past, place: Place) -> Spread:
    return compared.learn(past, _history(past, place, margin.name), sides, margin.assumed_sd)


def _error(side: list[Samples]) -> float:
    return max((each.error_sd for each in side), default=0.0)


def _unfair(side: list[Samples], when: str) -> str:
    """Why a side gives no fair values; empty where it does. What is only not earned is no trouble: ``_few`` tells it."""
    unfair = next((each for each in side if each.unfair), None)
    if unfair is not None:
        return f"{when}, {unfair.why}"
    return "" if side else f"no value {when}"


def _lagging(side: list[Samples], margin: Margin, when: str) -> str:
    """The client's own lateness may be as large as the loss that is looked for."""
    middle = compared.middle(_values(side))
    lag = max((each.lag for each in side), default=0.0)
    if middle is None or lag <= margin.losses(middle)[0] * middle:
        return ""
    return f"the client's own lag {when}, {lag:.2g} ms, is as large as the loss to be found"


def _few(margin: Margin, old: list[Samples], new: list[Samples], past: Past, place: Place) -> str:
    """Why a percentile has no interval: not earned, or earned once and no earlier boots tell the rest."""
    if not margin.name.endswith("_p99_ms"):
        return ""
    sides = _values(old), _values(new)
    if not all(sides):
        return f"too few samples {'after' if sides[0] else 'before'} for a p99 (459 earn one)"
    degrees = _spread(margin, sides, past, place).degrees
    if all(any(len(boot) > 1 for boot in side) for side in sides) or (degrees is not None and degrees >= compared.FEW):
        return ""
    return "the rounds of one side earn one p99, and fewer than 4 earlier boots tell how far it scatters"


def _history(past: Past, place: Place, name: str) -> list[Told]:
    """Values of earlier boots with their keys; of every level, each for itself, where the level is what is compared."""
    return [
        (found if place[0] is not None else f"{found} {item.power_w}", past.processes[run.run_id, index], values)
        for found, run in past.runs
        for index, item in enumerate(run.throughputs)
        if (place[0] in (None, item.power_w)) and item.throughput.streams == place[1] and (values := _stored(item, name))
    ]


def _stored(item: store.StoredMeasurement, name: str) -> list[float]:
    """From the run's short form; from its rounds where it is older than that."""
    if name in item.samples:
        return [each for each in item.samples[name] if each > 0]
    rounds = [each for each in item.throughput.rounds if each.invalid_because is None]
    if name == "joules_per_token":
        return [each.joules / each.output_tokens for each in rounds if each.joules and each.output_tokens]
    if name not in ("decode_tok_s", "end_to_end_tok_s"):
        return []
    return [rate for each in rounds if (rate := getattr(each, name)) is not None and rate > 0]
