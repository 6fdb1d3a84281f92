"""Who answers? An old server still bound to the port answers as happily as the new one."""

import pytest


@pytest.mark.sglang_check("server-identity")
def test_server_identity(sglang_check, sglang_server):
    """The server answers, is the process that was started, and serves the promised model as promised."""
    sglang_check.judge(sglang_server.judge_identity())
