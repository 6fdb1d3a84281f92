"""A round's figures by their definitions."""

from __future__ import annotations

import msgspec
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


def test_every_gap_that_is_no_sample_has_an_upper_bound() -> None:
    found = stream((1, 100), (2, 140), (3, 140), (4, 160), (5, 180), marks=(EXACT, MERGED, EXACT, EXACT, TAIL))
    assert found.itl_s == pytest.approx([0.02])
    assert found.unsure_itl_s == pytest.approx([0.04, 0.04, 0.02])
    first = stream((1, 100), (2, 100), (3, 120), marks=(MERGED, EXACT, EXACT), sent_ms=20)
    assert first.unsure_itl_s == pytest.approx([0.08])
    assert STEADY.unsure_itl_s == []


def test_dropping_merged_gaps_biases_what_is_left_and_the_spans_do_not() -> None:
    # a sender that stalls for a token and then catches up: the first late token is read alone, its followers together
    times = [(number, 20.0 * number) for number in range(1, 60)]
    events, marks = [], []
    for count, at in times:
        late = at if count % 4 == 1 or count < 4 else 20.0 * (count - count % 4 + 4) if count % 4 else at
        events.append((count, late))
        marks.append(MERGED if count % 4 == 3 else EXACT)
    found = stream(*events, marks=tuple(marks))
    done = make_round(1, [found])
    assert done.merged_share > 0.2
    assert sum(found.itl_s) / len(found.itl_s) > 1.2 * 0.02
    assert found.tpot_s == pytest.approx(0.02, rel=0.05)


def test_merged_share_leaves_the_closing_event_aside() -> None:
    found = stream((1, 100), (2, 140), (3, 140), (4, 160), marks=(EXACT, MERGED, EXACT, TAIL))
    assert make_round(1, [found]).merged_share == pytest.approx(1 / 3)
    assert make_round(1, [STEADY]).merged_share == 0.0
    assert make_round(1, [stream((1, 100.0), marks=(TAIL,))]).merged_share == 0.0


def test_tokens_that_share_an_events_gap_are_counted() -> None:
    found = stream((1, 100), (3, 140), (4, 160))
    assert found.shared_tokens == 2
    assert make_round(1, [found]).shared_tokens == 2
    assert found.raw(round_index=1, number=0, stamps="kernel")["shared_tokens"] == 2


def test_aggregate_of_a_closed_loop_cuts_ramp_up_and_drain_and_keeps_the_pauses_between_requests() -> None:
    def run(begin: float, on: int) -> Exchange:
        return msgspec.structs.replace(stream(*[(n, begin + 20.0 * n) for n in range(1, 11)]), stream=on)

    # stream 0 works from 20 to 520 ms with a pause of 120, stream 1 from 70 to 570 likewise
    exchanges = [run(0, 0), run(50, 1), run(320, 0), run(370, 1)]
    begin, end = 70.0, 520.0
    counted = sum(each.tokens_at(end * MS) - each.tokens_at(begin * MS) for each in exchanges)
    assert aggregate_tok_s(exchanges) == pytest.approx(counted / (end - begin) * 1e3)
    assert counted == pytest.approx(10 - 3.5 + 10 - 1 + 10 + 7.5, abs=0.01)


def test_a_rounds_lag_is_its_worst_requests() -> None:
    late = msgspec.structs.replace(STEADY, lag_s=0.02, send_lag_s=0.001, stamp_lag_s=0.02, itl_lag_s=0.003, stamps="user")
    done = make_round(1, [STEADY, late])
    assert (done.client_lag_s, done.send_lag_s, done.stamp_lag_s, done.itl_lag_s) == (0.02, 0.001, 0.02, 0.003)
    assert done.stamps == "user"
    assert make_round(1, [STEADY]).stamps == "kernel"
