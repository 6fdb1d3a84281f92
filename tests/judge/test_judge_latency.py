"""Latency limits, and verdicts that the client's own lateness or merged reads could have changed."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_sglang.judge import counts, limits
from pytest_sglang.judge.lag import rate_range
from pytest_sglang.judge.latency import max_itl_p99, max_ttft
from pytest_sglang.record.values import Round, Throughput


def measured(rates: tuple[float, ...] = (40.0, 40.1, 39.9, 40.0, 40.05), **more: Any) -> Throughput:
    rounds = tuple(
        Round(
            **{
                "index": number,
                "begin_s": number * 4.0,
                "end_s": number * 4.0 + 3.2,
                "decode_tok_s": rate,
                "end_to_end_tok_s": rate * 0.95,
                "aggregate_tok_s": rate,
                "ttft_s": (0.050,),
                "itl_s": (0.025,) * 200,
                "output_tokens": 128,
                **more,
            }
        )
        for number, rate in enumerate(rates, 1)
    )
    lag_s = max(each.client_lag_s for each in rounds)
    middle = sorted(rates)[len(rates) // 2]
    return Throughput(
        streams=1,
        rounds=rounds,
        decode_tok_s=middle,
        ci_low=middle * 0.99,
        ci_high=middle * 1.01,
        confidence=0.99,
        end_to_end_tok_s=middle * 0.95,
        client_lag_s=lag_s,
    )


def test_latencies_within_and_beyond_their_limits() -> None:
    assert max_ttft(measured(), 0.05).verdict == "pass"
    assert max_ttft(measured(), 0.049).verdict == "fail"
    assert max_itl_p99(measured(), 0.026).verdict == "pass"
    assert max_itl_p99(measured(), 0.024).verdict == "fail"
    assert max_itl_p99(measured(), 0.024).measured["itl_ms"].value == pytest.approx(25.0)


def test_what_was_not_measured_is_inconclusive() -> None:
    assert max_ttft(measured(ttft_s=()), 1.0).verdict == "inconclusive"
    assert max_ttft(measured(), 1.0, why_missing="cut").inconclusive_because == "cut"
    few = max_itl_p99(measured(itl_s=(0.02,) * 80), 1.0)
    assert (few.verdict, "459 needed" in few.message) == ("inconclusive", True)


def test_a_merged_share_above_one_percent_decides_no_itl_limit() -> None:
    for limit_s in (0.001, 1.0):
        judged = max_itl_p99(measured(merged_share=0.011), limit_s)
        assert judged.verdict == "inconclusive"
        assert "1.1 % of the token events have no time of their own" in judged.message
    assert max_itl_p99(measured(merged_share=0.01), 0.026).verdict == "pass"


def test_lost_gaps_that_could_change_the_verdict_leave_it_open() -> None:
    # 1 % of the gaps are lost and may have been long: the limit lies between
    lost = measured(merged_share=0.009, unsure_itl_s=(0.2,) * 3)
    judged = max_itl_p99(lost, 0.03)
    assert judged.verdict == "inconclusive"
    assert "15 gaps have no time of their own (between 25 and 200 ms)" in judged.message
    # a limit above all that they may have been, and one below what is known, stay decided
    assert max_itl_p99(lost, 0.21).verdict == "pass"
    assert max_itl_p99(lost, 0.02).verdict == "fail"


def test_the_clients_own_lag_can_leave_a_latency_open() -> None:
    late = measured(stamp_lag_s=0.004, itl_lag_s=0.004, client_lag_s=0.004, stamps="user")
    for judged in (max_itl_p99(late, 0.024), max_itl_p99(late, 0.026), max_ttft(late, 0.048)):
        assert judged.verdict == "inconclusive"
        assert judged.inconclusive_because == "the client's own lag of 4 ms could have changed the verdict"
    # times are late, never early: what keeps its limit keeps it
    assert max_ttft(late, 0.0501).verdict == "pass"
    assert max_ttft(late, 0.045).verdict == "fail"
    assert max_itl_p99(late, 0.030).verdict == "pass"
    assert max_itl_p99(late, 0.020).verdict == "fail"


def test_a_request_that_left_late_is_not_the_servers_fault() -> None:
    late = measured(send_lag_s=0.010, client_lag_s=0.010)
    assert max_ttft(late, 0.045).verdict == "inconclusive"
    assert max_ttft(late, 0.030).verdict == "fail"
    assert max_itl_p99(late, 0.026).verdict == "pass"


def test_first_tokens_in_one_read_with_later_ones_fail_no_ttft() -> None:
    merged = max_ttft(measured(unsure_ttft=1), 0.045)
    assert merged.verdict == "inconclusive"
    assert "first tokens of 5 requests came in one read with later ones" in merged.message
    assert max_ttft(measured(unsure_ttft=1), 0.06).verdict == "pass"


@pytest.mark.parametrize(
    ("limit", "lag_s", "verdict"),
    [
        (39.0, 0.0, "pass"),
        (39.0, 0.010, "pass"),
        (39.55, 0.010, "inconclusive"),
        (41.0, 0.010, "fail"),
        (40.45, 0.0, "fail"),
        (40.45, 0.010, "inconclusive"),
        (40.0, 0.010, "pass"),
        (40.0, 0.200, "inconclusive"),
    ],
)
def test_the_clients_own_lag_can_leave_a_rate_open(limit: float, lag_s: float, verdict: str) -> None:
    # 128 tokens at 40 tok/s last 3.2 s: 10 ms are 0.3 % of them
    judged = limits.min_throughput(measured(stamp_lag_s=lag_s, client_lag_s=lag_s), min_tok_s=limit)
    assert judged.verdict == verdict
    if verdict == "inconclusive":
        assert judged.inconclusive_because == f"the client's own lag of {lag_s * 1000:g} ms could have changed the verdict"


def test_a_lag_makes_an_end_to_end_rate_look_slower_never_faster() -> None:
    late = measured(stamp_lag_s=0.02, send_lag_s=0.02)
    low, high = rate_range(late, 38.0, 39.0, end_to_end=True)
    assert low == 38.0
    assert high == pytest.approx(39.0 * 1.012, rel=0.001)
    assert rate_range(measured(), 38.0, 39.0) == (38.0, 39.0)
    assert rate_range(measured(decode_tok_s=None, stamp_lag_s=1.0), 38.0, 39.0) == (38.0, 39.0)


@pytest.mark.parametrize(
    ("own", "server", "says"),
    [
        (1000, None, None),
        (0, 500, None),
        (1000, 1000, None),
        (1000, 1020, None),
        (1000, 980, None),
        (1000, 1021, "somebody else's requests"),
        (1000, 979, "the usage tells of tokens that the server did not count"),
    ],
)
def test_answers_and_counters_more_than_two_percent_apart(own: int, server: int | None, says: str | None) -> None:
    told = counts.miscounted(own, server)
    assert (told is None) == (says is None)
    if told is not None:
        assert told.startswith(counts.DISAGREE)
        assert told.endswith(str(says))
