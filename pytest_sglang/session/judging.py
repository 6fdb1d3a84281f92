"""From what a run observed to judgements: picks the promise, the limit and the likely cause; the comparing itself is judge's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.gpu.readings import GpuLost
from pytest_sglang.judge import causes, limits, stats
from pytest_sglang.judge import gain as judge_gain
from pytest_sglang.judge import latency as judge_latency
from pytest_sglang.judge.verdict import Judgement, inconclusive
from pytest_sglang.record import run as records
from pytest_sglang.record import units
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding, Throughput
from pytest_sglang.rig.model import ServerPromise, ThroughputRow
from pytest_sglang.session import starting
from pytest_sglang.session.errors import ServerDied

if TYPE_CHECKING:
    from pytest_sglang.server.http import Completion
    from pytest_sglang.server.identity import Identity
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.scope import CheckScope
    from pytest_sglang.session.wanted import MinThroughput


# --- rates -----------------------------------------------------------------------------------------------------------------


def rate(wanted: MinThroughput, scope: CheckScope) -> Judgement | None:
    """What the test measured against the marker's rate, or the rig file's row; None for a row that promises latencies only."""
    measured = next((each for each in reversed(scope.throughputs) if each.streams == wanted.streams), None)
    row = scope.row(wanted.streams, wanted.quantity)
    limit = wanted.min_tok_s if wanted.min_tok_s is not None else row.min_tok_s if row is not None else None
    quantity = wanted.quantity or (row.quantity if row is not None and wanted.min_tok_s is None else "decode")
    if measured is None:
        return inconclusive(f"no throughput of {wanted.streams} stream(s) was measured in this test")
    if limit is None and row is not None and (row.max_ttft_s is not None or row.max_itl_p99_s is not None):
        return None
    if limit is None:
        return no_promise(measured, scope.power_w)
    return rate_of_row(measured, limit, quantity, scope)


def has_rate_or_latency(row: ThroughputRow) -> bool:
    """The row promises more than energy."""
    return any(each is not None for each in (row.min_tok_s, row.max_ttft_s, row.max_itl_p99_s))


def no_promise(measured: Throughput, power_w: float | None) -> Judgement:
    """Measured, shown, and no limit invented."""
    level = "" if power_w is None else f" at {power_w:g} W"
    shown = "nothing" if measured.decode_tok_s is None else units.show(measured.decode_tok_s, "tok/s")
    return inconclusive(f"no promise{level}: measured {shown}")


def unsound(measured: Throughput) -> str | None:
    """Why nothing may be claimed from a measurement: requests failed, or too few rounds are left."""
    if measured.failed:
        return f"{measured.failed} failed request(s)"
    if len(measured.rounds) < limits.MIN_ROUNDS:
        told = ", ".join(f"{count} x {reason}" for reason, count in measured.failures.items())
        return f"too few rounds ({len(measured.rounds)})" + (f": {told}" if told else "")
    return None


def rate_of_row(measured: Throughput, limit: float, quantity: Any, scope: CheckScope) -> Judgement:
    """A measured rate against one limit, with the likely cause where it is broken."""
    workload = scope.deployment.rig.workload
    return limits.min_throughput(
        measured,
        min_tok_s=limit,
        quantity=quantity,
        tolerance=workload.tolerance,
        strict=scope.deployment.options.strict,
        power_w=scope.power_w,
        cause=slow_decode(measured, limit, quantity, scope),
        unsettled=measured.unsettled,
        interval=scope.interval,
    )


def slow_decode(measured: Throughput, limit: float, quantity: str, scope: CheckScope) -> str | None:
    """Likely cause of a rate below its limit, from everything that can be looked at now."""
    value = measured.decode_tok_s if quantity == "decode" else measured.end_to_end_tok_s
    if value is None or value >= limit:
        return None
    from pytest_sglang.session import looking

    return causes.slow_decode(looking.observed(scope.deployment, scope.power_w))


def latency(measured: Throughput, row: ThroughputRow) -> list[Judgement]:
    """TTFT (median) and ITL p99 against the row's limits; a percentile that the sample size does not earn is inconclusive."""
    out: list[Judgement] = []
    why = unsound(measured)
    if row.max_ttft_s is not None:
        out.append(judge_latency.max_ttft(measured, row.max_ttft_s, why_missing=why))
    if row.max_itl_p99_s is not None:
        out.append(judge_latency.max_itl_p99(measured, row.max_itl_p99_s, why_missing=why))
    return out


