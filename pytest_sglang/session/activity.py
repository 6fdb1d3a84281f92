"""Signs of life of a start beyond its log and its processes: caches that grow, cards that work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sglang.gpu.readings import Missing, value_or_none

if TYPE_CHECKING:
    from pytest_sglang.gpu.card import Card
    from pytest_sglang.session.deployment import Deployment

BUSY_PCT = 10
"""Utilisation from which on a card works; an idle one, or one with a desktop, stays below."""


class Activity:
    """Made before a start; called, it gives something that changes as long as the start moves. Raises GpuLost.

    A card on which somebody computed already before the start tells nothing about it and is left out.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._places = deployment.kernels.places_unasked()
        serving = deployment.hardware.serving if deployment.hardware is not None else ()
        self._cards = tuple(card for card in serving if not _taken(card))
        self._busy = 0

    @property
    def watched(self) -> str:
        """What is watched besides the log, for a message."""
        return "no cache file, no CPU time, no GPU work" if self._cards else "no cache file, no CPU time"

    def __call__(self) -> object:
        from pytest_sglang.cache import snapshot

        memory = []
        for card in self._cards:
            busy, used = value_or_none(card.utilization_pct()), value_or_none(card.memory_used_bytes())
            memory.append(used)
            # a card that works is progress each time that it is looked at
            self._busy += busy is not None and busy >= BUSY_PCT
        return snapshot.newest(self._places), tuple(memory), self._busy


def _taken(card: Card) -> bool:
    listed = card.processes()
    return not isinstance(listed, Missing) and any(each.kind == "compute" for each in listed)
