"""Wording shared by terminal, HTML and JUnit."""

from __future__ import annotations

import msgspec
import pytest
import report_samples as samples

from pytest_sglang.record.run import Limit, Measurement, NotChecked
from pytest_sglang.record.values import Finding
from pytest_sglang.report import view


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (43.42, "tok/s", "43.4 tok/s"),
        (75.1, "s", "75.1 s"),
        (1308.2, "s", "21 min 48 s"),
        (250.0, "W", "250 W"),
        (61.4, "C", "61 °C"),
        (14, "count", "14"),
        (12_345_678, "", "12345678"),
        (None, "W", "not read"),
        (True, "", "yes"),
        (False, "", "no"),
        ("qwen", "", "qwen"),
        ("many", "count", "many"),
        ("4.0", "x", "4.0 x"),
    ],
)
def test_a_value_reads_as_a_person_writes_it(value, unit, text):
    assert view.value_text(Measurement(value, unit)) == text


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (None, ""),
        (Limit(">=", 42.0, "tok/s"), ">= 42 tok/s"),
        (Limit("<=", 90.0, "s"), "<= 90 s"),
        (Limit("<=", 1500.0, "s"), "<= 25 min"),
        (Limit("<=", 7200.0, "s"), "<= 2 h"),
        (Limit("<=", 1290.0, "s"), "<= 21 min 30 s"),
        (Limit("==", 250.0, "W"), "250 W"),
        (Limit("==", True, ""), "yes"),
        (Limit("<=", 0, "count"), "0"),
        (Limit("==", 0, "count"), "0"),
    ],
)
def test_a_limit_reads_as_it_was_promised(limit, text):
    assert view.limit_text(limit) == text


@pytest.mark.parametrize(
    ("measured", "limit", "text"),
    [
        (Measurement(43.42, "tok/s"), Limit(">=", 42.0, "tok/s"), "+3.4 %"),
        (Measurement(75.1, "s"), Limit("<=", 90.0, "s"), "+17 %"),
        (Measurement(312.4, "s"), Limit("<=", 90.0, "s"), "-247 %"),
        (Measurement(41.999, "tok/s"), Limit(">=", 42.0, "tok/s"), "0.0 %"),
        (Measurement(42.001, "tok/s"), Limit(">=", 42.0, "tok/s"), "0.0 %"),
        (Measurement(3, "count"), Limit("<=", 0, "count"), "-3"),
        (Measurement(4, "count"), Limit(">=", 4, "count"), ""),
        (Measurement(0.0, "%"), Limit("<=", 5.0, "%"), "+5.0 points"),
        (Measurement(12.5, "%"), Limit("<=", 5.0, "%"), "-7.5 points"),
        (Measurement(250.0, "W"), Limit("==", 250.0, "W"), ""),
        (Measurement(250.0, "W"), Limit(">=", 250.0, "tok/s"), ""),
        (Measurement(None, "W"), Limit(">=", 250.0, "W"), ""),
        (Measurement(True, ""), Limit(">=", 1, ""), ""),
    ],
)
def test_margin_is_positive_on_the_right_side_of_the_limit(measured, limit, text):
    assert view.margin_text(samples.check("x", quantity="q", measured={"q": measured}, limit=limit)) == text


def test_margin_is_empty_without_a_measurement_or_a_limit():
    assert view.margin_text(samples.check("x", limit=Limit(">=", 1, ""))) == ""
    assert view.margin_text(samples.check("x", measured={"q": Measurement(1, "")})) == ""


def test_primary_is_the_quantity_else_the_only_one_of_the_limits_unit():
    numbers = {"a": Measurement(1, "W"), "b": Measurement(2, "s")}
    assert view.primary(samples.check("x", measured=numbers, quantity="a")) == numbers["a"]
    assert view.primary(samples.check("x", measured=numbers, limit=Limit("<=", 3, "s"))) == numbers["b"]
    assert view.primary(samples.check("x", measured=numbers)) is None
    assert view.primary(samples.check("x", measured={"a": numbers["a"]}, quantity="gone")) == numbers["a"]


def test_interval_belongs_to_rates_only():
    rate = samples.rate_check("pass", 43.42, 42.0)
    assert view.interval_text(rate) == "43.1 to 43.7"
    assert view.interval_text(msgspec.structs.replace(rate, quantity="ttft_ms")) == ""
    assert view.interval_text(samples.check("x")) == ""


