"""A start that a run made or found: what kind it was, and judgements on its time and on what it compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.judge import causes, limits
from pytest_sglang.judge.verdict import Judgement, inconclusive
from pytest_sglang.record.run import Measurement
from pytest_sglang.record.values import PHASES, Finding, Startup
from pytest_sglang.rig.model import StartPromise

if TYPE_CHECKING:
    from pytest_sglang.server.log import LogSource
    from pytest_sglang.session.kernels import TritonCache
    from pytest_sglang.session.scope import CheckScope
    from pytest_sglang.session.wanted import MaxNewKernels, ReadyWithin


NEARLY_ALL = 9.0
"""So many times more new kernel names than entries that were there: a cold start."""


def classified(startup: Startup) -> Startup:
    """``kind`` by all the evidence: autotuning in the log, and new kernel names in the caches (a log alone cannot tell)."""
    diff, tuned = startup.cache_diff, startup.autotune_runs
    new = 0 if diff is None else len(diff.new_kernels)
    again = diff is not None and bool(diff.new_graphs or diff.rewritten)
    if diff is None and tuned is None:
        kind = startup.kind
    elif not tuned and not new and not again:
        # no log, and caches without an entry (they may be another machine's, or another user's): nothing to tell it by
        kind = "warm" if tuned is not None or (diff is not None and diff.before_entries) else startup.kind
    else:
        # what a cache holds may be another model's: nearly all of it new is as good as empty
        kind = "partial" if diff is not None and diff.before_entries and new < NEARLY_ALL * diff.before_entries else "cold"
    return msgspec.structs.replace(startup, kind=kind)


def with_traces(startup: Startup, kernels: TritonCache) -> Startup:
    """A start that nobody watched: what it compiled, from entries newer than its launch."""
    if startup.launched_at_is != "launch":
        return startup
    diff = kernels.added_after(startup.launched_at)
    return startup if diff is None else classified(msgspec.structs.replace(startup, cache_diff=diff))


def resumed(startup: Startup, log: LogSource) -> Startup:
    """A start that found its caches partly there: whether because the one before it was interrupted while it compiled."""
    if startup.kind != "partial":
        return startup
    from pytest_sglang.server import earlier

    phase = earlier.interrupted(log.read(), startup.launched_at)
    if phase is None:
        return startup
    detail = f"the start before this one was interrupted in {phase}: this one found its caches partly there, and compiled the rest"
    told = Finding("resumed-start", "info", "server log", detail)
    return msgspec.structs.replace(startup, resumes=phase, findings=(*startup.findings, told))


def ready_within(wanted: ReadyWithin, scope: CheckScope) -> Judgement:
    """The newest start of the check against its budget."""
    if not scope.startups:
        return inconclusive("no start was made or judged in this test")
    startup, start = scope.startups[-1], scope.deployment.rig.start
    budget = wanted.budget_s
    if budget is None and start is not None:
        budget = start.cold_s if wanted.start == "cold" else start.warm_s
    if budget is None:
        return inconclusive(
            f"no budget for a {wanted.start} start: neither the marker nor the rig file's [start] {wanted.start} names one"
        )
    if wanted.start == "cold" and startup.kind == "warm":
        return inconclusive("the start compiled nothing: it was not a cold one, so it says nothing about the cold budget")
    if wanted.start == "cold" and startup.kind == "partial":
        return inconclusive(
            "the start found a part of what it needs compiled already: it was no cold one, so it says nothing about the cold budget"
        )
    clock = next((each.detail for each in startup.findings if each.kind == "clock-set"), None)
    missing = None if startup.ready_s is not None else clock or "the log does not tell when the server became ready"
    return limits.max_duration(
        "ready", startup.ready_s, budget, quantity="ready_s", cause=slow_start(startup, budget), why_missing=missing
    )


def slow_start(startup: Startup, budget_s: float) -> str | None:
    """Likely cause of a start over its budget: what it compiled, and the phase that took longest."""
    if startup.ready_s is None or startup.ready_s <= budget_s:
        return None
    return causes.slow_start(startup)


def max_new_kernels(wanted: MaxNewKernels, scope: CheckScope) -> Judgement | None:
    """New kernel names of the check's newest start; None where neither marker nor rig file names a limit: then nothing is promised."""
    start = scope.deployment.rig.start
    limit = wanted.limit if wanted.limit is not None else start.max_new_kernels if start is not None else None
    if limit is None:
        return None
    if not scope.startups:
        return inconclusive("no start was made or judged in this test")
    return _count("new_kernels", scope.startups[-1], limit)


