"""The first requests after readiness against later ones: a server that still compiles has said ready too early."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from pytest_sglang.record import units
from pytest_sglang.record.values import Finding, Startup

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

PROMPT_TOKENS = 8
LEAST, MOST = 4, 20
"""Requests after the first one."""
LOOK_S = 0.2
"""Wall seconds between two looks at the server's load: as many as during the first request, which had to bear them too."""
MOST_DISTURBED = 5
"""So many requests beside somebody else's end it: the ratio would be theirs."""
LONGEST_S = 30.0
"""Wall seconds after which they are not waited for any longer; a request under way is."""
SAME = 1.5
"""The last three requests within this factor of each other: steady."""
SLOW = 2.0
"""A first request that took more than this many times a later one ran slow."""
WARN = 3.0
"""Ratio from which on it is told although no limit is promised."""


def measured(startup: Startup, deployment: Deployment) -> Startup:
    """``startup`` with the ratio of its first request to later ones of the same size, sent now, one at a time."""
    if startup.first_request_s is None or startup.request_tokens is None:
        return msgspec.structs.replace(startup, first_request_why=startup.first_request_why or "the first request was not timed")
    try:
        later, why = _later(deployment, startup.request_tokens, _known_s(startup, deployment))
    finally:
        deployment.progress(None)
    if why:
        return msgspec.structs.replace(startup, first_request_why=why)
    return compared(startup, later)


def compared(startup: Startup, later_s: Sequence[float]) -> Startup:
    """``startup`` with its ratio, and the finding where the first requests were slow. ``later_s``: seconds of the requests after it."""
    assert startup.first_request_s is not None
    steady = statistics.median(later_s[-3:])
    ratio = startup.first_request_s / steady
    findings = startup.findings
    if ratio > WARN:
        times = [startup.first_request_s, *later_s]
        slow = next((number for number, each in enumerate(times) if each <= SLOW * steady), len(times))
        share = 100 * steady * slow / sum(times[:slow])
        first = "the first request" if slow == 1 else f"the first {slow} requests"
        detail = f"ready, but {first} ran at {share:.2g} % of speed ({units.duration(times[0])}, later {units.duration(steady)})"
        advice = "it still compiles after it says ready: send such requests before you let users in, or look at its log for what compiles"
        findings = (*findings, Finding("slow-first-requests", "warn", "first requests", detail, advice))
    return msgspec.structs.replace(startup, steady_request_s=steady, first_request_ratio=ratio, findings=findings)


def settled(later_s: Sequence[float], known_s: float | None = None) -> bool:
    """Whether the last three took the same time, and not much longer than such a request is known to take."""
    last = later_s[-3:]
    if len(later_s) < LEAST or max(last) > SAME * min(last):
        return False
    return statistics.median(last) <= SLOW * min([*later_s, *([known_s] if known_s is not None else [])])


def _later(deployment: Deployment, tokens: int, known_s: float | None) -> tuple[list[float], str]:
    """Seconds of requests until they take the same time; or why there are none."""
    from pytest_sglang.load import client, prompts
    from pytest_sglang.load.measure import FOREIGN, Watch

    server = deployment.server
    target = client.Target(url=server.url, api="completions", model=server.model, api_key=deployment.plane.api_key)
    later: list[float] = []
    seed, deadline = random.SystemRandom().randrange(2**32), time.monotonic() + LONGEST_S
    sent = disturbed = 0
    while len(later) < MOST and (len(later) < 3 or time.monotonic() < deadline):
        deployment.progress(f"first requests after ready: {len(later) + 1}")
        text, sent = prompts.make_prompts(1, PROMPT_TOKENS, seed=seed + sent), sent + 1
        with Watch(deployment.plane.running_requests, 1, LOOK_S) as watch:
            done = client.run_round(target, text, tokens, index=len(later), timeout_s=2 * LONGEST_S)
        if done.invalid_because is not None:
            return later, f"a request after the first one is no sample: {done.invalid_because}"
        if watch.disturbed:
            disturbed += 1
            if disturbed >= MOST_DISTURBED:
                return later, f"{FOREIGN}: {disturbed} of the {sent} requests after the first one ran beside it"
            continue
        later.append(done.end_s - done.begin_s)
        if settled(later, known_s):
            return later, ""
    known = "" if known_s is None else f", {units.duration(known_s)} in an earlier start of this run"
    return later, (
        f"the requests after it came to no steady time: the last of {len(later)} took {units.duration(min(later[-3:]))} "
        f"to {units.duration(max(later[-3:]))}{known}; it may still compile"
    )


def _known_s(startup: Startup, deployment: Deployment) -> float | None:
    """What such a request took in earlier starts of this run: steady speed is not what a start that still compiles shows."""
    earlier = [each.steady_request_s for each in deployment.server.history if each.request_tokens == startup.request_tokens]
    return min((each for each in earlier if each is not None), default=None)
