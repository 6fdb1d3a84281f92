"""Are these the cards that were promised? Indices move at reboots, cards fall off the bus, risers come loose."""

import pytest


@pytest.mark.sglang_check("gpu-identity")
def test_gpu_identity(sglang_check, gpu_power):
    """Every promised GPU is present and is itself: name, PCIe generation and width it can reach."""
    sglang_check.judge(gpu_power.judge_identity())
