"""The benchmark of the client runs, and counts what happened. Its times are for a quiet machine: nothing here looks at them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "load" / "run.py"


@pytest.mark.skipif((os.cpu_count() or 1) < 2 or not shutil.which("taskset"), reason="two cores and taskset are needed")
def test_the_benchmark_counts_what_happened_and_says_what_it_skips(tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    command = [
        sys.executable,
        str(RUN),
        "--repeat",
        "1",
        "--scenarios",
        "start",
        "--peers-in",
        str(tmp_path),
        "--output",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: sglang, Python client, sglang, Rust client (not in ")
    assert "peers.sh installs them" in done.stdout
    found = json.loads(output.read_text())
    assert [row["peer"] for row in found["rows"]] == ["pytest-sglang", "bare sockets"]
    for run in found["runs"]:
        assert run["exit_code"] == 0
        assert run["said"]["tokens"] == run["true"]["tokens"] == 200
        assert run["true"]["requests"] == 1
    wanted = {each["target"]: each for each in found["targets"]}
    assert wanted["tokens off the truth"]["holds"] is None, "the grid was not run: neither held nor missed"
    start = wanted["start of the process to its first request, s"]
    assert start["holds"] is (start["measured"] <= 0.5)
