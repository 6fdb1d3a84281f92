"""What a GPU answers, as values: a reading is the number or a Missing with its reason, never an exception and never a zero."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from pytest_sglang.record.values import Value

T = TypeVar("T")

NOT_SUPPORTED = 3
NO_PERMISSION = 4
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
GPU_NOT_FOUND = 28
"""Return codes of the NVML API that decide what a failed reading means (nvml.h, enum nvmlReturn_t)."""

EVENT_REASONS: dict[int, str] = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h; the last two are named by newer drivers only)."""


PERF_POLICIES: dict[str, int] = {"power": 0, "thermal": 1, "sync_boost": 2, "board_limit": 3, "reliability": 5}
"""Policies of nvmlDeviceGetViolationStatus (nvml.h, enum nvmlPerfPolicyType_t) that say what held the clocks."""


class Missing(msgspec.Struct, frozen=True):
    """A reading that could not be taken: why, and whether a permission would have given it. ``code`` is NVML's return code."""

    reason: str
    permission: bool = False
    code: int | None = None

    def __str__(self) -> str:
        return f"not readable ({self.reason})"

    @property
    def unsupported(self) -> bool:
        """This card, driver or binding has no such reading at all."""
        return self.code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND)


Reading: TypeAlias = T | Missing


class NoDriver(Exception):
    """No NVIDIA driver can be asked here; the message is one sentence: what was looked for and what was found."""

    def __init__(self, looked_for: str, found: str) -> None:
        super().__init__(f"looked for {looked_for}: {found}")
        self.looked_for, self.found = looked_for, found


class GpuLost(Exception):
    """A card stopped answering in the middle of a run (fell off the bus): nothing measured with it counts."""

    def __init__(self, label: str) -> None:
        told = "it no longer answers the driver (look for Xid 79 in the kernel log: power supply, riser, slot)"
        super().__init__(f"{label} is lost: {told}")
        self.label = label


class PowerError(Exception):
    """A power limit could not be set; ``permission``: for want of a right, which the message grants."""

    def __init__(self, message: str, *, permission: bool = False) -> None:
        super().__init__(message)
        self.permission = permission


class PowerLimits(Value, frozen=True, kw_only=True):
    """Power limits of one card in watts. The driver may enforce less than was requested."""

    requested_w: Reading[float]
    enforced_w: Reading[float]
    default_w: Reading[float]
    min_w: Reading[float]
    max_w: Reading[float]


class Clocks(Value, frozen=True, kw_only=True):
    """Present and highest clocks of one card in MHz."""

    sm_mhz: Reading[int]
    mem_mhz: Reading[int]
    max_sm_mhz: Reading[int]
    max_mem_mhz: Reading[int]


class Pcie(Value, frozen=True, kw_only=True):
    """PCIe link of one card. The generation drops to 1 when idle; ``max_*`` is what card and slot reach together."""

    gen: Reading[int]
    width: Reading[int]
    max_gen: Reading[int]
    max_width: Reading[int]


class GpuProcess(NamedTuple):
    """A process that holds a context on a card; ``used_bytes`` None = the driver does not say."""

    pid: int
    used_bytes: int | None
    kind: Literal["compute", "graphics"]


def reason_names(mask: int) -> tuple[str, ...]:
    """Names of the set bits of a clocks-event-reasons mask; an unknown bit keeps its number: ``bit_0x800``."""
    names = []
    for position in range(64):
        bit = 1 << position
        if mask & bit:
            names.append(EVENT_REASONS.get(bit, f"bit_{bit:#x}"))
    return tuple(names)


def value_or_none(reading: Reading[T]) -> T | None:
    """The value, or None where it is missing (for records, which keep the reason elsewhere)."""
    return None if isinstance(reading, Missing) else reading
