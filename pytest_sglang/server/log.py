"""Where a server's log comes from, and its lines. It may hold many starts, rotate, be cut, interleave ranks and progress bars."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pytest_sglang.record.values import Value
from pytest_sglang.server import rotated

LIMIT_BYTES = 64 * 1024 * 1024
"""A log is read from its last 64 MiB at most."""

# a progress bar may stand before the stamp on the same physical line: search, never match
_STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d{3}))?((?: [A-Z_]+\d+)*)\] ")
_ECHO = "server_args="
_HEAD = 256
# what a collector puts before each line: journalctl's short forms, docker compose, docker logs --timestamps, kubectl logs --prefix
_COLLECTED = re.compile(
    r"^(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \S+ [^\s:]+\[\d+\]: |\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S* \S+ [^\s:]+\[\d+\]: "
    r"|[\w.-]+ +\| |\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(?:Z|[+-]\d\d:\d\d) |\[pod/[^\]]+\] )",
    re.MULTILINE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_WARNING = re.compile(r"\.py:\d+: \w*Warning|^\s|^$")
# what a server prints while it serves or ends: never part of the next start's beginning
_SERVING = re.compile(
    r"INFO: |(Prefill|Decode) batch|kill_process_tree|Gracefully exiting|SIGTERM received|[Rr]eceived sigquit"
    r"|SIGQUIT received|Health check|hit an exception|The server is fired up"
)


class LogLine(Value, frozen=True):
    """One line. ``time`` is epoch seconds (local time zone, whole seconds unless SGLANG_LOG_MS=1), None without a stamp.

    ``ranks`` are the rank words inside the bracket ("TP3", "DP0 TP3"), "" for the main process or a single rank.
    """

    time: float | None
    ranks: str
    text: str
    raw: str


class LogSource(Protocol):
    """A log that can be read whole and followed."""

    def read(self) -> str:
        """The text so far, at most the last 64 MiB; "" where it cannot be read (then ``why`` tells the reason)."""

    def tail_from(self, position: object | None) -> tuple[str, object]:
        """The text behind ``position`` and the new position; None = from the beginning. Survives rotation and truncation."""

    def end(self) -> object:
        """The position behind everything that is there now."""

    def describe(self) -> str:
        """What it is, for a person: a path, or the journal of a unit."""

    @property
    def why(self) -> str | None:
        """Why the last read gave nothing, None when it could be read."""


class TextLog:
    """A log that is there already: standard input, a test."""

    def __init__(self, text: str, *, name: str = "text", why: str | None = None) -> None:
        self._text, self._name, self.why = text, name, why

    def read(self) -> str:
        return self._text

    def tail_from(self, position: object | None) -> tuple[str, object]:
        return self._text[position if isinstance(position, int) else 0 :], len(self._text)

    def end(self) -> object:
        return len(self._text)

    def describe(self) -> str:
        return self._name


class _FilePosition(Value, frozen=True):
    device: int
    inode: int
    offset: int
    head: bytes = b""
    """The first bytes: a file that was truncated and has grown beyond the offset since begins otherwise."""


class FileLog:
    """A log file that may hold many starts and be rotated (by rename or by truncation) while it is followed.

    Where the file itself holds the beginning of no start, what was rotated away is read too, back to the last beginning.
    """

    BEGIN: object = _FilePosition(0, 0, 0)
    """The position before the file's own first line, without what was rotated away."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.why: str | None = None

    def describe(self) -> str:
        return str(self.path)

    def read(self) -> str:
        return self.tail_from(None)[0]

    def end(self) -> object:
        try:
            status = self.path.stat()
        except OSError:
            return self.BEGIN  # not there yet: all of it will be new
        return _FilePosition(status.st_dev, status.st_ino, status.st_size, self._head())

    def tail_from(self, position: object | None) -> tuple[str, object]:
        self.why = None
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self.why = f"{self.path} does not exist"
            return "", position
        except OSError as error:
            self.why = f"{self.path}: {error.strerror or error}"
            return "", position
        before, offset = "", 0
        if isinstance(position, _FilePosition):
            if (position.device, position.inode) != (status.st_dev, status.st_ino):
                before = self._rest_of_rotated(position)
            elif status.st_size >= position.offset and self._head(len(position.head)) == position.head:
                offset = position.offset
            # else: truncated in place, so everything in it is new
        text, end = self._from(self.path, offset)
        if position is None and self.why is None:
            before = rotated.before(self.path, text, holds_a_start, LIMIT_BYTES)
        return before + text, _FilePosition(status.st_dev, status.st_ino, end, self._head())

    def _head(self, length: int = _HEAD) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(length)
        except OSError:
            return b""

    def _rest_of_rotated(self, position: _FilePosition) -> str:
        for sibling in self.path.parent.glob(f"{self.path.name}*"):
            try:
                status = sibling.stat()
            except OSError:
                continue
            if (status.st_dev, status.st_ino) == (position.device, position.inode):
                return self._from(sibling, position.offset)[0]
        return ""

    def _from(self, path: Path, offset: int) -> tuple[str, int]:
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                start = max(offset, size - LIMIT_BYTES)
                file.seek(start)
                data = file.read(LIMIT_BYTES)
        except OSError as error:
            self.why = f"{path}: {error.strerror or error}"
            return "", offset
        whole = _whole_characters(data)
        # a writer that does not append leaves a hole of zeros where its file was truncated
        return data[:whole].replace(b"\0", b"").decode("utf-8", errors="replace"), start + whole


