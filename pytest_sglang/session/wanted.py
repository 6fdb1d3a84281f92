"""Limits that a test asks for (by its markers); None = the rig file's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ReadyWithin:
    """A start of this kind must be ready within ``budget_s`` seconds of rig time."""

    start: Literal["warm", "cold"]
    budget_s: float | None = None


@dataclass(frozen=True, slots=True)
class MinThroughput:
    """At this power level and declared NVLink state, ``streams`` streams each make at least ``min_tok_s``."""

    min_tok_s: float | None = None
    power_w: float | None = None
    nvlink: bool | None = None
    streams: int = 1
    quantity: Literal["decode", "end_to_end"] | None = None


@dataclass(frozen=True, slots=True)
class MaxNewKernels:
    """A start may add at most this many new kernel names to the caches."""

    limit: int | None = None


Wanted = ReadyWithin | MinThroughput | MaxNewKernels
