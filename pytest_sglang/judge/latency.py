"""Latencies against their limits, and what the client's own lateness could have changed. Pure.

A time of arrival is never early. It is late by the client's lag where the kernel does not stamp it, and a token that shares its read
with later ones has the last one's time. So each figure has a range that the truth lies in; where the limit lies in it, the verdict
is inconclusive and says why.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sglang.judge import limits, stats
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Round, Throughput

MAX_MERGED_SHARE = 0.01
"""More events than this share without a time of their own: the gaps that are left are no fair sample."""


def max_ttft(measured: Throughput, limit_s: float, *, why_missing: str | None = None) -> Judgement:
    """The median TTFT of all requests is at most ``limit_s`` seconds. ``why_missing``: why nothing may be claimed of it."""
    samples = [] if why_missing else [each for done in measured.rounds for each in done.ttft_s]
    if not samples:
        return limits.max_value("ttft_ms", None, limit_s * 1000, unit="ms", why_missing=why_missing or "no request ended whole")
    value = stats.median(samples)
    if value > limit_s >= (low := _least_ttft(measured.rounds)):
        unsure = sum(done.unsure_ttft for done in measured.rounds)
        why = f"first tokens of {unsure} requests came in one read with later ones" if unsure else _lag(measured.rounds, send=True)
        return _unsure("ttft_ms", "TTFT", value, limit_s, low, value, why)
    return limits.max_value("ttft_ms", value * 1000, limit_s * 1000, unit="ms")


def max_itl_p99(measured: Throughput, limit_s: float, *, why_missing: str | None = None) -> Judgement:
    """The 99th percentile of all gaps between tokens is at most ``limit_s`` seconds; earned by 459 clean gaps."""
    rounds = measured.rounds
    samples = [] if why_missing else [each for done in rounds for each in done.itl_s]
    share = merged_share(rounds)
    if not why_missing and share > MAX_MERGED_SHARE:
        why_missing = f"{100 * share:.1f} % of the token events have no time of their own, at most {100 * MAX_MERGED_SHARE:g} % may"
    earned = stats.percentile(samples, 0.99)
    if why_missing or earned.value is None:
        return limits.max_value("itl_ms", None, limit_s * 1000, unit="ms", why_missing=why_missing or earned.why_missing)
    low, high = _itl_range(rounds, samples)
    if (low <= limit_s) != (high <= limit_s):
        merged = sum(len(done.unsure_itl_s) for done in rounds)
        why = _lag(rounds, send=False) if any(done.itl_lag_s for done in rounds) else f"{merged} gaps have no time of their own"
        return _unsure("itl_ms", "ITL p99", earned.value, limit_s, low, high, why)
    return limits.max_value("itl_ms", earned.value * 1000, limit_s * 1000, unit="ms")


def merged_share(rounds: Sequence[Round]) -> float:
    """That of all rounds together, each as much as it has tokens."""
    tokens = sum(done.output_tokens for done in rounds)
    return sum(done.merged_share * done.output_tokens for done in rounds) / tokens if tokens else 0.0


def _least_ttft(rounds: Sequence[Round]) -> float:
    """The median, were each request as early as its time allows: those whose first token has no time of its own at once."""
    found: list[float] = []
    for done in rounds:
        lag_s = done.send_lag_s + done.stamp_lag_s
        sure = sorted(done.ttft_s)[: len(done.ttft_s) - done.unsure_ttft]
        found += [0.0] * done.unsure_ttft + [max(0.0, each - lag_s) for each in sure]
    return stats.median(found)


def _itl_range(rounds: Sequence[Round], samples: Sequence[float]) -> tuple[float, float]:
    """Between which the p99 of all gaps lies, lost ones included: each of these may have been nothing, or all that it could be."""
    unsure = [each for done in rounds for each in done.unsure_itl_s]
    lag_s = max((done.itl_lag_s for done in rounds), default=0.0)
    least = stats.percentile([*samples, *[0.0] * len(unsure)], 0.99).value
    most = stats.percentile([*samples, *unsure], 0.99).value
    assert least is not None
    assert most is not None
    return max(0.0, least - lag_s), most + lag_s


def _lag(rounds: Sequence[Round], *, send: bool) -> str:
    lag_s = max(done.stamp_lag_s + (done.send_lag_s if send else 0.0) for done in rounds)
    return f"the client's own lag of {lag_s * 1000:.3g} ms could have changed the verdict"


def _unsure(quantity: str, label: str, value_s: float, limit_s: float, low_s: float, high_s: float, why: str) -> Judgement:
    between = f"between {low_s * 1000:.3g} and {high_s * 1000:.3g} ms"
    return Judgement(
        verdict="inconclusive",
        message=f"{label} {value_s * 1000:.3g} ms, promised at most {limit_s * 1000:g} ms: not decided, {why} ({between})",
        quantity=quantity,
        measured={quantity: Measurement(value_s * 1000, "ms")},
        limit=Limit("<=", limit_s * 1000, "ms"),
        inconclusive_because=why,
    )
