"""Links, pairs and the matrix of nvidia-smi topo -m on rigs of every kind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from nvml_fakes import NOT_SUPPORTED, Err, FakeNvml, bridge, card_3090, eight_on_nvswitch, pcie_only, recorded_h200, six_3090

from pytest_sglang.gpu import links
from pytest_sglang.gpu.nvml import GpuLost, Missing, Nvml
from pytest_sglang.judge.hardware import FoundGpu
from pytest_sglang.judge.links import nvlink
from pytest_sglang.rig.model import GpuPromise, NvlinkPromise


def topology(module: FakeNvml) -> links.Topology:
    return links.read(Nvml.open(module))


def test_six_cards_with_bridges_are_three_pairs_of_four_links():
    found = topology(six_3090())
    assert found.pairs == {(0, 1): 4, (2, 3): 4, (4, 5): 4}
    assert found.links_per_pair == 4
    assert found.pairs_of([0, 1, 2, 3]) == ((0, 1), (2, 3))
    assert found.pairs_of([1, 2]) == ()
    assert found.best_gpus(2) == (0, 1)
    assert found.best_gpus(4) == (0, 1, 2, 3)
    assert found.p2p_nvlink[0, 1] == "OK"
    assert found.p2p_nvlink[1, 2] == "NS"
    first = next(link for link in found.links if link.gpu == 2 and link.link == 0)
    assert (first.active, first.remote_pci, first.remote_type, first.version) == (True, "0000:04:00.0", "gpu", 5)


def test_matrix_and_text_are_those_of_nvidia_smi_for_bridged_pairs():
    found = topology(six_3090())
    assert found.matrix[0] == ["X", "NV4", "PHB", "PHB", "PHB", "PHB"]
    assert found.matrix[3] == ["PHB", "PHB", "NV4", "X", "PHB", "PHB"]
    lines = str(found).splitlines()
    assert lines[0] == "\tGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tGPU5"
    assert lines[1] == "GPU0\t X \tNV4\tPHB\tPHB\tPHB\tPHB"
    assert "  NV#  = Connection traversing a bonded set of # NVLinks" in lines


def test_nvswitch_joins_every_card_with_every_other():
    found = topology(eight_on_nvswitch())
    assert len(found.pairs) == 28
    assert found.links_per_pair == 18
    assert found.matrix[0] == ["X", *["NV18"] * 7]
    assert found.links[0].remote_type == "switch"


def test_a_card_with_fewer_switch_links_lowers_only_its_own_pairs():
    module = eight_on_nvswitch()
    module.cards[5]["NvLinkState"] = lambda link: int(link != 3) if link < 18 else Err(2)
    found = topology(module)
    assert found.pairs[0, 5] == 17
    assert found.pairs[0, 1] == 18
    assert found.links_per_pair is None


def test_pcie_only_rig_shows_how_the_cards_meet():
    found = topology(pcie_only())
    assert found.pairs == {}
    assert found.links_per_pair is None
    assert found.matrix == [
        ["X", "PIX", "PHB", "SYS"],
        ["PIX", "X", "PXB", "SYS"],
        ["PHB", "PXB", "X", "N/A"],
        ["SYS", "SYS", "N/A", "X"],
    ]
    assert found.best_gpus(2) == (0, 1)


def test_recorded_h200_has_no_links_and_keeps_the_reason():
    found = topology(FakeNvml([recorded_h200()]))
    assert found.pairs == {}
    assert found.unreadable == {0: Missing("Not Supported", code=3)}
    assert found.matrix == [["X"]]
    assert "NVLink of GPU 0: not readable (Not Supported)" in str(found)
    assert found.found().unreadable[0].reason == "Not Supported"


def test_half_dead_bridge_counts_what_both_ends_have():
    module = six_3090()
    bridge(module.cards[2], partner=3, active=3)
    found = topology(module)
    assert found.pairs[2, 3] == 3
    assert found.matrix[3][2] == "NV3"


def test_dead_bridge_is_no_pair_but_its_links_are_known():
    module = six_3090()
    for card, partner in ((2, 3), (3, 2)):
        bridge(module.cards[card], partner=partner, active=0)
    found = topology(module)
    assert (2, 3) not in found.pairs
    dead = [link for link in found.links if link.gpu == 2]
    assert [link.active for link in dead] == [False] * 4
    assert dead[0].remote_pci is None


def test_one_end_that_cannot_be_read_leaves_the_other_ends_count():
    module = six_3090()
    module.cards[1]["NvLinkState"] = NOT_SUPPORTED
    found = topology(module)
    assert found.pairs[0, 1] == 4
    assert 1 in found.unreadable


def test_a_remote_that_is_no_card_here_joins_nobody():
    module = six_3090()
    module.cards[0]["NvLinkRemotePciInfo"] = lambda link: SimpleNamespace(busId="00000000:AA:00.0")
    assert (0, 1) not in topology(module).pairs


def test_best_gpus_prefers_bridges_over_low_indices():
    module = FakeNvml([card_3090(index) for index in range(4)])
    for one, other in ((1, 3), (3, 1)):
        bridge(module.cards[one], partner=other)
    found = topology(module)
    assert found.best_gpus(2) == (1, 3)
    assert found.best_gpus(3) == (0, 1, 3)
    with pytest.raises(ValueError, match="there are 4 GPUs"):
        found.best_gpus(5)


def test_switch_links_whose_other_end_is_not_told_are_unreadable_and_not_missing():
    module = eight_on_nvswitch()
    for card in module.cards:
        card["NvLinkRemoteDeviceType"] = NOT_SUPPORTED
    found = topology(module)
    assert found.pairs == {}
    assert found.found().nameless == dict.fromkeys(range(8), 18)
    gpus, cards = [GpuPromise(index=index) for index in range(8)], [FoundGpu(index=index, uuid=str(index)) for index in range(8)]
    judged = nvlink(NvlinkPromise(pairs=((0, 1),), links=18), gpus, cards, found.found())
    assert judged.verdict == "inconclusive"
    assert "18 active links whose other end the driver does not tell" in judged.message
    module.cards[0]["NvLinkState"] = lambda link: int(link < 17)
    assert nvlink(NvlinkPromise(pairs=((0, 1),), links=18), gpus, cards, topology(module).found()).verdict == "fail"
    # a bridge to a card that a container hides is told: that is no partner here
    assert topology(six_3090()).found().nameless == {}


def test_lost_card_while_reading_links_is_told():
    module = six_3090()
    nvml = Nvml.open(module)
    cards = nvml.cards()
    module.cards[4]["lost"] = 15
    with pytest.raises(GpuLost, match="GPU 4"):
        links.read(nvml, cards)


def test_error_counters_of_active_links_can_be_compared():
    module = six_3090()
    nvml = Nvml.open(module)
    cards = nvml.cards()
    found = links.read(nvml, cards)
    before = links.link_errors(nvml, cards, found)
    module.cards[2]["NvLinkErrorCounter"] = lambda link, counter: 17 if (link, counter) == (1, 0) else 0
    module.cards[5]["NvLinkErrorCounter"] = NOT_SUPPORTED
    after = links.link_errors(nvml, cards[:5], found)
    assert len(before) == 6 * 4 * 4
    assert {name: count for name, count in after.items() if count != before[name]} == {"GPU 2 link 1 replay": 17}
    assert links.link_errors(nvml, cards[5:], found) == {}
