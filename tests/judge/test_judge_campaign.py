"""The error rates of the stopping rule, by simulation: the campaign of benchmarks/statistics in small, and rules that it must catch."""

from __future__ import annotations

import importlib
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang.judge import sequential, stats
from pytest_sglang.judge.sequential import Sequential

FOLDER = Path(__file__).parents[2] / "benchmarks" / "statistics"
RUNS = 4000


@pytest.fixture(scope="module")
def campaign() -> Iterator[Any]:
    """Modules ``rule`` and ``cases`` of benchmarks/statistics."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("cases")
    finally:
        sys.path.remove(str(FOLDER))


def missed(campaign: Any, *kinds: str, runs: int = RUNS) -> list[str]:
    """Targets that do not hold, with room for what so few runs may scatter (three standard deviations)."""
    room = 3 * math.sqrt(0.01 * 0.99 / runs)
    found = []
    for case in campaign.cases():
        if not case.targets or (kinds and case.kind not in kinds):
            continue
        ran = case.run(campaign.Rule(), runs, seed=7)
        limits = {"wrong": (ran["wrong"], 0.01 + room), "undecided": (ran["undecided"], 0.05 + 2 * room)}
        limits |= {"median 5": (ran["rounds_median"], 5), "95 % within 8": (ran["rounds_p95"], 8)}
        found += [f"{case.name}: {name} {limits[name][0]:.4g}" for name in case.targets if limits[name][0] > limits[name][1]]
    return found


def test_the_campaign_holds(campaign: Any) -> None:
    assert missed(campaign) == []


@pytest.mark.parametrize("settings", [(5, 30), (3, 12), (5, 9), (8, 40), (1, 6), (5, 5)])
def test_the_simulated_rule_is_the_products_rule(campaign: Any, settings: tuple[int, int]) -> None:
    import numpy

    first, last = settings
    rule = campaign.Rule(min_rounds=first, max_rounds=last)
    chance = random.Random(first * 100 + last)
    names = {"pass": campaign.PASS, "fail": campaign.FAIL}
    for _ in range(150):
        level, noise = chance.choice([0.03, 0.0, -0.03, 0.01]), chance.choice([0.003, 0.01, 0.03])
        course, within = chance.choice([0.0, 0.06, -0.05]), chance.choice([2, 5, 20])
        logs = [
            level + chance.gauss(0, noise) + course * math.exp(-n / within) - (0.1 if chance.random() < 0.07 else 0.0)
            for n in range(last)
        ]
        series = Sequential(38.0, min_rounds=first, max_rounds=last)
        decision = next(found for each in logs if (found := series.add(38.0 * math.exp(each))) is not None)
        expected = names.get(decision.verdict, campaign.MARGINAL if decision.marginal else campaign.UNDECIDED)
        found = rule.run(numpy.array([logs]))
        assert (found.verdict[0], found.rounds[0], found.discarded[0]) == (expected, len(series.rates), decision.discarded)


@pytest.mark.parametrize(
    ("first", "last"), [(5, 5), (5, 6), (5, 8), (5, 10), (5, 13), (5, 20), (5, 60), (3, 30), (8, 30), (10, 100)]
)
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_at_the_limit_the_errors_stay_within_the_budget_whatever_the_settings(
    campaign: Any, confidence: float, first: int, last: int
) -> None:
    import numpy

    runs = 20_000
    logs = 0.05 * numpy.random.default_rng(3).standard_normal((runs, last))
    found = campaign.Rule(confidence=confidence, min_rounds=first, max_rounds=last).run(logs)
    budget = 1 - confidence
    assert found.share(campaign.PASS, campaign.FAIL) <= budget + 3 * math.sqrt(budget / runs)


# --- a rule that is broken must be found out ---------------------------------------------------------------------------------


def test_an_interval_that_is_too_narrow_is_found_out(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "shares", lambda looks: (1.0,) * looks)
    assert any("at the limit" in each for each in missed(campaign, "limit"))


def test_a_rule_that_hardly_decides_is_found_out(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "shares", lambda looks: (0.01,) * looks)
    told = missed(campaign, "clear", "steady")
    assert any("median 5" in each for each in told)
    assert any("undecided" in each for each in told)


def test_a_rule_that_looks_too_often_is_found_out(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "look_rounds", lambda first, last: tuple(range(first, last + 1)))
    monkeypatch.setattr(sequential, "shares", lambda looks: (0.3,) * looks)
    assert any("at the limit" in each for each in missed(campaign, "limit"))


def test_a_rule_that_averages_drift_away_is_found_out(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "DRIFT_P_VALUE", 0.0)
    monkeypatch.setattr(stats, "AHEAD_P_VALUE", 0.0)
    monkeypatch.setattr(stats, "FALLING_P_VALUE", 0.0)
    assert any("settling" in each for each in missed(campaign, "settles", "crosses"))


def test_a_rule_that_takes_outliers_for_noise_is_found_out(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "REACH", math.inf)
    assert any("slower" in each and "undecided" in each for each in missed(campaign, "outliers"))
