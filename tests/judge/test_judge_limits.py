"""Each limit: measured, limit, same unit, cause; and what is neither pass nor fail says why."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sglang.judge import limits
from pytest_sglang.judge.stats import Interval
from pytest_sglang.judge.verdict import Judgement, combine
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Round, Throughput


def a_round(index: int, decode: float | None, end_to_end: float | None = None, why: str | None = None) -> Round:
    return Round(
        index=index,
        begin_s=10.0 * index,
        end_s=10.0 * index + 5,
        decode_tok_s=decode,
        end_to_end_tok_s=end_to_end,
        aggregate_tok_s=decode,
        invalid_because=why,
    )


def measured(
    median: float | None,
    low: float | None,
    high: float | None,
    *,
    rounds: int = 5,
    failed: int = 0,
    failures: dict[str, int] | None = None,
) -> Throughput:
    return Throughput(
        streams=1,
        rounds=tuple(a_round(index, median, None if median is None else median * 0.94) for index in range(rounds)),
        decode_tok_s=median,
        ci_low=low,
        ci_high=high,
        confidence=0.99,
        failed=failed,
        failures=failures or {},
        end_to_end_tok_s=None if median is None else median * 0.94,
    )


def rate(throughput: Throughput | None, **fields: object) -> Judgement:
    return limits.min_throughput(throughput, **{"min_tok_s": 38.0, "power_w": 250.0, **fields})  # type: ignore[arg-type]


# --- rates ------------------------------------------------------------------------------------------------------------------------


def test_interval_above_the_limit_passes_with_its_confidence() -> None:
    judgement = rate(measured(38.61, 38.2, 39.0), cause="never shown")
    assert judgement.verdict == "pass"
    assert judgement.message == "38.6 tok/s at 250 W, promised at least 38 tok/s (99 % confident, for this boot)"
    assert (judgement.limit, judgement.quantity, judgement.cause) == (Limit(">=", 38.0, "tok/s"), "decode_tok_s", None)
    assert judgement.measured["decode_tok_s"] == Measurement(38.61, "tok/s")
    assert judgement.measured["ci_low_tok_s"] == Measurement(38.2, "tok/s")
    assert judgement.measured["rounds"] == Measurement(5, "count")
    assert judgement.measured["failed_requests"] == Measurement(0, "count")


def test_interval_below_the_limit_fails_with_its_cause() -> None:
    judgement = rate(measured(36.1, 35.9, 36.4), cause="NVLink is missing")
    assert judgement.verdict == "fail"
    assert judgement.message == "36.1 tok/s at 250 W, promised at least 38 tok/s (99 % confident, for this boot): NVLink is missing"
    assert judgement.cause == "NVLink is missing"


def test_the_edges_of_the_interval_decide_exactly() -> None:
    assert rate(measured(38.3, 38.0, 38.6)).verdict == "pass"
    assert rate(measured(37.7, 37.4, 38.0)).verdict != "fail"
    assert rate(measured(37.7, 37.4, 37.999)).verdict == "fail"


def test_undecided_close_to_the_limit_is_marginal_and_strict_makes_it_inconclusive() -> None:
    close = measured(38.1, 37.6, 38.5)
    judgement = rate(close)
    assert (judgement.verdict, judgement.marginal, judgement.inconclusive_because) == ("pass", True, None)
    assert judgement.message == (
        "38.1 tok/s at 250 W, promised at least 38 tok/s: marginal, within 2 % of the limit and undecided "
        "(99 % interval 37.6 to 38.5 tok/s)"
    )
    strict = rate(close, strict=True)
    assert (strict.verdict, strict.marginal) == ("inconclusive", True)
    assert strict.inconclusive_because == "marginal: 99 % interval 37.6 to 38.5 tok/s holds the limit"


def test_marginal_ends_at_the_tolerance() -> None:
    assert rate(measured(38.7, 37.9, 39.4)).marginal
    assert not rate(measured(38.8, 37.9, 39.4)).marginal
    assert rate(measured(37.6, 37.25, 38.1)).marginal


@pytest.mark.parametrize(("median", "low", "high"), [(37.3, 36.0, 38.5), (37.9, 37.2, 38.2), (38.0, 37.3, 39.0)])
def test_a_rig_that_may_fall_short_by_more_than_the_tolerance_is_not_let_pass_as_marginal(median, low, high) -> None:
    judgement = rate(measured(median, low, high))
    assert (judgement.verdict, judgement.marginal) == ("inconclusive", False)


def test_undecided_far_from_the_limit_says_how_many_more_rounds() -> None:
    judgement = rate(measured(40.0, 37.0, 43.0))
    assert judgement.verdict == "inconclusive"
    assert judgement.inconclusive_because == "undecided after 5 rounds, about 6 more would decide"
    assert judgement.message == (
        "40.0 tok/s at 250 W, promised at least 38 tok/s: undecided after 5 rounds, about 6 more would decide "
        "(99 % interval 37.0 to 43.0 tok/s)"
    )


def test_when_no_number_of_rounds_would_decide_it_says_so() -> None:
    judgement = rate(measured(38.01, 30.0, 48.0), tolerance=0.0)
    assert judgement.inconclusive_because == "undecided after 5 rounds, and more would hardly decide"


@pytest.mark.parametrize(
    ("throughput", "because"),
    [
        (measured(50.0, 49.0, 51.0, failed=1), "1 failed request"),
        (
            measured(50.0, 49.0, 51.0, failed=3, failures={"cut short": 2, "timed out": 1}),
            "3 failed requests: 2 x cut short, 1 x timed out",
        ),
        (measured(50.0, None, None, failures={"someone else's traffic": 3}), "3 x someone else's traffic"),
        (measured(50.0, 49.0, 51.0, rounds=2), "too few rounds (2, at least 3)"),
        (measured(50.0, None, None, rounds=4), "too few rounds for an interval (4)"),
        (measured(None, None, None, rounds=0), "too few rounds (0, at least 3)"),
    ],
)
def test_rounds_that_are_no_sample_decide_nothing(throughput: Throughput, because: str) -> None:
    judgement = rate(throughput)
    assert (judgement.verdict, judgement.inconclusive_because) == ("inconclusive", because)
    shown = "nothing measured" if throughput.decode_tok_s is None else "50.0 tok/s"
    assert judgement.message == f"{shown} at 250 W, promised at least 38 tok/s: not decided, {because}"


def test_rounds_told_invalid_are_not_counted() -> None:
    good = measured(50.0, 49.0, 51.0)
    spoiled = tuple(a_round(index, 50.0, why="someone else's traffic" if index else None) for index in range(5))
    judgement = rate(
        Throughput(**{name: getattr(good, name) for name in good.__struct_fields__ if name != "rounds"}, rounds=spoiled)
    )
    assert judgement.inconclusive_because == "too few rounds (1, at least 3)"


def test_what_is_unsettled_is_not_decided_by_its_interval() -> None:
    judgement = rate(measured(50.0, 49.0, 51.0), unsettled="the rate drifts: -3 % over the rounds")
    assert (judgement.verdict, judgement.inconclusive_because) == ("inconclusive", "the rate drifts: -3 % over the rounds")


def test_nothing_measured_is_inconclusive_with_its_reason() -> None:
    judgement = rate(None, why_missing="the server did not answer")
    assert (judgement.verdict, judgement.message) == ("inconclusive", "throughput was not measured: the server did not answer")
    assert rate(None).inconclusive_because == "no reason is known"


def test_no_power_level_is_not_mentioned() -> None:
    assert rate(measured(38.61, 38.2, 39.0), power_w=None).message.startswith("38.6 tok/s, promised at least 38 tok/s")


def end_to_end(rates: Sequence[float | None]) -> Throughput:
    return Throughput(
        streams=1,
        rounds=tuple(a_round(index, 45.0, each) for index, each in enumerate(rates)),
        decode_tok_s=45.0,
        ci_low=44.0,
        ci_high=46.0,
        confidence=0.99,
        end_to_end_tok_s=None,
    )


def test_end_to_end_is_judged_by_its_own_rates_not_by_the_decode_interval() -> None:
    judgement = rate(end_to_end([36.0, 36.1, 36.2, 36.1]), quantity="end_to_end")
    assert judgement.verdict == "fail"
    assert judgement.message.startswith(
        "36.1 tok/s end to end at 250 W, promised at least 38 tok/s (99 % confident, for this boot)"
    )
    assert judgement.measured["end_to_end_tok_s"].value == pytest.approx(36.1)
    assert judgement.measured["decode_tok_s"] == Measurement(45.0, "tok/s")
    assert rate(end_to_end([40.0, 40.1, 40.2, 40.1]), quantity="end_to_end").verdict == "pass"


def test_end_to_end_uses_the_interval_that_is_handed_in() -> None:
    def wide(rates: Sequence[float], confidence: float) -> Interval:
        assert (len(rates), confidence) == (3, 0.99)
        return Interval(n=3, median=40.0, low=20.0, high=80.0)

    assert rate(end_to_end([40.0, None, 40.1, 40.2]), quantity="end_to_end", interval=wide).verdict == "inconclusive"


def test_end_to_end_without_any_rate_is_inconclusive() -> None:
    judgement = rate(end_to_end([None, None, None]), quantity="end_to_end")
    assert (
        judgement.message
        == "nothing measured end to end at 250 W, promised at least 38 tok/s: not decided, too few rounds (0, at least 3)"
    )


@given(
    median=st.floats(1, 500),
    down=st.floats(0, 0.5),
    up=st.floats(0, 0.5),
    limit=st.floats(1, 500),
    tolerance=st.floats(0, 0.1),
    strict=st.booleans(),
)
def test_only_an_interval_wholly_below_the_limit_fails(
    median: float, down: float, up: float, limit: float, tolerance: float, strict: bool
) -> None:
    low, high = median * (1 - down), median * (1 + up)
    judgement = rate(measured(median, low, high), min_tok_s=limit, tolerance=tolerance, strict=strict)
    assert (judgement.verdict == "fail") == (high < limit)
    if judgement.verdict == "pass" and not judgement.marginal:
        assert low >= limit
    if judgement.verdict == "inconclusive":
        assert judgement.inconclusive_because


# --- durations and counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "limit", "verdict", "message"),
    [
        (94.1, 90, "fail", "94.1 s, budget 90.0 s: 41 s of it in capture_decode"),
        (81.34, 90, "pass", "81.3 s, budget 90.0 s"),
        (90.0, 90, "pass", "90.0 s, budget 90.0 s"),
        (90.04, 90, "fail", "90.04 s, budget 90.0 s: 41 s of it in capture_decode"),
        (125.0, 90, "fail", "125.0 s, budget 90.0 s: 41 s of it in capture_decode"),
        (1320, 1500, "pass", "22 min 00 s, budget 25 min 00 s"),
        (1500.2, 1500, "fail", "1500.2 s, budget 1500.0 s: 41 s of it in capture_decode"),
    ],
)
def test_durations_are_told_in_one_unit(seconds: float, limit: float, verdict: str, message: str) -> None:
    judgement = limits.max_duration("ready", seconds, limit, cause="41 s of it in capture_decode")
    assert (judgement.verdict, judgement.message) == (verdict, message)
    assert judgement.measured == {"ready_s": Measurement(seconds, "s")}
    assert judgement.limit == Limit("<=", limit, "s")
    assert (judgement.cause is None) == (verdict == "pass")


@pytest.mark.parametrize("seconds", [None, float("nan"), float("inf")])
def test_a_duration_that_was_not_measured_is_inconclusive(seconds: float | None) -> None:
    judgement = limits.max_duration("warm start", seconds, 90, why_missing="the log does not tell")
    assert (judgement.verdict, judgement.inconclusive_because) == ("inconclusive", "the log does not tell")
    assert judgement.message == "warm start (ready_s) was not measured: the log does not tell"
    assert judgement.measured == {}


@pytest.mark.parametrize(
    ("count", "limit", "names", "verdict", "message"),
    [
        (0, 0, (), "pass", "0 new kernels, promised at most 0"),
        (1, 0, ("triton_a",), "fail", "1 new kernel, promised at most 0 (triton_a): caches were empty"),
        (
            7,
            2,
            tuple("abcdefg"),
            "fail",
            "7 new kernels, promised at most 2 (a, b, c, d, e and 2 more): caches were empty",
        ),
        (7, 9, tuple("abcdefg"), "pass", "7 new kernels, promised at most 9"),
    ],
)
def test_counts_name_what_they_counted_when_there_are_too_many(
    count: int, limit: int, names: tuple[str, ...], verdict: str, message: str
) -> None:
    judgement = limits.max_count("new_kernels", count, limit, names=names, cause="caches were empty")
    assert (judgement.verdict, judgement.message) == (verdict, message)
    assert judgement.measured == {"new_kernels": Measurement(count, "count")}


def test_a_count_that_was_not_made_is_inconclusive_not_zero() -> None:
    judgement = limits.max_count("autotune_runs", None, 0, why_missing="the log cannot be read")
    assert (judgement.verdict, judgement.message) == ("inconclusive", "autotune runs was not measured: the log cannot be read")


# --- plain numbers ----------------------------------------------------------------------------------------------------------------


def test_upper_and_lower_limits() -> None:
    high = limits.max_value("ttft_ms", 85.14, 80, unit="ms", cause="queueing")
    assert (high.verdict, high.message, high.limit) == (
        "fail",
        "TTFT 85.1 ms, promised at most 80 ms: queueing",
        Limit("<=", 80, "ms"),
    )
    assert limits.max_value("j_per_token", 25.0, 25.0, unit="J/token").message == "energy 25.0 J/token, promised at most 25 J/token"
    assert limits.max_value("capture_share", 0.3141, 0.3, unit="").verdict == "fail"
    low = limits.min_value("mean_w", 9.876, 10, unit="W")
    assert (low.verdict, low.message) == ("fail", "mean w 9.88 W, promised at least 10 W")
    assert limits.min_value("mean_w", 10, 10, unit="W").verdict == "pass"


def test_numbers_that_differ_never_read_the_same() -> None:
    assert limits.max_value("ttft_ms", 80.01, 80, unit="ms").message == "TTFT 80.01 ms, promised at most 80 ms"
    assert rate(measured(37.97, 37.9, 37.99)).message.startswith("37.97 tok/s at 250 W, promised at least 38 tok/s")
    assert rate(measured(37.998, 37.99, 37.999)).message.startswith("37.998 tok/s at 250 W, promised at least 38 tok/s")
    assert limits.max_value("ttft_ms", 80.00000001, 80, unit="ms").message.startswith("TTFT 80.00000001 ms")


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_number_that_is_missing_is_inconclusive(value: float | None) -> None:
    judgement = limits.max_value("itl_ms", value, 40, unit="ms", why_missing="p99 is not earned")
    assert (judgement.verdict, judgement.message) == ("inconclusive", "ITL p99 was not measured: p99 is not earned")
    assert limits.min_value("itl_ms", value, 40, unit="ms").verdict == "inconclusive"


def test_equal_compares_exactly_and_yes_is_not_one() -> None:
    assert limits.equal("tp", 4, 4).verdict == "pass"
    fail = limits.equal("tp", 2, 4, cause="it was started with --tp 2")
    assert (fail.verdict, fail.message) == ("fail", "tp 2, promised 4: it was started with --tp 2")
    assert limits.equal("torch_compile", True, 1).verdict == "fail"
    assert limits.equal("power", 250.0, 250.0, unit="W").message == "power 250 W, promised 250 W"
    assert limits.equal("model", None, "x", why_missing="not told").message == "model was not measured: not told"


def test_the_worst_limit_of_a_check_speaks() -> None:
    judgement = combine(
        [limits.max_duration("ready", 81, 90), limits.max_count("new_kernels", 3, 0), limits.max_count("autotune_runs", None, 0)]
    )
    assert (judgement.verdict, judgement.message) == ("fail", "3 new kernels, promised at most 0")
    assert set(judgement.measured) == {"ready_s", "new_kernels"}