def _count(quantity: str, startup: Startup, limit: int) -> Judgement:
    diff = startup.cache_diff
    if diff is None:
        why = "the start was not watched, and its caches tell no launch time"
        return limits.max_count(quantity, None, limit, why_missing=why)
    if diff.unreadable:
        return limits.max_count(quantity, None, limit, why_missing=f"cache not readable: {diff.unreadable[0]}")
    if not diff.before_entries and not diff.caches:
        # a server that compiled nothing and found nothing keeps its kernels where we do not look
        why = "no cache that was looked at holds an entry: they are another user's, a container's, or elsewhere"
        return limits.max_count(quantity, None, limit, why_missing=why)
    names = {
        "new_kernels": diff.new_kernels,
        "new_variants": diff.new_variants,
        "recompiled_kernels": diff.rewritten,
        "new_graphs": tuple(_short(path) for path in diff.graph_paths),
    }[quantity]
    number = diff.new_graphs if quantity == "new_graphs" else len(names)
    judged = limits.max_count(quantity, number, limit, names=names, cause=causes.recompiled(startup) if number > limit else None)
    after = startup.after_ready
    late = 0 if after is None else after.new_graphs if quantity == "new_graphs" else len(after.new_kernels)
    if judged.verdict == "fail" and 0 < late < number and quantity in ("new_kernels", "new_graphs"):
        return msgspec.structs.replace(judged, message=f"{judged.message}, {late} of them after the server was ready")
    return judged


def _short(path: str) -> str:
    """A graph by its cache and the begin of its key: "fxgraph f5qewqded"."""
    kind = next((name for name in ("fxgraph", "aotautograd") if f"/{name}/" in path), "graph")
    key = next((part for part in reversed(path.split("/")) if len(part) == 52), path.rpartition("/")[2])
    return f"{kind} {key[:9]}"


def compiled(startup: Startup, start: StartPromise, *, cold: bool, server: Any) -> list[Judgement]:
    """The rig file's limits on a start beyond its time: phases, first request, what a warm one compiled (a cold one may all it wants)."""
    out = [phase_budget(startup, phase, start.phases_s[phase]) for phase in PHASES if phase in start.phases_s]
    if start.first_request_ratio is not None and startup.observed:
        out.append(first_request(startup, start.first_request_ratio))
    if cold:
        return out
    # "no recompilation" is one promise: no new name, no autotuning, no new graph, no known kernel compiled again
    none = 0 if start.max_new_kernels == 0 else None
    tuned = start.max_autotune_runs if start.max_autotune_runs is not None else none
    graphs = start.max_new_graphs if start.max_new_graphs is not None else none
    if tuned is not None:
        why = None if startup.autotune_runs is not None else "the log of this start cannot be read"
        out.append(
            limits.max_count("autotune_runs", startup.autotune_runs, tuned, cause=causes.recompiled(startup), why_missing=why)
        )
    if start.max_new_kernels is not None:
        out.append(_count("new_kernels", startup, start.max_new_kernels))
    if none is not None:
        out.append(_count("recompiled_kernels", startup, none))
    if graphs is not None:
        out.append(_count("new_graphs", startup, graphs))
    if start.max_new_variants is not None:
        out.append(_count("new_variants", startup, start.max_new_variants))
    if start.warm_capture_share is not None:
        cold_s = server.cold_capture_s
        if cold_s is None or startup.capture_s is None:
            out.append(inconclusive("warm_capture_share: no cold start with a capture time is known to compare with"))
        else:
            share = startup.capture_s / cold_s
            out.append(limits.max_value("capture_share", share, start.warm_capture_share, unit=""))
    return _one_cause(out)


