"""Did it get slower? Two sets of boots, each with its rounds, compared by one interval that knows that boots differ.

Rounds of one boot share what that boot is like, so more rounds never tell two boots apart from two versions; the spread between boots
is learnt from earlier runs with the same key (``judge.boots``). The interval of the difference is Student's t; where the spread is
assumed, with Satterthwaite's degrees of freedom over the variances (Satterthwaite 1946). Each bound holds with ``confidence`` on its own;
*worse* is called at ``alarm``, the share of the false alarms that this quantity has among all that are judged (``judge.family``).
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from pytest_sglang.judge import boots as sides
from pytest_sglang.judge import stats
from pytest_sglang.judge.boots import ASSUMED_BOOT_SD, Boots, Side, Spread, learn
from pytest_sglang.record.values import Value

__all__ = ["ASSUMED_BOOT_SD", "Boots", "Change", "Spread", "ask", "compare", "learn", "pct", "undecided"]

CONFIDENCE = 0.99
MIN_LOSS = 0.01
"""A loss below this is shown and not called, however certain it is."""
MAX_LOSS = 0.03
"""A loss of this size must be excluded before a comparison passes."""
POWER = 0.95
"""With the rounds and boots that are asked for, a loss of MAX_LOSS is found so often."""
MAX_ROUNDS, MAX_BOOTS = 40, 30
FIRST_BOOTS = 4
"""So many on either side tell their spread well enough to plan with it."""
DRIFT_P_VALUE = 0.01
"""Of all boots of a comparison together."""

Outcome = Literal["better", "worse", "same", "undecided"]


class Change(Value, frozen=True, kw_only=True):
    """How the number itself changed, as a share; positive is *better*: for a time, 0.04 is 4 % less, -0.04 is 4 % more.

    With its interval (None: not enough to give one) and what it would take to decide.
    """

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
    """Rounds of a boot on either side with which it would be decided."""
    more_boots: int | None = None
    drifts: bool = False
    """Undecided because the rounds of a boot drift, whatever the interval."""
    p_value: float | None = None
    """Of a difference so bad or worse where there is no loss."""
    alarm: float = 1 - CONFIDENCE
    """*worse* was called where ``p_value`` is at most this."""

    @property
    def verdict(self) -> Literal["pass", "fail", "inconclusive"]:
        """worse fails, undecided is inconclusive."""
        return {"better": "pass", "same": "pass", "worse": "fail", "undecided": "inconclusive"}[self.outcome]  # type: ignore[return-value]

    @property
    def asks(self) -> Literal["", "more", "boots", "settle", "hopeless"]:
        """What would decide it: more rounds or boots, a few boots that tell how far boots differ, a longer soak; ``""``: none of these."""
        if self.outcome != "undecided":
            return ""
        if self.drifts:
            return "settle"
        if self.low is None:
            return "" if self.more_rounds is None else "more"
        if self.spread.degrees is None and (self.more_boots is None or self.more_boots > FIRST_BOOTS):
            return "boots"
        return "hopeless" if self.more_boots is None else "more"


def undecided(why: str, *, change: float | None = None, spread: Spread | None = None, more_rounds: int | None = None) -> Change:
    """Undecided without an interval, and why."""
    return Change(
        outcome="undecided",
        change=change,
        low=None,
        high=None,
        confidence=CONFIDENCE,
        why=why,
        spread=spread or Spread(sd=ASSUMED_BOOT_SD, degrees=None),
        more_rounds=more_rounds,
    )


def compare(
    before: Boots,
    after: Boots,
    *,
    spread: Spread,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
    max_loss: float = MAX_LOSS,
    min_loss: float = MIN_LOSS,
    alarm: float | None = None,
    error_sd: tuple[float, float] = (0.0, 0.0),
    rounds_each: int = 1,
) -> Change:
    """Whether ``after`` is worse than ``before``. Raises ValueError for a value that is not positive.

    worse: the whole interval lies on the losing side, the p value is at most ``alarm`` (1 - ``confidence``), and the loss is at least
    ``min_loss``. better: the whole interval lies on the winning side. same: a loss of ``max_loss`` is excluded. Else undecided, with
    what it would take; so is a series that drifts within a boot by as much as ``max_loss``. ``error_sd``: each value's own standard
    uncertainty, before and after; ``rounds_each``: so many rounds it takes for one value.
    """
    old, new = sides.side(before, error_sd[0]), sides.side(after, error_sd[1])
    if old is None or new is None:
        return undecided("no usable round before" if old is None else "no usable round after", spread=spread)
    sign = 1.0 if higher_is_better else -1.0
    difference = sign * (new.mean - old.mean)
    change = _share(difference, higher_is_better)
    known = sides.uncertainty(old, new, spread)
    if known is None:
        why = "one round on one side, and no history of boots: at least 2 rounds are needed"
        return undecided(why, change=change, spread=spread, more_rounds=5)
    error, degrees = math.sqrt(known[0]), known[1]
    half = sides.t_value(confidence, degrees) * error
    low, high = (_share(each, higher_is_better) for each in (difference - half, difference + half))
    score = difference / error if error > 0 else math.copysign(math.inf, difference) if difference else 0.0
    p_value, alarm = sides.below(score, degrees), 1 - confidence if alarm is None else alarm
    outcome, why = _outcome(change, low, high, max_loss, min_loss, alarmed=p_value <= alarm)
    found = Change(
        outcome=outcome,
        change=change,
        low=low,
        high=high,
        confidence=confidence,
        why=why,
        spread=spread,
        noise_sd=sides.noise(old, new),
        p_value=p_value,
        alarm=alarm,
    )
    drifts = _drifts(before, after, max_loss)
    if drifts is not None:
        return msgspec.structs.replace(found, outcome="undecided", why=drifts, drifts=True)
    if outcome != "undecided":
        return found
    loss = max_loss if higher_is_better else -math.expm1(-math.log1p(max_loss))
    return _planned(found, old, new, _to_find(difference, error, loss), rounds_each)


def _to_find(difference: float, error: float, loss: float) -> float:
    """How far from a decision the truth is likely to be, one standard error less than it looks, and at least ``loss``: a change of 18 %
    takes fewer boots than one of 3 %."""
    margin = -math.log1p(-loss)
    distance = (-difference if difference < 0 else difference + margin) - error
    return -math.expm1(-max(margin, distance))


def _planned(found: Change, old: Side, new: Side, loss: float, rounds_each: int) -> Change:
    """An undecided one with the rounds and boots that it would take."""
    rounds, boots = ask(found.noise_sd or 0.0, found.spread, loss, max(found.confidence, 1 - found.alarm), old, new)
    why = f"{found.why}: {_asked(rounds, boots, found.spread, rounds_each)}"
    return msgspec.structs.replace(found, why=why, more_rounds=None if rounds is None else rounds * rounds_each, more_boots=boots)


def _share(difference: float, higher_is_better: bool) -> float:
    """A difference of logarithms, positive is better, as a share of the number before."""
    return math.expm1(difference) if higher_is_better else -math.expm1(-difference)


def pct(share: float, digits: int = 1) -> str:
    """0.0312 -> "3.1 %"; from 100 % on without decimals."""
    return f"{share * 100:.{digits if abs(share) < 1 else 0}f} %"


def _outcome(change: float, low: float, high: float, max_loss: float, min_loss: float, *, alarmed: bool) -> tuple[Outcome, str]:
    loses = high < 0 and -change >= min_loss
    if loses and alarmed:
        return "worse", f"worse by {pct(-change)}, at least {pct(-high)}"
    if low > 0:
        return "better", f"better by {pct(change)}, at least {pct(low)}"
    if low > -max_loss:
        told = f"worse by {_whole(max_loss)} is excluded"
        if loses:
            return "same", f"{told}; worse by {pct(-change)} is likely"
        return "same", f"{told}; worse by {pct(-change)} for certain, which is below {_whole(min_loss)}" if high < 0 else told
    if loses:
        return "undecided", f"worse by {pct(-change)} is likely, but too few boots to be certain"
    return "undecided", f"worse by up to {pct(-low)} cannot be excluded"


def _whole(share: float) -> str:
    """3 %, and 2.5 % where it is no whole number."""
    return f"{share * 100:.3g} %"


def _drifts(before: Boots, after: Boots, max_loss: float) -> str | None:
    """A boot whose rounds move by more than ``max_loss`` in one direction: their mean is no level of anything."""
    series = [
        (f"{'the boot' if len(boots) == 1 else 'one of the boots'} {name}", boot)
        for name, boots in (("before", before), ("after", after))
        for boot in boots
        if len(boot) >= stats.DRIFT_FROM
    ]
    for name, boot in series:
        found = stats.drift(boot, share=max_loss, p_value=DRIFT_P_VALUE / len(series))
        if found.significant:
            moved = f"its rounds drift by {found.share * 100:+.1f} % within {name}"
            return f"{moved}: let it settle (soak in the rig file) and measure again"
    return None


def ask(
    noise: float,
    spread: Spread,
    max_loss: float = MAX_LOSS,
    confidence: float = CONFIDENCE,
    old: Side | None = None,
    new: Side | None = None,
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
        square = cautious.sd**2 + noise**2 / rounds
        if _finds(noise, Spread(sd=cautious.sd, degrees=degrees, mean_square=square), rounds, boots, max_loss, confidence):
            return rounds, boots
    return None, None


def _cautious(spread: Spread) -> Spread:
    """The spread with which to plan: few boots may have shown too little of it, so its upper 75 % bound (chi-squared)."""
    if spread.degrees is None:
        return spread
    from scipy.special import chdtri

    square = spread.mean_square or spread.sd**2
    sd = math.sqrt(max(0.0, square * spread.degrees / float(chdtri(spread.degrees, 0.75)) - spread.explained))
    return msgspec.structs.replace(spread, sd=sd)


def _finds(noise: float, spread: Spread, rounds: int, boots: int, loss: float, confidence: float) -> bool:
    side = Side(
        boots=boots,
        rounds=rounds * boots,
        mean=0.0,
        within=noise**2,
        within_degrees=boots * (rounds - 1),
        share=1 / (rounds * boots),
    )
    variance, degrees = sides.variance(side, side, spread)
    return variance == 0 or (sides.t_value(confidence, degrees) + sides.t_value(POWER, degrees)) * math.sqrt(
        variance
    ) <= -math.log1p(-loss)


def _asked(rounds: int | None, boots: int | None, spread: Spread, rounds_each: int = 1) -> str:
    assumed = (
        f" (the spread between boots is assumed, {pct(spread.sd, 0)}: no earlier boots tell it)" if spread.degrees is None else ""
    )
    if assumed and (boots is None or boots > FIRST_BOOTS):
        # a plan on an assumption would ask for too many: the first few tell how many it takes
        return f"measure {FIRST_BOOTS} boots of {max(rounds or 0, 5) * rounds_each} rounds on either side, which tell how far boots differ{assumed}"
    if rounds is None or boots is None:
        return "the rounds and boots scatter too much for any sensible number of them"
    if rounds == 1 and rounds_each > 1:
        return f"{boots} boots of {rounds_each} rounds are needed on either side{assumed}"
    if rounds == 1:
        return f"{boots} starts are needed on either side{assumed}"
    rounds *= rounds_each
    if boots == 1:
        return f"measure {rounds} rounds on either side{assumed}"
    return f"measure {boots} boots of {rounds} rounds on either side{assumed}"
