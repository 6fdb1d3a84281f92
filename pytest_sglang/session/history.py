"""Trends over runs: for every promise of a rig its measured values in time order, its verdicts, and the step where it changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_sglang.judge import steps
from pytest_sglang.judge.steps import Step
from pytest_sglang.record.values import Value
from pytest_sglang.session.store import Stored

EARNED = frozenset({"tok/s", "s", "ms", "J/token", "W", "%"})
"""Units whose values make a trend; counts and names do not."""


class Point(Value, frozen=True, kw_only=True):
    """One run's value of a promise; ``value`` None where it was not measured."""

    run_id: str
    started: str
    verdict: str
    value: float | None
    folder: str


class Trend(Value, frozen=True, kw_only=True):
    """One promise of one rig over its runs, oldest first. ``limit`` and ``op`` are the newest run's."""

    rig: str
    label: str
    unit: str
    points: tuple[Point, ...]
    limit: float | None = None
    op: str = ""
    step: Step | None = None
    simulated: bool = False

    @property
    def values(self) -> tuple[float, ...]:
        """Values of the runs that measured it."""
        return tuple(point.value for point in self.points if point.value is not None)

    @property
    def step_at(self) -> Point | None:
        """The first run of the new level."""
        if self.step is None:
            return None
        return [point for point in self.points if point.value is not None][self.step.index]


def trends(runs: Sequence[Stored]) -> list[Trend]:
    """Every promise of every rig, in the order of the newest run's checks; simulated runs stand apart."""
    series: dict[tuple[str, bool, str], list[tuple[Stored, dict[str, Any]]]] = {}
    order: dict[tuple[str, bool, str], int] = {}
    for run in runs:
        for place, check in enumerate(run.checks):
            key = (run.rig_name, run.simulated, label_of(check))
            series.setdefault(key, []).append((run, check))
            order[key] = place
    found = [_trend(key, items) for key, items in series.items()]
    return sorted(found, key=lambda each: (each.simulated, each.rig, order[each.rig, each.simulated, each.label]))


def label_of(check: dict[str, Any]) -> str:
    """Its id, with the power level where it has one."""
    power = check.get("power_w")
    return str(check.get("id")) if power is None else f"{check.get('id')} at {power:g} W"


def _trend(key: tuple[str, bool, str], items: list[tuple[Stored, dict[str, Any]]]) -> Trend:
    rig, simulated, label = key
    newest = items[-1][1]
    limit = newest.get("limit") or {}
    unit = unit_of(newest)
    points = tuple(
        Point(
            run_id=run.run_id,
            started=run.started,
            verdict=str(check.get("verdict")),
            value=value_of(check) if unit in EARNED and unit_of(check) == unit else None,
            folder=run.folder,
        )
        for run, check in items
    )
    values = [point.value for point in points if point.value is not None and point.value > 0]
    whole = len(values) == sum(point.value is not None for point in points)
    number = limit.get("value")
    return Trend(
        rig=rig,
        label=label,
        unit=unit,
        points=points,
        limit=float(number) if isinstance(number, (int, float)) and not isinstance(number, bool) else None,
        op=str(limit.get("op") or ""),
        step=steps.find(values) if whole else None,
        simulated=simulated,
    )


def _quantity(check: dict[str, Any]) -> dict[str, Any]:
    found = (check.get("measured") or {}).get(check.get("quantity") or "")
    return found if isinstance(found, dict) else {}


def unit_of(check: dict[str, Any]) -> str:
    """Unit of what the limit is about."""
    return str(_quantity(check).get("unit") or "")


def value_of(check: dict[str, Any]) -> float | None:
    """What the limit is about, where it is a number."""
    value = _quantity(check).get("value")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
