"""Malformed streams at the client: it never crashes or hangs, and none that is broken becomes a sample.

usage: fuzz_streams.py [STREAMS [SEED]]      (default 100,000; about 1 ms a stream; ``make soak`` runs it)

Each stream is a whole HTTP answer (recorded from SGLang, or made here), damaged in one of many ways, cut into reads at random and
fed through connection, HTTP parser, event parser and answer reader. What the client then takes for a sample, a second, slow reader
must take for one as well: Python's own http.client and json, sharing nothing with the client. Damage that is none (comments, CRLF,
cuts inside a character) must change nothing.
"""

from __future__ import annotations

import http.client
import io
import json
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pytest_sglang.load.answer import Answer, Api
from pytest_sglang.load.connection import Connection, Target

RECORDED = json.loads((Path(__file__).parents[1] / "data/load/recorded-streams.json").read_text(encoding="utf-8"))
APIS: dict[str, Api] = {"/v1/chat/completions": "chat", "/v1/completions": "completions", "/generate": "native"}
HANG_S = 10.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"


class Source(NamedTuple):
    """A whole stream: its events (with their empty lines), and how many tokens were asked of it."""

    api: Api
    asked: int
    events: tuple[bytes, ...]


class Case(NamedTuple):
    """The bytes of an answer, how they were damaged, and whether the connection ends behind them."""

    kind: str
    data: bytes
    closed: bool = False


class Found(NamedTuple):
    """A surprise: what it was, and what would repeat it."""

    why: str
    kind: str
    data: bytes


# --- whole streams -----------------------------------------------------------------------------------------------------------


def sources() -> list[Source]:
    """Recorded streams that tell their usage, and made ones of each API."""
    found = []
    for each in RECORDED:
        told = each["path"] == "/generate" or "usage" in json.dumps(each["request"])
        if told and len(each["body"]) < 6000:
            events = tuple(event + b"\n\n" for event in each["body"].encode().split(b"\n\n") if event)
            found.append(Source(APIS[each["path"]], each["asked"], events))
    return [*found, *(made(api, tokens) for api in APIS.values() for tokens in (1, 2, 7, 12))]


def made(api: Api, tokens: int) -> Source:
    """A stream of so many tokens, one an event, with characters of several bytes."""
    events: list[Any] = []
    for count in range(1, tokens + 1):
        last = count == tokens
        usage = {"prompt_tokens": 4, "completion_tokens": count, "total_tokens": 4 + count}
        finish = "length" if last else None
        if api == "native":
            meta = {"finish_reason": {"type": "length", "length": tokens} if last else None, **usage}
            events.append({"text": "ö€" * count, "output_ids": [7] * count, "meta_info": meta})
        elif api == "chat":
            events.append({"choices": [{"index": 0, "delta": {"content": "ö€😀"}, "finish_reason": finish}], "usage": usage})
        else:
            events.append({"choices": [{"index": 0, "text": "ö€😀", "finish_reason": finish}], "usage": usage})
    return Source(api, tokens, (*(data(each) for each in events), b"data: [DONE]\n\n"))


def data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunked(body: bytes, chance: random.Random | None = None) -> bytes:
    """The body in chunks: an event each, or cut at random."""
    pieces = [event + b"\n\n" for event in body.split(b"\n\n") if event]
    if chance is not None:
        pieces = list(cut(body, chance))
    return (
        HEAD
        + b"transfer-encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces)
        + b"0\r\n\r\n"
    )


def cut(whole: bytes, chance: random.Random, most: int = 12) -> Iterator[bytes]:
    """The bytes in pieces, cut anywhere."""
    places = sorted(chance.randrange(len(whole) + 1) for _ in range(chance.randrange(most)))
    for begin, end in zip([0, *places], [*places, len(whole)], strict=True):
        if end > begin:
            yield whole[begin:end]


# --- damage ------------------------------------------------------------------------------------------------------------------


