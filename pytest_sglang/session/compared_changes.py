"""What else differs between two sets of runs: system, cards, promises that broke, and what had changed already before."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sglang.judge import keys, regression, steps
from pytest_sglang.judge.keys import Difference
from pytest_sglang.record.run import Check, Run
from pytest_sglang.session import store
from pytest_sglang.session.checks import BASELINE, STANDARD

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


def seen(before: Run, after: Run) -> tuple[Difference, ...]:
    """What differs outside the key: system, cards, temperatures, caches. Values of the newest run of either side."""
    pairs = [(label, before.environment.get(name), after.environment.get(name)) for name, label in ENVIRONMENT]
    cards = [{card.get("index"): card for card in run.environment.get("gpus") or ()} for run in (before, after)]
    for index in sorted({*cards[0], *cards[1]}, key=str):
        mine, theirs = (side.get(index, {}) for side in cards)
        pairs += [(f"GPU {index} {label}", mine.get(name), theirs.get(name)) for name, label in CARD]
    pairs.append(("temperature at the first round °C", _start_c(before), _start_c(after)))
    pairs.append(("new kernels of the newest start", _new_kernels(before), _new_kernels(after)))
    pairs.append(("simulated faults", _faults(before), _faults(after)))
    return tuple(Difference(name, old, new, "change") for name, old, new in pairs if old != new)


def _faults(run: Run) -> str | None:
    return ", ".join(run.environment.get("faults") or ["none"]) if run.simulated else None


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


def title(run: Run) -> str:
    """Rig, levels, version and day in a line."""
    version = dict(run.environment.get("server") or {}).get("version")
    levels = ", ".join(f"{each:g}" for each in run.power_levels_w)
    parts = [
        run.rig.get("name") or "unnamed rig",
        f"{levels} W" if levels else "",
        f"SGLang {version}" if version else "",
        run.started[:10],
    ]
    return ", ".join(str(each) for each in parts if each)


def together(found: Sequence[Difference], one: str | None) -> list[str]:
    """That several things changed at once, where that is so."""
    changes = [each for each in found if each.kind == "change"]
    if len(changes) < 2 or one is not None:
        return []
    return [f"{len(changes)} things changed together; what is measured is the effect of all of them"]


def earlier(before: Sequence[Run], history: Sequence[store.Stored]) -> list[str]:
    """A slow-down that was there before the change: a step in the history up to the newest run of ``before``."""
    wanted = before[-1]
    rig = wanted.rig.get("name") or "unnamed rig"
    known = [
        each for each in history if (each.rig_name, each.simulated) == (rig, wanted.simulated) and each.started <= wanted.started
    ]
    notes = []
    for power in wanted.power_levels_w or (None,):
        told = [(each, found[0]) for each in known if (found := each.measured("decode-throughput", power)) is not None]
        usable = [(each, value) for each, value in told if value > 0]
        step = steps.find([value for _, value in usable]) if usable else None
        if step is not None and step.change < 0:
            at, level = usable[step.index][0], "" if power is None else f" at {power:g} W"
            notes.append(
                f"decode{level} had fallen by {regression.pct(-step.change)} already before: since {at.started[:16]} ({at.run_id})"
            )
    return notes


# --- promises stay floors ------------------------------------------------------------------------------------------------------


Checks = dict[tuple[str, float | None], Check]
"""By id and power level."""


def broken(before: Sequence[Run], after: Sequence[Run], *, across: bool) -> tuple[list[str], list[str], list[str]]:
    """Promises that no run before broke and one after does, those that are not told any more, and those broken on both sides.

    ``across``: the power level is what differs, so that a check at one level stands beside the same check at the other.
    """
    old, new = _checks(before, across), _checks(after, across)
    fails: list[str] = []
    lost: list[str] = []
    still: list[str] = []
    for key, check in new.items():
        was = old[key].verdict if key in old else "pass"
        told = f"{check.id}{'' if check.power_w is None else f' at {check.power_w:g} W'}{f': {check.cause}' if check.cause else ''}"
        if check.verdict == "fail":
            (still if was == "fail" else fails).append(told)
        elif check.verdict == "inconclusive" and was == "pass":
            because = check.inconclusive_because
            lost.append(
                f"{check.id}{'' if check.power_w is None else f' at {check.power_w:g} W'}{f': {because}' if because else ''}"
            )
    return fails, [*lost, *_gone(old, new, after, across)], still


UNASKED = ("deselected", "not collected")
"""Reasons for which a check was not made that are none: somebody left it out."""


def _gone(old: Checks, new: Checks, after: Sequence[Run], across: bool) -> list[str]:
    """Checks that passed before, and that no run after has made nor says why it could not."""
    reasons: dict[str, set[str]] = {}
    for each in (each for run in after for each in run.not_checked):
        reasons.setdefault(each.id.partition(" at ")[0] if across else each.id, set()).add(each.reason)
    gone = []
    for key, check in old.items():
        if key in new or check.verdict != "pass" or not (check.measured or check.id in STANDARD):
            continue
        level = None if across else check.power_w
        named = f"{check.id}{'' if level is None else f' at {level:g} W'}"
        # a check whose levels were never told apart is listed without one
        told = reasons.get(named, set()) | reasons.get(check.id, set())
        if not told - {*UNASKED}:
            gone.append(f"{named}: passed before, {min(told, default='not made')} after")
    return gone


def _checks(runs: Sequence[Run], across: bool) -> Checks:
    """The worst of each check over the runs; what is no check of the rig's promises is left out."""
    order = ("fail", "inconclusive", "pass")
    found: Checks = {}
    for run in runs:
        for check in run.checks:
            if check.id == BASELINE or check.expected_failure:
                continue
            key = (check.id, None if across else check.power_w)
            if key not in found or order.index(check.verdict) < order.index(found[key].verdict):
                found[key] = check
    return found


def trouble(before: Sequence[Run], after: Sequence[Run]) -> list[str]:
    """Runs that were interrupted: what they have is not all that they were to have."""
    told = []
    for when, runs in (("before", before), ("after", after)):
        told += [f"the run {when} was interrupted: {run.run_id}" for run in runs if run.interrupted]
    return told


def listed(found: Sequence[Difference]) -> str:
    """Differences in a line, the first six."""
    told = "; ".join(f"{each.name}: {keys.shown(each.before)} then, {keys.shown(each.after)} now" for each in found[:6])
    return f"{told} and {len(found) - 6} more" if len(found) > 6 else told
