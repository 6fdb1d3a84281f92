"""What a run says, as text: one wording for terminal, HTML and JUnit. Pure; knows neither HTML nor pytest."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from pytest_sglang.record import units
from pytest_sglang.record.run import Check, Limit, Measurement, Run
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.report import notes

Standing = Literal["fail", "inconclusive", "expected", "unexpected", "marginal", "pass"]
SIMULATED = "SIMULATED"

WORDS: dict[Standing, str] = {
    "fail": "FAIL",
    "inconclusive": "INCONCLUSIVE",
    "expected": "fail (expected)",
    "unexpected": "pass (unexpected)",
    "marginal": "pass (marginal)",
    "pass": "pass",
}
"""How a check stands, in the order in which checks are listed: what needs a person comes first."""

LABELS: dict[str, str] = {
    "ready_s": "ready after",
    "port_open_s": "port open after",
    "first_token_s": "first token after",
    "capture_s": "graph capture",
    "autotune_runs": "autotuning runs",
    "new_kernels": "new kernels",
    "new_variants": "kernels with new variants",
    "variant_entries": "new variants",
    "decode_tok_s": "decode",
    "end_to_end_tok_s": "end to end",
    "aggregate_tok_s": "all streams together",
    "ttft_ms": "TTFT (time to first token)",
    "itl_ms": "ITL (between tokens)",
    "tpot_ms": "TPOT (time per output token)",
    "rounds": "rounds",
    "failed_requests": "failed requests",
    "client_lag_ms": "lag of the client",
    "mean_w": "mean board power of all serving GPUs",
    "joules": "energy of the boards",
    "j_per_token": "board energy per token",
    "tok_s_per_w": "tokens per second and watt",
    "throttled_pct": "clocks event reasons (heat or a brake)",
    "power_cap_pct": "clocks event reasons (power limit)",
    "sm_mhz": "SM clock",
    "mem_mhz": "memory clock",
    "start_temperature_c": "temperature at the start",
    "end_temperature_c": "temperature at the end",
    "enforced_power_limit_w": "enforced power limit",
    "nvlink_links": "NVLink links",
    "pcie_gen": "PCIe generation",
    "pcie_width": "PCIe width",
    "temperature_c": "temperature",
    "pid": "process id at the first check",
    "clear_divergences": "clear divergences of answers",
    "near_ties": "forks at near ties",
    "sure_tokens": "tokens of which the model was sure",
    "equal_tokens_share": "share of equal tokens",
    "logprob_difference_nats": "mean difference of log-probabilities",
}
"""Names of run.json's measured numbers for a person; others are shown as they are."""

NOUNS: dict[str, tuple[str, str]] = {
    "gpus": ("GPU", "GPUs"),
    "nvlink_links": ("link", "links"),
    "output_tokens": ("token", "tokens"),
    "findings": ("contradiction", "contradictions"),
    "xids": ("message", "messages"),
    "new_kernels": ("kernel", "kernels"),
    "recompiled_kernels": ("kernel", "kernels"),
    "new_variants": ("kernel", "kernels"),
    "new_graphs": ("graph", "graphs"),
    "autotune_runs": ("run", "runs"),
    "failed_requests": ("request", "requests"),
    "clear_divergences": ("change", "changes"),
    "garbled_answers": ("answer", "answers"),
}
"""What a count counts, where a limit is about it."""

ASIDE: tuple[str, ...] = (
    "decode_tok_s",
    "end_to_end_tok_s",
    "ttft_ms",
    "mean_w",
    "j_per_token",
    "autotune_runs",
    "new_kernels",
    "new_variants",
)
"""Numbers worth a glance beside the one that a limit is about."""
HELD: tuple[str, ...] = ("power_cap_pct", "sm_mhz", "start_temperature_c", "end_temperature_c")
"""The same for what held the clocks."""
_THOUSANDS = re.compile(r"^-?\d{4,}")


