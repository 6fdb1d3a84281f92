"""Judgements on cards: identity, PCIe, power limit, clocks. Each fault with its cause, each unreadable reading inconclusive."""

from __future__ import annotations

import pytest

from pytest_sglang.judge import hardware
from pytest_sglang.judge.hardware import FoundGpu, Unreadable
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.rig.model import GpuPromise

NAME = "NVIDIA GeForce RTX 3090"
NONE = frozenset()


def gpu(index, **changes):
    known = {
        "uuid": f"GPU-{index}{index}{index}{index}{index}{index}{index}{index}-3090",
        "pci": f"0000:0{index + 1}:00.0",
        "name": NAME,
        "persistence": True,
        "requested_w": 250.0,
        "enforced_w": 250.0,
        "default_w": 350.0,
        "min_w": 100.0,
        "max_w": 390.0,
        "pcie_gen": 1,
        "pcie_width": 16,
        "pcie_max_gen": 4,
        "pcie_max_width": 16,
    }
    return FoundGpu(index=index, **{**known, **changes})


def promise(index=None, **more):
    return GpuPromise(**{"index": index, "name": NAME, "persistence": True, "pcie_gen": 4, "pcie_width": 16, **more})


SIX = tuple(gpu(index) for index in range(6))
PROMISED = tuple(promise(index) for index in range(6))


def with_changes(index, **changes):
    return tuple(gpu(each.index, **changes) if each.index == index else each for each in SIX)


def kinds(judgement):
    return [(each.kind, each.severity, each.subject) for each in judgement.findings]


# --- who is who -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("00000000:41:00.0", "0000:41:00.0"),
        ("0000:41:00.0", "0000:41:00.0"),
        ("41:00.0", "0000:41:00.0"),
        ("0000:41:00", "0000:41:00.0"),
        ("0001:C1:00.0", "0001:c1:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        (" nonsense ", "nonsense"),
    ],
)
def test_bus_ids_have_one_spelling(text, normal):
    assert hardware.normal_pci(text) == normal


def test_promised_cards_are_matched_by_index_uuid_its_beginning_and_bus_id():
    promised = (
        GpuPromise(index=3),
        GpuPromise(uuid=SIX[1].uuid.upper()),
        GpuPromise(uuid="GPU-22222222"),
        GpuPromise(pci="05:00.0"),
        GpuPromise(uuid="GPU-2"),
        GpuPromise(index=9),
    )
    assert [None if each is None else each.index for each in hardware.match(promised, SIX)] == [3, 1, 2, 4, None, None]


def test_all_present_and_themselves_passes():
    judged = hardware.identity(PROMISED, SIX)
    assert judged.verdict == "pass"
    assert judged.message == "6 of 6 promised GPUs are present and themselves"
    assert judged.measured == {"gpus": Measurement(6, "count")}
    assert judged.limit == Limit("==", 6, "count")
    assert judged.findings == ()


def test_missing_card_fails_and_names_what_the_driver_shows_and_cannot_open():
    judged = hardware.identity(PROMISED, SIX[:5], unopened={5: "GPU is lost"})
    assert judged.verdict == "fail"
    assert judged.measured["gpus"].value == 5
    assert kinds(judged) == [("gpu-missing", "fail", "GPU 5")]
    assert "GPU 0, GPU 1, GPU 2, GPU 3, GPU 4" in judged.message
    assert "GPU 5: GPU is lost" in judged.message
    assert "Xid 79" in judged.cause
    assert "the driver shows none" in hardware.identity(PROMISED[:1], ()).message


def test_another_name_fails_and_moved_indices_are_the_likely_cause():
    mixed = (gpu(0, name="NVIDIA GeForce RTX 4090"), gpu(1))
    judged = hardware.identity((promise(0), promise(1, name="NVIDIA GeForce RTX 4090")), mixed)
    assert judged.verdict == "fail"
    assert judged.message.startswith("GPU 0 is a NVIDIA GeForce RTX 4090, promised NVIDIA GeForce RTX 3090")
    assert "indices move at reboots" in judged.findings[0].remedy
    alone = hardware.identity((promise(0),), mixed[:1])
    assert alone.findings[0].remedy == "correct the rig file, or put the promised card back"


def test_cards_found_by_uuid_at_another_index_are_information():
    promised = (promise(uuid=SIX[1].uuid), promise(uuid=SIX[0].uuid))
    judged = hardware.identity(promised, SIX[:2])
    assert judged.verdict == "pass"
    assert kinds(judged) == [("gpu-order", "info", "GPU 1"), ("gpu-order", "info", "GPU 0")]


