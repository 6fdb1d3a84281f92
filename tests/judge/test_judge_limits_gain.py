"""A gain is judged by Welch's interval, and only between runs that differ in exactly the one thing."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy import stats

from pytest_sglang.judge.gain import comparable, gain, key_of
from pytest_sglang.record.run import Limit, Run

BEFORE = [35.0, 35.2, 34.9, 35.1, 35.0]


def test_a_gain_above_its_promise_passes() -> None:
    judgement = gain([each * 1.2 for each in BEFORE], BEFORE, 15.0, 0.99, name="compile_gain")
    assert judgement.verdict == "pass"
    assert judgement.message == "compile gain 20.0 %, promised at least 15 % (99 % interval 19.2 to 20.8 %)"
    assert (judgement.limit, judgement.quantity) == (Limit(">=", 15.0, "%"), "compile_gain_pct")
    assert judgement.measured["compile_gain_pct"].value == pytest.approx(20.0)


def test_a_gain_below_its_promise_fails_and_a_loss_is_called_one() -> None:
    judgement = gain([each * 1.05 for each in BEFORE], BEFORE, 15.0, 0.99)
    assert (judgement.verdict, judgement.cause) == ("fail", "it brings 5.0 %")
    assert gain([each * 0.9 for each in BEFORE], BEFORE, 0.0, 0.99).cause == "it brings nothing: 10.0 % slower"


def test_a_gain_whose_interval_holds_the_limit_is_inconclusive() -> None:
    judgement = gain([40.0, 41.5, 39.0, 40.8], [35.0, 36.0, 34.0, 35.5], 15.0, 0.99)
    assert judgement.verdict == "inconclusive"
    assert judgement.inconclusive_because == "the interval holds the limit: measure more rounds in both runs"


@pytest.mark.parametrize("few", [[], [40.0, 41.0], [40.0, 0.0, 41.0], [40.0, float("inf"), 41.0]])
def test_too_few_usable_rounds_are_inconclusive(few: list[float]) -> None:
    now = gain(few, BEFORE, 15.0, 0.99)
    assert now.verdict == "inconclusive"
    assert now.message == f"gain was not measured: this run has {len(few)} usable rounds, at least 3 are needed"
    before = gain(BEFORE, few, 15.0, 0.99)
    assert before.inconclusive_because == f"the saved run has {len(few)} usable rounds, at least 3 are needed"


def test_rounds_without_any_spread_are_compared_as_they_are() -> None:
    judgement = gain([40.0] * 3, [32.0] * 3, 25.0 - 1e-9, 0.99)
    assert judgement.verdict == "pass"
    assert judgement.measured["ci_low_pct"] == judgement.measured["ci_high_pct"]


def test_the_interval_is_the_one_of_scipy() -> None:
    source = random.Random(3)
    now = [source.gauss(44, 1.0) for _ in range(8)]
    before = [source.gauss(38, 0.4) for _ in range(12)]
    measured = gain(now, before, 0.0, 0.95).measured
    expected = stats.ttest_ind([math.log(x) for x in now], [math.log(x) for x in before], equal_var=False).confidence_interval(0.95)
    assert measured["ci_low_pct"].value == pytest.approx(math.expm1(expected.low) * 100)
    assert measured["ci_high_pct"].value == pytest.approx(math.expm1(expected.high) * 100)


def test_false_verdicts_stay_within_the_confidence() -> None:
    source = random.Random(11)

    def series(rate: float) -> list[float]:
        return [source.gauss(rate, rate * 0.02) for _ in range(8)]

    wrong = sum(gain(series(35.0 * 1.15), series(35.0), 15.0, 0.95).verdict != "inconclusive" for _ in range(800))
    # 5 % of 800 are 40; 64 is four standard deviations above
    assert 10 < wrong < 64


# --- which runs may be compared ---------------------------------------------------------------------------------------------------


def a_run(**changes: Any) -> Run:
    arguments = {
        "model_path": "/m",
        "enable_torch_compile": True,
        "torch_compile_max_bs": 32,
        "random_seed": 1,
        "port": 1,
        "tp_size": 4,
    }
    arguments.update(changes.pop("arguments", {}))
    card = {
        "index": 0,
        "name": "NVIDIA GeForce RTX 3090",
        "enforced_power_limit_w": 250.0,
        "serial": "x",
        **changes.pop("card", {}),
    }
    environment = {
        "driver": "580",
        "plugin": "0.1.0",
        "gpus": [card],
        "server": {"version": "0.5.23", "arguments": arguments, "packages": {"torch": "2.11"}, "pid": 7},
        **changes.pop("environment", {}),
    }
    rig = {
        "name": "attic",
        "nvlink": {"pairs": [[0, 1]]},
        "workload": {"output_tokens": 128, "rounds": 5},
        **changes.pop("rig", {}),
    }
    return Run(run_id="x", started="2026-11-24T01:53:00.000Z", simulated=False, rig=rig, environment=environment)


NOW = key_of(a_run())


def test_runs_that_differ_in_just_the_one_thing_may_be_compared() -> None:
    plain = a_run(
        arguments={"enable_torch_compile": False, "torch_compile_max_bs": 4, "random_seed": 2, "port": 2}, card={"serial": "y"}
    )
    assert comparable(NOW, key_of(plain), "torch_compile") == []
    assert comparable(NOW, key_of(a_run(rig={"nvlink": None})), "nvlink") == []


def test_the_one_thing_must_differ() -> None:
    assert comparable(NOW, NOW, "torch_compile") == ["torch_compile does not differ: True in both runs"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"environment": {"driver": "570"}}, "driver differs too: 570 then, 580 now"),
        ({"environment": {"driver": None}}, "driver differs too: not known then, 580 now"),
        ({"card": {"enforced_power_limit_w": 390.0}}, "gpu 0 enforced_power_limit_w differs too: 390.0 then, 250.0 now"),
        ({"arguments": {"enable_torch_compile": False, "tp_size": 2}}, "argument tp_size differs too: 2 then, 4 now"),
        ({"rig": {"workload": {"output_tokens": 256, "rounds": 9}}}, "workload output_tokens differs too: 256 then, 128 now"),
        ({"rig": {"nvlink": None}}, "nvlink differs too: False then, True now"),
        ({"rig": {"name": "x" * 99}}, f"rig differs too: {'x' * 57}... then, attic now"),
    ],
)
def test_every_other_difference_refuses_the_comparison(changes: dict[str, Any], said: str) -> None:
    changes["arguments"] = {"enable_torch_compile": False, **changes.get("arguments", {})}
    assert comparable(NOW, key_of(a_run(**changes)), "torch_compile") == [said]


def test_a_run_that_knows_little_is_not_compared_by_accident() -> None:
    bare = Run(run_id="x", started="2026-11-24T01:53:00.000Z", simulated=False)
    assert key_of(bare) == {"nvlink": False}
    assert len(comparable(NOW, key_of(bare), "torch_compile")) > 5
