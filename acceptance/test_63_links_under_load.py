"""What do the links do while the cards work? Idle ones drop to PCIe generation 1, and a bad riser shows itself under load only."""

import pytest


@pytest.mark.sglang_check("links-under-load")
def test_links_under_load(sglang_check, gpu_power, sglang_server):
    """Under load every serving GPU keeps its promised PCIe link, and neither PCIe nor NVLink has to send again and again."""
    sglang_check.judge(gpu_power.judge_links_under_load())
