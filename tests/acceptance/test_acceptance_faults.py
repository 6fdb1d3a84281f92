"""The whole suite on the simulated rig, clean and with each fault: exactly what the table says, with the cause named."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import CAUSES, TABLE, verdicts
from suite import run_suite

IN_CI = ("slow-decode", "power-limit-lost", "nvlink-dead", "cache-cold", "dies-loading", "early-stop")


@pytest.mark.parametrize("fault", [*IN_CI])
def test_whole_suite_with_a_fault(fault: str, tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--power=250", f"--sglang-fault={fault}")
    assert verdicts(run) == TABLE[fault], done.stdout[-6000:]
    assert done.returncode == 1, done.stdout[-3000:]
    assert run["verdict"] == "fail"
    for check_id, needle in CAUSES[fault].items():
        check = next(each for each in run["checks"] if each["id"] == check_id)
        assert needle in f"{check['message']} {check['cause']}", check
    assert "SIMULATED" in done.stdout
