"""NVLink between the cards: links, pairs, and the matrix of ``nvidia-smi topo -m``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.guard import Guard, text
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.gpu.readings import Missing, Reading
from pytest_sglang.judge.hardware import Unreadable, normal_pci
from pytest_sglang.judge.links import FoundLinks, best_gpus
from pytest_sglang.record.values import Value

MAX_LINKS = 18
"""Links of one card to ask for where the binding does not say (Hopper's number)."""

_ANCESTORS = {0: "PSB", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
"""nvmlGpuTopologyLevel_t as nvidia-smi prints it (nvml.h)."""
_P2P = {0: "OK", 1: "CNS", 2: "GNS", 3: "TNS", 4: "DR", 5: "NS", 6: "U"}
"""nvmlGpuP2PStatus_t as ``nvidia-smi topo -p2p`` prints it."""
_P2P_READ, _P2P_NVLINK = 0, 2
"""nvmlGpuP2PCapsIndex_t: peer reads over whatever joins two cards, and NVLink between them."""
_FI_GET_SPEED = 164
"""NVML_FI_DEV_NVLINK_GET_SPEED, asked of one link by the field's scope."""
_FI_SPEED_COMMON = 90
_FI_SPEED = (84, 85, 86, 87, 88, 89, 132, 133, 134, 135, 136, 137)
"""NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON and ..._L0 to ..._L11; later links have no field of their own."""
VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
"""nvmlNvlinkVersion_t as people write it."""
_REMOTE = {0: "gpu", 1: "npu", 2: "switch"}
ERROR_COUNTERS = {0: "replay", 1: "recovery", 2: "crc flit", 3: "crc data"}
"""nvmlNvLinkErrorCounter_t (nvml.h)."""

LEGEND = """Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""


class Link(Value, frozen=True, kw_only=True):
    """One NVLink of one card. None = not readable (an inactive link tells no partner). ``version`` is NVML's number."""

    gpu: int
    link: int
    active: bool
    remote_pci: str | None = None
    remote_type: Literal["gpu", "npu", "switch"] | None = None
    version: int | None = None
    mbyte_s: int | None = None
    """Speed in one direction, MB a second."""


class Node(Value, frozen=True, kw_only=True):
    """A card as the topology knows it."""

    index: int
    uuid: str
    pci: str


class Topology(Value, frozen=True, kw_only=True):
    """Cards and the links between them, by NVML index."""

    cards: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    unreadable: dict[int, Missing] = {}
    """Cards whose links cannot be read (no NVLink, or not supported), with the reason."""
    ancestors: dict[tuple[int, int], int | None] = {}
    """Nearest common PCIe ancestor of two cards, as NVML's level; None = not readable."""
    p2p_nvlink: dict[tuple[int, int], str] = {}
    """NVLink peer-to-peer status of two cards as ``nvidia-smi topo -p2p n`` prints it; absent = not readable."""
    p2p_read: dict[tuple[int, int], str] = {}
    """Peer reads between two cards, over NVLink or PCIe, as ``nvidia-smi topo -p2p r`` prints it; absent = not readable."""

    @property
    def pairs(self) -> dict[tuple[int, int], int]:
        """Active links between each two cards that have any, smaller index first: ``{(0, 1): 4, (2, 3): 4}``.

        Cards on NVSwitches are each other's partners by as many links as the poorer of the two has to the switches. A link counts
        only as far as both ends say so: the smaller number stands where they differ.
        """
        by_pci = {card.pci: card.index for card in self.cards}
        direct: dict[tuple[int, int], int] = {}
        switched: dict[int, int] = {}
        for link in self.links:
            if not link.active:
                continue
            if link.remote_type == "switch":
                switched[link.gpu] = switched.get(link.gpu, 0) + 1
            elif link.remote_pci in by_pci:
                end = (link.gpu, by_pci[link.remote_pci])
                direct[end] = direct.get(end, 0) + 1
        found = {}
        for a, b in combinations(sorted(by_pci.values()), 2):
            there, back = direct.get((a, b), 0), direct.get((b, a), 0)
            one_way = b in self.unreadable or a in self.unreadable
            count = max(there, back) if one_way else min(there, back)
            count += min(switched.get(a, 0), switched.get(b, 0))
            if count:
                found[a, b] = count
        return found

    @property
    def links_per_pair(self) -> int | None:
        """The number of links that every pair has; None = no pair, or they differ (then see ``pairs``)."""
        counts = set(self.pairs.values())
        return counts.pop() if len(counts) == 1 else None

    @property
    def matrix(self) -> list[list[str]]:
        """GPU-GPU cells as ``nvidia-smi topo -m`` prints them: X, NV4, PIX, PXB, PHB, NODE, SYS; "N/A" = not readable."""
        pairs = self.pairs
        return [[self._cell(row.index, column.index, pairs) for column in self.cards] for row in self.cards]

    def _cell(self, one: int, other: int, pairs: dict[tuple[int, int], int]) -> str:
        if one == other:
            return "X"
        key = (min(one, other), max(one, other))
        if key in pairs:
            return f"NV{pairs[key]}"
        level = self.ancestors.get(key)
        return _ANCESTORS.get(level, "N/A") if level is not None else "N/A"

    def __str__(self) -> str:
        heads = [f"GPU{card.index}" for card in self.cards]
        rows = ["\t" + "\t".join(heads)]
        for head, cells in zip(heads, self.matrix, strict=True):
            rows.append(head + "\t" + "\t".join(" X " if cell == "X" else cell for cell in cells))
        reasons = sorted({str(missing) for missing in self.unreadable.values()})
        notes = [f"NVLink of GPU {', '.join(map(str, self.unreadable))}: {'; '.join(reasons)}"] if reasons else []
        return "\n".join([*rows, "", *notes, LEGEND])

    @property
    def p2p_matrix(self) -> list[list[str]]:
        """GPU-GPU cells of ``nvidia-smi topo -p2p n``: X, OK, CNS, GNS, TNS, DR, NS; "N/A" = not readable."""
        rows = []
        for row in self.cards:
            keys = [(min(row.index, column.index), max(row.index, column.index)) for column in self.cards]
            rows.append(["X" if one == other else self.p2p_nvlink.get((one, other), "N/A") for one, other in keys])
        return rows

    def pairs_of(self, gpus: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Bridged pairs that lie wholly inside these GPUs."""
        inside = set(gpus)
        return tuple(pair for pair in self.pairs if set(pair) <= inside)

    def best_gpus(self, tp: int) -> tuple[int, ...]:
        """The ``tp`` GPUs with the most links among themselves. Raises ValueError for more GPUs than there are."""
        if not 1 <= tp <= len(self.cards):
            raise ValueError(f"tp={tp}: there are {len(self.cards)} GPUs (give 1 to {len(self.cards)})")
        return best_gpus(tp, self.found(), [card.index for card in self.cards])

    def found(self) -> FoundLinks:
        """The links as the judge takes them."""
        unreadable = {index: Unreadable(missing.reason, missing.permission) for index, missing in self.unreadable.items()}
        levels = {pair: level for pair, level in self.ancestors.items() if level is not None}
        return FoundLinks(pairs=self.pairs, unreadable=unreadable, nameless=self._nameless(), p2p=self.p2p_nvlink, levels=levels)

    def _nameless(self) -> dict[int, int]:
        """Active links by card of which neither a card here nor a kind of partner is told."""
        here = {card.pci for card in self.cards}
        counts = Counter(
            link.gpu for link in self.links if link.active and link.remote_type is None and link.remote_pci not in here
        )
        return dict(counts)


def read(nvml: Nvml, cards: Sequence[Card] | None = None) -> Topology:
    """The topology as the driver shows it now. Raises GpuLost."""
    cards = nvml.cards() if cards is None else cards
    guard = nvml.guard
    links: list[Link] = []
    unreadable: dict[int, Missing] = {}
    for card in cards:
        own = _links(guard, card)
        if isinstance(own, Missing):
            unreadable[card.index] = own
        else:
            links.extend(own)
    ancestors: dict[tuple[int, int], int | None] = {}
    p2p: dict[int, dict[tuple[int, int], str]] = {_P2P_READ: {}, _P2P_NVLINK: {}}
    for one, other in combinations(cards, 2):
        key = (one.index, other.index)
        level = guard.call(one.label, "nvmlDeviceGetTopologyCommonAncestor", one.handle, other.handle)
        ancestors[key] = None if isinstance(level, Missing) else int(level)
        for kind, found in p2p.items():
            status = guard.call(one.label, "nvmlDeviceGetP2PStatus", one.handle, other.handle, kind)
            if not isinstance(status, Missing):
                found[key] = _P2P.get(int(status), "U")
    nodes = tuple(Node(index=card.index, uuid=card.uuid, pci=card.pci) for card in cards)
    return Topology(
        cards=nodes,
        links=tuple(links),
        unreadable=unreadable,
        ancestors=ancestors,
        p2p_nvlink=p2p[_P2P_NVLINK],
        p2p_read=p2p[_P2P_READ],
    )


def _links(guard: Guard, card: Card) -> Reading[list[Link]]:
    """Links of one card; Missing where not one of them can be read."""
    links: list[Link] = []
    reason = Missing("the driver names no links")
    for number in range(guard.constant("NVML_NVLINK_MAX_LINKS", MAX_LINKS)):
        state = guard.call(card.label, "nvmlDeviceGetNvLinkState", card.handle, number)
        if isinstance(state, Missing):
            # numbers beyond the card's own links answer like a card without any: only where none answers is that the reason
            reason = state if number == 0 else reason
            continue
        links.append(_link(guard, card, number, bool(state)))
    return links or reason


def _link(guard: Guard, card: Card, number: int, active: bool) -> Link:
    remote = guard.call(card.label, "nvmlDeviceGetNvLinkRemotePciInfo", card.handle, number)
    kind = guard.call(card.label, "nvmlDeviceGetNvLinkRemoteDeviceType", card.handle, number)
    version = guard.call(card.label, "nvmlDeviceGetNvLinkVersion", card.handle, number)
    return Link(
        gpu=card.index,
        link=number,
        active=active,
        remote_pci=None if isinstance(remote, Missing) else normal_pci(text(remote.busId)),
        remote_type=None if isinstance(kind, Missing) else _REMOTE.get(int(kind)),  # type: ignore[arg-type]
        version=None if isinstance(version, Missing) else int(version),
        mbyte_s=_speed(guard, card, number) if active else None,
    )


def _speed(guard: Guard, card: Card, number: int) -> int | None:
    # Hopper answers this one only, and for all of its 18 links (seen on four H200); Ampere answers the older ones only
    scoped = guard.field(card.label, card.handle, "NVML_FI_DEV_NVLINK_GET_SPEED", _FI_GET_SPEED, number)
    if not isinstance(scoped, Missing) and scoped > 0:
        return int(scoped)
    if number < len(_FI_SPEED):
        own = guard.field(card.label, card.handle, f"NVML_FI_DEV_NVLINK_SPEED_MBPS_L{number}", _FI_SPEED[number])
        if not isinstance(own, Missing) and own > 0:
            return int(own)
    common = guard.field(card.label, card.handle, "NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON", _FI_SPEED_COMMON)
    return int(common) if not isinstance(common, Missing) and common > 0 else None


class LinkErrors(Value, frozen=True, kw_only=True):
    """Error counters of active links, ``{"GPU 0 link 2 replay": 17}``; links without one that can be read, with the reason."""

    counts: dict[str, int] = {}
    unreadable: dict[str, Missing] = {}


def link_counters(nvml: Nvml, cards: Sequence[Card], topology: Topology) -> LinkErrors:
    """Error counters of every active link. Kinds that a link has not are left out where it has others. Compare two readings."""
    by_index = {card.index: card for card in cards}
    counts: dict[str, int] = {}
    unreadable: dict[str, Missing] = {}
    for link in topology.links:
        if not link.active or link.gpu not in by_index:
            continue
        card, label = by_index[link.gpu], f"GPU {link.gpu} link {link.link}"
        read = {
            name: nvml.guard.call(card.label, "nvmlDeviceGetNvLinkErrorCounter", card.handle, link.link, number)
            for number, name in ERROR_COUNTERS.items()
        }
        found = {f"{label} {name}": int(count) for name, count in read.items() if not isinstance(count, Missing)}
        missing = [each for each in read.values() if isinstance(each, Missing)]
        counts.update(found)
        if not found and missing:
            unreadable[label] = next((each for each in missing if not each.unsupported), missing[0])
    return LinkErrors(counts=counts, unreadable=unreadable)


def link_errors(nvml: Nvml, cards: Sequence[Card], topology: Topology) -> dict[str, int]:
    """Error counters of every active link: ``{"GPU 0 link 2 replay": 17}``; unreadable ones are left out. Compare two readings."""
    return link_counters(nvml, cards, topology).counts
