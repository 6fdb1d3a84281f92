"""Before and after: what changed between runs, and what it did. Runs with equal keys are boots of the same thing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytest_sglang.judge import gain, keys, regression, steps
from pytest_sglang.judge.keys import Difference
from pytest_sglang.judge.regression import Change, Spread
from pytest_sglang.record import run as records
from pytest_sglang.record.run import Run, Verdict
from pytest_sglang.record.values import Value
from pytest_sglang.session import store
from pytest_sglang.session.errors import Refused

START_LOSS = 0.15
"""A start that takes so much longer is worth a verdict; less is inside what a busy disk does."""
ENVIRONMENT = (("driver", "driver"), ("kernel", "kernel"), ("os", "operating system"), ("python", "python"), ("host", "host"))
CARD = (
    ("vbios", "VBIOS"),
    ("requested_power_limit_w", "power limit W"),
    ("pcie_max_gen", "PCIe generation, at most"),
    ("pcie_max_width", "PCIe width, at most"),
    ("pcie_width", "PCIe width"),
    ("memory_bytes", "memory"),
    ("ecc", "ECC"),
    ("persistence", "persistence mode"),
)


class Quantity(Value, frozen=True, kw_only=True):
    """One measured quantity before and after. ``before`` and ``after`` are medians in ``unit``; ``change`` positive is better."""

    name: str
    unit: str
    before: float | None
    after: float | None
    higher_is_better: bool
    judged: bool
    change: Change | None
    """None: one value on either side, shown without an interval."""
    boots: tuple[int, int]
    rounds: tuple[int, int]
    note: str = ""


class Comparison(Value, frozen=True, kw_only=True):
    """What changed and what it did. ``refused``: why these runs must not be compared (then there are no quantities)."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    title_before: str
    title_after: str
    simulated: bool
    changed: tuple[Difference, ...] = ()
    seen: tuple[Difference, ...] = ()
    """Other things that differ and are no part of the key: temperatures, link widths, caches."""
    under_test: str | None = None
    refused: tuple[str, ...] = ()
    quantities: tuple[Quantity, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """fail beats inconclusive beats pass, over the judged quantities; a refusal, and nothing judged, is inconclusive."""
        verdicts = {each.change.verdict for each in self.quantities if each.judged and each.change is not None}
        if "fail" in verdicts:
            return "fail"
        return "inconclusive" if self.refused or "inconclusive" in verdicts or not verdicts else "pass"


def of_paths(paths: Sequence[Path]) -> list[Comparison]:
    """Comparisons of the first folder's runs with every other kind of run among ``paths``. Raises RecordError, Refused."""
    if len(paths) < 2:
        raise Refused("compare takes at least two run folders: pytest-sglang compare reports/BEFORE reports/AFTER")
    runs = [records.read(path) for path in paths]
    unfinished = [str(path) for path, run in zip(paths, runs, strict=True) if run.finished is None]
    if unfinished:
        raise Refused(f"not a finished run: {', '.join(unfinished)} (it was killed, or is still going on)")
    folders = {(path.parent if path.name == "run.json" else path).resolve().parent for path in paths}
    history = [each for folder in sorted(folders) for each in store.runs(folder)[0]]
    groups = grouped(runs)
    if len(groups) == 1:
        groups = [groups[0][:1], groups[0][1:]]
    return [compare(groups[0], after, history) for after in groups[1:]]


def key(run: Run) -> dict[str, Any]:
    """The key of a run: ``gain.key_of`` and whether it is simulated."""
    return {**gain.key_of(run), "simulated": run.simulated}


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with equal keys together, in the order in which each kind came first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(key(run).items())), []).append(run)
    return list(groups.values())


def compare(before: Sequence[Run], after: Sequence[Run], history: Sequence[store.Stored] = ()) -> Comparison:
    """The comparison of two sets of runs, each of one key; ``history`` teaches how far boots differ. Pure but for nothing."""
    found = keys.differences(key(before[0]), key(after[0]))
    refused = tuple(str(each) for each in found if each.kind == "condition")
    one = keys.under_test(found)
    common: dict[str, Any] = {
        "before": tuple(run.run_id for run in before),
        "after": tuple(run.run_id for run in after),
        "title_before": _title(before[0]),
        "title_after": _title(after[0]),
        "simulated": before[0].simulated or after[0].simulated,
        "changed": found,
        "seen": seen(before[-1], after[-1]),
        "under_test": one,
    }
    if refused:
        return Comparison(**common, refused=refused)
    alike = [each for each in history if each.finished is not None]
    quantities = [*_rates(before, after, alike, one), *_starts(before, after, alike)]
    notes = []
    changes = [each for each in found if each.kind == "change"]
    if len(changes) > 1 and one is None:
        notes.append(f"{len(changes)} things changed together; what is measured is the effect of all of them")
    notes += _earlier(before, alike)
    return Comparison(**common, quantities=tuple(quantities), notes=tuple(notes))


# --- quantities ------------------------------------------------------------------------------------------------------------


