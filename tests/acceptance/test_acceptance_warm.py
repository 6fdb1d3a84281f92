"""Repeated warm restarts of a clean rig raise no alarm; ``python tests/cache/warm_restarts.py 50 DIR`` makes fifty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).parents[1] / "cache" / "warm_restarts.py"


def test_clean_warm_restarts_raise_no_alarm(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTEST_SGLANG_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(
        [sys.executable, str(DRIVER), "2", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 false alarms in 2 clean warm restarts" in done.stdout
