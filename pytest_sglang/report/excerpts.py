"""The excerpts of logs that lie beside run.json, for the page: each folded, whatever its file holds now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Value

LIMIT_BYTES = 96 * 1024
TOTAL_BYTES = 1024 * 1024
"""A file that somebody made larger is shown in part: the page stays small."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_FILE = re.compile(r"logs/[A-Za-z0-9._-]+\.log")


class Log(Value, frozen=True, kw_only=True):
    """One excerpt. ``anchor``: its id on the page; ``text`` empty where there is none, then ``why`` tells the reason."""

    anchor: str
    title: str
    source: str
    count: str
    text: str = ""
    why: str = ""
    checks: tuple[str, ...] = ()


def read(run: Run, folder: Path | None) -> list[Log]:
    """The run's excerpts from ``folder``; never fails, whatever lies there."""
    room = TOTAL_BYTES
    found = []
    for number, item in enumerate(run.logs, 1):
        text, why = "", str(item.get("why") or "")
        if not why:
            text, why = _text(item, folder, min(LIMIT_BYTES, room))
        room -= len(text.encode())
        found.append(
            Log(
                anchor=f"sg-log-{number}",
                title=str(item.get("title") or "Log"),
                source=str(item.get("source") or ""),
                count=_count(item),
                text=text,
                why=why,
                checks=tuple(str(each) for each in item.get("checks") or ()),
            )
        )
    return found


def _text(item: dict[str, Any], folder: Path | None, limit: int) -> tuple[str, str]:
    name = str(item.get("file") or "")
    if folder is None:
        return "", f"it lies in the run's folder: {name}"
    if _FILE.fullmatch(name) is None:
        return "", "the record names no file of this run"
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            return "", f"{name} is not in the run's folder any more"
        with path.open("rb") as file:
            data = file.read(max(limit, 0) + 1)
    except OSError as error:
        return "", f"{name}: {error.strerror or error}"
    text = data[: max(limit, 0)].decode("utf-8", errors="replace")
    cut = "\n[… cut here, see the file …]\n" if len(data) > limit else ""
    return _CONTROL.sub("\ufffd", text) + cut, ""


def _count(item: dict[str, Any]) -> str:
    lines, shown = item.get("lines"), item.get("shown")
    if not isinstance(lines, int) or not isinstance(shown, int):
        return ""
    return f"{lines:,} line{'' if lines == 1 else 's'}" if shown >= lines else f"{shown:,} of {lines:,} lines"


def link_for(check_id: str, cause: str, logs: list[Log]) -> Log | None:
    """Where a failing check's cause can be read: the excerpt of its own start, else the one that holds a line its cause quotes."""
    own = [each for each in logs if check_id in each.checks and each.text]
    if own:
        return own[-1]
    words = _quoted(cause)
    if not words:
        return None
    return next((each for each in reversed(logs) if any(part in each.text for part in words)), None)


def _quoted(cause: str) -> list[str]:
    """Parts of a cause that are long enough to be a line of a log, not a sentence about one."""
    parts = re.split(r"; |: |\(|\)|, ", cause)
    return sorted((each.strip() for each in (cause, *parts) if len(each.strip()) >= 24), key=len, reverse=True)
