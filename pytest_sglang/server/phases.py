"""A start as its log tells it: phases, what it compiled, what it lost, why it died."""

from __future__ import annotations

import ast
import re
from typing import Any, Literal

import msgspec

from pytest_sglang.record.values import Finding, Phase, Value
from pytest_sglang.server import causes, redact, versions
from pytest_sglang.server.causes import Failure
from pytest_sglang.server.inside import Bars, Inside
from pytest_sglang.server.log import LogLine
from pytest_sglang.server.versions import Mark, Version

_ACCESS = re.compile(r'"(?P<method>[A-Z]+) (?P<path>/\S*) HTTP/[\d.]+" (?P<status>\d{3})')
_TRAFFIC = ("Decode batch", "Prefill batch")
_LEVEL = re.compile(r"^(?:INFO|WARNING|ERROR):\s+")
_TIMING = re.compile(r"(\w+)=(\d+(?:\.\d+)?)")
_FACT = {
    "model_path": str,
    "served_model_name": str,
    "tp_size": int,
    "host": str,
    "port": int,
    "device": str,
    "enable_torch_compile": bool,
    "torch_compile_max_bs": int,
    "disable_cuda_graph": bool,
    "log_level": str,
    "skip_server_warmup": bool,
}


class Timeline(Value, frozen=True, kw_only=True):
    """One start, read from its log. ``*_at`` are epoch seconds, ``*_s`` count from ``launched_at``; None = not in the log.

    Stamps are whole seconds, so a phase's length is right within a second and their sum within one second in all.
    """

    launched_at: float | None
    launched_at_is: Literal["launch", "first line"]
    phases: tuple[Phase, ...] = ()
    phase: str | None = None
    """The phase in which the log ends."""
    inside: str = ""
    """Progress inside that phase, from its progress bar: ``2/4 (bs=4)``."""
    progress: dict[str, Inside] = {}
    """Progress inside each phase that told of it."""
    port_open_at: float | None = None
    ready_at: float | None = None
    last_at: float | None = None
    autotune_runs: int = 0
    capture_s: float | None = None
    weights_s: float | None = None
    timings: dict[str, float] = {}
    versions: dict[str, str] = {}
    facts: dict[str, Any] = {}
    findings: tuple[Finding, ...] = ()
    failure: Failure | None = None
    last_lines: tuple[str, ...] = ()
    bound: bool = True
    """False: uvicorn said that it could not bind its port, whatever the log says afterwards."""
    notes: dict[str, str] = {}
    """What else it told of itself: ``kv_tokens``, ``weights_type``, ... (versions.NOTES)."""
    prefill_s: float | None = None
    echo_at: float | None = None
    """When it echoed its arguments."""
    timings_at: float | None = None
    """When it printed ``timings``, its own account (0.5.20 and later)."""
    ended_at: float | None = None
    """When the server said that it ends (a signal, its own kill); None = it did not."""


