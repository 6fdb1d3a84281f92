"""Findings that differ in their subject only, told once: four caches in /tmp are one thing to mend."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_sglang.record.values import Finding, Value

_OF_A_CACHE = re.compile(r"(?P<name>\w+) cache: (?P<rest>.+)", re.DOTALL)
_VALUE = re.compile(r"=.*|/\S*", re.DOTALL)


class Told(Value, frozen=True, kw_only=True):
    """A finding, or several in one. ``members``: of several, each subject with its remedy; ``remedy`` is empty then."""

    severity: str
    text: str
    remedy: str
    members: tuple[tuple[str, str], ...] = ()


def told(findings: Sequence[Finding]) -> list[Told]:
    """The findings in their order; those of caches with one severity, kind, reason and form of the remedy stand at the first."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for place, each in enumerate(findings):
        found = _OF_A_CACHE.fullmatch(each.detail)
        form = _VALUE.sub("", each.remedy)
        # an environment variable has a name for each cache; its form is that it is one
        form = "Environment" if form.startswith("Environment") else form
        key = (each.severity, each.kind, found["rest"], form) if found else (str(place),)
        groups.setdefault(key, []).append(each)
    return [_one(group[0]) if len(group) == 1 else _several(group) for group in groups.values()]


def _one(finding: Finding) -> Told:
    text = f"{finding.subject}: {finding.detail}" if finding.subject else finding.detail
    return Told(severity=finding.severity, text=" ".join(text.split()), remedy=finding.remedy)


def _several(group: Sequence[Finding]) -> Told:
    matched = [(each, found) for each in group if (found := _OF_A_CACHE.fullmatch(each.detail)) is not None]
    rest = " ".join(matched[0][1]["rest"].split())
    text = f"{len(group)} caches: " + (f"each {rest.removeprefix('it ')}" if rest.startswith("it ") else rest)
    members = tuple((f"{found['name']}: {each.subject}", each.remedy) for each, found in matched)
    return Told(severity=group[0].severity, text=text, remedy="", members=members)
