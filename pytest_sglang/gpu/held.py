"""What a server's processes hold on the cards before it is stopped, and the proof afterwards that they hold nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.readings import Missing
from pytest_sglang.record.values import Value

SLACK_B = 512 * 2**20
"""Bytes by which a card may differ from its level before: the driver's own reserve moves by less when a context comes or goes."""


EMPTY_B = 2**30
"""A card with no more bytes in use holds nothing of a server: the driver's own reserve is up to 0.6 GiB (seen on an H200)."""


class OnCard(Value, frozen=True, kw_only=True):
    """Memory of one card in bytes. ``ours`` by pid, None = the driver does not say how much; ``others`` of everybody else.

    ``listed``: the driver tells its processes at all.
    """

    uuid: str
    index: int
    used: int | None
    ours: dict[int, int | None]
    others: int
    listed: bool = True
    unreadable: str = ""


def on_card(card: Card, pids: frozenset[int]) -> OnCard:
    """One card now. Raises GpuLost."""
    used, listed = card.memory_used_bytes(), card.processes()
    why = "; ".join(each.reason for each in (used, listed) if isinstance(each, Missing))
    shown = [] if isinstance(listed, Missing) else listed
    return OnCard(
        uuid=card.uuid,
        index=card.index,
        used=None if isinstance(used, Missing) else used,
        ours={each.pid: each.used_bytes for each in shown if each.pid in pids},
        others=sum(each.used_bytes or 0 for each in shown if each.pid not in pids),
        listed=not isinstance(listed, Missing),
        unreadable=why,
    )


class Held:
    """The cards as they stand just before a stop. ``levels``: bytes in use on each card (by UUID) while no server ran, if known."""

    def __init__(self, cards: Sequence[Card], pids: Iterable[int], levels: Mapping[str, int] | None = None) -> None:
        self._cards, self.pids = tuple(cards), frozenset(pids)
        self._levels = dict(levels or {})
        self._before = {card.uuid: on_card(card, self.pids) for card in self._cards}

    def left(self, *, sure: bool = False) -> list[str]:
        """What is still held now, one phrase a process or card; [] = nothing that can be seen. Raises GpuLost.

        ``sure``: without cards whose processes the driver has hidden all along: more memory there may be somebody else's.
        """
        now = [on_card(card, self.pids) for card in self._cards]
        held: dict[tuple[int, int | None], list[int]] = {}
        names: dict[int, str] = {}
        for card, each in zip(self._cards, now, strict=True):
            for pid, used in each.ours.items():
                held.setdefault((pid, used), []).append(each.index)
                names[pid] = names.get(pid) or card.process_name(pid)
        told = [
            f"pid {pid} ({names[pid]}) holds {'memory' if used is None else _gib(used)}{' each' if len(on) > 1 else ''} "
            f"on GPU {', '.join(map(str, on))}"
            for (pid, used), on in held.items()
        ]
        return [*told, *(phrase for each in now if not sure or self._before[each.uuid].ours for phrase in self._nobody_s(each))]

    def _nobody_s(self, now: OnCard) -> list[str]:
        if now.ours:
            return []
        allowed = self._allowed(now)
        if allowed is None or now.used is None or now.used - now.others <= allowed + SLACK_B:
            return []
        over = now.used - now.others - allowed
        return [f"{_gib(over)} of it are still taken on GPU {now.index}, by no process that the driver shows"]

    def _allowed(self, now: OnCard) -> int | None:
        """Bytes in use, those of other processes aside, that are not the server's; None = not known."""
        if now.uuid in self._levels:
            return self._levels[now.uuid]
        before = self._before[now.uuid]
        if before.used is None or not before.ours or any(each is None for each in before.ours.values()):
            return None
        return before.used - before.others - sum(each or 0 for each in before.ours.values())

    def unproved(self) -> list[str]:
        """Cards of which nothing can be claimed now, with the reason: neither its processes nor a level prove it. Raises GpuLost."""
        found = []
        for card in self._cards:
            before, now = self._before[card.uuid], on_card(card, self.pids)
            by_level = now.used is not None and (self._allowed(now) is not None or now.used <= EMPTY_B)
            if by_level or (before.ours and now.listed):
                continue
            why = now.unreadable or before.unreadable or "the driver showed none of its processes before the stop"
            found.append(f"GPU {card.index}: {why}")
        return found

    def blind(self) -> list[str]:
        """Cards of which neither the processes nor the memory can be read now, with the reason. Raises GpuLost."""
        now = [on_card(card, self.pids) for card in self._cards]
        return [f"GPU {each.index}: {each.unreadable}" for each in now if each.used is None and not each.listed]

    def levels(self) -> dict[str, int]:
        """Bytes in use now, other processes' aside: the level of the cards without a server, once nothing is left. Raises GpuLost."""
        now = [on_card(card, self.pids) for card in self._cards]
        return {each.uuid: each.used - each.others for each in now if each.used is not None and not each.unreadable}


def _gib(used: int) -> str:
    return f"{used / 2**30:.1f} GiB"
