"""From requests to a round's figures. All times are arrival times at this machine; all counts are the server's.

For one stream of n tokens, sent at t_sent, whose first tokens (k of them, as a rule 1, in one read) arrived at t_first, its last at
t_last:

- TTFT = t_first - t_sent.
- decode tok/s = (n - k) / (t_last - t_first), which is (n - 1) / (t_last - t_first) where one token came first.
- end-to-end tok/s = n / (t_last - t_sent).
- ITL: the gap between consecutive token events; an event of m tokens gives m samples of gap/m. Events that one read merged have no
  time of their own: neither the gap before nor the one behind them is a sample. What is left is no fair sample of all gaps: where a
  sender stalls, the long gap before the first token survives and the short ones behind it are lost (or the other way round). So a
  merged share above 1 % earns no percentile, and ``unsure_itl_s`` tells how long each lost gap may have been.
- TPOT = (t_last - t_first) / (n - k): nothing can be lost from it.

For a round: decode and end-to-end are means over its streams; aggregate tok/s = tokens of all streams in the window in which all of
them are at work (latest first token of a stream to earliest last token of one, ramp-up and drain cut off) / its length, a stream's
tokens at the window's edges interpolated between its arrivals.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pytest_sglang.load.answer import EXACT, MERGED, Answer
from pytest_sglang.load.prompts import Prompt
from pytest_sglang.load.stamps import now_ns
from pytest_sglang.record.values import Round, Value

if TYPE_CHECKING:
    from pytest_sglang.load.connection import Connection

LAG_QUANTILE = 0.99
ITL_LAG_QUANTILE = 0.999
"""Of many stamps few may be later than they say: a p99 does not see one in a thousand."""


class Exchange(Value, frozen=True, kw_only=True):
    """One request and its answer. ``lag_s``: what the client's own lateness may have added to a time stamp of it, at most.

    ``send_lag_s``: so long after its clock began the request left at the latest. ``stamp_lag_s``: so much a time of arrival may be
    late (``itl_lag_s``: all but one in a thousand); both 0 where the kernel stamps. ``read_late_s`` is how long bytes lay ready before they were
    read (99 % of reads were faster): harmless with kernel stamps. ``stream``: which of the client's connections it went over;
    None: one of its own.
    """

    sent_ns: int
    answer: Answer
    prompt_tokens: int
    prompt_characters: int
    lag_s: float = 0.0
    read_late_s: float = 0.0
    send_lag_s: float = 0.0
    stamp_lag_s: float = 0.0
    itl_lag_s: float = 0.0
    stream: int | None = None
    stamps: Literal["kernel", "user"] = "kernel"

    @property
    def ttft_s(self) -> float | None:
        """Send to first token; None where none came."""
        times = self.answer.times_ns
        return (times[0] - self.sent_ns) / 1e9 if times else None

    @property
    def decode_tok_s(self) -> float | None:
        """(n - k) / (t_last - t_first); None for fewer than two arrivals."""
        times, counts = self.answer.times_ns, self.answer.counts
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        first = counts[bisect_right(times, times[0]) - 1]
        return (counts[-1] - first) * 1e9 / (times[-1] - times[0])

    @property
    def tpot_s(self) -> float | None:
        """(t_last - t_first) / (n - k); None for fewer than two arrivals."""
        rate = self.decode_tok_s
        return 1.0 / rate if rate else None

    @property
    def end_to_end_s(self) -> float | None:
        """Send to last token; None where none came."""
        times = self.answer.times_ns
        return (times[-1] - self.sent_ns) / 1e9 if times else None

    @property
    def end_to_end_tok_s(self) -> float | None:
        """n / (t_last - t_sent)."""
        times = self.answer.times_ns
        return self.answer.tokens * 1e9 / (times[-1] - self.sent_ns) if times and times[-1] > self.sent_ns else None

    @property
    def itl_s(self) -> list[float]:
        """Gaps between tokens, where both ends have a time of their own."""
        found: list[float] = []
        seen = zip(self.answer.marks, self.answer.counts, self.answer.times_ns, strict=True)
        for (mark, count, at), (next_mark, next_count, next_at) in pairwise(seen):
            if mark == EXACT and next_mark == EXACT:
                if next_count - count == 1:
                    found.append((next_at - at) / 1e9)
                else:
                    tokens = next_count - count
                    found += [(next_at - at) / 1e9 / tokens] * tokens
        return found

    @property
    def unsure_itl_s(self) -> list[float]:
        """For each gap that ``itl_s`` leaves out, between arrivals that have no time of their own: the most that it may have been."""
        answer = self.answer
        found: list[float] = []
        before_ns, counted, sure = self.sent_ns, min(answer.counts[:1], default=0), False
        for mark, count, at in zip(answer.marks, answer.counts, answer.times_ns, strict=True):
            exact = mark == EXACT
            if not (exact and sure):
                found += [(at - before_ns) / 1e9] * (count - counted)
            counted, sure = count, exact
            if exact:
                before_ns = at
        return found

    @property
    def shared_tokens(self) -> int:
        """Samples of ``itl_s`` that are equal parts of the gap of one event."""
        answer, found = self.answer, 0
        for position in range(1, len(answer.marks)):
            tokens = answer.counts[position] - answer.counts[position - 1]
            if tokens > 1 and answer.marks[position] == EXACT and answer.marks[position - 1] == EXACT:
                found += tokens
        return found

    def tokens_at(self, at_ns: float) -> float:
        """Tokens that had arrived by then, interpolated between arrivals."""
        times, counts = self.answer.times_ns, self.answer.counts
        after = bisect_right(times, at_ns)
        if after == 0:
            return 0.0
        if after == len(times):
            return float(counts[-1])
        share = (at_ns - times[after - 1]) / (times[after] - times[after - 1])
        return counts[after - 1] + share * (counts[after] - counts[after - 1])

    def raw(self, *, round_index: int, number: int, stamps: str) -> dict[str, Any]:
        """Everything that was seen of it as plain data: ``events`` are [tokens so far, ms since the send, mark] (mark 0: exact)."""
        answer = self.answer
        events = [
            [count, round((at - self.sent_ns) / 1e6, 4), mark]
            for count, at, mark in zip(answer.counts, answer.times_ns, answer.marks, strict=True)
        ]
        return {
            "round": round_index,
            "request": number,
            "sent_s": self.sent_ns / 1e9,
            "tokens": answer.tokens,
            "prompt_tokens": answer.prompt_tokens,
            "prompt_characters": self.prompt_characters,
            "cached_tokens": answer.cached_tokens,
            "accept_length": answer.accept_length,
            "finish_reason": answer.finish_reason,
            "failure": answer.failure,
            "clock": answer.clock,
            "stamps": stamps,
            "lag_ms": round(self.lag_s * 1e3, 4),
            "read_late_ms": round(self.read_late_s * 1e3, 4),
            "merged_events": answer.merged_events,
            "shared_tokens": self.shared_tokens,
            "events": events,
        }


def exchange(connection: Connection, prompt: Prompt, *, stream: int | None = None, wakes_ns: Sequence[int] = ()) -> Exchange:
    """What ``connection`` just finished. ``wakes_ns``: how late the client woke meanwhile, where the kernel does not stamp."""
    late = sorted(connection.late_ns)
    send_s = connection.send_ns / 1e9
    kernel = connection.kernel_stamps
    stamped = [] if kernel else sorted([*late, *wakes_ns])
    return Exchange(
        sent_ns=connection.sent_ns,
        answer=connection.reader.finish(),
        prompt_tokens=prompt.tokens,
        prompt_characters=len(prompt.text),
        lag_s=max(send_s, _quantile_s(stamped, 1.0)),
        read_late_s=_quantile_s(late, LAG_QUANTILE),
        send_lag_s=send_s,
        stamp_lag_s=_quantile_s(stamped, 1.0),
        itl_lag_s=_quantile_s(stamped, ITL_LAG_QUANTILE),
        stream=stream,
        stamps="kernel" if kernel else "user",
    )


def _quantile_s(ordered_ns: Sequence[int], q: float) -> float:
    """Seconds; not below 0, since two clocks that are read one after the other may differ by a hair."""
    return max(0.0, ordered_ns[min(len(ordered_ns) - 1, int(len(ordered_ns) * q))] / 1e9) if ordered_ns else 0.0


def unsent(prompt: Prompt, why: str) -> Exchange:
    """A request that never left."""
    answer = Answer(tokens=0, failure=why)
    return Exchange(sent_ns=now_ns(), answer=answer, prompt_tokens=prompt.tokens, prompt_characters=len(prompt.text))


def aggregate_tok_s(exchanges: Sequence[Exchange]) -> float | None:
    """All streams' tokens a second while all of them are at work; None where there is no such time."""
    if not exchanges or any(len(each.answer.times_ns) < 2 for each in exchanges):
        return None
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, each in enumerate(exchanges):
        stream = -1 - number if each.stream is None else each.stream
        first[stream] = min(first.get(stream, each.answer.times_ns[0]), each.answer.times_ns[0])
        last[stream] = max(last.get(stream, 0), each.answer.times_ns[-1])
    begin, end = max(first.values()), min(last.values())
    if end <= begin:
        return None
    tokens = sum(each.tokens_at(end) - each.tokens_at(begin) for each in exchanges)
    return tokens * 1e9 / (end - begin)