@pytest.mark.parametrize(
    ("fields", "stands", "text"),
    [
        ({"verdict": "pass", "cause": "not told"}, "pass", ""),
        ({"verdict": "pass", "marginal": True}, "marginal", "undecided, but within the tolerance of its limit"),
        ({"verdict": "fail", "message": "  measured 1,\n limit 2 "}, "fail", "measured 1, limit 2"),
        ({"verdict": "fail"}, "fail", "no cause was recorded"),
        ({"verdict": "fail", "cause": "a", "message": "b"}, "fail", "a"),
        ({"verdict": "fail", "expected_failure": True, "cause": "a"}, "expected", "a"),
        ({"verdict": "pass", "expected_failure": True}, "unexpected", "passed, although it is marked as an expected failure"),
        ({"verdict": "inconclusive"}, "inconclusive", "no reason was recorded"),
        ({"verdict": "inconclusive", "inconclusive_because": "nvlink"}, "inconclusive", "because of nvlink"),
        (
            {"verdict": "inconclusive", "inconclusive_because": "nvlink", "message": "not measured"},
            "inconclusive",
            "not measured (because of nvlink)",
        ),
        ({"verdict": "inconclusive", "inconclusive_because": "nvlink", "message": "after nvlink"}, "inconclusive", "after nvlink"),
        ({"verdict": "inconclusive", "expected_failure": True, "message": "m"}, "inconclusive", "m"),
    ],
)
def test_standing_and_cause(fields, stands, text):
    check = samples.check("x", fields.pop("verdict"), **fields)
    assert view.standing(check) == stands
    assert view.cause_text(check) == text


def test_failing_checks_come_first_and_the_rest_keeps_its_order():
    rows = view.rows(samples.mixed_run())
    assert [row.standing for row in rows[:5]] == ["fail", "fail", "inconclusive", "expected", "marginal"]
    assert [row.label for row in rows[5:]] == ["gpu-identity", "power-limit at 250 W", "server-identity", "ready", "findings"]


def test_a_row_tells_the_other_numbers_aside():
    row = view.row(samples.rate_check("pass", 43.42, 42.0))
    assert row.aside == (
        ("end to end", "42.8 tok/s"),
        ("TTFT (time to first token)", "88.4 ms"),
        ("mean board power of all serving GPUs", "968.2 W"),
        ("board energy per token", "22.6 J/token"),
    )
    assert ("confidence interval", "43.1 to 43.7") in row.numbers
    assert len(row.numbers) == 10
    odd = view.row(samples.check("x", measured={"own_number": Measurement(1, ""), "other": Measurement(2, "")}))
    assert odd.aside == (("own number", "1"), ("other", "2"))


TWO = (NotChecked("a", "level 1"), NotChecked("b", "level 1"))
ONE_FAIL = (samples.check("x", "fail"), samples.check("y"), samples.check("z"))
INCONCLUSIVE = (samples.check("x", "inconclusive"), samples.check("y"))


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (samples.run(simulated=False), "PASS 9 of 9"),
        (samples.run(), "PASS 9 of 9 (SIMULATED)"),
        (samples.partial_run(), "PASS 7 of 9, 2 not checked"),
        (samples.mixed_run(), "FAIL 2 of 11, 1 inconclusive, 1 not checked, 1 marginal, 1 expected to fail (SIMULATED)"),
        (samples.run(ONE_FAIL, not_checked=TWO, simulated=False), "FAIL 1 of 5, 2 not checked"),
        (samples.run(INCONCLUSIVE, simulated=False), "INCONCLUSIVE 1 of 2"),
        (
            samples.run(INCONCLUSIVE[1:], not_checked=TWO, verdict="inconclusive", simulated=False),
            "INCONCLUSIVE 1 of 3 pass, 2 not checked",
        ),
        (samples.run(INCONCLUSIVE[1:], verdict="fail", simulated=False), "FAIL: outside the checks, 1 of 1 pass"),
        (samples.run((), simulated=False), "INCONCLUSIVE: nothing was checked"),
        (
            samples.run(ONE_FAIL, verdict="inconclusive", interrupted=True, not_checked=TWO, simulated=False),
            "INCONCLUSIVE: interrupted, 2 of 5 pass, 1 failed, 2 not checked",
        ),
        (
            samples.run(ONE_FAIL, verdict="inconclusive", finished=None, simulated=False),
            "INCONCLUSIVE: not finished: 2 passed so far, 1 failed",
        ),
        (
            samples.run(ONE_FAIL[1:], verdict="inconclusive", finished=None),
            "INCONCLUSIVE: not finished: 2 passed so far (SIMULATED)",
        ),
        (
            samples.run((samples.check("x", expected_failure=True), samples.check("y")), verdict="pass", simulated=False),
            "PASS 2 of 2, 1 unexpectedly",
        ),
    ],
)
def test_headline(run, text):
    assert view.headline(run) == text


def test_title_names_rig_power_and_simulation():
    assert view.title(samples.run()) == "six-3090 at 250 W · SIMULATED"
    assert view.title(samples.run(simulated=False, power_levels_w=(250.0, 300.0, 390.0))) == "six-3090 at 250, 300 and 390 W"
    assert view.title(samples.run(simulated=False, power_levels_w=(), rig={})) == "unnamed rig"


def test_findings_are_told_once_and_the_severe_first():
    found = view.all_findings(samples.mixed_run())
    assert [each.severity for each in found] == ["fail", "warn", "info"]
    assert view.finding_text(Finding("k", "info", "", "only this")) == "only this"
