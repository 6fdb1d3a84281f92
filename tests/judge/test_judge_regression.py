"""Losses are called when they are there and not when they are not; boots that differ are asked for, not averaged away."""

from __future__ import annotations

import math
import random

import pytest

from pytest_sglang.judge import regression
from pytest_sglang.judge.regression import Spread


def boots(rng: random.Random, count: int, rounds: int, level: float, noise: float, between: float = 0.0) -> list[list[float]]:
    return [
        [level * math.exp(offset + rng.gauss(0, noise)) for _ in range(rounds)]
        for offset in [rng.gauss(0, between) for _ in range(count)]
    ]


def campaign(
    loss: float, runs: int, *, between: float = 0.0, history: int = 30, seed: int = 7
) -> tuple[dict[str, float], list[int]]:
    """Shares of the outcomes over simulated pairs, each measured with as many rounds and boots as the tool asks for."""
    rng = random.Random(seed)
    told: dict[str, float] = {}
    rounds_asked = []
    for _ in range(runs):
        earlier = [boots(rng, history, 10, 40.0, 0.02, between)]
        rounds, count = regression.ask(0.02, regression.learn(earlier))
        assert rounds is not None
        assert count is not None
        rounds_asked.append(rounds * count)
        before = boots(rng, count, rounds, 40.0, 0.02, between)
        after = boots(rng, count, rounds, 40.0 * (1 - loss), 0.02, between)
        found = regression.compare(before, after, spread=regression.learn([*earlier, before, after]))
        told[found.outcome] = told.get(found.outcome, 0) + 1 / runs
    return told, sorted(rounds_asked)


def test_a_loss_of_3_percent_is_found_and_none_is_invented() -> None:
    found, rounds = campaign(0.03, 300)
    assert found["worse"] >= 0.93, found
    assert 13 <= rounds[len(rounds) // 2] <= 20
    none, _ = campaign(0.0, 300)
    assert none.get("worse", 0.0) <= 0.02, none
    assert none["same"] >= 0.9, none


def test_boots_that_differ_are_asked_for() -> None:
    spread = Spread(sd=0.01, degrees=20.0)
    rounds, count = regression.ask(0.02, spread)
    assert rounds is not None
    assert count is not None
    assert count > 1
    one = regression.compare([[40.0, 40.1, 39.9] * 5], [[39.0, 39.1, 38.9] * 5], spread=spread)
    assert one.outcome == "undecided"
    assert "boots" in one.why
    assert one.verdict == "inconclusive"


def test_without_history_the_spread_is_assumed_and_said_so() -> None:
    spread = regression.learn([])
    assert spread == Spread(sd=regression.ASSUMED_BOOT_SD, degrees=None)
    found = regression.compare([[40.0, 40.2, 39.8] * 5], [[39.0, 39.2, 38.8] * 5], spread=spread)
    assert found.outcome == "undecided"
    assert "is assumed, 2 %" in found.why
    large = regression.compare([[40.0, 40.2, 39.8] * 5], [[34.0, 34.2, 33.8] * 5], spread=spread)
    assert large.outcome == "worse"
    assert large.verdict == "fail"


def test_better_same_and_lower_is_better() -> None:
    exact = Spread(sd=0.0, degrees=30.0)
    up = regression.compare([[40.0, 40.1, 39.9]], [[44.0, 44.1, 43.9]], spread=exact)
    assert (up.outcome, up.verdict) == ("better", "pass")
    same = regression.compare([[40.0, 40.1, 39.9]], [[40.0, 40.1, 39.9]], spread=exact)
    assert (same.outcome, same.verdict) == ("same", "pass")
    slower = regression.compare([[90.0, 90.1, 89.9]], [[99.0, 99.1, 98.9]], spread=exact, higher_is_better=False)
    assert slower.outcome == "worse"
    assert slower.change is not None
    assert slower.change < 0


def test_a_certain_but_tiny_loss_is_shown_and_not_called() -> None:
    found = regression.compare([[40.0, 40.01, 39.99] * 10], [[39.8, 39.81, 39.79] * 10], spread=Spread(sd=0.0, degrees=50.0))
    assert found.outcome == "same"
    assert "for certain, which is below 1 %" in found.why


def test_starts_are_single_values_and_ask_for_starts() -> None:
    spread = regression.learn([[[70.0], [72.0], [69.0], [71.0]]])
    assert spread.degrees == 3
    found = regression.compare([[70.0]], [[78.0]], spread=spread, higher_is_better=False, max_loss=0.15)
    assert found.outcome == "undecided"
    assert "starts are needed" in found.why
    assert regression.compare([[70.0]], [[140.0]], spread=spread, higher_is_better=False).outcome == "worse"
    blind = regression.compare([[70.0]], [[71.0]], spread=regression.learn([]))
    assert blind.low is None
    assert blind.outcome == "undecided"


def test_nothing_to_compare_and_bad_values() -> None:
    spread = regression.learn([])
    assert regression.compare([], [[1.0, 1.0]], spread=spread).why == "no usable round before"
    assert regression.compare([[1.0, 1.0]], [[]], spread=spread).why == "no usable round after"
    with pytest.raises(ValueError, match="positive number"):
        regression.compare([[0.0, 1.0]], [[1.0, 1.0]], spread=spread)


def test_the_spread_between_boots_is_what_it_is() -> None:
    rng = random.Random(5)
    learnt = [regression.learn([boots(rng, 12, 10, 40.0, 0.02, 0.015)]).sd for _ in range(200)]
    assert 0.0125 < sum(learnt) / len(learnt) < 0.0165
    assert regression.learn([boots(rng, 40, 10, 40.0, 0.02)]).sd < 0.006


def test_hopeless_scatter_is_said_to_be_so() -> None:
    assert regression.ask(0.5, Spread(sd=0.3, degrees=5.0)) == (None, None)
    found = regression.compare([[10.0, 90.0]], [[10.0, 90.0]], spread=Spread(sd=0.3, degrees=5.0))
    assert "scatter too much" in found.why


def test_a_large_change_takes_fewer_boots_than_a_small_one() -> None:
    """Three boots on either side: a loss of 18 % is likely but not certain, and asks for a few more, not for what 3 % would take."""
    before = [[100.0, 100.5, 99.5], [103.0, 103.5, 102.5], [101.0, 101.5, 100.5]]
    spread = regression.learn([before])
    large = regression.compare(before, [[each * 0.82 for each in boot] for boot in before], spread=spread, alarm=0.0001)
    small = regression.compare(before, before, spread=spread, alarm=0.0001)
    assert (large.outcome, small.outcome) == ("undecided", "undecided")
    assert "worse by 18.0 % is likely, but too few boots to be certain" in large.why
    assert large.more_boots is not None
    assert small.more_boots is None or large.more_boots < small.more_boots