class _Reader:
    """Collects marks from the lines of one start."""

    def __init__(self, version: Version | None) -> None:
        self._forms = versions.compiled(version)
        self.first: dict[Mark, float] = {}
        self.last: dict[Mark, float] = {}
        self.seconds: dict[Mark, list[tuple[str, float]]] = {}
        self.low, self.high = versions.OLDEST, versions.NEWEST
        self.health_ok_at: float | None = None
        self.autotune_runs = 0
        self.echo = ""
        self.timings: dict[str, float] = {}
        self.findings: dict[tuple[str, str], Finding] = {}
        self.failures: list[tuple[int, versions.Sign, str, float | None]] = []
        self.progress = Bars()
        self.notes: dict[str, str] = {}
        self.marks = 0
        self.ended_at: float | None = None
        self.bound = True
        self.nccl = ""

    def feed(self, index: int, line: LogLine, now: float | None) -> None:
        """Take one line; ``now`` is its own stamp or that of the line before it."""
        if line.text.startswith(_TRAFFIC):
            return
        # unprefixed text may also be glued behind a stamped line or a bar
        self.autotune_runs += len(versions.AUTOTUNE.findall(line.text)) if "AUTOTUNE" in line.text else 0
        self.progress.feed(line.text)
        text = _LEVEL.sub("", line.text)
        if line.time is not None and now is not None:
            if (access := _ACCESS.search(text)) is not None:
                self._access(access, now)
                return
            self._mark(text, line.ranks, now)
            self._note(text, now)
        if not text.startswith("server_args="):
            self._sign(index, text, now)

    def _mark(self, text: str, ranks: str, now: float) -> None:
        for form, pattern in self._forms:
            match = pattern.search(text)
            if match is None:
                continue
            mark = form.mark
            if mark == "ready" and not self.bound:
                return  # its warm-up was answered by somebody else's server on the same port
            self.low, self.high = max(self.low, form.since), min(self.high, form.until)
            self.first.setdefault(mark, now)
            self.last[mark] = now
            self.marks += 1
            if match.groupdict().get("s"):
                self.seconds.setdefault(mark, []).append((ranks, float(match["s"])))
            if mark == "arguments":
                self.echo = text
            elif mark == "timings":
                self.timings = {key: float(value) for key, value in _TIMING.findall(text)}
            return
        if text.startswith("sglang is using nccl=="):
            self.nccl = text.partition("==")[2].strip()

    def _note(self, text: str, now: float) -> None:
        for name, pattern in versions.NOTES:
            match = pattern.search(text)
            if match is not None:
                self.notes[name] = match["value"] or match["later"] if "later" in pattern.groupindex else match["value"]
        if self.ended_at is None and versions.ENDING.search(text):
            self.ended_at = now

    def _access(self, match: re.Match[str], now: float) -> None:
        # an older server that drains into the same log answers before this one has a port
        if self.health_ok_at is None and "port_open" in self.first and match["status"] == "200":
            self.health_ok_at = now if match["path"].startswith(("/health", "/ready")) else None

    def _sign(self, index: int, text: str, now: float | None) -> None:
        if versions.any_sign().search(text) is None:
            return
        for sign, pattern in versions.signs():
            if not pattern.search(text):
                continue
            if sign in versions.FAILURES:
                self.failures.append((index, sign, text, now))
                if sign.kind == "port-taken":
                    self.bound = False
            else:
                detail = redact.text(text.strip())[:300]
                self.findings.setdefault(
                    (sign.kind, sign.pattern), Finding(sign.kind, sign.severity, "server log", detail, sign.advice)
                )
            return

    def elapsed(self, mark: Mark) -> float | None:
        """Seconds of a stage by its own ``elapsed=``: the slowest rank of each pass, all passes (target, draft) added."""
        by_rank: dict[str, float] = {}
        for ranks, seconds in self.seconds.get(mark, []):
            by_rank[ranks] = by_rank.get(ranks, 0.0) + seconds
        return max(by_rank.values(), default=None)


