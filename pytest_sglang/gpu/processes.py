"""Who works on which card: a server's processes to its GPUs, and everybody else's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.readings import Missing, Reading
from pytest_sglang.judge.placement import Foreign

HIDDEN = "the driver lists none of the server's processes (a container hides process ids)"


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
                name = card.process_name(each.pid)
                found.append(
                    Foreign(uuid=card.uuid, index=card.index, pid=each.pid, name=name, used_bytes=each.used_bytes, kind=each.kind)
                )
    return tuple(found)
