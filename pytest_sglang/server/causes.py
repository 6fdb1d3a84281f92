"""Why a start failed, from its log: the first traceback is the cause, what follows is fallout."""

from __future__ import annotations

import re

from pytest_sglang.record.values import Value
from pytest_sglang.server import redact
from pytest_sglang.server.log import LogLine
from pytest_sglang.server.versions import Sign

_TRACEBACK = "Traceback (most recent call last)"
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Warning|Failure|Timeout|Expired|Iteration)\b.*"
)


class Failure(Value, frozen=True):
    """Why a start failed: ``kind`` as in the table of failures, ``cause`` in one line, ``traceback`` the first one in the log."""

    kind: str
    cause: str
    traceback: str = ""
    at: float | None = None


def failure(lines: list[LogLine], signs: list[tuple[int, Sign, str, float | None]]) -> Failure | None:
    """The cause of a death: the first traceback (what follows is fallout), told by its exception line."""
    reported = next((index for index, sign, _, _ in signs if sign.kind == "exception"), None)
    plain = next((index for index, line in enumerate(lines) if _TRACEBACK in line.text and not _is_harmless(lines, index)), None)
    kinds = [each for each in signs if each[1].kind != "exception"]
    begin = reported if reported is not None else plain
    earliest = kinds[0] if kinds else None
    if begin is not None and (earliest is None or earliest[1].kind != "port-taken" or earliest[0] > begin):
        block = _traceback(lines, begin)
        cause = _exception(block) or redact.text(lines[begin].text.strip())[:300]
        sign = next((each for _, each, text, _ in kinds if text.strip() in "\n".join(block)), None)
        return Failure(sign.kind if sign else "exception", cause, "\n".join(block), _time_at(lines, begin))
    if earliest is not None:
        _, sign, text, now = earliest
        return Failure(sign.kind, redact.text(text.strip())[:300], "", now)
    return None


def _is_harmless(lines: list[LogLine], index: int) -> bool:
    """torch prints tracebacks with warnings (a cache entry that cannot be loaded) and goes on."""
    before = " ".join(line.text for line in lines[max(0, index - 3) : index + 1])
    return "fx graph cache unable" in before or "Ignore import error" in before or before.lstrip().startswith("W0")


def _traceback(lines: list[LogLine], begin: int) -> list[str]:
    """The traceback from line ``begin`` on, to the next stamped line behind its exception (at most 120 lines), secrets redacted.

    Other ranks may write into it: their stamped lines are left out while the exception line has not come, unless a traceback of
    their own begins.
    """
    head = lines[begin].text
    block = [head[head.find(_TRACEBACK) :] if _TRACEBACK in head else head]
    torn = False
    for line in lines[begin + 1 : begin + 120]:
        if line.time is None:
            # behind another rank's line only what is part of a traceback for sure
            if not torn or line.text.startswith((" ", "\t")) or _EXCEPTION.match(line.text):
                block.append(line.text)
            continue
        if _TRACEBACK in line.text or _exception(block) is not None:
            break
        torn = True
    return [redact.text(line) for line in block]


def _exception(block: list[str]) -> str | None:
    """The exception line of the block's first traceback, with the lines of its message that follow it."""
    for index, line in enumerate(block):
        if index and not line.startswith((" ", "\t")) and (_EXCEPTION.match(line) or re.match(r"^[\w.]+: ", line)):
            return line.strip()[:300]
    return None


def _time_at(lines: list[LogLine], index: int) -> float | None:
    return next((line.time for line in reversed(lines[: index + 1]) if line.time is not None), None)
