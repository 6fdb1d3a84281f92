"""Does the power limit hold the cards, and nothing else? A hot or braked card makes a rate that belongs to no power level."""

import pytest


@pytest.mark.sglang_check("throttling")
def test_throttling(sglang_check, sglang_server, gpu_power, power_level_w):
    """Nothing but the power limit holds the serving GPUs under load: no heat, no slowdown, no power brake."""
    if sglang_server.last_throughput(power_level_w) is None:
        sglang_server.measure()
    sglang_check.judge(gpu_power.judge_throttling(power_level_w))
