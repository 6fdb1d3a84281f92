"""A measurement that belongs to no promise after all is kept as no sample."""

from __future__ import annotations

from pytest_sglang.record.values import Round, Throughput
from pytest_sglang.session import window

RATES = {"end_to_end_tok_s": 38.0, "aggregate_tok_s": 40.0}


def test_a_measurement_that_is_none_keeps_its_rounds_as_discarded() -> None:
    """Whoever compares with this run later (gain, baseline, compare) takes its rounds that count: there are none."""
    done = [Round(index=number, begin_s=0.0, end_s=1.0, output_tokens=8, decode_tok_s=40.0, **RATES) for number in (1, 3)]
    early = Round(
        index=2, begin_s=0.0, end_s=1.0, output_tokens=8, decode_tok_s=None, **RATES, invalid_because="before the rate settled"
    )
    result = Throughput(
        streams=1, rounds=tuple(done), discarded=(early,), decode_tok_s=40.0, ci_low=39.0, ci_high=41.0, confidence=0.99
    )
    none = window.no_sample(result, "GPU 2 enforces 350 W, not 250 W")
    assert (none.rounds, none.decode_tok_s, none.ci_low, none.ci_high) == ((), None, None, None)
    assert [(each.index, each.invalid_because) for each in none.discarded] == [
        (1, "GPU 2 enforces 350 W, not 250 W"),
        (2, "before the rate settled"),
        (3, "GPU 2 enforces 350 W, not 250 W"),
    ]
