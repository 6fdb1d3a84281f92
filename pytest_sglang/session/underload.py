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
from pytest_sglang.judge import health, throttling
from pytest_sglang.judge.hardware import FoundGpu, Unreadable
from pytest_sglang.judge.verdict import Judgement, combine
from pytest_sglang.record.values import Finding, Throughput, Value
from pytest_sglang.session.errors import Inconclusive, NotChecked

if TYPE_CHECKING:
    from pytest_sglang.gpu.card import Card
    from pytest_sglang.gpu.energy import EnergyWindow
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware


REPLAYS = " PCIe replays"
"""How the label of a card's replay counter ends."""
_GPU_IDLE = 0x1
"""Bit of the clocks event reasons: nothing runs on the card."""


class Counters(Value, frozen=True, kw_only=True):
    """Error counters by label, why some of them cannot be read, and the links that were up. ``at_s``: monotonic.

    ``lacking``: those of the unreadable that the card, or its driver, does not have at all.
    """

    counts: dict[str, int] = {}
    unreadable: dict[str, Unreadable] = {}
    lacking: frozenset[str] = frozenset()
    up: frozenset[str] = frozenset()
    at_s: float = 0.0


class UnderLoad(Value, frozen=True, kw_only=True):
    """One load: each serving card's PCIe generation (median) and width (lowest) in it by UUID, counters around it.

    ``idle``: UUIDs of serving cards that did nothing in any of its samples. ``seconds`` lie between the two readings of the counters: heat soak, warm-ups and discarded rounds count with the others.
    """

    seconds: float
    pcie: dict[str, tuple[int | None, int | None]]
    before: Counters
    after: Counters
    idle: frozenset[str] = frozenset()


def counters(hardware: Hardware, cards: Iterable[Card]) -> Counters:
    """What PCIe and NVLink of these cards have sent again since the driver was loaded. Raises GpuLost."""
    counts: dict[str, int] = {}
    missing: dict[str, Missing] = {}
    cards = list(cards)
    for card in cards:
        replays = card.pcie_replays()
        label = f"GPU {card.index}{REPLAYS}"
        if isinstance(replays, Missing):
            missing[label] = replays
        else:
            counts[label] = replays
    topology = links.read(hardware.nvml, cards)
    errors = links.link_counters(hardware.nvml, cards, topology)
    missing.update(errors.unreadable)
    return Counters(
        counts={**counts, **errors.counts},
        unreadable={label: Unreadable(each.reason, each.permission) for label, each in missing.items()},
        lacking=frozenset(label for label, each in missing.items() if each.unsupported),
        up=frozenset(f"GPU {each.gpu} link {each.link}" for each in topology.links if each.active),
        at_s=time.monotonic(),
    )


def seen(hardware: Hardware, window: EnergyWindow, result: Throughput, before: Counters) -> UnderLoad | None:
    """What a measured load showed; None without a round. Raises GpuLost."""
    # a round whose tokens do not count was a load on the cards all the same
    rounds = result.rounds or tuple(each for each in result.discarded if each.output_tokens)
    if not rounds:
        return None
    found: dict[str, tuple[int | None, int | None]] = {}
    idle: set[str] = set()
    for card in hardware.serving:
        read = [sample for each in rounds for sample in window.slow(each.begin_s, each.end_s).get(card.uuid, [])]
        # a card that does not work (the server runs elsewhere) drops to generation 1, which is no fault of its link
        samples = [each for each in read if each.reasons is None or not each.reasons & _GPU_IDLE]
        if read and not samples:
            idle.add(card.uuid)
            continue
        gens = [each.pcie_gen for each in samples if each.pcie_gen is not None]
        widths = [each.pcie_width for each in samples if each.pcie_width is not None]
        found[card.uuid] = (median_low(gens) if gens else None, min(widths) if widths else None)
    after = counters(hardware, hardware.serving)
    return UnderLoad(seconds=after.at_s - before.at_s, pcie=found, before=before, after=after, idle=frozenset(idle))


def judged(deployment: Deployment) -> Judgement:
    """PCIe generation and width of the serving cards under load, and what they sent again; a load is made where none was yet."""
    hardware, rig = deployment.hardware, deployment.rig
    if hardware is None:
        raise NotChecked("the rig file promises no GPUs (add [[gpus]] tables)")
    if not deployment.loads:
        deployment.server.measure(rounds=3)
    if not deployment.loads:
        raise Inconclusive("no request of the load ended whole, so nothing is known of the links under load")
    verdicts = [_one(hardware, each, deployment) for each in deployment.loads]
    return combine(verdicts) if rig.gpus else verdicts[0]


