"""Is ready ready? /v1/models answers long before a token can be made, and the log line is no proof either."""

import pytest


@pytest.mark.sglang_check("ready")
def test_ready(sglang_check, sglang_server):
    """Ready means ready: a generation comes back whole, with exactly the asked number of tokens."""
    sglang_check.judge(sglang_server.judge_ready())
