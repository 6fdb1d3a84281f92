"""Warm restarts of a clean simulated rig, each judged as the warm-restart check judges it: none may raise an alarm.

usage: python warm_restarts.py NUMBER FOLDER      (prints one line a restart; exit 1 on any alarm; about 5 s a restart)
"""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_sglang.record import units
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.session import opening, promise, starting
from pytest_sglang.session.options import RunOptions

NO_RECOMPILATION = StartPromise(warm_s=90.0, max_autotune_runs=0, max_new_kernels=0, max_new_graphs=0)


def main(number: int, folder: Path) -> int:
    """Exit code."""
    options = RunOptions(rootdir=folder, rig="simulated", report_dir=folder / "reports")
    deployment, _ = opening.open_run(promise.resolve(options), options, progress=lambda text: None)
    alarms = 0
    try:
        for turn in range(1, number + 1):
            startup = deployment.server.restart()
            judged = starting.compiled(startup, NO_RECOMPILATION, cold=False, server=deployment.server)
            bad = [each.message for each in judged if each.verdict != "pass"]
            diff = startup.cache_diff
            late = startup.ready_s is None or startup.ready_s > 90.0
            alarms += bool(bad) or late or startup.kind != "warm"
            told = (
                "?"
                if diff is None
                else f"{len(diff.new_kernels)} names, {diff.new_graphs} graphs, {diff.variants} variants, {diff.files} files"
            )
            print(f"{turn:3} {startup.kind} {units.duration(startup.ready_s or 0.0)}: {told} {'; '.join(bad)}".rstrip(), flush=True)
    finally:
        deployment.close()
    print(f"{alarms} false alarms in {number} clean warm restarts")
    return 1 if alarms else 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), Path(sys.argv[2])))
