"""The comparison with nvidia-smi that is run on real cards: its readers, on texts as nvidia-smi prints them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import real_card

DATA = Path(__file__).parents[1] / "data" / "nvml"
TREE = """<gpu id="00000000:00:06.0">
<product_name>NVIDIA H200</product_name><uuid>GPU-2e7d</uuid><persistence_mode>Enabled</persistence_mode><serial>1653824070686</serial>
<vbios_version>96.00.A5.00.1A</vbios_version><mig_mode><current_mig>Disabled</current_mig></mig_mode>
<performance_state>P0</performance_state>
<pci><pci_gpu_link_info><pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>5</current_link_gen></pcie_gen>
<link_widths><max_link_width>16x</max_link_width><current_link_width>16x</current_link_width></link_widths></pci_gpu_link_info>
<replay_counter>0</replay_counter></pci>
<clocks_event_reasons><clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
<clocks_event_reason_sw_power_cap>Not Active</clocks_event_reason_sw_power_cap></clocks_event_reasons>
<fb_memory_usage><total>143771 MiB</total><reserved>615 MiB</reserved><used>0 MiB</used></fb_memory_usage>
<utilization><gpu_util>0 %</gpu_util></utilization><ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode>
<remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>0</remapped_row_unc>
<remapped_row_pending>No</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
<temperature><gpu_temp>43 C</gpu_temp></temperature>
<gpu_power_readings><average_power_draw>103.96 W</average_power_draw><instant_power_draw>80.13 W</instant_power_draw>
<current_power_limit>700.00 W</current_power_limit><requested_power_limit>700.00 W</requested_power_limit>
<default_power_limit>700.00 W</default_power_limit><min_power_limit>200.00 W</min_power_limit><max_power_limit>700.00 W</max_power_limit>
</gpu_power_readings><clocks><sm_clock>345 MHz</sm_clock><mem_clock>3201 MHz</mem_clock></clocks>
<max_clocks><sm_clock>1980 MHz</sm_clock><mem_clock>3201 MHz</mem_clock></max_clocks></gpu>"""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("700.00 W", 700.0),
        ("43 C", 43.0),
        ("16x", 16.0),
        ("P0", 0.0),
        ("143771 MiB", 143771 * 2**20),
        ("Enabled", True),
        ("Not Active", False),
        ("No", False),
        ("N/A", None),
        (None, None),
        ("96.00.A5.00.1A", "96.00.A5.00.1A"),
        ("580.159.04", "580.159.04"),
        ("NVIDIA H200", "NVIDIA H200"),
    ],
)
def test_a_text_of_nvidia_smi_is_a_value(told, expected):
    assert real_card.value(told) == expected


@pytest.mark.parametrize(
    ("reading", "ours", "theirs", "verdict"),
    [
        ("ecc", True, True, "equal"),
        ("ecc", None, None, "not supported"),
        ("ecc", None, True, "different"),
        ("enforced_power_limit_w", 250.0, 250.0, "equal"),
        ("enforced_power_limit_w", 250.0, 350.0, "different"),
        ("temperature_c", 43, 44.0, "near"),
        ("temperature_c", 43, 54.0, "different"),
        ("serial", "1653824070686", 1653824070686.0, "equal"),
        ("name", "NVIDIA H200", "NVIDIA H100", "different"),
    ],
)
def test_two_readings_agree_or_not(reading, ours, theirs, verdict):
    assert real_card.same(reading, ours, theirs) == verdict


def test_the_recorded_card_agrees_with_what_nvidia_smi_printed_in_the_same_minute():
    from nvml_fakes import FakeNvml, recorded_h200

    from pytest_sglang.gpu.nvml import Nvml
    from pytest_sglang.gpu.sheet import sheet

    card = {**sheet(Nvml.open(FakeNvml([recorded_h200()])).cards()[0]), "uuid": "GPU-2e7d"}
    rows = list(real_card.compare_card(card, ElementTree.fromstring(TREE)))
    verdicts = {row.reading: row.verdict for row in rows}
    assert {name for name, verdict in verdicts.items() if verdict == "different"} == set(), rows
    assert verdicts["serial"] == verdicts["reasons"] == verdicts["remapped_rows"] == "equal"
    broken = {**card, "enforced_power_limit_w": 600.0, "reasons": ["sw_power_cap"], "remapped_rows": [0, 1, True, False]}
    again = {row.reading: row.verdict for row in real_card.compare_card(broken, ElementTree.fromstring(TREE))}
    assert {name for name, verdict in again.items() if verdict == "different"} == {
        "enforced_power_limit_w",
        "reasons",
        "remapped_rows",
    }


def test_the_matrix_of_topo_m_is_read_between_its_other_columns():
    text = (
        "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
        "GPU0\t X \tNV18\tNODE\t0-15\t0\t\tN/A\nGPU1\tNV18\t X \tSYS\t16-31\t1\t\tN/A\nNIC0\tNODE\tSYS\t X \n\nLegend:\n"
    )
    assert real_card.topology(text) == [["X", "NV18"], ["NV18", "X"]]


def test_the_recorded_matrix_of_one_card_is_read():
    recorded = (DATA / "h200-nvml-dump.txt").read_text()
    if "topo -m" in recorded:
        assert real_card.topology(re.split(r"\+ nvidia-smi topo -m\n", recorded)[1]) == [["X"]]


def test_link_speeds_of_nvlink_s_are_read():
    text = "GPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-1)\n\t Link 0: 14.062 GB/s\n\t Link 1: <inactive>\nGPU 1: x (UUID: y)\n"
    assert real_card.speeds(text) == {0: [14.062, None]}
