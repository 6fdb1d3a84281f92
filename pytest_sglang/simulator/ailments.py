"""What a fault does to the simulated hardware: which link, lane, counter, process or card is not as it should be."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from pytest_sglang.simulator.hardware import Hardware, Resident

BRIDGE = (2, 3)
"""The bridge that is dead, half dead, or put over the wrong cards."""
CARD = 1
"""The card with a bad PCIe link, bad memory, or a stranger's process; the last one on smaller rigs."""
LOST = 2
"""The card that falls off the bus."""
LOST_AFTER_S = 5.0
"""Seconds of load after which it does: in the middle of a measurement."""
GROWTH_PER_S = 30.0
"""Errors that a bad link counts in a second of load."""
STRANGER_PID = 3_999_871
KERNEL_LOG = "kernel.log"
_LOST_MARK = "fallen-off-the-bus"
_NEEDS_BRIDGE = frozenset({"nvlink-dead", "nvlink-partial", "nvlink-crossed", "server-misplaced"})
SPARSE = (
    "nvmlDeviceGetCurrPcieLinkGeneration",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetGpuMaxPcieLinkGeneration",
    "nvmlDeviceGetPcieReplayCounter",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetViolationStatus",
    "nvmlDeviceGetVbiosVersion",
    "nvmlDeviceGetPerformanceState",
)
"""Calls that the fault ``not-supported`` takes away."""


COUNTERS = ("nvmlDeviceGetPcieReplayCounter", "nvmlDeviceGetNvLinkErrorCounter")
"""Calls that the fault ``counters-missing`` takes away, and that fail on one card under ``counters-hidden``."""

MEMORY = ("nvmlDeviceGetMemoryInfo", *(f"nvmlDeviceGetComputeRunningProcesses{version}" for version in ("", "_v2", "_v3")))
"""Calls that the fault ``memory-hidden`` takes away."""


def check(faults: Iterable[str], hardware: Hardware) -> None:
    """Raise ValueError for a fault that this hardware cannot have."""
    for fault in faults:
        if fault in _NEEDS_BRIDGE and BRIDGE not in hardware.pairs:
            raise ValueError(f"fault {fault}: {hardware.name} has no bridge between GPU {BRIDGE[0]} and GPU {BRIDGE[1]}")
        if fault == "nvlink-errors" and not hardware.links:
            raise ValueError(f"fault {fault}: {hardware.name} has no NVLink")
        if fault == "xid-79" and hardware.gpu.count <= LOST:
            raise ValueError(f"fault {fault}: {hardware.name} has no GPU {LOST}")


