"""The values that the parts hand one another. All frozen, all plain: they can be written to run.json as they stand."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["info", "warn", "fail"]
StartKind = Literal["cold", "warm", "partial", "unknown"]

PHASES: tuple[str, ...] = (
    "launch",
    "arguments",
    "distributed",
    "weights",
    "kv_cache",
    "capture_decode",
    "capture_prefill",
    "port_open",
    "warmup",
    "ready",
    "first_token",
    "steady",
)
"""Phase ids of a start, in the order in which they begin."""


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of every value."""


class Finding(msgspec.Struct, frozen=True):
    """Something noticed: ``fail`` fails its check (or makes a command line tool exit 1), ``info`` and ``warn`` never do."""

    kind: str
    severity: Severity
    subject: str
    detail: str
    remedy: str = ""
    check_id: str | None = None


class Phase(msgspec.Struct, frozen=True):
    """One phase of a start; seconds since the launch (or since the first log line where the launch is not known)."""

    id: str
    begin_s: float
    end_s: float | None


class NewEntries(Value, frozen=True, kw_only=True):
    """What one cache gained: kernel names with the number of new entries."""

    cache: str
    path: str
    new_kernels: dict[str, int] = {}
    new_variants: dict[str, int] = {}
    new_graphs: int = 0
    new_autotune: int = 0
    files: int = 0
    bytes: int = 0


class CacheSize(Value, frozen=True, kw_only=True):
    """What one cache held at a moment; ``entries`` are those that a warm start can find (kernels and graphs)."""

    cache: str
    path: str
    exists: bool = True
    entries: int = 0
    files: int = 0
    bytes: int = 0


class CacheDiff(Value, frozen=True, kw_only=True):
    """What a start added to the compile caches. ``new_kernels`` counts kernel *names* that no cache held before."""

    caches: tuple[NewEntries, ...] = ()
    new_kernels: tuple[str, ...] = ()
    new_variants: tuple[str, ...] = ()
    new_graphs: int = 0
    files: int = 0
    bytes: int = 0
    unreadable: tuple[str, ...] = ()
    """Caches that should be there and could not be read: then nothing can be claimed about new entries."""
    before_entries: int = 0
    variants: int = 0
    """New entries of known names."""
    rewritten: tuple[str, ...] = ()
    """Kernel names whose entries were there and were compiled again in place: the cache was not used, or not whole."""
    new_autotune: int = 0
    hits: int = 0
    """Entries that were there before and have been read since, of those ``hits_told`` whose file system keeps the time of a reading."""
    hits_told: int = 0
    graph_paths: tuple[str, ...] = ()
    """New graph entries, the first few."""
    before: tuple[CacheSize, ...] = ()
    """Every cache as it was before the start; empty in records that did not keep it."""


class Startup(Value, frozen=True, kw_only=True):
    """One start of a server: a time line of phases. Times in rig time; ``*_s`` count from ``launched_at`` (epoch seconds).

    ``None`` = not known. ``launched_at_is`` tells what the zero is: "launch" (controller or unit told it) or "first line" (a bare log).
    """

    kind: StartKind
    launched_at: float
    launched_at_is: Literal["launch", "first line"] = "launch"
    ready_s: float | None = None
    port_open_s: float | None = None
    first_token_s: float | None = None
    phases: tuple[Phase, ...] = ()
    pid: int | None = None
    argv: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    timings: dict[str, float] = {}
    """Seconds by the server's own account (startup_time of 0.5.23), {} where its version does not tell."""
    autotune_runs: int | None = None
    capture_s: float | None = None
    cache_diff: CacheDiff | None = None
    after_ready: CacheDiff | None = None
    """What of ``cache_diff`` appeared after the server was ready, at its first requests; None = not looked at."""
    compiled_because: str | None = None
    """Why a start compiled what should have been there, as far as that can be told."""
    findings: tuple[Finding, ...] = ()
    observed: bool = False
    """True: this run waited for the start itself; False: read from log and unit afterwards."""
    first_request_s: float | None = None
    """Seconds of the very first request after readiness, of ``request_tokens`` tokens."""
    request_tokens: int | None = None
    steady_request_s: float | None = None
    """Seconds of such a request once they take the same time."""
    first_request_ratio: float | None = None
    """``first_request_s / steady_request_s``; None = not measured (a start that nobody watched)."""
    first_request_why: str = ""
    """Why there is no ratio although the start was watched."""
    resumes: str | None = None
    """The phase in which the start before this one was interrupted, so that this one found its caches partly there."""


