"""Which process serves: by its pid, and where pids are given again by its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_sglang.session.state import boot_id, started_ticks

if TYPE_CHECKING:
    from pytest_sglang.server.control import ControlState

SAME_S = 1.0
"""A process that has the same pid and was started within so many seconds of the one before is the one before."""


class Serving(NamedTuple):
    """A server's main process. ``ticks``: its start in clock ticks since boot, by the kernel; ``started_at``: as its owner tells it."""

    pid: int | None
    ticks: int | None
    started_at: float | None

    @classmethod
    def of(cls, state: ControlState) -> Serving:
        """The process that ``state`` is about."""
        return cls(state.pid, None if state.pid is None else started_ticks(state.pid), state.started_at)

    @property
    def name(self) -> str | None:
        """Boot of the machine, pid and start ticks: the same in every run on this very process. None where they are not all known."""
        boot = boot_id()
        return f"{boot}/{self.pid}/{self.ticks}" if boot and self.pid is not None and self.ticks is not None else None

    def is_other(self, before: Serving) -> bool:
        """Another process than ``before``: by its pid, and where that is the same (pids are given again) by its start."""
        if self.pid != before.pid:
            return True
        if self.ticks is not None and before.ticks is not None:
            return self.ticks != before.ticks
        # the owner's stamp is told in rig time anew each time, and never twice to the last digit
        if self.started_at is None or before.started_at is None:
            return False
        return abs(self.started_at - before.started_at) > SAME_S