class Row(Value, frozen=True, kw_only=True):
    """One check as a line of the table of promises; every field is text that a person reads.

    ``note``: what a passing check says beside its numbers: warnings, what it was not promised, why a number is missing.
    """

    id: str
    label: str
    promise: str
    standing: Standing
    word: str
    measured: str
    interval: str
    limit: str
    margin: str
    cause: str
    note: str
    aside: tuple[tuple[str, str], ...]
    numbers: tuple[tuple[str, str], ...]


def standing(check: Check) -> Standing:
    """How a check stands: its verdict, told apart where it was expected to fail or is marginal."""
    if check.verdict == "inconclusive":
        return "inconclusive"
    if check.expected_failure:
        return "expected" if check.verdict == "fail" else "unexpected"
    if check.verdict == "pass" and check.marginal:
        return "marginal"
    return check.verdict


def label(check: Check) -> str:
    """Its id, with the power level where it has one: "decode-throughput at 250 W"."""
    return check.id if check.power_w is None else f"{check.id} at {check.power_w:g} W"


def value_text(measured: Measurement) -> str:
    """A measured value with its unit for a person; None reads "not read", never zero."""
    value, unit = measured.value, measured.unit
    if value is None:
        return "not read"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"{value} {unit}".strip() if unit != "count" else value
    if unit == "C":
        return f"{value:.0f} °C"
    if unit in ("", "count"):
        told = f"{value:g}" if abs(value) < 1e6 else f"{value:.0f}"
        return thousands(told) if unit else told
    return thousands(units.show(value, unit))


def thousands(text: str) -> str:
    """Commas in the number that a text begins with: "8,960 J"."""
    return _THOUSANDS.sub(lambda found: f"{int(found[0]):,}", text)


def counted(text: str, quantity: str | None, value: object) -> str:
    """A number with what it counts: "4 links", "gen 4"; other quantities carry their unit already."""
    if quantity in ("pcie_gen",):
        return f"gen {text}"
    if quantity == "gpus" and isinstance(value, str):
        return f"GPU {text}" if value[:1].isdigit() else text
    if quantity not in NOUNS or isinstance(value, (bool, str)) or value is None:
        return text
    return f"{text} {NOUNS[quantity][value != 1]}"


def promised_text(value: float | int | str | bool, unit: str) -> str:
    """A promised value as a person would write it: "42 tok/s", "25 min", "90 s"."""
    if isinstance(value, (bool, str)) or unit in ("", "count", "C"):
        return value_text(Measurement(value, unit))
    if unit == "s":
        if value < 120:
            return f"{value:g} s"
        return units.duration(value).removesuffix(" 00 s").removesuffix(" 00 min")
    return thousands(f"{value:g} {unit}")


def limit_text(limit: Limit | None, quantity: str | None = None) -> str:
    """The limit with its comparison: ">= 42 tok/s"; empty without one. ``quantity``: what it is about."""
    if limit is None:
        return ""
    if limit.unit == "count" and limit.value == 0 and limit.op in ("<=", "=="):
        return "0"
    value = counted(promised_text(limit.value, limit.unit), quantity, limit.value)
    return value if limit.op == "==" else f"{limit.op} {value}"


def primary(check: Check) -> Measurement | None:
    """The measured value that the limit is about, or the only one there is."""
    if check.quantity is not None and check.quantity in check.measured:
        return check.measured[check.quantity]
    candidates = list(check.measured.values())
    if check.limit is not None and len(candidates) > 1:
        candidates = [each for each in candidates if each.unit == check.limit.unit]
    return candidates[0] if len(candidates) == 1 else None


