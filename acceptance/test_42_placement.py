"""Does the server lie on the cards that were meant? Across two bridges it loses what NVLink gains, beside a stranger even more."""

import pytest


@pytest.mark.sglang_check("placement")
def test_placement(sglang_check, nvlink_topology):
    """The server runs on its promised GPUs, each tensor parallel group on joined ones, and nobody else computes there."""
    sglang_check.judge(nvlink_topology.judge_placement())
