"""A few thousand malformed streams; ``make soak`` sends 100,000."""

from __future__ import annotations

from fuzz_streams import FOREIGN, HEAD, Case, chunked, counts_of, fuzz, made


def test_no_malformed_stream_crashes_the_client_hangs_it_or_becomes_a_sample() -> None:
    tally, surprises, _ = fuzz(3000, seed=20)
    assert surprises == []
    assert sum(tally.values()) == 3000
    failed = sum(count for (_, how), count in tally.items() if how == "failed")
    assert 1000 < failed < 2600


def test_the_second_reader_is_one() -> None:
    source = made("chat", 3)
    body = b"".join(source.events)
    assert counts_of(source, Case("", chunked(body))) == [1, 2, 3]
    assert not counts_of(source, Case("", chunked(body.replace(b'"length"', b'"stop"'))))
    assert not counts_of(source, Case("", chunked(body.removesuffix(b"data: [DONE]\n\n"))))
    assert not counts_of(source, Case("", chunked(FOREIGN[0] + body)))
    assert not counts_of(source, Case("", chunked(body)[:-40]))
    assert not counts_of(source, Case("", HEAD))
