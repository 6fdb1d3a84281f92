"""How often is a loss found, and how often one that is not there: our rule beside asv's and pytest-benchmark's, on the same rounds.

usage: python benchmarks/regression/run.py [PAIRS [WHOLE]]        (default 5000 and 1000; about ten minutes)

1. Pairs of measurements at 2 % noise between rounds; where boots differ, by so much. Each rule gets the same rounds: as many as
   ``regression.ask`` asks for, once for a quantity that is judged alone, once for one of thirteen that share the false alarms.
   asv's: Mann-Whitney U with p < 0.002 and a factor of at least 1.01 (its default factor of 1.1 finds no 3 % loss at all; source:
   asv/statistics.py is_different, asv/commands/continuous.py of asv 0.6). pytest-benchmark's: ``--benchmark-compare-fail=mean:1.5%``
   and ``min:1.5%`` of times, one threshold half-way between no loss and 3 %.
2. How many rounds each rule needs, where boots are alike, to find 95 % of the losses with at most 1 % of false alarms.
3. WHOLE pairs of complete run records with thirteen judged quantities through the whole comparison (records.py).
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import records as whole_runs

from pytest_sglang.judge import regression

RESULTS = Path(__file__).resolve().parents[1] / "results" / "regression.json"
NOISE, LOSS, SEED = 0.02, 0.03, 20261127
ALONE, OF_THIRTEEN = 0.01, 0.01 * 0.5 / 4
"""Share of the false alarms of a quantity that is judged alone, and of one of four rates among thirteen quantities."""
CASES = (
    ("boots alike", 0.0, 30, ALONE),
    ("boots alike, short history", 0.0, 10, ALONE),
    ("boots differ by 0.5 %", 0.005, 30, ALONE),
    ("boots differ by 1 %", 0.01, 30, ALONE),
    ("boots alike, one of thirteen", 0.0, 30, OF_THIRTEEN),
    ("boots differ by 0.5 %, one of thirteen", 0.005, 30, OF_THIRTEEN),
)
WHOLE = (("boots alike", 0.0), ("boots differ by 0.5 %", 0.005))
NEEDED = (*range(5, 31), *range(32, 61, 2))
Boots = list[list[float]]
Rule = Callable[[Boots, Boots, regression.Spread, float], bool]


def boots(rng: random.Random, count: int, rounds: int, level: float, between: float) -> Boots:
    """Log-normal rounds around boots that are log-normal around ``level``."""
    return [
        [level * math.exp(offset + rng.gauss(0, NOISE)) for _ in range(rounds)]
        for offset in [rng.gauss(0, between) for _ in range(count)]
    ]


def ours(before: Boots, after: Boots, spread: regression.Spread, alarm: float) -> bool:
    """Called worse by our rule."""
    return regression.compare(before, after, spread=spread, alarm=alarm).outcome == "worse"


def asv(before: Boots, after: Boots, _: regression.Spread, __: float) -> bool:
    """Called slower by asv's rule, on times."""
    from scipy.stats import mannwhitneyu

    old, new = ([1 / rate for boot in side for rate in boot] for side in (before, after))
    slower = sorted(new)[len(new) // 2] / sorted(old)[len(old) // 2] > 1.01
    return bool(slower and mannwhitneyu(old, new, alternative="two-sided").pvalue < 0.002)


def threshold(pick: Callable[[list[float]], float]) -> Rule:
    """pytest-benchmark's rule: one statistic of the times grew by more than 1.5 %."""

    def called(before: Boots, after: Boots, _: regression.Spread, __: float) -> bool:
        old, new = ([1 / rate for boot in side for rate in boot] for side in (before, after))
        return pick(new) / pick(old) > 1.015

    return called


RULES: dict[str, Rule] = {
    "pytest-sglang": ours,
    "asv (U test, p < 0.002)": asv,
    "pytest-benchmark mean:1.5%": threshold(lambda times: sum(times) / len(times)),
    "pytest-benchmark min:1.5%": threshold(min),
}


def case(between: float, history: int, alarm: float, pairs: int) -> dict[str, Any]:
    """Shares of pairs in which each rule calls a loss, with and without one; rounds and boots asked for."""
    rng = random.Random(SEED)
    called: dict[str, Counter[float]] = {name: Counter() for name in RULES}
    asked: Counter[tuple[int, int]] = Counter()
    hopeless = 0
    for _ in range(pairs):
        earlier = [boots(rng, history, 15, 40.0, between)]
        rounds, count = regression.ask(NOISE, regression.learn(earlier), confidence=1 - alarm)
        if rounds is None or count is None:
            hopeless += 1
            continue
        asked[rounds, count] += 1
        for loss in (0.0, LOSS):
            before, after = boots(rng, count, rounds, 40.0, between), boots(rng, count, rounds, 40.0 * (1 - loss), between)
            spread = regression.learn([*earlier, before, after])
            for name, rule in RULES.items():
                called[name][loss] += rule(before, after, spread, alarm)
    usable = pairs - hopeless
    total = sorted(rounds * count for (rounds, count), number in asked.items() for _ in range(number))
    return {
        "between_boots": between,
        "history_boots": history,
        "alarm": alarm,
        "pairs": usable,
        "asked_rounds_and_boots": list(asked.most_common(1)[0][0]),
        "rounds_median": total[len(total) // 2],
        "too_scattered": hopeless,
        "rules": {name: {"found": counts[LOSS] / usable, "false_alarms": counts[0.0] / usable} for name, counts in called.items()},
    }


def needed(name: str, pairs: int) -> int | None:
    """The fewest rounds on either side with which a rule finds 95 % of the losses at 1 % of false alarms, boots alike; None: more than 60."""
    rng = random.Random(SEED)
    unknown = regression.learn([])
    for rounds in NEEDED:
        history = [boots(rng, 30, rounds, 40.0, 0.0)]
        called: Counter[float] = Counter()
        for _ in range(pairs):
            for loss in (0.0, LOSS):
                before, after = boots(rng, 1, rounds, 40.0, 0.0), boots(rng, 1, rounds, 40.0 * (1 - loss), 0.0)
                spread = regression.learn([*history, before, after]) if RULES[name] is ours else unknown
                called[loss] += RULES[name](before, after, spread, ALONE)
        if called[LOSS] >= 0.95 * pairs and called[0.0] <= 0.01 * pairs:
            return rounds
    return None


def main() -> int:
    """Run all cases, write the results, print a table."""
    pairs, whole = (int(text) for text in (*sys.argv[1:], *("5000", "1000")[len(sys.argv) - 1 :]))
    results = {title: case(between, history, alarm, pairs) for title, between, history, alarm in CASES}
    rounds = {name: needed(name, max(1, pairs // 2)) for name in RULES}
    records = {title: whole_runs.case(SEED, between, whole, LOSS) for title, between in WHOLE}
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "noise": NOISE,
        "loss": LOSS,
        "seed": SEED,
        "cases": results,
        "rounds_needed": rounds,
        "whole": records,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for title, result in results.items():
        most, count = result["asked_rounds_and_boots"]
        print(f"{title}: {result['pairs']} pairs, mostly {count} boot(s) of {most} rounds on either side")
        for name, shares in result["rules"].items():
            print(
                f"    {name:28} finds {shares['found'] * 100:5.1f} % of the 3 % losses, {shares['false_alarms'] * 100:5.2f} % false alarms"
            )
    print("rounds for 95 % of the losses at 1 % of false alarms, boots alike:")
    for name, number in rounds.items():
        print(f"    {name:28} {number or 'more than 60'}")
    for title, told in records.items():
        most, count = told["asked_rounds_and_boots"]
        print(
            f"whole runs, {title}: {told['pairs']} pairs, {told['judged_quantities']} quantities, {count} boot(s) of {most} rounds: "
            f"{told['equal'].get('fail', 0.0) * 100:.2f} % of the equal ones fail, {told['loss_found'] * 100:.1f} % of the losses are found"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