def _rates(before: Sequence[Run], after: Sequence[Run], history: Sequence[store.Stored], one: str | None) -> list[Quantity]:
    across = one == "power"
    places = [place for place in _places(before, across) if place in set(_places(after, across))]
    found = []
    for place in places:
        for name, unit, up, value in _MEASURED:
            sides = [_boots(runs, place, across, value) for runs in (before, after)]
            if not all(sides):
                continue
            if name == "end to end" and not _promised_end_to_end(before, place):
                continue
            learnt = [*_history_boots(history, place, name), *sides]
            found.append(_quantity(f"{name}{_where(place)}", unit, sides, regression.learn(learnt), up, judged=name in _JUDGED))
    return found


Round = dict[str, Any]


def _round_rate(quantity: str) -> Callable[[Round], float | None]:
    return lambda each: each.get(f"{quantity}_tok_s")


def _round_ttft(each: Round) -> float | None:
    from pytest_sglang.judge import stats

    values = each.get("ttft_s") or ()
    return stats.median(values) * 1000 if values else None


def _round_joules(each: Round) -> float | None:
    joules, tokens = each.get("joules"), each.get("output_tokens")
    return joules / tokens if joules and tokens else None


_MEASURED: tuple[tuple[str, str, bool, Callable[[Round], float | None]], ...] = (
    ("decode", "tok/s", True, _round_rate("decode")),
    ("end to end", "tok/s", True, _round_rate("end_to_end")),
    ("time to first token", "ms", False, _round_ttft),
    ("energy per token", "J/token", False, _round_joules),
)
_JUDGED = ("decode", "end to end", "energy per token")


def _places(runs: Sequence[Run], across: bool) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(_place(item, across) for run in runs for item in run.throughputs))


def _place(item: dict[str, Any], across: bool) -> tuple[Any, ...]:
    return (None if across else item.get("power_w"), item.get("throughput", {}).get("streams", 1))


def _where(place: tuple[Any, ...]) -> str:
    power, streams = place
    level = "" if power is None else f" at {power:g} W"
    return f"{level}{f', {streams} streams' if streams != 1 else ''}"


def _boots(runs: Sequence[Run], place: tuple[Any, ...], across: bool, value: Callable[[Round], float | None]) -> list[list[float]]:
    boots = []
    for run in runs:
        rounds = [
            number
            for item in run.throughputs
            if _place(item, across) == place
            for each in item.get("throughput", {}).get("rounds") or ()
            if each.get("invalid_because") is None and (number := value(each)) is not None and number > 0
        ]
        if rounds:
            boots.append(rounds)
    return boots


def _promised_end_to_end(runs: Sequence[Run], place: tuple[Any, ...]) -> bool:
    return any(item.get("quantity") == "end_to_end" for run in runs for item in run.throughputs if _place(item, False) == place)


def _history_boots(history: Sequence[store.Stored], place: tuple[Any, ...], name: str) -> list[list[list[float]]]:
    """Boots of earlier runs, those with equal keys together; only rates are kept in the store's short form."""
    if name not in ("decode", "end to end", "energy per token"):
        return []
    groups: dict[str, list[list[float]]] = {}
    for run in history:
        boots = [
            [number for each in item.throughput.rounds if (number := _stored(each, name)) is not None]
            for item in run.throughputs
            if (item.power_w, item.throughput.streams) == place
        ]
        groups.setdefault(_stored_key(run), []).extend(each for each in boots if each)
    return [level for group in groups.values() if len(level := _one_level(group)) > 1]


def _one_level(boots: list[list[float]]) -> list[list[float]]:
    """The newest boots that are of one level: a step between boots is a change, and no spread."""
    step = steps.find([math.fsum(each) / len(each) for each in boots])
    return boots if step is None else _one_level(boots[step.index :])


def _stored(each: store.StoredRound, name: str) -> float | None:
    if each.invalid_because is not None:
        return None
    if name == "energy per token":
        return each.joules / each.output_tokens if each.joules and each.output_tokens else None
    return each.decode_tok_s if name == "decode" else each.end_to_end_tok_s


def _stored_key(run: store.Stored) -> str:
    whole = Run(run_id=run.run_id, started=run.started, simulated=run.simulated, rig=run.rig, environment=run.environment)
    return repr(sorted(key(whole).items()))


def _starts(before: Sequence[Run], after: Sequence[Run], history: Sequence[store.Stored]) -> list[Quantity]:
    """Seconds to readiness by kind of start, and its phases; judged only where earlier starts tell how far starts differ."""
    found = []
    for kind in ("warm", "cold"):
        sides = [_start_values(runs, kind) for runs in (before, after)]
        if not all(sides):
            continue
        known: dict[str, list[list[float]]] = {}
        for run in history:
            for item in run.startups:
                ready = item.startup.get("ready_s")
                if item.startup.get("kind") == kind and ready:
                    known.setdefault(_stored_key(run), []).append([float(ready)])
        spread = regression.learn([*(level for group in known.values() if len(level := _one_level(group)) > 1), *sides])
        judged = spread.degrees is not None and spread.degrees >= 3
        note = "" if judged else "shown, not judged: fewer than 4 earlier starts tell how far starts differ"
        found.append(
            _quantity(f"{kind} start, ready after", "s", sides, spread, False, judged=judged, note=note, max_loss=START_LOSS)
        )
        found += _phases(before, after, kind)
    return found