def harmless(source: Source, chance: random.Random) -> Case:
    """What the format allows: it must change nothing."""
    body = b"".join(source.events)
    kind = chance.choice(["cut", "comments", "crlf", "cr", "bom", "fields", "no blank", "joined"])
    if kind == "comments":
        body = b"".join(chance.choice([b"", b": ping\n\n", b":\n", b": {\n"]) + event for event in source.events)
    elif kind == "crlf":
        body = body.replace(b"\n", b"\r\n")
    elif kind == "cr":
        body = body.replace(b"\n", b"\r")
    elif kind == "bom":
        body = b"\xef\xbb\xbf" + body
    elif kind == "fields":
        body = b"".join(b"event: message\nid: 7\n" + event[:-1] + b"retry: 10\n\n" for event in source.events)
    elif kind == "no blank":
        body = body.replace(b"data: ", b"data:")
    if kind == "joined":
        length = b"content-length: %d\r\n\r\n" % len(body)
        return Case(f"harmless: {kind}", HEAD + length + body)
    return Case(f"harmless: {kind}", chunked(body, chance))


def broken_bytes(source: Source, chance: random.Random) -> Case:
    """Damage anywhere in the answer, HTTP included."""
    whole = bytearray(chunked(b"".join(source.events)))
    place = chance.randrange(len(whole))
    span = chance.randrange(1, 200)
    kind = chance.choice(["end", "hole", "junk", "flip", "repeat", "overwrite", "zeros"])
    if kind == "end":
        return Case("bytes: end", bytes(whole[:place]), closed=True)
    if kind == "hole":
        del whole[place : place + span]
    elif kind == "junk":
        whole[place:place] = chance.randbytes(chance.randrange(1, 30))
    elif kind == "flip":
        for _ in range(chance.randrange(1, 4)):
            whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    elif kind == "repeat":
        whole[place:place] = whole[place : place + span]
    elif kind == "overwrite":
        whole[place : place + span] = chance.randbytes(span)
    else:
        whole[place : place + span] = bytes(span)
    return Case(f"bytes: {kind}", bytes(whole), closed=True)


def broken_events(source: Source, chance: random.Random) -> Case:
    """Events lost, doubled, out of order, or others than they should be."""
    events = list(source.events)
    place = chance.randrange(len(events))
    kind = chance.choice(["lost", "doubled", "swapped", "shuffled", "foreign", "no end", "cut short", "blank"])
    if kind == "lost":
        del events[place]
    elif kind == "doubled":
        events.insert(place, events[place])
    elif kind == "swapped":
        other = chance.randrange(len(events))
        events[place], events[other] = events[other], events[place]
    elif kind == "shuffled":
        chance.shuffle(events)
    elif kind == "foreign":
        events.insert(place, chance.choice(FOREIGN))
    elif kind == "no end":
        events = events[:-1]
    elif kind == "cut short":
        events = events[:place]
    else:
        events[place] = b"data: \n\n"
    return Case(f"events: {kind}", chunked(b"".join(events)) if events else HEAD + b"content-length: 0\r\n\r\n")


FOREIGN = (
    data({"error": {"message": "boom", "code": 500}}),
    data({"object": "error", "message": "flat"}),
    data({"error": "text"}),
    b"data: [DONE]\n\n",
    b"data: {\n\n",
    b"data: [1]\n\n",
    b"data: \xff\xfe\n\n",
    b"data: " + b"[" * 5000 + b"\n\n",
    data({"choices": [{"index": 1, "text": "x"}], "usage": {"completion_tokens": 1}}),
    data({"choices": [], "usage": {"completion_tokens": -3}}),
    data({"text": "x", "meta_info": {"completion_tokens": 10**30}}),
    data({"text": "x", "meta_info": {"completion_tokens": 1, "finish_reason": {"type": "abort", "message": "gone"}}}),
    data({"text": "x" * 20_000}),
    data(None),
)