def margin_text(check: Check) -> str:
    """Distance from the limit, positive on the right side: in per cent of it, of a share in points of it, of a count in its number.

    Empty where that means nothing: a count that is just what was promised has no margin.
    """
    found = primary(check)
    if found is None or check.limit is None or check.limit.op == "==" or found.unit != check.limit.unit:
        return ""
    if notes.any_count(check):
        return ""
    value, limit = _number(found.value), _number(check.limit.value)
    if value is None or limit is None or (limit == 0 and found.unit not in ("", "count", "%")):
        return ""
    sign = 1 if check.limit.op == ">=" else -1
    if found.unit == "%":
        return f"{(value - limit) * sign:+.1f} points".replace("-0.0", "0.0").replace("+0.0", "0.0")
    if found.unit in ("", "count") and value == int(value) and limit == int(limit):
        return "" if value == limit else f"{(value - limit) * sign:+.0f}"
    share = (value - limit) / abs(limit) * 100 * sign
    digits = 1 if abs(share) < 10 else 0
    return f"{share:+.{digits}f} %".replace("-0.0 %", "0.0 %").replace("+0.0 %", "0.0 %")


def interval_text(check: Check) -> str:
    """The confidence interval of a measured rate: "43.1 to 43.7"; empty without one or where the limit is about something else."""
    if check.quantity is not None and not check.quantity.endswith("_tok_s"):
        return ""
    return _both(check, "ci_low_tok_s", "ci_high_tok_s")


def _both(check: Check, *names: str) -> str:
    low, high = (_number(check.measured[name].value) if name in check.measured else None for name in names)
    return "" if low is None or high is None else f"{low:.1f} to {high:.1f}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def cause_text(check: Check) -> str:
    """Why a check does not simply pass, in one line; empty for a plain pass."""
    stands = standing(check)
    if stands == "pass":
        return ""
    if stands == "inconclusive":
        because, message = check.inconclusive_because or "", check.message or check.cause or ""
        if not because or because in message:
            return _line(message or because or "no reason was recorded")
        return _line(f"{message} (because of {because})" if message else f"because of {because}")
    if stands == "unexpected":
        return "passed, although it is marked as an expected failure"
    if stands == "marginal":
        return _line(check.cause or check.message or "undecided, but within the tolerance of its limit")
    return _line(check.cause or check.message or "no cause was recorded")


def _name(measured: str) -> str:
    return LABELS.get(measured, measured.replace("_", " "))


def _line(text: str) -> str:
    return " ".join(text.split())


def row(check: Check, run: Run | None = None) -> Row:
    """The check as texts; its ``run`` tells the confidence of intervals, and why a number is missing."""
    stands = standing(check)
    found = primary(check)
    others = {name: value for name, value in check.measured.items() if value is not found}
    worth = HELD if check.quantity == "throttled_pct" else ASIDE
    glance = [name for name in worth if name in others] or list(others)[:4]
    aside = tuple((_name(name), value_text(others[name])) for name in glance)
    return Row(
        id=check.id,
        label=label(check),
        promise=_line(check.promise),
        standing=stands,
        word=WORDS[stands],
        measured="" if found is None else counted(value_text(found), check.quantity, found.value),
        interval=interval_text(check),
        limit=limit_text(check.limit, check.quantity),
        margin=margin_text(check),
        cause=cause_text(check),
        note="; ".join(filter(None, (notes.of(check), notes.no_energy(check, run) if run is not None else ""))),
        aside=aside,
        numbers=_numbers(check, notes.interval_name(run) if run is not None else "confidence interval"),
    )


def _numbers(check: Check, name_of_interval: str) -> tuple[tuple[str, str], ...]:
    """All numbers; an interval and a number with its uncertainty are one each."""
    told = []
    interval, error = _both(check, "ci_low_tok_s", "ci_high_tok_s"), check.measured.get("error_j")
    for name, value in check.measured.items():
        if name == "ci_low_tok_s" and interval:
            told.append((name_of_interval, interval))
        elif name == "joules" and error is not None:
            told.append((_name(name), notes.within(value, error)))
        elif not (name == "ci_high_tok_s" and interval) and not (name == "error_j" and "joules" in check.measured):
            told.append((_name(name), value_text(value)))
    return tuple(told)


