"""How long is the rig away after an upgrade? The caches are set aside, and come back afterwards."""

import pytest


@pytest.mark.ready_within(start="cold")
@pytest.mark.sglang_check("cold-start")
def test_cold_start(sglang_check, sglang_server):
    """A cold start, with nothing compiled, is ready within its budget."""
    sglang_check.judge_start(sglang_server.restart_or_last("cold"))
