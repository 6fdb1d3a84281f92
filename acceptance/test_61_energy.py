"""What does a token cost? Board power, not the wall."""

import pytest


@pytest.mark.sglang_check("energy-per-token")
def test_energy_per_token(sglang_check, sglang_server, power_level_w):
    """Joules per output token at this power level stay within the promise."""
    sglang_check.judge_energy(
        sglang_server.last_throughput(power_level_w) or sglang_server.measure(streams=sglang_check.energy_streams())
    )
