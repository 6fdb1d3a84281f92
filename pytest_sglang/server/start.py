"""One start as a value: what its log and its owner tell of it, progress while it lasts, and how it failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pytest_sglang.record import units
from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding, Phase, StartKind, Startup, Value
from pytest_sglang.server import log as logs
from pytest_sglang.server import phases, redact, timings
from pytest_sglang.server.control import Controller
from pytest_sglang.server.log import LogLine, LogSource
from pytest_sglang.server.phases import Timeline

_OWN_TRAFFIC = (
    '"GET /health',
    '"GET /ready',
    '"GET /v1/models',
    '"GET /v1/loads',
    '"GET /server_info',
    "Health check request received",
)

FailureKind = Literal["died", "hang", "not ready"]


class Progress(Value, frozen=True):
    """One moving line while waiting. Seconds in rig time; ``expected_s`` None = nothing to compare with."""

    phase: str | None
    inside: str
    elapsed_s: float
    expected_s: float | None
    last_line: str
    compiles: bool = False
    """Autotuning stands in its log already: it is not the warm start that it may have been taken for."""


class StartFailed(Exception):
    """A start that did not become ready. ``cause`` in one line; ``startup`` holds what was seen of it."""

    def __init__(
        self,
        kind: FailureKind,
        startup: Startup,
        *,
        cause: str,
        phase: str | None = None,
        last_lines: tuple[str, ...] = (),
        exit_code: int | None = None,
        elapsed_s: float = 0.0,
        traceback: str = "",
        stacks: str = "",
    ) -> None:
        self.kind, self.startup, self.cause, self.phase = kind, startup, cause, phase
        self.last_lines, self.exit_code, self.elapsed_s = last_lines, exit_code, elapsed_s
        self.traceback, self.stacks = traceback, stacks
        where = f" in phase {phase}" if phase else ""
        code = f" (exit code {exit_code})" if exit_code is not None else ""
        super().__init__(f"{kind}{where} after {units.duration(elapsed_s)}{code}: {cause}")


class LogWatch:
    """The log of this very start, followed."""

    def __init__(self, source: LogSource, position: object | None, launched_at: float) -> None:
        self._source, self._position, self._launched_at = source, position, launched_at
        self._ours = position is not None
        self._text = ""
        self._parsed: tuple[int, list[LogLine]] = (-1, [])

    def poll(self) -> bool:
        """Take what is new; True if the server itself wrote something, which the echo of our own looking is not."""
        new, self._position = self._source.tail_from(self._position)
        self._text += new
        return any(line.strip() and not any(own in line for own in _OWN_TRAFFIC) for line in new.splitlines())

    def lines(self) -> list[LogLine]:
        """Lines of this start: behind the position at its launch, else of the newest start that began after it."""
        if self._parsed[0] != len(self._text):
            lines = logs.split(self._text)
            if not self._ours:
                lines = select(lines, self._launched_at)
            self._parsed = (len(self._text), lines)
        return self._parsed[1]

    @property
    def last_line(self) -> str:
        """The newest line, whole but for its stamp, secrets redacted."""
        text = self._text.rstrip("\r\n")
        begin = max(text.rfind("\n"), text.rfind("\r")) + 1
        tail = logs.split(redact.text(text[begin:]))
        return tail[-1].text.strip()[:160] if tail else ""


def select(lines: list[LogLine], launched_at: float | None) -> list[LogLine]:
    """The newest start in ``lines`` that began at or after ``launched_at`` (epoch; stamps are whole seconds); [] without one."""
    for start in reversed(logs.starts(lines)):
        first = next((line.time for line in start if line.time is not None), None)
        if first is not None and (launched_at is None or first >= launched_at - 2.0):
            return start
    return []


def outside(port_open_s: float | None, ready_s: float | None) -> tuple[Phase, ...]:
    """What can be said without a log: until the port opened, until it was ready."""
    if port_open_s is None:
        return ()
    found = [Phase("launch", 0.0, port_open_s), Phase("warmup", port_open_s, ready_s)]
    return tuple([*found, Phase("ready", ready_s, ready_s)] if ready_s is not None else found)


def unreadable(source: LogSource, lines: list[LogLine]) -> list[Finding]:
    if lines:
        return []
    why = source.why or f"{source.describe()} holds nothing of this start"
    return [Finding("log-unreadable", "warn", source.describe(), f"{why}: nothing is known of its phases and of what it compiled")]


def kind_of(timeline: Timeline, lines: list[LogLine]) -> StartKind:
    """ "cold" with autotuning in the log, "warm" without; "unknown" where the log has no whole start."""
    if timeline.autotune_runs > 0:
        return "cold"
    complete = bool(lines) and timeline.ready_at is not None and bool(timeline.phases or timeline.versions)
    return "warm" if complete else "unknown"


def own_account(info: Any, samples: Mapping[str, float] | None, timeline: Timeline) -> tuple[dict[str, float], list[Finding]]:
    """The server's own start-up seconds (``/server_info``, else the metrics, else the log's line), and where they do not fit the log."""
    told = {
        "/server_info": timings.from_info(info),
        "/metrics": timings.from_metrics(samples),
        "the log's own line": timeline.timings,
    }
    found = [each for source, seconds in told.items() for each in timings.disagreements(seconds, timeline, source)]
    return next((seconds for seconds in told.values() if seconds), {}), found


def read_start(
    *,
    controller: Controller,
    log: LogSource,
    clock: Clock,
    version: str | None = None,
    info: Any = None,
    samples: Mapping[str, float] | None = None,
) -> Startup:
    """The start that the running server had, from its log and its owner's time stamps (``observed`` False).

    ``kind`` "unknown" where the log has no such start (rotated away, unreadable, none promised). ``info`` (the answer of /server_info)
    and ``samples`` (of /metrics) are cross-checked with the log's phases where they tell start-up times.
    """
    state = controller.state()
    lines = select(logs.split(log.read()), state.started_at)
    timeline = phases.timeline(lines, launched_at=state.started_at, version=version)
    account, disagree = own_account(info, samples, timeline)
    zero = timeline.launched_at
    if zero is None or not math.isfinite(zero):
        zero = clock.time()

    def since(moment: float | None) -> float | None:
        return None if moment is None else max(0.0, moment - zero)

    return Startup(
        kind=kind_of(timeline, lines),
        launched_at=zero,
        launched_at_is=timeline.launched_at_is,
        ready_s=since(timeline.ready_at),
        port_open_s=since(timeline.port_open_at),
        phases=timeline.phases,
        pid=state.pid,
        argv=controller.argv(),
        versions=timeline.versions,
        timings=account,
        autotune_runs=timeline.autotune_runs if lines else None,
        capture_s=timeline.capture_s,
        findings=(*timeline.findings, *disagree, *unreadable(log, lines)),
        observed=False,
    )
