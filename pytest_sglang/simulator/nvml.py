"""The simulated cards through the calls of ``pynvml``: its names, argument orders, units, structures and errors.

How a real driver answers was recorded on an H200 with driver 580; what a GeForce card answers NotSupported to does so here.
"""

# ruff: noqa: N802, N803 - the names are NVML's

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pytest_sglang.simulator.nvml_base import Handle, NvmlBase, nvml_error
from pytest_sglang.simulator.nvml_names import CONSTANTS, ERRORS, Struct
from pytest_sglang.simulator.state import CardNow

FALLBACK_S = 0.6
"""A lost power limit is back at the card's default after this."""
_UNUSED_B = 450 * 2**20
"""Memory that the driver keeps on an idle card."""
_ANCESTORS = {"PIX": "SINGLE", "PXB": "MULTIPLE", "PHB": "HOSTBRIDGE", "NODE": "NODE", "SYS": "SYSTEM"}
"""Cells of ``nvidia-smi topo -m`` and NVML's names for them."""
_NO_PARTITION = 0xFFFFFFFF


class SimulatedNvml(NvmlBase):
    """In place of the module ``pynvml``."""

    # --- power and energy --------------------------------------------------------------------------------------------------

    def nvmlDeviceGetPowerManagementMode(self, handle: Handle) -> int:
        self._check_open()
        return CONSTANTS["NVML_FEATURE_ENABLED"]

    def nvmlDeviceGetPowerManagementLimit(self, handle: Handle) -> int:
        return round(self._now(handle).requested_w * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Handle) -> int:
        self._check_open()
        return round(self._state.limits_w()[handle.index] * 1000)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, handle: Handle) -> int:
        return round(self._gpu(handle).default_w * 1000)

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: Handle) -> list[int]:
        gpu = self._gpu(handle)
        return [round(gpu.min_w * 1000), round(gpu.max_w * 1000)]

    def nvmlDeviceSetPowerManagementLimit(self, handle: Handle, limit: int) -> None:
        gpu = self._gpu(handle)
        if not self._permission:
            raise nvml_error("NO_PERMISSION")
        if not gpu.min_w * 1000 <= limit <= gpu.max_w * 1000:
            raise nvml_error("INVALID_ARGUMENT")
        lost = handle.index in self._lost_limit
        self._state.set_limit(handle.index, limit / 1000, falls_back_after_s=FALLBACK_S if lost else None)

    def nvmlDeviceGetPowerUsage(self, handle: Handle) -> int:
        return round(self._now(handle).average_w * 1000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Handle) -> int:
        if self._hidden(handle, "energy"):
            raise self._unsupported()
        return round(self._now(handle).energy_j * 1000)

    def nvmlDeviceGetFieldValues(self, handle: Handle, fieldIds: Sequence[Any]) -> list[Struct]:
        now = self._now(handle)
        return [self._field(handle, now, each[0] if isinstance(each, tuple) else each) for each in fieldIds]

    def nvmlDeviceGetViolationStatus(self, device: Handle, perfPolicyType: int) -> Struct:
        if perfPolicyType >= CONSTANTS["NVML_PERF_POLICY_COUNT"]:
            raise nvml_error("INVALID_ARGUMENT")
        now = self._now(device)
        held_s = {CONSTANTS["NVML_PERF_POLICY_POWER"]: now.capped_s, CONSTANTS["NVML_PERF_POLICY_THERMAL"]: now.hot_s}
        return Struct(referenceTime=time.monotonic_ns() // 1000, violationTime=round(held_s.get(perfPolicyType, 0.0) * 1e9))

    # --- state -------------------------------------------------------------------------------------------------------------

    def nvmlDeviceGetPerformanceState(self, handle: Handle) -> int:
        return 2 if self._now(handle).load > 0 else 8

    def nvmlDeviceGetPowerState(self, handle: Handle) -> int:
        return self.nvmlDeviceGetPerformanceState(handle)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Handle) -> int:
        now = self._now(handle)
        held = {
            "nvmlClocksEventReasonGpuIdle": now.load == 0,
            "nvmlClocksEventReasonSwPowerCap": now.capped,
            "nvmlClocksEventReasonSwThermalSlowdown": now.hot,
            "nvmlClocksEventReasonHwSlowdown": now.braked,
            "nvmlClocksEventReasonHwPowerBrakeSlowdown": now.braked,
        }
        return sum(CONSTANTS[name] for name, true in held.items() if true)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Handle) -> int:
        return self.nvmlDeviceGetCurrentClocksEventReasons(handle)

    def nvmlDeviceGetSupportedClocksEventReasons(self, handle: Handle) -> int:
        self._check_open()
        return CONSTANTS["nvmlClocksEventReasonAll"]

    def nvmlDeviceGetSupportedClocksThrottleReasons(self, handle: Handle) -> int:
        return self.nvmlDeviceGetSupportedClocksEventReasons(handle)

    def nvmlDeviceGetClockInfo(self, handle: Handle, type: int) -> int:
        now, gpu = self._now(handle), self._gpu(handle)
        if type in (CONSTANTS["NVML_CLOCK_SM"], CONSTANTS["NVML_CLOCK_GRAPHICS"]):
            return 15 * round(self._hardware.curve.mhz(now.limit_w) * now.share / 15) if now.load > 0 else gpu.clock_sm_idle_mhz
        if type == CONSTANTS["NVML_CLOCK_MEM"]:
            return gpu.clock_mem_max_mhz - gpu.mem_step_mhz if now.load > 0 else gpu.clock_mem_idle_mhz
        if type == CONSTANTS["NVML_CLOCK_VIDEO"]:
            return 1290 if now.load > 0 else 555
        raise nvml_error("INVALID_ARGUMENT")

    def nvmlDeviceGetMaxClockInfo(self, handle: Handle, type: int) -> int:
        gpu = self._gpu(handle)
        found = {0: gpu.clock_sm_max_mhz, 1: gpu.clock_sm_max_mhz, 2: gpu.clock_mem_max_mhz, 3: 1950}
        if type not in found:
            raise nvml_error("INVALID_ARGUMENT")
        return found[type]

    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int:
        if sensor != CONSTANTS["NVML_TEMPERATURE_GPU"]:
            raise nvml_error("INVALID_ARGUMENT")
        return int(self._now(handle).temperature_c)

    def nvmlDeviceGetTemperatureV(self, handle: Handle, sensor: int, version: int = 16777228) -> int:
        return self.nvmlDeviceGetTemperature(handle, sensor)

    def nvmlDeviceGetTemperatureThreshold(self, handle: Handle, threshold: int) -> int:
        self._check_open()
        found = {0: 98, 1: 95, 3: 93}
        if threshold not in found:
            raise self._unsupported()
        return found[threshold]

    def nvmlDeviceGetFanSpeed(self, handle: Handle) -> int:
        return max(0, min(100, round((self._now(handle).temperature_c - 35) * 2)))

    def nvmlDeviceGetNumFans(self, device: Handle) -> int:
        self._check_open()
        return 2

    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Struct:
        load = self._now(handle).load
        return Struct(gpu=round(98 * load), memory=round(86 * load))

    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> Struct:
        total = self._gpu(handle).memory_mib * 2**20
        used = _UNUSED_B + self._now(handle).memory_b
        return Struct(total=total, free=total - used, used=used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[Struct]:
        memory_b = self._now(handle).memory_b
        pid, _ = self._state.owner()
        found = self._residents(handle, "compute")
        if pid and memory_b and handle.index in self._hardware.serving:
            found.insert(0, _process(pid, memory_b))
        return found

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Handle) -> list[Struct]:
        return self.nvmlDeviceGetComputeRunningProcesses(handle)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Handle) -> list[Struct]:
        return self.nvmlDeviceGetComputeRunningProcesses(handle)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Handle) -> list[Struct]:
        self._check_open()
        return self._residents(handle, "graphics")

    def nvmlDeviceGetGraphicsRunningProcesses_v2(self, handle: Handle) -> list[Struct]:
        return self.nvmlDeviceGetGraphicsRunningProcesses(handle)

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Handle) -> list[Struct]:
        return self.nvmlDeviceGetGraphicsRunningProcesses(handle)

    def nvmlDeviceGetEccMode(self, handle: Handle) -> list[int]:
        self._counts_errors(handle)
        return [1, 1]

    def nvmlDeviceGetTotalEccErrors(self, handle: Handle, errorType: int, counterType: int) -> int:
        self._counts_errors(handle)
        uncorrected = errorType == CONSTANTS["NVML_MEMORY_ERROR_TYPE_UNCORRECTED"]
        return self._ailments.ecc_uncorrected(handle.index, self._now(handle).busy_s) if uncorrected else 0

    def nvmlDeviceGetRemappedRows(self, device: Handle) -> tuple[int, int, int, int]:
        self._counts_errors(device)
        return self._ailments.remapped_rows(device.index)

    def nvmlDeviceGetMigMode(self, device: Handle) -> list[int]:
        raise self._unsupported()

    def nvmlDeviceGetNumaNodeId(self, handle: Handle) -> int:
        raise self._unsupported()

    def nvmlDeviceGetSupportedEventTypes(self, handle: Handle) -> int:
        raise self._unsupported()

    # --- PCIe and links ----------------------------------------------------------------------------------------------------

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Handle) -> int:
        return self._ailments.pcie_gen(handle.index, loaded=self._now(handle).load > 0)

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Handle) -> int:
        self._check_open()
        return self._ailments.pcie_width(handle.index)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Handle) -> int:
        return self._gpu(handle).pcie_gen

    def nvmlDeviceGetGpuMaxPcieLinkGeneration(self, handle: Handle) -> int:
        return self._gpu(handle).pcie_gen

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Handle) -> int:
        return self._gpu(handle).pcie_width

    def nvmlDeviceGetPcieReplayCounter(self, handle: Handle) -> int:
        return self._ailments.pcie_replays(handle.index, self._now(handle).busy_s)

    def nvmlDeviceGetNvLinkState(self, device: Handle, link: int) -> int:
        return int(self._link_is_up(device, link))

    def nvmlDeviceGetNvLinkVersion(self, device: Handle, link: int) -> int:
        self._link_is_up(device, link)
        return self._hardware.link_version

    def nvmlDeviceGetNvLinkRemotePciInfo(self, device: Handle, link: int) -> Struct:
        if not self._link_is_up(device, link):
            raise self._unsupported()
        partner = self._ailments.partner(device.index)
        if partner is None:
            # a switch, whose bus id no card has
            return self._pci(self._hardware.gpu.count + link % 4, 0x22A310DE, 0)
        # the other end is told by its bus id only
        return self._pci(partner, self._hardware.gpu.pci_device_id, 0)

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Handle, link: int) -> int:
        if not self._link_is_up(handle, link):
            raise self._unsupported()
        return CONSTANTS[f"NVML_NVLINK_DEVICE_TYPE_{'SWITCH' if self._hardware.switch else 'GPU'}"]

    def nvmlDeviceGetNvLinkCapability(self, device: Handle, link: int, capability: int) -> int:
        self._link_is_up(device, link)
        return int(capability != CONSTANTS["NVML_NVLINK_CAP_SYSMEM_ACCESS"])

    def nvmlDeviceGetNvLinkErrorCounter(self, device: Handle, link: int, counter: int) -> int:
        if not self._link_is_up(device, link):
            raise self._unsupported()
        if counter != CONSTANTS["NVML_NVLINK_ERROR_DL_REPLAY"]:
            return 0
        return self._ailments.link_errors(device.index, link, self._now(device).busy_s)

    def nvmlDeviceGetP2PStatus(self, device1: Handle, device2: Handle, p2pIndex: int) -> int:
        self._check_open()
        linked = self._ailments.linked(device1.index, device2.index)
        # GeForce drivers allow peer access over NVLink only
        return CONSTANTS["NVML_P2P_STATUS_OK"] if linked else CONSTANTS["NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED"]

    def nvmlDeviceGetTopologyCommonAncestor(self, device1: Handle, device2: Handle) -> int:
        self._check_open()
        return CONSTANTS[f"NVML_TOPOLOGY_{_ANCESTORS[self._hardware.meeting(device1.index, device2.index)]}"]

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _residents(self, handle: Handle, kind: str) -> list[Struct]:
        return [_process(each.pid, each.used_mib * 2**20) for each in self._ailments.residents(handle.index) if each.kind == kind]

    def _counts_errors(self, handle: Handle) -> None:
        if not self._ailments.ecc(handle.index):
            raise self._unsupported()

    def _field(self, handle: Handle, now: CardNow, field: int) -> Struct:
        """One field as nvmlDeviceGetFieldValues gives it: its own return code, and a value of its own type (1 unsigned, 3 long)."""
        gpu, fi = self._hardware.gpu, "NVML_FI_DEV_"
        links = self._ailments.links(handle.index)
        speeds = [self._hardware.link_mbyte_s if up else 0 for up in links]
        no_energy = self._ailments.unsupported("nvmlDeviceGetTotalEnergyConsumption")
        known: dict[str, tuple[int, int]] = {
            "POWER_INSTANT": (1, round(now.power_w * 1000)),
            "POWER_AVERAGE": (1, round(now.average_w * 1000)),
            "POWER_CURRENT_LIMIT": (1, round(now.limit_w * 1000)),
            "POWER_REQUESTED_LIMIT": (1, round(now.requested_w * 1000)),
            "POWER_MIN_LIMIT": (1, round(gpu.min_w * 1000)),
            "POWER_MAX_LIMIT": (1, round(gpu.max_w * 1000)),
            "POWER_DEFAULT_LIMIT": (1, round(gpu.default_w * 1000)),
            "TOTAL_ENERGY_CONSUMPTION": (3, -1 if no_energy else round(now.energy_j * 1000)),
            "PCIE_REPLAY_COUNTER": (3, self._ailments.pcie_replays(handle.index, now.busy_s)),
            "NVLINK_LINK_COUNT": (1, len(links)),
            "NVLINK_SPEED_MBPS_COMMON": (1, max(speeds, default=0)),
            **{f"NVLINK_SPEED_MBPS_L{link}": (1, speed) for link, speed in enumerate(speeds)},
            **{f"NVLINK_{name}_ERROR_COUNT_TOTAL": (3, 0) for name in ("CRC_FLIT", "CRC_DATA", "REPLAY", "RECOVERY")},
        }
        hidden = {"energy": ("TOTAL_ENERGY_CONSUMPTION",), "instant": ("POWER_INSTANT",)}
        for reading, names in hidden.items():
            if self._hidden(handle, reading):
                known = {name: value for name, value in known.items() if name not in names}
        value_type, number = next((value for name, value in known.items() if CONSTANTS.get(fi + name) == field), (0, -1))
        union = Struct(**dict.fromkeys(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal"), max(0, number)))
        return Struct(
            fieldId=field,
            scopeId=0,
            timestamp=time.time_ns() // 1000,
            latencyUsec=0,
            valueType=value_type,
            nvmlReturn=0 if number >= 0 else ERRORS["NVML_ERROR_NOT_SUPPORTED"],
            value=union,
        )


def _process(pid: int, used_b: int) -> Struct:
    return Struct(pid=pid, usedGpuMemory=used_b, gpuInstanceId=_NO_PARTITION, computeInstanceId=_NO_PARTITION)