def test_more_cards_than_promised_are_information():
    judged = hardware.identity(PROMISED[:4], SIX)
    assert judged.verdict == "pass"
    assert kinds(judged) == [("gpu-extra", "info", "GPU 4, GPU 5")]


def test_narrow_or_slow_slot_fails_at_idle_by_what_it_can_reach():
    assert hardware.identity(PROMISED, with_changes(2, pcie_width=4)).message == "GPU 2 PCIe x4, promised x16"
    judged = hardware.identity(PROMISED, with_changes(2, pcie_max_gen=3))
    assert (judged.verdict, judged.message) == ("fail", "GPU 2 PCIe gen 3, promised gen 4")
    assert hardware.identity(PROMISED, with_changes(2, pcie_gen=1)).verdict == "pass"


@pytest.mark.parametrize(
    ("changes", "waiver"),
    [({"name": None, "unreadable": {"name": Unreadable("Not Supported")}}, "name"), ({"pcie_width": None}, "pcie")],
)
def test_promised_but_unreadable_is_inconclusive_and_can_be_waived(changes, waiver):
    judged = hardware.identity(PROMISED, with_changes(4, **changes))
    assert judged.verdict == "inconclusive"
    assert judged.inconclusive_because == judged.message
    assert "GPU 4" in judged.message
    assert f'unavailable = ["{waiver}"]' in judged.cause
    assert hardware.identity(PROMISED, with_changes(4, **changes), unavailable=frozenset({waiver})).verdict == "pass"


def test_what_is_not_promised_is_not_judged():
    bare = tuple(GpuPromise(index=index) for index in range(6))
    assert hardware.identity(bare, with_changes(1, name="x", pcie_width=1, pcie_max_gen=1)).verdict == "pass"
    assert hardware.power_limit(bare, with_changes(1, persistence=False), 250).verdict == "pass"


# --- PCIe under load -----------------------------------------------------------------------------------------------------------


def test_pcie_under_load_is_judged_on_the_cards_that_worked():
    loaded = [gpu(0, pcie_gen=4), gpu(1, pcie_gen=4), None, None, None, None]
    judged = hardware.pcie_under_load(PROMISED, loaded)
    assert judged.verdict == "pass"
    assert judged.measured == {"pcie_gen": Measurement(4, ""), "pcie_width": Measurement(16, "")}


@pytest.mark.parametrize(
    ("changes", "detail"), [({"pcie_gen": 1}, "PCIe gen 1 under load"), ({"pcie_width": 4}, "PCIe x4 under load")]
)
def test_gen_1_or_x4_under_load_fails(changes, detail):
    loaded = [gpu(0, **{"pcie_gen": 4, **changes}), *[None] * 5]
    judged = hardware.pcie_under_load(PROMISED, loaded)
    assert judged.verdict == "fail"
    assert detail in judged.message


def test_pcie_under_load_unread_or_without_a_working_card_is_inconclusive():
    assert hardware.pcie_under_load(PROMISED, [gpu(0, pcie_gen=None, pcie_width=None), *[None] * 5]).verdict == "inconclusive"
    judged = hardware.pcie_under_load(PROMISED, [None] * 6)
    assert judged.verdict == "inconclusive"
    assert "no promised card worked" in judged.message
    assert hardware.pcie_under_load(PROMISED, [None] * 6, unavailable=frozenset({"pcie"})).verdict == "pass"
    assert hardware.pcie_under_load([GpuPromise(index=0)], [gpu(0)]).verdict == "pass"


# --- power -----------------------------------------------------------------------------------------------------------------------


def test_limit_that_stands_passes_within_a_watt():
    judged = hardware.power_limit(PROMISED, with_changes(3, enforced_w=250.9), 250)
    assert judged.verdict == "pass"
    assert judged.measured == {"enforced_power_limit_w": Measurement(250.9, "W")}
    assert judged.limit == Limit("==", 250, "W")
    assert judged.message == "6 GPUs enforce 250 W"