def j_per_token(measured: Throughput) -> tuple[float | None, str | None]:
    """Joules of all serving cards per output token over the valid rounds, or why it is not known."""
    rounds = [each for each in measured.rounds if each.invalid_because is None]
    if not rounds:
        return None, "no valid round"
    unknown = next((each for each in rounds if each.joules is None), None)
    if unknown is not None:
        return None, f"energy of round {unknown.index}: {unknown.joules_missing or 'not measured'}"
    tokens = sum(each.output_tokens for each in rounds)
    return (sum(each.joules or 0.0 for each in rounds) / tokens, None) if tokens else (None, "no tokens")


def costly(measured: Throughput, reasons: dict[str, dict[str, float]] | None) -> str | None:
    """Board watts and rate behind the joules of a token, after what held the cards where something did."""
    numbers = {name: each.value for name, each in throughput_numbers(measured).items()}
    watts, rate = numbers.get("mean_w"), measured.decode_tok_s
    parts = causes.throttled(reasons or {})
    if watts is not None and rate is not None:
        parts.append(f"{units.show(float(watts), 'W')} of board power (not the wall) at {units.show(rate, 'tok/s')} a stream")
    return "; ".join(parts) or None


def energy(measured: Throughput, row: ThroughputRow | None, power_w: float | None, cause: str | None = None) -> Judgement:
    """Joules per token, of the boards and not of the wall, against the promised row."""
    value, why = j_per_token(measured)
    if (bad := unsound(measured)) is not None:
        value, why = None, bad
    if row is None or row.max_j_per_token is None:
        level = "without --power" if power_w is None else f"at {power_w:g} W"
        return inconclusive(
            f"no max_j_per_token is promised {level}" + ("" if value is None else f": measured {units.show(value, 'J/token')}")
        )
    return limits.max_value("j_per_token", value, row.max_j_per_token, unit="J/token", why_missing=why, cause=cause)


def throughput_numbers(measured: Throughput) -> dict[str, Measurement]:
    """The measured names of run.json for a throughput."""
    ttft = [each for done in measured.rounds for each in done.ttft_s]
    itl = [each for done in measured.rounds for each in done.itl_s]
    rounds = [each for each in measured.rounds if each.joules is not None]
    joules = sum(each.joules or 0.0 for each in rounds) if rounds else None
    error_j = sum(each.joules_error or 0.0 for each in rounds) if rounds else None
    tokens = sum(each.output_tokens for each in rounds)
    seconds = sum(each.end_s - each.begin_s for each in rounds)
    temperatures = [each.start_c for each in measured.rounds if each.start_c is not None]
    numbers: dict[str, tuple[Any, str]] = {
        "decode_tok_s": (measured.decode_tok_s, "tok/s"),
        "end_to_end_tok_s": (measured.end_to_end_tok_s, "tok/s"),
        "aggregate_tok_s": (measured.aggregate_tok_s, "tok/s"),
        "ci_low_tok_s": (measured.ci_low, "tok/s"),
        "ci_high_tok_s": (measured.ci_high, "tok/s"),
        "ttft_ms": (stats.median(ttft) * 1000 if ttft else None, "ms"),
        "itl_ms": (stats.median(itl) * 1000 if itl else None, "ms"),
        "rounds": (len(measured.rounds), "count"),
        "failed_requests": (measured.failed, "count"),
        "client_lag_ms": (measured.client_lag_s * 1000, "ms"),
        "merged_share": (measured.merged_share, ""),
        "accept_length": (measured.accept_length, ""),
        "joules": (joules, "J"),
        "error_j": (error_j, "J"),
        "tok_s_per_w": (tokens / joules if joules else None, "tok/s/W"),
        "mean_w": (joules / seconds if joules is not None and seconds > 0 else None, "W"),
        "j_per_token": (j_per_token(measured)[0], "J/token"),
        "temperature_c": (max(temperatures, default=None), "C"),
    }
    return {name: Measurement(_round(value), unit) for name, (value, unit) in numbers.items() if value is not None}


