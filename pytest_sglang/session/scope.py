"""One check while it runs: what was measured inside it, and the limits that this is compared with before it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.gpu.readings import GpuLost
from pytest_sglang.judge import stats
from pytest_sglang.judge.sequential import Decision
from pytest_sglang.judge.verdict import Judgement, combine
from pytest_sglang.record.run import Check, Measurement
from pytest_sglang.record.values import Finding, Startup, Throughput
from pytest_sglang.rig.model import ThroughputRow
from pytest_sglang.session import health, judging, starting
from pytest_sglang.session.checks import STANDARD, CheckSpec
from pytest_sglang.session.errors import CheckFailed, Inconclusive, NotChecked
from pytest_sglang.session.wanted import MaxNewKernels, MinThroughput, ReadyWithin, Wanted

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment


_OF_THIS_MACHINE = frozenset({"identity", "power", "links", "health"})
_OF_ITS_CARDS = frozenset({"energy-per-token", "throttling", "placement", "links-under-load"})
"""Stages whose checks look at the cards of this machine."""


class CheckScope:
    """What one check measured, and its judgements. Fixture ``sglang_check`` hands it to the test."""

    def __init__(
        self, deployment: Deployment, spec: CheckSpec, wanted: tuple[Wanted, ...] = (), power_w: float | None = None
    ) -> None:
        self.deployment, self.spec, self.wanted, self.power_w = deployment, spec, wanted, power_w
        self.startups: list[Startup] = []
        self.throughputs: list[Throughput] = []
        self.measured: list[Throughput] = []
        """Those of them that were measured in this very check, and not taken over from an earlier one."""
        self.stops: list[Finding] = []
        """What was wrong with the stops that were made in this check."""
        self.judgements: list[Judgement] = []
        self.observed: dict[str, Measurement] = {}
        self.not_checked: str | None = None
        self.left_out: dict[str, str] = {}
        """Parts of the promise that this check could not look at, with the reason: listed as not checked."""
        self.decision: Decision | None = None
        """What the stopping rule found in the newest measurement made in this check."""
        self._final: Judgement | None = None

    def gate(self) -> None:
        """Raise NotChecked where this run is not asked to make the check."""
        options, rig = self.deployment.options, self.deployment.rig
        if options.level < self.spec.min_level:
            raise NotChecked(f"level {options.level} puts no load on the rig (level {self.spec.min_level} does)")
        needs_level = self.spec.id == "power-limit" or (self.spec.per_power and rig.row(None) is None and rig.throughput)
        if (
            self.spec.per_power
            and self.power_w is None
            and needs_level
            and not any(isinstance(each, MinThroughput) and each.min_tok_s is not None for each in self.wanted)
        ):
            levels = sorted({row.power_w for row in rig.throughput if row.power_w is not None})
            example = f"e.g. --power={levels[0]:g}" if levels else "e.g. --power=250"
            raise NotChecked(f"no --power given: name the level that is meant ({example})")

    def enter(self) -> None:
        """Preconditions: a check whose precondition failed is inconclusive and names it. Sets the power level where allowed."""
        recorder = self.deployment.recorder
        lost_in = self.deployment.lost_in
        if lost_in is not None and self.spec.stage != "health":
            raise Inconclusive(f"not measured: a GPU was lost in {lost_in}", because=lost_in)
        for before in self.spec.after:
            verdict = recorder.verdict_of(before, self.power_w)
            if verdict in ("fail", "inconclusive"):
                raise Inconclusive(f"not measured, because {before} is {_stands(verdict)}", because=before)
        lost_by = self.deployment.server.lost_by if self.spec.uses_server else None
        if lost_by not in (None, self.spec.id):
            raise Inconclusive(f"not measured: the server did not come back in {lost_by}", because=lost_by)
        if self.spec.stage in _OF_THIS_MACHINE or self.spec.id in _OF_ITS_CARDS:
            self.deployment.require_this_machine()
        if self.power_w is not None and self.deployment.options.may_set_power:
            self.deployment.power.ensure(self.power_w)

    def judge(self, judgement: Judgement | list[Judgement]) -> None:
        """Add judgements; the check concludes with the worst of them when the test body has ended."""
        self.judgements.extend(judgement if isinstance(judgement, list) else [judgement])

    def observe(self, name: str, value: float | int | str | bool | None, unit: str = "") -> None:
        """Keep a number that has no limit."""
        self.observed[name] = Measurement(value, unit)

    def judge_start(self, startup: Startup) -> None:
        """Limits of the rig file on what a start compiled, beyond its budget (which is the marker's)."""
        start = self.deployment.rig.start
        if start is not None and start.first_request_ratio is not None and not startup.observed:
            why = "the first request of a start that was made earlier is gone; one is made with --sglang-allow-restart only"
            self.left_out["first-request"] = why
        if start is not None:
            self.judge(
                starting.compiled(startup, start, cold=any(_is_cold(each) for each in self.wanted), server=self.deployment.server)
            )

    def judge_latency(self, throughput: Throughput) -> None:
        """TTFT and ITL limits of the promised row, where it has them."""
        for row in self.rows(throughput.streams):
            self.judge(judging.latency(throughput, row))

    def promised_streams(self) -> tuple[int, ...]:
        """Numbers of streams for which this power level promises a rate or a latency; the workload's where nothing is promised."""
        found = sorted({row.streams for row in self.deployment.rig.rows(self.power_w) if judging.has_rate_or_latency(row)})
        return tuple(found) or (self.deployment.rig.workload.streams,)

    def energy_streams(self) -> int:
        """The number of streams for which this level promises an energy; the workload's where it promises none."""
        found = [row.streams for row in self.deployment.rig.rows(self.power_w) if row.max_j_per_token is not None]
        return found[0] if found else self.deployment.rig.workload.streams

    def judge_rows(self, throughput: Throughput) -> None:
        """Every promised row of this level and number of streams, each quantity by its own limit."""
        rows = [row for row in self.rows(throughput.streams) if judging.has_rate_or_latency(row)]
        if not rows:
            told = judging.no_promise(throughput, self.power_w)
            self._of_a_sweep(told, [judging.has_rate_or_latency(row) for row in self._swept()])
            self.judge(told)
        for row in rows:
            if row.min_tok_s is not None:
                self.judge(judging.rate_of_row(throughput, row.min_tok_s, row.quantity, self))
            self.judge(judging.latency(throughput, row))

    def rows(self, streams: int) -> tuple[ThroughputRow, ...]:
        """Promised rows of this level for so many streams."""
        return tuple(row for row in self.deployment.rig.rows(self.power_w) if row.streams == streams)

    def judge_energy(self, throughput: Throughput) -> None:
        """Joules per output token against every ``max_j_per_token`` promised for this level and number of streams."""
        rows = [row for row in self.rows(throughput.streams) if row.max_j_per_token is not None]
        judged = [judging.energy(throughput, row, self.power_w, self._costly(throughput)) for row in rows or (None,)]
        if not rows:
            self._of_a_sweep(judged[0], [row.max_j_per_token is not None for row in self._swept()])
        self.judge(judged)

    def _swept(self) -> list[ThroughputRow]:
        """Rows of every level of a sweep; none where one level is judged."""
        levels = self.deployment.options.power_levels_w
        return [row for level in levels for row in self.deployment.rig.rows(level)] if len(levels) > 1 else []

    def _of_a_sweep(self, told: Judgement, promised: list[bool]) -> None:
        """A level without a promise in a sweep that has promised ones: measured, shown, and not checked. Raises NotChecked."""
        if any(promised):
            level = "" if self.power_w is None else f" at {self.power_w:g} W"
            measured = told.message.partition("measured ")[2] or told.message
            raise NotChecked(f"no promise{level}: measured {measured}")

    def _costly(self, throughput: Throughput) -> str | None:
        """What a token's energy is made of, and what held the cards: the likely cause of too much of it."""
        return judging.costly(throughput, self.deployment.last_reasons)

    def judge_gain(self, throughput: Throughput) -> None:
        """The promised gain over a saved run in which only that one thing differs."""
        self.judge(judging.gain(throughput, self.deployment))

    def judge_baseline(self) -> None:
        """This run's measurements against the baseline that --sglang-baseline=compare names."""
        from pytest_sglang.session import baseline

        wish = self.deployment.options.baseline
        self.judge(baseline.judge(self.deployment, wish.name if wish is not None else baseline.DEFAULT))

    def row(self, streams: int = 1, quantity: Any = None) -> ThroughputRow | None:
        """The promised row at this check's power level and the declared NVLink state."""
        return self.deployment.rig.row(self.power_w, streams, quantity)

    def promised_rate(self, streams: int) -> tuple[float | None, str]:
        """Limit in tok/s and its quantity, for the stopping rule of a measurement made in this check."""
        for wanted in self.wanted:
            if isinstance(wanted, MinThroughput) and wanted.streams == streams and self._applies(wanted):
                row = self.row(streams, wanted.quantity)
                if wanted.min_tok_s is not None:
                    return wanted.min_tok_s, wanted.quantity or "decode"
                if row is not None and row.min_tok_s is not None:
                    return row.min_tok_s, row.quantity
        promised = sorted((row.quantity, row.min_tok_s) for row in self.rows(streams) if row.min_tok_s is not None)
        if self.spec.id in STANDARD and promised:
            return promised[0][1], promised[0][0]
        return None, "decode"

    def _applies(self, wanted: MinThroughput) -> bool:
        here = wanted.power_w is None or (self.power_w is not None and abs(wanted.power_w - self.power_w) <= 1.0)
        return here and wanted.nvlink in (None, self.deployment.rig.declares_nvlink)

    def conclude(self) -> None:
        """Compare, and raise CheckFailed or Inconclusive with measured, limit and cause."""
        said, self.judgements = self.judgements, []
        self.judge(starting.stopped(self.stops))
        for wanted in self.wanted:
            if isinstance(wanted, ReadyWithin):
                self.judge(starting.ready_within(wanted, self))
        for wanted in self.wanted:
            if isinstance(wanted, MaxNewKernels):
                judged = starting.max_new_kernels(wanted, self)
                self.judge([] if judged is None else judged)
        self._judge_rates([each for each in self.wanted if isinstance(each, MinThroughput)])
        # the markers' limits first: of equals the first one speaks, and a restart's is its time
        self.judgements += [each for each in said if each not in self.judgements]
        self._final = combine(self.judgements) if self.judgements else Judgement(verdict="pass", message="")
        if self._final.verdict == "fail":
            raise CheckFailed(self._final.message)
        if self._final.verdict == "inconclusive":
            raise Inconclusive(self._final.message, because=self._final.inconclusive_because)

    def interval(self, rates: Sequence[float], confidence: float) -> stats.Interval:
        """The interval of the look that ended the measurement: its error budget is shared with the looks before it."""
        decision, plain = self.decision, stats.interval(rates, confidence)
        # the look may have been at the other quantity, or at another number of streams
        if decision is None or decision.n != len(rates) or not math.isclose(decision.median, plain.median):
            return plain
        return stats.Interval(n=decision.n, median=decision.median, low=decision.ci_low, high=decision.ci_high)

    def _judge_rates(self, rates: list[MinThroughput]) -> None:
        here = [each for each in rates if self._applies(each)]
        if rates and not here:
            level = "without --power" if self.power_w is None else f"at {self.power_w:g} W"
            nvlink = "with" if self.deployment.rig.declares_nvlink else "without"
            message = f"no min_throughput marker is for this rig {level}, {nvlink} NVLink"
            self.judge(Judgement(verdict="inconclusive", message=message, inconclusive_because=message))
        for each in here:
            self.judge([judgement for judgement in (judging.rate(each, self),) if judgement is not None])

    def explain(self, error: Exception) -> str | None:
        """The failure text of an error that is the rig's own (a start that died, a GPU that fell off the bus); None = not ours."""
        told = judging.told(error)
        if told is None:
            return None
        if isinstance(error, GpuLost):
            self.deployment.lost_in = self.spec.id
            told = msgspec.structs.replace(told, cause=health.loss(self.deployment, error))
        self._final = Judgement(
            verdict="fail", message=told.message, cause=told.cause, findings=told.findings, measured=told.measured
        )
        return told.message

    def close_inconclusive(self, error: Inconclusive) -> None:
        """The check ended without a measurement."""
        known = {name: value for each in self.judgements for name, value in each.measured.items()}
        reason = error.because or str(error)
        if self._final is None or self._final.verdict != "inconclusive":
            self._final = Judgement(verdict="inconclusive", message=str(error), inconclusive_because=reason, measured=known)

    def to_check(
        self, *, promise: str, failed: bool, text: str | None, duration_s: float, expected_failure: bool = False, nodeid: str = ""
    ) -> Check:
        """The record of this check."""
        final = self._final or Judgement(verdict="fail" if failed else "pass", message=text or "")
        verdict = "fail" if failed and final.verdict == "pass" else final.verdict
        measured = {**self.observed, **self._measured(), **final.measured}
        return Check(
            id=self.spec.id,
            promise=promise,
            verdict=verdict,
            power_w=self.power_w,
            inconclusive_because=final.inconclusive_because if verdict == "inconclusive" else None,
            measured=measured,
            limit=final.limit,
            cause=final.cause or (text if verdict == "fail" and not final.message else None),
            findings=tuple(_own(each, self.spec.id) for each in final.findings),
            duration_s=round(duration_s, 3),
            marginal=final.marginal and verdict == "pass",
            message=final.message or text or "",
            quantity=final.quantity,
            expected_failure=expected_failure,
            nodeid=nodeid,
        )

    def _measured(self) -> dict[str, Measurement]:
        found: dict[str, Measurement] = {}
        if self.startups:
            found.update(starting.startup_numbers(self.startups[-1]))
        if self.throughputs:
            found.update(judging.throughput_numbers(self.throughputs[-1]))
        return found


def _is_cold(wanted: Wanted) -> bool:
    return isinstance(wanted, ReadyWithin) and wanted.start == "cold"


def _own(finding: Finding, check_id: str) -> Finding:
    return Finding(finding.kind, finding.severity, finding.subject, finding.detail, finding.remedy, finding.check_id or check_id)


def _stands(verdict: str) -> str:
    return "not kept" if verdict == "fail" else verdict
