"""Is torch.compile, or the NVLink bridge, worth what it was promised to be? Against a saved run in which just that differs."""

import pytest


@pytest.mark.sglang_check("gain")
def test_gain(sglang_check, sglang_server, power_level_w):
    """The promised gain over the saved run holds, with everything else equal."""
    sglang_check.judge_gain(sglang_server.last_throughput(power_level_w) or sglang_server.measure())
