"""One quantity before and after: from the boots of both sides and what earlier boots tell, to a change with its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pytest_sglang.judge import boots, family, gain, margins, regression, stats, steps
from pytest_sglang.judge.boots import Spread
from pytest_sglang.judge.margins import Margin
from pytest_sglang.judge.regression import Change
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Value
from pytest_sglang.session import booted, store

FEW = 3.0
"""Degrees of freedom that a spread between single values must have to be one: four earlier boots."""
NEWEST = 200
"""Of earlier runs so many teach; older ones tell of drivers and dust that are long gone, and take time to read."""
Side = list[list[float]]
"""One inner list a boot."""
Told = tuple[str, str, list[float]]
"""Key, boot and values of what an earlier run measured."""


class Quantity(Value, frozen=True, kw_only=True):
    """One measured quantity before and after. ``before`` and ``after`` are in ``unit``, as ``level``; ``change`` positive is better."""

    name: str
    unit: str
    before: float | None
    after: float | None
    higher_is_better: bool
    judged: bool
    """Counts for the verdict. A phase of a start has a ``change`` and does not count: the start as a whole does."""
    change: Change | None
    """None: shown without an interval, ``note`` says why."""
    boots: tuple[int, int]
    rounds: tuple[int, int]
    note: str = ""
    max_loss: float = regression.MAX_LOSS
    """What had to be excluded, as a share."""


class Pending(Value, frozen=True, kw_only=True):
    """A quantity that waits for the others that are judged with it: its share of the false alarms depends on them."""

    name: str
    margin: Margin
    sides: tuple[Side, Side]
    spread: Spread
    judged: bool = True
    counts: bool = True
    """Whether its verdict is one of the comparison's."""
    note: str = ""
    trouble: str = ""
    """Why it is undecided whatever its numbers say."""
    error_sd: tuple[float, float] = (0.0, 0.0)
    rounds_each: int = 1


def settle(pending: Sequence[Pending]) -> list[Quantity]:
    """All that are judged together: none is called worse by chance more often than ``family.ALPHA`` in all."""
    tested = [each for each in pending if each.judged and not each.trouble]
    first = [_changed(each, None) for each in tested]
    # without an interval there is no test: such a one takes no part of the alarms
    whole = [place for place, change in enumerate(first) if change.p_value is not None]
    alarms: dict[int, float] = {}
    if whole:
        weights = margins.weights([tested[place].margin.primary for place in whole])
        levels = family.levels([first[place].p_value or 0.0 for place in whole], weights)
        alarms = {id(tested[place]): level for place, level in zip(whole, levels, strict=True)}
    return [_quantity(each, alarms.get(id(each))) for each in pending]


def _changed(each: Pending, alarm: float | None) -> Change:
    max_loss, min_loss = each.margin.losses(middle(each.sides[0]) or 0.0)
    return regression.compare(
        each.sides[0],
        each.sides[1],
        spread=each.spread,
        higher_is_better=each.margin.up,
        max_loss=max_loss,
        min_loss=min_loss,
        alarm=alarm,
        error_sd=each.error_sd,
        rounds_each=each.rounds_each,
    )


def _quantity(each: Pending, alarm: float | None) -> Quantity:
    before, after = each.sides
    change: Change | None = None
    if each.trouble:
        change = regression.undecided(each.trouble, spread=each.spread)
    elif each.judged:
        change = _changed(each, alarm)
    levels = level(before), level(after)
    return Quantity(
        name=each.name,
        unit=each.margin.unit,
        before=levels[0],
        after=levels[1],
        higher_is_better=each.margin.up,
        judged=each.counts and change is not None,
        change=change,
        boots=(len(before), len(after)),
        rounds=(sum(map(len, before)) * each.rounds_each, sum(map(len, after)) * each.rounds_each),
        note=each.note,
        max_loss=each.margin.losses(middle(before) or 0.0)[0],
    )


