"""The GPU-GPU cells of nvidia-smi topo -m on whole machines, from what NVML answers there."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import real_card
from nvml_fakes import Err, FakeNvml, card_3090

from pytest_sglang.gpu import links
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.simulator import hardware
from pytest_sglang.simulator.ailments import Ailments
from pytest_sglang.simulator.nvml import SimulatedNvml
from pytest_sglang.simulator.state import HardwareState

DATA = Path(__file__).parents[1] / "data" / "nvml"
LEVELS = {"PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
"""nvmlGpuTopologyLevel_t (nvml.h)."""
MACHINES = sorted(path.stem.removeprefix("topo-") for path in DATA.glob("topo-*.txt"))


def told(name: str) -> list[list[str]]:
    return real_card.topology((DATA / f"topo-{name}.txt").read_text())


def machine(cells: list[list[str]]) -> FakeNvml:
    """A binding that answers as on a machine with these cells: links where the cell says NV, a common ancestor everywhere."""
    module = FakeNvml([card_3090(index) for index in range(len(cells))])
    switched = sum(cell.startswith("NV") for cell in cells[0]) > 1
    for index, row in enumerate(cells):
        joined = {other: int(cell[2:]) for other, cell in enumerate(row) if cell.startswith("NV")}
        if joined:
            partner, count = next(iter(joined.items()))
            bus = "00000000:AA:00.0" if switched else f"00000000:{partner + 1:02X}:00.0"
            module.cards[index].update(
                NvLinkState=lambda link, count=count: 1 if link < count else Err(2),
                NvLinkRemotePciInfo=lambda link, bus=bus: SimpleNamespace(busId=bus),
                NvLinkRemoteDeviceType=lambda link, kind=2 if switched else 0: kind,
            )
        module.cards[index]["TopologyCommonAncestor"] = lambda other, row=row: LEVELS.get(row[other], 40)
    return module


@pytest.mark.parametrize("name", MACHINES)
def test_cells_are_those_of_nvidia_smi(name: str) -> None:
    expected = told(name)
    found = links.read(Nvml.open(machine(expected)))
    assert found.matrix == expected
    shown = real_card.topology(str(found))
    assert shown == expected


@pytest.mark.parametrize(
    ("name", "rig"), [("six-3090-bridged", "six-3090"), ("four-pcie-switches", "four-3090-pcie"), ("eight-nvswitch", "eight-h100")]
)
def test_the_stand_in_described_by_a_toml_gives_the_same_cells(tmp_path: Path, name: str, rig: str) -> None:
    cards = hardware.load(rig)
    HardwareState.create(tmp_path, cards, cards.gpu.present_w)
    uuids = [f"GPU-{index}" for index in range(cards.gpu.count)]
    found = links.read(Nvml.open(SimulatedNvml(tmp_path, cards, uuids, ailments=Ailments(tmp_path, cards))))
    assert found.matrix == told(name)


def test_the_peer_status_matrix_has_the_words_of_nvidia_smi() -> None:
    module = machine(told("six-3090-bridged"))
    for index in range(6):
        module.cards[index]["P2PStatus"] = lambda other, kind, index=index: 0 if other == index ^ 1 else 1 if kind == 2 else Err(3)
    found = links.read(Nvml.open(module))
    assert found.p2p_matrix[2] == ["CNS", "CNS", "X", "OK", "CNS", "CNS"]
    assert found.p2p_read == {(0, 1): "OK", (2, 3): "OK", (4, 5): "OK"}
    assert found.found().p2p[2, 3] == "OK"
    assert [pair for pair in combinations(range(6), 2) if found.found().p2p[pair] == "OK"] == [(0, 1), (2, 3), (4, 5)]


def test_links_tell_their_speed_by_their_own_field_or_the_common_one() -> None:
    module = machine(told("six-3090-bridged"))
    module.cards[0]["fields"] = {84: (1, 14_062), 90: (1, 25_781)}
    found = [link.mbyte_s for link in links.read(Nvml.open(module)).links if link.gpu in (0, 1)]
    assert found == [14_062, 25_781, 25_781, 25_781, None, None, None, None]
