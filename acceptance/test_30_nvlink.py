"""Do the bridges carry? A half-seated one still shows up, with fewer links."""

import pytest


@pytest.mark.needs_nvlink
@pytest.mark.sglang_check("nvlink")
def test_nvlink(sglang_check, nvlink_topology):
    """Every promised NVLink pair is up with all its links, and programs may use them."""
    sglang_check.judge(nvlink_topology.judge())
