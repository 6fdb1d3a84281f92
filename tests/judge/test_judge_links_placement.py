"""Judgements on where the server runs: promised cards, tensor parallel groups, custom all-reduce, strangers."""

from __future__ import annotations

import pytest

from pytest_sglang.judge import placement as judge
from pytest_sglang.judge.hardware import Unreadable
from pytest_sglang.judge.links import FoundLinks
from pytest_sglang.judge.placement import AllReduce, Foreign

UP = FoundLinks(pairs={(0, 1): 4, (2, 3): 4, (4, 5): 4})
SWITCHED = FoundLinks(pairs={(a, b): 18 for a in range(8) for b in range(a + 1, 8)})
OFF = AllReduce(state="off", detail="more than two cards without NVLink between every two")


def kinds(judged):
    return [(each.kind, each.severity) for each in judged.findings]


def test_server_on_its_promised_pairs_passes_and_tells_of_custom_all_reduce():
    judged = judge.placement([3, 2, 1, 0], (0, 1, 2, 3), UP)
    assert judged.verdict == "pass"
    assert judged.message == "the server runs on GPUs 0, 1, 2, 3; custom all-reduce is expected to be off"
    assert (judged.measured["gpus"].value, judged.limit.value) == ("0, 1, 2, 3", "0, 1, 2, 3")
    assert "to be on" in judge.placement([0, 1], (0, 1), UP).message


def test_server_on_other_cards_fails_and_names_what_to_set():
    judged = judge.placement([2, 3, 4, 5], (0, 1, 2, 3), UP)
    assert judged.verdict == "fail"
    assert judged.findings[0].kind == "placement"
    assert judged.message == "server runs on GPUs 2, 3, 4, 5, promised 0, 1, 2, 3"
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in judged.cause


def test_tp_2_across_pairs_fails_and_names_the_better_choice():
    judged = judge.placement([1, 2], None, UP, tp=2, all_gpus=range(6))
    assert judged.verdict == "fail"
    assert "GPU 1 is bridged to GPU 0, which is not in its group; GPU 2 is bridged to GPU 3" in judged.message
    assert judged.findings[0].remedy == "choose GPUs 0, 1: CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0,1"


def test_no_better_choice_is_said():
    assert judge.placement([1, 2], None, UP).findings[0].remedy == "no better choice of GPUs here"


def test_single_card_and_unbridged_cards_have_nothing_to_lie_on():
    assert judge.placement([1], None, UP).verdict == "pass"
    assert judge.placement([0, 1, 2], None, FoundLinks()).verdict == "pass"


def test_hidden_placement_is_inconclusive():
    hidden = Unreadable("the driver lists none of the server's processes")
    assert judge.placement(hidden, (0, 1), UP).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("serving", "tp", "expected"),
    [
        ([0, 1, 2, 3], 2, ((0, 1), (2, 3))),
        ([5, 4, 1, 0], 2, ((0, 1), (4, 5))),
        ([0, 1, 2, 3], 4, ((0, 1, 2, 3),)),
        ([0, 1, 2], 2, ((0, 1, 2),)),
        ([0, 1], None, ((0, 1),)),
        ([3], 1, ((3,),)),
    ],
)
def test_tensor_parallel_groups_take_the_cards_in_order(serving, tp, expected):
    assert judge.groups(serving, tp) == expected


def test_data_parallel_groups_are_judged_one_by_one():
    assert judge.placement([0, 1, 2, 3], None, UP, tp=2).verdict == "pass"
    judged = judge.placement([0, 1, 2, 4], None, UP, tp=2, all_gpus=range(6))
    assert [each.detail.split(":")[0] for each in judged.findings] == ["tensor parallel group on GPUs 2, 4"]
    # the same four cards as one group of four: two of them have no partner in it
    assert kinds(judge.placement([0, 1, 2, 4], None, UP, tp=4)) == [("placement-pairs", "fail")]