class Round(Value, frozen=True, kw_only=True):
    """One measured round of ``streams`` requests. Epoch seconds of the wall clock; rates in tokens per second.

    ``decode_tok_s`` is the mean over the round's streams of (n-1)/(t_last-t_first); ``end_to_end_tok_s`` of n/(t_last-t_sent);
    ``aggregate_tok_s`` counts all streams' tokens in the window in which all decode. ``invalid_because`` names why a round is no sample.
    """

    index: int
    begin_s: float
    end_s: float
    decode_tok_s: float | None
    end_to_end_tok_s: float | None
    aggregate_tok_s: float | None
    ttft_s: tuple[float, ...] = ()
    itl_s: tuple[float, ...] = ()
    tpot_s: tuple[float, ...] = ()
    """One value a request: (t_last - t_first) / (n - k)."""
    output_tokens: int = 0
    joules: float | None = None
    joules_error: float | None = None
    joules_missing: str | None = None
    """Why the energy of this round is not known."""
    start_c: float | None = None
    accept_length: float | None = None
    client_lag_s: float = 0.0
    failures: tuple[str, ...] = ()
    invalid_because: str | None = None
    merged_share: float = 0.0
    """Token events without a time of their own, because later ones came in the same read, as a share of all."""
    unsure_itl_s: tuple[float, ...] = ()
    """The most that each gap may have been that is no sample of ``itl_s``."""
    unsure_ttft: int = 0
    """How many of ``ttft_s`` are upper bounds: the first token came in one read with later ones."""
    shared_tokens: int = 0
    """Samples of ``itl_s`` that are equal parts of an event of several tokens."""
    stamps: Literal["kernel", "user"] = "kernel"
    stamp_lag_s: float = 0.0
    """The most that a time of arrival may be late: 0 where the kernel stamps it."""
    itl_lag_s: float = 0.0
    """The same for all arrivals but one in a thousand."""
    send_lag_s: float = 0.0
    """The most that a request may have left after its clock began."""
    server_tokens: int | None = None
    """What the server's own counter of generated tokens gained; None where it has none."""


class Throughput(Value, frozen=True, kw_only=True):
    """Result of a measurement: valid rounds, the median decode rate of a stream and its confidence interval (tok/s)."""

    streams: int
    rounds: tuple[Round, ...]
    decode_tok_s: float | None
    ci_low: float | None
    ci_high: float | None
    confidence: float
    failed: int = 0
    failures: dict[str, int] = {}
    client_lag_s: float = 0.0
    accept_length: float | None = None
    end_to_end_tok_s: float | None = None
    aggregate_tok_s: float | None = None
    discarded: tuple[Round, ...] = ()
    """Rounds that are no samples, with their reasons (warm-ups are not kept)."""
    merged_share: float = 0.0
    """That of all rounds together."""
    unsettled: str | None = None
    """Why its interval must not decide although it could: the rate drifts, or may be falling."""


class Energy(Value, frozen=True, kw_only=True):
    """One GPU's energy over a window: board power, not the wall."""

    gpu: str
    joules: float | None
    mean_w: float | None
    peak_w: float | None
    error_j: float | None = None
    invalid_because: str | None = None
    source: Literal["energy counter", "instant power", "none"] = "none"
