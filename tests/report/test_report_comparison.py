"""A comparison's page and lines agree with themselves: values, change, chart, words, and what would decide it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import report_samples as samples

from pytest_sglang.judge import regression
from pytest_sglang.judge.regression import Change, Spread
from pytest_sglang.report import change_chart
from pytest_sglang.report import comparison as shown
from pytest_sglang.session import compared, comparison
from pytest_sglang.session.comparison import Comparison, Quantity

stored_runs = samples._stored()
LEARNT = Spread(sd=0.02, degrees=6.0)


def quantity(name: str, change: Change | None, *, judged: bool = True, boots: int = 5, higher: bool = False) -> Quantity:
    return Quantity(
        name=name, unit="ms", before=20.0, after=25.0, higher_is_better=higher, judged=judged, change=change,
        boots=(boots, boots), rounds=(boots, boots),
    )  # fmt: skip


def undecided(**how: object) -> Change:
    made = {"outcome": "undecided", "change": -0.25, "low": -0.5, "high": 0.1, "confidence": 0.99, "why": "why", "spread": LEARNT}
    return Change(**{**made, **how})  # type: ignore[arg-type]


def found(*quantities: Quantity) -> Comparison:
    return Comparison(before=("a",), after=("b",), title_before="a", title_after="b", simulated=False, quantities=quantities)


def test_the_change_is_that_of_the_values_beside_it() -> None:
    sides = [[20.0, 20.0, 20.0], [40.0]], [[25.0], [26.0, 90.0]]
    change = regression.compare(*sides, spread=LEARNT, higher_is_better=False)
    before, after = (compared.level(side) for side in sides)
    assert before == pytest.approx(800**0.5)
    assert change.change is not None
    assert after / before - 1 == pytest.approx(-change.change)  # type: ignore[operator]


def test_the_chart_has_the_sign_of_the_table_and_says_worse() -> None:
    told = found(quantity("energy", undecided(change=-0.182, low=-0.34, high=-0.042)))
    (bar,) = [shown._bar(each) for each in told.quantities]
    assert bar is not None
    assert (bar.change, bar.low, bar.high) == (0.182, 0.042, 0.34)
    assert bar.text == "+25.0 % is worse"
    page = shown.page([told])
    assert "+25.0 % is worse" in page
    assert "+4.2 % to +34.0 %" in page


def test_an_interval_without_end_is_cut_and_its_axis_stays_readable() -> None:
    bar = change_chart.Bar(name="a", text="t", change=0.1, low=-1.0, high=1e12, outcome="undecided", why="")
    left, right = change_chart._ends([bar])
    assert -2.6 < left < right < 2.6
    assert change_chart._ticks(left, right)[0] < 0
    assert change_chart.panel("c", [bar]).svg is not None


def test_what_is_only_shown_has_no_verdict_and_few_starts_no_interval() -> None:
    worse = undecided(outcome="worse")
    judged = quantity("TTFT", undecided(more_rounds=5, more_boots=9))
    few, many = (quantity(f"warm start: {name}", worse, judged=False, boots=count) for name, count in (("few", 3), ("many", 4)))
    told = found(judged, few, many)
    assert (shown.interval_text(few), shown.interval_text(many)) == ("", "-10.0 % to +50.0 %")
    text = "\n".join(line for line, _ in shown.terminal(told))
    page = shown.page([told]).split("Start-up")[1]
    assert not re.search("worse|undecided", text.split("shown,")[1], re.IGNORECASE)
    assert not re.search("worse|undecided", page, re.IGNORECASE)


ADVICE: dict[str, tuple[Change, str]] = {
    "boots": (undecided(more_rounds=14, more_boots=12), "12 boots of 14 rounds on either side would decide TTFT"),
    "starts": (undecided(more_rounds=1, more_boots=6), "6 boots on either side would decide TTFT"),
    "rounds": (undecided(more_rounds=30, more_boots=1), "30 rounds on either side would decide TTFT"),
    "no spread": (
        undecided(more_rounds=5, more_boots=20, spread=Spread(sd=0.02, degrees=None)),
        "4 boots on either side would tell how far boots differ, which TTFT waits for",
    ),
    "drift": (undecided(drifts=True), "let TTFT settle (soak in the rig file)"),
    "hopeless": (undecided(), "no sensible number of boots would decide TTFT"),
    "unfair": (regression.undecided("no valid round after"), ""),
    "decided": (undecided(outcome="same"), ""),
}


@pytest.mark.parametrize("name", ADVICE)
def test_one_line_says_what_would_decide_it(name: str) -> None:
    change, line = ADVICE[name]
    told = found(quantity("TTFT at 700 W", change))
    assert shown.advice(told) == line
    assert [text for text, _ in shown.last(told)][1:] == ([line] if line else [])


def test_a_headline_names_up_to_five() -> None:
    five = [quantity(f"q{number}", undecided()) for number in range(5)]
    assert shown.headline(found(*five)) == "INCONCLUSIVE: q0, q1, q2, q3 and q4"
    assert shown.headline(found(*five, quantity("q5", undecided()))) == "INCONCLUSIVE: q0, q1, q2, q3 and 2 more"


def test_one_change_is_told_once(tmp_path: Path) -> None:
    arguments = {"model_path": "/models/m", "cuda_graph_max_bs": 8, "random_seed": 1}
    paths = [
        stored_runs.stored(tmp_path, name, arguments={**arguments, "enable_torch_compile": on})
        for name, on in (("a", False), ("b", True))
    ]
    (told,) = comparison.of_paths(paths)
    assert told.under_test == "torch_compile"
    assert [str(each) for each in told.changed] == ["torch_compile: False, now True"]
