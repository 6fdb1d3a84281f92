"""The stopping rule of ``pytest_sglang.judge.sequential`` on many series at once.

Looks, shares, tolerances and t values are the product's own; only the arithmetic is written for arrays of shape (runs, rounds).
tests/judge/test_judge_campaign.py holds it equal to the product's rule, series by series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from pytest_sglang.judge import sequential, stats

UNDECIDED, PASS, FAIL, MARGINAL = 0, 1, 2, 3

Floats = NDArray[numpy.float64]
Bools = NDArray[numpy.bool_]


@dataclass
class Outcome:
    """How each run ended (UNDECIDED, PASS, FAIL, MARGINAL), after how many rounds, and how many of them were settling."""

    verdict: NDArray[numpy.int8]
    rounds: NDArray[numpy.int16]
    discarded: NDArray[numpy.int16]

    def share(self, *verdicts: int) -> float:
        """Of all runs."""
        return float(numpy.isin(self.verdict, verdicts).mean())


@dataclass(frozen=True)
class Rule:
    """The settings of a ``Sequential``."""

    confidence: float = 0.99
    min_rounds: int = 5
    max_rounds: int = 30
    tolerance: float = 0.02

    def run(self, logs: Floats) -> Outcome:
        """``logs``: logarithms of rate / limit, ``max_rounds`` columns."""
        runs = len(logs)
        outcome = Outcome(numpy.zeros(runs, "i1"), numpy.zeros(runs, "i2"), numpy.zeros(runs, "i2"))
        self._series(logs, numpy.arange(runs), 0, 0, outcome)
        return outcome

    def _series(self, logs: Floats, index: NDArray[numpy.intp], begin: int, number: int, outcome: Outcome) -> None:
        looks = sequential.look_rounds(self.min_rounds, self.max_rounds - begin)
        budget = (1 - self.confidence) * sequential.LATER_SERIES**number
        drifted = numpy.zeros(len(index), bool)
        for look, share in zip(looks, sequential.shares(len(looks)), strict=True):
            if not len(index):
                return
            verdict, over, drifts = self._look(logs[index, begin : begin + look], budget * share)
            over |= begin + look >= self.max_rounds
            ended = index[over]
            outcome.verdict[ended], outcome.rounds[ended], outcome.discarded[ended] = verdict[over], begin + look, begin
            index, drifts, drifted = index[~over], drifts[~over], drifted[~over]
            if self.max_rounds - begin - look >= self.min_rounds:
                anew = drifts & drifted
                self._series(logs, index[anew], begin + look, number + 1, outcome)
                index, drifts = index[~anew], drifts[~anew]
            drifted = drifts

    def _look(self, logs: Floats, error: float) -> tuple[NDArray[numpy.int8], Bools, Bools]:
        near, kept = _pulled_in(logs)
        low, high = _interval(near, kept, error)
        drifts, lowest, highest, falling, moved, end, ahead = _drift(near, error)
        verdict = numpy.zeros(len(logs), "i1")
        verdict[numpy.where(drifts, lowest, low) >= 0] = PASS
        verdict[numpy.where(drifts, highest, high) < 0] = FAIL
        undone = ~drifts & (((verdict == PASS) & (ahead < 0)) | ((verdict == FAIL) & (ahead >= 0)))
        verdict[undone] = UNDECIDED
        middle = numpy.abs(numpy.expm1(_median_rate(logs))) <= self.tolerance
        middle &= numpy.exp(high) - numpy.exp(low) <= 2 * self.tolerance
        steady = ~undone & ~drifts & ~falling & ((moved >= 0) | (numpy.exp(end) >= 1 - self.tolerance))
        marginal = (verdict == UNDECIDED) & steady & middle & (numpy.exp(low) >= 1 - self.tolerance)
        verdict[marginal] = MARGINAL
        hopeless = marginal & (logs.shape[1] >= stats.ROBUST_FROM) & (numpy.abs(numpy.expm1(high)) <= self.tolerance)
        return verdict, hopeless | (verdict == PASS) | (verdict == FAIL), drifts


def _median_rate(logs: Floats) -> Floats:
    return numpy.log(numpy.median(numpy.exp(logs), axis=1))


def _pulled_in(logs: Floats) -> tuple[Floats, NDArray[numpy.intp]]:
    rounds = logs.shape[1]
    if rounds < stats.ROBUST_FROM:
        return logs, numpy.full(len(logs), rounds)
    middle = numpy.median(logs, axis=1, keepdims=True)
    reach = stats.REACH * stats.SIGMA_A_MEDIAN_DEVIATION * numpy.median(numpy.abs(logs - middle), axis=1, keepdims=True)
    reach[reach <= 0] = math.inf
    near = numpy.clip(logs, middle - reach, middle + reach)
    return near, (near == logs).sum(axis=1)


def _interval(near: Floats, kept: NDArray[numpy.intp], error: float) -> tuple[Floats, Floats]:
    rounds = near.shape[1]
    if rounds < 2:
        return numpy.full(len(near), -math.inf), numpy.full(len(near), math.inf)
    spread = near.std(axis=1, ddof=1) / math.sqrt(rounds) * (rounds - 1) / (kept - 1)
    half = -stdtrit(kept - 1, error / 2) * spread
    mean = near.mean(axis=1)
    return mean - half, mean + half


def _drift(near: Floats, error: float) -> tuple[Bools, Floats, Floats, Bools, Floats, Floats, Floats]:
    """Drifts; lowest and highest of what the trend spans; may be falling; how far it moves, where it ends, where it would be ahead."""
    rounds = near.shape[1]
    if rounds < stats.DRIFT_FROM:
        no = numpy.zeros(len(near), bool)
        nothing = numpy.zeros(len(near))
        return no, nothing, nothing, no, nothing, nothing, numpy.full(len(near), numpy.nan)
    place = numpy.arange(rounds) - (rounds - 1) / 2
    spread = float((place**2).sum())
    mean = near.mean(axis=1)
    slope = near @ place / spread
    residual = ((near - mean[:, None] - slope[:, None] * place) ** 2).sum(axis=1) / (rounds - 2)
    chance = 2 * stdtr(rounds - 2, -numpy.abs(slope) / numpy.sqrt(residual / spread))
    moved = numpy.expm1(slope * (rounds - 1))
    drifts = (numpy.abs(moved) > stats.DRIFT_SHARE) & (chance < stats.DRIFT_P_VALUE)
    falling = (moved < -stats.FALLING_SHARE) & (chance < stats.FALLING_P_VALUE)
    t = -stdtrit(rounds - 2, error / 2)
    ends = []
    for at in (place[0], 2 * (rounds - 1) + place[0]):
        half = t * numpy.sqrt(residual * (1 / rounds + at**2 / spread))
        ends += [mean + slope * at - half, mean + slope * at + half]
    ahead = numpy.where(chance < stats.AHEAD_P_VALUE, mean + slope * place[-1] * stats.AHEAD, numpy.nan)
    return drifts, numpy.min(ends, axis=0), numpy.max(ends, axis=0), falling, moved, mean + slope * place[-1], ahead
