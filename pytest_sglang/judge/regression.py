"""Did it get slower? Two sets of boots, each with its rounds, compared by one interval that knows that boots differ.

Model: ln(rate of round j in boot i) = level + boot_i + noise_ij. Rounds of one boot share its boot_i, so more rounds never tell two
boots apart from two versions; the spread between boots is learnt from earlier runs with the same key (method of moments: variance of
boot means less the share that rounds explain, Searle, Casella, McCulloch, "Variance Components", 1992, 3.6). The interval of the
difference is Student's t with Satterthwaite's degrees of freedom over the three variances (Satterthwaite 1946). Each bound holds with
``confidence`` on its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pytest_sglang.record.values import Value

CONFIDENCE = 0.99
MIN_LOSS = 0.01
"""A loss below this is shown and not called, however certain it is."""
MAX_LOSS = 0.03
"""A loss of this size must be excluded before a comparison passes."""
POWER = 0.95
"""With the rounds and boots that are asked for, a loss of MAX_LOSS is found so often."""
ASSUMED_BOOT_SD = 0.02
"""Spread between boots (of ln rate) where no history tells: one H200 gave 232 tok/s in one boot and 225 in the next."""
MAX_ROUNDS, MAX_BOOTS = 40, 30

Outcome = Literal["better", "worse", "same", "undecided"]
Boots = Sequence[Sequence[float]]
"""One inner sequence a boot: its rounds' values, all positive."""


class Spread(Value, frozen=True, kw_only=True):
    """Standard deviation between boots of ln(value), with its degrees of freedom; ``None``: assumed, not learnt."""

    sd: float
    degrees: float | None


class Change(Value, frozen=True, kw_only=True):
    """after / before - 1, positive is *better*, with its interval (None: not enough to give one) and what it would take to decide."""

    outcome: Outcome
    change: float | None
    low: float | None
    high: float | None
    confidence: float
    why: str
    spread: Spread
    noise_sd: float | None = None
    """Standard deviation of ln(value) between rounds of one boot."""
    more_rounds: int | None = None
    more_boots: int | None = None

    @property
    def verdict(self) -> Literal["pass", "fail", "inconclusive"]:
        """worse fails, undecided is inconclusive."""
        return {"better": "pass", "same": "pass", "worse": "fail", "undecided": "inconclusive"}[self.outcome]  # type: ignore[return-value]


class _Side(Value, frozen=True, kw_only=True):
    boots: int
    rounds: int
    mean: float
    within: float
    """Variance between rounds of a boot."""
    within_degrees: int
    share: float
    """Variance of the mean = between/boots + within * share."""


def learn(groups: Sequence[Boots]) -> Spread:
    """Spread between boots out of groups of boots that should be alike (same key); groups of one boot say nothing.

    Raises ValueError for a value that is not positive.
    """
    between, degrees, explained, counted = 0.0, 0, 0.0, 0
    for boots in groups:
        logs = [_logs(each) for each in boots if each]
        if len(logs) < 2:
            continue
        means = [math.fsum(each) / len(each) for each in logs]
        middle = math.fsum(means) / len(means)
        between += math.fsum((each - middle) ** 2 for each in means)
        degrees += len(means) - 1
        within, freedom = _within(logs)
        if freedom:
            explained += math.fsum(within / len(each) for each in logs)
            counted += len(logs)
    if not degrees:
        return Spread(sd=ASSUMED_BOOT_SD, degrees=None)
    variance = between / degrees - (explained / counted if counted else 0.0)
    return Spread(sd=math.sqrt(max(0.0, variance)), degrees=float(degrees))


