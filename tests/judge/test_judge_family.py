"""Many quantities share the false alarms, and a change is what its margin says it is."""

from __future__ import annotations

import random

import pytest

from pytest_sglang.judge import family, margins, regression
from pytest_sglang.judge.boots import Spread, learn
from pytest_sglang.judge.margins import Margin


def test_levels_are_holms() -> None:
    assert family.levels([0.5], [1.0]) == [0.01]
    assert family.levels([0.5, 0.5], [1.0, 1.0]) == [0.005, 0.005]
    # the surer one is called and leaves its share to the others
    assert family.levels([0.001, 0.5], [1.0, 1.0]) == [0.005, 0.01]
    assert family.levels([0.5, 0.0001], [3.0, 1.0]) == [0.01, 0.0025]
    with pytest.raises(ValueError, match="positive"):
        family.levels([0.5], [0.0])


def test_equal_things_are_called_worse_once_in_a_hundred_families() -> None:
    rng = random.Random(3)
    runs, called, naive = 20000, 0, 0
    for _ in range(runs):
        p_values = [rng.random() for _ in range(10)]
        levels = family.levels(p_values, margins.weights([True] * 2 + [False] * 8))
        called += any(p <= level for p, level in zip(p_values, levels, strict=True))
        naive += any(p <= 0.01 for p in p_values)
    assert 0.006 < called / runs < 0.013
    assert naive / runs > 0.08


def test_primary_quantities_have_half_of_the_alarms() -> None:
    assert margins.weights([True, False, False]) == [0.5, 0.25, 0.25]
    assert margins.weights([True, True]) == [0.5, 0.5]
    assert sum(margins.weights([False] * 7)) == pytest.approx(1.0)


def test_a_floor_is_a_margin_of_small_numbers() -> None:
    margin = Margin(name="x", title="x", unit="ms", up=False, max_loss=0.1, min_loss=0.02, floor=2.0)
    assert margin.losses(100.0) == (0.1, 0.02)
    assert margin.losses(10.0) == (0.2, 0.1)
    assert margin.losses(0.0) == (0.1, 0.02)


def test_a_loss_that_is_likely_and_not_sure_enough_among_many_is_no_alarm() -> None:
    before, after = [[40.0, 40.8, 39.2] * 5], [[39.0, 39.8, 38.2] * 5]
    exact = Spread(sd=0.0, degrees=40.0)
    alone = regression.compare(before, after, spread=exact)
    assert alone.outcome == "worse"
    assert alone.p_value is not None
    among = regression.compare(before, after, spread=exact, alarm=alone.p_value / 2)
    assert among.outcome == "undecided"
    assert among.verdict == "inconclusive"
    wide = regression.compare(before, after, spread=exact, alarm=alone.p_value / 2, max_loss=0.06)
    assert wide.outcome == "same"
    assert "worse by 2.5 % is likely" in wide.why


def test_shares_are_those_of_the_number_itself() -> None:
    exact = Spread(sd=0.0, degrees=40.0)
    longer = regression.compare([[100.0] * 5], [[125.0] * 5], spread=exact, higher_is_better=False)
    assert longer.why == "worse by 25.0 %, at least 25.0 %"
    lower = regression.compare([[100.0] * 5], [[80.0] * 5], spread=exact)
    assert lower.why == "worse by 20.0 %, at least 20.0 %"


def test_a_reading_that_may_be_wrong_widens_the_interval() -> None:
    before, after = [[40.0, 40.1, 39.9] * 5], [[40.0, 40.1, 39.9] * 5]
    exact = Spread(sd=0.0, degrees=40.0)
    plain = regression.compare(before, after, spread=exact)
    rough = regression.compare(before, after, spread=exact, error_sd=(0.1, 0.1))
    assert plain.outcome == "same"
    assert rough.outcome == "undecided"
    assert rough.more_boots is None or rough.more_boots > 10


def test_a_drift_within_a_boot_decides_nothing() -> None:
    steady, falling = [40.0 + 0.05 * (-1) ** number for number in range(12)], [42.0 - 0.3 * number for number in range(12)]
    exact = Spread(sd=0.0, degrees=40.0)
    assert regression.compare([steady], [steady], spread=exact).outcome == "same"
    for before, after in (([steady], [falling]), ([falling], [steady])):
        found = regression.compare(before, after, spread=exact)
        assert found.outcome == "undecided"
        assert "drift by -" in found.why


def test_a_single_round_has_the_noise_of_earlier_boots() -> None:
    rng = random.Random(1)
    spread = learn([[[40.0 * (1 + rng.gauss(0, 0.02)) for _ in range(10)] for _ in range(8)]])
    assert 0.015 < spread.noise_sd < 0.025
    found = regression.compare([[40.0]], [[40.0] * 2], spread=spread)
    assert found.low is not None
    assert found.low < -0.05


def test_more_rounds_than_history_had_do_not_tell_how_far_boots_differ() -> None:
    rng = random.Random(2)
    few = learn([[[40.0 * (1 + rng.gauss(0, 0.04)) for _ in range(5)] for _ in range(10)]])
    long = [[40.0 * (1 + rng.gauss(0, 0.04)) for _ in range(31)] for _ in range(2)]
    found = regression.compare(long[:1], long[1:], spread=few)
    assert found.low is not None
    assert found.high is not None
    # were the boots known to be alike, 31 rounds of 4 % would give less than ± 3 %
    assert found.high - found.low > 0.1
    assert regression.ask(0.04, few)[1] != 1
