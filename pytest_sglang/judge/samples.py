"""What the rounds of one measurement say of each quantity that is compared: one value a round, or one of several rounds together. Pure.

A percentile is taken of so many rounds together as earn it (docs/definitions.md): of 127 gaps a round, four rounds earn a p99 of 459.
Where the clean samples are no fair sample, there is no value, and ``why`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pytest_sglang.judge import stats
from pytest_sglang.judge.latency import MAX_MERGED_SHARE
from pytest_sglang.record.values import Value

Round = Mapping[str, Any]
"""A round of run.json."""
P99 = 0.99
_NUMBERS = (float, int)
MOST_LEFT_OUT = 1 / 3
"""Rounds that give no latency or energy, as a share; with more, the others are no fair sample. A valid round without a rate is none at all."""

UNRECORDED = "no samples were recorded"


class Samples(Value, frozen=True, kw_only=True):
    """One quantity of one boot. ``why``: what kept rounds from giving a value; ``few``: it is only that there were too few samples."""

    values: tuple[float, ...] = ()
    rounds: int = 0
    """Valid rounds that were looked at."""
    rounds_each: int = 1
    """So many of them made one value."""
    left_out: int = 0
    most_left_out: float = 0.0
    why: str = ""
    error_sd: float = 0.0
    """Standard uncertainty of one value as a share, beyond its scatter."""
    lag: float = 0.0
    """The most that the client's own lateness may have added to a value, in its unit."""

    @property
    def unfair(self) -> bool:
        """Too many rounds gave none."""
        return self.left_out > self.rounds * self.most_left_out


def of(throughput: Mapping[str, Any]) -> dict[str, Samples]:
    """Every quantity of a measurement by its name in ``judge.margins``; empty where no round is valid."""
    rounds = [each for each in throughput.get("rounds") or () if each.get("invalid_because") is None]
    if not rounds:
        return {}
    many = int(throughput.get("streams") or 1) > 1
    found = {
        "decode_tok_s": _each(rounds, lambda each: each.get("decode_tok_s")),
        "end_to_end_tok_s": _each(rounds, lambda each: each.get("end_to_end_tok_s")),
        "joules_per_token": _energy(rounds),
        "ttft_ms": _median(rounds, _ttft, _late_ttft, _ttft_lag),
        "ttft_p99_ms": _p99(rounds, _ttft, _late_ttft, _ttft_lag),
        "tpot_ms": _median(rounds, _tpot, _nothing, _stamp_lag),
        "tpot_p99_ms": _p99(rounds, _tpot, _nothing, _stamp_lag),
        "itl_ms": _median(rounds, _itl, _merged, _itl_lag),
        "itl_p99_ms": _p99(rounds, _itl, _merged, _itl_lag),
    }
    if many:
        found["aggregate_tok_s"] = _each(rounds, lambda each: each.get("aggregate_tok_s"))
    return found


def short(throughput: Mapping[str, Any]) -> dict[str, list[float]]:
    """The values alone, five digits of each, for the short form that history reads."""
    return {
        name: [float(f"{value:.6g}") for value in each.values]
        for name, each in of(throughput).items()
        if each.values and not each.unfair
    }


# --- one value a round --------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | None:
    """A positive, finite number; None for everything else."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return float(value) if usable else None


def _each(rounds: Sequence[Round], value: Callable[[Round], Any]) -> Samples:
    values = [number for each in rounds if (number := _number(value(each))) is not None]
    left = len(rounds) - len(values)
    why = f"{left} of {len(rounds)} rounds tell no number" if left else ""
    return Samples(values=tuple(values), rounds=len(rounds), left_out=left, why=why)


def _energy(rounds: Sequence[Round]) -> Samples:
    """J/token, with the standard uncertainty of the counter's edges: a rectangle of ± joules_error (GUM, JCGM 100:2008, 4.3.7)."""
    found = _each(rounds, _joules_per_token)
    missing = next((str(each["joules_missing"]) for each in rounds if each.get("joules_missing")), "")
    shares = [
        float(each["joules_error"]) / float(each["joules"])
        for each in rounds
        if _number(each.get("joules")) and _number(each.get("joules_error"))
    ]
    error = math.sqrt(math.fsum(share**2 for share in shares) / len(shares) / 3) if shares else 0.0
    why = f"{found.why} ({missing})" if found.why and missing else found.why
    return msgspec.structs.replace(found, most_left_out=MOST_LEFT_OUT, why=why, error_sd=error)


