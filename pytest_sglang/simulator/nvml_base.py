"""The simulated NVML's foundation: opening and closing, the system, handles, who each card is."""

# ruff: noqa: N802, N803 - the names are NVML's

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sglang.simulator.ailments import Ailments
from pytest_sglang.simulator.hardware import Gpu, Hardware
from pytest_sglang.simulator.nvml_names import CONSTANTS, ERRORS, NVMLError, NvmlNames, Struct
from pytest_sglang.simulator.state import CardNow, HardwareState


class Handle:
    """A card, as the binding hands it out."""

    def __init__(self, index: int) -> None:
        self.index = index


class NvmlBase(NvmlNames):
    """System, handles and identity.

    ``lost_limit``: cards that fall back; ``not_persistent``: cards whose persistence mode is off; ``unreadable``: power readings
    ("energy", "instant") that a card (None = every card) does not give; ``ailments``: what else is wrong with the hardware.
    """

    def __init__(
        self,
        directory: Path,
        hardware: Hardware,
        uuids: Sequence[str],
        *,
        lost_limit: Sequence[int] = (),
        not_persistent: Sequence[int] = (),
        unreadable: Mapping[int | None, Sequence[str]] | None = None,
        permission: bool = True,
        ailments: Ailments | None = None,
    ) -> None:
        self._directory, self._hardware, self._uuids = Path(directory), hardware, tuple(uuids)
        self._state = HardwareState(directory, hardware)
        self._lost_limit, self._permission = tuple(lost_limit), permission
        self._not_persistent, self._unreadable = tuple(not_persistent), dict(unreadable or {})
        self._ailments = Ailments(directory, hardware) if ailments is None else ailments
        self._opened = 0

    def __getattribute__(self, name: str) -> Any:
        """Every call on a card first finds out whether the card is still there and knows that call at all."""
        found = object.__getattribute__(self, name)
        if not name.startswith("nvmlDevice"):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            handle = arguments[0] if arguments else None
            if isinstance(handle, Handle):
                self._answers(handle, name)
            return found(*arguments, **named)

        return call

    def _answers(self, handle: Handle, name: str) -> None:
        self._check_open()
        if self._ailments.is_lost(handle.index, self._state.busy_s(handle.index)):
            raise nvml_error("GPU_IS_LOST")
        if self._ailments.unsupported(name):
            raise nvml_error("NOT_SUPPORTED")
        if self._ailments.broken(name, handle.index):
            raise nvml_error("UNKNOWN")

    # --- opening, closing, the system --------------------------------------------------------------------------------------

    def nvmlInit(self) -> None:
        if "driver-mismatch" in self._ailments.faults:
            raise nvml_error("LIB_RM_VERSION_MISMATCH")
        self._opened += 1

    def nvmlInitWithFlags(self, flags: int) -> None:
        self.nvmlInit()

    def nvmlShutdown(self) -> None:
        self._check_open()
        self._opened -= 1

    def nvmlErrorString(self, result: int) -> str:
        return str(NVMLError(result))

    def nvmlSystemGetDriverVersion(self) -> str:
        self._check_open()
        return self._hardware.driver

    def nvmlSystemGetNVMLVersion(self) -> str:
        self._check_open()
        return f"{self._hardware.cuda // 1000}.{self._hardware.driver}"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        self._check_open()
        return self._hardware.cuda

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.nvmlSystemGetCudaDriverVersion()

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        known = self._ailments.process_name(pid)
        if known is not None:
            return known
        try:
            return os.readlink(f"/proc/{pid}/exe")
        except OSError:
            raise nvml_error("NOT_FOUND") from None

    # --- handles and identity ----------------------------------------------------------------------------------------------

    def nvmlDeviceGetCount(self) -> int:
        self._check_open()
        return self._hardware.gpu.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:
        if not 0 <= index < self.nvmlDeviceGetCount():
            raise nvml_error("INVALID_ARGUMENT")
        return Handle(index)

    def nvmlDeviceGetHandleByUUID(self, uuid: str | bytes) -> Handle:
        return self._find([_text(uuid)], self._uuids)

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str | bytes) -> Handle:
        domain, _, rest = _text(pciBusId).upper().partition(":")
        long = f"{int(domain or '0', 16):08X}:{rest}"
        return self._find([long], [self._hardware.bus_id(each) for each in range(self._hardware.gpu.count)])

    def nvmlDeviceGetName(self, handle: Handle) -> str:
        return self._gpu(handle).name

    def nvmlDeviceGetUUID(self, handle: Handle) -> str:
        self._check_open()
        return self._uuids[handle.index]

    def nvmlDeviceGetSerial(self, handle: Handle) -> str:
        raise self._unsupported()

    def nvmlDeviceGetIndex(self, handle: Handle) -> int:
        self._check_open()
        return handle.index

    def nvmlDeviceGetMinorNumber(self, handle: Handle) -> int:
        self._check_open()
        return handle.index

    def nvmlDeviceGetPciInfo(self, handle: Handle) -> Struct:
        return self.nvmlDeviceGetPciInfo_v3(handle)

    def nvmlDeviceGetPciInfo_v3(self, handle: Handle) -> Struct:
        gpu = self._gpu(handle)
        return self._pci(handle.index, gpu.pci_device_id, gpu.pci_subsystem_id)

    def nvmlDeviceGetVbiosVersion(self, handle: Handle) -> str:
        return self._gpu(handle).vbios

    def nvmlDeviceGetBoardId(self, handle: Handle) -> int:
        return (self._gpu(handle).first_bus + handle.index) << 8

    def nvmlDeviceGetBrand(self, handle: Handle) -> int:
        return self._gpu(handle).brand

    def nvmlDeviceGetArchitecture(self, device: Handle) -> int:
        return self._gpu(device).architecture

    def nvmlDeviceGetNumGpuCores(self, device: Handle) -> int:
        return self._gpu(device).cores

    def nvmlDeviceGetMemoryBusWidth(self, device: Handle) -> int:
        return self._gpu(device).memory_bus_bits

    def nvmlDeviceGetCudaComputeCapability(self, handle: Handle) -> tuple[int, int]:
        return self._gpu(handle).compute_capability

    def nvmlDeviceGetComputeMode(self, handle: Handle) -> int:
        self._check_open()
        return CONSTANTS["NVML_COMPUTEMODE_DEFAULT"]

    def nvmlDeviceGetPersistenceMode(self, handle: Handle) -> int:
        return int(self._gpu(handle).persistence and handle.index not in self._not_persistent)

    # --- inside ------------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._opened <= 0:
            raise nvml_error("UNINITIALIZED")

    def _gpu(self, handle: Handle) -> Gpu:
        self._check_open()
        return self._hardware.gpu

    def _now(self, handle: Handle) -> CardNow:
        self._check_open()
        return self._state.now()[handle.index]

    def _hidden(self, handle: Handle, reading: str) -> bool:
        return any(reading in self._unreadable.get(card, ()) for card in (None, handle.index))

    def _find(self, wanted: list[str], known: Sequence[str]) -> Handle:
        self._check_open()
        if wanted[0] not in known:
            raise nvml_error("NOT_FOUND")
        return Handle(list(known).index(wanted[0]))

    def _pci(self, index: int, device_id: int, subsystem_id: int) -> Struct:
        bus_id = self._hardware.bus_id(index)
        return Struct(
            busId=bus_id,
            busIdLegacy=bus_id[4:],
            domain=0,
            bus=self._hardware.gpu.first_bus + index,
            device=0,
            pciDeviceId=device_id,
            pciSubSystemId=subsystem_id,
        )

    def _link_is_up(self, device: Handle, link: int) -> bool:
        self._check_open()
        links = self._ailments.links(device.index)
        if not links:
            raise self._unsupported()
        if not 0 <= link < len(links):
            raise nvml_error("INVALID_ARGUMENT")
        return links[link]

    def _unsupported(self) -> NVMLError:
        self._check_open()
        return nvml_error("NOT_SUPPORTED")


def nvml_error(name: str) -> NVMLError:
    return NVMLError(ERRORS[f"NVML_ERROR_{name}"])


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
