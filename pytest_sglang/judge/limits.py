"""One limit, one measured number: pass, fail or inconclusive, with both in the same unit and the likely cause. All pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from pytest_sglang.judge import lag as judge_lag
from pytest_sglang.judge import stats
from pytest_sglang.judge.stats import Interval
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record import units
from pytest_sglang.record.run import Limit, Measurement, Verdict
from pytest_sglang.record.values import Throughput
from pytest_sglang.rig.model import Quantity

IntervalOf: TypeAlias = Callable[[Sequence[float], float], Interval]
"""Positive rates and confidence -> the interval of their median."""

MIN_ROUNDS = 3
"""Fewer rounds say nothing about their own spread."""
_MOST_ROUNDS = 200
"""More rounds than these are no advice."""
_NAMES_SHOWN = 5
_LABELS = {
    "ttft_ms": "TTFT",
    "itl_ms": "ITL p99",
    "tpot_ms": "TPOT",
    "j_per_token": "energy",
    "capture_share": "capture as a share of the cold one",
    "first_request_ratio": "first request against steady state",
}


# --- durations and counts ---------------------------------------------------------------------------------------------------------


def max_duration(
    name: str,
    measured_s: float | None,
    limit_s: float,
    *,
    quantity: str = "ready_s",
    cause: str | None = None,
    why_missing: str | None = None,
) -> Judgement:
    """``measured_s`` within the budget of ``limit_s`` seconds; ``name`` says what lasted so long."""
    limit = Limit("<=", limit_s, "s")
    if measured_s is None or not math.isfinite(measured_s):
        return _missing(f"{name} ({quantity})", why_missing, quantity, limit)
    measured = {quantity: Measurement(measured_s, "s")}
    took, budget = _durations(measured_s, limit_s)
    return _compared(measured_s <= limit_s, f"{took}, budget {budget}", quantity, measured, limit, cause)


def max_count(
    quantity: str,
    measured: int | None,
    limit: int,
    *,
    names: Sequence[str] = (),
    cause: str | None = None,
    why_missing: str | None = None,
) -> Judgement:
    """At most ``limit`` of ``quantity`` ("new_kernels"); ``names``: what was counted, of which a failure shows the first few."""
    bound = Limit("<=", limit, "count")
    label = quantity.replace("_", " ")
    if measured is None:
        return _missing(label, why_missing, quantity, bound)
    one = label.removesuffix("s") if measured == 1 else label
    message = f"{measured} {one}, promised at most {limit}"
    if measured > limit and names:
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        message += f" ({', '.join(names[:_NAMES_SHOWN])}{more})"
    return _compared(measured <= limit, message, quantity, {quantity: Measurement(measured, "count")}, bound, cause)


# --- plain numbers ----------------------------------------------------------------------------------------------------------------


def max_value(
    quantity: str,
    measured: float | None,
    limit: float,
    *,
    unit: str,
    cause: str | None = None,
    why_missing: str | None = None,
) -> Judgement:
    """``measured`` at most ``limit``, both in ``unit`` (as run.json names it; "" for a bare ratio)."""
    return _value("<=", quantity, measured, limit, unit, cause, why_missing)


def min_value(
    quantity: str,
    measured: float | None,
    limit: float,
    *,
    unit: str,
    cause: str | None = None,
    why_missing: str | None = None,
) -> Judgement:
    """``measured`` at least ``limit``, both in ``unit``."""
    return _value(">=", quantity, measured, limit, unit, cause, why_missing)


def _value(
    op: Literal["<=", ">="],
    quantity: str,
    measured: float | None,
    limit: float,
    unit: str,
    cause: str | None,
    why_missing: str | None,
) -> Judgement:
    bound = Limit(op, limit, unit)
    label = _LABELS.get(quantity, quantity.replace("_", " "))
    if measured is None or not math.isfinite(measured):
        return _missing(label, why_missing, quantity, bound)
    kept = measured <= limit if op == "<=" else measured >= limit
    here, there = _told_apart(measured, limit, unit)
    message = f"{label} {here}, promised at {'most' if op == '<=' else 'least'} {there}"
    return _compared(kept, message, quantity, {quantity: Measurement(measured, unit)}, bound, cause)


def equal(
    quantity: str,
    measured: float | int | str | bool | None,
    promised: float | int | str | bool,
    *,
    unit: str = "",
    cause: str | None = None,
    why_missing: str | None = None,
) -> Judgement:
    """``measured`` is exactly what was promised."""
    bound = Limit("==", promised, unit)
    label = quantity.replace("_", " ")
    if measured is None:
        return _missing(label, why_missing, quantity, bound)
    message = f"{label} {_plain(measured, unit)}, promised {_plain(promised, unit)}"
    # True == 1 in Python, but a promised 1 is not kept by a "yes"
    same = measured == promised and isinstance(measured, bool) == isinstance(promised, bool)
    return _compared(same, message, quantity, {quantity: Measurement(measured, unit)}, bound, cause)


def _plain(value: float | int | str | bool, unit: str) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} {unit}".rstrip()


# --- rates ------------------------------------------------------------------------------------------------------------------------


def min_throughput(
    throughput: Throughput | None,
    *,
    min_tok_s: float,
    quantity: Quantity = "decode",
    tolerance: float = 0.02,
    strict: bool = False,
    power_w: float | None = None,
    cause: str | None = None,
    why_missing: str | None = None,
    unsettled: str | None = None,
    interval: IntervalOf = stats.interval,
) -> Judgement:
    """The rate of one stream is at least ``min_tok_s``, decided by the interval of its median over the rounds.

    Interval above the limit: pass; below it: fail. Undecided: *marginal* where the median lies within ``tolerance`` (a share) of
    the limit, a pass with a warning (inconclusive when ``strict``), else inconclusive with the rounds that would decide it. Failed
    requests and too few rounds are inconclusive. ``unsettled``: why the interval must not decide although it could (a drift).
    The decode interval is the measurement's own; ``interval`` makes the one of the end-to-end rates.
    """
    name = f"{quantity}_tok_s"
    bound = Limit(">=", min_tok_s, "tok/s")
    if throughput is None:
        return _missing("throughput", why_missing, name, bound)
    rate = _Rate.of(throughput, quantity, interval)
    measured = rate.measured(throughput)
    not_decided = _no_sample(throughput, rate) or unsettled
    level = f" at {power_w:g} W" if power_w is not None else ""
    kind = " end to end" if quantity == "end_to_end" else ""
    if rate.median is None or rate.low is None or rate.high is None or not_decided is not None:
        shown = "nothing measured" if rate.median is None else units.show(rate.median, "tok/s")
        reason = not_decided or f"too few rounds for an interval ({rate.rounds})"
        message = f"{shown}{kind}{level}, promised at least {min_tok_s:g} tok/s: not decided, {reason}"
        return _inconclusive(message, reason, name, measured, bound)
    here, there = _told_apart(rate.median, min_tok_s, "tok/s")
    said = f"{here}{kind}{level}, promised at least {there}"
    lag = _lag_could_decide(throughput, rate, min_tok_s, tolerance)
    if lag is not None:
        return _inconclusive(f"{said}: not decided, {lag}", lag, name, measured, bound)
    if rate.low >= min_tok_s or rate.high < min_tok_s:
        sure = f"{said} ({throughput.confidence * 100:g} % confident)"
        return _compared(rate.low >= min_tok_s, sure, name, measured, bound, cause)
    between = f"{throughput.confidence * 100:g} % interval {rate.low:.1f} to {rate.high:.1f} tok/s"
    if abs(rate.median - min_tok_s) <= tolerance * min_tok_s:
        message = f"{said}: marginal, within {tolerance * 100:g} % of the limit and undecided ({between})"
        verdict: Verdict = "inconclusive" if strict else "pass"
        because = f"marginal: {between} holds the limit" if strict else None
        return Judgement(
            verdict=verdict,
            message=message,
            quantity=name,
            measured=measured,
            limit=bound,
            marginal=True,
            inconclusive_because=because,
        )
    reason = f"undecided after {rate.rounds} rounds, {_more_rounds(rate.rounds, rate.median, rate.low, rate.high, min_tok_s)}"
    return _inconclusive(f"{said}: {reason} ({between})", reason, name, measured, bound)


class _Rate(NamedTuple):
    """Median and interval of the quantity that is promised, and the number of rounds behind them."""

    quantity: Quantity
    median: float | None
    low: float | None
    high: float | None
    rounds: int

    @classmethod
    def of(cls, throughput: Throughput, quantity: Quantity, interval: IntervalOf) -> _Rate:
        valid = [each for each in throughput.rounds if each.invalid_because is None]
        if quantity == "decode":
            made = sum(each.decode_tok_s is not None for each in valid)
            return cls(quantity, throughput.decode_tok_s, throughput.ci_low, throughput.ci_high, made)
        rates = [each.end_to_end_tok_s for each in valid if each.end_to_end_tok_s is not None and each.end_to_end_tok_s > 0]
        if not rates:
            return cls(quantity, None, None, None, 0)
        between = interval(rates, throughput.confidence)
        return cls(quantity, between.median, between.low, between.high, len(rates))

    def measured(self, throughput: Throughput) -> dict[str, Measurement]:
        """The measured names of run.json; the other quantity's median is shown beside it."""
        numbers: dict[str, tuple[float | int | None, str]] = {
            "decode_tok_s": (throughput.decode_tok_s, "tok/s"),
            "end_to_end_tok_s": (throughput.end_to_end_tok_s, "tok/s"),
            f"{self.quantity}_tok_s": (self.median, "tok/s"),
            "ci_low_tok_s": (self.low, "tok/s"),
            "ci_high_tok_s": (self.high, "tok/s"),
            "rounds": (self.rounds, "count"),
            "failed_requests": (throughput.failed, "count"),
        }
        return {key: Measurement(value, unit) for key, (value, unit) in numbers.items() if value is not None}


