"""Where did a series change its level? One step at most, found by the best split of the logarithms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from pytest_sglang.record.values import Value

MIN_SIDE = 3
"""Values that a level needs on either side of a step."""


class Step(Value, frozen=True, kw_only=True):
    """The level changes just before ``index``: by ``change`` (-0.05: 5 % down), with ``p_value`` corrected for the splits tried."""

    index: int
    change: float
    p_value: float


def find(values: Sequence[float], *, confidence: float = 0.99, min_change: float = 0.01) -> Step | None:
    """The clearest step of a series of positive values in time order; None where none is certain, or it is below ``min_change``.

    Two-sample t test with pooled variance at every split that leaves MIN_SIDE values on either side, Bonferroni over the splits
    (after Sen and Srivastava, "On tests for detecting change in mean", 1975). Raises ValueError for a value that is not positive.
    """
    if any(not (value > 0 and math.isfinite(value)) for value in values):
        raise ValueError("a series to search for a step must hold positive numbers only")
    logs = [math.log(value) for value in values]
    n = len(logs)
    splits = range(MIN_SIDE, n - MIN_SIDE + 1)
    if not splits:
        return None
    sums = list(itertools.accumulate(logs))
    squares = list(itertools.accumulate(x * x for x in logs))
    scores = [_score(split, n, sums, squares) for split in splits]
    score, split, difference = max(scores, key=lambda each: each[0])
    p_value = min(1.0, len(splits) * _two_sided(score, n - 2))
    change = math.expm1(difference)
    if p_value > 1 - confidence or abs(change) < min_change:
        return None
    return Step(index=split, change=change, p_value=p_value)


def _score(split: int, n: int, sums: list[float], squares: list[float]) -> tuple[float, int, float]:
    """(|t| at this split, the split, difference of the means right - left), from running sums."""
    left, right = sums[split - 1] / split, (sums[-1] - sums[split - 1]) / (n - split)
    scatter = max(0.0, squares[-1] - split * left**2 - (n - split) * right**2)
    error = math.sqrt(scatter / (n - 2) * (1 / split + 1 / (n - split)))
    difference = right - left
    return (abs(difference) / error if error > 1e-9 else (math.inf if abs(difference) > 1e-9 else 0.0)), split, difference


def _two_sided(score: float, degrees: int) -> float:
    if math.isinf(score):
        return 0.0
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -score))
