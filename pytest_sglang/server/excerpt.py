"""A long log in few lines: its beginning, what matters in the middle, its end; secrets and what requests hold left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pytest_sglang.record.values import Value
from pytest_sglang.server import log as logs
from pytest_sglang.server import redact, versions
from pytest_sglang.server.log import LogLine

LIMIT_BYTES = 64 * 1024
LONGEST = 1200
"""Characters of a line; SGLang's echo of its arguments has nine thousand, all of which are recorded elsewhere."""
HEAD, TAIL = 30, 25
"""Lines of the beginning and the end that are always kept, as far as they fit."""
ALIKE = 3
"""Lines that differ in their numbers only are kept so many times."""
SLICE_BYTES = 4 * 1024 * 1024
"""Of a longer log of one start its first quarter of this and its last three are looked at."""

_LOUD = re.compile(
    r"\b(?:WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b|Warning:|Traceback|[Ee]xception|\b[A-Z]\w*Error\b|out of memory|\bOOM\b|\bfailed\b|\bFailed\b"
    r"|\bkilled\b|SIG(?:TERM|QUIT|KILL|ABRT|SEGV)|Fatal Python|Segmentation|core dumped|\btimed? ?out\b"
)
_TRAFFIC = re.compile(r"^(?:INFO:\s+\S+ - \"[A-Z]+ \S+ HTTP/[\d.]+\" [1-4]\d\d|(?:Decode|Prefill) batch)")
# request_logger.py of sglang 0.5.23, log_requests: text and JSON
_REQUEST = re.compile(r"\b(?:Receive|Finish): obj=|\"event\": ?\"request\.")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")
_BAR = re.compile(r"^\s*[^|\[]{0,80}?\d+%.{0,40}\|")
_ECHO = "] server_args="


class Excerpt(Value, frozen=True, kw_only=True):
    """``text`` holds ``shown`` of ``lines`` lines, with a line of its own wherever some were left out."""

    text: str
    lines: int
    shown: int
    first_s: float | None = None
    """Time of the first line that has one, epoch seconds."""
    begins: bool = True
    """Whether a start begins in it: SGLang echoes its arguments first."""


def sections(text: str, since_s: float) -> list[list[LogLine]]:
    """The starts of a log from ``since_s`` (epoch) on, and the newest one before; a log without any is one section, its end.

    Only what is needed is taken apart, so that 64 MiB of a server that has served for weeks cost no minute.
    """
    echoes = _positions(text)
    if not echoes:
        lines = logs.split(text[-SLICE_BYTES:])
        return [lines] if lines else []
    found: list[list[LogLine]] = []
    for number in range(len(echoes) - 1, -1, -1):
        begin = max(echoes[number - 1] + len(_ECHO) if number else 0, echoes[number] - 20_000)
        end = text.find("\n", echoes[number + 1]) + 1 or len(text) if number + 1 < len(echoes) else len(text)
        starts = logs.starts(logs.split(_slice(text, begin, end)))
        if not starts:
            continue
        found.insert(0, starts[0])
        first = next((line.time for line in starts[0] if line.time is not None), None)
        if first is not None and first < since_s:
            break
    return found


def _positions(text: str) -> list[int]:
    found, place = [], text.find(_ECHO)
    while place >= 0:
        found.append(place)
        place = text.find(_ECHO, place + 1)
    return found


