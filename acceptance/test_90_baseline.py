"""Is it still what it was? Only with --sglang-baseline=compare: this run against a saved one in which at most one thing differs."""

import pytest


@pytest.mark.sglang_check("baseline")
def test_baseline(sglang_check, sglang_deployment):
    """Nothing got slower than in the saved run, as far as the rounds and boots of both can tell."""
    sglang_check.judge_baseline()
