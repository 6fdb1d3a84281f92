"""Events come out the same however the bytes are cut, and nothing that a server sends breaks the parser."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_sglang.load import stream
from pytest_sglang.load.stream import EventParser, StreamError

RECORDED = json.loads((Path(__file__).parents[1] / "data/load/recorded-streams.json").read_text(encoding="utf-8"))


def fed(*pieces: bytes) -> list[bytes]:
    parser = EventParser()
    return [payload for piece in pieces for payload in parser.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_recorded_streams_give_the_same_events_however_they_are_cut(data: st.DataObject) -> None:
    recorded = data.draw(st.sampled_from([each for each in RECORDED if len(each["body"]) < 6000]))
    body = recorded["body"].encode()
    if data.draw(st.booleans()):
        body = body.replace(b"\n", b"\r\n")
    places = data.draw(st.lists(st.integers(0, len(body)), max_size=60))
    expected = [line.removeprefix("data: ").encode() for line in recorded["body"].split("\n") if line]
    assert fed(*cut(body, places)) == expected


def test_every_single_cut_of_a_recorded_stream() -> None:
    body = next(each["body"] for each in RECORDED if "ö" in each["body"] or "Ű" in each["body"]).encode()
    whole = fed(body)
    assert len(whole) > 5
    assert whole[-1] == b"[DONE]"
    for place in range(len(body)):
        assert fed(body[:place], body[place:]) == whole


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b": ping\n\ndata: a\n\n", [b"a"]),
        (b": ping\ndata: a\n\n", [b"a"]),
        (b"event: message\nid: 7\ndata: a\nretry: 10\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\n", []),
        (b"\n\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\n\n", [b"a", b"b"]),
        (b"data: never ended\n", []),
        (b"database: a\n\n", []),
    ],
)
def test_forms_of_the_format(data: bytes, expected: list[bytes]) -> None:
    assert fed(data) == expected
    assert fed(*[data[i : i + 1] for i in range(len(data))]) == expected


def test_an_event_without_its_empty_line_is_unfinished() -> None:
    parser = EventParser()
    parser.feed(b"data: a\n\n")
    assert not parser.unfinished
    parser.feed(b"data: b\n")
    assert parser.unfinished


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_EVENT_BYTES", 100)
    parser = EventParser()
    for _ in range(3):
        parser.feed(b"data: " + b"x" * 20)
    with pytest.raises(StreamError, match="more than 100 bytes"):
        parser.feed(b"x" * 40)


@given(st.lists(st.binary(max_size=40), max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_payloads_without_line_ends_between_events(pieces: list[bytes]) -> None:
    payloads = outcome(*pieces)
    assert payloads == outcome(b"".join(pieces))
    assert payloads is None or all(payloads)


def outcome(*pieces: bytes) -> list[bytes] | None:
    """The payloads; None for bytes that are refused."""
    try:
        return fed(*pieces)
    except StreamError:
        return None


def test_damage_in_a_line_that_nobody_needs_is_seen() -> None:
    with pytest.raises(StreamError, match="an event that is no UTF-8"):
        fed(b"data: a\n\nd\xffta: b\n\n")
