"""The contract with NVML: every call that is made here, its shape and its units, on the stand-in and on a real card.

In CI the stand-in answers. On a machine with an NVIDIA driver the real cards are asked as well; nothing on them is changed. There
it needs pytest and nvidia-ml-py alone:

    python -m pytest -c /dev/null --noconftest -p no:cacheprovider tests/gpu/test_gpu_contract.py -rs
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pytest_sglang.simulator import ailments, hardware
from pytest_sglang.simulator.nvml import SimulatedNvml
from pytest_sglang.simulator.state import HardwareState

UNSUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, INVALID_ARGUMENT = 3, 4, 13, 2
OPTIONAL = frozenset({UNSUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND})
"""How a card may say that it has no such reading: anything else is a fault of the caller or of the card."""
RIGS = ("six-3090", "four-3090-pcie", "two-3090", "one-3090", "eight-h100")


def number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and low <= value <= high


def text(value: Any) -> bool:
    return isinstance(value, (str, bytes)) and len(value) > 0


def numbers(count: int) -> Callable[[Any], bool]:
    return lambda value: len(value) == count and all(isinstance(each, int) for each in value)


def fields(**shape: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: all(check(getattr(value, name)) for name, check in shape.items())


def processes(value: Any) -> bool:
    return isinstance(value, list) and all(each.pid > 0 and hasattr(each, "usedGpuMemory") for each in value)


MILLIWATTS = number(1_000, 2_000_000)
CALLS: dict[str, tuple[tuple[Any, ...], Callable[[Any], bool]]] = {
    "nvmlDeviceGetName": ((), text),
    "nvmlDeviceGetUUID": ((), lambda value: text(value) and str(value).lstrip("b'").startswith("GPU-")),
    "nvmlDeviceGetSerial": ((), text),
    "nvmlDeviceGetPciInfo": ((), fields(busId=text, bus=number(0, 255), pciDeviceId=number(1, 2**32))),
    "nvmlDeviceGetVbiosVersion": ((), text),
    "nvmlDeviceGetCudaComputeCapability": ((), numbers(2)),
    "nvmlDeviceGetNumGpuCores": ((), number(100, 100_000)),
    "nvmlDeviceGetPersistenceMode": ((), number(0, 1)),
    "nvmlDeviceGetMigMode": ((), numbers(2)),
    "nvmlDeviceGetEccMode": ((), numbers(2)),
    "nvmlDeviceGetTotalEccErrors": ((1, 0), number(0, 2**63)),
    "nvmlDeviceGetRemappedRows": ((), numbers(4)),
    "nvmlDeviceGetPowerManagementLimit": ((), MILLIWATTS),
    "nvmlDeviceGetEnforcedPowerLimit": ((), MILLIWATTS),
    "nvmlDeviceGetPowerManagementDefaultLimit": ((), MILLIWATTS),
    "nvmlDeviceGetPowerManagementLimitConstraints": ((), lambda value: numbers(2)(value) and value[0] <= value[1]),
    "nvmlDeviceGetPowerUsage": ((), MILLIWATTS),
    "nvmlDeviceGetTotalEnergyConsumption": ((), number(0, 2**63)),
    "nvmlDeviceGetTemperature": ((0,), number(0, 120)),
    "nvmlDeviceGetClockInfo": ((1,), number(1, 10_000)),
    "nvmlDeviceGetMaxClockInfo": ((1,), number(1, 10_000)),
    "nvmlDeviceGetCurrentClocksEventReasons": ((), number(0, 2**32)),
    "nvmlDeviceGetViolationStatus": ((0,), fields(referenceTime=number(0, 2**63), violationTime=number(0, 2**63))),
    "nvmlDeviceGetPerformanceState": ((), number(0, 32)),
    "nvmlDeviceGetUtilizationRates": ((), fields(gpu=number(0, 100), memory=number(0, 100))),
    "nvmlDeviceGetMemoryInfo": ((), fields(total=number(2**20, 2**50), used=number(0, 2**50), free=number(0, 2**50))),
    "nvmlDeviceGetCurrPcieLinkGeneration": ((), number(1, 8)),
    "nvmlDeviceGetCurrPcieLinkWidth": ((), lambda value: value in (1, 2, 4, 8, 12, 16, 32)),
    "nvmlDeviceGetMaxPcieLinkGeneration": ((), number(1, 8)),
    "nvmlDeviceGetMaxPcieLinkWidth": ((), lambda value: value in (1, 2, 4, 8, 12, 16, 32)),
    "nvmlDeviceGetPcieReplayCounter": ((), number(0, 2**32)),
    "nvmlDeviceGetComputeRunningProcesses": ((), processes),
    "nvmlDeviceGetGraphicsRunningProcesses": ((), processes),
    "nvmlDeviceGetNvLinkState": ((0,), number(0, 1)),
    "nvmlDeviceGetNvLinkVersion": ((0,), number(0, 20)),
    "nvmlDeviceGetNvLinkRemotePciInfo": ((0,), fields(busId=text)),
    "nvmlDeviceGetNvLinkRemoteDeviceType": ((0,), lambda value: value in (0, 1, 2, 255)),
    "nvmlDeviceGetNvLinkCapability": ((0, 0), number(0, 1)),
    "nvmlDeviceGetNvLinkErrorCounter": ((0, 0), number(0, 2**63)),
}
"""Name -> further arguments and the shape of the answer."""
FIELDS = {
    "NVML_FI_DEV_POWER_INSTANT": 186,
    "NVML_FI_DEV_POWER_AVERAGE": 185,
    "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 83,
    "NVML_FI_DEV_PCIE_REPLAY_COUNTER": 94,
    "NVML_FI_DEV_NVLINK_LINK_COUNT": 91,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON": 90,
    "NVML_FI_DEV_NVLINK_SPEED_MBPS_L0": 84,
}
UNIONS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


def has_driver() -> bool:
    """A real card can be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no binding, no library, no driver, no right
        return False
    pynvml.nvmlShutdown()
    return True


