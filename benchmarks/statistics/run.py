"""Simulated acceptance runs of every case: how often the verdict is wrong, how often there is none, how many rounds it takes.

    python benchmarks/statistics/run.py [--runs 20000] [--output benchmarks/results/statistics.json]

The same seed gives the same figures on every machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy
from cases import WARM_UPS, cases
from rule import FAIL, MARGINAL, PASS, Rule

ROOT = Path(__file__).parents[2]
SEED = 2026


def curve(rule: Rule, noise: float, runs: int) -> list[dict[str, Any]]:
    """Verdicts over the true rate, for the plot; ``mean_of_5_pass``: what a fixed mean of five rounds would say."""
    rows = []
    for step in range(-32, 33):
        rate = step / 400
        chance = numpy.random.default_rng([SEED, step + 100, round(noise * 1000)])
        logs = math.log1p(rate) + noise * chance.standard_normal((runs, rule.max_rounds))
        found = rule.run(logs)
        row: dict[str, Any] = {"rate": rate, "noise": noise, "pass": found.share(PASS), "fail": found.share(FAIL)}
        row |= {"marginal": found.share(MARGINAL), "rounds_mean": float(found.rounds.mean())}
        row["mean_of_5_pass"] = float((logs[:, :5].mean(axis=1) >= 0).mean())
        rows.append(row)
    return rows


def main() -> None:
    """Run all cases, write the results, say which targets hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "statistics.json")
    options = parser.parse_args()
    rule, began_s = Rule(), time.perf_counter()
    rows = [case.run(rule, options.runs, SEED) for case in cases()]
    found = {
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "runs_a_case": options.runs,
        "seed": SEED,
        "settings": {**vars(rule), "warm_ups": WARM_UPS},
        "cases": rows,
        "curves": [row for noise in (0.01, 0.03) for row in curve(rule, noise, options.runs // 5)],
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    missed = [f"{row['case']}: {name}" for row in rows for name, holds in row["targets"].items() if not holds]
    held = sum(holds for row in rows for holds in row["targets"].values())
    print(
        f"{len(rows)} cases of {options.runs} runs in {time.perf_counter() - began_s:.0f} s: {held} targets hold, {len(missed)} missed"
    )
    for each in missed:
        print(f"MISSED {each}")


if __name__ == "__main__":
    main()
