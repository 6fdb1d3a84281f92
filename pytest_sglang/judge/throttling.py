"""What limited the cards while they worked? The power cap is meant to; heat, a power brake and other cards are not. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sglang.judge.hardware import Unreadable, conclude, unknown
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding, Value

MOST_PCT = 5.0
"""Share of the time, in percent, for which heat or a brake may hold a card; any less is a warning."""
IDLE = 0.5
"""A card that was idle for more of the time than this did not work: then nothing is known of what limits it."""
STILL = 0.95
"""A card that was idle for more of the time than this did nothing at all."""
LEAST_KNOWN = 0.5
"""Share of the measured time of which it must have been read what limits the clocks: of less nothing is claimed."""
LEAST_S = 1.0
"""Two samples: one reading at an unlucky moment fails nobody."""
WARMING_C = 3.0
"""A card that is so much warmer at the end than half way has not reached the temperature that it will keep."""

HOLDING: dict[str, str] = {
    "hw_thermal_slowdown": "the card is too hot and halves its clocks: check fans, dust, air flow",
    "sw_thermal_slowdown": "the card is warm enough to lower its clocks: check fans and air flow",
    "hw_power_brake_slowdown": "an outside power brake holds the card: check the power supply and its cables",
    "hw_slowdown": "the card protects itself (heat or power brake): check cooling and power cables",
}
"""Clocks event reasons that break the promise that a rate belongs to a power level."""
UNUSUAL: dict[str, str] = {
    "sync_boost": "sync boost ties the card to the slowest of its group: look at the sync group in nvidia-smi -q",
    "board_limit": "the board's own limit holds the card: check power cables",
    "reliability": "the voltage limit holds the card",
}
"""Reasons that are told, and fail nobody."""
EXPECTED = frozenset({"gpu_idle", "sw_power_cap", "applications_clocks_setting", "display_clock_setting"})
"""Reasons that are no fault: on a capped card the software power cap *is* the normal state, and clocks may be set by hand."""
_COUNTED = {
    "thermal": "heat",
    "board_limit": "the board's own limit",
    "sync_boost": "sync boost",
    "reliability": "the voltage limit",
}
"""Violation counters (NVML's perf policies) beside the power cap's own, which grows on every capped card."""


class Worked(Value, frozen=True, kw_only=True):
    """One card over a load of ``streams`` requests at a time for ``seconds``. ``reasons``: shares (0 to 1) by clocks event reason, empty = not readable.

    Shares are of ``known_s``, the seconds of the load for which they were read (None = of all of it). ``violations_s``: by how much NVML's violation counters grew, where the card has them. None = not read. Degrees Celsius, MHz, W.
    """

    label: str
    seconds: float
    streams: int | None = None
    reasons: dict[str, float] = {}
    known_s: float | None = None
    why_unreadable: str = ""
    violations_s: dict[str, float] = {}
    mean_w: float | None = None
    limit_w: float | None = None
    sm_mhz: float | None = None
    mem_mhz: float | None = None
    start_c: float | None = None
    middle_c: float | None = None
    end_c: float | None = None


def throttling(cards: Sequence[Worked], *, all_work: bool = False, unavailable: frozenset[str] = frozenset()) -> Judgement:
    """Nothing but the power limit held the cards: heat, slowdown and power brake held none for more than 5 % of the time.

    Unreadable reasons make it inconclusive, unless ``clocks_event_reasons`` is waived. A cap that never bound is told. ``all_work``:
    each card is one rank of a tensor parallel group, which works for every token: one that idles beside working ones fails.
    """
    findings: list[Finding] = []
    if not cards:
        findings.append(unknown("clocks_event_reasons", "GPUs", "what limits the clocks", Unreadable("no serving card worked")))
    worker = next((card.label for card in cards if card.reasons and card.reasons.get("gpu_idle", 0.0) <= IDLE), None)
    for card in cards:
        still = all_work and _known(card) and card.reasons.get("gpu_idle", 0.0) > STILL
        if still and worker is not None and "clocks_event_reasons" not in unavailable:
            findings.append(idled(card.label, worker))
        else:
            findings.extend(_card(card, unavailable))
    findings.extend(_warming(cards))
    worst = max((100 * _held(card) for card in cards if card.reasons), default=None)
    measured = _numbers(cards)
    if worst is not None:
        measured = {"throttled_pct": Measurement(round(worst, 1), "%"), **measured}
    return conclude(
        findings,
        good=_good(cards),
        quantity="throttled_pct" if worst is not None else None,
        measured=measured,
        limit=Limit("<=", MOST_PCT, "%"),
    )


def idled(label: str, worker: str) -> Finding:
    """A rank that did nothing while the others decoded: its share of the model is computed elsewhere, or not at all."""
    detail = f"idled while the server worked ({worker} did not)"
    remedy = (
        "look who computes there (nvidia-smi), at the server's --tp-size and CUDA_VISIBLE_DEVICES, and at its log for a lost rank"
    )
    return Finding("gpu-idle", "fail", label, detail, remedy)


def _known(card: Worked) -> bool:
    """What limits the clocks was read for enough of the time."""
    return bool(card.reasons) and _known_s(card) >= LEAST_KNOWN * card.seconds


def _known_s(card: Worked) -> float:
    return card.seconds if card.known_s is None else card.known_s


def _card(card: Worked, unavailable: frozenset[str]) -> list[Finding]:
    if not card.reasons:
        if "clocks_event_reasons" in unavailable:
            return []
        why = Unreadable(card.why_unreadable or "no reading fell into the measured time")
        return [unknown("clocks_event_reasons", card.label, "what limits the clocks", why)]
    if card.reasons.get("gpu_idle", 0.0) > IDLE and "clocks_event_reasons" not in unavailable:
        idle = f"it was idle for {card.reasons['gpu_idle'] * 100:.0f} % of the measured time"
        return [unknown("clocks_event_reasons", card.label, "what limits the clocks under load", Unreadable(idle))]
    findings = [*_reasons(card), *_counted(card, unavailable)]
    if not _known(card) and "clocks_event_reasons" not in unavailable:
        gap = f"it was read for {_known_s(card):.1f} s of {card.seconds:.1f} s only"
        return [*findings, unknown("clocks_event_reasons", card.label, "what limits the clocks", Unreadable(gap))]
    if card.reasons.get("sw_power_cap", 0.0) == 0.0 and not any(each.severity == "fail" for each in findings):
        drawn = ""
        if card.mean_w is not None and card.limit_w is not None:
            drawn = f" (it draws {card.mean_w:.0f} W of {card.limit_w:g} W)"
        work = f" ({card.streams} stream{'s' if card.streams != 1 else ''})" if card.streams is not None else ""
        plateau = f"power limit not reached in this workload{work}: a higher limit would not help it{drawn}"
        findings.append(Finding("cap-not-binding", "info", card.label, plateau))
    return findings


def _reasons(card: Worked) -> list[Finding]:
    """Known reasons by their shares; one that this version does not know is told, never taken for harmless."""
    findings = []
    general = any(card.reasons.get(reason, 0.0) for reason in HOLDING if reason != "hw_slowdown")
    for reason, share in card.reasons.items():
        if share <= 0.0 or reason in EXPECTED or (reason == "hw_slowdown" and general):
            continue
        detail = f"{reason} held the clocks for {share * 100:.0f} % of the time"
        if card.start_c is not None and "thermal" in reason:
            detail += f", at {max(card.start_c, card.end_c or 0.0):g} °C"
        failed = reason in HOLDING and _too_long(share * _known_s(card), _known_s(card))
        remedy = HOLDING.get(reason) or UNUSUAL.get(reason, "see nvidia-smi -q -d PERFORMANCE")
        findings.append(Finding("clocks", "fail" if failed else "warn", card.label, detail, remedy))
    return findings


def _counted(card: Worked, unavailable: frozenset[str]) -> list[Finding]:
    """What the violation counters saw and the samples, two a second, did not."""
    findings = []
    for policy, what in _COUNTED.items():
        held_s = card.violations_s.get(policy, 0.0)
        seen = any(share > 0 for reason, share in card.reasons.items() if policy in reason)
        if "violation" in unavailable or seen or held_s < 0.01 * card.seconds:
            continue
        failed = policy == "thermal" and _too_long(held_s, card.seconds)
        detail = f"{what} held the clocks for {held_s:.1f} s of {card.seconds:.1f} s, by the driver's violation counter"
        remedy = HOLDING["sw_thermal_slowdown"] if policy == "thermal" else UNUSUAL.get(policy, "")
        findings.append(Finding("clocks", "fail" if failed else "warn", card.label, detail, remedy))
    return findings


def _too_long(held_s: float, seconds: float) -> bool:
    return held_s >= LEAST_S and held_s * 100 > MOST_PCT * seconds


def _held(card: Worked) -> float:
    """Share of the time for which something that must not held this card; reasons that come together count once."""
    share = max((card.reasons.get(reason, 0.0) for reason in HOLDING), default=0.0)
    counted = card.violations_s.get("thermal", 0.0) / card.seconds if card.seconds > 0 else 0.0
    return min(1.0, max(share, counted))


def _warming(cards: Sequence[Worked]) -> list[Finding]:
    """The heat soak rule: cards that still warm up are faster than they will stay, by up to some 4 %."""
    rising = [card for card in cards if card.end_c is not None and card.middle_c is not None]
    rising = [card for card in rising if (card.end_c or 0.0) - (card.middle_c or 0.0) >= WARMING_C]
    if not rising:
        return []
    warmest = max(rising, key=lambda card: card.end_c or 0.0)
    detail = f"still warming up at the end of the measurement ({warmest.start_c or 0:g} to {warmest.end_c:g} °C)"
    remedy = (
        'warm cards are some 4 % slower: let them decode before it is measured (soak = "5 min" in [workload], or --sglang-level=3)'
    )
    return [Finding("not-heat-soaked", "info", ", ".join(card.label for card in rising), detail, remedy)]


def _numbers(cards: Sequence[Worked]) -> dict[str, Measurement]:
    """The card that stands worst, number by number: least cap share, slowest clock, hottest."""
    caps = [100 * card.reasons.get("sw_power_cap", 0.0) for card in cards if card.reasons]
    starts = [card.start_c for card in cards if card.start_c is not None]
    ends = [card.end_c for card in cards if card.end_c is not None]
    sm = [card.sm_mhz for card in cards if card.sm_mhz is not None]
    mem = [card.mem_mhz for card in cards if card.mem_mhz is not None]
    found: dict[str, tuple[float | None, str]] = {
        "power_cap_pct": (min(caps, default=None), "%"),
        "sm_mhz": (min(sm, default=None), "MHz"),
        "mem_mhz": (min(mem, default=None), "MHz"),
        "start_temperature_c": (max(starts, default=None), "C"),
        "end_temperature_c": (max(ends, default=None), "C"),
    }
    return {name: Measurement(round(value, 1), unit) for name, (value, unit) in found.items() if value is not None}


def _good(cards: Sequence[Worked]) -> str:
    caps = [100 * card.reasons.get("sw_power_cap", 0.0) for card in cards if card.reasons]
    if not caps:
        return "what limits the clocks is waived"
    if max(caps) == 0.0:
        return f"clocks event reasons of {len(caps)} GPUs: none (power limit not reached, a plateau)"
    span = f"{min(caps):.0f} %" if max(caps) - min(caps) < 0.5 else f"{min(caps):.0f} to {max(caps):.0f} %"
    return f"clocks event reasons of {len(caps)} GPUs: the power limit for {span} of the time, nothing else"
