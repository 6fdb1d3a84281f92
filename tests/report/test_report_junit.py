"""Properties for JUnit: plain names, plain numbers."""

from __future__ import annotations

import report_samples as samples

from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.report import junit


def test_numbers_stay_numbers_under_their_own_names():
    told = dict(junit.properties(samples.rate_check("pass", 43.42, 42.0)))
    assert told["sglang.verdict"] == "pass"
    assert told["sglang.measured.decode_tok_s"] == 43.42
    assert told["sglang.power_w"] == 250.0
    assert (told["sglang.limit_op"], told["sglang.limit"], told["sglang.limit_unit"]) == (">=", 42.0, "tok/s")
    assert "sglang.marginal" not in told
    assert "sglang.cause" not in told


def test_what_was_not_read_is_left_out_and_truth_values_are_words():
    measured = {"a": Measurement(None, "W"), "b": Measurement(True, ""), "c": Measurement(False, ""), "d": Measurement(0, "count")}
    told = dict(junit.properties(samples.check("x", measured=measured, limit=Limit("==", True, ""), marginal=True)))
    assert "sglang.measured.a" not in told
    assert (told["sglang.measured.b"], told["sglang.measured.c"], told["sglang.measured.d"]) == ("true", "false", 0)
    assert (told["sglang.limit"], told["sglang.marginal"]) == ("true", "true")
    assert "sglang.limit_unit" not in told


def test_reasons_are_told():
    told = dict(junit.properties(samples.check("x", "inconclusive", inconclusive_because="nvlink", cause="a bridge")))
    assert (told["sglang.inconclusive_because"], told["sglang.cause"]) == ("nvlink", "a bridge")