def _no_sample(throughput: Throughput, rate: _Rate) -> str | None:
    """Why the rounds are no sample of the promised rate; None = they are."""
    told = ", ".join(f"{count} x {reason}" for reason, count in throughput.failures.items())
    if throughput.failed:
        return f"{throughput.failed} failed request{'s' if throughput.failed > 1 else ''}" + (f": {told}" if told else "")
    if rate.low is None and told:
        return told
    if rate.rounds < MIN_ROUNDS:
        return f"too few rounds ({rate.rounds}, at least {MIN_ROUNDS})"
    return None


def _lag_could_decide(throughput: Throughput, rate: _Rate, min_tok_s: float, tolerance: float) -> str | None:
    """Whether the interval would lie elsewhere, seen from the limit, had the client not been late; None = it would not."""
    assert rate.low is not None
    assert rate.high is not None
    low, high = judge_lag.rate_range(throughput, rate.low, rate.high, end_to_end=rate.quantity == "end_to_end")
    passed, failed = rate.low >= min_tok_s, rate.high < min_tok_s
    if passed or failed:
        changed = low < min_tok_s if passed else high >= min_tok_s
    else:
        # undecided is decided as marginal where it lies near: not where the lag alone moves it further
        changed = max(high / rate.high, rate.low / low) > 1 + tolerance
    if not changed:
        return None
    return f"the client's own lag of {throughput.client_lag_s * 1000:.3g} ms could have changed the verdict"