def _joules_per_token(each: Round) -> float | None:
    joules, tokens = _number(each.get("joules")), _number(each.get("output_tokens"))
    return joules / tokens if joules is not None and tokens is not None else None


# --- latencies: samples of a round, in seconds ---------------------------------------------------------------------------------

Gather = Callable[[Round], Sequence[float]]
Reason = Callable[[Round], str]
Lag = Callable[[Round], float]


def _ttft(each: Round) -> Sequence[float]:
    return each.get("ttft_s") or ()


def _itl(each: Round) -> Sequence[float]:
    return each.get("itl_s") or ()


def _tpot(each: Round) -> Sequence[float]:
    return each.get("tpot_s") or ()


def _late_ttft(each: Round) -> str:
    late = int(each.get("unsure_ttft") or 0) > MAX_MERGED_SHARE * len(each.get("ttft_s") or ())
    return "first tokens came in one read with later ones" if late else ""


def _merged(each: Round) -> str:
    share = float(each.get("merged_share") or 0.0)
    return (
        f"more than {100 * MAX_MERGED_SHARE:g} % of the token events have no time of their own" if share > MAX_MERGED_SHARE else ""
    )


def _nothing(each: Round) -> str:
    return ""


def _ttft_lag(each: Round) -> float:
    return float(each.get("stamp_lag_s") or 0.0) + float(each.get("send_lag_s") or 0.0)


def _stamp_lag(each: Round) -> float:
    return 2 * float(each.get("stamp_lag_s") or 0.0) / max(1.0, float(each.get("output_tokens") or 1))


def _itl_lag(each: Round) -> float:
    return float(each.get("itl_lag_s") or 0.0)


def _usable(samples: Sequence[Any]) -> list[float]:
    """Positive, finite numbers in ms; there may be a million of them."""
    return [each * 1000 for each in samples if each.__class__ in _NUMBERS and 0.0 < each < math.inf]


def _median(rounds: Sequence[Round], gather: Gather, reason: Reason, lag: Lag) -> Samples:
    values, reasons = [], []
    for each in rounds:
        why = reason(each)
        samples = [] if why else _usable(gather(each))
        if samples:
            values.append(stats.median(samples))
        else:
            reasons.append(why)
    return _told(values, rounds, reasons, lag, 1)


def _p99(rounds: Sequence[Round], gather: Gather, reason: Reason, lag: Lag) -> Samples:
    values, reasons = [], []
    together: list[float] = []
    sizes, size = [], 0
    for each in rounds:
        why = reason(each)
        samples = [] if why else _usable(gather(each))
        if not samples:
            reasons.append(why)
            continue
        together, size = together + samples, size + 1
        earned = stats.percentile(together, P99)
        if earned.value is not None:
            values.append(earned.value)
            sizes.append(size)
            together, size = [], 0
    return _told(values, rounds, reasons, lag, max(sizes, default=1))


def _told(values: Sequence[float], rounds: Sequence[Round], reasons: Sequence[str], lag: Lag, rounds_each: int) -> Samples:
    left = len(reasons)
    why = next((each for each in reasons if each), UNRECORDED) if left else ""
    return Samples(
        values=tuple(values),
        rounds=len(rounds),
        rounds_each=rounds_each,
        left_out=left,
        most_left_out=MOST_LEFT_OUT,
        why=f"{left} of {len(rounds)} rounds: {why}" if why else "",
        lag=max(map(lag, rounds), default=0.0) * 1000,
    )