def _one_cause(judged: list[Judgement]) -> list[Judgement]:
    """What a start compiled is told in full once, not behind every number."""
    failed = [each for each in judged if each.verdict == "fail"]
    rest = {id(each) for each in failed[1:] if each.cause is not None and each.cause == failed[0].cause}
    return [
        msgspec.structs.replace(each, message=each.message.removesuffix(f": {each.cause}")) if id(each) in rest else each
        for each in judged
    ]


def stopped(found: Sequence[Finding]) -> list[Judgement]:
    """Stops of a check that did not go as they should: each a failure, or inconclusive where it could not be seen how it went."""
    return [
        Judgement(
            verdict="fail" if each.severity == "fail" else "inconclusive",
            message=f"{each.subject}: {each.detail}",
            cause=each.detail if each.severity == "fail" else each.remedy,
            inconclusive_because=None if each.severity == "fail" else each.detail,
            findings=(each,),
        )
        for each in found
    ]


def phase_budget(startup: Startup, phase: str, budget_s: float) -> Judgement:
    """The longest stay in ``phase`` against its budget; a phase that this start did not have took no time."""
    quantity = f"phase_{phase}_s"
    there = [each for each in startup.phases if each.id == phase]
    if not there and {"weights", "warmup"} <= {each.id for each in startup.phases}:
        return Judgement(verdict="pass", message=f"phase {phase}: this start had none", quantity=quantity)
    lasted = [each.end_s - each.begin_s for each in there if each.end_s is not None]
    why = None if lasted else f"how long phase {phase} lasted is not in the log of this start"
    judged = limits.max_duration(phase, sum(lasted) if lasted else None, budget_s, quantity=quantity, why_missing=why)
    if judged.verdict == "inconclusive":
        return judged
    cause = f"phase {phase} took {judged.message}" if judged.verdict == "fail" else None
    return msgspec.structs.replace(judged, message=f"phase {phase}: {judged.message}", cause=cause)


def first_request(startup: Startup, limit: float) -> Judgement:
    """The first request after readiness against later ones."""
    slow = next((each.detail for each in startup.findings if each.kind == "slow-first-requests"), None)
    ratio = None if startup.first_request_ratio is None else round(startup.first_request_ratio, 2)
    cause = slow or "the first request after readiness was slower than later ones"
    return limits.max_value(
        "first_request_ratio", ratio, limit, unit="", cause=cause, why_missing=startup.first_request_why or "it was not measured"
    )


def startup_numbers(startup: Startup) -> dict[str, Measurement]:
    """The measured names of run.json for a start."""
    diff = startup.cache_diff
    numbers: dict[str, tuple[Any, str]] = {
        "ready_s": (startup.ready_s, "s"),
        "port_open_s": (startup.port_open_s, "s"),
        "first_token_s": (startup.first_token_s, "s"),
        "capture_s": (startup.capture_s, "s"),
        "autotune_runs": (startup.autotune_runs, "count"),
        "new_kernels": (None if diff is None else len(diff.new_kernels), "count"),
        "new_variants": (None if diff is None else len(diff.new_variants), "count"),
        "new_graphs": (None if diff is None else diff.new_graphs, "count"),
        "variant_entries": (None if diff is None else diff.variants, "count"),
        "recompiled_kernels": (None if diff is None else len(diff.rewritten), "count"),
        "cache_hits": (diff.hits if diff is not None and diff.hits_told else None, "count"),
        "cache_hits_told": (diff.hits_told if diff is not None and diff.hits_told else None, "count"),
        "kernels_after_ready": (None if startup.after_ready is None else len(startup.after_ready.new_kernels), "count"),
        "start_kind": (startup.kind, ""),
        "first_request_ratio": (None if startup.first_request_ratio is None else round(startup.first_request_ratio, 2), ""),
    }
    return {name: Measurement(value, unit) for name, (value, unit) in numbers.items() if value is not None}