def broken_values(source: Source, chance: random.Random) -> Case:
    """One value of one event is another."""
    body = b"".join(source.events)
    wrong = chance.choice([b"0", b"-1", b"99", b"1.5", b'"3"', b"null", b"NaN", b"1e9", b"[]", b"true", b"18446744073709551616"])
    kind = chance.choice(["finish", "count", "NaN stop", "text"])
    if kind == "finish":
        reason = chance.choice([b'"stop"', b'"abort"', b"null", b"7", b'"tool_calls"'])
        body = body.replace(b'"length"', reason)
    elif kind == "NaN stop":
        body = body.replace(b'"length"', b'"stop"', 1).replace(b'"index"', b'"matched_stop": "NaN happened", "index"')
    elif kind == "count":
        count = b"%d" % chance.randrange(1, source.asked + 1)
        for between in (b'"completion_tokens": ', b'"completion_tokens":'):
            body = body.replace(between + count, between + wrong, 1)
    else:
        body = body.replace(b'"text"', chance.choice([b'"txet"', b"7", b'"']), 1)
    return Case(f"values: {kind}", chunked(body))


def broken_http(source: Source, chance: random.Random) -> Case:
    """The events are whole, the HTTP around them is not."""
    body = b"".join(source.events)
    good = chunked(body)
    kind = chance.choice(
        ["gzip", "type", "status", "chunk size", "no last chunk", "short length", "long length", "no headers", "header"]
    )
    if kind == "gzip":
        return Case("http: gzip", good.replace(HEAD, HEAD + b"content-encoding: gzip\r\n", 1))
    if kind == "type":
        return Case("http: type", good.replace(b"text/event-stream; charset=utf-8", b"application/json", 1))
    if kind == "status":
        return Case(
            "http: status", good.replace(b"200 OK", chance.choice([b"500 No", b"429 Slow", b"204 Not", b"99 X", b"abc X"]), 1), True
        )
    if kind == "chunk size":
        return Case(
            "http: chunk size",
            good.replace(b"\r\n\r\n", b"\r\n\r\n" + chance.choice([b"zz\r\n", b"-1\r\n", b"f" * 40 + b"\r\n"]), 1),
            True,
        )
    if kind == "no last chunk":
        return Case("http: no last chunk", good.removesuffix(b"0\r\n\r\n"), closed=True)
    if kind == "no headers":
        return Case("http: no headers", body, closed=True)
    if kind == "header":
        return Case("http: header", good.replace(HEAD, HEAD + chance.randbytes(30) + b": x\r\n", 1), closed=True)
    off = -chance.randrange(1, 40) if kind == "short length" else chance.randrange(1, 40)
    return Case(f"http: {kind}", HEAD + b"content-length: %d\r\n\r\n" % max(0, len(body) + off) + body, closed=True)


DAMAGE: tuple[Callable[[Source, random.Random], Case], ...] = (harmless, broken_bytes, broken_events, broken_values, broken_http)


# --- two readers -------------------------------------------------------------------------------------------------------------


class _Wire(Connection):
    """A connection without a socket: what it would read is given to it."""

    def __init__(self, source: Source, ours: socket.socket) -> None:
        self.sock = ours
        self.target = Target(url="http://127.0.0.1:1", api=source.api)
        self.kernel_stamps, self.open, self.wakes_before = True, True, 0

    def close(self) -> None:
        self.open = False


def client_reads(source: Source, case: Case, chance: random.Random, pair: tuple[socket.socket, socket.socket]) -> Answer:
    """The answer that the client makes of it, cut into reads at random."""
    wire = _Wire(source, pair[0])
    wire.begin(b"x", source.asked, 60.0)
    pair[1].recv(16)
    for number, piece in enumerate(cut(case.data, chance)):
        if wire.finished:
            break
        wire._take(piece, number + 1, True)
    if not wire.finished and case.closed:
        wire._closed()
    if not wire.finished:
        wire.give_up("no whole answer in time")
    return wire.reader.finish()


