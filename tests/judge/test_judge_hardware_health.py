"""Judgements on memory, repeated packets and the kernel log."""

from __future__ import annotations

import pytest

from pytest_sglang.judge import health, standing
from pytest_sglang.judge.hardware import Unreadable
from pytest_sglang.judge.health import FoundMemory
from pytest_sglang.record.values import Finding

SOUND = FoundMemory(index=0, uuid="GPU-0", ecc=True, uncorrected=0, rows=(0, 0, False, False))
NONE = FoundMemory(index=1, uuid="GPU-1", unsupported=frozenset({"ecc", "uncorrected", "rows"}))


def card(**different):
    fields = {name: getattr(SOUND, name) for name in SOUND.__struct_fields__}
    return FoundMemory(**{**fields, **different})


def kinds(findings):
    return [(each.kind, each.severity) for each in findings]


def test_sound_cards_pass_and_cards_without_ecc_are_told():
    judged = health.memory([SOUND, NONE], [SOUND, NONE], {})
    assert judged.verdict == "pass"
    assert judged.message == "2 promised GPUs answer; the memory of 1 is sound"
    assert [(each.subject, each.severity) for each in judged.findings] == [("GPU 1", "info")]
    assert health.memory([NONE], [NONE], {}).message == "1 promised GPUs answer; memory errors are not supported by them"


def test_a_lost_card_fails_with_what_to_look_for():
    judged = health.memory([SOUND, NONE], [SOUND], {"GPU 1": "does not answer the driver any more"})
    assert judged.verdict == "fail"
    assert (judged.measured["gpus"].value, judged.limit.value) == (1, 2)
    assert judged.message == "GPU 1 does not answer the driver any more"
    assert "Xid 79" in judged.cause


def test_errors_since_the_run_began_fail_and_older_ones_are_a_warning():
    was = card(uncorrected=3)
    assert kinds(health.memory([was], [card(uncorrected=3)], {}).findings) == [("ecc", "warn")]
    judged = health.memory([was], [card(uncorrected=5)], {})
    assert judged.verdict == "fail"
    assert judged.message == "GPU 0 2 uncorrected memory errors since the run began"


@pytest.mark.parametrize(
    ("rows", "text"),
    [((0, 2, True, False), "waits for its remap (2 remapped"), ((0, 0, False, True), "remapping a memory row failed")],
)
def test_rows_to_remap_fail(rows, text):
    judged = health.memory([SOUND], [card(rows=rows)], {})
    assert judged.verdict == "fail"
    assert text in judged.message


def test_what_should_be_readable_and_is_not_is_inconclusive_and_can_be_waived():
    hidden = card(
        ecc=None,
        uncorrected=None,
        rows=None,
        unreadable=dict.fromkeys(("ecc", "rows"), Unreadable("Insufficient Permissions", True)),
    )
    judged = health.memory([hidden], [hidden], {})
    assert judged.verdict == "inconclusive"
    assert "run as root" in judged.cause
    waived = health.memory([hidden], [hidden], {}, unavailable=frozenset({"ecc"}))
    assert (waived.verdict, waived.message) == ("pass", "1 promised GPUs answer; memory errors: waived in the rig file")
    uncounted = card(uncorrected=None)
    assert health.memory([uncounted], [uncounted], {}).verdict == "inconclusive"


def test_ecc_that_is_off_counts_nothing():
    off = card(ecc=False, uncorrected=None)
    assert health.memory([off], [off], {}).verdict == "pass"


# --- repeated packets --------------------------------------------------------------------------------------------------------------


def test_many_repeats_fail_and_a_few_are_a_warning():
    before = {"GPU 0 PCIe replays": 5, "GPU 0 link 2 replay": 0, "GPU 1 link 0 crc flit": 7}
    many = {"GPU 0 PCIe replays": 15, "GPU 0 link 2 replay": 40, "GPU 1 link 0 crc flit": 7}
    found = health.repeats(before, many, 60.0)
    assert kinds(found) == [("pcie-replays", "fail"), ("nvlink-errors", "fail")]
    assert found[0].subject == "GPU 0"
    assert found[0].detail == "10 PCIe replays in 60 s of load (10 a minute)"
    assert (found[1].subject, found[1].detail) == ("GPU 0 link 2", "40 NVLink errors (replay) in 60 s of load (40 a minute)")
    assert kinds(health.repeats(before, {"GPU 0 PCIe replays": 6}, 60.0)) == [("pcie-replays", "warn")]
    assert health.repeats(before, before, 60.0) == []


def test_a_link_that_was_trained_anew_fails_at_once():
    assert kinds(health.repeats({"GPU 0 link 2 recovery": 0}, {"GPU 0 link 2 recovery": 1}, 600.0)) == [("nvlink-errors", "fail")]


def test_checksum_errors_that_are_mended_are_told_in_one_line_and_fail_from_dcgms_limit_on():
    links = [f"GPU {gpu} link {link} crc data" for gpu in range(4) for link in range(18)]
    before = dict.fromkeys(links, 10)
    healthy = {label: count + (place % 3) for place, (label, count) in enumerate(before.items())}
    found = health.repeats(before, healthy, 0.4)
    assert [(each.kind, each.severity) for each in found] == [("nvlink-checksums", "info")]
    assert found[0].detail.startswith("72 mended checksum errors on 48 counters in 0 s, most on GPU 0 link 2 crc data: 2")
    broken = {**healthy, links[5]: 10 + 6001}
    assert kinds(health.repeats(before, broken, 60.0)) == [("nvlink-errors", "fail"), ("nvlink-checksums", "info")]
    assert health.repeats(before, broken, 60.0)[0].subject == "GPU 0 link 5"