def level(side: Side) -> float | None:
    """Geometric mean over boots of the geometric means over their rounds: what a change is the change of. None without a value."""
    found = boots.side(side)
    return None if found is None else math.exp(found.mean)


def middle(side: Side) -> float | None:
    """The median of all values of a side; None without any."""
    values = [each for boot in side for each in boot]
    return stats.median(values) if values else None


# --- what earlier boots tell ---------------------------------------------------------------------------------------------------


def key(run: Run) -> dict[str, Any]:
    """The key of a run: ``gain.key_of`` and whether it is simulated."""
    return {**gain.key_of(run), "simulated": run.simulated}


def key_text(run: Run | store.Stored) -> str:
    """The same as a text, of a run or of its short form."""
    whole = (
        run
        if isinstance(run, Run)
        else Run(run_id=run.run_id, started=run.started, simulated=run.simulated, rig=run.rig, environment=run.environment)
    )
    return repr(sorted(key(whole).items()))


class Past(Value, frozen=True, kw_only=True):
    """Earlier finished runs of the same rig, none of those that are compared, oldest first, with their keys."""

    runs: tuple[tuple[str, store.Stored], ...] = ()
    before_key: str = ""
    after_key: str = ""
    processes: dict[booted.Place, str] = {}
    """The boot of every measurement, of the compared runs too (``booted.Boots``)."""
    starts: dict[booted.Place, str] = {}
    compared: frozenset[str] = frozenset()
    """The boots and starts of the two sides: they stand there, and teach no second time."""

    @classmethod
    def of(cls, history: Sequence[store.Stored], before: Sequence[Run], after: Sequence[Run]) -> Past:
        """The part of ``history`` that may teach something: a boot that is compared must not count twice."""
        compared = {run.run_id for run in (*before, *after)}
        rig = str(before[0].rig.get("name") or "unnamed rig")
        fit = [
            each
            for each in sorted(history, key=lambda run: (run.started, run.run_id))
            if each.finished is not None
            and not each.interrupted
            and each.run_id not in compared
            and (each.rig_name, each.simulated) == (rig, before[0].simulated)
        ]
        # a folder that was copied or linked is one boot all the same
        once = {each.run_id: each for each in fit}
        runs = [(key_text(each), each) for each in [*once.values()][-NEWEST:]]
        found = booted.Boots([*(each for _, each in runs), *before, *after])
        return cls(
            runs=tuple(runs),
            before_key=key_text(before[0]),
            after_key=key_text(after[0]),
            processes=found.processes,
            starts=found.starts,
            compared=frozenset(name for place, name in [*found.processes.items(), *found.starts.items()] if place[0] in compared),
        )


def learn(past: Past, told: Sequence[Told], sides: tuple[Side, Side], assumed_sd: float) -> Spread:
    """How far boots differ: those of earlier runs, alike ones together, and those of both sides.

    Boots of one side join the earlier ones of their key; boots of equal keys on both sides stay apart, since that is the question.
    What earlier runs measured on one process is one boot; on a process of the two sides it tells of the noise alone.
    """
    one: dict[tuple[str, str], list[float]] = {}
    for found, boot, values in told:
        if values:
            one.setdefault((found, boot), []).extend(values)
    groups: dict[str, Side] = {}
    for (found, boot), values in one.items():
        groups.setdefault(f"{found} {boot}" if boot in past.compared else found, []).append(values)
    groups.setdefault(past.before_key, []).extend(sides[0])
    groups.setdefault("after" if past.after_key == past.before_key else past.after_key, []).extend(sides[1])
    return boots.learn([one_level(group) for group in groups.values()], assumed_sd=assumed_sd)


def one_level(group: Side) -> Side:
    """The newest boots that are of one level: a step between boots is a change, and no spread."""
    step = steps.find([math.fsum(each) / len(each) for each in group])
    return group if step is None else one_level(group[step.index :])
