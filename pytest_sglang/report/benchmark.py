"""Feeds measured rounds to pytest-benchmark, so that its table, ``--benchmark-json`` and ``--benchmark-compare`` work on them.

Its own loop is not used: ours decides how many rounds are needed. Missing or disabled it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pytest_sglang.record.values import Round, Throughput


@dataclass(slots=True)
class _Source:
    """What pytest-benchmark's Metadata reads of a fixture."""

    name: str
    fullname: str
    group: str | None
    extra_info: dict[str, Any]
    param: str | None = None
    params: dict[str, Any] | None = None
    cprofile_stats: None = None
    has_error: bool = False
    skipped: bool = field(default=False)


def feed(
    session_object: Any, *, name: str, fullname: str, group: str | None, rounds: Sequence[Round], extra_info: dict[str, Any]
) -> bool:
    """Add every valid round's seconds per request as a sample; True if something was added.

    ``session_object`` is pytest-benchmark's session (``config._benchmarksession``), or None where the plugin is missing.
    Must be called before the session finishes, since that is when it writes its JSON.
    """
    samples = [seconds for each in rounds if (seconds := seconds_per_request(each)) is not None]
    if (
        session_object is None
        or getattr(session_object, "disabled", False)
        or getattr(session_object, "skip", False)
        or not samples
    ):
        return False
    try:
        from pytest_benchmark.stats import Metadata
    except ImportError:
        return False
    options = {
        "disable_gc": False,
        "timer": "pytest_sglang",
        "min_rounds": len(samples),
        "max_time": 0.0,
        "min_time": 0.0,
        "warmup": False,
    }
    entry = Metadata(_Source(name, fullname, group, dict(extra_info)), iterations=1, options=options)
    for seconds in samples:
        entry.update(seconds)
    session_object.benchmarks.append(entry)
    return True


GROUP = "sglang"
"""Our entries in pytest-benchmark's table."""
_ALL = ("min", "max", "mean", "stddev", "median", "iqr", "outliers", "ops", "rounds", "iterations")
_NARROW = ("min", "median", "max", "iqr", "rounds")
_NARROWEST = ("median", "rounds")
"""For several rows: each number has a ratio behind it then."""


def narrow(session_object: Any) -> None:
    """Columns that fit a terminal of 80, where all entries are ours and the columns are pytest-benchmark's default (124 wide)."""
    columns = getattr(session_object, "columns", None)
    if columns is None or tuple(columns) != _ALL:
        return
    if all(getattr(each, "group", None) == GROUP for each in session_object.benchmarks):
        session_object.columns = list(_NARROW if len(session_object.benchmarks) == 1 else _NARROWEST)


def seconds_per_request(each: Round) -> float | None:
    """How long one request of the round took, from its tokens and end-to-end rate; None for a round that is no sample."""
    if each.invalid_because is not None:
        return None
    requests = len(each.ttft_s)
    if each.end_to_end_tok_s and each.output_tokens and requests:
        return each.output_tokens / requests / each.end_to_end_tok_s
    seconds = each.end_s - each.begin_s
    return seconds if seconds > 0 else None


def extra_info(throughput: Throughput) -> dict[str, Any]:
    """The numbers that pytest-benchmark's JSON carries beside the seconds: tok/s, TTFT, W, J/token; without what was not read."""
    valid = [each for each in throughput.rounds if each.invalid_because is None]
    watts = [each.joules / (each.end_s - each.begin_s) for each in valid if each.joules is not None and each.end_s > each.begin_s]
    per_token = [each.joules / each.output_tokens for each in valid if each.joules is not None and each.output_tokens]
    told = {
        "streams": throughput.streams,
        "decode_tok_s": throughput.decode_tok_s,
        "end_to_end_tok_s": throughput.end_to_end_tok_s,
        "aggregate_tok_s": throughput.aggregate_tok_s,
        "ci_low_tok_s": throughput.ci_low,
        "ci_high_tok_s": throughput.ci_high,
        "ttft_ms": _median([1000 * seconds for each in valid for seconds in each.ttft_s]),
        "mean_w": _median(watts),
        "j_per_token": _median(per_token),
    }
    return {name: round(value, 4) for name, value in told.items() if value is not None}


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
