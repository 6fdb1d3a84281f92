"""Simulated acceptance runs: what the rig's true rate is, how its rounds scatter, and what the verdict must be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
from rule import FAIL, MARGINAL, PASS, UNDECIDED, Floats, Rule

WARM_UPS = 1
"""Rounds that the product throws away before it counts (``Workload.warmups``)."""

WRONG_AT_MOST = 0.01
UNDECIDED_AT_MOST = 0.05
SETTLED_TO_SEE_ROUNDS = 6.0
"""A rate that settles more slowly than this is not told from a steady one within five rounds: shown, no target (soak is for that)."""


@dataclass(frozen=True)
class Case:
    """One kind of rig. ``rate``: true rate as a share above (+) or below (-) the limit; ``noise``: deviation of ln(rate) from round to round.

    ``slow_share`` of the rounds are slower by the factor 1 + ``slow_by``. ``settles`` (amplitude, rounds): the rate begins off by the
    amplitude and approaches ``rate`` exponentially, the warm-up rounds included. ``drifts``: it moves linearly by so much over all
    rounds and ends at ``rate``.
    """

    name: str
    rate: float
    noise: float
    kind: Literal["steady", "limit", "clear", "outliers", "tails", "settles", "drifts", "crosses"] = "steady"
    slow_share: float = 0.0
    slow_by: float = 0.0
    tails: int | None = None
    settles: tuple[float, float] | None = None
    drifts: float = 0.0
    targets: tuple[str, ...] = field(default=("wrong",))

    @property
    def total_noise(self) -> float:
        """With the outliers, which are noise as well."""
        jump = math.log1p(self.slow_by)
        return math.sqrt(self.noise**2 + self.slow_share * (1 - self.slow_share) * jump**2)

    def truth(self, rounds: int) -> Floats:
        """ln(true rate / limit) of each counted round."""
        at = numpy.arange(rounds)
        course = numpy.full(rounds, math.log1p(self.rate))
        if self.settles is not None:
            amplitude, within = self.settles
            course = course + amplitude * numpy.exp(-(at + WARM_UPS) / within)
        return course - self.drifts * (1 - at / max(1, rounds - 1))

    def logs(self, runs: int, rounds: int, chance: numpy.random.Generator) -> Floats:
        """ln(measured rate / limit), a row a run."""
        shape = (runs, rounds)
        if self.tails is None:
            scatter = chance.standard_normal(shape)
        else:
            scatter = chance.standard_t(self.tails, shape) / math.sqrt(self.tails / (self.tails - 2))
        logs = self.truth(rounds) + self.noise * scatter
        if self.slow_share:
            logs = logs + numpy.where(chance.random(shape) < self.slow_share, math.log1p(self.slow_by), 0.0)
        return logs

    def run(self, rule: Rule, runs: int, seed: int) -> dict[str, Any]:
        """Shares of the verdicts, rounds used, and which targets hold."""
        logs = self.logs(runs, rule.max_rounds, numpy.random.default_rng([seed, _number(self.name)]))
        outcome = rule.run(logs)
        rounds = outcome.rounds
        if self.kind == "limit":
            wrong = numpy.isin(outcome.verdict, (PASS, FAIL))
        else:
            # what counts is where the rate settles, or, where it crosses the limit, where it is when the verdict is given
            true = self.truth(rule.max_rounds)[rounds - 1] if self.kind == "crosses" else numpy.full(runs, self.rate)
            short = (outcome.verdict == PASS) | ((outcome.verdict == MARGINAL) & (true < math.log1p(-rule.tolerance)))
            wrong = numpy.where(true < 0, short, outcome.verdict == FAIL)
        found: dict[str, Any] = {
            "case": self.name,
            "kind": self.kind,
            "rate": self.rate,
            "noise": self.noise,
            "total_noise": round(self.total_noise, 4),
            "wrong": float(wrong.mean()),
            "undecided": outcome.share(UNDECIDED, MARGINAL),
            "pass": outcome.share(PASS),
            "fail": outcome.share(FAIL),
            "marginal": outcome.share(MARGINAL),
            "rounds_mean": float(rounds.mean()),
            "rounds_median": float(numpy.median(rounds)),
            "rounds_p95": float(numpy.quantile(rounds, 0.95, method="inverted_cdf")),
            "mean_of_5_wrong": float(((logs[:, :5].mean(axis=1) >= 0) != (self.rate >= 0)).mean()),
        }
        held = {
            "wrong": found["wrong"] <= WRONG_AT_MOST,
            "undecided": found["undecided"] <= UNDECIDED_AT_MOST,
            "median 5": found["rounds_median"] <= 5,
            "95 % within 8": found["rounds_p95"] <= 8,
        }
        found["targets"] = {name: held[name] for name in self.targets}
        return found


def _number(name: str) -> int:
    """A seed of its own for each case, whatever else is in the list."""
    return int.from_bytes(name.encode(), "big")


def cases() -> list[Case]:
    """All of them. The target on undecided runs holds where the noise, outliers included, is at most 3 %."""
    found = [Case(f"at the limit, noise {noise:.0%}", 0.0, noise, "limit") for noise in (0.01, 0.02, 0.03, 0.05)]
    found += [
        Case(f"{rate:+.0%}, noise 2 %", rate, 0.02, "clear", targets=("wrong", "median 5", "95 % within 8"))
        for rate in (0.05, -0.05)
    ]
    for rate in (0.03, -0.03):
        found += _noisy(rate) + _drifting(rate)
    return found


def _noisy(rate: float) -> list[Case]:
    steady = [
        Case(f"{rate:+.0%}, noise {noise:.0%}", rate, noise, targets=_targets(noise)) for noise in (0.01, 0.02, 0.03, 0.04, 0.05)
    ]
    in_all = math.sqrt(0.03**2 - 0.05 * 0.95 * math.log(0.9) ** 2)
    slow = [
        Case(
            f"{rate:+.0%}, noise {noise:.1%}, 1 round in 20 slower by 10 %", rate, noise, "outliers", slow_share=0.05, slow_by=-0.1
        )
        for noise in (0.01, in_all, 0.03, 0.05)
    ]
    tails = [
        Case(f"{rate:+.0%}, noise {noise:.0%} with heavy tails (t, 3)", rate, noise, "tails", tails=3, targets=_targets(noise))
        for noise in (0.01, 0.03)
    ]
    return [*steady, *map(_with_targets, slow), *tails]


def _with_targets(case: Case) -> Case:
    return Case(**{**vars(case), "targets": _targets(case.total_noise)})


def _drifting(rate: float) -> list[Case]:
    found = []
    for within in (3.0, 6.0, 10.0):
        for noise in (0.01, 0.02, 0.03, 0.05):
            name = f"{-rate:+.0%} settling to {rate:+.0%} within {within:g} rounds, noise {noise:.0%}"
            targets = ("wrong",) if within <= SETTLED_TO_SEE_ROUNDS else ()
            found.append(Case(name, rate, noise, "settles", settles=(-2 * rate, within), targets=targets))
    for noise in (0.003, 0.005):
        name = f"{-4 * rate:+.0%} settling to {rate:+.0%} within 6 rounds, noise {noise:.1%}"
        found.append(Case(name, rate, noise, "settles", settles=(-5 * rate, 6.0)))
    for noise in (0.01, 0.03, 0.05):
        found.append(
            Case(f"from {2 * rate:+.0%} to {rate:+.0%} over 30 rounds, noise {noise:.0%}", rate, noise, "drifts", drifts=-rate)
        )
        name = f"from {-rate:+.0%} to {rate:+.0%} over 30 rounds, noise {noise:.0%}"
        found.append(Case(name, rate, noise, "crosses", drifts=2 * rate))
    return found


def _targets(noise: float) -> tuple[str, ...]:
    return ("wrong", "undecided") if noise <= 0.03 + 1e-9 else ("wrong",)
