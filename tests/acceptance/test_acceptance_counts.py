"""Answers that tell of more tokens than were generated make no rate: the server's own counters contradict them."""

from __future__ import annotations

from pathlib import Path

from faults import TABLE, verdicts
from suite import run_suite


def test_inflated_usage_is_inconclusive_and_no_pass(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--power=250", "--sglang-fault=inflated-usage", "-k", "decode")
    assert done.returncode == 6, done.stdout[-4000:]
    check = next(each for each in run["checks"] if each["id"] == "decode-throughput")
    assert check["verdict"] == "inconclusive"
    assert verdicts(run)["decode-throughput"] == TABLE["inflated-usage"]["decode-throughput"] == "inconclusive"
    assert check["inconclusive_because"].startswith("3 x answers and server counters disagree by 9 % (128 and 117 tokens): ")
    assert "client_lag_ms" in check["measured"]
    assert "SIMULATED" in done.stdout