class _Reading:
    """A socket for http.client that only reads."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def makefile(self, _mode: str) -> io.BytesIO:
        return self._file


def counts_of(source: Source, case: Case) -> list[int] | None:
    """The rising token counts that the second, slow reader finds in it; None where it is no whole answer of exactly the asked length."""
    response = http.client.HTTPResponse(_Reading(case.data))  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
        text = body.decode("utf-8-sig")
    except (http.client.HTTPException, ValueError, OSError, EOFError):
        return None
    if response.status != 200 or response.getheader("content-encoding"):
        return None
    events, fields = [], []
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if line.startswith("data:"):
            fields.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and fields:
            events.append("\n".join(fields))
            fields = []
    events = [each for each in events if each]
    if not events or events[-1] != "[DONE]":
        return None
    try:
        return _counts(source, [json.loads(each) for each in events[:-1]])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _counts(source: Source, events: list[Any]) -> list[int] | None:
    counts, finishes = [0], []
    for event in events:
        if event.get("error") is not None or event.get("object") == "error":
            return None
        usage = event["meta_info"] if source.api == "native" else event.get("usage")
        if usage and usage.get("completion_tokens") is not None:
            counts.append(usage["completion_tokens"])
        if source.api == "native":
            finish = event["meta_info"].get("finish_reason")
            finishes += [finish["type"] if isinstance(finish, dict) else finish] if finish is not None else []
        for choice in event.get("choices") or ():
            if choice.get("index", 0) != 0:
                return None
            finishes += [choice["finish_reason"]] if choice.get("finish_reason") is not None else []
    rising = all(type(each) is int for each in counts) and counts == sorted(counts)
    whole = rising and counts[-1] == source.asked and bool(finishes) and set(finishes) == {"length"}
    return sorted(set(counts) - {0}) if whole else None


# --- the run -----------------------------------------------------------------------------------------------------------------


def fuzz(streams: int, seed: int) -> tuple[Counter[tuple[str, str]], list[Found], float]:
    """(kind, "sample" | "failed") -> how often; surprises; the seconds of the slowest stream."""
    chance = random.Random(seed)
    whole, tally, surprises, slowest = sources(), Counter[tuple[str, str]](), [], 0.0
    pair = socket.socketpair()
    with pair[0], pair[1], _no_hang() as begin:
        for _ in range(streams):
            source = chance.choice(whole)
            case = chance.choice(DAMAGE)(source, chance)
            begin()
            before = time.perf_counter()
            try:
                answer = client_reads(source, case, chance, pair)
            except Exception as error:
                surprises.append(Found(f"crash: {error!r}", case.kind, case.data))
                continue
            slowest = max(slowest, time.perf_counter() - before)
            sample = answer.failure is None
            tally[case.kind, "sample" if sample else "failed"] += 1
            if sample:
                expected = counts_of(source, case)
                if expected is None:
                    surprises.append(Found("a broken stream became a sample", case.kind, case.data))
                elif answer.clock == "usage" and list(answer.counts) != expected:
                    surprises.append(Found(f"counts {answer.counts}, not {expected}", case.kind, case.data))
            if case.kind.startswith("harmless") and not sample:
                surprises.append(Found(f"a whole stream failed: {answer.failure}", case.kind, case.data))
    return tally, surprises, slowest


@contextmanager
def _no_hang() -> Iterator[Callable[[], None]]:
    """Within a main thread: a stream that takes longer than HANG_S raises TimeoutError."""

    def hung(*_: object) -> None:
        raise TimeoutError(f"a stream took more than {HANG_S:.0f} s")

    before = signal.signal(signal.SIGALRM, hung)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, HANG_S) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Exit code 1 on any surprise."""
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.monotonic()
    tally, surprises, slowest = fuzz(streams, seed)
    print(f"{streams} streams, seed {seed}, {time.monotonic() - began:.0f} s; slowest {slowest * 1000:.0f} ms")
    print(f"{'damage':24} {'samples':>9} {'failed':>9}")
    for kind in sorted({kind for kind, _ in tally}):
        print(f"{kind:24} {tally[kind, 'sample']:>9} {tally[kind, 'failed']:>9}")
    for each in surprises[:10]:
        print(f"SURPRISE {each.kind}: {each.why}\n  {each.data!r}")
    print(f"{len(surprises)} crashes, hangs, samples from broken streams, or whole streams that failed")
    return 1 if surprises else 0


if __name__ == "__main__":
    raise SystemExit(main())
