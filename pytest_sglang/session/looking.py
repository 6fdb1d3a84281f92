"""What can be looked at right after a slow measurement, to name its likely cause. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sglang.gpu import links, processes
from pytest_sglang.gpu.readings import GpuLost, Missing, value_or_none
from pytest_sglang.judge.causes import Observed
from pytest_sglang.server.processes import tree

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware


def observed(deployment: Deployment, power_w: float | None) -> Observed:
    """Everything a cause can be read from; what cannot be read is None, and then nothing is claimed of it."""
    seen: dict[str, Any] = {"power_w": power_w}
    identity = deployment.server.identity()
    promise = deployment.server.promise
    seen["torch_compile"], seen["torch_compile_promised"] = identity.torch_compile, promise.torch_compile
    running = deployment.plane.running_requests()
    seen["foreign_requests"] = running
    if deployment.hardware is not None:
        try:
            seen.update(_hardware(deployment, deployment.hardware))
        except GpuLost:
            pass  # the check of the cards says so
    return Observed(**seen)


def _hardware(deployment: Deployment, hardware: Hardware) -> dict[str, Any]:
    cards = hardware.serving
    enforced = {card.label: value_or_none(card.limits().enforced_w) for card in cards}
    temperatures = {card.label: value_or_none(card.temperature_c()) for card in cards}
    pid = deployment.controller.state().pid
    mine = {each.pid for each in tree(pid)}
    foreign = [
        f"{each.name} (pid {each.pid}) on GPU {each.index}" for each in processes.foreign(cards, mine) if each.kind == "compute"
    ]
    return {
        "enforced_w": {label: watts for label, watts in enforced.items() if watts is not None},
        "temperature_c": {label: float(degrees) for label, degrees in temperatures.items() if degrees is not None},
        "misplaced": _misplaced(hardware, mine),
        "links_missing": _missing_links(deployment, hardware),
        "foreign_processes": tuple(foreign) if pid is not None else None,
        "reasons": deployment.last_reasons,
        "pcie": _pcie(deployment, hardware),
    }


def _misplaced(hardware: Hardware, mine: set[int]) -> tuple[str, ...] | None:
    found = processes.gpus_of(hardware.cards, mine)
    if isinstance(found, Missing):
        return None
    here, wanted = (sorted(card.index for card in cards) for cards in (found, hardware.serving))
    told = f"the server runs on GPUs {', '.join(map(str, here))}, promised {', '.join(map(str, wanted))}"
    return () if here == wanted else (told,)


def _missing_links(deployment: Deployment, hardware: Hardware) -> tuple[str, ...] | None:
    promise = deployment.rig.nvlink
    if promise is None:
        return None
    topology = links.read(hardware.nvml)
    serving = {card.index for card in hardware.serving}
    missing = []
    for pair in promise.pairs:
        ends = [hardware.promised[position].card for position in pair]
        if any(card is None or card.index not in serving for card in ends):
            continue
        one, other = sorted(card.index for card in ends if card is not None)
        up = topology.pairs.get((one, other), 0)
        if up == 0 or (promise.links is not None and up < promise.links):
            missing.append(f"GPU {one}-{other}: {up} of {promise.links or 'some'} links")
    return tuple(missing)


def _pcie(deployment: Deployment, hardware: Hardware) -> dict[str, tuple[int, int]]:
    found = {}
    for each in hardware.promised:
        if each.card is not None and each.card in hardware.serving and each.promise.pcie_width is not None:
            width = value_or_none(each.card.pcie().width)
            if width is not None:
                found[each.card.label] = (width, each.promise.pcie_width)
    return found