def _more_rounds(rounds: int, median: float, low: float, high: float, limit: float) -> str:
    """How many are missing, were the spread to stay: an interval's width falls with the square root of their number."""
    half, distance = math.log(high / low) / 2, abs(math.log(median / limit))
    wanted = rounds * (half / distance) ** 2 if distance > 0 else math.inf
    if wanted > _MOST_ROUNDS:
        return "and more would hardly decide"
    more = max(1, math.ceil(wanted) - rounds)
    return f"about {more} more would decide"


# --- words ------------------------------------------------------------------------------------------------------------------------


def _compared(
    kept: bool, message: str, quantity: str, measured: dict[str, Measurement], limit: Limit, cause: str | None
) -> Judgement:
    """A cause is told of a broken promise only: of a kept one there is nothing to explain."""
    broken = cause if not kept else None
    return Judgement(
        verdict="pass" if kept else "fail",
        message=f"{message}: {broken}" if broken else message,
        quantity=quantity,
        measured=measured,
        limit=limit,
        cause=broken,
    )


def _missing(label: str, why: str | None, quantity: str, limit: Limit) -> Judgement:
    reason = why or "no reason is known"
    return _inconclusive(f"{label} was not measured: {reason}", reason, quantity, {}, limit)


def _inconclusive(message: str, because: str, quantity: str, measured: dict[str, Measurement], limit: Limit) -> Judgement:
    return Judgement(
        verdict="inconclusive", message=message, quantity=quantity, measured=measured, limit=limit, inconclusive_because=because
    )


def _durations(measured_s: float, limit_s: float) -> tuple[str, str]:
    """Both in the same words: minutes where both are long, else seconds with as many digits as tell them apart."""
    long = units.duration(measured_s), units.duration(limit_s)
    if min(measured_s, limit_s) >= 120 and (long[0] != long[1] or measured_s == limit_s):
        return long
    return _told_apart(measured_s, limit_s, "s")


def _told_apart(measured: float, limit: float, unit: str) -> tuple[str, str]:
    """Two numbers as text, with one digit behind the point, or more where they would otherwise read the same and are not."""
    if unit == "":
        return f"{measured:.3g}", f"{limit:g}"
    shown = f"{limit:.1f}" if unit == "s" else f"{limit:g}"
    for digits in range(1 if abs(measured) >= 10 or unit == "s" else 2, 7):
        text = f"{measured:.{digits}f}"
        if float(text) != limit or measured == limit:
            return f"{text} {unit}", f"{shown} {unit}"
    return f"{measured!r} {unit}", f"{shown} {unit}"
