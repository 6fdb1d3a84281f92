"""One GPU through NVML. Every reading is optional on some card, driver or container: the value, or a Missing with its reason."""

from __future__ import annotations

from typing import Any

from pytest_sglang.gpu.guard import Guard, text, then
from pytest_sglang.gpu.readings import (
    PERF_POLICIES,
    Clocks,
    GpuProcess,
    Missing,
    Pcie,
    PowerError,
    PowerLimits,
    Reading,
    reason_names,
    value_or_none,
)
from pytest_sglang.judge.hardware import FoundGpu, Unreadable, normal_pci
from pytest_sglang.judge.health import FoundMemory

_CLOCK_SM, _CLOCK_MEM = 1, 2
_TEMPERATURE_GPU = 0
_FI_POWER_INSTANT = 186
_FI_NVLINK_SPEED_COMMON = 90


class Card:
    """One card. ``uuid`` names it in every result; ``index`` is NVML's (PCI order) and may move at a reboot."""

    def __init__(self, guard: Guard, handle: Any, index: int) -> None:
        self._guard, self._handle, self.index = guard, handle, index
        self.label = f"GPU {index}"
        self.name: Reading[str] = then(self._read("nvmlDeviceGetName"), text)
        pci = self._read("nvmlDeviceGetPciInfo")
        self.pci: str = "" if isinstance(pci, Missing) else normal_pci(text(pci.busId))
        uuid = self._read("nvmlDeviceGetUUID")
        # without a UUID the bus id is the next best name that survives a reboot
        self.uuid: str = text(uuid) if not isinstance(uuid, Missing) else self.pci or f"index-{index}"
        if self.pci:
            self.label = f"GPU {index} ({self.pci})"

    def __repr__(self) -> str:
        return f"<Card {self.label} {self.uuid}>"

    @property
    def handle(self) -> Any:
        """NVML's handle, for calls that take two cards."""
        return self._handle

    def _read(self, name: str, *arguments: Any) -> Any | Missing:
        return self._guard.call(self.label, name, self._handle, *arguments)

    def _watts(self, name: str) -> Reading[float]:
        return then(self._read(name), lambda milliwatts: milliwatts / 1000.0)

    # --- power and energy ------------------------------------------------------------------------------------------------

    def limits(self) -> PowerLimits:
        """Power limits in watts, each by itself readable or not."""
        bounds: Any = self._read("nvmlDeviceGetPowerManagementLimitConstraints")
        return PowerLimits(
            requested_w=self._watts("nvmlDeviceGetPowerManagementLimit"),
            enforced_w=self._watts("nvmlDeviceGetEnforcedPowerLimit"),
            default_w=self._watts("nvmlDeviceGetPowerManagementDefaultLimit"),
            min_w=then(bounds, lambda pair: pair[0] / 1000.0),
            max_w=then(bounds, lambda pair: pair[1] / 1000.0),
        )

    def set_limit_w(self, watts: float) -> None:
        """Ask the driver for a power limit in watts (root only); read ``limits()`` back afterwards. Raises PowerError."""
        answer = self._read("nvmlDeviceSetPowerManagementLimit", round(watts * 1000))
        if isinstance(answer, Missing):
            hint = " (run as root, or let sudo run nvidia-smi -pl)" if answer.permission else ""
            raise PowerError(f"{self.label}: power limit {watts:g} W refused: {answer.reason}{hint}", permission=answer.permission)

    def persistence(self) -> Reading[bool]:
        """Persistence mode: without it the driver unloads when idle and the power limit is lost."""
        return then(self._read("nvmlDeviceGetPersistenceMode"), bool)

    def power_average_w(self) -> Reading[float]:
        """Board power in watts, a running average of about one second (Ampere and later): never the basis of a short window."""
        return self._watts("nvmlDeviceGetPowerUsage")

    def power_instant_w(self) -> Reading[float]:
        """Instantaneous board power in watts (NVML_FI_DEV_POWER_INSTANT)."""
        field = self._guard.field(self.label, self._handle, "NVML_FI_DEV_POWER_INSTANT", _FI_POWER_INSTANT)
        return then(field, lambda milliwatts: milliwatts / 1000.0)

    def energy_j(self) -> Reading[float]:
        """Energy since the driver was loaded, in joules; the counter moves about every 100 ms."""
        return then(self._read("nvmlDeviceGetTotalEnergyConsumption"), lambda millijoules: millijoules / 1000.0)

    # --- state -----------------------------------------------------------------------------------------------------------

    def temperature_c(self) -> Reading[int]:
        """GPU temperature in degrees Celsius."""
        answer = self._guard.first(
            self.label,
            ("nvmlDeviceGetTemperature", self._handle, _TEMPERATURE_GPU),
            ("nvmlDeviceGetTemperatureV", self._handle, _TEMPERATURE_GPU),
        )
        return then(answer, int)

    def sm_mhz(self) -> Reading[int]:
        """Present clock of the multiprocessors in MHz."""
        return then(self._read("nvmlDeviceGetClockInfo", _CLOCK_SM), int)

    def mem_mhz(self) -> Reading[int]:
        """Present memory clock in MHz."""
        return then(self._read("nvmlDeviceGetClockInfo", _CLOCK_MEM), int)

    def clocks(self) -> Clocks:
        """Present and highest clocks in MHz."""
        return Clocks(
            sm_mhz=self.sm_mhz(),
            mem_mhz=self.mem_mhz(),
            max_sm_mhz=then(self._read("nvmlDeviceGetMaxClockInfo", _CLOCK_SM), int),
            max_mem_mhz=then(self._read("nvmlDeviceGetMaxClockInfo", _CLOCK_MEM), int),
        )

    def event_reasons_mask(self) -> Reading[int]:
        """What limits the clocks now, as NVML's bits."""
        answer = self._guard.first(
            self.label,
            ("nvmlDeviceGetCurrentClocksEventReasons", self._handle),
            ("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle),  # the name before driver 535
        )
        return then(answer, int)

    def event_reasons(self) -> Reading[tuple[str, ...]]:
        """What limits the clocks now, by name: ``("sw_power_cap",)``; empty = nothing does."""
        return then(self.event_reasons_mask(), reason_names)

    def violations_s(self) -> dict[str, float]:
        """Seconds since the driver was loaded for which each policy held the clocks; a policy that cannot be read is absent."""
        held: dict[str, float] = {}
        for name, policy in PERF_POLICIES.items():
            answer = self._read("nvmlDeviceGetViolationStatus", policy)
            seconds: Reading[float] = then(answer, lambda status: int(status.violationTime) / 1e9)
            if not isinstance(seconds, Missing):
                held[name] = seconds
        return held

    def performance_state(self) -> Reading[int]:
        """P-state: 0 is the fastest."""
        return then(self._read("nvmlDeviceGetPerformanceState"), int)

    def pcie(self) -> Pcie:
        """PCIe generation and width now (the generation drops when idle), and what card and slot reach together."""
        return Pcie(
            gen=then(self._read("nvmlDeviceGetCurrPcieLinkGeneration"), int),
            width=then(self._read("nvmlDeviceGetCurrPcieLinkWidth"), int),
            max_gen=then(self._read("nvmlDeviceGetMaxPcieLinkGeneration"), int),
            max_width=then(self._read("nvmlDeviceGetMaxPcieLinkWidth"), int),
        )

    def pcie_replays(self) -> Reading[int]:
        """PCIe packets sent again since the driver was loaded: growth under load means a bad riser or slot."""
        return then(self._read("nvmlDeviceGetPcieReplayCounter"), int)

    def memory_used_bytes(self) -> Reading[int]:
        """Memory in use, in bytes, the driver's own reserve included."""
        memory: Any = self._read("nvmlDeviceGetMemoryInfo")
        return then(memory, lambda info: int(info.used))

    def memory_total_bytes(self) -> Reading[int]:
        """Memory of the card in bytes."""
        memory: Any = self._read("nvmlDeviceGetMemoryInfo")
        return then(memory, lambda info: int(info.total))

    def utilization_pct(self) -> Reading[int]:
        """Share of the last sample period in which a kernel ran, in percent."""
        rates: Any = self._read("nvmlDeviceGetUtilizationRates")
        return then(rates, lambda each: int(each.gpu))

    def processes(self) -> Reading[list[GpuProcess]]:
        """Processes that hold a context here; inside a container the list can be empty although the card is in use."""
        compute = self._processes("Compute")
        if isinstance(compute, Missing):
            return compute
        graphics = self._processes("Graphics")
        seen = {each.pid for each in compute}
        shown = [] if isinstance(graphics, Missing) else [each for each in graphics if each.pid not in seen]
        return [
            *(GpuProcess(int(each.pid), _bytes(each), "compute") for each in compute),
            *(GpuProcess(int(each.pid), _bytes(each), "graphics") for each in shown),
        ]

    def _processes(self, kind: str) -> Any | Missing:
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        return self._guard.first(self.label, (name, self._handle), (f"{name}_v3", self._handle), (f"{name}_v2", self._handle))

    def process_name(self, pid: int) -> str:
        """Name of a process; "unknown" for one of another process-id namespace, or one that is gone."""
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                named = file.read().strip()
        except OSError:
            told = self._guard.call(self.label, "nvmlSystemGetProcessName", pid)
            named = "" if isinstance(told, Missing) else text(told).rsplit("/", 1)[-1]
        return named or "unknown"

    # --- identity --------------------------------------------------------------------------------------------------------

    def compute_capability(self) -> Reading[str]:
        """CUDA compute capability: ``8.6``."""
        pair: Any = self._read("nvmlDeviceGetCudaComputeCapability")
        return then(pair, lambda each: f"{each[0]}.{each[1]}")

    def ecc(self) -> Reading[bool]:
        """ECC switched on."""
        modes: Any = self._read("nvmlDeviceGetEccMode")
        return then(modes, lambda each: bool(each[0]))

    def ecc_corrected(self) -> Reading[int]:
        """Corrected memory errors since the driver was loaded."""
        return then(self._read("nvmlDeviceGetTotalEccErrors", 0, 0), int)

    def ecc_uncorrected(self) -> Reading[int]:
        """Uncorrected memory errors since the driver was loaded."""
        return then(self._read("nvmlDeviceGetTotalEccErrors", 1, 0), int)

    def remapped_rows(self) -> Reading[tuple[int, int, bool, bool]]:
        """Remapped memory rows: for corrected and for uncorrected errors, whether one is pending, whether one failed."""
        rows: Any = self._read("nvmlDeviceGetRemappedRows")
        return then(rows, lambda each: (int(each[0]), int(each[1]), bool(each[2]), bool(each[3])))

    def memory_state(self) -> FoundMemory:
        """ECC and remapped rows as the judge takes them."""
        readings: dict[str, Any] = {"ecc": self.ecc(), "uncorrected": self.ecc_uncorrected(), "rows": self.remapped_rows()}
        missing = {name: each for name, each in readings.items() if isinstance(each, Missing)}
        plain: dict[str, Any] = {name: value_or_none(each) for name, each in readings.items()}
        return FoundMemory(
            index=self.index,
            uuid=self.uuid,
            unreadable={name: Unreadable(each.reason, each.permission) for name, each in missing.items()},
            unsupported=frozenset(name for name, each in missing.items() if each.unsupported),
            **plain,
        )

    def vbios(self) -> Reading[str]:
        """Version of the card's BIOS."""
        return then(self._read("nvmlDeviceGetVbiosVersion"), text)

    def serial(self) -> Reading[str]:
        """Serial number of the board; GeForce cards tell none."""
        return then(self._read("nvmlDeviceGetSerial"), text)

    def cores(self) -> Reading[int]:
        """Number of CUDA cores."""
        return then(self._read("nvmlDeviceGetNumGpuCores"), int)

    def mig(self) -> Reading[bool]:
        """Multi-instance mode switched on: then this card's readings are not one server's."""
        modes: Any = self._read("nvmlDeviceGetMigMode")
        return then(modes, lambda each: bool(each[0]))

    def fingerprint(self) -> dict[str, Any]:
        """What the card is, in plain values, for comparing runs; unreadable ones are None, their reasons in ``unreadable``."""
        limits, pcie = self.limits(), self.pcie()
        readings: dict[str, Any] = {
            "name": self.name,
            "serial": self.serial(),
            "vbios": self.vbios(),
            "compute_capability": self.compute_capability(),
            "cores": self.cores(),
            "memory_bytes": self.memory_total_bytes(),
            "ecc": self.ecc(),
            "mig": self.mig(),
            "persistence": self.persistence(),
            "requested_power_limit_w": limits.requested_w,
            "enforced_power_limit_w": limits.enforced_w,
            "default_power_limit_w": limits.default_w,
            "min_power_limit_w": limits.min_w,
            "max_power_limit_w": limits.max_w,
            "pcie_max_gen": pcie.max_gen,
            "pcie_max_width": pcie.max_width,
            "pcie_width": pcie.width,
        }
        unreadable = {name: each.reason for name, each in readings.items() if isinstance(each, Missing)}
        plain = {name: value_or_none(each) for name, each in readings.items()}
        return {"index": self.index, "uuid": self.uuid, "pci": self.pci, **plain, "unreadable": unreadable}

    def found(self) -> FoundGpu:
        """This card as the judge takes it: plain numbers, unreadable ones None with their reasons."""
        limits, pcie = self.limits(), self.pcie()
        readings: dict[str, Any] = {
            "name": self.name,
            "persistence": self.persistence(),
            "requested_w": limits.requested_w,
            "enforced_w": limits.enforced_w,
            "default_w": limits.default_w,
            "min_w": limits.min_w,
            "max_w": limits.max_w,
            "pcie_gen": pcie.gen,
            "pcie_width": pcie.width,
            "pcie_max_gen": pcie.max_gen,
            "pcie_max_width": pcie.max_width,
        }
        missing = {name: each for name, each in readings.items() if isinstance(each, Missing)}
        unreadable = {name: Unreadable(each.reason, each.permission) for name, each in missing.items()}
        plain: dict[str, Any] = {name: value_or_none(each) for name, each in readings.items()}
        return FoundGpu(index=self.index, uuid=self.uuid, pci=self.pci, unreadable=unreadable, **plain)


def _bytes(process: Any) -> int | None:
    used = getattr(process, "usedGpuMemory", None)
    return None if used is None else int(used)