def _slice(text: str, begin: int, end: int) -> str:
    if end - begin <= SLICE_BYTES:
        return text[begin:end]
    head = text.rfind("\n", begin, begin + SLICE_BYTES // 4) + 1 or begin + SLICE_BYTES // 4
    tail = text.find("\n", end - 3 * SLICE_BYTES // 4, end) + 1 or end - 3 * SLICE_BYTES // 4
    return f"{text[begin:head]}\n[… {(tail - head) / 1e6:.0f} MB of this log were not looked at …]\n{text[tail:end]}"


def make(lines: Sequence[LogLine], *, limit: int = LIMIT_BYTES, hide: Callable[[str], str] = str) -> Excerpt:
    """At most ``limit`` bytes of ``lines``. ``hide`` takes out secrets that are known by their value."""
    told = _without_bars(lines)
    kept: dict[int, str] = {}
    room = limit - 1024
    ends = [*range(min(HEAD, len(told))), *range(len(told) - 1, max(HEAD, len(told) - TAIL) - 1, -1)]
    for part, share in ((ends, 2 * limit // 5), (_outside_in(_interesting(told)), room)):
        for place in part:
            if place in kept or min(room, share) < 64:
                continue
            text = _clean(told[place], hide)
            cost = len(text.encode()) + 32
            if cost <= min(room, share):
                kept[place] = text
                room, share = room - cost, share - cost
    first = next((line.time for line in told if line.time is not None), None)
    begins = any(line.text.startswith("server_args=") for line in told[:300])
    return Excerpt(text=_joined(kept, len(told)), lines=len(lines), shown=len(kept), first_s=first, begins=begins)


def _without_bars(lines: Sequence[LogLine]) -> list[LogLine]:
    """A progress bar by its last state only."""
    return [
        line
        for place, line in enumerate(lines)
        if not (_BAR.match(line.raw) and place + 1 < len(lines) and _BAR.match(lines[place + 1].raw))
    ]


def _clean(line: LogLine, hide: Callable[[str], str]) -> str:
    """A line without secrets and control characters, cut where it is too long."""
    if _REQUEST.search(line.text):
        stamp = line.raw[: len(line.raw) - len(line.text)]
        return harmless(f"{stamp}{line.text[:8].partition(':')[0]}: (what a request holds is left out)")
    whole = hide(redact.text(line.raw[: 16 * LONGEST])).rstrip()
    cut = f"{whole[:LONGEST]} … ({len(line.raw) - LONGEST:,} more characters)" if len(whole) > LONGEST else whole
    return harmless(cut)


# C0 but the tabulator, DEL, C1; what turns the direction of writing or is seen by nobody; halves of surrogates
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def harmless(text: str) -> str:
    """``text`` with every character that a page or a terminal might obey shown as U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def _interesting(lines: Sequence[LogLine]) -> list[int]:
    """Places of stages, degradations, failures, warnings and tracebacks; of lines that are alike the first few."""
    found: list[int] = []
    seen: dict[str, int] = {}
    trace = 0
    for place, line in enumerate(lines):
        if line.time is None and trace > 0:
            trace -= 1
            found.append(place)
            continue
        trace = 0
        if not _matters(line.text[:2000]):
            continue
        shape = _NUMBER.sub("#", f"{line.ranks} {line.text[:200]}")
        seen[shape] = seen.get(shape, 0) + 1
        if seen[shape] <= ALIKE:
            found.append(place)
            trace = 60 if "Traceback" in line.text or "xception" in line.text else 0
    return found


def _matters(text: str) -> bool:
    if _TRAFFIC.match(text):
        return False
    if (
        "AUTOTUNE" in text
        or text.startswith("[… ")
        or _LOUD.search(text)
        or versions.any_sign().search(text)
        or versions.ENDING.search(text)
    ):
        return True
    return any(pattern.search(text) for _, pattern in versions.compiled(None))


def _outside_in(places: Sequence[int]) -> list[int]:
    """First, last, second, last but one, ...: what is left out, where not all fits, lies in the middle."""
    forth, back = iter(places), iter(reversed(places))
    return [next(forth) if turn % 2 == 0 else next(back) for turn in range(len(places))]


def _joined(kept: Mapping[int, str], count: int) -> str:
    out: list[str] = []
    done = 0
    for place in (*sorted(kept), count):
        if place > done:
            out.append(f"[… {place - done:,} line{'s' if place - done > 1 else ''} left out …]")
        if place < count:
            out.append(kept[place])
        done = place + 1
    return "".join(f"{line}\n" for line in out)
