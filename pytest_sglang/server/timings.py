"""SGLang's own account of its start against its log: ``startup_time`` of /server_info, the metric ``startup_time_seconds``, and a line of the log.

Source: sglang 0.5.23 (recorded answers and logs); 0.5.10 and 0.5.11 have none of them. The keys are the same in all three places:
``load_weight kv_cache_allocation scheduler_e2e tokenizer_e2e`` and, nested as ``cuda_graph`` or flat, ``decode prefill target_verify
draft_prefill draft_decode draft_extend``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pytest_sglang.record import units
from pytest_sglang.record.values import Finding
from pytest_sglang.server.phases import Timeline

KIND = "startup-times-disagree"
STAMP_S = 2.0
"""Two stamps cut to whole seconds: a span between them is right within this."""
SHARE = 0.05
_SAMPLE = re.compile(r'^sglang:startup_(?:cuda_graph_)?time_seconds\{phase="(?P<phase>[^"]+)"\}$')
_ADVICE = "is the log that of this server? (server.log in the rig file; a log that other servers share tells their times too)"


def from_info(info: Mapping[str, Any] | None) -> dict[str, float]:
    """Seconds by key from the answer of ``/server_info``; {} where the version does not tell."""
    told = info.get("startup_time") if isinstance(info, Mapping) else None
    return _flat(told) if isinstance(told, Mapping) else {}


def from_metrics(samples: Mapping[str, float] | None) -> dict[str, float]:
    """The same from Prometheus samples as ``ControlPlane.metrics`` gives them; {} without ``--enable-metrics``."""
    found = {}
    for name, value in (samples or {}).items():
        match = _SAMPLE.match(name)
        if match is not None:
            found[match["phase"]] = value
    return found


def _flat(told: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in told.items():
        if isinstance(value, Mapping):
            found |= _flat(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[str(key)] = float(value)
    return found


def disagreements(told: Mapping[str, float], timeline: Timeline, source: str) -> tuple[Finding, ...]:
    """One finding (severity warn) where the account in ``source`` does not fit the log: {} and an empty log agree with everything.

    Spans between stamps may differ by 2 s or 5 %, numbers that the log prints by 0.5 s or 5 %.
    """
    wrong: dict[str, str] = {}
    for key, own_s, log_s, allowed_s in _pairs(told, timeline):
        if abs(own_s - log_s) > max(allowed_s, SHARE * max(own_s, log_s)):
            wrong.setdefault(key, f"{key} {units.duration(own_s)}, by the log {units.duration(log_s)}")
    if not wrong:
        return ()
    detail = f"{source} and the log tell of different starts: {'; '.join(wrong.values())}"
    return (Finding(KIND, "warn", source, detail, _ADVICE),)


def _pairs(told: Mapping[str, float], timeline: Timeline) -> list[tuple[str, float, float, float]]:
    """Key, its seconds as told, as the log has them, and what they may differ by."""
    begins = {phase.id: phase.begin_s for phase in timeline.phases}
    zero = timeline.launched_at or 0.0
    since_echo = None
    if timeline.timings_at is not None and timeline.echo_at is not None:
        since_echo = timeline.timings_at - timeline.echo_at
    scheduler = None
    if "distributed" in begins and timeline.timings_at is not None:
        scheduler = timeline.timings_at - zero - begins["distributed"]
    candidates = [
        ("load_weight", told.get("load_weight"), timeline.weights_s, 0.5),
        ("decode", _sum(told, "decode", "target_verify", "draft_decode"), timeline.capture_s, 0.5),
        ("prefill", _sum(told, "prefill", "draft_prefill"), timeline.prefill_s, 0.5),
        ("scheduler_e2e", told.get("scheduler_e2e"), scheduler, STAMP_S),
        ("tokenizer_e2e", told.get("tokenizer_e2e"), since_echo, STAMP_S),
    ]
    # the log's own line is the same account, by its slowest rank
    candidates += [(key, told[key], timeline.timings[key], 0.5) for key in told if key in timeline.timings]
    return [(key, own, log, allowed) for key, own, log, allowed in candidates if own is not None and log is not None]


def _sum(told: Mapping[str, float], *keys: str) -> float | None:
    known = [told[key] for key in keys if key in told]
    return sum(known) if known else None