def _whole_characters(data: bytes) -> int:
    """Length of ``data`` without a UTF-8 character that is cut at its end (the writer may be in the middle of a progress bar)."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if need > back else len(data)
    return len(data)


@lru_cache(maxsize=4096)
def _epoch(stamp: str) -> float | None:
    # SGLang stamps in local time without a zone
    try:
        return time.mktime(
            (int(stamp[:4]), int(stamp[5:7]), int(stamp[8:10]), int(stamp[11:13]), int(stamp[14:16]), int(stamp[17:19]), 0, 0, -1)
        )
    except (ValueError, OverflowError):
        return None


def split(text: str) -> list[LogLine]:
    r"""The lines of a log, split at ``\r``, ``\n`` and before each stamp (ranks write into each other's lines); empty ones are left out.

    Colours, and what a collector put before the lines (journalctl, docker compose, kubectl), are left out too.
    """
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    lines: list[LogLine] = []
    for raw in re.split(r"[\r\n]+", _uncollected(text)):
        stamps = list(_STAMP.finditer(raw))
        head = raw[: stamps[0].start()] if stamps else raw
        if head.strip():
            lines.append(LogLine(None, "", head, head))
        ends = [each.start() for each in stamps[1:]] + [len(raw)]
        for match, end in zip(stamps, ends, strict=False):
            moment = _epoch(match[1])
            if moment is not None and match[2]:
                moment += int(match[2]) / 1000
            lines.append(LogLine(moment, match[3].strip(), raw[match.end() : end], raw[match.start() : end]))
    return lines


def _uncollected(text: str) -> str:
    """``text`` without a collector's prefixes, where its lines have them."""
    begin = text[:100_000].splitlines()
    if begin and sum(_COLLECTED.match(line) is not None for line in begin) * 2 > len(begin):
        return _COLLECTED.sub("", text)
    return text


def holds_a_start(text: str) -> bool:
    """Whether a start begins in ``text``: SGLang echoes its arguments first."""
    return f"] {_ECHO}" in text


def starts(lines: list[LogLine]) -> list[list[LogLine]]:
    """The starts in a log, oldest first: each from its argument echo (or the warnings right before it) to the next one.

    Lines before the first echo belong to no start; a log without any echo is one start.
    """
    echoes = [index for index, line in enumerate(lines) if line.time is not None and line.text.startswith(_ECHO)]
    if not echoes:
        return [lines] if lines else []
    begins = [_begin(lines, echo, floor=(echoes[number - 1] + 1 if number else 0)) for number, echo in enumerate(echoes)]
    return [lines[begin:end] for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True)]


def _begin(lines: list[LogLine], echo: int, *, floor: int) -> int:
    """Where the start of this echo begins: back over warnings, and over lines of the last minute that no serving server prints."""
    moment = lines[echo].time or 0.0
    index = begin = echo
    while index > max(floor, echo - 200):
        index -= 1
        line = lines[index]
        if line.time is None:
            if not _WARNING.search(line.text):
                break
        elif _SERVING.search(line.text) or moment - line.time > 60:
            break
        begin = index
    return begin