REAL = ["real"] if has_driver() else []


@pytest.fixture(scope="module", params=[*RIGS, *REAL])
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The stand-in of every packaged hardware, at work; and the real binding where there is a driver."""
    if request.param == "real":
        import pynvml

        pynvml.nvmlInit()
        yield pynvml
        pynvml.nvmlShutdown()
        return
    folder, found = tmp_path_factory.mktemp(request.param), hardware.load(request.param)
    HardwareState.create(folder, found, found.gpu.present_w).pretend(1)
    made = SimulatedNvml(
        folder, found, [f"GPU-{index}" for index in range(found.gpu.count)], ailments=ailments.Ailments(folder, found)
    )
    made.nvmlInit()
    yield made
    made.nvmlShutdown()


def cards(module: Any) -> list[Any]:
    return [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]


def ask(module: Any, name: str, *arguments: Any, allowed: frozenset[int] = OPTIONAL) -> Any:
    """The answer of a call; None where the card says in one of the allowed ways that it has none."""
    try:
        return getattr(module, name)(*arguments)
    except module.NVMLError as error:
        code = error.value
    if code not in allowed:
        pytest.fail(f"{name}: NVML return code {code}")
    return None


@pytest.mark.parametrize("name", CALLS)
def test_a_call_answers_in_its_shape_or_says_that_the_card_has_it_not(module: Any, name: str) -> None:
    arguments, shape = CALLS[name]
    for card in cards(module):
        answer = ask(module, name, card, *arguments)
        assert answer is None or shape(answer), f"{name} answered {answer!r}"


def test_fields_have_their_own_return_code_and_the_type_that_they_say(module: Any) -> None:
    for card in cards(module):
        for field in module.nvmlDeviceGetFieldValues(card, list(FIELDS.values())):
            assert field.nvmlReturn in (0, *OPTIONAL), field.fieldId
            if field.nvmlReturn == 0:
                assert getattr(field.value, UNIONS[field.valueType]) >= 0


def test_constants_have_the_values_that_are_used_without_the_binding(module: Any) -> None:
    assert {name: getattr(module, name) for name in FIELDS} == FIELDS


def test_the_system_tells_its_versions(module: Any) -> None:
    assert text(module.nvmlSystemGetDriverVersion())
    assert text(module.nvmlSystemGetNVMLVersion())
    assert module.nvmlSystemGetCudaDriverVersion_v2() >= 10_000


def test_limits_lie_inside_the_range_and_free_and_used_memory_are_all_of_it(module: Any) -> None:
    for card in cards(module):
        bounds = ask(module, "nvmlDeviceGetPowerManagementLimitConstraints", card)
        enforced = ask(module, "nvmlDeviceGetEnforcedPowerLimit", card)
        assert bounds is None or enforced is None or bounds[0] <= enforced <= bounds[1]
        memory = module.nvmlDeviceGetMemoryInfo(card)
        assert memory.total == memory.used + memory.free


def test_links_are_numbered_from_0_and_one_beyond_the_last_is_refused(module: Any) -> None:
    beyond = frozenset({UNSUPPORTED, INVALID_ARGUMENT, NO_PERMISSION})
    for card in cards(module):
        answers = [ask(module, "nvmlDeviceGetNvLinkState", card, link, allowed=beyond) for link in range(36)]
        known = [each for each in answers if each is not None]
        assert set(known) <= {0, 1}
        assert answers[: len(known)] == known


def test_two_cards_have_a_common_ancestor_and_a_peer_status(module: Any) -> None:
    for one, other in pairwise(cards(module)):
        assert ask(module, "nvmlDeviceGetTopologyCommonAncestor", one, other) in (None, 0, 10, 20, 30, 40, 50)
        status = ask(module, "nvmlDeviceGetP2PStatus", one, other, module.NVML_P2P_CAPS_INDEX_NVLINK)
        assert status is None or 0 <= status <= 6


def test_a_card_that_is_not_there_is_an_invalid_argument(module: Any) -> None:
    with pytest.raises(module.NVMLError) as raised:
        module.nvmlDeviceGetHandleByIndex(module.nvmlDeviceGetCount())
    assert raised.value.value == INVALID_ARGUMENT


@pytest.mark.skipif(not REAL, reason="no NVIDIA driver: only the stand-in was asked")
def test_real_cards_were_asked() -> None:
    import pynvml

    assert len(cards(_opened(pynvml))) > 0


def _opened(pynvml: Any) -> Any:
    pynvml.nvmlInit()
    return pynvml
