"""rig.toml -> Rig: typed leaf by leaf, so that all mistakes of a file are told at once, each with its place and a right value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_sglang.rig import check, merge
from pytest_sglang.rig.errors import Problem, RigError, nearest
from pytest_sglang.rig.keys import TABLES, TOP, Table
from pytest_sglang.rig.leaves import KNOWN_READINGS, Place, shown
from pytest_sglang.rig.merge import Merged
from pytest_sglang.rig.model import (
    AnswersPromise,
    Expectation,
    GainPromise,
    GpuPromise,
    NvlinkPromise,
    Rig,
    ServerPromise,
    StartPromise,
    ThroughputRow,
    Workload,
)

__all__ = ["KNOWN_READINGS", "Problem", "RigError", "load"]

_DEFAULTS: dict[str, dict[str, Any]] = {
    "throughput": {"power_w": None, "nvlink": None, "streams": 1, "quantity": "decode"},
}
"""What a row means where it does not say: whatever the power, whatever the NVLink state, one stream, decode rate."""


def load(path: Path) -> Rig:
    """The promise in ``path`` and in what it extends. Raises RigError with every problem that it has."""
    merged = merge.read(path)
    problems: list[Problem] = []
    values = _typed(merged, problems)
    check.across(merged, values, problems)
    if problems:
        raise RigError(problems)
    return _rig(path, values)


def _typed(merged: Merged, problems: list[Problem]) -> dict[str, Any]:
    """Table -> its fields; a key with a problem is left out, so that the cross checks see only what could be read."""
    typed: dict[str, Any] = {}
    for name, value in merged.values.items():
        place = Place(merged.file_of((name,)), name, problems)
        table = TABLES.get(name)
        if table is None:
            place.wrong("", f"is no key of a rig file (known: {', '.join(TOP)})", nearest(name, TOP))
        elif table.listed:
            typed[name] = _listed(merged, name, table, value, problems)
        elif isinstance(value, dict):
            typed[name] = _fields(merged, (name,), name, table, value, problems)
        else:
            found = "a list of tables" if isinstance(value, list) and value and isinstance(value[0], dict) else shown(value)
            place.wrong(found, f"is not a table (write [{name}], then its keys below it)")
    return typed


def _listed(merged: Merged, name: str, table: Table, value: object, problems: list[Problem]) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        found = "a single table" if isinstance(value, dict) else shown(value)
        Place(merged.file_of((name,)), name, problems).wrong(found, f"is not a list of tables (write [[{name}]] with two brackets)")
        return []
    return [_fields(merged, (name,), f"{name}[{index}]", table, each, problems) for index, each in enumerate(value)]


def _fields(
    merged: Merged, keys: merge.Keys, shown_key: str, table: Table, value: dict[str, Any], problems: list[Problem]
) -> dict[str, Any]:
    fields: dict[str, Any] = dict(_DEFAULTS.get(keys[0], {}))
    for name, each in value.items():
        place = Place(merged.file_of((*keys, name)), f"{shown_key}.{name}", problems)
        key = table.keys.get(name)
        if key is None:
            # what stands there is not shown: it may be a secret under a mistaken name
            place.wrong("", f"is no key of [{keys[0]}] (known: {', '.join(table.keys)})", nearest(name, table.keys))
            continue
        before = len(problems)
        read = key.leaf(each, place)
        if len(problems) == before:
            fields[key.field] = read
        else:
            fields.pop(key.field, None)
    for name, line in table.required.items():
        if name not in value:
            Place(merged.file_of(keys), f"{shown_key}.{name}", problems).wrong("", f"is missing (write {line})")
    return fields


def _rig(path: Path, values: dict[str, Any]) -> Rig:
    head = values.get("rig", {})
    rows = [ThroughputRow(**each) for each in values.get("throughput", ())]
    return Rig(
        name=head.get("name", path.stem),
        path=path,
        max_total_w=head.get("max_total_w"),
        unavailable=head.get("unavailable", frozenset()),
        gpus=tuple(GpuPromise(**each) for each in values.get("gpus", ())),
        nvlink=NvlinkPromise(**values["nvlink"]) if "nvlink" in values else None,
        server=ServerPromise(**values["server"]) if "server" in values else None,
        start=StartPromise(**values["start"]) if "start" in values else None,
        # the first row that fits counts: one for this very level and link state before one for whatever they are
        throughput=tuple(sorted(rows, key=lambda row: (row.power_w is None) + (row.nvlink is None))),
        gain=GainPromise(**values["gain"]) if "gain" in values else None,
        answers=_answers(values["answers"]) if "answers" in values else None,
        workload=Workload(**values.get("workload", {})),
    )


def _answers(values: dict[str, Any]) -> AnswersPromise:
    return AnswersPromise(expect=tuple(Expectation(**each) for each in values.get("expect", ())), text=bool(values.get("text")))