def merged_share(exchanges: Sequence[Exchange]) -> float:
    """Token events without a time of their own as a share of all; the last of each answer, in one read with its end, aside."""
    merged = sum(each.answer.merged_events for each in exchanges)
    known = sum(each.answer.marks.count(EXACT) for each in exchanges)
    return merged / (merged + known) if merged else 0.0


def make_round(index: int, exchanges: Sequence[Exchange], *, clock_step: str | None = None) -> Round:
    """The figures of a round. One failed request makes it no sample: the others ran in company that was not the promised one."""
    failures = tuple(each.answer.failure for each in exchanges if each.answer.failure is not None)
    good = [each for each in exchanges if each.answer.failure is None]
    decode = [rate for each in good if (rate := each.decode_tok_s) is not None]
    end_to_end = [rate for each in good if (rate := each.end_to_end_tok_s) is not None]
    accepted = [each.answer.accept_length for each in good if each.answer.accept_length is not None]
    begin_ns = min(each.sent_ns for each in exchanges)
    end_ns = max(max(each.answer.times_ns, default=each.sent_ns) for each in exchanges)
    invalid = None
    if failures:
        invalid = f"{len(failures)} of {len(exchanges)} requests failed: {failures[0]}"
    elif clock_step is not None:
        invalid = clock_step
    whole = bool(good) and not failures
    return Round(
        index=index,
        begin_s=begin_ns / 1e9,
        end_s=end_ns / 1e9,
        decode_tok_s=sum(decode) / len(decode) if whole and len(decode) == len(good) else None,
        end_to_end_tok_s=sum(end_to_end) / len(end_to_end) if whole and len(end_to_end) == len(good) else None,
        aggregate_tok_s=aggregate_tok_s(good) if whole else None,
        ttft_s=tuple(each.ttft_s for each in good if each.ttft_s is not None),
        itl_s=tuple(gap for each in good for gap in each.itl_s),
        tpot_s=tuple(each.tpot_s for each in good if each.tpot_s is not None),
        output_tokens=sum(each.answer.tokens for each in good),
        accept_length=sum(accepted) / len(accepted) if accepted else None,
        client_lag_s=max(each.lag_s for each in exchanges),
        failures=failures,
        invalid_because=invalid,
        merged_share=merged_share(good),
        unsure_itl_s=tuple(gap for each in good for gap in each.unsure_itl_s),
        unsure_ttft=sum(each.answer.marks[:1] == (MERGED,) for each in good),
        shared_tokens=sum(each.shared_tokens for each in good),
        stamps="kernel" if all(each.stamps == "kernel" for each in exchanges) else "user",
        stamp_lag_s=max(each.stamp_lag_s for each in exchanges),
        itl_lag_s=max(each.itl_lag_s for each in exchanges),
        send_lag_s=max(each.send_lag_s for each in exchanges),
    )
