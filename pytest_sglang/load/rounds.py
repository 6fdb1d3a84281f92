"""From requests to a round's figures. All times are arrival times at this machine; all counts are the server's.

For one stream of n tokens, sent at t_sent, whose first tokens (k of them, as a rule 1, in one read) arrived at t_first, its last at
t_last:

- TTFT = t_first - t_sent.
- decode tok/s = (n - k) / (t_last - t_first), which is (n - 1) / (t_last - t_first) where one token came first.
- end-to-end tok/s = n / (t_last - t_sent).
- ITL: the gap between consecutive token events; an event of m tokens gives m samples of gap/m. Events that one read merged have no
  time of their own and give none.

For a round: decode and end-to-end are means over its streams; aggregate tok/s = tokens of all streams in the window in which all of
them decode (latest t_first to earliest t_last, ramp-up and drain cut off) / its length, a stream's tokens at the window's edges
interpolated between its arrivals.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_sglang.load.answer import EXACT, Answer
from pytest_sglang.load.prompts import Prompt
from pytest_sglang.load.stamps import now_ns
from pytest_sglang.record.values import Round, Value

if TYPE_CHECKING:
    from pytest_sglang.load.connection import Connection

LAG_QUANTILE = 0.99


class Exchange(Value, frozen=True, kw_only=True):
    """One request and its answer. ``lag_s``: what the client's own lateness may have added to a time stamp of it.

    ``read_late_s`` is how long bytes lay ready before they were read (99 % of reads were faster): harmless with kernel stamps.
    """

    sent_ns: int
    answer: Answer
    prompt_tokens: int
    prompt_characters: int
    lag_s: float = 0.0
    read_late_s: float = 0.0

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
    def end_to_end_tok_s(self) -> float | None:
        """n / (t_last - t_sent)."""
        times = self.answer.times_ns
        return self.answer.tokens * 1e9 / (times[-1] - self.sent_ns) if times and times[-1] > self.sent_ns else None

    @property
    def itl_s(self) -> list[float]:
        """Gaps between tokens, where both ends have a time of their own."""
        answer = self.answer
        found: list[float] = []
        for position in range(1, len(answer.times_ns)):
            if answer.marks[position] == EXACT and answer.marks[position - 1] == EXACT:
                tokens = answer.counts[position] - answer.counts[position - 1]
                found += [(answer.times_ns[position] - answer.times_ns[position - 1]) / 1e9 / tokens] * tokens
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
            "events": events,
        }


def exchange(connection: Connection, prompt: Prompt) -> Exchange:
    """What ``connection`` just finished."""
    late = sorted(connection.late_ns)
    read_late_s = late[min(len(late) - 1, int(len(late) * LAG_QUANTILE))] / 1e9 if late else 0.0
    send_s = connection.send_ns / 1e9
    return Exchange(
        sent_ns=connection.sent_ns,
        answer=connection.reader.finish(),
        prompt_tokens=prompt.tokens,
        prompt_characters=len(prompt.text),
        lag_s=send_s if connection.kernel_stamps else max(send_s, read_late_s),
        read_late_s=max(0.0, read_late_s),
    )


def unsent(prompt: Prompt, why: str) -> Exchange:
    """A request that never left."""
    answer = Answer(tokens=0, failure=why)
    return Exchange(sent_ns=now_ns(), answer=answer, prompt_tokens=prompt.tokens, prompt_characters=len(prompt.text))


def aggregate_tok_s(exchanges: Sequence[Exchange]) -> float | None:
    """All streams' tokens a second while all of them decode; None where there is no such time."""
    if not exchanges or any(len(each.answer.times_ns) < 2 for each in exchanges):
        return None
    begin = max(each.answer.times_ns[0] for each in exchanges)
    end = min(each.answer.times_ns[-1] for each in exchanges)
    if end <= begin:
        return None
    tokens = sum(each.tokens_at(end) - each.tokens_at(begin) for each in exchanges)
    return tokens * 1e9 / (end - begin)


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
        output_tokens=sum(each.answer.tokens for each in good),
        accept_length=sum(accepted) / len(accepted) if accepted else None,
        client_lag_s=max(each.lag_s for each in exchanges),
        failures=failures,
        invalid_because=invalid,
    )
