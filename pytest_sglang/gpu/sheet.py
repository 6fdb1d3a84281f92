"""Everything that one card tells, as plain values: what ``pytest-sglang doctor`` shows and compares with nvidia-smi."""

from __future__ import annotations

from typing import Any

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.readings import Missing, Reading, value_or_none
from pytest_sglang.judge.hardware import GRANT


def sheet(card: Card) -> dict[str, Any]:
    """One card; an unreadable value is None, with its reason in ``unreadable`` and its name in ``unsupported`` where the card has none.

    Watts, degrees Celsius, MHz, bytes, joules, percent. Raises GpuLost.
    """
    readings = _readings(card)
    missing = {name: each for name, each in readings.items() if isinstance(each, Missing)}
    return {
        "index": card.index,
        "uuid": card.uuid,
        "pci": card.pci,
        **{name: value_or_none(each) for name, each in readings.items()},
        "unsupported": sorted(name for name, each in missing.items() if each.unsupported),
        "unreadable": {name: f"{each.reason} ({GRANT})" if each.permission else each.reason for name, each in missing.items()},
        "lost": None,
    }


def lost(index: int, label: str, why: str) -> dict[str, Any]:
    """A card that does not answer, as far as it is known."""
    return {"index": index, "uuid": None, "pci": None, "name": label, "unsupported": [], "unreadable": {}, "lost": why}


def _readings(card: Card) -> dict[str, Reading[Any]]:
    limits, clocks, pcie = card.limits(), card.clocks(), card.pcie()
    rows = card.remapped_rows()
    return {
        "name": card.name,
        "serial": card.serial(),
        "vbios": card.vbios(),
        "compute_capability": card.compute_capability(),
        "persistence": card.persistence(),
        "mig": card.mig(),
        "requested_power_limit_w": limits.requested_w,
        "enforced_power_limit_w": limits.enforced_w,
        "default_power_limit_w": limits.default_w,
        "min_power_limit_w": limits.min_w,
        "max_power_limit_w": limits.max_w,
        "power_average_w": card.power_average_w(),
        "power_instant_w": card.power_instant_w(),
        "energy_j": card.energy_j(),
        "temperature_c": card.temperature_c(),
        "sm_mhz": clocks.sm_mhz,
        "max_sm_mhz": clocks.max_sm_mhz,
        "mem_mhz": clocks.mem_mhz,
        "max_mem_mhz": clocks.max_mem_mhz,
        "performance_state": card.performance_state(),
        "reasons": card.event_reasons(),
        "utilization_pct": card.utilization_pct(),
        "memory_used_bytes": card.memory_used_bytes(),
        "memory_total_bytes": card.memory_total_bytes(),
        "pcie_gen": pcie.gen,
        "pcie_width": pcie.width,
        "pcie_max_gen": pcie.max_gen,
        "pcie_max_width": pcie.max_width,
        "pcie_replays": card.pcie_replays(),
        "ecc": card.ecc(),
        "ecc_corrected": card.ecc_corrected(),
        "ecc_uncorrected": card.ecc_uncorrected(),
        "remapped_rows": rows if isinstance(rows, Missing) else list(rows),
    }
