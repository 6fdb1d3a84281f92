"""Requests as figures: medians always, percentiles where the number of samples earns them. Definitions: docs/definitions.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pytest_sglang.judge import stats
from pytest_sglang.judge.latency import MAX_MERGED_SHARE
from pytest_sglang.load.rounds import Exchange, aggregate_tok_s, merged_share
from pytest_sglang.record.values import Value

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Spread(Value, frozen=True, kw_only=True):
    """``n`` samples of one figure. A percentile that they do not earn is None, and ``not_earned`` says why."""

    median: float | None
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    n: int
    not_earned: dict[str, str] = {}
    needed: dict[str, int] = {}
    """How many samples each percentile takes."""
    unfair: str | None = None
    """Why no percentile is earned whatever their number: they are no fair sample."""


class Figures(Value, frozen=True, kw_only=True):
    """What was measured of whole answers; failed requests give no sample. Units are in the names; ``tpot_ms`` is a request's mean gap."""

    decode_tok_s: Spread
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    end_to_end_ms: Spread
    aggregate_tok_s: float | None
    requests: int
    failed_requests: int
    failures: dict[str, int]
    output_tokens: int
    prompt_tokens: float | None
    """Mean of a request, by the server's usage."""
    cached_tokens: float | None
    accept_length: float | None
    """Tokens that speculative decoding made at each verification."""
    client_lag_ms: float
    merged_share: float
    shared_tokens: int
    """ITL samples that are equal parts of an event of several tokens."""
    stamps: Literal["kernel", "user"]
    clock: Literal["usage", "events", "none"]
    """What the token times go by: the usage in each event, or the events because only the last one tells a count."""


def figures(exchanges: Sequence[Exchange]) -> Figures:
    """The figures of these requests."""
    good = [each for each in exchanges if each.answer.failure is None]
    share = merged_share(good)
    unfair = f"{100 * share:.1f} % of the token events share a read with later ones" if share > MAX_MERGED_SHARE else None
    clocks = {each.answer.clock for each in good}
    return Figures(
        decode_tok_s=spread([each.decode_tok_s for each in good]),
        ttft_ms=spread([each.ttft_s for each in good], scale=1e3),
        itl_ms=spread([gap for each in good for gap in each.itl_s], scale=1e3, unfair=unfair),
        tpot_ms=spread([each.tpot_s for each in good], scale=1e3),
        end_to_end_ms=spread([each.end_to_end_s for each in good], scale=1e3),
        # of failed requests nobody knows how many tokens the window had
        aggregate_tok_s=aggregate_tok_s(good) if len(good) == len(exchanges) else None,
        requests=len(exchanges),
        failed_requests=len(exchanges) - len(good),
        failures=dict(Counter(each.answer.failure for each in exchanges if each.answer.failure is not None)),
        output_tokens=sum(each.answer.tokens for each in good),
        prompt_tokens=_mean([each.answer.prompt_tokens for each in good]),
        cached_tokens=_mean([each.answer.cached_tokens for each in good]),
        accept_length=_mean([each.answer.accept_length for each in good]),
        client_lag_ms=max((each.lag_s for each in exchanges), default=0.0) * 1e3,
        merged_share=share,
        shared_tokens=sum(each.shared_tokens for each in good),
        stamps="kernel" if exchanges and all(each.stamps == "kernel" for each in exchanges) else "user",
        clock="events" if "events" in clocks else "usage" if "usage" in clocks else "none",
    )


def spread(samples: Sequence[float | None], *, scale: float = 1.0, unfair: str | None = None) -> Spread:
    """Median, mean and earned percentiles of what is there, times ``scale``. ``unfair``: why no percentile is earned whatever their number."""
    known = [each * scale for each in samples if each is not None]
    found = {name: stats.percentile(known, q) for name, q in QUANTILES.items()}
    missing = {name: unfair or each.why_missing or "" for name, each in found.items() if unfair or each.value is None}
    return Spread(
        median=stats.median(known) if known else None,
        mean=sum(known) / len(known) if known else None,
        n=len(known),
        not_earned=missing,
        needed={name: each.needed for name, each in found.items()},
        unfair=unfair if known else None,
        **{name: None if name in missing else each.value for name, each in found.items()},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None
