"""The stand-in for pynvml: its names and argument orders are pynvml's, its answers those of a 3090."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest

from pytest_sglang.simulator import hardware
from pytest_sglang.simulator.ailments import Ailments
from pytest_sglang.simulator.nvml import SimulatedNvml
from pytest_sglang.simulator.nvml_names import CLASSES, CONSTANTS, ERRORS
from pytest_sglang.simulator.state import HardwareState

UUIDS = [f"GPU-{index}" for index in range(6)]


def _open(directory: Path, **options: Any) -> SimulatedNvml:
    cards = hardware.load("six-3090")
    HardwareState.create(directory, cards, 250.0, options.get("lost_limit", ()))
    ailments = Ailments(directory, cards, options.pop("faults", ()))
    nvml = SimulatedNvml(directory, cards, UUIDS, ailments=ailments, **options)
    nvml.nvmlInit()
    return nvml


@pytest.fixture
def nvml(tmp_path: Path) -> SimulatedNvml:
    return _open(tmp_path)


@pytest.fixture
def handle(nvml: SimulatedNvml) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(0)


def _functions() -> list[str]:
    return [name for name in dir(SimulatedNvml) if name.startswith("nvml")]


@pytest.mark.parametrize("name", _functions())
def test_functions_have_pynvmls_name_and_arguments(name: str) -> None:
    real = inspect.signature(getattr(pynvml, name))
    ours = inspect.signature(getattr(SimulatedNvml, name))
    assert list(real.parameters) == list(ours.parameters)[1:]
    assert [p.default for p in real.parameters.values()] == [p.default for p in ours.parameters.values()][1:]


def test_constants_and_errors_have_pynvmls_values() -> None:
    assert {name: getattr(pynvml, name) for name in CONSTANTS} == CONSTANTS
    assert {name: getattr(pynvml, name) for name in ERRORS} == ERRORS


def test_error_classes_are_pynvmls(nvml: SimulatedNvml) -> None:
    for name, ours in CLASSES.items():
        real = getattr(pynvml, name)
        assert issubclass(ours, nvml.NVMLError)
        if name != "NVMLError":
            assert ours().value == real(0).value
            assert type(nvml.NVMLError(ours().value)).__name__ == type(pynvml.NVMLError(real(0).value)).__name__ == name


@pytest.mark.parametrize("code", [1, 2, 3, 4, 6, 13, 15, 999])
def test_errors_read_as_pynvmls(nvml: SimulatedNvml, code: int) -> None:
    ours = nvml.NVMLError(code)
    assert str(ours) == str(pynvml.NVMLError(code)) == nvml.nvmlErrorString(code)
    assert ours == nvml.NVMLError(code) != nvml.NVMLError(code + 1)
    assert len({ours, nvml.NVMLError(code)}) == 1


def test_a_code_without_a_name_is_told_by_number(nvml: SimulatedNvml) -> None:
    assert (str(nvml.NVMLError(4711)), nvml.NVMLError(4711).value) == ("NVML Error with code 4711", 4711)


def test_a_name_that_nobody_has_is_an_attribute_error(nvml: SimulatedNvml) -> None:
    with pytest.raises(AttributeError, match="nvmlDeviceMakeCoffee"):
        _ = nvml.nvmlDeviceMakeCoffee


def test_nothing_answers_before_init_and_after_shutdown(nvml: SimulatedNvml) -> None:
    nvml.nvmlInitWithFlags(0)
    nvml.nvmlShutdown()
    nvml.nvmlShutdown()
    for call in (nvml.nvmlDeviceGetCount, nvml.nvmlShutdown, nvml.nvmlSystemGetDriverVersion):
        with pytest.raises(nvml.NVMLError_Uninitialized):
            call()


def test_system(nvml: SimulatedNvml) -> None:
    assert nvml.nvmlSystemGetDriverVersion() == "580.159.04"
    assert nvml.nvmlSystemGetNVMLVersion() == "13.580.159.04"
    assert nvml.nvmlSystemGetCudaDriverVersion_v2() == 13000
    assert "python" in nvml.nvmlSystemGetProcessName(os.getpid())
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlSystemGetProcessName(2**22 + 1)


def test_cards_are_found_by_index_uuid_and_bus(nvml: SimulatedNvml) -> None:
    assert nvml.nvmlDeviceGetCount() == 6
    assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(b"GPU-3")) == 3
    for bus in ("0000:05:00.0", "00000000:05:00.0", b"0000:05:00.0"):
        assert nvml.nvmlDeviceGetMinorNumber(nvml.nvmlDeviceGetHandleByPciBusId(bus)) == 4
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetHandleByIndex(6)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetHandleByUUID("GPU-none")


def test_identity(nvml: SimulatedNvml, handle: Any) -> None:
    assert nvml.nvmlDeviceGetName(handle) == "NVIDIA GeForce RTX 3090"
    assert nvml.nvmlDeviceGetUUID(handle) == "GPU-0"
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    assert (pci.busId, pci.busIdLegacy, pci.bus) == ("00000000:01:00.0", "0000:01:00.0", 1)
    assert set(vars(pci)) == {field[0] for field in pynvml.nvmlPciInfo_t._fields_}
    assert nvml.nvmlDeviceGetCudaComputeCapability(handle) == (8, 6)
    assert nvml.nvmlDeviceGetPersistenceMode(handle) == 1
    assert nvml.nvmlDeviceGetArchitecture(handle) == pynvml.NVML_DEVICE_ARCH_AMPERE
    assert nvml.nvmlDeviceGetBrand(handle) == pynvml.NVML_BRAND_GEFORCE
    assert nvml.nvmlDeviceGetBoardId(handle) == 0x100
    assert nvml.nvmlDeviceGetNumGpuCores(handle) == 10496
    assert nvml.nvmlDeviceGetMemoryBusWidth(handle) == 384
    assert nvml.nvmlDeviceGetVbiosVersion(handle).startswith("94.02")
    assert nvml.nvmlDeviceGetComputeMode(handle) == 0
    assert nvml.nvmlDeviceGetNumFans(handle) == 2


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nvmlDeviceGetSerial", ()),
        ("nvmlDeviceGetEccMode", ()),
        ("nvmlDeviceGetTotalEccErrors", (0, 0)),
        ("nvmlDeviceGetRemappedRows", ()),
        ("nvmlDeviceGetMigMode", ()),
        ("nvmlDeviceGetNumaNodeId", ()),
        ("nvmlDeviceGetSupportedEventTypes", ()),
        ("nvmlDeviceGetTemperatureThreshold", (6,)),
    ],
)
def test_a_geforce_card_does_not_support(nvml: SimulatedNvml, handle: Any, name: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(nvml.NVMLError_NotSupported):
        getattr(nvml, name)(handle, *arguments)


def test_limits_are_milliwatts_and_can_be_set(nvml: SimulatedNvml, handle: Any) -> None:
    assert nvml.nvmlDeviceGetPowerManagementLimit(handle) == 250_000
    assert nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 350_000
    assert nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [100_000, 390_000]
    nvml.nvmlDeviceSetPowerManagementLimit(handle, 300_000)
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 300_000
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(nvml.nvmlDeviceGetHandleByIndex(1)) == 250_000
    assert nvml.nvmlDeviceGetPowerManagementMode(handle) == 1


@pytest.mark.parametrize("milliwatts", [99_999, 390_001])
def test_a_limit_outside_the_range_is_refused(nvml: SimulatedNvml, handle: Any, milliwatts: int) -> None:
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceSetPowerManagementLimit(handle, milliwatts)


def test_without_permission_no_limit_is_set(tmp_path: Path) -> None:
    nvml = _open(tmp_path, permission=False)
    with pytest.raises(nvml.NVMLError_NoPermission):
        nvml.nvmlDeviceSetPowerManagementLimit(nvml.nvmlDeviceGetHandleByIndex(0), 300_000)


def test_a_lost_limit_reads_as_set_and_then_as_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_sglang.simulator.nvml.FALLBACK_S", 0.05)
    nvml = _open(tmp_path, lost_limit=(2,))
    card = nvml.nvmlDeviceGetHandleByIndex(2)
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(card) == 350_000
    nvml.nvmlDeviceSetPowerManagementLimit(card, 250_000)
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(card) == 250_000
    time.sleep(0.07)
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(card) == 350_000


def test_an_idle_card(nvml: SimulatedNvml, handle: Any) -> None:
    assert 24_000 < nvml.nvmlDeviceGetPowerUsage(handle) < 27_000
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonGpuIdle
    assert nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 210
    assert nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 405
    assert nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_VIDEO) == 555
    assert nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle) == 1
    assert nvml.nvmlDeviceGetPowerState(handle) == 8
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0
    assert nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle) == []
    assert nvml.nvmlDeviceGetGraphicsRunningProcesses_v2(handle) == []
    assert nvml.nvmlDeviceGetFanSpeed(handle) == 0
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    assert memory.total == 24 * 2**30 == memory.used + memory.free


def test_a_serving_card(nvml: SimulatedNvml, handle: Any, tmp_path: Path) -> None:
    live = HardwareState(tmp_path, hardware.load("six-3090"))
    live.set_owner(os.getpid())
    live.set_load(1.0, 21 * 2**30)
    assert nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == pynvml.nvmlClocksEventReasonSwPowerCap
    assert nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) == 975
    assert nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 9501
    assert nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle) == 4
    assert nvml.nvmlDeviceGetPerformanceState(handle) == 2
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 98
    (process,) = nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)
    assert (process.pid, process.usedGpuMemory) == (os.getpid(), 21 * 2**30)
    assert nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(4)) == []
    assert nvml.nvmlDeviceGetViolationStatus(handle, pynvml.NVML_PERF_POLICY_POWER).violationTime > 0
    assert nvml.nvmlDeviceGetViolationStatus(handle, pynvml.NVML_PERF_POLICY_THERMAL).violationTime == 0
    live.set_load(0.35)
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == pynvml.nvmlClocksEventReasonNone


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("nvmlDeviceGetClockInfo", 9),
        ("nvmlDeviceGetMaxClockInfo", 9),
        ("nvmlDeviceGetTemperature", 1),
        ("nvmlDeviceGetViolationStatus", 12),
        ("nvmlDeviceGetNvLinkState", 4),
    ],
)
def test_a_wrong_argument_is_refused(nvml: SimulatedNvml, handle: Any, name: str, argument: int) -> None:
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        getattr(nvml, name)(handle, argument)


def test_temperatures_and_widths(nvml: SimulatedNvml, handle: Any) -> None:
    assert 28 < nvml.nvmlDeviceGetTemperature(handle, 0) == nvml.nvmlDeviceGetTemperatureV(handle, 0) < 36
    assert nvml.nvmlDeviceGetTemperatureThreshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN) == 95
    assert nvml.nvmlDeviceGetCurrPcieLinkWidth(handle) == nvml.nvmlDeviceGetMaxPcieLinkWidth(handle) == 16
    assert nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle) == nvml.nvmlDeviceGetGpuMaxPcieLinkGeneration(handle) == 4
    assert nvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) == 2115
    assert nvml.nvmlDeviceGetSupportedClocksThrottleReasons(handle) == 511
    assert nvml.nvmlDeviceGetPcieReplayCounter(handle) == 0


def test_links_lead_to_the_partner(nvml: SimulatedNvml, handle: Any) -> None:
    for link in range(4):
        assert nvml.nvmlDeviceGetNvLinkState(handle, link) == 1
        assert nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId == "00000000:02:00.0"
        assert nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
        assert nvml.nvmlDeviceGetNvLinkVersion(handle, link) == 5
        assert nvml.nvmlDeviceGetNvLinkErrorCounter(handle, link, 0) == 0
        assert nvml.nvmlDeviceGetNvLinkCapability(handle, link, pynvml.NVML_NVLINK_CAP_P2P_SUPPORTED) == 1
    one, two = nvml.nvmlDeviceGetHandleByIndex(1), nvml.nvmlDeviceGetHandleByIndex(2)
    assert nvml.nvmlDeviceGetP2PStatus(handle, one, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK
    assert nvml.nvmlDeviceGetP2PStatus(handle, two, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) != pynvml.NVML_P2P_STATUS_OK
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(handle, one) == pynvml.NVML_TOPOLOGY_HOSTBRIDGE
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(handle, two) == pynvml.NVML_TOPOLOGY_NODE


def test_links_of_a_dead_bridge_are_inactive_and_tell_no_partner(tmp_path: Path) -> None:
    nvml = _open(tmp_path, faults=["nvlink-dead"])
    dead = nvml.nvmlDeviceGetHandleByIndex(3)
    assert [nvml.nvmlDeviceGetNvLinkState(dead, link) for link in range(4)] == [0] * 4
    assert nvml.nvmlDeviceGetNvLinkState(nvml.nvmlDeviceGetHandleByIndex(1), 0) == 1
    for name, arguments in (
        ("nvmlDeviceGetNvLinkRemotePciInfo", ()),
        ("nvmlDeviceGetNvLinkRemoteDeviceType", ()),
        ("nvmlDeviceGetNvLinkErrorCounter", (0,)),
    ):
        with pytest.raises(nvml.NVMLError_NotSupported):
            getattr(nvml, name)(dead, 0, *arguments)


def test_field_values_have_their_own_types_and_return_codes(nvml: SimulatedNvml, handle: Any) -> None:
    fields = [
        pynvml.NVML_FI_DEV_POWER_INSTANT,
        (pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 0),
        pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT,
        pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_L2,
        9999,
    ]
    power, energy, links, speed, unknown = nvml.nvmlDeviceGetFieldValues(handle, fields)
    assert set(vars(power)) == {field[0] for field in pynvml.c_nvmlFieldValue_t._fields_}
    assert set(vars(power.value)) == {field[0] for field in pynvml.c_nvmlValue_t._fields_}
    assert (power.nvmlReturn, power.valueType) == (0, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT)
    assert 24_000 < power.value.uiVal < 27_000
    assert energy.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert energy.value.ullVal == pytest.approx(nvml.nvmlDeviceGetTotalEnergyConsumption(handle), abs=6_000)
    assert (links.value.uiVal, speed.value.uiVal) == (4, 14_062)
    assert (unknown.nvmlReturn, unknown.value.ullVal) == (pynvml.NVML_ERROR_NOT_SUPPORTED, 0)
