"""Several limits on one check: the worst one speaks, and none of what was measured is lost."""

from __future__ import annotations

import pytest

from pytest_sglang.judge.verdict import Judgement, combine
from pytest_sglang.record.run import Measurement
from pytest_sglang.record.values import Finding

GOOD = Judgement(verdict="pass", message="good", quantity="a", measured={"a": Measurement(1.0, "s")})
CLOSE = Judgement(verdict="pass", message="close", quantity="b", marginal=True, measured={"b": Measurement(2.0, "s")})
OPEN = Judgement(verdict="inconclusive", message="open", inconclusive_because="too few rounds")
BAD = Judgement(verdict="fail", message="bad", quantity="c", cause="hot", findings=(Finding("k", "fail", "x", "y"),))


def test_of_nothing_nothing_is_concluded() -> None:
    judged = combine([])
    assert (judged.verdict, judged.inconclusive_because) == ("inconclusive", "nothing was measured")


@pytest.mark.parametrize(
    ("judgements", "verdict", "message"),
    [
        ([GOOD], "pass", "good"),
        ([GOOD, CLOSE], "pass", "close"),
        ([CLOSE, GOOD, OPEN], "inconclusive", "open"),
        ([GOOD, OPEN, BAD, CLOSE], "fail", "bad"),
    ],
)
def test_the_worst_one_speaks_whatever_the_order(judgements: list[Judgement], verdict: str, message: str) -> None:
    for order in (judgements, judgements[::-1]):
        judged = combine(order)
        assert (judged.verdict, judged.message) == (verdict, message)
        assert judged.marginal == (CLOSE in judgements)
        assert judged.measured == {name: value for each in judgements for name, value in each.measured.items()}


def test_two_failures_are_both_told_and_keep_cause_and_findings() -> None:
    other = Judgement(verdict="fail", message="worse")
    judged = combine([BAD, GOOD, other])
    assert judged.message == "bad; worse"
    assert (judged.quantity, judged.cause, judged.findings) == ("c", "hot", BAD.findings)