def _round(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def gain(measured: Throughput, deployment: Deployment) -> list[Judgement]:
    """Each promised gain against its saved run; refused where anything else differs."""
    promise = deployment.rig.gain
    if promise is None:
        return [inconclusive("no gain is promised")]
    out = []
    pairs = (
        ("compile_gain", promise.compile_gain_pct, promise.compile_baseline),
        ("nvlink_gain", promise.nvlink_gain_pct, promise.nvlink_baseline),
    )
    for name, minimum, baseline in pairs:
        if minimum is not None:
            out.append(_one_gain(name, minimum, baseline, measured, deployment))
    return out


def _one_gain(name: str, minimum: float, baseline: str | None, measured: Throughput, deployment: Deployment) -> Judgement:
    if baseline is None:
        return inconclusive(f'{name}: no saved run to compare with (add gain.{name.split("_")[0]}_baseline = "reports/<run id>")')
    try:
        before = records.read(Path(deployment.options.rootdir, baseline))
    except records.RecordError as error:
        return inconclusive(f"{name}: {error}")
    level = deployment.current.power_w
    saved = [each for each in before.throughputs if each["power_w"] == level and each["throughput"]["streams"] == measured.streams]
    if not saved:
        return inconclusive(f"{name}: {baseline} has no measurement of {measured.streams} stream(s) at this power level")
    if before.simulated != deployment.options.simulated:
        return inconclusive(f"{name}: one of the two runs is simulated, the other is not")
    differs = "torch_compile" if name == "compile_gain" else "nvlink"
    others = judge_gain.comparable(_key(deployment), judge_gain.key_of(before), differs)
    if others:
        return inconclusive(f"{name}: not comparable with {baseline}: {'; '.join(others)}")
    unfit = unsound(measured) or measured.unsettled
    if unfit:
        return inconclusive(f"{name}: this run's measurement is no sample: {unfit}")
    unfit = _unfit(saved[-1]["throughput"])
    if unfit:
        return inconclusive(f"{name}: the measurement in {baseline} is no sample: {unfit}")
    now = [each.decode_tok_s for each in measured.rounds if each.decode_tok_s is not None]
    then = [each["decode_tok_s"] for each in saved[-1]["throughput"]["rounds"] if each["decode_tok_s"] is not None]
    return judge_gain.gain(now, then, minimum, deployment.rig.workload.confidence, name=name)


def _unfit(saved: dict[str, Any]) -> str | None:
    """Why nothing may be claimed from a measurement as run.json keeps it."""
    if saved.get("failed"):
        return f"{saved['failed']} failed request(s)"
    unsettled = saved.get("unsettled")
    return str(unsettled) if unsettled else None


def _key(deployment: Deployment) -> dict[str, Any]:
    return judge_gain.key_of(deployment.recorder.run)


# --- the server and the cards ------------------------------------------------------------------------------------------------


def identity(found: Identity, promise: ServerPromise, deployment: Deployment) -> Judgement:
    """Fails on any finding of severity fail: an impostor, another model, another tensor parallel size, nobody there."""
    bad = [each for each in found.findings if each.severity == "fail"]
    shown = {
        "model": Measurement(found.model, ""),
        "tp": Measurement(found.tp, "count"),
        "pid": Measurement(found.pid, ""),
    }
    measured = {name: value for name, value in shown.items() if value.value is not None}
    limit = Limit("==", promise.served_name or promise.model or "any", "")
    if bad:
        return Judgement(
            verdict="fail",
            message="; ".join(each.detail for each in bad),
            quantity="model",
            measured=measured,
            limit=limit,
            cause=bad[0].remedy or bad[0].detail,
            findings=found.findings,
        )
    if found.model is None:
        return Judgement(
            verdict="inconclusive",
            message=f"{promise.url} answers, but does not tell its model",
            inconclusive_because="the model's name cannot be read",
            measured=measured,
            findings=found.findings,
        )
    if found.unproved:
        return Judgement(
            verdict="inconclusive",
            message=found.unproved,
            inconclusive_because="who answers is not proved",
            measured=measured,
            findings=found.findings,
        )
    hidden = [
        name
        for name in ("served_name", "tp", "torch_compile")
        if getattr(promise, name) is not None and getattr(found, name) is None
    ]
    if hidden:
        reasons = "; ".join(found.unreadable) or "/server_info does not tell"
        return Judgement(
            verdict="inconclusive",
            message=f"promised, but not readable: {', '.join(hidden)} ({reasons})",
            inconclusive_because=f"not readable: {', '.join(hidden)}",
            measured=measured,
            findings=found.findings,
        )
    message = f"{found.model} on {promise.url}" + (f", pid {found.pid}" if found.pid is not None else ", its process not seen")
    if not (promise.systemd or promise.command or promise.container):
        message += " (attached to only: whose process that is, is not checked)"
    return Judgement(verdict="pass", message=message, quantity="model", measured=measured, limit=limit, findings=found.findings)


def exact(completion: Completion, asked: int, held: Callable[[], list[str]] = list) -> Judgement:
    """As many tokens as asked, with finish reason ``length``. ``held()``: the server's processes that somebody stopped."""
    measured = {"output_tokens": Measurement(completion.tokens, "count")}
    limit = Limit("==", asked, "count")
    if completion.ok:
        return Judgement(
            verdict="pass",
            message=f"{completion.tokens} of {asked} tokens",
            quantity="output_tokens",
            measured=measured,
            limit=limit,
        )
    return Judgement(
        verdict="fail",
        message=f"asked for {asked} tokens, got {completion.tokens if completion.tokens is not None else 'no answer'}: {completion.why}",
        quantity="output_tokens",
        measured=measured,
        limit=limit,
        cause=_held(held()) or completion.why,
    )


def _held(stopped: list[str]) -> str | None:
    return f"stopped by somebody (SIGSTOP): {', '.join(stopped)}" if stopped else None


def findings(found: tuple[Finding, ...]) -> Judgement:
    """``fail`` fails; ``warn`` and ``info`` are shown."""
    bad = [each for each in found if each.severity == "fail"]
    measured = {"findings": Measurement(len(bad), "count")}
    limit = Limit("<=", 0, "count")
    if bad:
        text = "; ".join(f"{each.subject}: {each.detail}" for each in bad)
        return Judgement(
            verdict="fail",
            message=text,
            quantity="findings",
            measured=measured,
            limit=limit,
            cause=bad[0].remedy or None,
            findings=found,
        )
    warned = sum(each.severity == "warn" for each in found)
    message = "nothing contradicts the promises" + (f", {warned} warning(s)" if warned else "")
    return Judgement(verdict="pass", message=message, quantity="findings", measured=measured, limit=limit, findings=found)


def told(error: Exception) -> Judgement | None:
    """An exception that is the rig's own failure, as a judgement; None for everything else."""
    from pytest_sglang.server.control import ControlError
    from pytest_sglang.server.ready import StartFailed

    if isinstance(error, StartFailed):
        numbers = starting.startup_numbers(error.startup)
        return Judgement(verdict="fail", message=str(error), cause=error.cause, measured=numbers, findings=error.startup.findings)
    if isinstance(error, ServerDied):
        return Judgement(verdict="fail", message=str(error), cause=error.cause)
    if isinstance(error, (ControlError, GpuLost)):
        return Judgement(verdict="fail", message=str(error), cause=str(error))
    return None


def details(error: Exception) -> str:
    """What a reader of the terminal needs beyond the one line: first traceback, last lines of the log, stacks of the stuck processes."""
    parts = []
    for title, text, most in (
        ("first traceback", getattr(error, "traceback", ""), 40),
        ("last lines of its log", "\n".join(getattr(error, "last_lines", ())), 10),
        ("stacks of its processes (py-spy)", getattr(error, "stacks", ""), 80),
    ):
        lines = text.splitlines()
        if lines:
            more = [f"  ({len(lines) - most} more lines)"] if len(lines) > most else []
            parts.append("\n".join([f"{title}:", *(f"  {line}" for line in lines[:most]), *more]))
    return "\n".join(parts)
