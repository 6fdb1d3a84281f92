"""``make soak``: every fault through the whole suite, and repeated clean runs; prints a table, exit code 1 on any surprise.

usage: soak.py [CLEAN_RUNS [FAULT ...]]      (default 50 and all of them; about a minute a run, three at a time)

In the clean runs every phase of a start takes a random time: what is promised is kept all the same, so no check may fail.
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

from faults import CAUSES, REFUSED, TABLE, exit_code, verdicts, wrong_findings  # noqa: E402


def run(fault: str, folder: Path) -> tuple[dict[str, str], int, float]:
    """One whole run of the suite: its verdicts (and causes that are not named), its exit code, its wall seconds."""
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
    record = json.loads(records[0].read_text()) if records else {"checks": []}
    found = verdicts(record)
    said = {check["id"]: f"{check['message']} {check['cause']}" for check in record["checks"]}
    found |= {
        check: f"{found.get(check)}, cause not named"
        for check, cause in CAUSES.get(fault, {}).items()
        if cause not in said.get(check, "")
    }
    odd = wrong_findings(fault, record) if records else ""
    if odd:
        found["findings"] = f"{found.get('findings')}, {odd}"
    if not found and fault not in REFUSED:
        print(done.stdout[-2000:], done.stderr[-2000:])
    return found, done.returncode, time.monotonic() - began


def main() -> int:
    """Run everything; 0 when all is as the table says."""
    clean = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    faults = [*(sys.argv[2:] or [*(name for name in TABLE if name), *REFUSED]), *["random-timing"] * clean]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(AT_ONCE) as pool:
        folders = [Path(scratch, str(number)) for number in range(len(faults))]
        for folder in folders:
            folder.mkdir()
        for fault, (found, code, seconds) in zip(faults, pool.map(run, faults, folders), strict=True):
            wanted, expected = ({}, 4) if fault in REFUSED else (TABLE[fault], exit_code(fault))
            differs = {check: (verdict, found.get(check)) for check, verdict in wanted.items() if found.get(check) != verdict}
            good = not differs and code == expected
            wrong += not good
            print(f"{'ok ' if good else 'BAD'} {fault:20} exit {code}  {seconds:5.1f} s  {differs or ''}", flush=True)
    print(f"{wrong} surprises in {len(faults)} runs")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
