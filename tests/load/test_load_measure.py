"""Which rounds count, and what ends a measurement."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pytest_sglang.judge.sequential import Sequential
from pytest_sglang.load import measure as module
from pytest_sglang.load.measure import measure
from pytest_sglang.record.values import Round, Throughput


def a_round(index: int, rate: float | None = 40.0, **more: object) -> Round:
    return Round(
        index=index,
        begin_s=100.0 + index,
        end_s=101.0 + index,
        decode_tok_s=rate,
        end_to_end_tok_s=None if rate is None else rate * 0.95,
        aggregate_tok_s=None if rate is None else rate * 2,
        client_lag_s=index / 1e6,
        **more,  # type: ignore[arg-type]
    )


def failed(index: int, *why: str) -> Round:
    return a_round(index, None, failures=why, invalid_because=f"{len(why)} of 2 requests failed: {why[0]}")


class Rig:
    """Gives prepared rounds and request counts."""

    def __init__(self, rounds: Callable[[int], Round], running: Callable[[], int | None] = lambda: 1, seconds: float = 0.0) -> None:
        self.rounds, self.running, self.seconds = rounds, running, seconds
        self.asked: list[int] = []
        self.seen: list[Round] = []
        self.slept = 0.0

    def run(self, index: int) -> Round:
        self.asked.append(index)
        time.sleep(self.seconds)
        return self.rounds(index)

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def measure(
        self, sequential: Sequential | None = None, *, warmups: int = 0, max_rounds: int = 5, streams: int = 1
    ) -> Throughput:
        return measure(
            self.run,
            lambda done: None if sequential is None or done.decode_tok_s is None else sequential.add(done.decode_tok_s),
            warmups=warmups,
            max_rounds=max_rounds,
            foreign=self.running,
            own_streams=streams,
            on_round=self.seen.append,
            poll_s=0.01,
            sleep=self.sleep,
        )


def test_warm_ups_are_shown_and_do_not_count() -> None:
    rig = Rig(lambda index: a_round(index, 40.0 if index > 0 else 5.0))
    found = rig.measure(warmups=2, max_rounds=3)
    assert rig.asked == [-1, 0, 1, 2, 3]
    assert [each.invalid_because for each in rig.seen] == ["warm-up", "warm-up", None, None, None]
    assert [each.index for each in found.rounds] == [1, 2, 3]
    assert found.discarded == ()
    assert found.decode_tok_s == 40.0
    assert found.end_to_end_tok_s == 38.0
    assert found.aggregate_tok_s == 80.0
    assert found.client_lag_s == 3e-6
    assert (found.ci_low, found.ci_high) == (None, None)


def test_a_decision_ends_it_and_gives_the_interval() -> None:
    rig = Rig(lambda index: a_round(index, 42.0 + index % 3 * 0.1))
    found = rig.measure(Sequential(38.0), max_rounds=30)
    assert len(found.rounds) == 5
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert 38 < found.ci_low < 42.1 < found.ci_high
    assert found.confidence == 0.99


def test_rounds_before_the_rate_settled_are_discarded_and_say_so() -> None:
    rates = [50.0, 48.0, 46.0, 44.0, 42.0, 41.0, 40.0, 39.5]
    wiggle = [0.0, 0.05, -0.05, 0.02, -0.02]
    rig = Rig(lambda index: a_round(index, rates[index - 1] if index <= 8 else 39.0 + wiggle[index % 5]))
    found = rig.measure(Sequential(38.0), max_rounds=30)
    assert {each.invalid_because for each in found.discarded} == {"before the rate settled"}
    assert [each.index for each in found.discarded] == list(range(1, 9))
    assert found.decode_tok_s == pytest.approx(39.0, abs=0.1)
    assert found.ci_low is not None
    assert found.ci_low >= 38


def test_failed_requests_are_never_samples_and_three_such_rounds_end_it() -> None:
    rig = Rig(lambda index: failed(index, "cut", "cut") if index in (2, 3, 5) else a_round(index))
    found = rig.measure(Sequential(38.0), max_rounds=30)
    assert rig.asked == [1, 2, 3, 4, 5]
    assert [each.index for each in found.rounds] == [1, 4]
    assert [each.index for each in found.discarded] == [2, 3, 5]
    assert found.failed == 6
    assert found.failures == {"cut": 6}
    assert found.ci_low is None


def test_warm_ups_that_fail_count_as_failures() -> None:
    rig = Rig(lambda index: failed(index, "HTTP 503: no message"))
    found = rig.measure(warmups=5)
    assert rig.asked == [-4, -3, -2]
    assert found.failures == {"HTTP 503: no message": 3}
    assert found.rounds == ()
    assert found.decode_tok_s is None
    assert found.client_lag_s == 0.0


def test_after_a_lost_round_it_waits_until_the_server_is_quiet() -> None:
    busy = iter([1] * 20)
    rig = Rig(lambda index: failed(index, "cut") if index == 1 else a_round(index), lambda: next(busy, 0))
    rig.measure(max_rounds=1)
    assert 0.05 < rig.slept <= 0.2
    stuck = Rig(lambda index: failed(index, "cut") if index == 1 else a_round(index), lambda: 1)
    stuck.measure(max_rounds=1)
    assert stuck.slept == pytest.approx(module.QUIET_WITHIN_S, abs=0.02)


def test_somebody_elses_traffic_discards_rounds_and_three_end_it() -> None:
    rig = Rig(a_round, lambda: 2, seconds=0.08)
    found = rig.measure(Sequential(38.0), max_rounds=30)
    assert rig.asked == [1, 2, 3]
    assert found.failures == {"someone else's traffic": 3}
    assert found.failed == 0
    assert found.ci_low is None
    assert found.decode_tok_s is None
    assert {each.invalid_because for each in found.discarded} == {"someone else's traffic"}
    assert {each.invalid_because for each in rig.seen} == {"someone else's traffic"}


def test_traffic_seen_once_is_the_end_of_an_own_request() -> None:
    counts = iter([2, 1, 2, 1, 2, 1] * 100)
    rig = Rig(a_round, lambda: next(counts), seconds=0.05)
    assert len(rig.measure(max_rounds=2).rounds) == 2


def test_own_streams_are_nobody_elses() -> None:
    rig = Rig(a_round, lambda: 4, seconds=0.05)
    assert len(rig.measure(max_rounds=2, streams=4).rounds) == 2


def test_a_server_that_does_not_tell_loses_no_round() -> None:
    def broken() -> int | None:
        raise RuntimeError("no /v1/loads here")

    assert len(Rig(a_round, broken, seconds=0.03).measure(max_rounds=2).rounds) == 2
    assert len(Rig(a_round, lambda: None, seconds=0.03).measure(max_rounds=2).rounds) == 2


def test_a_hanging_question_does_not_hold_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real_join = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: real_join(self, 0.05))

    def hang() -> int:
        release.wait(5)
        return 9

    began = time.monotonic()
    found = Rig(a_round, hang, seconds=0.03).measure(max_rounds=1)
    assert time.monotonic() - began < 2
    assert len(found.rounds) == 1
    release.set()


def test_a_clock_that_is_set_again_and_again_ends_it() -> None:
    why = "the machine's clock was set by +12.0 ms during the round"
    rig = Rig(lambda index: a_round(index, invalid_because=why))
    found = rig.measure(max_rounds=9)
    assert rig.asked == [1, 2, 3]
    assert found.failures == {why: 3}


def test_rounds_without_a_rate_give_no_median() -> None:
    found = Rig(lambda index: a_round(index, None)).measure(max_rounds=2)
    assert len(found.rounds) == 2
    assert found.decode_tok_s is None


def test_acceptance_length_is_the_mean_of_the_rounds() -> None:
    found = Rig(lambda index: a_round(index, accept_length=2.0 + index)).measure(max_rounds=2)
    assert found.accept_length == 3.5


def test_an_interrupt_in_a_round_ends_the_watching_thread() -> None:
    def interrupted(index: int) -> Round:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        Rig(interrupted).measure()
    assert threading.active_count() <= before


def test_counters_that_disagree_again_and_again_end_it_with_the_first_numbers() -> None:
    def wrong(index: int) -> Round:
        return a_round(index, invalid_because=f"{module.COUNTERS} by {index + 9} % (256 and {230 + index} tokens): why")

    rig = Rig(wrong)
    found = rig.measure(max_rounds=9)
    assert rig.asked == [1, 2, 3]
    assert found.failures == {f"{module.COUNTERS} by 10 % (256 and 231 tokens): why": 3}
    assert (found.ci_low, found.decode_tok_s, found.failed) == (None, None, 0)


def test_the_merged_share_of_all_rounds_is_told() -> None:
    rig = Rig(lambda index: a_round(index, merged_share=index / 100, output_tokens=100 * index))
    assert rig.measure(max_rounds=2).merged_share == pytest.approx((0.01 * 100 + 0.02 * 200) / 300)
