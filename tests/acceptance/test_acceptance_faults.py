"""The whole suite on the simulated rig, clean and with each fault: exactly what the table says, with the cause named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import CAUSES, TABLE, verdicts

ROOT = Path(__file__).resolve().parents[2]
IN_CI = ("slow-decode", "power-limit-lost", "nvlink-dead", "cache-cold", "dies-loading", "early-stop")


def run_suite(folder: Path, *arguments: str, timeout_s: float = 240) -> tuple[subprocess.CompletedProcess[str], dict]:
    environment = {**os.environ, "PYTEST_SGLANG_STATE_DIR": str(folder / "state"), "COLUMNS": "100"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(ROOT / "acceptance"),
            "--rig=simulated",
            f"--sglang-report-dir={folder / 'reports'}",
            *arguments,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    runs = list((folder / "reports").glob("*/run.json"))
    return done, json.loads(runs[0].read_text()) if runs else {}


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
