"""Constants, errors and structures of the simulated NVML: names and values as in nvml.h and pynvml, nothing of theirs imported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

ERRORS: dict[str, int] = {
    "NVML_ERROR_UNINITIALIZED": 1,
    "NVML_ERROR_INVALID_ARGUMENT": 2,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NO_PERMISSION": 4,
    "NVML_ERROR_ALREADY_INITIALIZED": 5,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_INSUFFICIENT_SIZE": 7,
    "NVML_ERROR_INSUFFICIENT_POWER": 8,
    "NVML_ERROR_DRIVER_NOT_LOADED": 9,
    "NVML_ERROR_TIMEOUT": 10,
    "NVML_ERROR_IRQ_ISSUE": 11,
    "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    "NVML_ERROR_CORRUPTED_INFOROM": 14,
    "NVML_ERROR_GPU_IS_LOST": 15,
    "NVML_ERROR_RESET_REQUIRED": 16,
    "NVML_ERROR_OPERATING_SYSTEM": 17,
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": 18,
    "NVML_ERROR_IN_USE": 19,
    "NVML_ERROR_MEMORY": 20,
    "NVML_ERROR_NO_DATA": 21,
    "NVML_ERROR_VGPU_ECC_NOT_SUPPORTED": 22,
    "NVML_ERROR_INSUFFICIENT_RESOURCES": 23,
    "NVML_ERROR_FREQ_NOT_SUPPORTED": 24,
    "NVML_ERROR_ARGUMENT_VERSION_MISMATCH": 25,
    "NVML_ERROR_DEPRECATED": 26,
    "NVML_ERROR_NOT_READY": 27,
    "NVML_ERROR_GPU_NOT_FOUND": 28,
    "NVML_ERROR_INVALID_STATE": 29,
    "NVML_ERROR_RESET_TYPE_NOT_SUPPORTED": 30,
    "NVML_ERROR_UNKNOWN": 999,
}
_TEXTS: dict[int, str] = {
    1: "Uninitialized",
    2: "Invalid Argument",
    3: "Not Supported",
    4: "Insufficient Permissions",
    5: "Already Initialized",
    6: "Not Found",
    7: "Insufficient Size",
    8: "Insufficient External Power",
    9: "Driver Not Loaded",
    10: "Timeout",
    11: "Interrupt Request Issue",
    12: "NVML Shared Library Not Found",
    13: "Function Not Found",
    14: "Corrupted infoROM",
    15: "GPU is lost",
    16: "GPU requires restart",
    17: "The operating system has blocked the request.",
    18: "RM has detected an NVML/RM version mismatch.",
    20: "Insufficient Memory",
    999: "Unknown Error",
}

CONSTANTS: dict[str, int] = {
    "NVML_AGGREGATE_ECC": 1,
    "NVML_BRAND_GEFORCE": 5,
    "NVML_BRAND_GEFORCE_RTX": 15,
    "NVML_CLOCK_GRAPHICS": 0,
    "NVML_CLOCK_MEM": 2,
    "NVML_CLOCK_SM": 1,
    "NVML_CLOCK_VIDEO": 3,
    "NVML_COMPUTEMODE_COUNT": 4,
    "NVML_COMPUTEMODE_DEFAULT": 0,
    "NVML_COMPUTEMODE_EXCLUSIVE_PROCESS": 3,
    "NVML_COMPUTEMODE_EXCLUSIVE_THREAD": 1,
    "NVML_COMPUTEMODE_PROHIBITED": 2,
    "NVML_DEVICE_ARCH_AMPERE": 7,
    "NVML_FEATURE_DISABLED": 0,
    "NVML_FEATURE_ENABLED": 1,
    "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": 45,
    "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": 38,
    "NVML_FI_DEV_NVLINK_LINK_COUNT": 91,
    "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": 59,
    "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": 52,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON": 90,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L0": 84,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L1": 85,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L2": 86,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L3": 87,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L4": 88,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L5": 89,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L6": 132,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L7": 133,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L8": 134,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L9": 135,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L10": 136,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L11": 137,
    "NVML_FI_DEV_PCIE_REPLAY_COUNTER": 94,
    "NVML_FI_DEV_POWER_AVERAGE": 185,
    "NVML_FI_DEV_POWER_CURRENT_LIMIT": 190,
    "NVML_FI_DEV_POWER_DEFAULT_LIMIT": 189,
    "NVML_FI_DEV_POWER_INSTANT": 186,
    "NVML_FI_DEV_POWER_MAX_LIMIT": 188,
    "NVML_FI_DEV_POWER_MIN_LIMIT": 187,
    "NVML_FI_DEV_POWER_REQUESTED_LIMIT": 192,
    "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 83,
    "NVML_INIT_FLAG_FORCE_INIT": 4,
    "NVML_INIT_FLAG_NO_ATTACH": 2,
    "NVML_INIT_FLAG_NO_GPUS": 1,
    "NVML_MEMORY_ERROR_TYPE_CORRECTED": 0,
    "NVML_MEMORY_ERROR_TYPE_COUNT": 2,
    "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1,
    "NVML_NVLINK_CAP_COUNT": 6,
    "NVML_NVLINK_CAP_P2P_ATOMICS": 2,
    "NVML_NVLINK_CAP_P2P_SUPPORTED": 0,
    "NVML_NVLINK_CAP_SLI_BRIDGE": 4,
    "NVML_NVLINK_CAP_SYSMEM_ACCESS": 1,
    "NVML_NVLINK_CAP_SYSMEM_ATOMICS": 3,
    "NVML_NVLINK_CAP_VALID": 5,
    "NVML_NVLINK_DEVICE_TYPE_GPU": 0,
    "NVML_NVLINK_DEVICE_TYPE_IBMNPU": 1,
    "NVML_NVLINK_DEVICE_TYPE_SWITCH": 2,
    "NVML_NVLINK_DEVICE_TYPE_UNKNOWN": 255,
    "NVML_NVLINK_ERROR_COUNT": 5,
    "NVML_NVLINK_ERROR_DL_CRC_DATA": 3,
    "NVML_NVLINK_ERROR_DL_CRC_FLIT": 2,
    "NVML_NVLINK_ERROR_DL_ECC_COUNT": 5,
    "NVML_NVLINK_ERROR_DL_ECC_DATA": 4,
    "NVML_NVLINK_ERROR_DL_ECC_LANE0": 0,
    "NVML_NVLINK_ERROR_DL_ECC_LANE1": 1,
    "NVML_NVLINK_ERROR_DL_ECC_LANE2": 2,
    "NVML_NVLINK_ERROR_DL_ECC_LANE3": 3,
    "NVML_NVLINK_ERROR_DL_RECOVERY": 1,
    "NVML_NVLINK_ERROR_DL_REPLAY": 0,
    "NVML_NVLINK_MAX_LINKS": 36,
    "NVML_P2P_CAPS_INDEX_ATOMICS": 3,
    "NVML_P2P_CAPS_INDEX_NVLINK": 2,
    "NVML_P2P_CAPS_INDEX_PCI": 4,
    "NVML_P2P_CAPS_INDEX_PROP": 4,
    "NVML_P2P_CAPS_INDEX_UNKNOWN": 5,
    "NVML_P2P_CAPS_INDEX_WRITE": 1,
    "NVML_P2P_STATUS_CHIPSET_NOT_SUPPORED": 1,
    "NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED": 1,
    "NVML_P2P_STATUS_DISABLED_BY_REGKEY": 4,
    "NVML_P2P_STATUS_GPU_NOT_SUPPORTED": 2,
    "NVML_P2P_STATUS_IOH_TOPOLOGY_NOT_SUPPORTED": 3,
    "NVML_P2P_STATUS_NOT_SUPPORTED": 5,
    "NVML_P2P_STATUS_OK": 0,
    "NVML_P2P_STATUS_UNKNOWN": 6,
    "NVML_PERF_POLICY_BOARD_LIMIT": 3,
    "NVML_PERF_POLICY_COUNT": 12,
    "NVML_PERF_POLICY_LOW_UTILIZATION": 4,
    "NVML_PERF_POLICY_POWER": 0,
    "NVML_PERF_POLICY_RELIABILITY": 5,
    "NVML_PERF_POLICY_SYNC_BOOST": 2,
    "NVML_PERF_POLICY_THERMAL": 1,
    "NVML_PERF_POLICY_TOTAL_APP_CLOCKS": 10,
    "NVML_PERF_POLICY_TOTAL_BASE_CLOCKS": 11,
    "NVML_PSTATE_0": 0,
    "NVML_PSTATE_1": 1,
    "NVML_PSTATE_10": 10,
    "NVML_PSTATE_11": 11,
    "NVML_PSTATE_12": 12,
    "NVML_PSTATE_13": 13,
    "NVML_PSTATE_14": 14,
    "NVML_PSTATE_15": 15,
    "NVML_PSTATE_2": 2,
    "NVML_PSTATE_3": 3,
    "NVML_PSTATE_4": 4,
    "NVML_PSTATE_5": 5,
    "NVML_PSTATE_6": 6,
    "NVML_PSTATE_7": 7,
    "NVML_PSTATE_8": 8,
    "NVML_PSTATE_9": 9,
    "NVML_PSTATE_UNKNOWN": 32,
    "NVML_SUCCESS": 0,
    "NVML_TEMPERATURE_GPU": 0,
    "NVML_TEMPERATURE_THRESHOLD_ACOUSTIC_CURR": 5,
    "NVML_TEMPERATURE_THRESHOLD_ACOUSTIC_MAX": 6,
    "NVML_TEMPERATURE_THRESHOLD_ACOUSTIC_MIN": 4,
    "NVML_TEMPERATURE_THRESHOLD_COUNT": 8,
    "NVML_TEMPERATURE_THRESHOLD_GPS_CURR": 7,
    "NVML_TEMPERATURE_THRESHOLD_GPU_MAX": 3,
    "NVML_TEMPERATURE_THRESHOLD_MEM_MAX": 2,
    "NVML_TEMPERATURE_THRESHOLD_SHUTDOWN": 0,
    "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN": 1,
    "NVML_TOPOLOGY_CPU": 40,
    "NVML_TOPOLOGY_HOSTBRIDGE": 30,
    "NVML_TOPOLOGY_INTERNAL": 0,
    "NVML_TOPOLOGY_MULTIPLE": 20,
    "NVML_TOPOLOGY_NODE": 40,
    "NVML_TOPOLOGY_SINGLE": 10,
    "NVML_TOPOLOGY_SYSTEM": 50,
    "NVML_VALUE_TYPE_COUNT": 7,
    "NVML_VALUE_TYPE_DOUBLE": 0,
    "NVML_VALUE_TYPE_SIGNED_INT": 5,
    "NVML_VALUE_TYPE_SIGNED_LONG_LONG": 4,
    "NVML_VALUE_TYPE_UNSIGNED_INT": 1,
    "NVML_VALUE_TYPE_UNSIGNED_LONG": 2,
    "NVML_VALUE_TYPE_UNSIGNED_LONG_LONG": 3,
    "NVML_VALUE_TYPE_UNSIGNED_SHORT": 6,
    "NVML_VOLATILE_ECC": 0,
    "nvmlClocksEventReasonAll": 511,
    "nvmlClocksEventReasonApplicationsClocksSetting": 2,
    "nvmlClocksEventReasonDisplayClockSetting": 256,
    "nvmlClocksEventReasonGpuIdle": 1,
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": 128,
    "nvmlClocksEventReasonHwSlowdown": 8,
    "nvmlClocksEventReasonHwThermalSlowdown": 64,
    "nvmlClocksEventReasonNone": 0,
    "nvmlClocksEventReasonSwPowerCap": 4,
    "nvmlClocksEventReasonSwThermalSlowdown": 32,
    "nvmlClocksEventReasonSyncBoost": 16,
    "nvmlClocksEventReasonUserDefinedClocks": 2,
    "nvmlClocksThrottleReasonAll": 2047,
    "nvmlClocksThrottleReasonApplicationsClocksSetting": 2,
    "nvmlClocksThrottleReasonBoardLimit": 512,
    "nvmlClocksThrottleReasonDisplayClockSetting": 256,
    "nvmlClocksThrottleReasonGpuIdle": 1,
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": 128,
    "nvmlClocksThrottleReasonHwSlowdown": 8,
    "nvmlClocksThrottleReasonHwThermalSlowdown": 64,
    "nvmlClocksThrottleReasonNone": 0,
    "nvmlClocksThrottleReasonReliability": 1024,
    "nvmlClocksThrottleReasonSwPowerCap": 4,
    "nvmlClocksThrottleReasonSwThermalSlowdown": 32,
    "nvmlClocksThrottleReasonSyncBoost": 16,
    "nvmlClocksThrottleReasonUserDefinedClocks": 2,
    "nvmlEventTypeXidCriticalError": 8,
}


class NVMLError(Exception):
    """As pynvml's: ``NVMLError(code)`` is of the subclass of that code, which has the code in ``value``."""

    value: int
    _classes: dict[int, type[NVMLError]] = {}

    def __new__(cls, value: int = 999) -> Self:
        """The error of the subclass that belongs to ``value``."""
        made: Any = Exception.__new__(NVMLError._classes.get(value, cls) if cls is NVMLError else cls)
        made.value = cls.value if cls is not NVMLError else value
        return made  # type: ignore[no-any-return]

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __str__(self) -> str:
        return _TEXTS.get(self.value, f"NVML Error with code {self.value}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NVMLError) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def _subclasses() -> dict[str, type[NVMLError]]:
    made = {}
    for name, code in ERRORS.items():
        words = name.removeprefix("NVML_ERROR_").split("_")
        title = "NVMLError_" + "".join(word.capitalize() for word in words)
        made[title] = type(title, (NVMLError,), {"value": code})
        NVMLError._classes[code] = made[title]
    return made


CLASSES: dict[str, type[NVMLError]] = {"NVMLError": NVMLError, **_subclasses()}


class Struct(SimpleNamespace):
    """A structure of the binding: fields by name."""


class NvmlNames:
    """Every constant and error class as an attribute, as they are attributes of the module."""

    NVMLError = NVMLError

    def __getattr__(self, name: str) -> Any:
        for table in (CONSTANTS, ERRORS, CLASSES):
            if name in table:
                return table[name]
        raise AttributeError(f"the simulated NVML has no {name}")