class Ailments:
    """The faults of a rig as its NVML, its kernel log and its server show them."""

    def __init__(self, directory: Path, hardware: Hardware, faults: Iterable[str] = ()) -> None:
        self._directory, self._hardware, self.faults = Path(directory), hardware, frozenset(faults)
        self._card = min(CARD, hardware.gpu.count - 1)
        self._up = {index: self._links(index) for index in range(hardware.gpu.count)}

    def _has(self, fault: str, index: int) -> bool:
        return fault in self.faults and index == self._card

    # --- links ---------------------------------------------------------------------------------------------------------------

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Cards that a bridge really joins."""
        if "nvlink-crossed" not in self.faults:
            return self._hardware.pairs
        one, other = BRIDGE
        crossed = {(0, 1): (0, one), BRIDGE: (1, other)}
        return tuple(crossed.get(pair, pair) for pair in self._hardware.pairs)

    def partner(self, index: int) -> int | None:
        """The card at the other end of this card's bridge; None = no bridge."""
        return next((b if index == a else a for a, b in self.pairs() if index in (a, b)), None)

    def links(self, index: int) -> tuple[bool, ...]:
        """Which links of a card are active, by link; empty = a card without any."""
        return self._up[index]

    def _links(self, index: int) -> tuple[bool, ...]:
        hardware = self._hardware
        if not hardware.switch and self.partner(index) is None:
            return ()
        dead = {"nvlink-dead": hardware.links, "nvlink-partial": 1}
        down = max((count for fault, count in dead.items() if fault in self.faults), default=0) if index in BRIDGE else 0
        return tuple(link < hardware.links - down for link in range(hardware.links))

    def linked(self, one: int, other: int) -> bool:
        """At least one active link joins two cards."""
        if self._hardware.switch:
            return any(self._up[one]) and any(self._up[other])
        return self.partner(one) == other and any(self._up[one])

    def link_errors(self, index: int, link: int, busy_s: float) -> int:
        """Errors of one link."""
        return int(GROWTH_PER_S * busy_s) if "nvlink-errors" in self.faults and (index, link) == (0, 1) else 0

    # --- PCIe, memory ----------------------------------------------------------------------------------------------------------

    def pcie_gen(self, index: int, *, loaded: bool) -> int:
        """Present PCIe generation: an idle card drops to 1."""
        return self._hardware.gpu.pcie_gen if loaded and not self._has("pcie-gen1", index) else 1

    def pcie_width(self, index: int) -> int:
        """Present PCIe width."""
        return 4 if self._has("pcie-x4", index) else self._hardware.gpu.pcie_width

    def pcie_replays(self, index: int, busy_s: float) -> int:
        """PCIe packets that were sent again."""
        return int(GROWTH_PER_S * busy_s) if self._has("pcie-replays", index) else 0

    def ecc(self, index: int) -> bool:
        """The card counts memory errors; one with bad memory is a card that does."""
        return self._hardware.gpu.ecc or self._has("ecc-errors", index) or self._has("row-remap-pending", index)

    def ecc_uncorrected(self, index: int, busy_s: float) -> int:
        """Uncorrected memory errors."""
        return int(GROWTH_PER_S * busy_s) if self._has("ecc-errors", index) else 0

    def remapped_rows(self, index: int) -> tuple[int, int, int, int]:
        """Remapped rows for corrected and uncorrected errors, one pending, one failed."""
        return (0, 1, 1, 0) if self._has("row-remap-pending", index) else (0, 0, 0, 0)

    # --- driver, processes -------------------------------------------------------------------------------------------------------

    def unsupported(self, name: str) -> bool:
        """The cards answer NotSupported to this call."""
        taken = {"not-supported": SPARSE, "counters-missing": COUNTERS, "memory-hidden": MEMORY}
        return name in self._hardware.gpu.unsupported or any(name in taken[fault] for fault in self.faults & taken.keys())

    def broken(self, name: str, index: int) -> bool:
        """The card answers this call with an error of no meaning."""
        return self._has("counters-hidden", index) and name in COUNTERS

    def residents(self, index: int) -> tuple[Resident, ...]:
        """Processes on a card that are not the server's."""
        found = [each for each in self._hardware.residents if each.gpu == index]
        if self._has("foreign-process", index):
            found.append(Resident(index, STRANGER_PID, "/usr/local/bin/ollama", "compute", 1312))
        return tuple(found)

    def process_name(self, pid: int) -> str | None:
        """Name of a process that exists only here."""
        everybody = [each for index in range(self._hardware.gpu.count) for each in self.residents(index)]
        return next((each.name for each in everybody if each.pid == pid), None)

    # --- a card that is lost -------------------------------------------------------------------------------------------------------

    def is_lost(self, index: int, busy_s: float) -> bool:
        """The card has fallen off the bus; the first who notices writes it into the kernel log."""
        if "xid-79" not in self.faults or index != LOST or busy_s < LOST_AFTER_S:
            return False
        self._note_loss()
        return True

    def _note_loss(self) -> None:
        try:
            (self._directory / _LOST_MARK).touch(exist_ok=False)
        except FileExistsError:
            return
        bus = self._hardware.bus_id(LOST).lower()[4:-2]
        with (self._directory / KERNEL_LOG).open("a", encoding="utf-8") as log:
            stamp = f"{time.time():.6f} rig kernel: NVRM:"
            log.write(f"{stamp} Xid (PCI:{bus}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n")
            log.write(f"{stamp} GPU {bus}.0: GPU has fallen off the bus.\n")


# --- the kernel log --------------------------------------------------------------------------------------------------------------


def write_kernel_log(directory: Path, hardware: Hardware) -> None:
    """The kernel's messages of this boot, as ``journalctl -k -o short-unix`` prints them: nothing wrong in them."""
    now_s = time.time() - 4_000.0
    said = [
        "Linux version 6.8.0-51-generic (buildd@lcy02-amd64-103)",
        f"NVRM: loading NVIDIA UNIX x86_64 Kernel Module  {hardware.driver}",
        f"nvidia-modeset: Loading NVIDIA Kernel Mode Setting Driver for UNIX platforms  {hardware.driver}",
    ]
    lines = [f"{now_s + 0.8 * number:.6f} rig kernel: {text}\n" for number, text in enumerate(said)]
    (Path(directory) / KERNEL_LOG).write_text("".join(lines), encoding="utf-8")


def kernel_log(directory: Path, command: list[str], faults: Iterable[str]) -> tuple[int, str]:
    """Exit code and output of ``journalctl -k`` or ``dmesg`` on the rig; one who may not read it sees an empty journal."""
    if "kernel-log-hidden" in faults:
        return (1, "dmesg: read kernel buffer failed: Operation not permitted") if command[0] == "dmesg" else (0, "")
    if command[0] != "journalctl":
        return 127, f"{command[0]}: command not found"
    lines = (Path(directory) / KERNEL_LOG).read_text(encoding="utf-8").splitlines()
    if "--since" in command:
        since_s = float(command[command.index("--since") + 1].removeprefix("@"))
        lines = [line for line in lines if float(line.split(" ", 1)[0]) >= since_s]
    if "-n" in command:
        lines = lines[-int(command[command.index("-n") + 1]) :]
    return 0, "\n".join(lines)
