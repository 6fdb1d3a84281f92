"""Did a card suffer meanwhile? Memory errors and rows to remap do not stop a server, and a card off the bus stops everything."""

import pytest


@pytest.mark.sglang_check("gpu-health")
def test_gpu_health(sglang_check, gpu_power):
    """Every promised GPU still answers, counted no uncorrected memory error since the run began, has no memory row to remap."""
    sglang_check.judge(gpu_power.judge_health())
