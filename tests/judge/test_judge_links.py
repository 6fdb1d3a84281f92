"""Judgements on NVLink pairs, and which cards are joined best."""

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
        ({(0, 1): 4, (2, 3): 3, (4, 5): 4}, "nvlink-partial", "GPU 2-3 only 3 of 4 NVLink links are up", 3),
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
    told = judge(FoundLinks(pairs={(0, 1): 18}), loose).message
    assert told == "1 NVLink pairs are up; link count not promised: any link up is enough; 18 seen"
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


def test_of_equally_linked_cards_the_nearest_are_best():
    levels = {(0, 1): 50, (0, 2): 10, (0, 3): 40, (1, 2): 40, (1, 3): 40, (2, 3): 40}
    assert links.best_gpus(2, FoundLinks(levels=levels), range(4)) == (0, 2)
    assert links.best_gpus(2, FoundLinks(levels=levels, pairs={(1, 3): 1}), range(4)) == (1, 3)
    assert links.best_gpus(2, FoundLinks(levels={(0, 2): 50}), range(3)) == (0, 2)


@pytest.mark.parametrize("status", ["CNS", "GNS", "TNS", "DR", "NS"])
def test_links_that_no_program_may_use_fail(status):
    judged = judge(FoundLinks(pairs=UP.pairs, p2p={(0, 1): "OK", (2, 3): status, (4, 5): "OK"}))
    assert (judged.verdict, [each.kind for each in judged.findings]) == ("fail", ["nvlink-p2p"])
    assert f"GPU 2-3 the links are up, but NVLink peer-to-peer is off (status {status}" in judged.message


@pytest.mark.parametrize("p2p", [{}, {(2, 3): "U"}, {(2, 3): "OK"}])
def test_a_peer_status_that_cannot_be_read_is_no_fault(p2p):
    assert judge(FoundLinks(pairs=UP.pairs, p2p=p2p)).verdict == "pass"
