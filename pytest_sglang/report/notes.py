"""What a row says beside its numbers, although it passes: warnings, what was not promised, why a number is missing."""

from __future__ import annotations

from pytest_sglang.judge.links import UNPROMISED
from pytest_sglang.record.run import Check, Measurement, Run


def interval_name(run: Run) -> str:
    """Name of a rate's interval: "99 % interval"; without the number where the record does not tell one."""
    found = [item.get("throughput") for item in run.throughputs if isinstance(item, dict)]
    told = {each["confidence"] for each in found if isinstance(each, dict) and isinstance(each.get("confidence"), (int, float))}
    return f"{100 * told.pop():g} % interval" if len(told) == 1 else "confidence interval"


def of(check: Check) -> str:
    """The note of a check, from what it recorded itself; empty for most."""
    if check.quantity == "findings" and check.verdict == "pass":
        warned = sum(each.severity == "warn" for each in check.findings)
        return f"{warned} warning{'s' if warned != 1 else ''}, listed below" if warned else ""
    if check.verdict == "pass" and check.quantity == "nvlink_links" and UNPROMISED in check.message:
        return f"{UNPROMISED}; {check.measured['nvlink_links'].value} seen" if "nvlink_links" in check.measured else UNPROMISED
    if check.quantity == "throttled_pct" and check.verdict == "pass" and _nothing_held(check):
        return "clocks event reasons: none"
    return ""


def _nothing_held(check: Check) -> bool:
    """No reason was seen at all: neither heat nor a brake, nor the power limit."""
    seen = [check.measured[name].value for name in ("throttled_pct", "power_cap_pct") if name in check.measured]
    return len(seen) == 2 and not any(seen) and not any(each.kind == "clocks" for each in check.findings)


def any_count(check: Check) -> bool:
    """Whether the check is content with any number of links, so that a distance from its limit would mean nothing."""
    return check.quantity == "nvlink_links" and (UNPROMISED in check.message or check.limit is None or check.limit.value == 1)


def no_energy(check: Check, run: Run) -> str:
    """Why a measured rate has no power and no energy beside it: "no power and energy: GPU 0: window too short"."""
    rate = check.measured.get("decode_tok_s")
    if rate is None or "mean_w" in check.measured or check.quantity == "j_per_token":
        return ""
    for item in run.throughputs:
        found = item.get("throughput") if isinstance(item, dict) else None
        if not isinstance(found, dict) or not _same(found.get("decode_tok_s"), rate.value):
            continue
        told = [each.get("joules_missing") for each in found.get("rounds") or () if isinstance(each, dict)]
        why = next((str(each) for each in told if each), "")
        if why:
            return f"no power and energy: {why}"
    return ""


def within(value: Measurement, error: Measurement) -> str:
    """A number with its uncertainty: "8,960 ± 452 J"."""
    if not isinstance(value.value, (int, float)) or not isinstance(error.value, (int, float)):
        return "not read"
    digits = 0 if error.value >= 10 else 1 if error.value >= 1 else 2
    return f"{value.value:,.{digits}f} ± {error.value:,.{digits}f} {value.unit}"


def _same(one: object, other: object) -> bool:
    """Equal but for the six digits that a check keeps."""
    if not isinstance(one, (int, float)) or not isinstance(other, (int, float)):
        return False
    return abs(one - other) <= 1e-5 * max(abs(one), abs(other))