@pytest.mark.parametrize(
    ("changes", "watts", "cause", "remedy"),
    [
        ({"requested_w": 350.0, "enforced_w": 350.0}, 250, "fell back to the card's default", "set it again at boot"),
        ({"requested_w": 250.0, "enforced_w": 220.0}, 250, "the driver enforces another limit", "nvidia-smi -q -d POWER"),
        ({"requested_w": 300.0, "enforced_w": 300.0}, 250, "somebody set another limit", "--sglang-set-power"),
        ({"max_w": 350.0}, 390, "takes 100-350 W, not 390 W", "inside the card's range"),
    ],
)
def test_wrong_limit_fails_with_its_likely_cause(changes, watts, cause, remedy):
    found = with_changes(2, **changes)
    found = tuple(
        each if each.index == 2 or watts == 250 else gpu(each.index, requested_w=watts, enforced_w=watts) for each in found
    )
    judged = hardware.power_limit(PROMISED, found, watts)
    assert judged.verdict == "fail"
    assert kinds(judged) == [("power-limit", "fail", "GPU 2")]
    assert cause in judged.cause
    assert remedy in judged.cause
    assert judged.measured["enforced_power_limit_w"].value == found[2].enforced_w


def test_one_watt_and_a_half_is_too_much():
    assert hardware.power_limit(PROMISED, with_changes(0, enforced_w=251.5), 250).verdict == "fail"


def test_persistence_off_is_its_own_fault():
    judged = hardware.power_limit(PROMISED, with_changes(1, persistence=False), 250)
    assert judged.verdict == "fail"
    assert kinds(judged) == [("persistence", "fail", "GPU 1")]
    assert "lost when the driver unloads" in judged.message


@pytest.mark.parametrize(
    ("changes", "waiver"),
    [
        ({"enforced_w": None, "unreadable": {"enforced_w": Unreadable("Insufficient Permissions", True)}}, "power_limit"),
        ({"requested_w": None}, "power_limit"),
        ({"persistence": None, "unreadable": {"persistence": Unreadable("Not Supported")}}, "persistence"),
    ],
)
def test_unreadable_limit_or_persistence_is_inconclusive_and_can_be_waived(changes, waiver):
    found = with_changes(5, **changes)
    judged = hardware.power_limit(PROMISED, found, 250)
    assert judged.verdict == "inconclusive"
    assert hardware.power_limit(PROMISED, found, 250, unavailable=frozenset({waiver})).verdict == "pass"


def test_want_of_a_permission_names_what_grants_it():
    found = with_changes(5, enforced_w=None, unreadable={"enforced_w": Unreadable("Insufficient Permissions", True)})
    assert "run as root" in hardware.power_limit(PROMISED, found, 250).cause


def test_a_missing_card_leaves_the_limit_inconclusive_and_a_wrong_one_beats_it():
    assert hardware.power_limit(PROMISED, SIX[:5], 250).verdict == "inconclusive"
    judged = hardware.power_limit(PROMISED, with_changes(0, requested_w=350.0, enforced_w=350.0)[:5], 250)
    assert judged.verdict == "fail"
    nothing = hardware.power_limit(PROMISED, (), 250)
    assert (nothing.verdict, nothing.measured, nothing.quantity) == ("inconclusive", {}, None)


def test_range_and_total():
    assert hardware.power_range(390, SIX) == []
    assert hardware.power_range(391, SIX[:1]) == [f"GPU 0 ({NAME}) takes 100-390 W, not 391 W"]
    assert hardware.power_range(10, [gpu(0, min_w=None)]) == []
    assert hardware.power_total(390, SIX, SIX, None) is None
    assert hardware.power_total(390, SIX, SIX, 2400) is None
    assert hardware.power_total(390, SIX, SIX, 2000) == (
        "6 x 390 W is 2340 W, above the rig's max_total_w of 2000 W (at most 333 W a card)"
    )
    with_others = hardware.power_total(390, SIX[:4], SIX, 2000)
    assert "4 x 390 W and 500 W of the other cards is 2060 W" in with_others


def test_two_entries_that_are_one_card_are_not_two_cards():
    """GPU 0 by its index and again by its uuid: with the second card gone this looked like two that are present."""
    both = [promise(0), promise(uuid=SIX[0].uuid)]
    judged = hardware.identity(both, [SIX[0]])
    assert judged.verdict == "fail"
    assert "of the rig file are this one card" in judged.message
    assert judged.measured["gpus"].value == 1
    assert hardware.identity([promise(0), promise(uuid=SIX[1].uuid)], SIX[:2]).verdict == "pass"


def test_a_waived_power_limit_is_not_claimed():
    lost = [gpu(0, requested_w=350.0, enforced_w=350.0)]
    judged = hardware.power_limit([promise(0)], lost, 250.0, unavailable=frozenset({"power_limit"}))
    assert (judged.verdict, judged.message) == ("pass", "power limits: waived in the rig file")
