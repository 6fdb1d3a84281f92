"""NVML through the guard: readings with units, Missing with reasons, a lost card, a driver that is not there."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from nvml_fakes import NOT_SUPPORTED, Err, FakeNvml, NVMLError, card_3090, recorded_h200, six_3090

from pytest_sglang.gpu.nvml import GpuLost, GpuProcess, Missing, NoDriver, Nvml, PowerError
from pytest_sglang.gpu.readings import reason_names, value_or_none


def only_card(**answers):
    return Nvml.open(FakeNvml([{**card_3090(0), **answers}])).cards()[0]


@pytest.fixture
def h200():
    return Nvml.open(FakeNvml([recorded_h200()])).cards()[0]


def test_recorded_h200_is_read_with_the_units_of_nvidia_smi(h200):
    limits = h200.limits()
    assert (limits.requested_w, limits.enforced_w, limits.default_w, limits.min_w, limits.max_w) == (700, 700, 700, 200, 700)
    assert (h200.name, h200.uuid, h200.pci) == ("NVIDIA H200", "GPU-2e7d3b3c-4eb8-ce4d-da58-84580d497b49", "0000:00:06.0")
    assert h200.power_average_w() == pytest.approx(95.929)
    assert h200.power_instant_w() == pytest.approx(79.890)
    assert h200.energy_j() == pytest.approx(2418.829)
    assert (h200.clocks().sm_mhz, h200.clocks().mem_mhz, h200.clocks().max_sm_mhz) == (345, 3201, 1980)
    assert h200.event_reasons() == ("gpu_idle",)
    assert h200.temperature_c() == 43
    assert (h200.pcie().gen, h200.pcie().width, h200.pcie().max_gen, h200.pcie().max_width) == (5, 16, 5, 16)
    assert h200.pcie_replays() == 0
    assert h200.compute_capability() == "9.0"
    assert h200.ecc() is True
    assert h200.mig() is False
    assert h200.remapped_rows() == (0, 0, False, False)
    assert h200.performance_state() == 0
    assert h200.utilization_pct() == 0
    assert h200.memory_used_bytes() == 644939776
    assert h200.processes() == []
    assert h200.persistence() is True
    assert repr(h200) == "<Card GPU 0 (0000:00:06.0) GPU-2e7d3b3c-4eb8-ce4d-da58-84580d497b49>"


def test_fingerprint_is_plain_json_with_reasons_for_what_cannot_be_read(h200):
    taken = h200.fingerprint()
    assert json.loads(json.dumps(taken)) == taken
    assert taken["serial"] == "1653824070686"
    assert taken["vbios"] == "96.00.A5.00.1A"
    assert taken["unreadable"] == {}
    geforce = only_card().fingerprint()
    assert geforce["serial"] is None
    assert geforce["unreadable"]["serial"] == "Not Supported"


def test_not_supported_is_a_value_with_its_reason_and_never_a_zero():
    card = only_card(PowerUsage=NOT_SUPPORTED, fields={})
    for reading in (card.power_average_w(), card.power_instant_w(), card.serial(), card.ecc_uncorrected()):
        assert reading == Missing("Not Supported", code=3)
        assert reading.unsupported
        assert not reading.permission
        assert str(reading) == "not readable (Not Supported)"
        assert value_or_none(reading) is None


def test_want_of_a_permission_is_told_apart():
    card = only_card(PcieReplayCounter=Err(4), fields={186: Err(4)})
    assert card.pcie_replays() == Missing("Insufficient Permissions", permission=True, code=4)
    assert card.power_instant_w() == Missing("Insufficient Permissions", permission=True, code=4)


@pytest.mark.parametrize("code", [15, 28])
def test_a_lost_card_is_an_exception_of_its_own_that_names_the_card(code):
    nvml = Nvml.open(six_3090())
    card = nvml.cards()[3]
    nvml.guard.module.cards[3]["lost"] = code
    with pytest.raises(GpuLost, match=r"GPU 3 \(0000:04:00.0\) is lost.*Xid 79"):
        card.energy_j()
    with pytest.raises(GpuLost, match="GPU 3"):
        card.power_instant_w()


def test_an_unknown_error_of_a_field_keeps_its_code():
    assert only_card(fields={186: Err(999)}).power_instant_w() == Missing("NVML return code 999", code=999)


def test_a_binding_without_the_function_or_with_a_broken_struct_gives_missing():
    module = FakeNvml([card_3090(0)])
    module.without = {"nvmlDeviceGetPowerUsage"}
    card = Nvml.open(module).cards()[0]
    assert card.power_average_w() == Missing("the NVML binding has no nvmlDeviceGetPowerUsage", code=13)

    def broken():
        raise OSError("symbol lookup")

    assert only_card(PowerUsage=broken).power_average_w() == Missing("symbol lookup")
    assert isinstance(only_card(CudaComputeCapability=8).compute_capability(), Missing)
    assert isinstance(only_card(MemoryInfo=SimpleNamespace()).memory_total_bytes(), Missing)


def test_older_drivers_answer_to_older_names():
    module = FakeNvml([{**card_3090(0), "CurrentClocksThrottleReasons": 4, "TemperatureV": lambda sensor: 55}])
    module.without = {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetTemperature"}
    card = Nvml.open(module).cards()[0]
    assert card.event_reasons() == ("sw_power_cap",)
    assert card.temperature_c() == 55


def test_a_process_list_of_another_driver_generation_falls_back_to_its_own_spelling():
    class NVMLLibraryMismatchError(Exception):
        pass

    def unversioned():
        raise NVMLLibraryMismatchError("use a versioned function such as nvmlDeviceGetComputeRunningProcesses_v2")

    running = [SimpleNamespace(pid=7, usedGpuMemory=None)]
    card = only_card(ComputeRunningProcesses=unversioned, ComputeRunningProcesses_v3=Err(13), ComputeRunningProcesses_v2=running)
    assert card.processes() == [GpuProcess(7, None, "compute")]


def test_a_process_that_computes_and_draws_is_listed_once():
    compute, graphics = [SimpleNamespace(pid=7, usedGpuMemory=5)], [SimpleNamespace(pid=7), SimpleNamespace(pid=8, usedGpuMemory=1)]
    card = only_card(ComputeRunningProcesses=compute, GraphicsRunningProcesses=graphics)
    assert card.processes() == [GpuProcess(7, 5, "compute"), GpuProcess(8, 1, "graphics")]
    assert only_card(ComputeRunningProcesses=compute, GraphicsRunningProcesses=NOT_SUPPORTED).processes() == [
        GpuProcess(7, 5, "compute")
    ]
    assert isinstance(only_card(ComputeRunningProcesses=Err(4)).processes(), Missing)


def test_texts_as_bytes_and_a_card_without_uuid():
    card = only_card(Name=b"NVIDIA GeForce RTX 3090", UUID=NOT_SUPPORTED)
    assert card.name == "NVIDIA GeForce RTX 3090"
    assert card.uuid == "0000:01:00.0"
    bare = only_card(Name=NOT_SUPPORTED, UUID=NOT_SUPPORTED, PciInfo=NOT_SUPPORTED)
    assert (bare.uuid, bare.pci, bare.label) == ("index-0", "", "GPU 0")
    assert isinstance(bare.name, Missing)


def test_reason_bits_have_their_names_and_unknown_ones_their_number():
    assert reason_names(0) == ()
    assert reason_names(0x4 | 0x8 | 0x40) == ("sw_power_cap", "hw_slowdown", "hw_thermal_slowdown")
    assert reason_names(0x800) == ("bit_0x800",)


def test_setting_a_limit_speaks_milliwatts_and_a_refusal_names_card_and_right():
    module = FakeNvml([card_3090(0)])
    Nvml.open(module).cards()[0].set_limit_w(287.5)
    assert module.calls[-1] == ("SetPowerManagementLimit", 0, 287500)
    with pytest.raises(PowerError, match=r"GPU 0 .*250 W refused: Insufficient Permissions \(run as root") as refused:
        only_card(set=Err(4)).set_limit_w(250)
    assert refused.value.permission
    with pytest.raises(PowerError, match=r"refused: Not Supported$") as refused:
        only_card(set=NOT_SUPPORTED).set_limit_w(250)
    assert not refused.value.permission


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (9, "kernel driver is not loaded"),
        (12, "library is not installed"),
        (18, "different versions"),
        (4, "may not talk to the driver"),
        (999, "Unknown Error"),
    ],
)
def test_no_driver_says_in_one_sentence_what_was_looked_for_and_found(code, found):
    with pytest.raises(NoDriver, match=found) as error:
        Nvml.open(FakeNvml([], init=code))
    assert str(error.value).startswith("looked for the NVIDIA driver (libnvidia-ml.so.1): ")
    assert "\n" not in str(error.value)


def test_no_binding_is_no_driver_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoDriver, match="pip install nvidia-ml-py"):
        Nvml.open()


def test_the_real_binding_without_a_driver_is_told_as_such(monkeypatch):
    import pynvml

    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    with pytest.raises(NoDriver, match="library is not installed"):
        Nvml.open()


def test_close_is_idempotent_and_a_context_manager_does_it():
    module = FakeNvml([card_3090(0)])
    with Nvml.open(module) as nvml:
        assert nvml.driver() == "580.159.04"
        assert nvml.cuda() == "13.0"
        assert nvml.count() == 1
    nvml.close()
    assert module.closed == 1


def test_a_driver_version_that_cannot_be_read_is_its_reason():
    assert Nvml.open(FakeNvml([], driver=Err(3))).driver() == "not readable (Not Supported)"


def test_cards_that_cannot_be_opened_are_kept_with_their_reasons():
    module = six_3090()
    module.handles = {2: 15, 4: 4}
    nvml = Nvml.open(module)
    assert [card.index for card in nvml.cards()] == [0, 1, 3, 5]
    assert "GPU 2 is lost" in nvml.unopened[2].reason
    assert nvml.unopened[4].permission


def test_an_uncountable_driver_is_no_driver(monkeypatch):
    module = FakeNvml([])

    def uncountable() -> int:
        raise NVMLError(999)

    monkeypatch.setattr(module, "nvmlDeviceGetCount", uncountable, raising=False)
    with pytest.raises(NoDriver, match="number of GPUs"):
        Nvml.open(module).cards()


def test_every_function_and_constant_used_exists_in_the_real_binding():
    import pynvml

    module = six_3090()
    nvml = Nvml.open(module)
    for card in nvml.cards():
        card.fingerprint(), card.found(), card.clocks(), card.event_reasons(), card.temperature_c(), card.processes()
        card.utilization_pct(), card.performance_state(), card.energy_j(), card.power_average_w(), card.pcie_replays()
        card.remapped_rows(), card.ecc_uncorrected(), card.memory_used_bytes()
    names = {f"nvmlDeviceGet{call[0]}" for call in module.calls}
    assert {name for name in names if not hasattr(pynvml, name)} == set()
    assert (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NO_PERMISSION) == (186, 15, 4)
    assert pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown == 0x80
