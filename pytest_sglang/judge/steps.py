"""Where did a series change its level? One step at most, found by the best split of the logarithms."""

from __future__ import annotations

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
    best: tuple[float, int, float] | None = None
    for split in splits:
        left, right = logs[:split], logs[split:]
        means = [math.fsum(side) / len(side) for side in (left, right)]
        squares = math.fsum((x - means[0]) ** 2 for x in left) + math.fsum((x - means[1]) ** 2 for x in right)
        error = math.sqrt(squares / (n - 2) * (1 / len(left) + 1 / len(right)))
        difference = means[1] - means[0]
        score = abs(difference) / error if error > 1e-12 else (math.inf if abs(difference) > 1e-12 else 0.0)
        if best is None or score > best[0]:
            best = (score, split, difference)
    assert best is not None
    p_value = min(1.0, len(splits) * _two_sided(best[0], n - 2))
    change = math.expm1(best[2])
    if p_value > 1 - confidence or abs(change) < min_change:
        return None
    return Step(index=best[1], change=change, p_value=p_value)


def _two_sided(score: float, degrees: int) -> float:
    if math.isinf(score):
        return 0.0
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -score))
