"""Statistics with their conditions attached."""

from __future__ import annotations

import math
import random

import pytest

from pytest_sglang.judge import stats


def test_median() -> None:
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([4, 1, 2, 3]) == 2.5
    with pytest.raises(ValueError, match="no values"):
        stats.median([])


def test_interval_is_the_t_interval_of_the_logarithms() -> None:
    from scipy import stats as reference

    rates = [38.1, 38.9, 37.8, 38.4, 39.0]
    logs = [math.log(rate) for rate in rates]
    low, high = reference.t.interval(0.99, 4, loc=sum(logs) / 5, scale=reference.sem(logs))
    found = stats.interval(rates, 0.99)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.median == 38.4
    assert found.n == 5


def test_rounds_far_from_the_others_are_pulled_in_from_ten_rounds_on() -> None:
    steady = [40.1, 39.9, 40.0, 40.2, 39.8, 40.05, 39.95, 40.15, 39.85]
    few = stats.interval([*steady[:8], 30.0], 0.99)
    many = stats.interval([*steady, 30.0], 0.99)
    assert few.low is not None
    assert many.low is not None
    assert few.low < 35
    assert 39.5 < many.low < 40
    logs = [math.log(rate) for rate in [*steady, 30.0]]
    near, kept = stats.pulled_in(logs)
    assert kept == 9
    assert list(near[:9]) == logs[:9]
    middle = stats.median(logs)
    reach = 2.5 * 1.4826 * stats.median([abs(each - middle) for each in logs])
    assert near[9] == pytest.approx(middle - reach)
    # more than half of the rounds equal tell no spread: then nothing is far
    equal = [math.log(40)] * 8 + [math.log(39), math.log(30)]
    assert stats.pulled_in(equal) == (equal, 10)


def test_interval_holds_the_true_median_as_often_as_it_says() -> None:
    chance = random.Random(1)
    hits = 0
    for _ in range(4000):
        found = stats.interval([40 * math.exp(chance.gauss(0, 0.05)) for _ in range(6)], 0.9)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 40 <= found.high
    assert 0.885 < hits / 4000 < 0.915


def test_one_rate_gives_no_interval_and_wrong_rates_are_refused() -> None:
    found = stats.interval([40.0], 0.99)
    assert (found.median, found.low, found.high) == (40.0, None, None)
    with pytest.raises(ValueError, match="no rates"):
        stats.interval([], 0.99)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive number"):
            stats.interval([40.0, wrong], 0.99)


def test_deviation_of_few_values() -> None:
    assert stats.deviation([5.0]) == 0.0
    assert stats.deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("q", "needed"), [(0.99, 459), (0.9, 44), (0.5, 7), (0.01, 459), (0.999, 4603)])
def test_samples_that_a_percentile_needs(q: float, needed: int) -> None:
    assert stats.samples_needed(q) == needed


@pytest.mark.parametrize(("q", "confidence"), [(0.0, 0.99), (1.0, 0.99), (99, 0.99), (0.5, 1.0)])
def test_impossible_percentiles_are_refused(q: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.samples_needed(q, confidence)


def test_a_percentile_must_be_earned() -> None:
    missing = stats.percentile([0.01] * 458, 0.99)
    assert missing.value is None
    assert missing.why_missing == "p99 is not earned: 458 clean samples, 459 needed for 99 % confidence"
    assert stats.percentile([0.01], 0.99).why_missing == "p99 is not earned: 1 clean sample, 459 needed for 99 % confidence"
    earned = stats.percentile(list(range(459)), 0.99)
    assert earned.value == pytest.approx(458 * 0.99)
    assert earned.why_missing is None


def test_percentile_interpolates_as_numpy_does() -> None:
    import numpy

    chance = random.Random(2)
    samples = [chance.random() for _ in range(777)]
    for q in (0.01, 0.5, 0.9, 0.99):
        assert stats.percentile(samples, q).value == pytest.approx(float(numpy.quantile(samples, q)))


def test_drift_agrees_with_a_linear_regression() -> None:
    from scipy import stats as reference

    rates = [50.0, 49.3, 48.9, 48.1, 47.4, 46.9, 46.6]
    line = reference.linregress(range(7), [math.log(rate) for rate in rates])
    found = stats.drift(rates)
    assert found.share == pytest.approx(math.expm1(line.slope * 6))
    assert found.p_value == pytest.approx(line.pvalue)
    assert found.significant
    assert found.low is not None
    assert found.high is not None
    # both ends of the line and as far again below the last round
    assert found.high > 50
    assert found.low < 46.6 * 46.6 / 50
    assert str(found).startswith("-7.1 % over the rounds (p = ")


def test_a_small_or_uncertain_trend_is_no_drift() -> None:
    small = stats.drift([40.0 * (1 - 0.001 * n) for n in range(8)])
    assert not small.significant
    assert small.p_value < 0.01
    assert small.low is None
    uncertain = stats.drift([40.0, 43.0, 38.0, 42.0, 44.0])
    assert abs(uncertain.share) > 0.02
    assert not uncertain.significant


def test_few_rounds_and_equal_rates_show_no_drift() -> None:
    assert not stats.drift([50.0, 45.0, 40.0, 35.0]).significant
    assert stats.drift([40.0] * 6).p_value == 1.0
    perfect = stats.drift([40.0 * math.exp(-0.01 * n) for n in range(8)])
    assert perfect.significant


def test_drift_is_rarely_seen_where_there_is_none() -> None:
    chance = random.Random(3)
    seen = sum(stats.drift([40 * math.exp(chance.gauss(0, 0.03)) for _ in range(8)]).significant for _ in range(3000))
    assert seen / 3000 < 0.016