def _start_values(runs: Sequence[Run], kind: str) -> list[list[float]]:
    values = [
        item["startup"].get("ready_s") for run in runs for item in run.startups if item.get("startup", {}).get("kind") == kind
    ]
    return [[float(each)] for each in values if each]


def _phases(before: Sequence[Run], after: Sequence[Run], kind: str) -> list[Quantity]:
    """Phases of the newest start of a kind; seconds that are whole in the log tell no interval."""
    sides = [_phase_lengths(runs, kind) for runs in (before, after)]
    return [
        Quantity(
            name=f"{kind} start: {name}",
            unit="s",
            before=sides[0][name],
            after=sides[1][name],
            higher_is_better=False,
            judged=False,
            change=None,
            boots=(1, 1),
            rounds=(1, 1),
        )
        for name in sides[0]
        if name in sides[1] and max(sides[0][name], sides[1][name]) >= 2.0
    ]


def _phase_lengths(runs: Sequence[Run], kind: str) -> dict[str, float]:
    for run in reversed(runs):
        for item in reversed(run.startups):
            startup = item.get("startup", {})
            if startup.get("kind") == kind:
                lengths = {
                    each["id"]: each["end_s"] - each["begin_s"]
                    for each in startup.get("phases") or ()
                    if each.get("end_s") is not None
                }
                return {name: float(length) for name, length in lengths.items() if length > 0}
    return {}


def _quantity(
    name: str,
    unit: str,
    sides: list[list[list[float]]],
    spread: Spread,
    up: bool,
    *,
    judged: bool,
    note: str = "",
    max_loss: float = regression.MAX_LOSS,
) -> Quantity:
    from pytest_sglang.judge import stats

    middles = [stats.median([each for boot in side for each in boot]) for side in sides]
    return Quantity(
        name=name,
        unit=unit,
        before=middles[0],
        after=middles[1],
        higher_is_better=up,
        judged=judged,
        change=regression.compare(sides[0], sides[1], spread=spread, higher_is_better=up, max_loss=max_loss),
        boots=(len(sides[0]), len(sides[1])),
        rounds=(sum(map(len, sides[0])), sum(map(len, sides[1]))),
        note=note,
    )


# --- what else changed -----------------------------------------------------------------------------------------------------


def seen(before: Run, after: Run) -> tuple[Difference, ...]:
    """What differs outside the key: system, cards, temperatures, caches. Values of the newest run of either side."""
    pairs = [(label, before.environment.get(name), after.environment.get(name)) for name, label in ENVIRONMENT]
    cards = [{card.get("index"): card for card in run.environment.get("gpus") or ()} for run in (before, after)]
    for index in sorted({*cards[0], *cards[1]}, key=str):
        mine, theirs = (side.get(index, {}) for side in cards)
        pairs += [(f"GPU {index} {label}", mine.get(name), theirs.get(name)) for name, label in CARD]
    pairs.append(("temperature at the first round °C", _start_c(before), _start_c(after)))
    pairs.append(("new kernels of the newest start", _new_kernels(before), _new_kernels(after)))
    return tuple(Difference(name, old, new, "change") for name, old, new in pairs if old != new)


def _start_c(run: Run) -> float | None:
    for item in run.throughputs:
        for each in item.get("throughput", {}).get("rounds") or ():
            if each.get("start_c") is not None:
                return float(each["start_c"])
    return None


def _new_kernels(run: Run) -> int | None:
    for item in reversed(run.startups):
        diff = item.get("startup", {}).get("cache_diff")
        if diff:
            return len(diff.get("new_kernels") or ())
    return None


def _title(run: Run) -> str:
    version = dict(run.environment.get("server") or {}).get("version")
    levels = ", ".join(f"{each:g}" for each in run.power_levels_w)
    parts = [
        run.rig.get("name") or "unnamed rig",
        f"{levels} W" if levels else "",
        f"SGLang {version}" if version else "",
        run.started[:10],
    ]
    return ", ".join(str(each) for each in parts if each)


def _earlier(before: Sequence[Run], history: Sequence[store.Stored]) -> list[str]:
    """A slow-down that was there before the change: a step in the history up to the newest run of ``before``."""
    wanted = before[-1]
    earlier = [
        each for each in history if each.rig_name == (wanted.rig.get("name") or "unnamed rig") and each.started <= wanted.started
    ]
    notes = []
    for power in wanted.power_levels_w or (None,):
        told = [(each, found[0]) for each in earlier if (found := each.measured("decode-throughput", power)) is not None]
        step = steps.find([value for _, value in told]) if told else None
        if step is not None and step.change < 0:
            at, level = told[step.index][0], "" if power is None else f" at {power:g} W"
            notes.append(
                f"decode{level} had fallen by {regression.pct(-step.change)} already before: since {at.started[:16]} ({at.run_id})"
            )
    return notes
