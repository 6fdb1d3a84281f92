"""Are the tokens still right? A stale kernel or a broken path between cards makes wrong ones, quickly and without any error."""

import pytest


@pytest.mark.sglang_check("answers")
def test_answers(sglang_check, sglang_server):
    """Fixed prompts are answered alike before and after every start, but for near ties, and no answer is garbled."""
    sglang_check.judge(sglang_server.judge_answers())
