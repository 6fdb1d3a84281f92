"""The start before a start: one that was interrupted while it compiled leaves caches that are partly there."""

from __future__ import annotations

from pytest_sglang.server import log as logs
from pytest_sglang.server import phases
from pytest_sglang.server.start import select

COMPILING: tuple[str, ...] = ("capture_decode", "capture_prefill", "port_open", "warmup")
"""Phases in which kernels are compiled (torch.compile and graph capture; first use in the warm-up), and the moment between them."""


def interrupted(text: str, launched_at: float | None) -> str | None:
    """The phase in which the start before the newest one (launched at ``launched_at``, epoch) ended; None = it became ready.

    Also None where the log holds no start before it, or one that ended before it compiled anything.
    """
    lines = logs.split(text)
    found = logs.starts(lines)
    newest = select(lines, launched_at)
    if newest not in found or found.index(newest) == 0:
        return None
    before = phases.timeline(found[found.index(newest) - 1])
    return before.phase if before.ready_at is None and before.phase in COMPILING else None