def test_a_counter_that_is_new_or_was_reset_shows_no_growth():
    assert health.repeats({}, {"GPU 0 PCIe replays": 900}, 60.0) == []
    assert health.repeats({"GPU 0 PCIe replays": 900}, {"GPU 0 PCIe replays": 2}, 60.0) == []


def test_a_link_that_went_down_under_load_fails_although_its_counters_are_gone():
    before = frozenset({"GPU 0 link 0", "GPU 0 link 1"})
    assert health.repeats({"GPU 0 link 1 replay": 0}, {}, 60.0) == []
    [down] = health.went_down(before, frozenset({"GPU 0 link 0"}))
    assert (down.kind, down.severity, down.subject) == ("nvlink-down", "fail", "GPU 0 link 1")
    assert health.went_down(before, before | {"GPU 1 link 0"}) == []


def test_waived_counters_are_not_judged():
    after = {"GPU 0 PCIe replays": 900, "GPU 0 link 1 replay": 900}
    before = dict.fromkeys(after, 0)
    assert kinds(health.repeats(before, after, 60.0, unavailable=frozenset({"pcie"}))) == [("nvlink-errors", "fail")]
    assert kinds(health.repeats(before, after, 60.0, unavailable=frozenset({"nvlink_errors"}))) == [("pcie-replays", "fail")]


# --- kernel log ------------------------------------------------------------------------------------------------------------------------


def test_a_quiet_kernel_log_passes_and_a_hidden_one_grants_the_right():
    judged = health.kernel_log([], "12:00:00")
    assert (judged.verdict, judged.measured["xids"].value) == ("pass", 0)
    hidden = health.kernel_log(Unreadable("Operation not permitted", True), "")
    assert hidden.verdict == "inconclusive"
    assert "usermod -aG systemd-journal" in hidden.cause
    assert 'unavailable = ["xid"]' in hidden.cause


def test_a_fault_in_the_kernel_log_fails_and_a_programs_mistake_does_not():
    mistake = Finding("xid", "warn", "GPU 0", "Xid 31: MMU Fault")
    assert health.kernel_log([mistake], "12:00:00").verdict == "pass"
    judged = health.kernel_log([mistake, Finding("xid", "fail", "GPU 2", "Xid 79: fallen off the bus", "look")], "12:00:00")
    assert (judged.verdict, judged.message) == ("fail", "GPU 2 Xid 79: fallen off the bus")


# --- a machine as it stands ------------------------------------------------------------------------------------------------------------

SHEET = {
    "index": 3,
    "name": "NVIDIA GeForce RTX 3090",
    "lost": None,
    "reasons": ["sw_power_cap"],
    "utilization_pct": 98,
    "pcie_gen": 4,
    "pcie_max_gen": 4,
    "pcie_width": 16,
    "pcie_max_width": 16,
    "persistence": True,
    "mig": None,
    "enforced_power_limit_w": 250.0,
}


@pytest.mark.parametrize(
    ("different", "expected"),
    [
        ({}, []),
        ({"reasons": ["gpu_idle"], "pcie_gen": 1, "utilization_pct": 0}, []),
        ({"pcie_gen": 1}, [("pcie", "warn")]),
        ({"reasons": None, "utilization_pct": None, "pcie_gen": 1}, []),
        ({"pcie_width": 4}, [("pcie", "warn")]),
        ({"pcie_width": None, "pcie_gen": None}, []),
        ({"persistence": False}, [("persistence", "warn")]),
        ({"reasons": ["sw_power_cap", "hw_thermal_slowdown"]}, [("clocks", "warn")]),
        ({"mig": True}, [("mig", "info")]),
        ({"lost": "does not answer"}, [("gpu-lost", "fail")]),
    ],
)
def test_a_card_as_it_stands(different, expected):
    assert kinds(standing.card({**SHEET, **different})) == expected


def test_different_limits_on_cards_of_one_kind_are_told():
    other = {**SHEET, "index": 4, "enforced_power_limit_w": 350.0}
    (told,) = standing.limits([SHEET, other, {**other, "lost": "gone"}])
    assert told.detail == "cards of one kind enforce different power limits: 250 W on GPU 3; 350 W on GPU 4"
    assert standing.limits([SHEET, {**other, "name": "NVIDIA H200"}]) == []


def test_links_without_a_promise():
    found = standing.links({0: [True] * 4, 1: [True, False, True, True], 2: [False] * 4})
    assert [(each.subject, each.kind, each.severity) for each in found] == [
        ("GPU 1", "nvlink-partial", "warn"),
        ("GPU 2", "nvlink", "info"),
    ]


def test_memory_errors_that_cannot_be_compared_are_inconclusive():
    """The count was hidden when the run began, or began anew in the middle of it: what happened between is not known."""
    hidden = card(uncorrected=None, unreadable={"uncorrected": Unreadable("Unknown Error")})
    judged = health.memory([hidden], [card(uncorrected=4)], {})
    assert (judged.verdict, "could not be read when the run began" in judged.message) == ("inconclusive", True)
    judged = health.memory([card(uncorrected=4)], [card(uncorrected=0)], {})
    assert (judged.verdict, "went backwards" in judged.message) == ("inconclusive", True)
    assert health.memory([hidden], [card(uncorrected=4)], {}, unavailable=frozenset({"ecc"})).verdict == "pass"
