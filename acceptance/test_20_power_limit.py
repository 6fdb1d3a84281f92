"""Does the power limit stand? It is lost at every reboot and driver unload, and a refused one goes unnoticed."""

import pytest


@pytest.mark.sglang_check("power-limit")
def test_power_limit(sglang_check, gpu_power, power_level_w):
    """The enforced power limit of every promised GPU equals --power, and persistence mode keeps it."""
    sglang_check.judge(gpu_power.judge_limit(power_level_w))
