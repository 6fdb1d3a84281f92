"""The hardware side of a measured window: energy of each round, what held the clocks, watts over time. Board power, not the wall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.integral import SERIES_POINTS
from pytest_sglang.gpu.readings import GpuLost, value_or_none
from pytest_sglang.judge.throttling import Worked
from pytest_sglang.record.values import Energy, Round, Throughput

if TYPE_CHECKING:
    from pytest_sglang.gpu.energy import EnergyWindow
    from pytest_sglang.session.deployment import Deployment

LEAST_POINTS = 150
"""Of a card's chart for one window: a sweep has many windows on one axis."""
Held = dict[str, dict[str, float]]
"""Seconds for which each policy held the clocks, by UUID."""


def violations(deployment: Deployment) -> Held:
    """Present violation counters of the serving cards; a card that does not answer is absent."""
    found: Held = {}
    for card in deployment.hardware.serving if deployment.hardware is not None else ():
        try:
            found[card.uuid] = card.violations_s()
        except GpuLost:
            continue  # the energy of the window says so
    return found


def grown(before: Held, after: Held) -> Held:
    """By how much they grew; a counter that went backwards (driver reload) tells nothing."""
    return {
        uuid: {
            name: now - before[uuid][name] for name, now in counters.items() if name in before[uuid] and now >= before[uuid][name]
        }
        for uuid, counters in after.items()
        if uuid in before
    }


def observe(
    deployment: Deployment, window: EnergyWindow, result: Throughput, held: Mapping[int, Held]
) -> tuple[Throughput, dict[str, Any] | None]:
    """The result with its joules, and the energy of each serving card; keeps for the checks what held the cards, and the chart."""
    hardware = deployment.hardware
    if hardware is None:
        return result, None
    rounds, by_card = _energies(window, result.rounds, hardware.serving)
    # a round whose tokens do not count was a load on the cards all the same
    loaded = result.rounds or tuple(each for each in result.discarded if each.output_tokens)
    cards = tuple(
        msgspec.structs.replace(_worked(window, card, loaded, held, by_card.get(card.uuid)), streams=result.streams)
        for card in hardware.serving
    )
    level = deployment.scope.power_w if deployment.scope is not None else None
    deployment.worked[level] = cards
    deployment.last_reasons = {card.label: card.reasons for card in cards if card.reasons} or None
    deployment.recorder.power_series(_series(deployment, window, result))
    by_gpu = {f"GPU {card.index}": by_card[card.uuid] for card in hardware.serving if card.uuid in by_card}
    return msgspec.structs.replace(result, rounds=rounds), by_gpu or None


def _energies(
    window: EnergyWindow, rounds: Sequence[Round], cards: Sequence[Card]
) -> tuple[tuple[Round, ...], dict[str, dict[str, Any]]]:
    """Joules of each round over all serving cards, and of each card over all rounds."""
    told: list[Round] = []
    of_cards: dict[str, list[tuple[Energy, float]]] = {card.uuid: [] for card in cards}
    for each in rounds:
        energies = window.between(each.begin_s, each.end_s)
        mine = [(card, energies[card.uuid]) for card in cards]
        missing = next((f"GPU {card.index}: {energy.invalid_because}" for card, energy in mine if energy.joules is None), None)
        for card, energy in mine:
            of_cards[card.uuid].append((energy, each.end_s - each.begin_s))
        whole = bool(mine) and missing is None
        told.append(
            msgspec.structs.replace(
                each,
                joules=sum(energy.joules or 0.0 for _, energy in mine) if whole else None,
                joules_error=sum(energy.error_j or 0.0 for _, energy in mine) if whole else None,
                joules_missing=missing if mine else "no serving card is here",
                start_c=window.temperature_at(each.begin_s, [card.uuid for card in cards]),
            )
        )
    return tuple(told), {uuid: _card_energy(parts) for uuid, parts in of_cards.items() if parts}


def _card_energy(parts: Sequence[tuple[Energy, float]]) -> dict[str, Any]:
    """One card over the rounds in which its energy is known."""
    known = [(energy, seconds) for energy, seconds in parts if energy.joules is not None]
    if not known:
        return {"joules": None, "mean_w": None, "invalid_because": parts[0][0].invalid_because}
    joules = sum(energy.joules or 0.0 for energy, _ in known)
    return {
        "joules": round(joules, 1),
        "mean_w": round(joules / sum(seconds for _, seconds in known), 2),
        "error_j": round(sum(energy.error_j or 0.0 for energy, _ in known), 1),
        "source": known[0][0].source,
        "invalid_because": next((energy.invalid_because for energy, _ in parts if energy.invalid_because), None),
    }


def _worked(
    window: EnergyWindow, card: Card, rounds: Sequence[Round], held: Mapping[int, Held], energy: Mapping[str, Any] | None
) -> Worked:
    """One card over the rounds, without the pauses between them: an idle card is held by nothing."""
    seconds = sum(each.end_s - each.begin_s for each in rounds)
    held_s: dict[str, float] = {}
    known_s, samples = 0.0, []
    for each in rounds:
        read = window.reasons_held(each.begin_s, each.end_s).get(card.uuid)
        for reason, lasted_s in read.held_s.items() if read is not None else ():
            held_s[reason] = held_s.get(reason, 0.0) + lasted_s
        known_s += read.known_s if read is not None else 0.0
        samples += window.slow(each.begin_s, each.end_s).get(card.uuid, [])
    counters = [held.get(each.index, {}).get(card.uuid, {}) for each in rounds]
    names = {name for each in counters for name in each}
    degrees = [float(each.temperature_c) for each in samples if each.temperature_c is not None]
    return Worked(
        label=f"GPU {card.index}",
        seconds=seconds,
        # of the time that was read: a round without a reading says neither that something held the card nor that nothing did
        reasons={name: round(lasted_s / known_s, 4) for name, lasted_s in held_s.items()} if known_s > 0 else {},
        known_s=round(known_s, 3),
        why_unreadable=window.missing.get(card.uuid, {}).get("event_reasons_mask", window.failure or ""),
        violations_s={name: sum(each.get(name, 0.0) for each in counters) for name in sorted(names)},
        mean_w=None if energy is None else energy["mean_w"],
        limit_w=value_or_none(card.limits().enforced_w),
        sm_mhz=_mean([each.sm_mhz for each in samples]),
        mem_mhz=_mean([each.mem_mhz for each in samples]),
        start_c=degrees[0] if degrees else None,
        middle_c=degrees[len(degrees) // 2] if degrees else None,
        end_c=degrees[-1] if degrees else None,
    )


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _series(deployment: Deployment, window: EnergyWindow, result: Throughput) -> dict[str, Any]:
    """Watts over time for the chart, with clock, temperature and what held the clocks at each of its moments."""
    if deployment.hardware is None:
        return {}
    labels = {}
    for card in deployment.hardware.present:
        labels[card.uuid] = {"label": f"GPU {card.index}", "limit_w": value_or_none(card.limits().enforced_w)}
    marks = [(each.begin_s, each.end_s, f"round {each.index}") for each in result.rounds]
    points = max(SERIES_POINTS // max(1, len(deployment.options.power_levels_w)), LEAST_POINTS)
    return window.series(labels, marks, zero_s=deployment.recorder.began_wall, points=points)
