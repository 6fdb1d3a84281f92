"""The line that moves while something long goes on: on a terminal one that never wraps, in a CI log a plain line every 30 s, or nothing."""

from __future__ import annotations

import os
import time
import unicodedata
from typing import Any, TextIO

from pytest_sglang.record import units

EVERY_S = 30.0
"""Plain lines come at most so often."""
_REDRAW_S = 0.1
_CUT = "…"
_PLAIN = 300
_ERASE = "\r\x1b[2K"


def text(progress: Any, expected_s: float | None = None) -> str:
    """A ``server.start.Progress`` in one line: phase and progress in it, elapsed and expected, last log line."""
    expected = expected_s if expected_s is not None else progress.expected_s
    inside = f" {progress.inside}" if progress.inside else ""
    elapsed = units.duration(progress.elapsed_s) if progress.elapsed_s >= 10 else f"{progress.elapsed_s:.0f} s"
    about = f" of about {units.duration(expected)}" if expected else ""
    parts = [f"{progress.phase or 'starting'}{inside}", f"{elapsed}{about}"]
    if progress.last_line:
        parts.append(progress.last_line)
    return " · ".join(parts)


def fit(line: str, width: int) -> str:
    """``line`` in at most ``width`` terminal cells: nothing that moves the cursor, wide characters counted double."""
    cells = 0
    kept: list[str] = []
    shown = "".join(each if each.isprintable() else " " for each in line)
    for each in shown:
        step = _cells(each)
        if cells + step > width:
            while kept and cells > width - _cells(_CUT):
                cells -= _cells(kept.pop())
            return "".join(kept) + (_CUT if width >= _cells(_CUT) else "")
        kept.append(each)
        cells += step
    return "".join(kept)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    # "ambiguous" characters (the blocks of a bar) are drawn wide by some terminals
    return 2 if unicodedata.east_asian_width(character) in "WFA" else 1


def is_terminal(stream: Any) -> bool:
    """Whether a line can move there."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def width_of(stream: Any) -> int:
    """Cells of a line of this terminal, as it is now; $COLUMNS or 80 where it does not tell."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (AttributeError, OSError, ValueError):
        columns = 0
    if columns <= 0:
        told = os.environ.get("COLUMNS", "")
        columns = int(told) if told.isdigit() and int(told) > 0 else 80
    return columns


class MovingLine:
    """``update(text)`` shows what goes on now, ``update(None)`` clears it. Nothing at all when ``quiet``."""

    def __init__(self, stream: TextIO, *, quiet: bool = False, prefix: str = "") -> None:
        self.stream, self.quiet, self.prefix = stream, quiet, prefix
        self.moves = is_terminal(stream)
        self.drawn = False
        self._last: float | None = None

    def update(self, line: str | None) -> None:
        """Called as often as one likes."""
        if self.quiet:
            return
        if self.moves:
            self._move(line)
        else:
            self._plain(line)

    def _move(self, line: str | None) -> None:
        now = time.monotonic()
        if line is None:
            if self.drawn:
                self.write(self.cleared())
            self.drawn, self._last = False, None
            return
        if self._last is not None and now - self._last < _REDRAW_S:
            return
        self._last = now
        begin = _ERASE if self.drawn else self.opened()
        self.drawn = True
        self.write(begin, self.prefix + line)

    def _plain(self, line: str | None) -> None:
        now = time.monotonic()
        if self._last is None or line is None:
            self._last = now
        if line is not None and now - self._last >= EVERY_S:
            self._last = now
            self.write(self.paragraph(), self.prefix + line, "\n")

    # --- what a place of its own may do otherwise ----------------------------------------------------------------------------

    def opened(self) -> str:
        """Before the line is drawn for the first time."""
        return _ERASE

    def cleared(self) -> str:
        """To leave nothing of it."""
        return _ERASE

    def paragraph(self) -> str:
        """Before a plain line."""
        return ""

    def write(self, begin: str, line: str = "", end: str = "") -> None:
        """Put it there; a moving line is cut to the terminal as wide as it is at this moment."""
        # the last cell of a terminal stays free: some wrap as soon as it is filled
        line = fit(line, width_of(self.stream) - 1 if self.moves else _PLAIN)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write((begin + line + end).encode(encoding, errors="replace").decode(encoding))
        self.stream.flush()
