"""Tokens are what the server counts, and an answer counts only if it ended whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang.load.answer import EXACT, MERGED, TAIL, Answer, AnswerReader, Api
from pytest_sglang.load.stream import EventParser, StreamError

RECORDED = json.loads((Path(__file__).parents[1] / "data/load/recorded-streams.json").read_text(encoding="utf-8"))
APIS: dict[str, Api] = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/generate": "native"}


def read(api: Api, asked: int, payloads: list[Any], *, together: int = 1) -> Answer:
    """Events at 1, 2, 3 ... seconds, ``together`` of them a read."""
    reader = AnswerReader(api, asked)
    encoded = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in payloads]
    for number, begin in enumerate(range(0, len(encoded), together)):
        reader.read(encoded[begin : begin + together], (number + 1) * 10**9)
    return reader.finish()


def completion(tokens: int | None, finish: str | None = None, matched: object = None, text: str = "x") -> dict[str, Any]:
    usage = None if tokens is None else {"prompt_tokens": 4, "completion_tokens": tokens}
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish, "matched_stop": matched}], "usage": usage}


def native(tokens: int, finish: object = None, **more: object) -> dict[str, Any]:
    return {"text": "x", "meta_info": {"completion_tokens": tokens, "prompt_tokens": 4, "finish_reason": finish, **more}}


WHOLE = [
    completion(1),
    completion(2),
    completion(3, "length"),
    {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 4}},
    b"[DONE]",
]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda each: f"{each['from']}: {each['name']}")
def test_recorded_streams_are_whole_and_exact(recorded: dict[str, Any]) -> None:
    payloads = EventParser().feed(recorded["body"].encode())
    answer = read(APIS[recorded["path"]], recorded["asked"], list(payloads))
    if "usage" not in json.dumps(recorded["request"]) and recorded["path"] != "/generate":
        assert answer.failure == "the server told no token count (no usage in the stream)"
        return
    assert answer.failure is None
    assert answer.tokens == recorded["asked"]
    assert answer.finish_reason == "length"
    assert answer.counts[-1] == recorded["asked"]
    assert answer.prompt_tokens is not None
    continuous = recorded["path"] == "/generate" or "continuous" in json.dumps(recorded["request"])
    assert answer.clock == ("usage" if continuous else "events")
    if continuous and recorded["asked"] < 20:
        assert answer.counts == tuple(range(1, recorded["asked"] + 1))


def test_recorded_native_stream_tells_cached_tokens() -> None:
    recorded = next(each for each in RECORDED if each["path"] == "/generate" and each["from"].startswith("0.5.23"))
    assert read("native", 8, list(EventParser().feed(recorded["body"].encode()))).cached_tokens == 2


def test_a_whole_answer_has_a_clock_of_its_tokens() -> None:
    answer = read("completions", 3, WHOLE)
    assert answer.failure is None
    assert answer.token_times == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert answer.marks == (EXACT, EXACT, EXACT)
    assert answer.prompt_tokens == 4


def test_several_events_of_one_read_are_marked() -> None:
    answer = read("completions", 3, WHOLE, together=5)
    assert answer.counts == (1, 2, 3)
    assert answer.marks == (MERGED, MERGED, TAIL)
    assert answer.merged_events == 2


def test_several_tokens_of_one_event_keep_their_count() -> None:
    answer = read("completions", 6, [completion(1), completion(4), completion(6, "length"), b"[DONE]"])
    assert answer.counts == (1, 4, 6)
    assert answer.failure is None


@pytest.mark.parametrize(
    ("payloads", "failure"),
    [
        (WHOLE[:-1], "the stream ended without [DONE]"),
        ([completion(1), completion(2), b"[DONE]"], "the stream ended without a finish reason"),
        ([completion(1), completion(2, "length"), b"[DONE]"], "2 tokens instead of 3"),
        ([completion(1), completion(4, "length"), b"[DONE]"], "4 tokens instead of 3"),
        ([completion(1), completion(3, "stop"), b"[DONE]"], "finish reason stop after 3 of 3 tokens"),
        ([completion(2, "stop", 2), b"[DONE]"], "finish reason stop after 2 of 3 tokens (matched 2)"),
        ([completion(3, "stop", "NaN happened"), b"[DONE]"], "the model computed NaN: finish reason stop, matched 'NaN happened'"),
        ([completion(3, "abort"), b"[DONE]"], "finish reason abort after 3 of 3 tokens"),
        ([completion(2), completion(1), b"[DONE]"], "the server's token count went backwards, from 2 to 1"),
        ([{"error": {"message": "boom", "code": 500}}, b"[DONE]"], "error event inside HTTP 200: boom"),
        ([{"object": "error", "message": "flat", "code": 400}, b"[DONE]"], "error event inside HTTP 200: flat"),
        ([{"error": "just text"}, b"[DONE]"], "error event inside HTTP 200: just text"),
        ([{"error": {}}, b"[DONE]"], "error event inside HTTP 200: {}"),
        ([*WHOLE, completion(3)], "the server sent events after [DONE]"),
        ([*WHOLE, b"[DONE]"], "the server sent events after [DONE]"),
        ([completion(3, "length"), completion(3, "stop"), b"[DONE]"], "two finish reasons: length and stop"),
        ([{"choices": [{"index": 1, "text": "x"}]}, b"[DONE]"], "more than one answer to one request"),
        ([completion(None, "length"), b"[DONE]"], "the server told no token count (no usage in the stream)"),
        (
            [completion(None, "length", text=""), {"choices": [], "usage": {"completion_tokens": 3}}, b"[DONE]"],
            "no event brought a token",
        ),
        ([{"choices": [], "usage": {"completion_tokens": -3}}, b"[DONE]"], "the server counted -3 tokens"),
        ([{"choices": [], "usage": {"completion_tokens": 1}}, *WHOLE[1:]], "tokens behind the closing usage"),
        ([b"[DONE]"], "the stream ended without a finish reason"),
        ([], "the stream ended without a finish reason"),
    ],
)
def test_what_did_not_end_whole_is_a_failure(payloads: list[Any], failure: str) -> None:
    assert read("completions", 3, payloads).failure == failure


@pytest.mark.parametrize(
    "payload", [b"{", b"[1]", b"\xff\xfe", b"NaN", b'{"choices": 5}', b"[" * 100_000, b'{"usage":{"completion_tokens":"7"}}']
)
def test_an_event_that_is_no_json_of_this_api_is_a_failure(payload: bytes) -> None:
    failure = read("completions", 3, [payload, *WHOLE]).failure
    assert failure is not None
    assert failure.startswith("an event that is no answer of this API")


def test_the_first_reason_stays() -> None:
    reader = AnswerReader("chat", 3)
    reader.fail("first")
    reader.fail("second")
    assert reader.failed
    assert reader.finish().failure == "first"


def test_native_abort_names_its_reason() -> None:
    finish = {"type": "abort", "message": "KV cache is full", "status_code": 503}
    assert read("native", 3, [native(1), native(1, finish), b"[DONE]"]).failure == "aborted by the server: KV cache is full"
    assert read("native", 3, [native(1, {"type": "abort"}), b"[DONE]"]).failure == "aborted by the server: no reason given"


def test_native_clamping_shows_as_fewer_tokens() -> None:
    answer = read("native", 8, [native(1), native(5, {"type": "length", "length": 5}), b"[DONE]"])
    assert answer.failure == "5 tokens instead of 8"


def test_native_nan_and_plain_finish_reason() -> None:
    stop = {"type": "stop", "matched": "NaN happened"}
    assert "NaN" in (read("native", 2, [native(2, stop), b"[DONE]"]).failure or "")
    assert read("native", 2, [native(1), native(2, "length"), b"[DONE]"]).failure is None


def test_a_request_thrown_back_by_the_scheduler_is_no_sample() -> None:
    for name in ("num_retractions", "total_retractions"):
        answer = read("native", 2, [native(1), native(2, {"type": "length"}, **{name: 2}), b"[DONE]"])
        assert answer.failure == "thrown back by the scheduler 2 time(s): the server had no room"


def test_native_answer_of_something_else_is_a_failure() -> None:
    assert read("native", 2, [{"text": "x"}, b"[DONE]"]).failure == "an event without meta_info: this is not SGLang's native API"


@pytest.mark.parametrize(
    ("more", "length"),
    [
        ({"spec_verify_ct": 2}, 3.0),
        ({"spec_accept_length": 2.5, "spec_verify_ct": 2}, 2.5),
        ({}, None),
        ({"spec_verify_ct": 0}, None),
    ],
)
def test_acceptance_length_of_speculation(more: dict[str, object], length: float | None) -> None:
    answer = read("native", 6, [native(6, {"type": "length"}, **more), b"[DONE]"])
    assert answer.accept_length == length


def test_without_continuous_usage_the_events_are_the_clock_when_they_fit() -> None:
    events = [completion(None), completion(None), completion(None, "length")]
    closing = [{"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 4}}, b"[DONE]"]
    answer = read("completions", 3, [*events, *closing])
    assert (answer.failure, answer.clock, answer.counts, answer.marks) == (None, "events", (1, 2, 3), (EXACT, EXACT, EXACT))
    merged = read("completions", 3, [*events, *closing], together=3)
    assert merged.counts == (1, 2, 3)
    assert merged.marks == (MERGED, MERGED, EXACT)
    shared = read("completions", 6, [*events, {"choices": [], "usage": {"completion_tokens": 6}}, b"[DONE]"])
    assert shared.counts == (2, 4, 6)
    assert set(shared.marks) == {MERGED}
    fewer = read("completions", 2, [*events, {"choices": [], "usage": {"completion_tokens": 2}}, b"[DONE]"])
    assert fewer.failure is None
    assert fewer.counts == (1, 2)


def test_usage_on_the_last_text_event_only_leaves_the_clock_to_the_events() -> None:
    answer = read("completions", 3, [completion(None), completion(None), completion(3, "length"), b"[DONE]"])
    assert (answer.failure, answer.clock, answer.counts) == (None, "events", (1, 2, 3))


def test_thousands_of_mutilated_streams_never_crash_and_never_become_samples() -> None:
    chance = random.Random(7)
    sources = [
        (APIS[each["path"]], each["asked"], each["body"].encode())
        for each in RECORDED
        if len(each["body"]) < 6000 and (each["path"] == "/generate" or "usage" in json.dumps(each["request"]))
    ]
    whole = {body: read(api, asked, list(EventParser().feed(body))) for api, asked, body in sources}
    assert all(answer.failure is None for answer in whole.values())
    lost = 0
    for _ in range(4000):
        api, asked, body = chance.choice(sources)
        broken = mutilated(body, chance)
        parser, reader = EventParser(), AnswerReader(api, asked)
        try:
            for begin in range(0, len(broken), 700):
                reader.read(parser.feed(broken[begin : begin + 700]), begin)
        except StreamError:
            continue
        answer = reader.finish()
        if answer.failure is None:
            # the damage hit a text, an id, a blank: everything that is measured is still as it was
            assert (answer.tokens, answer.finish_reason, answer.counts[-1]) == (asked, "length", asked)
        else:
            lost += 1
    assert lost > 2000


def mutilated(body: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(body))
    kind = chance.randrange(6)
    if kind == 0:
        return body[:place]
    if kind == 1:
        return body[:place] + body[place + chance.randrange(1, 300) :]
    if kind == 2:
        return body[:place] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20))) + body[place:]
    if kind == 3:
        other = chance.randrange(len(body))
        return body[:place] + body[other : other + 200] + body[place:]
    if kind == 4:
        events = body.split(b"\n\n")
        chance.shuffle(events)
        return b"\n\n".join(events) + b"\n\n"
    return body.replace(b'"length"', chance.choice([b'"stop"', b'"abort"', b"null", b"7"]), 1).replace(
        b'"completion_tokens":1', b'"completion_tokens":9', 1
    )
