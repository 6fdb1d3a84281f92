"""The fingerprint of a run as groups of names and values, whatever a version of the record holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_sglang.record.values import Value

TITLES = {"gpus": "GPUs", "server": "Server", "packages": "Packages", "arguments": "Arguments"}


class Table(Value, frozen=True, kw_only=True):
    """Equal things side by side, GPUs say."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Group(Value, frozen=True, kw_only=True):
    """Names and values under a heading; ``folded`` = long, and read only by who looks for it."""

    title: str
    pairs: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    folded: bool = False


def groups(environment: Mapping[str, Any]) -> list[Group]:
    """``environment`` of run.json for a person: the machine first, then its parts, long lists folded."""
    told: list[Group] = []
    _collect("Machine", environment, told)
    return told


def _collect(title: str, facts: Mapping[str, Any], told: list[Group]) -> None:
    plain = {key: value for key, value in facts.items() if not isinstance(value, Mapping) and not _is_table(value)}
    # so many at once are a dump of every argument, not a summary
    if plain:
        told.append(
            Group(title=title, pairs=tuple((str(key), text(value)) for key, value in plain.items()), folded=len(plain) > 24)
        )
    for key, value in facts.items():
        name = TITLES.get(key, str(key))
        heading = name if title == "Machine" else f"{title}: {name.lower()}"
        if isinstance(value, Mapping):
            _collect(heading, value, told)
        elif _is_table(value):
            told.append(Group(title=heading, table=_table(value)))


def _is_table(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _table(items: Any) -> Table:
    """Columns that any of the items fills."""
    keys = dict.fromkeys(key for item in items for key, value in item.items() if value is not None)
    rows = tuple(tuple(text(item.get(key)) for key in keys) for item in items)
    return Table(columns=tuple(str(key) for key in keys), rows=rows)


def text(value: Any) -> str:
    """A value of any kind in one line: "not read" for nothing, "none" for an empty list."""
    if value is None:
        return "not read"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key!s} {text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        # the words of a command line are read as one line, other lists as an enumeration
        separator = " " if any(isinstance(each, str) and each.startswith("-") for each in value) else ", "
        return separator.join(text(each) for each in value) or "none"
    return str(value)