# --- custom all-reduce -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serving", "links", "tp", "expected"),
    [
        ([0, 1], UP, 2, True),
        ([0, 1, 2, 3], UP, 4, False),
        ([0, 1, 2, 3], UP, 2, True),
        ([0, 1, 2, 4], UP, 2, None),
        (list(range(8)), SWITCHED, 8, True),
        ([0], UP, 1, None),
        ([1, 2], UP, 2, None),
    ],
)
def test_its_state_is_derived_from_the_links_of_each_group(serving, links, tp, expected):
    assert judge.expected_all_reduce(serving, links, tp) is expected


def test_off_at_tp_4_over_two_pairs_is_by_design():
    judged = judge.placement([0, 1, 2, 3], (0, 1, 2, 3), UP, tp=4, all_reduce=OFF)
    assert judged.verdict == "pass"
    assert kinds(judged) == [("custom-all-reduce", "info")]
    assert judged.message.endswith("custom all-reduce is off, as expected without full NVLink")


def test_off_at_tp_2_inside_a_pair_is_a_fault_with_its_reason():
    failed = AllReduce(state="off", detail="its set-up failed: invalid literal for int() with base 10: 'GPU-2e7d'")
    judged = judge.placement([0, 1], (0, 1), UP, tp=2, all_reduce=failed)
    assert judged.verdict == "fail"
    assert "invalid literal for int()" in judged.message
    assert "plain indices" in judged.cause


def test_on_at_tp_2_inside_a_pair_is_as_expected():
    judged = judge.placement([0, 1], (0, 1), UP, tp=2, all_reduce=AllReduce(state="on", would_tell=True))
    assert (judged.verdict, judged.findings) == ("pass", ())
    assert judged.message.endswith("custom all-reduce is on, as its links let expect")


def test_a_version_that_would_tell_and_does_not_is_a_warning_and_a_silent_one_is_nothing():
    assert kinds(judge.placement([0, 1], None, UP, tp=2, all_reduce=AllReduce(would_tell=True))) == [("custom-all-reduce", "warn")]
    assert judge.placement([0, 1], None, UP, tp=2, all_reduce=AllReduce()).findings == ()


def test_switched_off_by_the_flag_is_a_warning():
    judged = judge.placement([0, 1], None, UP, tp=2, all_reduce=AllReduce(state=None, by_flag=True, would_tell=True))
    assert (judged.verdict, kinds(judged)) == ("pass", [("custom-all-reduce", "warn")])
    assert "--disable-custom-all-reduce" in judged.findings[0].detail


def test_on_without_full_nvlink_is_a_warning():
    judged = judge.placement([0, 1, 2, 3], None, UP, tp=4, all_reduce=AllReduce(state="on"))
    assert (judged.verdict, kinds(judged)) == ("pass", [("custom-all-reduce", "warn")])
    assert "wrong sums" in judged.findings[0].detail


# --- strangers -----------------------------------------------------------------------------------------------------------------------

OLLAMA = Foreign(uuid="GPU-1", index=1, pid=77, name="ollama", used_bytes=1312 * 2**20, kind="compute")
XORG = Foreign(uuid="GPU-0", index=0, pid=11, name="Xorg", used_bytes=None, kind="graphics")


def test_a_stranger_fails_only_where_the_cards_are_promised_to_be_the_servers_alone():
    judged = judge.placement([0, 1], (0, 1), UP, strangers=[XORG, OLLAMA], exclusive=True)
    assert (judged.verdict, kinds(judged)) == ("fail", [("foreign-process", "info"), ("foreign-process", "fail")])
    assert judged.message == "GPU 1 process 77 (ollama, 1312 MiB) is not the server's"
    shared = judge.placement([0, 1], (0, 1), UP, strangers=[XORG, OLLAMA])
    assert (shared.verdict, kinds(shared)[1]) == ("pass", ("foreign-process", "warn"))


def test_a_display_server_is_information():
    judged = judge.placement([0, 1], (0, 1), UP, strangers=[XORG], exclusive=True)
    assert (judged.verdict, judged.findings[0].severity) == ("pass", "info")
    assert judged.findings[0].detail.endswith("is not the server's: a display server")
