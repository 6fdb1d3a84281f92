"""Runs of pytest in a process of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_suite(
    folder: Path, *arguments: str, tests: Path = ROOT / "acceptance", timeout_s: float = 240
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A whole pytest run on a simulated rig of its own, with everything that it leaves in ``folder``; and its run.json ({}: none)."""
    environment = {**os.environ, "PYTEST_SGLANG_STATE_DIR": str(folder / "state"), "COLUMNS": "100"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            str(tests),
            "--rig=simulated",
            f"--sglang-report-dir={folder / 'reports'}",
            *arguments,
        ],
        cwd=tests.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    runs = list((folder / "reports").glob("*/run.json"))
    return done, json.loads(runs[0].read_text()) if runs else {}
