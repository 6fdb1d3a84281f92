"""When is a rate decided? A group-sequential t test on the logarithms of the round rates, looks and error budget fixed in advance.

The series is looked at after ``min_rounds`` rounds and then at growing distances (5, 8, 13, 21, 30 for 5 to 30 rounds), not after
every round: each look costs a part of the error budget 1 - confidence. At look k the interval of the median at confidence 1 - a_k
(``stats.interval``) decides when it lies wholly on one side of the limit. The parts a_k add up to somewhat more than the budget:
the looks share rounds, so that their errors overlap. What the rule does is known by simulation (benchmarks/statistics, in docs/
statistics.md); at the default 99 %, 5 to 30 rounds:

- a rig exactly at its limit is called pass or fail in fewer than 1 % of runs, both together; one 3 % off is called wrongly in fewer
  than 0.1 % at a noise (CV) of 1 to 5 %;
- a clear case (5 % off at a noise of 2 %) is decided after 5 rounds in the median, within 8 in 95 % of runs;
- 3 % off at a noise of up to 3 %, fewer than 5 % stay undecided after 30 rounds.

*Marginal* is an undecided series whose median lies within ``tolerance`` of the limit, whose interval is narrow and rules out that the
rig falls short by more than that, and which shows no sign of falling. Where its whole interval lies that close, more rounds would hardly help: it ends there, from ten
rounds on, since fewer do not show that a rig still settles.

Drift is not averaged away. A verdict waits where the trend is likely one (p < 0.05) and its line, extended three times as far as was
seen, would undo it. A look at which the rate moves by more than 2 % over the rounds (p < 0.01) decides only if the limit
lies outside of everything that the trend spans: its interval at both ends, and as far again beyond the last round. Else it is
undecided; if the next look drifts as well, the rounds so far were settling and the series begins anew, with a tenth of the budget.
"""

from __future__ import annotations

import math
from typing import Literal

from pytest_sglang.judge import stats
from pytest_sglang.judge.stats import Drift, Interval
from pytest_sglang.record.values import Value

_GROWTH = 1.6
_CROWDED = 1.2
LATER_SERIES = 0.1
_MOST_ROUNDS_FORESEEN = 100_000


class Decision(Value, frozen=True, kw_only=True):
    """What a look found in the ``n`` rounds that count; ``discarded`` earlier ones were settling. Rates in tok/s.

    ``ci_low`` and ``ci_high`` belong to this look: whenever the series stops, they hold the true median with the asked confidence.
    ``needs_more``: how many more rounds would decide it at the present noise and distance; None = decided, or no number would.
    """

    verdict: Literal["pass", "fail", "undecided"]
    n: int
    median: float
    ci_low: float | None
    ci_high: float | None
    drift: Drift
    needs_more: int | None = None
    marginal: bool = False
    unsettled: bool = False
    """True: the rate drifts, or may be falling: nothing that is undecided so is marginal."""
    discarded: int = 0
    reason: str = ""