def compare(
    before: Boots,
    after: Boots,
    *,
    spread: Spread,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
    max_loss: float = MAX_LOSS,
) -> Change:
    """Whether ``after`` is worse than ``before``. Raises ValueError for a value that is not positive.

    worse: the whole interval lies on the losing side, and the loss is at least MIN_LOSS. better: the whole interval lies on the
    winning side. same: a loss of ``max_loss`` is excluded. Else undecided, with what it would take.
    """
    sides = [_side(before), _side(after)]
    if any(each is None for each in sides):
        why = "no usable round before" if sides[0] is None else "no usable round after"
        return Change(outcome="undecided", change=None, low=None, high=None, confidence=confidence, why=why, spread=spread)
    old, new = (each for each in sides if each is not None)
    sign = 1.0 if higher_is_better else -1.0
    difference = sign * (new.mean - old.mean)
    half = _half(old, new, spread, confidence)
    noise = _noise(old, new)
    if half is None:
        why = "one round on one side, and no history of boots: at least 2 rounds are needed"
        return Change(
            outcome="undecided",
            change=math.expm1(difference),
            low=None,
            high=None,
            confidence=confidence,
            why=why,
            spread=spread,
            more_rounds=5,
        )
    low, high = math.expm1(difference - half), math.expm1(difference + half)
    change = math.expm1(difference)
    outcome, why = _outcome(change, low, high, max_loss)
    rounds, boots = (None, None) if outcome != "undecided" else ask(noise, spread, max_loss, confidence, old, new)
    return Change(
        outcome=outcome,
        change=change,
        low=low,
        high=high,
        confidence=confidence,
        why=why if outcome != "undecided" else f"{why}: {_asked(rounds, boots, spread)}",
        spread=spread,
        noise_sd=noise,
        more_rounds=rounds,
        more_boots=boots,
    )


def pct(share: float, digits: int = 1) -> str:
    """0.0312 -> "3.1 %"."""
    return f"{share * 100:.{digits}f} %"


def _outcome(change: float, low: float, high: float, max_loss: float) -> tuple[Outcome, str]:
    if high < 0 and -change >= MIN_LOSS:
        return "worse", f"worse by {pct(-change)}, at least {pct(-high)}"
    if low > 0:
        return "better", f"better by {pct(change)}, at least {pct(low)}"
    if low > -max_loss:
        certain = f"; worse by {pct(-change)} for certain, which is below {pct(MIN_LOSS, 0)}" if high < 0 else ""
        return "same", f"a loss of {pct(max_loss, 0)} is excluded{certain}"
    return "undecided", f"a loss of up to {pct(-low)} cannot be excluded"


