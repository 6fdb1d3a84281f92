"""Small statistics with their conditions attached: an interval, a percentile that must be earned, a test for drift.

scipy is imported by the functions that need it, and only its special functions (Student's t): scipy.stats takes a second to import.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from pytest_sglang.record.values import Value

ROBUST_FROM = 10
"""So many rounds tell their spread well enough to tell which of them lie far from the others."""

REACH = 2.5
"""How far, in standard deviations estimated from the median deviation, a round may lie from the median and count as it is."""

SIGMA_A_MEDIAN_DEVIATION = 1.4826
DRIFT_SHARE = 0.02
AHEAD = 5.0
"""Where the line of a trend is looked at, in halves of the rounds from their middle: three times as far as was seen."""

AHEAD_P_VALUE = 0.05
FALLING_SHARE = 0.01
FALLING_P_VALUE = 0.4
DRIFT_P_VALUE = 0.01
DRIFT_FROM = 5


class Interval(Value, frozen=True, kw_only=True):
    """Confidence interval of the median; ``low`` and ``high`` None where too few samples allow none."""

    n: int
    median: float
    low: float | None
    high: float | None


class Percentile(Value, frozen=True, kw_only=True):
    """``value`` None = not earned; then ``why_missing`` says how many samples it takes."""

    q: float
    n: int
    needed: int
    value: float | None
    why_missing: str | None = None


class Drift(Value, frozen=True, kw_only=True):
    """The trend of a series: ``share`` is how far the fitted line moves from the first to the last round (-0.03: 3 % down)."""

    share: float
    p_value: float
    significant: bool
    low: float | None = None
    high: float | None = None
    """The span of the fitted line with its interval at both ends and as far again beyond the last; None where there is no trend."""
    end: float | None = None
    """Where the fitted line is at the last round (tok/s); None for too few rounds."""
    ahead: float | None = None
    """Where it would be three times as far on (tok/s), if the trend is likely one (p < 0.05), else None."""

    @property
    def falling(self) -> bool:
        """Not shown to be a drift, but too likely one, downwards, for a rig that is let pass with a warning."""
        return self.share < -FALLING_SHARE and self.p_value < FALLING_P_VALUE

    def __str__(self) -> str:
        return f"{100 * self.share:+.1f} % over the rounds (p = {self.p_value:.1g})"


def median(values: Sequence[float]) -> float:
    """The middle value. Raises ValueError for no values."""
    if not values:
        raise ValueError("the median of no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def interval(rates: Sequence[float], confidence: float) -> Interval:
    """Two-sided t interval on the logarithms of positive rates: that of their median where they are log-normal.

    exp(mean(ln x) ± t(1 - a/2, k - 1) · s / sqrt(n) · (n - 1)/(k - 1)), a = 1 - confidence. From ten rounds on, those far from the
    others are pulled in first (``pulled_in``), and k of n stay as they are (Dixon and Tukey 1968, Technometrics 10, 83-98: the
    winsorized t); with fewer, k = n, which is Student's interval. Raises ValueError for no rates and for one that is not positive.
    """
    logs = _logs(rates)
    n = len(logs)
    if n < 2:
        return Interval(n=n, median=median(rates), low=None, high=None)
    near, kept = pulled_in(logs)
    half = t_critical(confidence, kept - 1) * deviation(near) / math.sqrt(n) * (n - 1) / (kept - 1)
    mean = math.fsum(near) / n
    return Interval(n=n, median=median(rates), low=math.exp(mean - half), high=math.exp(mean + half))


def pulled_in(logs: Sequence[float]) -> tuple[Sequence[float], int]:
    """``logs`` with what lies beyond ``REACH`` pulled in to it, and how many stayed as they are.

    A round in which something else ran is not the rig's rate, and one such round in twenty would keep the mean from ever being
    decided. Fewer than ten rounds, and series of which more than half are equal, stay as they are.
    """
    if len(logs) < ROBUST_FROM:
        return logs, len(logs)
    middle = median(logs)
    reach = REACH * SIGMA_A_MEDIAN_DEVIATION * median([abs(each - middle) for each in logs])
    if reach <= 0:
        return logs, len(logs)
    near = [min(max(each, middle - reach), middle + reach) for each in logs]
    return near, sum(here == there for here, there in zip(near, logs, strict=True))


@functools.lru_cache(maxsize=4096)
def t_critical(confidence: float, degrees: int) -> float:
    """The t value that ``confidence`` of Student's distribution lies within, both tails cut."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, (1 - confidence) / 2))


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n - 1); 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1))


