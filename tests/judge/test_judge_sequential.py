"""The stopping rule: its decisions. Its error rates: test_judge_campaign.py."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest

from pytest_sglang.judge.sequential import Decision, Sequential, look_rounds, shares


def feed(sequential: Sequential, rates: Iterable[float]) -> Decision | None:
    for rate in rates:
        decision = sequential.add(rate)
        if decision is not None:
            return decision
    return None


# --- decisions ------------------------------------------------------------------------------------------------------------


def test_clear_cases_are_decided_at_the_first_look() -> None:
    passed = feed(Sequential(38.0), [40.1, 39.9, 40.0, 40.2, 39.8])
    assert passed is not None
    assert (passed.verdict, passed.n, passed.median, passed.needs_more, passed.reason) == ("pass", 5, 40.0, None, "")
    assert passed.ci_low is not None
    assert passed.ci_low >= 38
    failed = feed(Sequential(42.0), [40.1, 39.9, 40.0, 40.2, 39.8])
    assert failed is not None
    assert failed.verdict == "fail"
    assert failed.ci_high is not None
    assert failed.ci_high < 42


def test_nothing_is_decided_between_looks() -> None:
    sequential = Sequential(38.0)
    assert sequential.looks == (5, 8, 13, 21, 30)
    assert sequential.current() is None
    assert feed(sequential, [41, 37, 40, 36.5, 39.5]) is None
    looked = sequential.current()
    assert looked is not None
    assert looked.verdict == "undecided"
    assert sequential.add(45.0) is None
    assert sequential.current() is looked


def test_used_up_rounds_are_undecided_and_tell_how_many_more() -> None:
    chance = random.Random(4)
    sequential = Sequential(38.0, max_rounds=8)
    decision = feed(sequential, [38.6 * math.exp(chance.gauss(0, 0.03)) for _ in range(8)])
    assert decision is not None
    assert (decision.verdict, decision.n, decision.marginal) == ("undecided", 8, False)
    assert decision.needs_more is not None
    assert 3 <= decision.needs_more <= 20
    assert decision.reason.startswith("the limit 38 tok/s lies within the interval")
    with pytest.raises(ValueError, match="decided already"):
        sequential.add(40.0)


def test_as_many_more_rounds_as_foretold_decide_it() -> None:
    wave = [0.05, -0.05, 0.03, -0.03, 0.02, -0.02, 0.01, -0.01]
    rates = [39.0 * math.exp(wave[n % 8]) for n in range(400)]
    first = feed(Sequential(38.0, min_rounds=8, max_rounds=8), rates)
    assert first is not None
    assert first.needs_more is not None
    again = feed(Sequential(38.0, min_rounds=8 + first.needs_more, max_rounds=8 + first.needs_more), rates)
    assert again is not None
    assert again.verdict == "pass"
    short = feed(Sequential(38.0, min_rounds=8 + first.needs_more // 2, max_rounds=8 + first.needs_more // 2), rates)
    assert short is not None
    assert short.verdict == "undecided"


def test_at_the_limit_no_number_of_rounds_would_decide() -> None:
    decision = feed(
        Sequential(40.0, max_rounds=8, tolerance=0.0),
        [39.0, 40.0, 41.0, 40.0 * 40.0 / 39.0 / 41.0 * 40.0, 40, 39, 41, 40 * 1600 / 1599],
    )
    assert decision is not None
    assert decision.needs_more is None
    nearly = feed(Sequential(40.0, max_rounds=6, min_rounds=6, tolerance=0.0), [38.0, 42.1, 38.0, 42.1, 38.0, 42.15])
    assert nearly is not None
    assert nearly.needs_more is None or nearly.needs_more > 1000


def test_an_interval_within_the_tolerance_ends_it_as_marginal_but_not_before_ten_rounds() -> None:
    sequential = Sequential(40.0)
    assert feed(sequential, [40.02, 39.98, 40.05, 39.97, 40.01]) is None
    looked = sequential.current()
    assert looked is not None
    assert looked.marginal
    decision = feed(sequential, [40.02, 39.98, 40.05, 39.97, 40.01, 39.99, 40.0, 40.03])
    assert decision is not None
    assert (decision.verdict, decision.marginal, decision.n) == ("undecided", True, 13)


def test_a_wide_interval_around_the_limit_is_not_marginal() -> None:
    decision = feed(Sequential(40.0, max_rounds=5), [37.0, 43.0, 40.0, 38.0, 42.0])
    assert decision is not None
    assert (decision.verdict, decision.marginal, decision.unsettled) == ("undecided", False, False)


def test_what_may_be_falling_is_not_marginal() -> None:
    wiggle = (0.9, -0.9, 0.7, -0.8, 0.4)
    falling = [40.5 - 0.025 * n + wiggle[n % 5] for n in range(30)]
    decision = feed(Sequential(40.0), falling)
    assert decision is not None
    assert (decision.verdict, decision.marginal, decision.unsettled) == ("undecided", False, True)
    assert not decision.drift.significant
    assert decision.reason.startswith("the rate may be falling: -2.")
    rising = feed(Sequential(40.0), falling[::-1])
    assert rising is not None
    assert (rising.verdict, rising.marginal, rising.unsettled) == ("undecided", True, False)


def test_without_a_limit_it_stops_with_the_interval() -> None:
    decision = feed(Sequential(None, min_rounds=5), [40.1, 39.9, 40.0, 40.2, 39.8])
    assert decision is not None
    assert (decision.verdict, decision.n, decision.reason, decision.marginal) == ("undecided", 5, "no limit is given", False)
    assert decision.ci_low is not None
    assert decision.needs_more is None
    # the whole error budget is spent on the one look: narrower than with a limit
    with_limit = feed(Sequential(20.0), [40.1, 39.9, 40.0, 40.2, 39.8])
    assert with_limit is not None
    assert with_limit.ci_low is not None
    assert with_limit.ci_low < decision.ci_low


def test_one_round_gives_no_interval() -> None:
    decision = feed(Sequential(38.0, min_rounds=1, max_rounds=1), [40.0])
    assert decision is not None
    assert (decision.verdict, decision.ci_low, decision.reason) == ("undecided", None, "one round gives no interval")
    assert decision.needs_more == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0.0}, "limit 0.0 tok/s"),
        ({"limit": math.nan}, "limit nan tok/s"),
        ({"limit": 38.0, "confidence": 1.0}, "confidence 1.0"),
        ({"limit": 38.0, "min_rounds": 0}, "0 to 30 rounds"),
        ({"limit": 38.0, "min_rounds": 9, "max_rounds": 8}, "9 to 8 rounds"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequential(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        Sequential(38.0).add(rate)


@pytest.mark.parametrize(
    ("first", "last", "looks"),
    [
        (5, 5, (5,)),
        (5, 6, (5, 6)),
        (5, 8, (5, 8)),
        (5, 9, (5, 9)),
        (5, 10, (5, 8, 10)),
        (5, 20, (5, 8, 13, 20)),
        (5, 30, (5, 8, 13, 21, 30)),
        (1, 10, (1, 2, 3, 5, 8, 10)),
        (2, 3, (2, 3)),
    ],
)
def test_looks_are_fixed_in_advance(first: int, last: int, looks: tuple[int, ...]) -> None:
    assert look_rounds(first, last) == looks


@pytest.mark.parametrize("looks", range(1, 12))
def test_every_look_has_a_part_of_the_error_budget(looks: int) -> None:
    assert len(shares(looks)) == looks
    assert min(shares(looks)) > 0
    # what overlaps between looks is known by simulation: test_judge_campaign.py
    assert 1 <= sum(shares(looks)) <= 1.1


# --- drift ----------------------------------------------------------------------------------------------------------------

WIGGLE = (0.05, -0.04, 0.02, -0.03, 0.0, 0.03)


def cooling(n: int, fall: float, within: float, level: float = 39.0) -> list[float]:
    """A rate that falls by ``fall`` within some rounds and then stays."""
    return [level * math.exp(fall * math.exp(-i / within)) + WIGGLE[i % 6] for i in range(n)]


def test_drift_near_the_limit_is_not_averaged_away() -> None:
    falling = [40.0 - 0.35 * n + WIGGLE[n % 6] for n in range(8)]
    sequential = Sequential(38.0, max_rounds=8)
    decision = feed(sequential, falling)
    assert decision is not None
    assert decision.verdict == "undecided"
    assert decision.drift.significant
    assert decision.reason.startswith("the rate drifts: -")
    assert decision.needs_more is None
    assert decision.ci_low is not None
    assert decision.ci_high is not None
    assert decision.ci_low < 38 < 40 < decision.ci_high


def test_drift_far_from_the_limit_decides() -> None:
    falling = [50.0 - 0.4 * n + WIGGLE[n % 6] for n in range(5)]
    decision = feed(Sequential(38.0), falling)
    assert decision is not None
    assert (decision.verdict, decision.drift.significant) == ("pass", True)
    assert decision.ci_low is not None
    assert 38 <= decision.ci_low < falling[-1]


def test_after_settling_the_series_begins_anew() -> None:
    sequential = Sequential(38.0)
    decision = feed(sequential, cooling(30, 0.25, 3.0))
    assert decision is not None
    assert decision.verdict == "pass"
    assert decision.discarded == 8
    assert decision.n < 22
    assert decision.median == pytest.approx(39.0, rel=0.01)


def test_a_trend_at_one_look_only_costs_no_rounds() -> None:
    rates = [38.9, 38.6, 38.3, 38.1, 37.9, 38.9, 38.7, 38.8]
    sequential = Sequential(37.5, max_rounds=20)
    assert feed(sequential, rates[:5]) is None
    looked = sequential.current()
    assert looked is not None
    assert looked.drift.significant
    decision = sequential.add(rates[5]) or sequential.add(rates[6]) or sequential.add(rates[7])
    last = sequential.current()
    assert decision is None or decision is last
    assert last is not None
    assert (last.n, last.discarded) == (8, 0)
    assert not last.drift.significant


def test_no_new_series_where_too_few_rounds_are_left() -> None:
    decision = feed(Sequential(38.0, max_rounds=10), [41.0 - 0.4 * n + WIGGLE[n % 6] for n in range(10)])
    assert decision is not None
    assert (decision.n, decision.discarded, decision.verdict) == (10, 0, "undecided")