def timeline(
    lines: list[LogLine],
    *,
    launched_at: float | None = None,
    ended_at: float | None = None,
    version: str | None = None,
    ready_at: float | None = None,
    port_open_at: float | None = None,
) -> Timeline:
    """The time line of one start (one element of ``log.starts``).

    ``launched_at``: epoch seconds of the launch (controller, unit); without it the first stamped line is the zero.
    ``ended_at``: when the process ended, which closes the last phase. ``version``: SGLang's version where it is known (the log of
    0.5.11 does not name it). ``ready_at``, ``port_open_at``: observed from outside, which beats the log's whole seconds.
    A version that the table does not know gives no phases and the finding "phases-unknown", never a failure.
    """
    hint = versions.parse(version)
    known = hint is None or versions.is_known(hint)
    reader, first, now = _scan(lines, hint if known else None)
    zero = launched_at if launched_at is not None else first
    if port_open_at is not None and reader.marks:
        reader.first["port_open"] = port_open_at
    if ready_at is None and reader.bound:
        ready_at = reader.first.get("ready") or reader.health_ok_at
    phases: tuple[Phase, ...] = ()
    if known and zero is not None and first is not None:
        phases = _phases(reader, zero=zero, first=first, ready_at=ready_at, ended_at=ended_at)
    failure, facts = causes.failure(lines, reader.failures), _facts(reader.echo)
    findings = _findings(reader, facts, phases, ready_at, failure)
    if not known:
        detail = (
            f"phases unknown: SGLang {version} is not one of {versions.name(versions.OLDEST)} to {versions.name(versions.NEWEST)}"
        )
        findings.append(Finding("phases-unknown", "info", "server log", detail))
    return Timeline(
        launched_at=zero,
        launched_at_is="launch" if launched_at is not None else "first line",
        phases=phases,
        phase=_current(phases, ready_at),
        inside=reader.progress.text(_current(phases, ready_at)),
        progress=reader.progress.found(),
        port_open_at=reader.first.get("port_open") if reader.bound else None,
        ready_at=ready_at,
        last_at=now,
        autotune_runs=reader.autotune_runs,
        capture_s=reader.elapsed("decode_end") if known else None,
        weights_s=reader.elapsed("weights_end") if known else None,
        timings=reader.timings,
        versions=_versions(reader, version),
        facts=facts,
        findings=tuple(findings),
        failure=failure,
        last_lines=tuple(redact.text(line.raw)[:300] for line in lines[-10:]),
        bound=reader.bound,
        notes=reader.notes,
        prefill_s=reader.elapsed("prefill_end") if known else None,
        echo_at=reader.first.get("arguments"),
        timings_at=reader.first.get("timings"),
        ended_at=reader.ended_at,
    )


def _scan(lines: list[LogLine], version: Version | None) -> tuple[_Reader, float | None, float | None]:
    """The marks of all lines, the first stamp and the last one."""
    reader = _Reader(version)
    first = now = next((line.time for line in lines if line.time is not None), None)
    for index, line in enumerate(lines):
        now = line.time if line.time is not None else now
        reader.feed(index, line, now)
    return reader, first, now


def _findings(
    reader: _Reader, facts: dict[str, Any], phases: tuple[Phase, ...], ready_at: float | None, failure: Failure | None
) -> list[Finding]:
    """What was lost, and what killed it: a failure after readiness is one of serving, before it one that was overcome."""
    findings = _settled(list(reader.findings.values()), reader, facts)
    if failure is not None and (ready_at is None or failure.at is None or failure.at >= ready_at):
        advice = next((sign.advice for sign in versions.FAILURES if sign.kind == failure.kind and sign.advice), "")
        kind = "died" if failure.kind != "port-taken" else "port-taken"
        findings.append(Finding(kind, "fail", "server log", failure.cause, advice))
    return findings + _compile_findings(reader, facts, phases, ready_at, findings)


def _phases(reader: _Reader, *, zero: float, first: float, ready_at: float | None, ended_at: float | None) -> tuple[Phase, ...]:
    """Contiguous phases: each lasts until the next begins, so that they add up to the whole."""
    marks = reader.first
    if not any(mark in marks for mark in ("distributed", "weights", "decode", "port_open")):
        # nothing of a start is in it but its first lines; where it got ready all the same, its stages have other names
        if ready_at is not None:
            return ()
        begins: list[tuple[str, float]] = [("launch", zero), ("arguments", first)] if "arguments" in marks else []
        return _closed(begins, zero, ended_at)
    kv_begin = reader.last.get("weights_end")
    if kv_begin is not None and kv_begin > marks.get("kv_cache_end", kv_begin):
        kv_begin = marks["kv_cache_end"]  # --startup-weight-load-mode overlap: weights are committed after the capture
    captured = max((reader.last[mark] for mark in ("decode_end", "prefill_end") if mark in marks), default=None)
    boot = captured if captured is not None else reader.last.get("kv_cache_end")
    if any(mark in marks and f"{mark}_end" not in marks for mark in ("decode", "prefill")):
        boot = marks.get("port_open")  # a capture is still running, or its end was cut off
    if boot is not None and "capacity" in marks:
        boot = min(boot, marks["capacity"])
    candidates: list[tuple[str, float | None]] = [
        ("launch", zero),
        ("arguments", first),
        ("distributed", marks.get("distributed")),
        ("weights", marks.get("weights")),
        ("kv_cache", kv_begin),
        ("capture_decode", marks.get("decode")),
        ("capture_prefill", marks.get("prefill")),
        ("port_open", boot),
        ("warmup", marks.get("port_open")),
    ]
    # a stamp is cut to whole seconds and may lie before a launch that is known exactly
    begins = sorted(((phase, max(begin, zero)) for phase, begin in candidates if begin is not None), key=lambda each: each[1])
    begins = [(phase, min(begin, ready_at) if ready_at is not None else begin) for phase, begin in begins]
    return _closed(begins, zero, ready_at if ready_at is not None else ended_at, ready_at)


