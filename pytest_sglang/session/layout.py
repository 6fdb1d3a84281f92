"""Cards, the links between them and the server's place on them, as plain values: what the record keeps and the report draws."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pytest_sglang.gpu import links
from pytest_sglang.gpu.links import Topology
from pytest_sglang.gpu.readings import GpuLost, Missing, value_or_none
from pytest_sglang.judge import placement
from pytest_sglang.judge.hardware import Unreadable

if TYPE_CHECKING:
    from pytest_sglang.gpu.card import Card
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware


def read(deployment: Deployment) -> dict[str, Any]:
    """The machine as it is now; {} where the rig file promises no cards. What cannot be read says why; never raises.

    ``cards``: index, uuid, pci, name, ``entry`` (position in [[gpus]], None = not promised), PCIe now, at most and as read under load,
    links up, there and to switches, ``lost``. ``absent``: promised cards that were not found. ``paths``: every two cards with their
    links (None = not readable), nearest common PCIe ancestor and peer-to-peer status as nvidia-smi prints them. ``promised``: pairs.
    ``serving``: the server's cards by its processes (``gpus``, or ``unreadable``), its groups.
    """
    if deployment.hardware is None:
        return {}
    try:
        return _read(deployment, deployment.hardware)
    except Exception as error:
        # a drawing must not cost a run anything
        return {"unreadable": f"{type(error).__name__}: {error}"}


def _read(deployment: Deployment, hardware: Hardware) -> dict[str, Any]:
    entries = {each.card.uuid: each.position for each in hardware.promised if each.card is not None}
    loaded = _under_load(deployment)
    sheets, alive = [], []
    for card in hardware.cards:
        try:
            sheets.append(_card(card, entries.get(card.uuid), loaded.get(card.uuid, (None, None))))
            alive.append(card)
        except GpuLost as error:
            lost = {"index": card.index, "uuid": card.uuid, "pci": card.pci, "entry": entries.get(card.uuid), "lost": str(error)}
            sheets.append(lost)
    seen: dict[str, Any] = {
        "cards": sheets,
        "absent": [{"entry": each.position, "label": each.label} for each in hardware.promised if each.card is None],
        "promised": _promised(hardware, deployment),
        "paths": [],
        "serving": _serving(deployment),
    }
    try:
        found = links.read(hardware.nvml, alive)
    except GpuLost as error:
        return {**seen, "links_unreadable": str(error)}
    return {**seen, "cards": [{**each, **_links(each["index"], found)} for each in sheets], "paths": _paths(found)}


def _under_load(deployment: Deployment) -> dict[str, tuple[int | None, int | None]]:
    """Lowest PCIe generation and width of each card over the measured loads."""
    lowest: dict[str, tuple[int | None, int | None]] = {}
    for load in deployment.loads:
        for uuid, (gen, width) in load.pcie.items():
            was = lowest.get(uuid, (None, None))
            lowest[uuid] = (_least(was[0], gen), _least(was[1], width))
    return lowest


def _least(*values: int | None) -> int | None:
    return min((each for each in values if each is not None), default=None)


def _card(card: Card, entry: int | None, loaded: tuple[int | None, int | None]) -> dict[str, Any]:
    pcie = card.pcie()
    readings: dict[str, Any] = {
        "name": card.name,
        "pcie_gen": pcie.gen,
        "pcie_width": pcie.width,
        "pcie_max_gen": pcie.max_gen,
        "pcie_max_width": pcie.max_width,
    }
    return {
        "index": card.index,
        "uuid": card.uuid,
        "pci": card.pci,
        "entry": entry,
        **{name: value_or_none(each) for name, each in readings.items()},
        "load_pcie_gen": loaded[0],
        "load_pcie_width": loaded[1],
        "unreadable": {name: each.reason for name, each in readings.items() if isinstance(each, Missing)},
        "lost": None,
    }


def _links(index: int, found: Topology) -> dict[str, Any]:
    """Links of one card: how many it has, how many are up, and up to what; the reason where they cannot be read."""
    own = [each for each in found.links if each.gpu == index]
    missing = found.unreadable.get(index)
    here = {each.pci for each in found.cards}
    to = Counter(
        "switch" if each.remote_type == "switch" else "card" if each.remote_pci in here else "unknown"
        for each in own
        if each.active
    )
    return {
        "links": len(own),
        "links_up": sum(to.values()),
        "links_to_switch": to["switch"],
        "links_to_unknown": to["unknown"],
        "links_unreadable": None if missing is None else missing.reason,
        "links_unsupported": missing is not None and missing.unsupported,
    }


def _paths(found: Topology) -> list[dict[str, Any]]:
    pairs, matrix = found.pairs, found.matrix
    paths = []
    for (row, one), (column, other) in combinations(enumerate(found.cards), 2):
        key = (one.index, other.index)
        hidden = one.index in found.unreadable or other.index in found.unreadable
        level = matrix[row][column]
        paths.append(
            {
                "gpus": list(key),
                "links": pairs.get(key, None if hidden else 0),
                "path": level if not level.startswith("NV") else None,
                "p2p_nvlink": found.p2p_nvlink.get(key),
                "p2p_read": found.p2p_read.get(key),
            }
        )
    return paths


def _promised(hardware: Hardware, deployment: Deployment) -> list[dict[str, Any]]:
    """Declared pairs by the cards' present indices; None for a card that is not there."""
    nvlink = deployment.rig.nvlink
    if nvlink is None:
        return []
    index = {each.position: None if each.card is None else each.card.index for each in hardware.promised}
    return [{"entries": list(pair), "gpus": [index.get(each) for each in pair], "links": nvlink.links} for pair in nvlink.pairs]


def _serving(deployment: Deployment) -> dict[str, Any]:
    """Cards on which the server's processes are, and its tensor parallel groups; {} without a server in the rig file."""
    server = deployment.rig.server
    if server is None:
        return {}
    wanted = [card.index for card in deployment.hardware.serving] if deployment.hardware is not None and server.gpus else None
    tp, told = server.tp, {"promised": wanted, "tp": server.tp}
    if not deployment.is_this_machine:
        return {**told, "unreadable": f"{server.url} is not served by this machine"}
    if not deployment.controller.state().active:
        return {**told, "unreadable": "the server was not running"}
    try:
        gpus = deployment.topology.serving()
    except GpuLost as error:
        return {**told, "unreadable": str(error)}
    if isinstance(gpus, Unreadable):
        return {**told, "unreadable": gpus.reason}
    if tp is None and isinstance(size := deployment.server.info.get("tp_size"), int):
        tp = size
    return {**told, "tp": tp, "gpus": list(gpus), "groups": [list(each) for each in placement.groups(gpus, tp)]}
