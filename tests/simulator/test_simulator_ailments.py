"""Hardware described by a TOML, and what each fault does to it, as the NVML stand-in and the kernel log show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pynvml
import pytest

from pytest_sglang.simulator import ailments, hardware
from pytest_sglang.simulator.nvml import SimulatedNvml
from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.state import HardwareState


def opened(folder: Path, *faults: str, name: str = "six-3090", busy_s: float = 60.0) -> SimulatedNvml:
    cards = hardware.load(name)
    HardwareState.create(folder, cards, cards.gpu.present_w).pretend(1, busy_s=busy_s)
    ailments.write_kernel_log(folder, cards)
    made = SimulatedNvml(
        folder, cards, [f"GPU-{each}" for each in range(cards.gpu.count)], ailments=ailments.Ailments(folder, cards, faults)
    )
    made.nvmlInit()
    return made


def links(nvml: SimulatedNvml, card: int, count: int = 4) -> list[int]:
    return [nvml.nvmlDeviceGetNvLinkState(nvml.nvmlDeviceGetHandleByIndex(card), link) for link in range(count)]


def partners(nvml: SimulatedNvml) -> list[int]:
    buses = [nvml.nvmlDeviceGetNvLinkRemotePciInfo(nvml.nvmlDeviceGetHandleByIndex(card), 0).bus for card in range(6)]
    return [bus - 1 for bus in buses]


def test_a_half_dead_bridge_has_three_links_at_both_ends(tmp_path: Path) -> None:
    nvml = opened(tmp_path, "nvlink-partial")
    assert links(nvml, 2) == links(nvml, 3) == [1, 1, 1, 0]
    assert links(nvml, 0) == [1] * 4


def test_crossed_bridges_lead_to_other_cards(tmp_path: Path) -> None:
    assert partners(opened(tmp_path, "nvlink-crossed")) == [2, 3, 0, 1, 5, 4]


def test_link_and_pcie_errors_grow_with_the_load_only(tmp_path: Path) -> None:
    nvml = opened(tmp_path, "nvlink-errors", "pcie-replays", busy_s=10.0)
    cards = [nvml.nvmlDeviceGetHandleByIndex(card) for card in range(6)]
    counts = [nvml.nvmlDeviceGetNvLinkErrorCounter(cards[0], link, 0) for link in range(4)]
    assert counts[1] >= 30
    assert counts[0] == counts[2] == counts[3] == nvml.nvmlDeviceGetNvLinkErrorCounter(cards[0], 1, 2) == 0
    assert nvml.nvmlDeviceGetPcieReplayCounter(cards[1]) >= 30
    assert nvml.nvmlDeviceGetPcieReplayCounter(cards[0]) == 0


def test_a_bad_pcie_link_is_narrow_or_slow_under_load(tmp_path: Path) -> None:
    nvml = opened(tmp_path, "pcie-x4", "pcie-gen1")
    one, other = nvml.nvmlDeviceGetHandleByIndex(1), nvml.nvmlDeviceGetHandleByIndex(0)
    assert (nvml.nvmlDeviceGetCurrPcieLinkWidth(one), nvml.nvmlDeviceGetMaxPcieLinkWidth(one)) == (4, 16)
    assert (nvml.nvmlDeviceGetCurrPcieLinkGeneration(one), nvml.nvmlDeviceGetMaxPcieLinkGeneration(one)) == (1, 4)
    assert (nvml.nvmlDeviceGetCurrPcieLinkWidth(other), nvml.nvmlDeviceGetCurrPcieLinkGeneration(other)) == (16, 4)


def test_bad_memory_counts_errors_and_wants_a_remap(tmp_path: Path) -> None:
    nvml = opened(tmp_path, "ecc-errors", "row-remap-pending")
    bad, geforce = nvml.nvmlDeviceGetHandleByIndex(1), nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetEccMode(bad) == [1, 1]
    assert nvml.nvmlDeviceGetTotalEccErrors(bad, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC) > 100
    assert nvml.nvmlDeviceGetTotalEccErrors(bad, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC) == 0
    assert nvml.nvmlDeviceGetRemappedRows(bad) == (0, 1, 1, 0)
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetRemappedRows(geforce)


def test_a_card_falls_off_the_bus_under_load_and_the_kernel_says_so_once(tmp_path: Path) -> None:
    nvml = opened(tmp_path, "xid-79", busy_s=1.0)
    card = nvml.nvmlDeviceGetHandleByIndex(2)
    assert nvml.nvmlDeviceGetTemperature(card, 0) > 0
    HardwareState(tmp_path, hardware.load("six-3090")).pretend(1, busy_s=60.0)
    for _ in range(3):
        with pytest.raises(nvml.NVMLError_GpuIsLost):
            nvml.nvmlDeviceGetTemperature(card, 0)
    assert nvml.nvmlDeviceGetTemperature(nvml.nvmlDeviceGetHandleByIndex(1), 0) > 0
    code, told = ailments.kernel_log(tmp_path, ["journalctl", "-k", "-o", "short-unix", "--since", "@0"], ())
    assert (code, told.count("Xid (PCI:0000:03:00): 79")) == (0, 1)


def test_the_kernel_log_can_be_asked_for_its_end_and_since_a_moment(tmp_path: Path) -> None:
    ailments.write_kernel_log(tmp_path, hardware.load("six-3090"))
    assert ailments.kernel_log(tmp_path, ["journalctl", "-n", "1"], ())[1].count("\n") == 0
    assert ailments.kernel_log(tmp_path, ["journalctl", "--since", "@99999999999"], ()) == (0, "")
    assert ailments.kernel_log(tmp_path, ["dmesg"], ())[0] == 127
    assert ailments.kernel_log(tmp_path, ["journalctl"], ("kernel-log-hidden",)) == (0, "")
    assert "not permitted" in ailments.kernel_log(tmp_path, ["dmesg"], ("kernel-log-hidden",))[1]


def test_a_stranger_computes_beside_the_server(tmp_path: Path) -> None:
    nvml = opened(tmp_path, "foreign-process")
    found = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(1))
    assert [each.pid for each in found] == [1, ailments.STRANGER_PID]
    assert nvml.nvmlSystemGetProcessName(ailments.STRANGER_PID) == "/usr/local/bin/ollama"


def test_versions_that_do_not_fit_open_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="version mismatch") as raised:
        opened(tmp_path, "driver-mismatch")
    assert raised.value.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ailments.SPARSE)
def test_any_call_may_be_unsupported(tmp_path: Path, name: str) -> None:
    nvml = opened(tmp_path, "not-supported")
    arguments = (0,) if name == "nvmlDeviceGetViolationStatus" else ()
    with pytest.raises(nvml.NVMLError_NotSupported):
        getattr(nvml, name)(nvml.nvmlDeviceGetHandleByIndex(0), *arguments)


# --- hardware by TOML ----------------------------------------------------------------------------------------------------------------


def test_eight_cards_on_switches(tmp_path: Path) -> None:
    nvml = opened(tmp_path, name="eight-h100")
    card = nvml.nvmlDeviceGetHandleByIndex(7)
    assert links(nvml, 7, 18) == [1] * 18
    assert nvml.nvmlDeviceGetNvLinkRemoteDeviceType(card, 0) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    own = {nvml.nvmlDeviceGetPciInfo(nvml.nvmlDeviceGetHandleByIndex(each)).busId for each in range(8)}
    assert nvml.nvmlDeviceGetNvLinkRemotePciInfo(card, 17).busId not in own
    assert nvml.nvmlDeviceGetBrand(card) == pynvml.NVML_BRAND_NVIDIA
    assert nvml.nvmlDeviceGetArchitecture(card) == pynvml.NVML_DEVICE_ARCH_HOPPER
    assert nvml.nvmlDeviceGetNvLinkVersion(card, 0) == pynvml.NVML_NVLINK_VERSION_4_0


def test_a_card_without_energy_counter(tmp_path: Path) -> None:
    nvml = opened(tmp_path, name="one-3090")
    card = nvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetTotalEnergyConsumption(card)
    (field,) = nvml.nvmlDeviceGetFieldValues(card, [pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION])
    assert field.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetNvLinkState(card, 0)


def test_a_display_server_is_a_graphics_process(tmp_path: Path) -> None:
    nvml = opened(tmp_path, name="two-3090")
    (found,) = nvml.nvmlDeviceGetGraphicsRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(0))
    assert nvml.nvmlSystemGetProcessName(found.pid) == "/usr/lib/xorg/Xorg"


@pytest.mark.parametrize("name", hardware.names())
def test_every_packaged_hardware_makes_a_rig(tmp_path: Path, name: str) -> None:
    rig = SimulatedRig.create(tmp_path / "rig", hardware=name)
    assert len(rig.config.uuids) == rig.config.hardware.gpu.count
    assert rig.kernel_log(["journalctl", "-n", "1"])[0] == 0


def test_hardware_of_ones_own_is_a_path(tmp_path: Path) -> None:
    text = (hardware.RIGS / "two-3090.toml").read_text().replace("count = 2", "count = 3")
    (tmp_path / "mine.toml").write_text(text)
    rig = SimulatedRig.create(tmp_path / "rig", hardware=str(tmp_path / "mine.toml"))
    assert SimulatedRig.open(tmp_path / "rig").config.hardware.gpu.count == 3
    assert json.loads((rig.directory / "rig.json").read_text())["hardware_name"] == str(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("count = 2", "", "count"),
        ("gpus = [0, 1]", "gpus = [0, 2]", "there is no GPU 2: gpu.count is 2"),
        ("min_w = 100", "min_w = ", "Invalid value"),
        ("min_w = 100", "min_w = 100\nmin_v = 3", "min_v"),
    ],
)
def test_a_wrong_toml_is_refused_with_its_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "mine.toml").write_text((hardware.RIGS / "two-3090.toml").read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=says):
        hardware.load(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("one-3090", "nvlink-dead", "no bridge between GPU 2 and GPU 3"),
        ("four-3090-pcie", "nvlink-errors", "has no NVLink"),
        ("two-3090", "xid-79", "has no GPU 2"),
    ],
)
def test_a_fault_that_the_hardware_cannot_have_is_refused(tmp_path: Path, name: str, fault: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SimulatedRig.create(tmp_path, hardware=name, faults=[fault])


def test_a_server_on_the_wrong_cards_holds_those(tmp_path: Path) -> None:
    config: Any = SimulatedRig.create(tmp_path / "rig", faults=["server-misplaced"]).config
    assert config.hardware.serving == (0, 1, 2, 4)
