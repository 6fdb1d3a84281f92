"""Logs that are not files: the journal of a unit, the log of a container, a pipe."""

from __future__ import annotations

import codecs
import json
import os
import re
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pytest_sglang.server import control
from pytest_sglang.server.log import LIMIT_BYTES

# systemd's catalogue: "A start job for unit has begun execution", "... has finished successfully"
_STARTING, _STARTED = "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf"
_ENGINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")
_OWN = re.compile(r"\[(\d{4}-[01]\d-[0-3]\d [0-2]\d:[0-5]\d:[0-5]\d)")
LINES = 200_000
"""How many entries are read at most."""


class JournalLog:
    """A unit's journal by journalctl's JSON, which keeps lines with control characters (progress bars) whole."""

    def __init__(self, unit: str, journalctl: Sequence[str] = ("journalctl", "--no-pager"), *, user: bool = False) -> None:
        self._unit, self._journalctl = unit, list(journalctl)
        # not --user: while the journal is volatile, users' entries stand in the system's (journald.conf(5), SplitMode=)
        self._of = ["--user-unit" if user else "-u", unit]
        self.why: str | None = None

    def describe(self) -> str:
        return f"journal of {self._unit}"

    def read(self) -> str:
        return self.tail_from(None)[0]

    def end(self) -> object:
        return self._entries("-n", "1")[1] or ""

    def tail_from(self, position: object | None) -> tuple[str, object]:
        after = ["--after-cursor", position] if position and isinstance(position, str) else ["-n", str(LINES)]
        lines, cursor = self._entries(*after)
        return "".join(f"{line}\n" for line in lines), cursor or position

    def _entries(self, *arguments: str) -> tuple[list[str], str | None]:
        ran = control.run([*self._journalctl, *self._of, "-o", "json", "--all", *arguments], timeout_s=60.0)
        if ran.code != 0:
            self.why = f"journal of {self._unit}: {ran.err or f'journalctl ended with {ran.code}'}"
            return [], None
        entries = [entry for line in ran.out.splitlines() if (entry := _entry(line)) is not None]
        cursor = str(entries[-1].get("__CURSOR")) if entries else None
        # what systemd itself says of the unit (Started ..., Main process exited ...) is no line of the server
        lines = [_message(entry) for entry in entries if entry.get("_PID") != "1" and entry.get("SYSLOG_IDENTIFIER") != "systemd"]
        self.why = None if entries else f"journal of {self._unit}: no entries (are you in the group systemd-journal?)"
        return lines, cursor

    def launches(self) -> list[float]:
        """When systemd launched the unit, oldest first (epoch seconds); a unit that tells readiness counts from its "Starting"."""
        ran = control.run([*self._journalctl, "-u", self._unit, "-o", "json", "-n", str(LINES), "_PID=1"], timeout_s=60.0)
        found: list[float] = []
        starting = False
        for entry in (each for line in ran.out.splitlines() if ran.code == 0 and (each := _entry(line)) is not None):
            kind, moment = entry.get("MESSAGE_ID"), entry.get("__REALTIME_TIMESTAMP")
            if kind not in (_STARTING, _STARTED) or not str(moment).isdigit():
                continue
            if kind == _STARTING or not starting:
                found.append(int(str(moment)) / 1e6)
            starting = kind == _STARTING
        return found


class StreamLog:
    """A pipe, read by a thread of its own: all of it at once by ``read``, or as it comes by ``tail_from``."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._text, self._dropped = "", 0
        self._lock = threading.Lock()
        self.why: str | None = None
        self.ended = threading.Event()
        """Set when whoever wrote into the pipe has closed it."""
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while data := os.read(self._descriptor, 1 << 16):
                with self._lock:
                    self._text += decoder.decode(data)
                    over = len(self._text) - 2 * LIMIT_BYTES
                    if over > 0:
                        self._text, self._dropped = self._text[LIMIT_BYTES + over :], self._dropped + LIMIT_BYTES + over
        except OSError as error:
            self.why = f"{self._name}: {error.strerror or error}"
        self.ended.set()

    def read(self) -> str:
        """All of it: waits for its end."""
        self.ended.wait()
        return self._text

    def tail_from(self, position: object | None) -> tuple[str, object]:
        with self._lock:
            begin = position if isinstance(position, int) else 0
            return self._text[max(0, begin - self._dropped) :], self._dropped + len(self._text)

    def end(self) -> object:
        with self._lock:
            return self._dropped + len(self._text)

    def describe(self) -> str:
        return self._name


def _entry(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _message(entry: dict[str, Any]) -> str:
    """MESSAGE is text, or a list of byte values where it holds control characters, or a list of texts."""
    message = entry.get("MESSAGE")
    if isinstance(message, list) and all(isinstance(each, int) for each in message):
        return bytes(each & 0xFF for each in message).decode("utf-8", errors="replace")
    if isinstance(message, list):
        return "\n".join(str(each) for each in message)
    return "" if message is None else str(message)


class ContainerLog:
    """A container's log by its CLI; followed by the time stamps that the engine gives every line."""

    def __init__(self, name: str, cli: Sequence[str]) -> None:
        self._name, self._cli = name, list(cli)
        self.why: str | None = None

    def describe(self) -> str:
        return f"{self._cli[0]} logs {self._name}"

    def read(self) -> str:
        return self.tail_from(None)[0]

    def end(self) -> object:
        lines = self._lines("--tail", "1")
        return lines[-1][0] if lines else ""

    def tail_from(self, position: object | None) -> tuple[str, object]:
        after = ["--since", position] if position and isinstance(position, str) else ["--tail", str(LINES)]
        # --since includes the line of that very moment
        lines = [(stamp, text) for stamp, text in self._lines(*after) if stamp != position]
        return "".join(f"{text}\n" for _, text in lines), lines[-1][0] if lines else position

    def _lines(self, *arguments: str) -> list[tuple[str, str]]:
        ran = control.run([*self._cli, "logs", "--timestamps", *arguments, self._name], timeout_s=60.0)
        if ran.code != 0:
            self.why = f"{self.describe()}: {ran.err or f'ended with {ran.code}'}"
            return []
        self.why = None
        # the engine keeps standard output and standard error apart: order both by their stamps
        stamped = [line.partition(" ") for line in (ran.out + ("\n" if ran.out else "") + ran.err).splitlines() if line]
        return [(stamp, in_our_time(stamp, text)) for stamp, _, text in sorted(stamped, key=lambda each: each[0])]


def in_our_time(stamp: str, text: str) -> str:
    """A container's line with SGLang's stamps in this machine's time zone: a container mostly lives in UTC, and SGLang writes no zone.

    ``stamp`` is the engine's, with its zone. Zones differ by quarters of an hour; what is left is how late the line was written.
    """
    engine, own = _ENGINE.match(stamp), _OWN.search(text)
    if engine is None or own is None:
        return text
    here = datetime.fromisoformat(f"{engine[1]}{engine[2].replace('Z', '+00:00')}").astimezone().replace(tzinfo=None)
    try:
        told = datetime.fromisoformat(own[1])
    except ValueError:
        return text  # a torn line, or no stamp at all
    quarters = round((here - told).total_seconds() / 900.0)
    if not quarters:
        return text
    return text.replace(f"[{own[1]}", f"[{told + timedelta(minutes=15 * quarters)}")
