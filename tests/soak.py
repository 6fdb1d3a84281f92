"""``make soak``: every fault through the whole suite, and repeated clean runs; prints a table, exit code 1 on any surprise.

usage: soak.py [CLEAN_RUNS]      (default 10; about a minute a run)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 3
"""Each run has a rig of its own and mostly waits; more at once would be measured by each other's load."""
sys.path[:0] = [str(ROOT / "tests" / "acceptance")]

from faults import TABLE, verdicts, wrong_findings  # noqa: E402


def run(fault: str, folder: Path) -> tuple[dict[str, str], str, int, float]:
    """One whole run of the suite: its verdicts, what is wrong with its findings, its exit code, its wall seconds."""
    import json

    arguments = [f"--sglang-fault={fault}"] if fault else []
    command = [
        sys.executable,
        "-m",
        "pytest",
        "acceptance/",
        "--power=250",
        "--rig=simulated",
        f"--sglang-report-dir={folder}",
        *arguments,
    ]
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTEST_SGLANG_STATE_DIR": str(folder / "state")},
        timeout=600,
    )
    records = list(folder.glob("*/run.json"))
    record = json.loads(records[0].read_text()) if records else {}
    found = verdicts(record) if records else {}
    if not found:
        print(done.stdout[-2000:], done.stderr[-2000:])
    return found, wrong_findings(fault, record) if records else "no record", done.returncode, time.monotonic() - began


def main() -> int:
    """Run everything; 0 when all is as the table says."""
    clean = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    faults = [*[name for name in TABLE if name], *[""] * clean]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(AT_ONCE) as pool:
        folders = [Path(scratch, str(number)) for number in range(len(faults))]
        for folder in folders:
            folder.mkdir()
        for fault, (found, odd, code, seconds) in zip(faults, pool.map(run, faults, folders), strict=True):
            expected = 1 if "fail" in TABLE[fault].values() else 0
            differs = {check: (verdict, found.get(check)) for check, verdict in TABLE[fault].items() if found.get(check) != verdict}
            good = not differs and not odd and code == expected
            wrong += not good
            print(
                f"{'ok ' if good else 'BAD'} {fault or 'clean':18} exit {code}  {seconds:5.1f} s  {differs or ''}{odd}", flush=True
            )
    print(f"{wrong} surprises in {len(faults)} runs")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
