"""The most likely cause of a broken promise, in one line, from what could be looked at: pure, on plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_sglang.record import units
from pytest_sglang.record.values import Startup, Value

TOLERANCE_W = 1.0
HOT_MARGIN_C = 2.0
"""This close to the temperature at which a card slows down counts as hot."""
_SHARE = 0.01
_SLOWING = {
    "hw_thermal_slowdown": "too hot (hardware thermal slowdown)",
    "sw_thermal_slowdown": "too hot (software thermal slowdown)",
    "hw_power_brake_slowdown": "held by an outside power brake",
    "hw_slowdown": "slowed down by the hardware",
    "sync_boost": "tied to the slowest card by sync boost",
    "board_limit": "held by the board's own limit",
    "reliability": "held by the voltage limit",
}
"""Clocks event reasons that explain a slow card; the software power cap is the normal state of a capped one."""


class Observed(Value, frozen=True, kw_only=True):
    """What was looked at after a slow measurement. None = not looked at, or not readable: then nothing is claimed of it.

    Dictionaries are by the card's label ("GPU 2"). ``links_missing``: serving pairs without all their links ("GPU 2-3: no link").
    ``reasons``: shares of the measured time by clocks event reason. ``pcie``: (width now, promised width). ``slowdown_c``: where
    the card begins to slow down. ``misplaced``: what is wrong about the cards on which the server runs. ``cuda_graph``: False when the log's decode lines say that no graph was used.
    """

    power_w: float | None = None
    enforced_w: dict[str, float] | None = None
    misplaced: tuple[str, ...] | None = None
    links_missing: tuple[str, ...] | None = None
    reasons: dict[str, dict[str, float]] | None = None
    foreign_processes: tuple[str, ...] | None = None
    foreign_requests: int | None = None
    torch_compile: bool | None = None
    torch_compile_promised: bool | None = None
    cuda_graph: bool | None = None
    pcie: dict[str, tuple[int, int]] | None = None
    temperature_c: dict[str, float] | None = None
    slowdown_c: dict[str, float] | None = None


def slow_decode(seen: Observed) -> str:
    """Likely causes of a rate below its limit, the likeliest first; else what was looked at and is in order."""
    looked: list[str] = []
    found: list[str] = []
    for name, answer in (
        ("power limit", _power(seen)),
        ("placement", seen.misplaced),
        ("NVLink", seen.links_missing and [f"NVLink is missing on serving cards ({'; '.join(seen.links_missing)})"]),
        ("throttling", _throttled(seen)),
        ("temperature", _hot(seen)),
        (
            "foreign processes",
            seen.foreign_processes and [f"other processes on the serving GPUs: {', '.join(seen.foreign_processes)}"],
        ),
        ("foreign requests", _foreign(seen)),
        ("torch.compile", _compile(seen)),
        ("CUDA graphs", None if seen.cuda_graph is None else [] if seen.cuda_graph else ["decoding runs without CUDA graphs"]),
        ("PCIe width", _pcie(seen)),
    ):
        if answer is not None:
            looked.append(name)
            found.extend(answer)
    if found:
        return "; ".join(found)
    if not looked:
        return "no cause found: nothing could be looked at"
    return f"no cause found among: {', '.join(looked)}"


def _power(seen: Observed) -> list[str] | None:
    if seen.power_w is None or not seen.enforced_w:
        return None
    off = {label: watts for label, watts in seen.enforced_w.items() if abs(watts - seen.power_w) > TOLERANCE_W}
    if not off:
        return []
    told = ", ".join(f"{label} enforces {watts:g} W" for label, watts in off.items())
    return [f"power limit: {told}, asked {seen.power_w:g} W"]


def _throttled(seen: Observed) -> list[str] | None:
    return None if seen.reasons is None else throttled(seen.reasons)


def throttled(reasons: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What held each card beside the power cap, from shares of time by clocks event reason; the special reason, not "slowdown" too."""
    found = []
    for label, shares in reasons.items():
        held = [reason for reason in _SLOWING if shares.get(reason, 0.0) >= _SHARE]
        special = any(reason.startswith("hw_") and reason != "hw_slowdown" for reason in held)
        kept = [reason for reason in held if not (special and reason == "hw_slowdown")]
        found += [f"{label} was {_SLOWING[reason]} for {shares[reason] * 100:.0f} % of the time" for reason in kept]
    return found