def samples_needed(q: float, confidence: float = 0.99) -> int:
    """The least samples that can tell of the ``q`` quantile: so many that, with ``confidence``, one of them lies beyond it.

    ln(1 - confidence) / ln(q) for the upper half (p99 at 99 %: 459, MLPerf's rule), mirrored below. Raises ValueError outside
    of 0 < q < 1.
    """
    if not 0 < q < 1 or not 0 < confidence < 1:
        raise ValueError(f"quantile {q} at confidence {confidence}: both lie between 0 and 1 (write e.g. 0.99)")
    return math.ceil(math.log(1 - confidence) / math.log(max(q, 1 - q)) - 1e-9)


def percentile(samples: Sequence[float], q: float, confidence: float = 0.99) -> Percentile:
    """The ``q`` quantile (0.99 = p99), interpolated between samples, where the sample size earns it; else why not."""
    needed = samples_needed(q, confidence)
    n = len(samples)
    if n < needed:
        clean = f"{n} clean sample{'' if n == 1 else 's'}"
        why = f"p{q * 100:g} is not earned: {clean}, {needed} needed for {confidence * 100:g} % confidence"
        return Percentile(q=q, n=n, needed=needed, value=None, why_missing=why)
    ordered = sorted(samples)
    place = (n - 1) * q
    below = int(place)
    above = min(below + 1, n - 1)
    value = ordered[below] + (ordered[above] - ordered[below]) * (place - below)
    return Percentile(q=q, n=n, needed=needed, value=value)


def drift(rates: Sequence[float], *, share: float = DRIFT_SHARE, p_value: float = DRIFT_P_VALUE, confidence: float = 0.99) -> Drift:
    """Least-squares line through the logarithms of the rates over the rounds.

    Significant: its slope differs from zero with p < ``p_value`` (t test, n - 2 degrees) and it moves by more than ``share``. Fewer
    than five rounds show none. Rounds far from the others are pulled in as for the interval.
    """
    logs, _ = pulled_in(_logs(rates))
    n = len(logs)
    if n < DRIFT_FROM:
        return Drift(share=0.0, p_value=1.0, significant=False)
    centre = (n - 1) / 2
    mean = math.fsum(logs) / n
    spread = math.fsum((x - centre) ** 2 for x in range(n))
    slope = math.fsum((x - centre) * (y - mean) for x, y in enumerate(logs)) / spread
    residual = math.fsum((y - mean - slope * (x - centre)) ** 2 for x, y in enumerate(logs)) / (n - 2)
    found = math.expm1(slope * (n - 1))
    chance = _two_sided(slope, math.sqrt(residual / spread), n - 2)
    end = math.exp(mean + slope * centre)
    ahead = math.exp(mean + slope * centre * AHEAD) if chance < AHEAD_P_VALUE else None
    if abs(found) <= share or chance >= p_value:
        return Drift(share=found, p_value=chance, significant=False, end=end, ahead=ahead)
    t = t_critical(confidence, n - 2)
    ends = []
    for x in (0.0, 2.0 * (n - 1)):
        half = t * math.sqrt(residual * (1 / n + (x - centre) ** 2 / spread))
        level = mean + slope * (x - centre)
        ends += [level - half, level + half]
    low, high = math.exp(min(ends)), math.exp(max(ends))
    return Drift(share=found, p_value=chance, significant=True, low=low, high=high, end=end, ahead=ahead)


def _two_sided(value: float, error: float, degrees: int) -> float:
    """p value of ``value`` against zero. Numbers that agree to the last bit leave no doubt."""
    if error <= 1e-15:
        return 0.0 if abs(value) > 1e-12 else 1.0
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -abs(value) / error))


def _logs(rates: Sequence[float]) -> list[float]:
    if not rates:
        raise ValueError("no rates")
    wrong = [rate for rate in rates if not (rate > 0 and math.isfinite(rate))]
    if wrong:
        raise ValueError(f"a rate must be a positive number, not {wrong[0]}")
    return [math.log(rate) for rate in rates]
