"""Who works on which card: a server's processes to its GPUs, and everybody else's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.readings import Missing, Reading
from pytest_sglang.record.values import Finding, Value

HIDDEN = "the driver lists none of the server's processes (a container hides process ids)"


class Foreign(Value, frozen=True, kw_only=True):
    """A process on a card that is not the server's. ``kind`` graphics: a display server, information and no fault."""

    uuid: str
    index: int
    pid: int
    name: str
    used_bytes: int | None
    kind: Literal["compute", "graphics"]


def gpus_of(cards: Sequence[Card], pids: Iterable[int]) -> Reading[tuple[Card, ...]]:
    """Cards on which these processes hold a context, in NVML's order; Missing where none is shown. Raises GpuLost."""
    wanted = set(pids)
    found: list[Card] = []
    unread: Missing | None = None
    for card in cards:
        listed = card.processes()
        if isinstance(listed, Missing):
            unread = listed
        elif any(each.pid in wanted for each in listed):
            found.append(card)
    if not found:
        return unread or Missing(HIDDEN)
    return tuple(found)


def foreign(cards: Sequence[Card], pids: Iterable[int]) -> tuple[Foreign, ...]:
    """Processes on these cards that are none of ``pids``; a card whose list cannot be read has none to show. Raises GpuLost."""
    ours = set(pids)
    found = []
    for card in cards:
        listed = card.processes()
        for each in [] if isinstance(listed, Missing) else listed:
            if each.pid not in ours:
                name = process_name(each.pid)
                found.append(
                    Foreign(uuid=card.uuid, index=card.index, pid=each.pid, name=name, used_bytes=each.used_bytes, kind=each.kind)
                )
    return tuple(found)


def findings(strangers: Iterable[Foreign]) -> tuple[Finding, ...]:
    """One finding a stranger: a compute process on a serving card is a warning, a display server information."""
    told = []
    for each in strangers:
        memory = "" if each.used_bytes is None else f", {each.used_bytes / 2**20:.0f} MiB"
        detail = f"process {each.pid} ({each.name}{memory}) is not the server's"
        if each.kind == "graphics":
            told.append(Finding("foreign-process", "info", f"GPU {each.index}", detail))
        else:
            told.append(
                Finding(
                    "foreign-process", "warn", f"GPU {each.index}", detail, "end it before measuring, or move it to another card"
                )
            )
    return tuple(told)


def process_name(pid: int) -> str:
    """Name of a process, from /proc; "unknown" for one of another process-id namespace or one that is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() or "unknown"
    except OSError:
        return "unknown"
