"""Does a restart keep its promise? "The kernels are cached for ever" is what owners believe."""

import pytest


@pytest.mark.ready_within(start="warm")
@pytest.mark.max_new_kernels
@pytest.mark.sglang_check("warm-restart")
def test_warm_restart(sglang_check, sglang_server):
    """A cache-warm restart is ready within its budget without recompiling."""
    sglang_check.judge_start(sglang_server.restart_or_last("warm"))
