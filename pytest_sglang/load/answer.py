"""One request's events as tokens with arrival times: who counts is the server (``usage`` or ``meta_info``), never the chunks.

An answer counts only if it ended whole: finish reason ``length``, exactly the asked number of tokens, no error event, ``[DONE]``
seen, no NaN stop. Everything else has a ``failure`` and is no sample. Forms of SGLang 0.4.6 to 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pytest_sglang.record.values import Value

Api = Literal["chat", "completions", "native"]
Clock = Literal["usage", "events", "none"]

EXACT, MERGED, TAIL = 0, 1, 2
"""How sure the time of a token event is.

EXACT: it is the last event of its read, so the stamp is its own. MERGED: tokens of later events arrived in the same read. TAIL: the
last tokens, in one read with the closing events. MERGED and TAIL give no ITL sample.
"""


class Answer(Value, frozen=True, kw_only=True):
    """What one request gave: ``counts[i]`` tokens in all had arrived at ``times_ns[i]`` (epoch, ns), known as ``marks[i]`` says.

    ``clock``: "usage" = every event told its token count; "events" = only the last did and the events are taken for the clock.
    """

    tokens: int
    counts: tuple[int, ...] = ()
    times_ns: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()
    finish_reason: str | None = None
    failure: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    accept_length: float | None = None
    clock: Clock = "none"

    @property
    def token_times(self) -> list[tuple[int, float]]:
        """(tokens so far, epoch seconds) at each arrival."""
        return [(count, at / 1e9) for count, at in zip(self.counts, self.times_ns, strict=True)]

    @property
    def merged_events(self) -> int:
        """Events whose own arrival time is not known, because later tokens came in the same read."""
        return sum(mark == MERGED for mark in self.marks)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    matched_stop: int | str | None = None


class _Meta(msgspec.Struct):
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: Any = None
    num_retractions: int = 0
    total_retractions: int = 0
    spec_verify_ct: int | None = None
    spec_accept_length: float | None = None


class _Event(msgspec.Struct):
    error: Any = None
    object: Any = None
    message: Any = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    meta_info: _Meta | None = None


_DECODER = msgspec.json.Decoder(_Event)


class AnswerReader:
    """State of one request: takes payloads as they arrive, gives the Answer at the end. Never raises for what a server sends."""

    __slots__ = (
        "_asked",
        "_cached",
        "_closing",
        "_content_at",
        "_counts",
        "_done",
        "_failure",
        "_finish",
        "_marks",
        "_matched",
        "_meta",
        "_native",
        "_prompt",
        "_times",
        "_total",
    )

    def __init__(self, api: Api, asked_tokens: int) -> None:
        self._native = api == "native"
        self._asked = asked_tokens
        self._counts: list[int] = []
        self._times: list[int] = []
        self._marks: list[int] = []
        self._content_at: list[int] = []
        self._total: int | None = None
        self._finish: str | None = None
        self._matched: int | str | None = None
        self._failure: str | None = None
        self._done = False
        self._closing = False
        self._prompt: int | None = None
        self._cached: int | None = None
        self._meta: _Meta | None = None

    @property
    def failed(self) -> bool:
        """True: nothing that may still come makes this answer a sample."""
        return self._failure is not None

    def fail(self, why: str) -> None:
        """This answer is no sample; the first reason stays."""
        if self._failure is None:
            self._failure = why

    @property
    def tokens(self) -> int:
        """Tokens that have arrived so far, by the server's count."""
        return self._total or 0

    def read(self, payloads: Sequence[bytes], at_ns: int, *, exact: bool = True) -> None:
        """The events of one read, whose last byte arrived at ``at_ns`` (epoch, ns).

        ``exact`` False: that byte belongs to an event of which more is to come, so that not even the last whole event has a time
        of its own.
        """
        before = len(self._counts)
        last = len(payloads) - 1 if exact else -1
        mark = EXACT if exact else MERGED
        for position, payload in enumerate(payloads):
            if self._event(payload, at_ns) and exact:
                mark = EXACT if position == last else TAIL
        added = len(self._counts) - before
        if added:
            self._marks.extend([MERGED] * (added - 1))
            self._marks.append(mark)

    def _event(self, payload: bytes, at_ns: int) -> bool:
        """One event; True when it brought tokens."""
        if self._done:
            self.fail("the server sent events after [DONE]")
            return False
        if payload == b"[DONE]":
            self._done = True
            return False
        try:
            if not payload.isascii():
                # the decoder looks only into the fields that it keeps
                payload.decode()
            event = _DECODER.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.fail(f"an event that is no answer of this API: {payload[:80]!r} ({error})")
            return False
        if event.error is not None or event.object == "error":
            self.fail(f"error event inside HTTP 200: {_message(event)}")
            return False
        if self._native:
            return self._native_event(event.meta_info, at_ns)
        return self._openai_event(event, at_ns)

    def _native_event(self, meta: _Meta | None, at_ns: int) -> bool:
        if meta is None:
            self.fail("an event without meta_info: this is not SGLang's native API")
            return False
        self._meta = meta
        self._prompt, self._cached = meta.prompt_tokens, meta.cached_tokens
        finish = meta.finish_reason
        if isinstance(finish, dict):
            matched = finish.get("matched")
            self._ended(str(finish.get("type")), matched if isinstance(matched, (int, str)) else None)
            if finish.get("type") == "abort":
                self.fail(f"aborted by the server: {finish.get('message') or 'no reason given'}")
        elif finish is not None:
            self._ended(str(finish), None)
        return meta.completion_tokens is not None and self._count(meta.completion_tokens, at_ns)

    def _openai_event(self, event: _Event, at_ns: int) -> bool:
        for choice in event.choices or ():
            if choice.index != 0:
                self.fail("more than one answer to one request")
            delta = choice.delta
            if choice.text or (delta is not None and (delta.content or delta.reasoning_content or delta.tool_calls)):
                self._content_at.append(at_ns)
            if choice.finish_reason is not None:
                self._ended(choice.finish_reason, choice.matched_stop)
        usage = event.usage
        if usage is None or usage.completion_tokens is None:
            return False
        self._prompt = usage.prompt_tokens if usage.prompt_tokens is not None else self._prompt
        if usage.prompt_tokens_details is not None:
            self._cached = usage.prompt_tokens_details.cached_tokens
        if not event.choices and not self._counts:
            # only the closing event tells the count: it says how many, not when
            if usage.completion_tokens < 0:
                self.fail(f"the server counted {usage.completion_tokens} tokens")
            self._total, self._closing = usage.completion_tokens, usage.completion_tokens > 0
            return False
        return self._count(usage.completion_tokens, at_ns)

    def _count(self, tokens: int, at_ns: int) -> bool:
        before = self._total or 0
        if self._closing:
            self.fail("tokens behind the closing usage")
        if tokens < before:
            self.fail(f"the server's token count went backwards, from {before} to {tokens}")
            return False
        self._total = tokens
        if tokens == before:
            return False
        self._counts.append(tokens)
        self._times.append(at_ns)
        return True

    def _ended(self, reason: str, matched: int | str | None) -> None:
        if self._finish is not None and self._finish != reason:
            self.fail(f"two finish reasons: {self._finish} and {reason}")
        self._finish, self._matched = reason, matched

    def finish(self) -> Answer:
        """The answer, judged; call it when the HTTP message has ended or never will."""
        clock: Clock = "usage" if self._counts else "none"
        if self._total and len(self._content_at) > 2 * len(self._counts):
            self._events_as_clock(self._total)
            clock = "events"
        self._judge()
        return Answer(
            tokens=self._total or 0,
            counts=tuple(self._counts),
            times_ns=tuple(self._times),
            marks=tuple(self._marks),
            finish_reason=self._finish,
            failure=self._failure,
            prompt_tokens=self._prompt,
            cached_tokens=self._cached,
            accept_length=self._accept_length(),
            clock=clock,
        )

    def _judge(self) -> None:
        if self._failure is not None:
            return
        if isinstance(self._matched, str) and "nan" in self._matched.lower() and self._finish == "stop":
            self.fail(f"the model computed NaN: finish reason stop, matched {self._matched!r}")
        elif self._finish is None:
            self.fail("the stream ended without a finish reason")
        elif self._finish != "length":
            told = f" (matched {self._matched!r})" if self._matched is not None else ""
            self.fail(f"finish reason {self._finish} after {self._total or 0} of {self._asked} tokens{told}")
        elif self._total is None:
            self.fail("the server told no token count (no usage in the stream)")
        elif self._total != self._asked:
            self.fail(f"{self._total} tokens instead of {self._asked}")
        elif not self._done:
            self.fail("the stream ended without [DONE]")
        elif not self._counts:
            self.fail("no event brought a token")
        elif self._meta is not None and (thrown := self._meta.num_retractions or self._meta.total_retractions):
            self.fail(f"thrown back by the scheduler {thrown} time(s): the server had no room")

    def _events_as_clock(self, total: int) -> None:
        """Only the number of tokens is known: one an event where that fits, else shared out evenly and marked."""
        events = self._content_at
        exact = len(events) == total
        self._counts, self._times, self._marks = [], [], []
        for number, at in enumerate(events, 1):
            count = max(1, round(total * number / len(events)))
            if self._counts and count <= self._counts[-1]:
                continue
            if self._times and self._times[-1] == at:
                self._marks[-1] = MERGED
            self._counts.append(count)
            self._times.append(at)
            self._marks.append(EXACT if exact else MERGED)

    def _accept_length(self) -> float | None:
        meta = self._meta
        if meta is None:
            return None
        if meta.spec_accept_length is not None:
            return meta.spec_accept_length
        if meta.spec_verify_ct and meta.completion_tokens is not None:
            return meta.completion_tokens / meta.spec_verify_ct
        return None


def _message(event: _Event) -> str:
    found = event.error
    if isinstance(found, dict):
        found = found.get("message") or found
    elif found is None:
        found = event.message
    return str(found)[:200]
