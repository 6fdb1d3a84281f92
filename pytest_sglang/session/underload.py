"""PCIe and NVLink while the cards worked: what the sampler read, and counters before and after a measured load."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median_low
from typing import TYPE_CHECKING

import msgspec

from pytest_sglang.gpu import links
from pytest_sglang.gpu.readings import Missing
from pytest_sglang.judge import hardware as judge
from pytest_sglang.judge import health
from pytest_sglang.judge.hardware import FoundGpu, Unreadable
from pytest_sglang.judge.verdict import Judgement, combine
from pytest_sglang.record.values import Finding, Throughput, Value
from pytest_sglang.session.errors import NotChecked

if TYPE_CHECKING:
    from pytest_sglang.gpu.card import Card
    from pytest_sglang.gpu.energy import EnergyWindow
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware


_GPU_IDLE = 0x1
"""Bit of the clocks event reasons: nothing runs on the card."""


class Counters(Value, frozen=True, kw_only=True):
    """Error counters by label, why some of the promised ones cannot be read, and the links that were up. ``at_s``: monotonic."""

    counts: dict[str, int] = {}
    unreadable: dict[str, Unreadable] = {}
    up: frozenset[str] = frozenset()
    at_s: float = 0.0


class UnderLoad(Value, frozen=True, kw_only=True):
    """One load: each serving card's PCIe generation (median) and width (lowest) in it by UUID, counters around it.

    ``seconds`` lie between the two readings of the counters: heat soak, warm-ups and discarded rounds count with the others.
    """

    seconds: float
    pcie: dict[str, tuple[int | None, int | None]]
    before: Counters
    after: Counters


def counters(hardware: Hardware, cards: Iterable[Card]) -> Counters:
    """What PCIe and NVLink of these cards have sent again since the driver was loaded. Raises GpuLost."""
    counts: dict[str, int] = {}
    unreadable: dict[str, Unreadable] = {}
    cards = list(cards)
    for card in cards:
        replays = card.pcie_replays()
        label = f"GPU {card.index} PCIe replays"
        if isinstance(replays, Missing):
            unreadable[label] = Unreadable(replays.reason, replays.permission)
        else:
            counts[label] = replays
    topology = links.read(hardware.nvml, cards)
    counts.update(links.link_errors(hardware.nvml, cards, topology))
    for index in {each.gpu for each in topology.links if each.active}:
        if not any(label.startswith(f"GPU {index} link ") for label in counts):
            unreadable[f"GPU {index} NVLink errors"] = Unreadable("the driver gives no error counter of its links")
    up = frozenset(f"GPU {each.gpu} link {each.link}" for each in topology.links if each.active)
    return Counters(counts=counts, unreadable=unreadable, up=up, at_s=time.monotonic())


def seen(hardware: Hardware, window: EnergyWindow, result: Throughput, before: Counters) -> UnderLoad | None:
    """What a measured load showed; None without a round. Raises GpuLost."""
    # a round whose tokens do not count was a load on the cards all the same
    rounds = result.rounds or tuple(each for each in result.discarded if each.output_tokens)
    if not rounds:
        return None
    found: dict[str, tuple[int | None, int | None]] = {}
    for card in hardware.serving:
        read = [sample for each in rounds for sample in window.slow(each.begin_s, each.end_s).get(card.uuid, [])]
        # a card that does not work (the server runs elsewhere) drops to generation 1, which is no fault of its link
        samples = [each for each in read if each.reasons is None or not each.reasons & _GPU_IDLE]
        if read and not samples:
            continue
        gens = [each.pcie_gen for each in samples if each.pcie_gen is not None]
        widths = [each.pcie_width for each in samples if each.pcie_width is not None]
        found[card.uuid] = (median_low(gens) if gens else None, min(widths) if widths else None)
    after = counters(hardware, hardware.serving)
    return UnderLoad(seconds=after.at_s - before.at_s, pcie=found, before=before, after=after)


def judged(deployment: Deployment) -> Judgement:
    """PCIe generation and width of the serving cards under load, and what they sent again; a load is made where none was yet."""
    hardware, rig = deployment.hardware, deployment.rig
    if hardware is None:
        raise NotChecked("the rig file promises no GPUs (add [[gpus]] tables)")
    if not deployment.loads:
        deployment.server.measure(rounds=3)
    if not deployment.loads:
        raise NotChecked("no load was made in this run")
    verdicts = [_one(hardware, each, deployment) for each in deployment.loads]
    return combine(verdicts) if rig.gpus else verdicts[0]


def _one(hardware: Hardware, load: UnderLoad, deployment: Deployment) -> Judgement:
    rig = deployment.rig
    loaded = [_loaded(each.card, load) if each.card is not None else None for each in hardware.promised]
    links_ok = judge.pcie_under_load(rig.gpus, loaded, unavailable=rig.unavailable)
    again = [
        *health.repeats(load.before.counts, load.after.counts, load.seconds, unavailable=rig.unavailable),
        *([] if "nvlink" in rig.unavailable else health.went_down(load.before.up, load.after.up)),
        *_unread(load.after, deployment),
    ]
    good = "PCIe links under load are as promised, and nothing was sent again"
    return judge.conclude(
        [*links_ok.findings, *again], good=good, quantity=links_ok.quantity, measured=links_ok.measured, limit=links_ok.limit
    )


def _loaded(card: Card, load: UnderLoad) -> FoundGpu | None:
    if card.uuid not in load.pcie:
        return None
    gen, width = load.pcie[card.uuid]
    return msgspec.structs.replace(card.found(), pcie_gen=gen, pcie_width=width)


def _unread(after: Counters, deployment: Deployment) -> list[Finding]:
    """Counters that cannot be read: told; the promise is the link itself, and a card without such a counter keeps it all the same."""
    told = []
    for label, why in after.unreadable.items():
        pcie = label.endswith("PCIe replays")
        if ("pcie" if pcie else "nvlink_errors") in deployment.rig.unavailable:
            continue
        told.append(Finding("counter", "info", label, f"not readable: {why.reason}"))
    return told