def ask(
    noise: float,
    spread: Spread,
    max_loss: float = MAX_LOSS,
    confidence: float = CONFIDENCE,
    old: _Side | None = None,
    new: _Side | None = None,
) -> tuple[int | None, int | None]:
    """(rounds a boot, boots) on either side with which a loss of ``max_loss`` is found with POWER; None where it takes too many.

    One boot with more rounds where that is enough, else more boots of as many rounds as there are (at least 5).
    """
    cautious = _cautious(spread)
    single = old is not None and new is not None and old.rounds == old.boots and new.rounds == new.boots
    for rounds in range(3, MAX_ROUNDS + 1) if not single else ():
        if _finds(noise, cautious, rounds, 1, max_loss, confidence):
            return rounds, 1
    have = [each.rounds // each.boots for each in (old, new) if each is not None]
    # one value a boot, as starts have it: only their number can grow
    rounds = 1 if have and max(have) == 1 else max(5, min(have, default=5))
    for boots in range(2, MAX_BOOTS + 1):
        # more boots also teach how far boots differ
        degrees = (spread.degrees or 0.0) + 2.0 * (boots - 1)
        if _finds(noise, Spread(sd=cautious.sd, degrees=degrees), rounds, boots, max_loss, confidence):
            return rounds, boots
    return None, None


def _cautious(spread: Spread) -> Spread:
    """The spread with which to plan: few boots may have shown too little of it, so its upper 75 % bound (chi-squared)."""
    if spread.degrees is None or not spread.sd:
        return spread
    from scipy.special import chdtri

    return Spread(sd=spread.sd * math.sqrt(spread.degrees / float(chdtri(spread.degrees, 0.75))), degrees=spread.degrees)


def _finds(noise: float, spread: Spread, rounds: int, boots: int, loss: float, confidence: float) -> bool:
    side = _Side(
        boots=boots,
        rounds=rounds * boots,
        mean=0.0,
        within=noise**2,
        within_degrees=boots * (rounds - 1),
        share=1 / (rounds * boots),
    )
    variance, degrees = _variance(side, side, spread)
    return variance == 0 or (_t(confidence, degrees) + _t(POWER, degrees)) * math.sqrt(variance) <= -math.log1p(-loss)


def _asked(rounds: int | None, boots: int | None, spread: Spread) -> str:
    if rounds is None or boots is None:
        return "the rounds and boots scatter too much for any sensible number of them"
    assumed = (
        f" (the spread between boots is assumed, {pct(spread.sd, 0)}: no earlier boots tell it)" if spread.degrees is None else ""
    )
    if rounds == 1:
        return f"{boots} starts are needed on either side{assumed}"
    if boots == 1:
        return f"measure {rounds} rounds on either side{assumed}"
    return f"measure {boots} boots of {rounds} rounds on either side{assumed}"


def _side(boots: Boots) -> _Side | None:
    logs = [_logs(each) for each in boots if each]
    if not logs:
        return None
    means = [math.fsum(each) / len(each) for each in logs]
    within, degrees = _within(logs)
    return _Side(
        boots=len(logs),
        rounds=sum(len(each) for each in logs),
        mean=math.fsum(means) / len(means),
        within=within,
        within_degrees=degrees,
        share=math.fsum(1 / len(each) for each in logs) / len(logs) ** 2,
    )


def _within(logs: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Pooled variance of rounds around their own boot's mean, and its degrees of freedom."""
    total, degrees = 0.0, 0
    for each in logs:
        mean = math.fsum(each) / len(each)
        total += math.fsum((value - mean) ** 2 for value in each)
        degrees += len(each) - 1
    return (total / degrees if degrees else 0.0), degrees


def _noise(old: _Side, new: _Side) -> float:
    degrees = old.within_degrees + new.within_degrees
    return math.sqrt((old.within * old.within_degrees + new.within * new.within_degrees) / degrees) if degrees else 0.0


def _variance(old: _Side, new: _Side, spread: Spread) -> tuple[float, float]:
    """Variance of the difference of means, and its degrees of freedom (infinite where nothing was estimated).

    Where boots tell their spread, their number decides the degrees on its own: for boots of equally many rounds that is the exact t
    test on boot means, or a stricter one. Weighing the parts (Satterthwaite) would call 2.5 % instead of 1 % of the losses that are none.
    """
    parts = [(old.within * old.share, float(old.within_degrees)), (new.within * new.share, float(new.within_degrees))]
    variance = math.fsum(part for part, _ in parts) + spread.sd**2 * (1 / old.boots + 1 / new.boots)
    if spread.degrees is not None:
        return variance, spread.degrees
    weight = math.fsum(part**2 / degrees for part, degrees in parts if part and degrees)
    return variance, (variance**2 / weight if weight else math.inf)


def _half(old: _Side, new: _Side, spread: Spread, confidence: float) -> float | None:
    """Half of the interval; None where a side has no rounds to tell its noise and boots do not tell it either."""
    if not old.within_degrees or not new.within_degrees:
        if spread.degrees is None:
            return None
        # single values: their scatter is that of earlier boots, which holds the rounds' noise already
        return _t(confidence, spread.degrees) * spread.sd * math.sqrt(1 / old.boots + 1 / new.boots)
    variance, degrees = _variance(old, new, spread)
    return _t(confidence, degrees) * math.sqrt(variance)


def _t(confidence: float, degrees: float) -> float:
    """One-sided t value."""
    if math.isinf(degrees):
        from scipy.special import ndtri

        return float(ndtri(confidence))
    from scipy.special import stdtrit

    return float(stdtrit(degrees, confidence))


def _logs(values: Sequence[float]) -> list[float]:
    wrong = [each for each in values if not (each > 0 and math.isfinite(each))]
    if wrong:
        raise ValueError(f"a value to compare must be a positive number, not {wrong[0]}")
    return [math.log(each) for each in values]
