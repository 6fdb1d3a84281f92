"""A round's figures by their definitions."""

from __future__ import annotations

import pytest

from pytest_sglang.load.answer import EXACT, MERGED, TAIL, Answer
from pytest_sglang.load.rounds import Exchange, aggregate_tok_s, make_round

MS = 1_000_000


def stream(*events: tuple[int, float], marks: tuple[int, ...] | None = None, sent_ms: float = 0.0, **more: object) -> Exchange:
    """Events are (tokens so far, ms)."""
    answer = Answer(
        tokens=events[-1][0] if events else 0,
        counts=tuple(count for count, _ in events),
        times_ns=tuple(round(at * MS) for _, at in events),
        marks=marks or (EXACT,) * len(events),
        clock="usage",
        **more,  # type: ignore[arg-type]
    )
    return Exchange(sent_ns=round(sent_ms * MS), answer=answer, prompt_tokens=5, prompt_characters=20)


STEADY = stream((1, 100), (2, 120), (3, 140), (4, 160), (5, 180))


def test_definitions_on_a_steady_stream() -> None:
    assert STEADY.ttft_s == pytest.approx(0.1)
    assert STEADY.decode_tok_s == pytest.approx(50)
    assert STEADY.end_to_end_tok_s == pytest.approx(5 / 0.18)
    assert STEADY.itl_s == pytest.approx([0.02] * 4)
    done = make_round(7, [STEADY])
    assert (done.index, done.begin_s, done.end_s, done.output_tokens) == (7, 0.0, 0.18, 5)
    assert done.aggregate_tok_s == pytest.approx(50)


def test_what_came_with_the_first_read_is_not_decoded_in_the_window() -> None:
    assert stream((3, 100), (4, 120), (5, 140)).decode_tok_s == pytest.approx(50)
    assert stream((1, 100), (2, 100), (3, 120), marks=(MERGED, EXACT, EXACT)).decode_tok_s == pytest.approx(50)


def test_merged_and_closing_events_give_no_latency() -> None:
    marks = (EXACT, MERGED, EXACT, EXACT, TAIL)
    found = stream((1, 100), (2, 140), (3, 140), (4, 160), (5, 180), marks=marks)
    assert found.itl_s == pytest.approx([0.02])
    assert found.decode_tok_s == pytest.approx(50)


def test_tokens_of_one_event_share_its_gap() -> None:
    assert stream((1, 100), (5, 140)).itl_s == pytest.approx([0.01] * 4)


@pytest.mark.parametrize("events", [[], [(5, 100.0)], [(1, 100.0), (2, 100.0)]])
def test_too_few_arrivals_give_no_rate(events: list[tuple[int, float]]) -> None:
    found = stream(*events)
    assert found.decode_tok_s is None
    assert aggregate_tok_s([found]) is None
    assert make_round(1, [found]).decode_tok_s is None
    assert (found.ttft_s is None) == (not events)
    assert (found.end_to_end_tok_s is None) == (not events)


def test_aggregate_counts_only_while_all_streams_decode() -> None:
    early = stream(*[(n, 20.0 * n) for n in range(1, 11)])
    late = stream(*[(n, 100 + 20.0 * n) for n in range(1, 11)])
    # 120 ms to 200 ms: four gaps of each
    assert aggregate_tok_s([early, late]) == pytest.approx(100)
    apart = stream((1, 1000), (2, 1020))
    assert aggregate_tok_s([early, apart]) is None
    assert aggregate_tok_s([]) is None


def test_tokens_at_the_windows_edges_are_interpolated() -> None:
    assert STEADY.tokens_at(50 * MS) == 0
    assert STEADY.tokens_at(130 * MS) == pytest.approx(2.5)
    assert STEADY.tokens_at(900 * MS) == 5


def test_a_round_of_two_streams_takes_their_mean() -> None:
    slow = stream((1, 100), (2, 140), (3, 180), sent_ms=10)
    done = make_round(1, [STEADY, slow])
    assert done.decode_tok_s == pytest.approx((50 + 25) / 2)
    assert done.output_tokens == 8
    assert done.ttft_s == pytest.approx((0.1, 0.09))


def test_one_failed_request_makes_the_round_no_sample_and_gives_no_figures_of_its_own() -> None:
    broken = stream((1, 100), (2, 120), failure="cut")
    done = make_round(1, [STEADY, broken])
    assert done.invalid_because == "1 of 2 requests failed: cut"
    assert done.failures == ("cut",)
    assert (done.decode_tok_s, done.end_to_end_tok_s, done.aggregate_tok_s) == (None, None, None)
    assert done.output_tokens == 5
    assert len(done.ttft_s) == 1


def test_a_clock_step_makes_it_invalid_unless_it_failed_anyway() -> None:
    assert make_round(1, [STEADY], clock_step="clock").invalid_because == "clock"
    broken = stream((1, 100), failure="cut")
    assert make_round(1, [broken], clock_step="clock").invalid_because == "1 of 1 requests failed: cut"


def test_acceptance_length_and_lag_of_a_round() -> None:
    accepted = stream((1, 100), (2, 120), accept_length=2.0)
    assert make_round(1, [accepted, STEADY]).accept_length == 2.0
    assert make_round(1, [STEADY]).accept_length is None