def _hot(seen: Observed) -> list[str] | None:
    if seen.temperature_c is None or seen.slowdown_c is None:
        return None
    return [
        f"{label} at {degrees:g} C, it slows down at {seen.slowdown_c[label]:g} C"
        for label, degrees in seen.temperature_c.items()
        if label in seen.slowdown_c and degrees >= seen.slowdown_c[label] - HOT_MARGIN_C
    ]


def _foreign(seen: Observed) -> list[str] | None:
    if seen.foreign_requests is None:
        return None
    count = seen.foreign_requests
    return [f"{count} request{'s' if count > 1 else ''} of somebody else ran meanwhile"] if count > 0 else []


def _compile(seen: Observed) -> list[str] | None:
    if seen.torch_compile is None:
        return None
    return ["torch.compile is promised, but off"] if seen.torch_compile_promised and not seen.torch_compile else []


def _pcie(seen: Observed) -> list[str] | None:
    if seen.pcie is None:
        return None
    return [f"{label} on PCIe x{now}, promised x{wanted}" for label, (now, wanted) in seen.pcie.items() if now < wanted]


# --- starts -----------------------------------------------------------------------------------------------------------------------


def slow_start(startup: Startup, usual_s: Mapping[str, float] | None = None) -> str | None:
    """Why a start took long: the phase that took most of it, and what was compiled. ``usual_s``: a good start's, by phase."""
    parts = [part for part in (_longest(startup, usual_s or {}), recompiled(startup)) if part is not None]
    return "; ".join(parts) or None


def _longest(startup: Startup, usual_s: Mapping[str, float]) -> str | None:
    """The phase with the most seconds above its usual ones; without usual ones, with the most seconds."""
    lasted = [
        (each.end_s - each.begin_s, each.id) for each in startup.phases if each.end_s is not None and each.end_s > each.begin_s
    ]
    if not lasted:
        return None
    seconds, phase = max(lasted, key=lambda each: each[0] - usual_s.get(each[1], 0.0))
    more = f", {units.duration(seconds - usual_s[phase])} more than usual" if seconds > usual_s.get(phase, seconds) else ""
    return f"{_rounded(seconds)} of it in {phase}{more}"


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if 10 <= seconds < 119.5 else units.duration(seconds)


def recompiled(startup: Startup, changed: Sequence[str] = ()) -> str | None:
    """What a start compiled and the likely reason; ``changed``: what differs from the last good start ("triton 3.5 -> 3.6")."""
    diff, tuned = startup.cache_diff, startup.autotune_runs
    kernels = len(diff.new_kernels) if diff is not None else 0
    parts = [_counted(kernels, "new kernel")] if kernels else []
    if tuned:
        parts.append(_counted(tuned, "autotuning run"))
    if diff is not None and diff.new_graphs and not kernels:
        parts.append(_counted(diff.new_graphs, "new graph"))
    if diff is not None and diff.rewritten:
        parts.append(_counted(len(diff.rewritten), "known kernel") + " compiled again")
    if not parts:
        return None
    if startup.compiled_because is not None:
        parts.append(startup.compiled_because)
    elif diff is not None and diff.before_entries == 0:
        parts.append("caches were empty")
    elif changed:
        parts.append(f"since the last good start: {', '.join(changed)}")
    elif diff is not None and kernels:
        parts.append(f"caches held {diff.before_entries} entries (other versions, other arguments, or a moved cache)")
    return ", ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
