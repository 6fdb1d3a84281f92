"""The server's own token counter: what it gained, and when nothing can be said."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_sglang.session.counters import GENERATED, VERIFIED, TokenCounter


def counter(*values: float | None) -> TokenCounter:
    """Reads these values one after the other, the last for ever."""
    left = list(values)

    def metrics() -> Mapping[str, float] | None:
        value = left.pop(0) if len(left) > 1 else left[0]
        return None if value is None else {GENERATED: value}

    return TokenCounter(metrics, settle_s=0.3)


def test_it_waits_until_the_counter_has_come_to_the_answers() -> None:
    found = counter(744, 1000, 1000, 1000, 1000, 1256)
    found.begin()
    assert found.gained(256) == 256


def test_what_never_comes_is_missing_and_what_is_too_much_is_there() -> None:
    short = counter(1000, 1000, 1200)
    short.begin()
    assert short.gained(256) == 200
    more = counter(1000, 1000, 1600)
    more.begin()
    assert more.gained(256) == 600


def test_no_metrics_no_such_counter_and_another_process_say_nothing() -> None:
    for values in ((None, None), (1000.0, 1000.0, None), (1000.0, 1000.0, 3.0)):
        found = counter(*values)
        found.begin()
        assert found.gained(256) is None
    other = TokenCounter(lambda: {"vllm:generation_tokens_total": 5.0})
    other.begin()
    assert other.gained(256) is None


def test_tokens_for_each_verification_of_speculative_decoding() -> None:
    readings = [{GENERATED: 100.0, VERIFIED: 40.0}] * 2 + [{GENERATED: 356.0, VERIFIED: 140.0}] * 2
    left = iter([*readings, {GENERATED: 356.0, VERIFIED: 140.0}])
    found = TokenCounter(lambda: next(left), settle_s=0.3)
    found.begin()
    assert found.gained(256) == 256
    assert found.accept_length == 2.56
    plain = counter(1000, 1000, 1256)
    plain.begin()
    assert (plain.gained(256), plain.accept_length) == (256, None)
