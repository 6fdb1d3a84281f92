"""``pytest-sglang timeline --follow``: a start in progress, read from its log alone, until it is ready or has died."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

from pytest_sglang.record import units
from pytest_sglang.server import log as logs
from pytest_sglang.server.log import LogLine, LogSource
from pytest_sglang.server.phases import Timeline
from pytest_sglang.server.sources import StreamLog
from pytest_sglang.server.start import Progress
from pytest_sglang.session import live
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.timeline import Asked, Reading, Start, is_sglang, judge, read, refuse_foreign

POLL_S = 0.2
QUIET_S = 2.0
"""A failure in the log is final when nothing follows it for so long: its traceback and SGLang's own kill have been written then."""
TRIM = 4 * 1024 * 1024
"""Characters beyond which older starts are forgotten while one is followed."""
_STALE_S = 5.0
# statistics and answers, but for those that tell of readiness
_SERVED = re.compile(
    r"^\[[^\]\n]*\] (?:(?:Decode|Prefill) batch, #|INFO: +\S+ - \"(?!GET /(?:health|ready)))[^\n]*\n", re.MULTILINE
)
_SAME_CLOCK_S = 3600.0


class Follower:
    """Reads what comes, and judges the newest start each time."""

    def __init__(self, origin: LogSource, asked: Asked, show: Callable[[str | None], None]) -> None:
        self._origin, self._asked, self._show = origin, asked, show
        self._text = ""
        self._limit = TRIM
        self._position: object | None = None
        self._changed = self._began = time.monotonic()
        self._index: int | None = None
        """Which of the starts in the text is followed; that of the next one where the last is over."""
        self._parsed: tuple[str, Reading, list[LogLine]] | None = None

    def run(self) -> tuple[Start, Reading]:
        """The start when it is ready or has died, with its log. Raises Refused where a pipe ended before any start, or nothing can be read."""
        while True:
            ended = isinstance(self._origin, StreamLog) and self._origin.ended.is_set()
            self._take()
            done = self._look(ended)
            if done is not None:
                self._show(None)
                return self._in_full(done)
            time.sleep(POLL_S)

    def _take(self) -> None:
        new, self._position = self._origin.tail_from(self._position)
        if not new:
            return
        self._text += new
        self._changed = time.monotonic()
        if len(self._text) > self._limit:
            self._trim()

    def _trim(self) -> None:
        """Forget what a server said while it served, and what is older than the last two starts: it would be parsed with every new line."""
        self._text = _SERVED.sub("", self._text)
        echoes = [match.start() for match in re.finditer(r"^.*\] server_args=", self._text, re.MULTILINE)]
        if len(echoes) > 2:
            self._text = self._text[echoes[-2] :]
            self._index = None if self._index is None else max(0, self._index - (len(echoes) - 2))
        self._limit = max(TRIM, 2 * len(self._text))

    def _reading(self, ended: bool) -> tuple[Reading, list[LogLine]]:
        if self._parsed is None or self._parsed[0] is not self._text or ended:
            lines = logs.split(self._text)
            begun = logs.holds_a_start(self._text) or (ended and is_sglang(lines))
            starts = tuple(tuple(each) for each in logs.starts(lines)) if begun else ()
            launches = getattr(self._origin, "launches", None)
            known = tuple(launches()) if launches is not None and starts else ()
            self._parsed = (self._text, Reading(name=self._origin.describe(), starts=starts, launches=known), lines)
        return self._parsed[1:]

    def _look(self, ended: bool) -> tuple[Start, Reading] | None:
        reading, lines = self._reading(ended)
        if not reading.starts:
            self._nothing(ended, lines)
            return None
        if self._index is None:
            self._index = self._first(reading)
        if self._index >= len(reading.starts):
            if ended:
                return judge(reading, len(reading.starts), self._asked), reading
            self._wait("waiting for the next start: the last one in this log is over")
            return None
        found = judge(reading, self._index + 1, self._asked)
        quiet_s = time.monotonic() - self._changed
        if found.state == "ready" or ended or (found.state == "died" and (quiet_s > QUIET_S or found.number < found.of)):
            return found, reading
        timeline = found.timeline
        last = newest_line(self._text) + (f" ({units.duration(quiet_s)} ago)" if quiet_s > _STALE_S else "")
        self._show(live.text(Progress(timeline.phase, timeline.inside, _elapsed_s(timeline, quiet_s), None, last)))
        return None

    def _in_full(self, done: tuple[Start, Reading]) -> tuple[Start, Reading]:
        """The same start in the whole log, with its number there; a pipe cannot be read twice."""
        found, reading = done
        if isinstance(self._origin, StreamLog):
            return done
        whole = read(self._origin)
        first = _first_stamped(reading.starts[found.number - 1])
        same = [number for number, each in enumerate(whole.starts, 1) if _first_stamped(each) == first]
        return (judge(whole, same[-1], self._asked), whole) if same else done

    def _first(self, reading: Reading) -> int:
        """Index of the start to follow: the last one, or the next where the last one is over and its server is gone."""
        last = judge(reading, len(reading.starts), self._asked)
        over = last.state == "died" or last.timeline.ended_at is not None
        return len(reading.starts) if over else len(reading.starts) - 1

    def _nothing(self, ended: bool, lines: list[LogLine]) -> None:
        if ended:
            refuse_foreign(lines, self._origin.describe())
            raise Refused(f"{self._origin.describe()} ended without a line")
        # a journal may still be empty, a file may be between two names: what is wrong is shown, and waited for
        told = self._origin.why or f"{self._origin.describe()}: no start in it yet"
        if lines and not is_sglang(lines) and time.monotonic() - self._began > _STALE_S:
            told += " (nothing in it looks like SGLang's)"
        self._wait(told)

    def _wait(self, told: str) -> None:
        self._show(f"{told} · {time.monotonic() - self._began:.0f} s")


def _first_stamped(lines: Sequence[LogLine]) -> LogLine | None:
    return next((line for line in lines if line.time is not None), None)


def _elapsed_s(timeline: Timeline, quiet_s: float) -> float:
    """By this machine's clock where the log is of now, else by the log's own stamps."""
    if timeline.launched_at is None or timeline.last_at is None:
        return quiet_s
    now = time.time()
    end = now if 0.0 <= now - timeline.last_at < _SAME_CLOCK_S else timeline.last_at + quiet_s
    return max(0.0, end - timeline.launched_at)


def newest_line(text: str) -> str:
    """The newest line of ``text`` without its stamp, secrets redacted."""
    from pytest_sglang.server import redact

    whole = text.rstrip("\r\n")
    begin = max(whole.rfind("\n"), whole.rfind("\r")) + 1
    tail = logs.split(redact.text(whole[begin:]))
    return tail[-1].text.strip()[:160] if tail else ""