def _one(hardware: Hardware, load: UnderLoad, deployment: Deployment) -> Judgement:
    rig = deployment.rig
    loaded = [_loaded(each.card, load) if each.card is not None else None for each in hardware.promised]
    links_ok = judge.pcie_under_load(rig.gpus, loaded, unavailable=rig.unavailable)
    untold = _untold(load, rig.unavailable)
    again = [
        *_idle(hardware, load, rig.unavailable),
        *health.repeats(load.before.counts, load.after.counts, load.seconds, unavailable=rig.unavailable),
        *([] if "nvlink" in rig.unavailable else health.went_down(load.before.up, load.after.up)),
        *_hidden(load, rig.unavailable),
        *(Finding("counter", "info", subject, f"{what} not told: {why}") for what, (subject, why) in untold.items()),
    ]
    if deployment.scope is not None:
        deployment.scope.left_out |= {
            what.lower().replace(" ", "-"): f"{subject}: {why}" for what, (subject, why) in untold.items()
        }
    return judge.conclude(
        [*links_ok.findings, *again],
        good=_good(load, untold, rig.unavailable),
        quantity=links_ok.quantity,
        measured=links_ok.measured,
        limit=links_ok.limit,
    )


def _loaded(card: Card, load: UnderLoad) -> FoundGpu | None:
    if card.uuid not in load.pcie:
        return None
    gen, width = load.pcie[card.uuid]
    return msgspec.structs.replace(card.found(), pcie_gen=gen, pcie_width=width)


def _idle(hardware: Hardware, load: UnderLoad, unavailable: frozenset[str]) -> list[Finding]:
    """Serving cards that did nothing while others worked: one rank of a group that does not is broken; of any other nothing is known."""
    worker = next((f"GPU {card.index}" for card in hardware.serving if card.uuid in load.pcie), None)
    if worker is None or "clocks_event_reasons" in unavailable:
        return []
    still = [f"GPU {card.index}" for card in hardware.serving if card.uuid in load.idle]
    if hardware.all_work:
        return [throttling.idled(each, worker) for each in still]
    why = Unreadable("it was idle in the measurement, so its link was not under load")
    return [] if "pcie" in unavailable else [judge.unknown("pcie", each, "PCIe link under load", why) for each in still]


_UNTOLD = {True: "PCIe replays", False: "NVLink errors"}


def _is_pcie(label: str) -> bool:
    return label.endswith(REPLAYS)


def _hidden(load: UnderLoad, unavailable: frozenset[str]) -> list[Finding]:
    """Counters that are there and could not be compared: whether anything was sent again is not known."""
    before, after = load.before, load.after
    why = {label: each for part in (before, after) for label, each in part.unreadable.items() if label not in part.lacking}
    for label, count in before.counts.items():
        down = any(label.startswith(f"{link} ") for link in before.up - after.up)
        if label not in after.counts and not down:
            why.setdefault(label, Unreadable("it was readable before the load, and is not after it"))
        elif after.counts.get(label, count) < count:
            why.setdefault(label, Unreadable("it went backwards (a driver reload or a reset of the card)"))
    together: dict[tuple[bool, Unreadable], list[str]] = {}
    for label, each in why.items():
        if not health.waived(_is_pcie(label), unavailable):
            together.setdefault((_is_pcie(label), each), []).append(label)
    return [
        judge.unknown("pcie_replays" if pcie else "nvlink_errors", _cards(labels), _UNTOLD[pcie], each)
        for (pcie, each), labels in together.items()
    ]


def _cards(labels: Iterable[str]) -> str:
    """The cards of counters: ``GPU 0, 3``."""
    return f"GPU {', '.join(map(str, sorted({int(label.split()[1]) for label in labels})))}"


def _untold(load: UnderLoad, unavailable: frozenset[str]) -> dict[str, tuple[str, str]]:
    """What cards without such a counter do not tell: the cards and the reason, by what it is. Nobody can promise that."""
    told: dict[str, tuple[str, str]] = {}
    for pcie, what in _UNTOLD.items():
        lacking = [label for label in load.after.unreadable if label in load.after.lacking and _is_pcie(label) == pcie]
        if lacking and not health.waived(pcie, unavailable):
            told[what] = _cards(lacking), load.after.unreadable[lacking[0]].reason
    return told


def _good(load: UnderLoad, untold: dict[str, tuple[str, str]], unavailable: frozenset[str]) -> str:
    """What a pass may claim: only what was counted."""
    good = "PCIe links under load are as promised"
    kinds = {_is_pcie(label) for label in load.after.counts if not health.waived(_is_pcie(label), unavailable)}
    if kinds:
        whole = not untold and all(_is_pcie(label) in kinds for label in load.after.counts)
        good += ", and nothing was sent again" + ("" if whole else f" over {' and '.join(_OVER[each] for each in sorted(kinds))}")
    return good + "".join(f"; {what} of {subject} are not told by the card" for what, (subject, _) in untold.items())


_OVER = {True: "PCIe", False: "NVLink"}
