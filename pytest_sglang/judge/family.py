"""Many quantities, one question: with ten tests at 1 % each, one comparison of equal things in ten would say worse. Pure.

Holm's step-down rule with weights (Holm, "A simple sequentially rejective multiple test procedure", 1979, section 4): the chance that
any quantity that did not get worse is called so stays below ``alpha``, however the quantities depend on one another. A pass needs no
such care: it asks that *every* quantity excludes its loss, so that a single one that lost is let pass in at most 1 % on its own
(intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Sequence

ALPHA = 0.01
"""The chance that a comparison of equal things calls anything worse, at most."""


def levels(p_values: Sequence[float], weights: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """For each test the level at which it counts as worse: its share of ``alpha``, larger once surer ones are found.

    A test is called where its p value is at most its level. Weights are shares of alpha, in any unit. Raises ValueError for a weight that is not positive.
    """
    if any(not weight > 0 for weight in weights):
        raise ValueError("a weight must be positive")
    order = sorted(range(len(p_values)), key=lambda each: p_values[each] / weights[each])
    found = [0.0] * len(p_values)
    left = sum(weights)
    stopped = False
    for each in order:
        found[each] = alpha * weights[each] / left
        stopped = stopped or p_values[each] > found[each]
        if not stopped:
            left -= weights[each]
    return found
