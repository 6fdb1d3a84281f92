"""Server-sent events out of bytes that are cut anywhere.

Bytes in, payloads out: nothing is decoded here, so that a UTF-8 sequence cut in two is whole again when its event is.
Format: WHATWG HTML, section 9.2.6 "Interpreting an event stream" (lines end in LF, CRLF or CR; ``:`` begins a comment; several
``data`` lines are joined by LF; an event ends at an empty line, and one that never ended is no event).
"""

from __future__ import annotations

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event longer than this is no token stream: it is refused, so that a broken server cannot fill the memory."""

_BOM = b"\xef\xbb\xbf"


class StreamError(ValueError):
    """The bytes are no event stream of tokens; the message says why."""


class EventParser:
    """Collects bytes and gives the payloads of the events that they complete."""

    __slots__ = ("_after_cr", "_begun", "_scan", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._scan = 0
        self._begun = False
        self._after_cr = False

    @property
    def unfinished(self) -> bool:
        """True: bytes of an event lie here whose empty line never came."""
        return bool(self._tail.strip(b"\n"))

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads (joined ``data`` lines) of the events completed by ``data``. Raises StreamError for an endless event, and for
        lines that are no UTF-8 (that of a lone ``data`` line is its reader's to look at).
        """
        if self._after_cr or b"\r" in data:
            data = self._line_feeds(data)
        buffer = self._tail + data if self._tail else data
        if not self._begun:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._tail = buffer
                return []
            self._begun = True
            buffer = buffer.removeprefix(_BOM)
            self._scan = 0
        if buffer.find(b"\n\n", self._scan) < 0:
            self._keep(buffer)
            return []
        blocks = buffer.split(b"\n\n")
        self._keep(blocks.pop())
        found = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                payload = block[6:]
            else:
                payload = _payload(block)
            if payload:
                found.append(payload)
        return found

    def _keep(self, tail: bytes) -> None:
        if len(tail) > MAX_EVENT_BYTES:
            raise StreamError(f"an event of more than {MAX_EVENT_BYTES} bytes: this is no token stream")
        self._tail = tail
        # an event may end across the cut: look again from its last byte on, not from the beginning
        self._scan = max(0, len(tail) - 1)

    def _line_feeds(self, data: bytes) -> bytes:
        """``data`` with CRLF and CR as LF, where a CRLF may be cut between two calls."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payload(block: bytes) -> bytes:
    if not block.isascii():
        # what is no text in a line that nobody needs is damage all the same
        try:
            block.decode()
        except UnicodeDecodeError as error:
            raise StreamError(f"an event that is no UTF-8: {block[:80]!r} ({error.reason})") from None
    lines = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)
