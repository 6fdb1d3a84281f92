"""What two runs have in common: conditions that must be equal, and changes that are what a comparison is about. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pytest_sglang.judge.gain import BELONGS
from pytest_sglang.record.values import Value

TWICE = {"torch_compile": "argument enable_torch_compile", "model": "argument model_path"}
"""Names of a key that are read from an argument: one change, not two, where both changed alike."""
Kind = Literal["condition", "change"]
CONDITIONS = ("rig", "model", "client", "simulated")
"""Names of a key that must be equal in whatever is compared, beside all of the workload and the cards' names."""


class Difference(Value, frozen=True):
    """One name that differs; ``None``: that run does not know it."""

    name: str
    before: Any
    after: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.before)}, now {shown(self.after)}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Every name in which two keys (``gain.key_of``) differ, conditions first."""
    pairs = {name: (before.get(name), after.get(name)) for name in sorted({*before, *after})}
    told = {argument for name, argument in TWICE.items() if name in pairs and pairs[name] == pairs.get(argument)}
    found = [Difference(name, old, new, _kind(name)) for name, (old, new) in pairs.items() if old != new and name not in told]
    return tuple(sorted(found, key=lambda each: each.kind == "change"))


def _kind(name: str) -> Kind:
    card = name.startswith("gpu ") and name.endswith(" name")
    return "condition" if name in CONDITIONS or name.startswith("workload ") or card else "change"


def under_test(found: tuple[Difference, ...]) -> str | None:
    """The one thing that differs, by name, where it is one: an engine's new version brings its arguments with it. None: several, or none.

    Arguments that follow from the thing under test (``gain.BELONGS``) are part of it.
    """
    names = {each.name for each in found if each.kind == "change"}
    if not names:
        return None
    if "engine" in names:
        # another version has other defaults and other packages beside it
        names = {name for name in names if not name.startswith("argument ")}
        if all(name == "engine" or name.startswith("package ") for name in names):
            return "engine"
        return None
    for thing, belongings in BELONGS.items():
        if thing in names and names <= {thing, *(f"argument {each}" for each in belongings)}:
            return thing
    packages = {name for name in names if name.startswith("package ")}
    if packages == names:
        return ", ".join(sorted(name.removeprefix("package ") for name in packages))
    power = {name for name in names if name.endswith("enforced_power_limit_w")}
    if power == names:
        return "power"
    return next(iter(names)) if len(names) == 1 else None


def shown(value: object) -> str:
    """A value of a key for a person, cut to 60 characters."""
    text = "not known" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
