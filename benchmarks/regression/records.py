"""Whole comparisons of simulated run records: how often do two equal rigs say FAIL, and how often is a 3 % loss found? Used by run.py.

Two power levels; at each decode and end-to-end rate, energy, TTFT, ITL median and p99, and one warm start: 13 judged quantities, all
independent of one another but for the two figures of ITL, which is the hardest case for false alarms. Everything goes the whole way: run
records, samples, the store's short form of ten earlier runs, spread, intervals, alarms.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy

from pytest_sglang.judge import margins, regression, samples
from pytest_sglang.judge.boots import Spread
from pytest_sglang.record.run import Run
from pytest_sglang.session import comparison, store

LEVELS = (250.0, 390.0)
TOKENS = 128
NOISE = 0.02
BETWEEN = {"decode": 0.0, "ttft": 0.02, "itl": 0.005, "joules": 0.005, "start": 0.03}
"""Between boots, beside what the case says of all rates; noise of the others between rounds: TTFT 4 %, energy 1.5 %, gaps 3 %."""
HISTORY, HISTORY_ROUNDS = 10, 5
Rng = numpy.random.Generator


def measured(rng: Rng, power: float, rounds: int, between: float, loss: float) -> dict[str, Any]:
    """One level of one boot, as run.json has it."""

    def boot(name: str, extra: float = 0.0) -> float:
        return float(numpy.exp(rng.normal(0, BETWEEN[name]) + rng.normal(0, extra)))

    level = power / 6.25 * (1 - loss) * boot("decode", between)
    whole = power / 6.5 * boot("decode", between)
    ttft, gap, joules = 0.09 * boot("ttft"), 0.02 * boot("itl"), 22.0 * boot("joules")
    told = [
        {
            "index": number,
            "begin_s": 4.0 * number,
            "end_s": 4.0 * number + 3.5,
            "decode_tok_s": level * float(numpy.exp(rng.normal(0, NOISE))),
            "end_to_end_tok_s": whole * float(numpy.exp(rng.normal(0, NOISE))),
            "ttft_s": [ttft * float(numpy.exp(rng.normal(0, 0.04)))],
            "itl_s": (gap * numpy.exp(rng.normal(0, 0.03, TOKENS - 1))).tolist(),
            "output_tokens": TOKENS,
            "joules": TOKENS * joules * float(numpy.exp(rng.normal(0, 0.015))),
            "joules_error": 0.01 * TOKENS * joules,
        }
        for number in range(rounds)
    ]
    throughput = {"streams": 1, "rounds": told}
    return {"power_w": power, "quantity": "end_to_end", "throughput": throughput, "samples": samples.short(throughput)}


def run(rng: Rng, name: str, engine: str, rounds: int, between: float, loss: float = 0.0, day: int = 1) -> Run:
    """One finished run of one boot."""
    ready_s = 80.0 * float(numpy.exp(rng.normal(0, BETWEEN["start"])))
    started = f"2026-{1 + day // 28:02}-{1 + day % 28:02}T00:00:00.000Z"
    return Run(
        run_id=name,
        started=started,
        finished=started,
        simulated=True,
        verdict="pass",
        power_levels_w=LEVELS,
        rig={"name": "simulated", "workload": {"output_tokens": TOKENS, "streams": 1}},
        environment={"plugin": "0", "server": {"version": engine}},
        startups=({"label": "warm restart", "startup": {"kind": "warm", "ready_s": ready_s, "phases": []}},),
        throughputs=tuple({**measured(rng, power, rounds, between, loss), "process": name} for power in LEVELS),
    )


def stored(found: Run) -> store.Stored:
    """As the store reads it back."""
    return msgspec.json.decode(msgspec.json.encode(found), type=store.Stored)


def asked(spread: Spread) -> tuple[int, int]:
    """Rounds and boots that the tool asks for at NOISE, with four rates and nine other quantities judged together."""
    alarm = 0.01 * margins.weights([True] * 4 + [False] * 9)[0]
    rounds, boots = regression.ask(NOISE, spread, confidence=1 - alarm)
    if rounds is None or boots is None:
        raise ValueError("this scatter is too large for any number of rounds")
    return rounds, boots


def case(seed: int, between: float, pairs: int, loss: float) -> dict[str, Any]:
    """Shares of the verdicts of ``pairs`` comparisons in which equal things are compared, and in which decode lost ``loss``."""
    rng = numpy.random.default_rng(seed)
    verdicts: dict[str, Counter[str]] = {"equal": Counter(), "lost": Counter()}
    found_loss, judged = 0, 0
    explained = NOISE**2 / HISTORY_ROUNDS
    rounds, count = asked(Spread(sd=between, degrees=float(HISTORY - 1), mean_square=between**2 + explained, explained=explained))
    for _ in range(pairs):
        history = [stored(run(rng, f"h{day}", "0.5.11", HISTORY_ROUNDS, between, day=day)) for day in range(HISTORY)]
        before = [run(rng, f"b{day}", "0.5.11", rounds, between, day=40 + day) for day in range(count)]
        for kind, lost in (("equal", 0.0), ("lost", loss)):
            after = [run(rng, f"a{day}", "0.5.12", rounds, between, lost, day=80 + day) for day in range(count)]
            told = comparison.compare(before, after, history)
            verdicts[kind][told.verdict] += 1
            judged = sum(each.judged for each in told.quantities)
            if kind == "lost":
                found_loss += any(
                    each.name.startswith("decode") and each.change is not None and each.change.outcome == "worse"
                    for each in told.quantities
                )
    return {
        "between_boots": between,
        "pairs": pairs,
        "judged_quantities": judged,
        "asked_rounds_and_boots": [rounds, count],
        "equal": {name: number / pairs for name, number in verdicts["equal"].items()},
        "lost": {name: number / pairs for name, number in verdicts["lost"].items()},
        "loss_found": found_loss / pairs,
    }