class Sequential:
    """Takes round rates one by one; ``add`` gives None while it goes on, and a Decision when the series is decided or used up.

    ``limit`` None: stops after ``min_rounds`` with the interval alone (undecided). Raises ValueError for settings that cannot be.
    """

    def __init__(
        self,
        limit: float | None,
        confidence: float = 0.99,
        min_rounds: int = 5,
        max_rounds: int = 30,
        tolerance: float = 0.02,
    ) -> None:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence {confidence}: between 0 and 1 (write e.g. 0.99)")
        if not 1 <= min_rounds <= max_rounds:
            raise ValueError(f"{min_rounds} to {max_rounds} rounds: at least 1, and the first number not above the second")
        if limit is not None and not _positive(limit):
            raise ValueError(f"limit {limit} tok/s: a positive number (write e.g. 38)")
        self.limit, self.confidence, self.tolerance = limit, confidence, tolerance
        self.min_rounds = min_rounds
        self.max_rounds = min_rounds if limit is None else max_rounds
        self.rates: list[float] = []
        self._series, self._begin = 0, 0
        self._looks = self._plan()
        self._drifted = False
        self._decision: Decision | None = None
        self._ended = False

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many rounds, of all, the present series is looked at."""
        return tuple(self._looks)

    def current(self) -> Decision | None:
        """What the last look found; None before the first one."""
        return self._decision

    def add(self, rate: float) -> Decision | None:
        """One more valid round. Raises ValueError for a rate that is not positive, and after the decision."""
        if self._ended:
            raise ValueError("the series is decided already")
        if not _positive(rate):
            raise ValueError(f"a rate must be a positive number, not {rate}")
        self.rates.append(rate)
        if len(self.rates) in self._looks:
            self._look(self._looks[len(self.rates)])
        return self._decision if self._ended else None

    def _plan(self) -> dict[int, float]:
        """Rounds (of all) at which the present series is looked at -> the look's part of the error budget."""
        rounds = look_rounds(self.min_rounds, self.max_rounds - self._begin)
        budget = (1 - self.confidence) * LATER_SERIES**self._series
        return {self._begin + n: budget * share for n, share in zip(rounds, shares(len(rounds)), strict=True)}

    def _look(self, error: float) -> None:
        counted = self.rates[self._begin :]
        trend = stats.drift(counted, confidence=1 - error)
        found = stats.interval(counted, 1 - error)
        low, high = (trend.low, trend.high) if trend.significant else (found.low, found.high)
        verdict = self._side(low, high)
        undone = not trend.significant and self._undone(verdict, trend)
        if undone:
            verdict = "undecided"
        open_ = verdict == "undecided"
        unsettled = undone or (open_ and (trend.significant or self._falling(trend)))
        close = open_ and not unsettled and self.limit is not None and marginal(found, self.limit, self.tolerance)
        self._decision = Decision(
            verdict=verdict,
            n=len(counted),
            median=found.median,
            ci_low=low,
            ci_high=high,
            drift=trend,
            needs_more=self._needs_more(found, error) if open_ and not trend.significant else None,
            marginal=close,
            unsettled=unsettled,
            discarded=self._begin,
            reason=self._reason(trend, low, high, undone, unsettled) if open_ else "",
        )
        hopeless = close and len(counted) >= stats.ROBUST_FROM and self._within(found.high)
        self._ended = not open_ or hopeless or len(self.rates) >= self.max_rounds
        if not self._ended:
            self._settle(trend)

    def _settle(self, trend: Drift) -> None:
        """A second look in a row that drifts: what came so far was settling. Rounds must be left for another series."""
        if trend.significant and self._drifted and self.max_rounds - len(self.rates) >= self.min_rounds:
            self._series += 1
            self._begin = len(self.rates)
            self._looks = self._plan()
            self._drifted = False
        else:
            self._drifted = trend.significant

    def _side(self, low: float | None, high: float | None) -> Literal["pass", "fail", "undecided"]:
        if self.limit is None or low is None or high is None:
            return "undecided"
        if low >= self.limit:
            return "pass"
        return "fail" if high < self.limit else "undecided"

    def _undone(self, verdict: Literal["pass", "fail", "undecided"], trend: Drift) -> bool:
        """True: the trend is likely one, and would carry the rate to the other side of the limit before long."""
        if self.limit is None or trend.ahead is None or verdict == "undecided":
            return False
        return trend.ahead < self.limit if verdict == "pass" else trend.ahead >= self.limit

    def _falling(self, trend: Drift) -> bool:
        """Too likely falling for a rig that is let pass with a warning, or fallen below what could be let pass."""
        fallen = self.limit is not None and trend.end is not None and trend.end < self.limit * (1 - self.tolerance)
        return trend.falling or (fallen and trend.share < 0)

    def _within(self, rate: float | None) -> bool:
        """Not further from the limit than the tolerance."""
        return self.limit is not None and rate is not None and abs(rate - self.limit) <= self.tolerance * self.limit

    def _needs_more(self, found: Interval, error: float) -> int | None:
        """Rounds that are missing until the interval would be narrower than the present distance from the limit."""
        if self.limit is None:
            return None
        n = found.n
        if found.low is None or found.high is None:
            return max(1, self.min_rounds - n)
        low, high = math.log(found.low), math.log(found.high)
        distance = abs((low + high) / 2 - math.log(self.limit))
        noise = (high - low) / 2 * math.sqrt(n) / stats.t_critical(1 - error, n - 1)
        if distance <= noise / math.sqrt(_MOST_ROUNDS_FORESEEN):
            return None
        # from here on the t value moves little: two rounds of fitting it to the number of rounds are plenty
        wanted = float(n)
        for _ in range(3):
            wanted = max(n + 1.0, (stats.t_critical(1 - error, math.ceil(wanted) - 1) * noise / distance) ** 2)
            if wanted > _MOST_ROUNDS_FORESEEN:
                return None
        return math.ceil(wanted) - n

    def _reason(self, trend: Drift, low: float | None, high: float | None, undone: bool, unsettled: bool) -> str:
        if trend.significant or undone:
            return f"the rate drifts: {trend}; let the rig settle (soak) or look for what moves it"
        if low is None or high is None:
            return "one round gives no interval"
        if unsettled:
            return f"the rate may be falling: {trend}; let the rig settle (soak), or more rounds must tell"
        if self.limit is None:
            return "no limit is given"
        return f"the limit {self.limit:g} tok/s lies within the interval {low:.4g} to {high:.4g} tok/s"


def marginal(found: Interval, limit: float, tolerance: float) -> bool:
    """As good as the limit for all that can be told: median within ``tolerance`` (a share), interval no wider than it to either side
    and above the limit less the tolerance, so that the confidence holds for that.
    """
    if found.low is None or found.high is None:
        return False
    reach = tolerance * limit
    return abs(found.median - limit) <= reach and found.high - found.low <= 2 * reach and found.low >= limit - reach


def look_rounds(first: int, last: int) -> tuple[int, ...]:
    """The rounds at which a series of ``first`` to ``last`` rounds is looked at: each 1.6 times the one before, and the last."""
    looks = [first]
    while (following := max(looks[-1] + 1, round(looks[-1] * _GROWTH))) < last:
        looks.append(following)
    if last > first:
        if len(looks) > 1 and last < looks[-1] * _CROWDED:
            looks.pop()
        looks.append(last)
    return tuple(looks)


def shares(looks: int) -> tuple[float, ...]:
    """How the error budget is divided among so many looks: most to the first two, which decide clear cases, some to the last.

    More than 1 in all for three looks and more: at that the errors of looks that share rounds add up to the budget. Calibrated on
    300,000 simulated series a setting, whatever the noise (benchmarks/statistics; tests hold it).
    """
    if looks <= 3:
        return {1: (1.0,), 2: (0.6, 0.45), 3: (0.46, 0.30, 0.26)}[looks]
    middle = looks - 3
    return (0.45, 0.32, *[0.03 / middle] * middle, 0.25)


def _positive(number: float) -> bool:
    return number > 0 and math.isfinite(number)
