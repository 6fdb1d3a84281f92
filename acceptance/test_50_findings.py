"""Does anything that the server, its unit or its caches show contradict the promises?"""

import pytest


@pytest.mark.sglang_check("findings")
def test_findings(sglang_check, sglang_server, triton_cache):
    """Nothing found in the log, the unit and the caches contradicts what is promised."""
    sglang_check.judge(sglang_server.judge_findings(triton_cache.findings()))
