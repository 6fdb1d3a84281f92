from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[2] / "benchmarks" / "readiness" / "run.py"


def test_the_benchmark_runs_and_counts_on_the_servers_side(tmp_path: Path) -> None:
    output = tmp_path / "readiness.json"
    argv = [sys.executable, str(RUN), "--starts", "1", "--no-poller", "--output", str(output)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "| `wait_ready` | 1 |" in ran.stdout
    found = json.loads(output.read_text(encoding="utf-8"))
    row = found["rows"][0]
    # how near it is is the benchmark's own result; here only that truth and measurement are of the same moment
    assert abs(row["error_s"]) < 5.0
    assert row["requests"]["/v1/completions 200"] == 1
    assert row["requests"]["/health 200"] == 1
    assert found["summary"]["wait_ready"]["starts"] == 1