def _closed(begins: list[tuple[str, float]], zero: float, end: float | None, ready_at: float | None = None) -> tuple[Phase, ...]:
    """Phases from their begins, each until the next one."""
    if not begins:
        return ()
    ends = [*(begin for _, begin in begins[1:]), end]
    phases = [
        Phase(phase, max(0.0, begin - zero), None if until is None else max(0.0, until - zero))
        for (phase, begin), until in zip(begins, ends, strict=True)
        if not (phase == "launch" and until is not None and until <= begin)
    ]
    if ready_at is not None:
        phases.append(Phase("ready", max(0.0, ready_at - zero), max(0.0, ready_at - zero)))
    return tuple(phases)


def _current(phases: tuple[Phase, ...], ready_at: float | None) -> str | None:
    if ready_at is not None:
        return "ready"
    return phases[-1].id if phases else None


def _versions(reader: _Reader, version: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    if version:
        found["sglang"] = version
    elif reader.marks and reader.low <= reader.high:
        same = reader.low == reader.high
        found["sglang"] = versions.name(reader.low) if same else f"{versions.name(reader.low)} to {versions.name(reader.high)}"
    if reader.nccl:
        found["nccl"] = reader.nccl
    return found


def _facts(echo: str) -> dict[str, Any]:
    """Arguments of the start from their echo, both as a dataclass's and as a dict's repr; a cut line gives those before the cut."""
    facts: dict[str, Any] = {}
    for key, kind in _FACT.items():
        match = re.search(rf"""(?:[(,{{] ?){key}=|'{key}': """, echo)
        if match is None:
            continue
        literal = re.match(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|True|False|None|-?\d+(?:\.\d+)?""", echo[match.end() :])
        if literal is None:
            continue
        value = ast.literal_eval(literal[0])
        if value is None or isinstance(value, kind):
            facts[key] = value
    return facts


def _compile_findings(
    reader: _Reader, facts: dict[str, Any], phases: tuple[Phase, ...], ready_at: float | None, found: list[Finding]
) -> list[Finding]:
    """torch.compile is applied inside decode-graph capture only: without that it silently does nothing."""
    if not facts.get("enable_torch_compile") or ready_at is None or any(each.kind == "torch-compile-off" for each in found):
        return []
    # a log whose beginning is missing proves nothing
    if not phases or "weights" not in reader.first or "decode" in reader.first:
        return []
    detail = "torch.compile was asked for, but no decode graph was captured, so nothing was compiled"
    return [
        Finding(
            "torch-compile-off",
            "fail",
            "server log",
            detail,
            "do not switch decode graphs off together with --enable-torch-compile",
        )
    ]


def _settled(findings: list[Finding], reader: _Reader, facts: dict[str, Any]) -> list[Finding]:
    """A graph that was captured after all is not off; on the CPU engine the line about graphs only says that there is no CUDA."""
    if "decode" in reader.first:
        return [each for each in findings if each.kind != "decode-graphs-off"]
    if facts.get("device") == "cpu":
        return [msgspec.structs.replace(each, severity="info") if each.kind == "decode-graphs-off" else each for each in findings]
    return findings
