"""What a run would do, told without doing it: requests, restarts, changes, minutes."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_sglang.answers.prompts import FIXED, TOKENS
from pytest_sglang.record import units
from pytest_sglang.rig.model import Rig
from pytest_sglang.session import heat
from pytest_sglang.session.answering import CHECK
from pytest_sglang.session.checks import CheckSpec
from pytest_sglang.session.options import RunOptions

ASSUMED_TOK_S = 30.0
"""Rate assumed for a row without a promise, only to estimate minutes."""


@dataclass(frozen=True, slots=True)
class PlannedCheck:
    """One collected check; ``chosen`` False = deselected."""

    spec: CheckSpec
    power_w: float | None
    chosen: bool


@dataclass(slots=True)
class _Totals:
    requests: int = 0
    tokens: int = 0
    restarts: int = 0
    seconds: float = 5.0


def control_of(rig: Rig) -> str:
    """How the server would be started and stopped: "systemd unit sglang.service", "command", "container x", "attach only"."""
    server = rig.server
    if server is None:
        return "no server promised"
    if server.systemd:
        return f"systemd unit {server.systemd}"
    if server.container:
        return f"container {server.container}"
    return f"command {server.command[0]} ..." if server.command else "attach only"


def backstop_s(rig: Rig, spec: CheckSpec) -> float:
    """pytest-timeout's limit for a check: its own budget x 1.5 + 60 s, a backstop against a stuck plugin only."""
    start, workload = rig.start, rig.workload
    cold = (start.cold_s if start is not None else None) or 1800.0
    warm = (start.warm_s if start is not None else None) or 300.0
    silence = start.silence_s if start is not None else 300.0
    # a start over its budget is waited for, up to twice the cold budget; a cold check starts the server a second time to put caches back
    budget = {"cold": 2 * cold + 2 * warm + silence, "restart": 2 * cold + silence + warm}.get(spec.stage, 0.0)
    if spec.stage == "measure":
        budget = workload.soak_s + (workload.max_rounds + workload.warmups + 3) * (workload.output_tokens / 5.0 + 10.0)
    if spec.uses_server:
        budget = max(budget, cold)
    return budget * 1.5 + 60.0


def lines(
    rig: Rig,
    options: RunOptions,
    checks: list[PlannedCheck],
    unchecked: dict[tuple[str, float | None], str],
    not_promised: tuple[str, ...],
) -> list[str]:
    """The plan as text, one line a list item."""
    totals = _Totals()
    head = "PLAN (SIMULATED rig)" if options.simulated else "PLAN"
    out = [
        f"{head}: {rig.name}, nothing below has been done, nothing was touched",
        f"  server: {control_of(rig)}, {rig.server.url if rig.server else '-'}",
    ]
    changes: list[str] = []
    for check in checks:
        if not check.chosen:
            continue
        level = f" at {check.power_w:g} W" if check.power_w is not None else ""
        what, skipped = _what(rig, options, check, totals, changes)
        out.append(f"  {'-' if skipped else '+'} {check.spec.id}{level}: {what}")
    out += [
        f"  - {check_id}{'' if power is None else f' at {power:g} W'}: not checked, {reason}"
        for (check_id, power), reason in unchecked.items()
    ]
    if not_promised:
        out.append(f"  not promised by {rig.path.name}: {', '.join(not_promised)}")
    if options.may_set_power and options.power_levels_w:
        changes.insert(
            0,
            f"power limit of {len(rig.gpus)} GPUs: set to {', '.join(f'{each:g} W' for each in options.power_levels_w)}, put back afterwards",
        )
    out.append(f"  requests: about {totals.requests}, {totals.tokens} output tokens")
    out.append(f"  restarts: {totals.restarts}")
    out.append(f"  changes: {'; '.join(changes) if changes else 'none'}")
    out.append(f"  time: about {units.duration(totals.seconds)} of rig time")
    return out


def _what(rig: Rig, options: RunOptions, check: PlannedCheck, totals: _Totals, changes: list[str]) -> tuple[str, bool]:
    spec, start = check.spec, rig.start
    if options.level < spec.min_level:
        return f"not at level {options.level}", True
    if spec.stage == "measure":
        workload, row = rig.workload, rig.row(check.power_w)
        rate = (row.min_tok_s if row is not None and row.min_tok_s else None) or ASSUMED_TOK_S
        rounds = workload.rounds + workload.warmups
        if spec.id == "decode-throughput" or spec.id not in ("energy-per-token", "gain", "links-under-load", "throttling"):
            totals.requests += rounds * workload.streams
            totals.tokens += rounds * workload.streams * workload.output_tokens
            totals.seconds += workload.soak_s + rounds * workload.output_tokens / rate
            most = workload.max_rounds + workload.warmups
            heating = ""
            if len(options.power_levels_w) > 1 and not workload.soak_s and options.level < 3:
                totals.seconds += heat.MOST_S / 2
                heating = f", after {heat.LOOK_S:g} to {heat.MOST_S:g} s of heating"
            return (
                f"{rounds} to {most} rounds of {workload.output_tokens} tokens, {workload.streams} stream{'s' if workload.streams > 1 else ''}{heating}",
                False,
            )
        return "from the same measurement", False
    if spec.stage == "restart":
        if not options.may_restart:
            return "judges the start that the running server already had (no --sglang-allow-restart)", False
        totals.restarts += 1
        totals.seconds += (start.warm_s if start is not None else None) or 120.0
        changes.append(f"{control_of(rig)} stopped and started")
        return "one restart", False
    if spec.stage == "cold":
        if not options.may_go_cold:
            return "judges the start that the running server already had (no --sglang-allow-cold)", False
        totals.restarts += 2
        totals.seconds += ((start.cold_s if start is not None else None) or 1800.0) + (
            (start.warm_s if start is not None else None) or 120.0
        )
        changes.append("compile caches renamed and put back, which costs a second stop and start")
        return "caches set aside, one cold start, caches put back, one warm start", False
    if spec.id == CHECK:
        prompts = len(FIXED) + len(rig.answers.expect if rig.answers is not None else ())
        # before and after each start that is made; twice where there is none
        times = max(2, 1 + min(totals.restarts, 2))
        totals.requests += 2 * prompts * times
        totals.tokens += prompts * times * (TOKENS + 1)
        totals.seconds += prompts * times * TOKENS / ASSUMED_TOK_S
        return f"{prompts} prompts of {TOKENS} tokens, asked {times} times", False
    if spec.id == "ready":
        totals.requests += 1
        totals.tokens += 16
    return "read only" if spec.id != "ready" else "one exact generation of 16 tokens", False