def rows(run: Run) -> list[Row]:
    """All checks, what needs a person first, else in the order in which they were made."""
    order = list(WORDS)
    return sorted((row(check, run) for check in run.checks), key=lambda each: order.index(each.standing))


def verdict_word(run: Run) -> str:
    """PASS, FAIL or INCONCLUSIVE."""
    return run.verdict.upper()


def tally(run: Run) -> str:
    """What stands behind the verdict word: "7 of 9, 2 not checked"; together they are the headline."""
    counts = Counter(standing(check) for check in run.checks)
    good = counts["pass"] + counts["marginal"] + counts["unexpected"]
    total = len(run.checks) + len(run.not_checked)
    if run.finished is None:
        failed = f", {counts['fail']} failed" if counts["fail"] else ""
        return f"not finished: {good} passed so far{failed}"
    tail = [
        (len(run.not_checked), "not checked"),
        (counts["marginal"], "marginal"),
        (counts["expected"], "expected to fail"),
        (counts["unexpected"], "unexpectedly"),
    ]
    if not total:
        return "nothing was checked"
    if run.interrupted:
        head = f"interrupted, {good} of {total} pass"
        tail = [(counts["fail"], "failed"), (counts["inconclusive"], "inconclusive"), *tail]
    elif run.verdict == "pass":
        head = f"{good} of {total}"
    else:
        ours = counts[run.verdict]
        other: Standing = "inconclusive" if run.verdict == "fail" else "fail"
        head = f"{ours} of {total}" if ours else f"{good} of {total} pass"
        tail = [(counts[other], "inconclusive" if other == "inconclusive" else "failed"), *tail]
        if run.verdict == "fail" and not ours:
            head = f"outside the checks, {head}"
    return ", ".join([head, *(f"{count} {what}" for count, what in tail if count)])


def headline(run: Run) -> str:
    """The verdict in one line: ``PASS 9 of 9``, ``PASS 7 of 9, 2 not checked``, ``FAIL 2 of 9``; SIMULATED at its end."""
    told = tally(run)
    separator = " " if told[0].isdigit() else ": "
    return f"{verdict_word(run)}{separator}{told}{simulated_suffix(run)}"


def simulated_suffix(run: Run) -> str:
    """`` (SIMULATED)`` or nothing."""
    return f" ({SIMULATED})" if run.simulated else ""


def rig_name(run: Run) -> str:
    """Name of the rig, "unnamed rig" without one."""
    return str(run.rig.get("name") or "unnamed rig")


def power_text(run: Run) -> str:
    """The power levels that the run was made at: "250 W", "250, 300 and 390 W"; empty without any."""
    levels = [f"{level:g}" for level in run.power_levels_w]
    if not levels:
        return ""
    return f"{levels[0]} W" if len(levels) == 1 else f"{', '.join(levels[:-1])} and {levels[-1]} W"


def title(run: Run) -> str:
    """Title of a page: rig, power level, SIMULATED where it is."""
    power = power_text(run)
    return f"{rig_name(run)}{f' at {power}' if power else ''}{f' · {SIMULATED}' if run.simulated else ''}"


def all_findings(run: Run) -> list[Finding]:
    """Findings of the run and of its checks, each once, the severe first."""
    order = {"fail": 0, "warn": 1, "info": 2}
    every = [*run.findings, *(finding for check in run.checks for finding in check.findings)]
    told: dict[tuple[str, str, str], Finding] = {}
    for finding in every:
        told.setdefault((finding.kind, finding.subject, finding.detail), finding)
    return sorted(told.values(), key=lambda finding: order[finding.severity])


def finding_text(finding: Finding) -> str:
    """A finding in one line, without its remedy."""
    return _line(f"{finding.subject}: {finding.detail}" if finding.subject else finding.detail)
