"""Judgements on NVLink pairs and on where the server runs."""

from __future__ import annotations

import pytest

from pytest_sglang.judge import links
from pytest_sglang.judge.hardware import FoundGpu, Unreadable
from pytest_sglang.judge.links import FoundLinks
from pytest_sglang.rig.model import GpuPromise, NvlinkPromise

SIX = tuple(FoundGpu(index=index, uuid=f"GPU-{index}") for index in range(6))
PROMISED = tuple(GpuPromise(index=index) for index in range(6))
PAIRS = NvlinkPromise(pairs=((0, 1), (2, 3), (4, 5)), links=4)
UP = FoundLinks(pairs={(0, 1): 4, (2, 3): 4, (4, 5): 4})


def judge(found, promise=PAIRS, cards=SIX, promised=PROMISED, **more):
    return links.nvlink(promise, promised, cards, found, **more)


def test_three_whole_pairs_pass():
    judged = judge(UP)
    assert judged.verdict == "pass"
    assert judged.message == "3 NVLink pairs are up with 4 links each"
    assert judged.measured["nvlink_links"].value == 4
    assert (judged.limit.op, judged.limit.value) == (">=", 4)


@pytest.mark.parametrize(
    ("pairs", "kind", "text", "count"),
    [
        ({(0, 1): 4, (4, 5): 4}, "nvlink-missing", "GPU 2-3 no NVLink link is up", 0),
        ({(0, 1): 4, (2, 3): 3, (4, 5): 4}, "nvlink-partial", "GPU 2-3 3 of 4 NVLink links are up", 3),
    ],
)
def test_dead_and_half_dead_bridges_fail_with_what_to_do(pairs, kind, text, count):
    judged = judge(FoundLinks(pairs=pairs))
    assert judged.verdict == "fail"
    assert [each.kind for each in judged.findings] == [kind]
    assert judged.message == text
    assert judged.measured["nvlink_links"].value == count
    assert "reseat it" in judged.cause


def test_wrong_partner_names_who_is_linked_to_whom():
    judged = judge(FoundLinks(pairs={(0, 1): 4, (2, 4): 4, (3, 5): 4}))
    assert [each.kind for each in judged.findings] == ["nvlink-partner", "nvlink-partner"]
    assert "GPU 2 is linked to GPU 4; GPU 3 is linked to GPU 5" in judged.message
    assert "name GPUs by uuid" in judged.cause


def test_promise_without_a_number_needs_one_link_and_more_than_promised_is_fine():
    loose = NvlinkPromise(pairs=((0, 1),))
    assert judge(FoundLinks(pairs={(0, 1): 1}), loose).verdict == "pass"
    assert judge(FoundLinks(), loose).verdict == "fail"
    assert judge(FoundLinks(pairs={(0, 1): 6}), NvlinkPromise(pairs=((0, 1),), links=4)).verdict == "pass"


def test_pairs_are_positions_and_follow_the_cards():
    promised = (GpuPromise(uuid="GPU-4"), GpuPromise(uuid="GPU-5"))
    promise = NvlinkPromise(pairs=((0, 1),), links=4)
    assert judge(UP, promise, promised=promised).verdict == "pass"
    assert judge(FoundLinks(pairs={(0, 1): 4}), promise, promised=promised).verdict == "fail"


def test_missing_card_or_entry_fails_its_pair():
    judged = judge(UP, cards=SIX[:5])
    assert judged.verdict == "fail"
    assert judged.message == "pair 4-5 GPU 5 is not there"
    judged = judge(UP, NvlinkPromise(pairs=((0, 7),)))
    assert "entry 7 of [[gpus]] is not there" in judged.message


def test_unreadable_links_are_inconclusive_and_can_be_waived():
    hidden = FoundLinks(pairs={(0, 1): 4, (4, 5): 4}, unreadable={3: Unreadable("Not Supported")})
    judged = judge(hidden)
    assert judged.verdict == "inconclusive"
    assert "NVLink of GPU 3 not readable: Not Supported" in judged.message
    assert judge(hidden, unavailable=frozenset({"nvlink"})).verdict == "pass"
    nothing = judge(FoundLinks(unreadable=dict.fromkeys(range(6), Unreadable("Not Supported"))))
    assert (nothing.verdict, nothing.quantity) == ("inconclusive", None)


# --- where the server runs -------------------------------------------------------------------------------------------------


def test_server_on_its_promised_pairs_passes_and_tells_of_custom_all_reduce():
    judged = links.placement([3, 2, 1, 0], (0, 1, 2, 3), UP)
    assert judged.verdict == "pass"
    assert judged.message == "the server runs on GPUs 0, 1, 2, 3; custom all-reduce is expected to be off"
    assert "to be on" in links.placement([0, 1], (0, 1), UP).message


def test_server_on_other_cards_fails():
    judged = links.placement([2, 3, 4, 5], (0, 1, 2, 3), UP)
    assert judged.verdict == "fail"
    assert judged.findings[0].kind == "placement"
    assert judged.message == "server runs on GPUs 2, 3, 4, 5, promised 0, 1, 2, 3"


def test_tp_2_across_pairs_fails_and_names_the_better_choice():
    judged = links.placement([1, 2], None, UP, all_gpus=range(6))
    assert judged.verdict == "fail"
    assert "GPU 1 is bridged to GPU 0, which does not serve; GPU 2 is bridged to GPU 3, which does not serve" in judged.message
    assert judged.findings[0].remedy == "choose GPUs 0, 1"


def test_no_better_choice_is_said():
    judged = links.placement([1, 2], None, UP)
    assert judged.findings[0].remedy == "no better choice of GPUs here"


def test_single_card_and_unbridged_cards_have_nothing_to_lie_on():
    assert links.placement([1], None, UP).verdict == "pass"
    judged = links.placement([0, 1, 2], None, FoundLinks())
    assert judged.verdict == "pass"


def test_hidden_placement_is_inconclusive_and_can_be_waived():
    hidden = Unreadable("the driver lists none of the server's processes")
    assert links.placement(hidden, (0, 1), UP).verdict == "inconclusive"
    assert links.placement(hidden, (0, 1), UP, unavailable=frozenset({"placement"})).verdict == "pass"


@pytest.mark.parametrize(
    ("serving", "pairs", "tp", "expected"),
    [
        ([0], {}, None, None),
        ([0, 1], {(0, 1): 4}, None, True),
        ([1, 2], {(0, 1): 4}, None, None),
        ([0, 1, 2, 3], {(0, 1): 4, (2, 3): 4}, 4, False),
        (list(range(4)), {(a, b): 18 for a in range(4) for b in range(a + 1, 4)}, 4, True),
        ([0, 1, 2], {(0, 1): 4}, 3, False),
        ([0, 1, 2, 3], {(0, 1): 4}, 2, None),
    ],
)
def test_custom_all_reduce_is_derived_from_the_links(serving, pairs, tp, expected):
    assert links.custom_all_reduce(serving, FoundLinks(pairs=pairs), tp) is expected


def test_partners_and_links_between():
    assert UP.partners(1) == (0,)
    assert UP.partners(0) == (1,)
    assert UP.between(3, 2) == 4
    assert links.best_gpus(9, UP, [5, 4]) == (4, 5)
