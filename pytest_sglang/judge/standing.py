"""What looks wrong on a machine as it stands, with no promise to compare with: pure, on the plain values of a card's sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_sglang.judge.throttling import HOLDING, UNUSUAL
from pytest_sglang.record.values import Finding

GPU_IDLE = "gpu_idle"
_HALF = 50


def works(card: Mapping[str, Any]) -> bool:
    """The card works now: an idle one drops its PCIe generation and its clocks, which is no fault."""
    if card.get("reasons") is not None:
        return GPU_IDLE not in card["reasons"] and bool(card.get("utilization_pct"))
    return bool(card.get("utilization_pct") is not None and card["utilization_pct"] >= _HALF)


def card(sheet: Mapping[str, Any]) -> list[Finding]:
    """Findings of one card."""
    label = f"GPU {sheet['index']}"
    if sheet["lost"] is not None:
        remedy = "look for Xid 79 in the kernel log: power supply and its cables, riser, slot, heat; only a reboot brings it back"
        return [Finding("gpu-lost", "fail", label, str(sheet["lost"]), remedy)]
    found = []
    for reason, remedy in {**HOLDING, **UNUSUAL}.items():
        if reason in (sheet["reasons"] or ()):
            found.append(Finding("clocks", "warn", label, f"{reason} holds the clocks now", remedy))
    width, most = sheet["pcie_width"], sheet["pcie_max_width"]
    if width is not None and most is not None and width < most:
        detail = f"PCIe x{width}, card and slot could do x{most}"
        found.append(Finding("pcie", "warn", label, detail, "reseat the card; check riser, slot and BIOS setting"))
    gen, best = sheet["pcie_gen"], sheet["pcie_max_gen"]
    if works(sheet) and gen is not None and best is not None and gen < best:
        detail = f"PCIe gen {gen} under load, card and slot could do gen {best}"
        found.append(Finding("pcie", "warn", label, detail, "check riser, slot, BIOS setting (link speed) and ASPM"))
    if sheet["persistence"] is False:
        detail = "persistence mode is off: a power limit is lost when the driver unloads"
        remedy = f"nvidia-smi -i {sheet['index']} -pm 1, or enable nvidia-persistenced.service"
        found.append(Finding("persistence", "warn", label, detail, remedy))
    if sheet["mig"]:
        found.append(Finding("mig", "info", label, "is split into instances (MIG): its readings are not one server's"))
    return found


def limits(sheets: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Cards of one kind that enforce different power limits."""
    kinds: dict[str, dict[float, list[int]]] = {}
    for each in sheets:
        if each["lost"] is None and each["enforced_power_limit_w"] is not None:
            kinds.setdefault(str(each["name"]), {}).setdefault(each["enforced_power_limit_w"], []).append(each["index"])
    told = []
    for name, levels in kinds.items():
        if len(levels) > 1:
            shown = "; ".join(f"{watts:g} W on GPU {', '.join(map(str, where))}" for watts, where in levels.items())
            detail = f"cards of one kind enforce different power limits: {shown}"
            told.append(Finding("power-limit", "warn", name, detail, "set one limit on all of them: nvidia-smi -pl WATTS"))
    return told


def links(active: Mapping[int, Sequence[bool]]) -> list[Finding]:
    """Cards with links that are down, by index: some of them (a bridge that sits half), or all (no bridge, or a dead one)."""
    told = []
    for index, states in active.items():
        up = sum(states)
        if states and up == 0:
            told.append(Finding("nvlink", "info", f"GPU {index}", "no NVLink link is up: no bridge, or a dead one"))
        elif up < len(states):
            detail = f"{up} of {len(states)} NVLink links are up"
            told.append(Finding("nvlink-partial", "warn", f"GPU {index}", detail, "the bridge sits half: power off, reseat it"))
    return told
